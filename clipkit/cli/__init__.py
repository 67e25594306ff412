"""The `clipkit` command. One file per command; each imports late, so --help is instant.

A ClipkitError ends a command with one line on stderr and its exit status; anything else is a bug
and keeps its traceback. To add a command: `cli/my_command.py` and one line in `main.py`.
"""
