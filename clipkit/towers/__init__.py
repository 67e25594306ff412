"""The model: an open_clip dual encoder behind one entry, `forward(Batch) -> Outputs`.

Lives here: `arch.py` (architecture name or json -> model config; no torch), `dual.py`
(DualEncoder), `build.py` (open_clip factory, pretrained weights, locking, precision),
`tokenizer.py`, `identity.py` (hash of the weights), `interpolate.py` (weights between two models').
timm and HF towers come through open_clip. What concerns one sample lives here; what concerns many
lives in a loss. May import `contracts`, `config`, `dist`.

bf16 autocast is entered inside DualEncoder, not through DeepSpeed's
`torch_autocast`, which would send the gradients of linear layers as bf16 and keeps global state.
"""
