"""Checkpoints without a world size: tensors by name and range, in safetensors, under a manifest.

    step_00000200/
        manifest.json            sha256 and size of every other file; without it, no checkpoint
        index.json               kind/name -> shape and its slices (file, key, start, stop)
        state.json               step, loader position, add-on scalars, metrics
        open_clip_config.json    the towers' model_cfg and preprocess_cfg
        rank_00000.safetensors   the slices this rank owned

Kinds: "weight" (fp32), "exp_avg", "exp_avg_sq", "buffer", "addon". A range is one of elements of
the flattened tensor. Written to a temporary folder and renamed, so a crash leaves whole checkpoints
only; no pickle anywhere. Lives here: `write.py`, `read.py`, `verify.py` (manifest, newest valid),
`heads.py` (trained heads beside an export), `files.py` (fsync, atomic text). Imports `contracts`,
`config`, `dist`, `errors`.
"""
