"""`clipkit-data reshard`: cut shards anew, or write what keep-lists keep.

`run.py` plans with `data_tools/build/plan.py` and writes; `command.py` is the command.
"""
