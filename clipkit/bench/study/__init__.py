"""Studies: `clipkit bench study FILE` runs what a YAML file lists and tabulates what it gave.

`definition.py` reads the file, `commands.py` makes command lines of it, `execute.py` runs those
that are not done, `stored.py` finds what they stored, `numbers.py` pairs it with the baselines',
`table.py` writes it down. The files are configs/studies/*.yaml, their tables results/studies/. May
import what clipkit.bench may; commands run in processes of their own, so data_tools is never
imported.

To add a study: a YAML file in configs/studies, and beside it NAME_run.yaml for what it trains;
`clipkit bench study FILE --list` shows what it would run.
"""
