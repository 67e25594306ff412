"""Data: shards in, uint8 batches out, in an order that is a pure function of (seed, position).

Lives here: `shards.py` (patterns -> paths), `tar_index.py` (where each member lies), `order.py`
(position -> sample, seekable, the same for every world size and worker count), `decode.py`,
`transforms.py`, `samples.py` (one sample, or why it is bad), `loader.py` (indexed mode),
`streaming.py` (webdataset mode), `wds_folder.py` (CLIP_benchmark's evaluation layout).

`shards`, `tar_index` and `order` import no torch: mistakes are found before it is loaded. No
pickle, no shell: members are read by an allow-list of extensions. May import `contracts`, `config`,
`dist`.
"""
