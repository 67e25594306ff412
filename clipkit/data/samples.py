"""One training sample: bytes of its members -> image tensors and captions, or BadSample and cause.

What is random comes from the sample's generator alone. The main view and the add-ons draw from it
directly; the caption and each further view have a generator derived from its seed and their name,
so that adding one changes no other.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from clipkit.contracts import Batch
from clipkit.data.bad_samples import BadSample
from clipkit.data.captions import CaptionRule, Rule
from clipkit.data.decode import Exif, check_scaled_decoder, decode_image, image_size
from clipkit.data.transforms import TrainTransform
from clipkit.errors import ConfigError

SampleHook = Callable[["Sample", np.random.Generator], "Sample"]
_MAX_META = 1_000_000  # bytes of a json member that is parsed


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
        key: Its name in the shard.
        captions: All usable captions of its image; "text" is one of them.
    """

    images: dict[str, Tensor]
    texts: dict[str, list[str]]
    masks: dict[str, list[bool]] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    id: int = 0
    key: str = ""
    captions: list[str] = field(default_factory=list)


@dataclass
class SampleReader:
    """Bytes of one sample -> Sample. Pickled to the loader's workers.

    Attributes:
        views: View name -> crop and flip; "image" always, others are further crops of its image.
        image_keys, caption_keys: Member extensions, in order of preference; a caption key may
            also be json.<field>.
        max_pixels, max_bytes: Limits on an image.
        hooks: Add-ons' `sample`, in order.
        caption_rule, caption_weights, caption_lines: See CaptionRule.
        image_members: View name -> member extensions of an image of its own, cropped as "image";
            a sample without it is bad.
        decode: exact: JPEGs at full size. scaled: at the smallest size that all crops allow.
        exif: Whether a photograph's orientation tag turns it.

    Raises:
        ConfigError: Settings that do not fit together, or scaled without its library.
    """

    views: dict[str, TrainTransform]
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption_keys: tuple[str, ...] = ("txt",)
    max_pixels: int = 50_000_000
    max_bytes: int = 50_000_000
    hooks: Sequence[SampleHook] = ()
    caption_rule: Rule = "first"
    caption_weights: tuple[float, ...] = ()
    caption_lines: bool = False
    image_members: dict[str, tuple[str, ...]] = field(default_factory=dict)
    decode: Literal["exact", "scaled"] = "exact"
    exif: Exif = "ignore"
    captions: CaptionRule = field(init=False, repr=False)

    def __post_init__(self) -> None:
        taken = [name for name in self.image_members if name in self.views]
        if "image" not in self.views or taken:
            raise ConfigError(
                f"data.views: {f'{taken[0]!r} is also in data.image_members' if taken else ''}"
                f"{'' if 'image' in self.views else 'the view image is missing'}; rename it"
            )
        self.captions = CaptionRule(
            self.caption_keys, self.caption_rule, self.caption_weights, self.caption_lines
        )
        if self.decode == "scaled":
            check_scaled_decoder()

    @property
    def wanted(self) -> tuple[str, ...]:
        """Members that may be read at all."""
        images = (*self.image_keys, *(k for keys in self.image_members.values() for k in keys))
        meta = ("json",) if self.hooks else ()
        return tuple(dict.fromkeys((*images, *self.captions.members, *meta)))

    def read(
        self, members: dict[str, bytes], sample_id: int, rng: np.random.Generator, key: str = ""
    ) -> Sample:
        """Decode and transform.

        Args:
            members: Extension -> bytes.
            sample_id: Number over the data set.
            rng: Seeded for this sample by numpy's SeedSequence, not yet drawn from.
            key: The sample's name in its shard.

        Raises:
            BadSample: A member is missing, too large or unreadable.
        """
        files: dict[str, bytes] = {}
        for name, keys in {"image": self.image_keys, **self.image_members}.items():
            found = next((k for k in keys if k in members), None)
            if found is None:
                raise BadSample(f"no_{name}")
            files[name] = members[found]
        needs_meta = self.hooks or self.captions.uses_json
        meta = _read_meta(members.get("json")) if needs_meta else {}
        caption = self.captions.pick(members, meta, lambda: derived(rng, "a caption"))
        images = self._views(files.pop("image"), self.views, rng)
        for name, data in files.items():
            images |= self._views(data, {name: self.views["image"]}, rng)
        sample = Sample(images, {"text": [caption]}, meta=meta, id=sample_id, key=key)
        if self.hooks:
            sample.captions = self.captions.every(members, meta)
        for hook in self.hooks:
            sample = hook(sample, rng)
        return sample

    def _views(
        self, data: bytes, views: dict[str, TrainTransform], rng: np.random.Generator
    ) -> dict[str, Tensor]:
        """View name -> (3, *size) of one image file, decoded once."""
        known = image_size(data, self.exif) if self.decode == "scaled" else None
        image = None if known else self._decode(data)
        height, width = known or image.shape[1:]  # type: ignore[union-attr]
        crops = {
            name: view.draw(height, width, rng if name == "image" else derived(rng, name))
            for name, view in views.items()
        }
        if image is None:
            enough = [view.enough(crops[name], height, width) for name, view in views.items()]
            image = self._decode(data, (max(h for h, _ in enough), max(w for _, w in enough)))
        full = (height, width)
        return {name: view.apply(image, crops[name], full) for name, view in views.items()}

    def _decode(self, data: bytes, at_least: tuple[int, int] | None = None) -> Tensor:
        return decode_image(
            data,
            max_pixels=self.max_pixels,
            max_bytes=self.max_bytes,
            exif=self.exif,
            at_least=at_least,
        )


def derived(rng: np.random.Generator, name: str) -> np.random.Generator:
    """A generator for one purpose: fixed by the seed of `rng`, not by what was drawn from it."""
    seed = cast(np.random.SeedSequence, rng.bit_generator.seed_seq)
    spawn_key = (*seed.spawn_key, zlib.crc32(name.encode()))
    child = np.random.SeedSequence(seed.entropy, spawn_key=spawn_key)
    return np.random.Generator(np.random.PCG64(child))


def _read_meta(data: bytes | None) -> dict[str, Any]:
    if not data or len(data) > _MAX_META:
        return {}
    try:
        meta = json.loads(data)
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
        images={n: _stacked([s.images[n] for s in samples]) for n in first.images},
        texts=texts,
        ids=torch.tensor([s.id for s in samples], dtype=torch.int64),
        masks={n: torch.tensor([s.masks[n] for s in samples]) for n in first.masks},
        extras={n: torch.stack([s.extras[n] for s in samples]) for n in first.extras},
    )


def _stacked(images: list[Tensor]) -> Tensor:
    """(b, 3, H, W) in HWC memory, as decoded; in a loader process written once, into memory that is
    shared with the trainer."""
    return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
