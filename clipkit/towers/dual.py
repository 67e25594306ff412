"""DualEncoder: the only way from a Batch to Outputs.

Shapes: b samples, M texts per sample, L tokens, D embed dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.contracts import Batch, Named, Outputs

_TEXT_PARTS = ("text", "transformer", "token_embedding", "ln_final")
_TEXT_PARAMETERS = ("positional_embedding", "text_projection")


class _EncodesNamed:
    """Forward over named views and texts. A mixin for open_clip's classes: the module that owns the
    text parameters must itself be called, or ZeRO-3 never gathers them."""

    encode_image: Callable[[Tensor], Tensor]
    encode_text: Callable[[Tensor], Tensor]
    logit_scale: Tensor
    logit_bias: Tensor | None

    def forward(self, images: Named, texts: Named) -> tuple[Named, Tensor, Tensor | None]:
        out: Named = {}
        for names in _groups(images):
            rows = torch.cat([images[n] for n in names])  # (views * b, 3, H, W)
            encoded = _unit(self.encode_image(rows))
            for name, part in zip(names, encoded.split([len(images[n]) for n in names])):
                out[name] = part.unsqueeze(1)  # (b, 1, D)
        for names in _groups(texts):
            rows = torch.cat([texts[n].flatten(0, 1) for n in names])  # (sum of b * M, L)
            encoded = _unit(self.encode_text(rows))
            for name, part in zip(
                names, encoded.split([texts[n].shape[:2].numel() for n in names])
            ):
                out[name] = part.unflatten(0, texts[name].shape[:2])  # (b, M, D)
        scale = _at_least_fp32(self.logit_scale).exp().reshape(())
        bias = self.logit_bias
        return out, scale, None if bias is None else _at_least_fp32(bias).reshape(())


class ClipTowers(_EncodesNamed, open_clip.CLIP):
    """open_clip's CLIP, entered through named views and texts."""


class CustomTextClipTowers(_EncodesNamed, open_clip.CustomTextCLIP):
    """open_clip's CustomTextCLIP, entered through named views and texts."""


_TOWERS: dict[type, type] = {
    open_clip.CLIP: ClipTowers,
    open_clip.CustomTextCLIP: CustomTextClipTowers,
}


def _groups(named: Named) -> Iterable[list[str]]:
    """Names whose rows can be encoded together: equal shape after the sample and entry dims."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in named.items():
        key = tuple(tensor.shape[1:]) if tensor.dtype != torch.int64 else tuple(tensor.shape[2:])
        groups.setdefault(key, []).append(name)
    return groups.values()


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(_at_least_fp32(x), dim=-1)


class DualEncoder(nn.Module):
    """open_clip towers, then the heads of add-ons, in order.

    uint8 images are normalised here, on the device; float images are taken as they are.

    Args:
        clip: An open_clip CLIP or CustomTextCLIP built with nonscalar_logit_scale=True.
        mean: Per channel, on the 0..1 scale.
        std: Per channel.
        autocast: dtype of autocast inside the towers, or None.
        heads: name -> module (Outputs, Batch) -> Outputs of one chunk.
    """

    towers: Any  # ClipTowers or CustomTextClipTowers, or what freezing batch norm makes of them
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        autocast: torch.dtype | None = None,
        heads: dict[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        clip.__class__ = _TOWERS[type(clip)]
        self.towers = clip
        self.heads = nn.ModuleDict(heads or {})
        self.autocast = autocast
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def frozen_towers(self) -> frozenset[str]:
        """ "image" and "text" where no parameter of that tower trains."""
        image = list(self.towers.visual.parameters())
        text = [
            p
            for n, p in self.towers.named_parameters()
            if n.split(".")[0] in _TEXT_PARTS + _TEXT_PARAMETERS
        ]
        sides = {"image": image, "text": text}
        return frozenset(
            side for side, params in sides.items() if not any(p.requires_grad for p in params)
        )

    def train(self, mode: bool = True) -> DualEncoder:
        """As nn.Module.train, but a frozen tower stays in eval mode."""
        super().train(mode)
        frozen = self.frozen_towers
        if "image" in frozen:
            self.towers.visual.eval()
        if "text" in frozen:
            for part in _TEXT_PARTS:
                if isinstance(getattr(self.towers, part, None), nn.Module):
                    getattr(self.towers, part).eval()
        return self

    def forward(self, batch: Batch) -> Outputs:
        """Encode one chunk; names in `batch.known` are not encoded again."""
        images = {n: self._normalised(x) for n, x in batch.images.items() if n not in batch.known}
        texts = {n: x for n, x in batch.texts.items() if n not in batch.known}
        with torch.autocast(
            batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            embeddings, scale, bias = self.towers(images, texts)
        frozen = {n: x for n, x in embeddings.items() if self._is_frozen(n, batch)}
        outputs = Outputs({**embeddings, **batch.known}, scale, bias, {}, {**frozen, **batch.known})
        for head in self.heads.values():
            with torch.autocast(
                batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None
            ):
                outputs = head(outputs, batch)
        return outputs

    def _is_frozen(self, name: str, batch: Batch) -> bool:
        return ("image" if name in batch.images else "text") in self.frozen_towers

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = (images.to(self.mean.dtype) - self.mean) / self.std
        weight = next(self.towers.visual.parameters())
        return images.to(weight.dtype)  # bf16 when pure, fp64 in proofs


class FeatureEncoder:
    """What evaluation needs of a model, whoever runs it: `forward`, preprocess, tokenizer, scale.

    Args:
        forward: Batch -> Outputs, in eval mode, without gradient.
        preprocess: PIL image -> (3, H, W) float, normalised.
        tokenizer: list of str -> (n, L) int64.
        device: Where `forward` wants its batch.
        weights_hash: Identity of architecture and weights; "" where features are never stored.
        transform_hash: Identity of `preprocess`.
        tokenizer_hash: Identity of `tokenizer`.
        precision: "fp32" or "bf16", of the towers.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Outputs],
        preprocess: Callable[[Any], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device,
        *,
        weights_hash: str = "",
        transform_hash: str = "",
        tokenizer_hash: str = "",
        precision: str = "fp32",
    ) -> None:
        self.forward = forward
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.device = device
        self.weights_hash = weights_hash
        self.transform_hash = transform_hash
        self.tokenizer_hash = tokenizer_hash
        self.precision = precision
