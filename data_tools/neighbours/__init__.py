"""`clipkit-data neighbours`: what a retrieval head is trained with, found ahead.

Lives here: `command.py` (the command line), `run.py` (the search, and what it leaves out).
"""
