"""Checkpoints without a world size: tensors by name and range, in safetensors, under a manifest.

    step_00000200/
        manifest.json            sha256 and size of every other file; without it, no checkpoint
        index.json               kind/name -> shape and its slices (file, key, start, stop)
        state.json               step, loader position, add-on scalars, metrics
        open_clip_config.json    the towers' model_cfg and preprocess_cfg
        rank_00000.safetensors   the slices this rank owned

Kinds: "weight" (fp32), "exp_avg", "exp_avg_sq", "buffer", "addon". A range is one of elements of
the flattened tensor. Written to a temporary folder and renamed, so a crash leaves whole checkpoints
only; no pickle anywhere. Beside them: `latest` (for people), `.writer` (locked while somebody
writes or prunes).

A save, from the loop to the disk: `saver.py` (waits for the write before, copies, returns),
`host_copy.py` (the rank's tensors in host memory, as the file will be), `writer.py` (one try, in a
thread), `meeting.py` (the ranks' threads agree over the store), `write.py` (parts, manifest,
rename, what crashes left), `files.py` (every change on disk, one breakable operation each),
`retention.py` (what stays), `remote.py` (copies elsewhere, and back). Read by `verify.py` (which is
valid) and `read.py` (any range of any tensor). `heads.py`: trained heads beside an export.

Rules that must hold: at every moment the newest finished checkpoint can be found by its name; only
what was read and hashed counts when others are removed; no clock decides anything; threads use no
collectives. Imports `contracts`, `config`, `dist`, `faults`, `errors`.
"""
