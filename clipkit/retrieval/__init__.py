"""Retrieval: features in, ids and numbers out. No model here, and never a full score matrix.

Lives here: `scores.py` (what a score is: a pure function of two rows), `ranks.py` (rank of every
query's and target's best positive, by tiles), `top_k.py` (the k best targets of every query),
`ndcg.py` (graded relevance), `calibration.py` (modality means, centring, shift), `noise.py` (on
features that a head learns from), `refinement.py` (the contract of what may be done to features
after the towers), `refined_model.py` (open_clip's models that do it), `memory/` (stored features
that queries are answered from, by faiss).
May import `contracts`, `config`, `dist`, `errors`.
"""
