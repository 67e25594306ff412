"""`clipkit-data build`: images and captions in any common form -> tar shards.

Two steps, so that a build can be interrupted anywhere and rebuilt to the same bytes: the source is
listed as rows (`rows.py`, from `folder.py` or `tables.py`) and cut into shards (`plan.py`); then
each shard is packed from its own plan file (`pack.py`). `run.py` joins them, `img2dataset.py` reads
that tool's output, `command.py` is the command. To add a form: a file with a function that gives
the rows, and a line in `run.py`.
"""
