"""`clipkit-data mine`: neighbours of samples among themselves, for `data.hard_batches`.

Lives here: `command.py` (the command line), `run.py` (the search, and its false-negative window).
"""
