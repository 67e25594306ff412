"""The optimizer and the learning rate.

Lives here: `groups.py` (what is decayed), `adamw.py` (torch's AdamW), `schedules.py` (learning rate
of a step). May import `contracts`, `config`, `dist`. To add a schedule: a function in
`schedules.py` and its name in the schema.
"""
