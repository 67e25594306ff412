"""Losses: what concerns many samples. One file per loss; the file name is its `kind`.

Lives here: `infonce.py`, `siglip.py`, `dcl.py`, `hcl.py`, `llave.py`; and the kernel they share:
`tiled.py` (what a loss calls: sums over negatives, differentiable), `sweep.py` (who gathers, adds
and scatters what across ranks), `strip.py` (tiles: sums and gradients of rows against columns),
`link.py` (what is summed: exp or softplus).

A loss is an nn.Module without parameters and without a model: `forward(features, pair)` returns
named scalars whose average over ranks is the loss of the global batch. It honours `pair.columns`
and `features.masks`. It may import `contracts`, `dist`, `config`, `errors`.

To add one: `losses/my_loss.py` ending in `PART = MyLoss` (arguments after `*` become YAML keys and
are described in the class docstring), `loss: {kind: my_loss}` in a config,
`tests/losses/test_my_loss.py`. The contract tests find it by themselves. Use `tiled.negatives`
where the loss is made of sums over negatives: it is then exact at any batch in memory that grows
with B. `features.all(name)` and a b x B matrix do where the batch is small. A row without negatives
has the sum -inf: softplus of it is 0 and differentiable; other formulas mask it first, as `dcl.py`
does. `tests/losses/test_llave.py` is a test to copy.

Why the kernel returns sums instead of taking a loss: a loss is then a formula in O(b) that autograd
differentiates, and the same two passes of tiles serve all of them. Why the positive is left out of
the sums: InfoNCE is softplus(logsumexp of the negatives - positive), exact where the positive
dominates, and DCL, HCL and LLaVE treat it apart anyway. Tile size and plan change no result, so
they are settings of the engine, not of a loss.
"""
