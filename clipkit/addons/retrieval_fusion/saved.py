"""Trained heads out of a checkpoint, whatever trained them; and as plain facts and tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipkit.addons.retrieval_fusion.head import FusionHeads, FusionSettings
from clipkit.checkpoint.read import CheckpointReader
from clipkit.errors import CheckpointError, ConfigError

KIND = "retrieval_fusion"
HEAD = "fusion"  # its name among the model's heads


def heads_of(reader: CheckpointReader) -> FusionHeads | None:
    """The heads that a checkpoint holds; None: it was trained without.

    Raises:
        CheckpointError: They are damaged.
    """
    saved = [s for s in reader.state.get("addons", []) if s.get("kind") == KIND]
    if not saved:
        return None
    prefix = f"heads.{HEAD}."
    names = [n for n in reader.names("weight") if n.startswith(prefix)]
    weights = {n.removeprefix(prefix): reader.full("weight", n) for n in names}
    return rebuilt_heads(saved[0], weights, str(reader.folder))


def rebuilt_heads(facts: dict[str, Any], weights: dict[str, Tensor], where: str) -> FusionHeads:
    """Heads in eval mode from `FusionSettings.as_json` (and more) and their state dict.

    Args:
        facts: Settings by name; other keys are passed over.
        weights: As `FusionHeads.state_dict` gives them.
        where: For messages.

    Raises:
        CheckpointError: They do not fit together.
    """
    fields = FusionSettings.__dataclass_fields__
    try:
        settings = FusionSettings(**{k: v for k, v in facts.items() if k in fields})
        heads = FusionHeads(settings)
        heads.load_state_dict(weights)
    except (TypeError, RuntimeError, ConfigError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where}: its fusion heads are damaged: {reason}") from None
    return heads.eval()
