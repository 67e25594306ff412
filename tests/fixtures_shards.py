"""Builders of tiny shards: images with Pillow, tars by hand, and what a loader over them needs."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.data.samples import SampleReader
from clipkit.data.transforms import TrainTransform

SIZE = 8


def image_bytes(
    color: tuple[int, ...] = (200, 30, 60), kind: str = "PNG", side: int = SIZE
) -> bytes:
    """One flat image."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), color).save(out, kind)
    return out.getvalue()


def noise_bytes(seed: int, kind: str = "PNG", side: int = SIZE) -> bytes:
    """One image of noise: no two seeds give the same pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def repeated_scans(count: int, progressive: bool = True) -> bytes:
    """A gray JPEG whose last scan comes again until it has so many."""
    out = io.BytesIO()
    Image.new("L", (SIZE, SIZE), 90).save(out, "JPEG", progressive=progressive)
    data, scan = out.getvalue(), b"\xff\xda\0"
    last = data[data.rindex(scan) : -2]
    return data[:-2] + last * (count - data.count(scan)) + data[-2:]


def tar_bytes(members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar with these members in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_tar(
    path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT
) -> Path:
    """`tar_bytes` in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, tar_format))
    return path


def sample_members(first: int, count: int, bad: tuple[int, ...] = ()) -> list[tuple[str, bytes]]:
    """png + txt of `count` samples from `first` on; the images of those in `bad` are no images."""
    members = []
    for i in range(first, first + count):
        image = b"\x89PNG damaged" if i in bad else noise_bytes(i)
        members += [(f"{i:06d}.png", image), (f"{i:06d}.txt", f"caption {i}".encode())]
    return members


def write_shards(folder: Path, counts: list[int], bad: tuple[int, ...] = ()) -> list[str]:
    """Shards 000.tar, 001.tar, ... of so many samples; sample i of all is captioned "caption i"."""
    paths, first = [], 0
    for number, count in enumerate(counts):
        paths.append(
            str(write_tar(folder / f"{number:03d}.tar", sample_members(first, count, bad)))
        )
        first += count
    return paths


def number_tokenizer(texts: list[str]) -> Tensor:
    """ "caption 7" -> [7]: tokens that tell which caption it was."""
    return torch.tensor([[int(text.split()[-1])] for text in texts])


def small_reader(flip: float = 0.5, size: int = SIZE) -> SampleReader:
    """A reader that augments."""
    return SampleReader({"image": TrainTransform((size, size), (0.5, 1.0), flip=flip)})
