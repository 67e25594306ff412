"""`clipkit-data dedup exact|perceptual|text|semantic`: which samples repeat others.

A pass over the shards makes a table of hashes each (`hashes.py`, in workers); then one pass over
all tables finds repeats: `exact.py`, `perceptual.py` with `hamming.py`, `text.py`. `semantic.py`
reads an embeddings folder instead. All end in `outcome.py`: keep.parquet, duplicates.parquet and a
summary. Nothing is rewritten here: `clipkit-data reshard --keep` does, for several kinds at once.
`run.py` joins the passes, `command.py` holds the commands.
"""
