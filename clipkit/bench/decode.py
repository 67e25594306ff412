"""JPEG bytes to the pixels of a training sample on one core, beside open_clip's transform."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pil

from clipkit.bench.measure import timed
from clipkit.bench.photographs import jpeg, large_enough, photographs
from clipkit.data import decode as decoders
from clipkit.data.samples import SampleReader
from clipkit.data.transforms import TrainTransform

_CAPTION = b"a photograph"


def decode_rows(
    sides: Sequence[int] = (256, 384, 512, 640), size: int = 224, repeats: int = 7
) -> list[dict[str, Any]]:
    """Speed and closeness of every implementation at every short side of the JPEGs.

    Returns:
        Rows {stage "decode", impl, side, size, images, jpeg_library of clipkit, images_per_s,
        ratio_to_open_clip, mean_abs_difference, psnr, repeats}: images per second of CPU time on
        one thread (median), the ratio the median over turns; the difference (of 255) and its PSNR
        (dB) are against open_clip's pixels of the same crop. `clipkit_scaled` is skipped without
        its library.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for side in sides for row in _rows_of(side, size, repeats)]
    finally:
        torch.set_num_threads(threads)


def _rows_of(side: int, size: int, repeats: int) -> list[dict[str, Any]]:
    files = [jpeg(p, side) for p in photographs().values() if large_enough(p, side)]
    readers = {"clipkit": _reader("exact", size)}
    if decoders.simplejpeg is not None:
        readers["clipkit_scaled"] = _reader("scaled", size)
    calls: dict[str, Callable[[int], object]] = {"open_clip": _open_clip(files, size)}
    for impl, reader in readers.items():
        calls[impl] = _clipkit(reader, files)
    times: dict[str, list[float]] = {impl: [] for impl in calls}
    for turn in range(-1, repeats):  # by turns, so that all see the same machine; -1 warms up
        for impl, call in calls.items():
            seconds = timed(lambda: call(turn + 1)).cpu_s  # noqa: B023
            if turn >= 0:
                times[impl].append(seconds / len(files))
    facts = {"bench": "loader", "stage": "decode", "side": side, "size": size, "images": len(files)}
    facts["jpeg_library"] = "torchvision" if decoders.simplejpeg is None else "simplejpeg"
    rows = []
    for impl, found in times.items():
        pairs = zip(times["open_clip"], found)
        row = {**facts, "impl": impl, "images_per_s": 1 / statistics.median(found)}
        row |= {"ratio_to_open_clip": statistics.median(a / b for a, b in pairs)}
        row |= {"repeats": repeats, "mean_abs_difference": 0.0, "psnr": None}
        rows.append(row | (_difference(readers[impl], files) if impl in readers else {}))
    if "clipkit_scaled" not in readers:
        reason = "pip install simplejpeg"
        rows.append({**facts, "impl": "clipkit_scaled", "skipped": reason})
    return rows


def _reader(decode: Any, size: int) -> SampleReader:
    return SampleReader({"image": TrainTransform((size, size))}, decode=decode)


def _open_clip(files: list[bytes], size: int) -> Callable[[int], object]:
    transform = open_clip.image_transform(size, is_train=True)

    def call(turn: int) -> None:
        torch.manual_seed(turn)
        for data in files:
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    return call


def _clipkit(reader: SampleReader, files: list[bytes]) -> Callable[[int], object]:
    def call(turn: int) -> None:
        for number, data in enumerate(files):
            reader.read({"jpg": data, "txt": _CAPTION}, number, _rng(turn, number))

    return call


def _rng(turn: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([0, 1, turn, number]))


def _difference(reader: SampleReader, files: list[bytes], crops: int = 4) -> dict[str, float]:
    """Against Pillow's pixels of the same crops."""
    absolute, squared = [], []
    for number, data in enumerate(files):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for turn in range(crops):
            expected = _pillow(image, reader.views["image"], _rng(turn, number))
            members = {"jpg": data, "txt": _CAPTION}
            got = reader.read(members, number, _rng(turn, number)).images["image"]
            difference = got.double() - expected
            absolute.append(difference.abs().mean().item())
            squared.append(difference.square().mean().item())
    psnr = 10 * np.log10(255**2 / max(statistics.fmean(squared), 1e-12))
    return {"mean_abs_difference": statistics.fmean(absolute), "psnr": float(psnr)}


def _pillow(image: Image.Image, view: TrainTransform, rng: np.random.Generator) -> Tensor:
    """(3, *size) as open_clip cuts and resizes, with the box that `view` draws."""
    top, left, height, width, _ = view.draw(image.height, image.width, rng)
    cut = pil.resized_crop(
        image, top, left, height, width, list(view.size), InterpolationMode.BICUBIC
    )
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).double()
