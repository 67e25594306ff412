"""One training sample: bytes of its members -> image tensor and caption, or BadSample and cause."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.contracts import Batch
from clipkit.data.bad_samples import BadSample
from clipkit.data.decode import decode_image
from clipkit.data.transforms import TrainTransform

SampleHook = Callable[["Sample", np.random.Generator], "Sample"]


@dataclass
class Sample:
    """What an add-on's `sample` hook sees and may change.

    Attributes:
        images: View name -> (3, H, W) uint8.
        texts: Text name -> captions; "text" has one.
        masks: Text name -> one bool per caption.
        extras: Name -> tensor.
        meta: The sample's json member, {} if it has none.
        id: Number over the data set.
    """

    images: dict[str, Tensor]
    texts: dict[str, list[str]]
    masks: dict[str, list[bool]] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass
class SampleReader:
    """Bytes of one sample -> Sample. Pickled to the loader's workers.

    Attributes:
        transform: Crop and flip.
        image_keys, caption_keys: Member extensions, in order of preference.
        max_pixels, max_bytes: Limits on an image.
        hooks: Add-ons' `sample`, in order.
    """

    transform: TrainTransform
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption_keys: tuple[str, ...] = ("txt",)
    max_pixels: int = 50_000_000
    max_bytes: int = 50_000_000
    hooks: Sequence[SampleHook] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """Members that may be read at all."""
        return (*self.image_keys, *self.caption_keys, "json")

    def read(self, members: dict[str, bytes], sample_id: int, rng: np.random.Generator) -> Sample:
        """Decode and transform.

        Raises:
            BadSample: A member is missing, too large or unreadable.
        """
        image_key = next((k for k in self.image_keys if k in members), None)
        caption_key = next((k for k in self.caption_keys if k in members), None)
        if image_key is None:
            raise BadSample("no_image")
        if caption_key is None:
            raise BadSample("no_caption")
        try:
            caption = members[caption_key].decode("utf-8").strip()
        except UnicodeDecodeError:
            raise BadSample("caption_not_utf8") from None
        if not caption:
            raise BadSample("empty_caption")
        image = decode_image(
            members[image_key], max_pixels=self.max_pixels, max_bytes=self.max_bytes
        )
        sample = Sample({"image": self.transform(image, rng)}, {"text": [caption]}, id=sample_id)
        if self.hooks:
            sample.meta = _read_meta(members.get("json"))
            for hook in self.hooks:
                sample = hook(sample, rng)
        return sample


def _read_meta(data: bytes | None) -> dict[str, Any]:
    try:
        meta = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        return {}
    return meta if isinstance(meta, dict) else {}


def collate(samples: list[Sample], tokenizer: Callable[[list[str]], Tensor]) -> Batch:
    """Stack samples; captions become (b, M, L) tokens."""
    first = samples[0]
    texts = {}
    for name, captions in first.texts.items():
        tokens = tokenizer([caption for s in samples for caption in s.texts[name]])
        texts[name] = tokens.view(len(samples), len(captions), -1)  # (b, M, L)
    return Batch(
        images={n: torch.stack([s.images[n] for s in samples]) for n in first.images},
        texts=texts,
        ids=torch.tensor([s.id for s in samples], dtype=torch.int64),
        masks={n: torch.tensor([s.masks[n] for s in samples]) for n in first.masks},
        extras={n: torch.stack([s.extras[n] for s in samples]) for n in first.extras},
    )
