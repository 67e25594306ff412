"""Losses: what concerns many samples. One file per loss; the file name is its `kind`.

A loss is an nn.Module without parameters and without a model: `forward(features, pair)` returns
named scalars whose average over ranks is the loss of the global batch. It honours `pair.columns`
and `features.masks`. It may import `contracts`, `dist`, `config`.

To add one: `losses/my_loss.py` ending in `PART = MyLoss` (arguments after `*` become YAML keys and
are described in the class docstring), `loss: {kind: my_loss}` in a config,
`tests/losses/test_my_loss.py`. The contract tests find it by themselves.
"""
