"""validate: what in shards can be used for training, and clean copies of them.

Lives here: `command.py` (the command), `check.py` (one shard), `sample.py` (one sample),
`names.py` (members by their names, never opened). A sample is rejected for what makes training
reject it, and for what only a tool sees: a key twice in a shard, a key that points out of its
folder, too few pixels. May import: `clipkit.data`, the foundations of `data_tools`.
To add a check: a cause raised in `sample.judge` (rejects) or a kind in its notes (kept); a kind
in `sample.PLAIN` is counted and has no row of its own.
"""
