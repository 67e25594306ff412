"""`clipkit-data negatives`: write negative captions into the json members of shards.

`run.py` works with clipkit's `CaptionEditor`, shard by shard; `command.py` is the command. What it
writes is read by the add-on `hard_negatives` with `source: json`.
"""
