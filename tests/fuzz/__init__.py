"""Malformed input by the thousand: a user's error or success, soon, and nothing written elsewhere.

`bounds.py` holds each case to that; `mutations.py` makes bytes and texts of whole ones. The seed is
hypothesis's own (derandomised): the same cases each time. Some run by default, thousands when slow.
"""
