"""Data: shards in, uint8 batches out, in an order that is a pure function of (seed, position).

Where samples lie: `shards.py` (patterns -> paths), `tar_scan.py`, `tar_index.py`,
`index_sidecar.py`, `remote_index.py` (where each member is, kept beside the shard),
`known_counts.py` (what others say a shard holds), `plain_files.py` (no pipe hangs a reader),
`shard_store.py` (bounded cache of remote shards). Who gives them: `sources.py`, `table_source.py`,
`open_source.py` (patterns -> one source); `numbering.py` knows their shards again.
In which order: `order.py` (one source), `mixture.py` (several, by weight), `hard_batches.py`
(neighbours meet); each position is reached directly and is the same for every world size and worker
count. What is made of one: `decode.py`, `transforms.py`, `captions.py`, `samples.py`,
`token_cache.py`; `bad_samples.py` says why one is not used, and when that ends a run. `negatives/`
edits captions into wrong ones, pure text with a card of its own.
Batches: `loader.py` (indexed mode), `streaming.py` and `stream_shards.py` (webdataset's pipeline).
Whole shards: `shard_reader.py`, `shard_writer.py`. Evaluation sets: `wds_folder.py`,
`wds_write.py`, `eval_sets.py`, `shard_images.py`, `image_files.py`, `mixed_set.py`,
`selection_set.py`; `content_hash.py` is their identity.

A new kind of source is one class with the members of `sources.Source`, opened in `open_source.py`.

Nothing but what makes tensors imports torch: mistakes are found before it is loaded. No pickle, no
shell unless asked for: members are read by an allow-list of extensions. May import `contracts`,
`config`, `dist`, `errors`.
"""
