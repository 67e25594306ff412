"""clipkit: exact, lean, restartable CLIP pretraining on webdataset shards.

Rooms, lowest layer first; a room imports only rooms of lower layers (setup.cfg, import contracts):

    errors                              what a user can do wrong
    config  dist                        settings; ranks and collectives
    contracts                           Batch, Outputs, Features, Pair: what walks between rooms
    towers  losses  data  retrieval  optim  checkpoint
    addons  eval
    engine  loading
    cli

`clipkit.load` and `clipkit.export` are imported on first use, so `import clipkit` is instant. Their
module is called `loading`: a submodule named `load` would take the function's place in this
package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["export", "load"]

if TYPE_CHECKING:
    from clipkit.loading import export, load


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("clipkit.loading"), name)
    globals()[name] = value
    return value
