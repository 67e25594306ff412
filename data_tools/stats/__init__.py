"""`clipkit-data stats`: what shards hold, as tables and as one page.

`tables.py` writes a table per shard, `aggregate.py` sums them up by SQL, `figures.py` draws the
sums, `page.py` puts all into one HTML file, `run.py` ties them together.
"""
