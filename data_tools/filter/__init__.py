"""`clipkit-data filter`: tables of samples -> the list of those to keep.

The stages run in this order, each over what the one before left: --where (`expression.py`), CLIP
score (`scores.py`), MetaCLIP balancing (`balance.py`), --random (`run.py`). All of them are SQL
over one locked duckdb connection (`pool.py`). Random choices are hashes of the sample
(`data_tools.draws`), so they do not hang on how samples are spread over shards.
"""
