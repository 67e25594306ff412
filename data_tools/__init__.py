"""Offline work on shards: thin commands over clipkit, run as `python -m data_tools <tool>`.

What lives here: one file per tool (`demo.py`), the parts a tool is made of next to it
(`demo_digits.py`, `demo_shapes.py`), and `__main__.py` with one typer command per tool, also
installed as the console script `clipkit-data`.
May import: any clipkit room up to layer 3. Nothing in clipkit imports this package.
To add a tool: write its file with one public function that takes plain arguments and raises
`clipkit.errors.DataError` for what a user can mend, then add a command in `__main__.py` that
imports it inside the command, so that `--help` stays fast.
"""
