"""Add-ons: whatever composes with every loss. One file or folder each; its name is its `kind`.

An add-on derives from `base.AddOn` and overrides what it needs; the step calls it, cached or not,
on one rank or many. Learned parameters belong to `heads()`, buffers to the add-on's state.
May import layers 0 and 1. To add one: `addons/my_addon.py` ending in `PART = MyAddOn`,
`addons: [{kind: my_addon}]` in a config, `tests/addons/test_my_addon.py`.

Files an add-on brings are checked before training: in `prepare` against the towers and their first
weights, in `check_data` against the training data.

State comes in two forms, so that it needs no world size: `state_dict` holds scalars and tensors
equal on all ranks, `sharded_state` yields live slices shaped like parameters (an average of the
weights), begun in `start` when the strategy stands.
"""
