"""Retrieval: features in, ids and numbers out. No model here.

Lives here: `ranks.py` (exact ranks and recall, scored by blocks).
May import `contracts`, `config`, `dist`.
"""
