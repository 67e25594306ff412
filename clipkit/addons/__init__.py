"""Add-ons: whatever composes with every loss. One file or folder each; its name is its `kind`.

An add-on derives from `base.AddOn` and overrides what it needs; the step calls it, cached or not,
on one rank or many. Learned parameters belong to `heads()`, buffers to the add-on's state.
May import layers 0 and 1. To add one: `addons/my_addon.py` ending in `PART = MyAddOn`,
`addons: [{kind: my_addon}]` in a config, `tests/addons/test_my_addon.py`; tests/addons/test_ema.py
is one to copy. With all imports but Tensor (torch), AddOn (base) and Features (contracts):

    class Spread(AddOn):
        '''The mean image feature is drawn to 0.'''

        def __init__(self, *, weight: float = 0.1) -> None:  # `weight: 0.2` in the config
            self.weight = weight

        def loss_terms(self, features: Features) -> dict[str, Tensor]:
            images = features.all("image")[:, 0]  # (B, 1, D), the global batch's -> (B, D)
            return {"spread": self.weight * images.mean(dim=0).square().sum()}

    PART = Spread

Files an add-on brings are checked before training: in `prepare` against the towers and their first
weights, in `check_data` against the training data.

State comes in two forms, so that it needs no world size: `state_dict` holds scalars and tensors
equal on all ranks, `sharded_state` yields live slices shaped like parameters (an average of the
weights), begun in `start` when the strategy stands.
"""
