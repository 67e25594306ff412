"""Offline work on shards: thin commands over clipkit, run as `python -m data_tools <tool>`.

What lives here: one file per tool, or one folder with its command in `command.py` where a tool has
more than two; `__main__.py` registers the commands and is also the console script `clipkit-data`.
What the tools share: `map_shards.py` (one function over many shards: `engines/`, done markers in
`done.py`), `tables.py` (tables and keep-lists, where a sample is named by shard, row and key),
`embeddings.py` (rows of an embeddings folder under those names), `sample_ids.py` (and under the
ids of the loader), `staging.py` (a folder whole or not at all), `options.py`, `summary.py`.
May import: any clipkit room up to layer 3. Nothing in clipkit imports this package.
To add a tool: a function `fn(shard, out, **params)` that writes whole files and returns JSON, given
to `map_shards`; a typer function with what `options.py` has for it, that imports what is heavy
inside, so that `--help` stays fast, and ends in `write_summary`; its line in `__main__.py`. What a
user can mend is raised as `clipkit.errors.DataError`. The same command again goes on where it was
stopped, and `--dry-run` touches nothing.
"""
