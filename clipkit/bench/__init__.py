"""Benchmarks: `clipkit bench loss|step|addons|checkpoint|retrieval|loader|study`. Ratios within
one run.

`measure.py` starts a process per row and reads its clock and memory; `loss.py`, `step.py`,
`addons.py`, `checkpoint.py`, `loader.py` and `retrieval.py` hold the implementations that are
compared; `report.py` writes JSON lines, a table and a plot; `results/` keeps curated runs; `study/`
compares what rows of commands give. May import everything below the command line.

To add a row: a function in `IMPLEMENTATIONS` of `loss.py`, a mode in `step.py`, or an entry in
`ADDONS` of `addons.py`.
"""
