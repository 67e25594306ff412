"""The one embedding pass: whole batches, cut by sample index, dealt to ranks in turn.

Every rank runs the same number of forward passes (ZeRO-3 gathers parameters in each), and every
batch has the same members and the same padding on any number of ranks, so features do not depend on
the world size. Each image set and each list of texts is embedded once and kept, in memory and, with
a cache, on disk by parts, so an interrupted pass goes on where it stood.

Shapes: n samples, D embed dim.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Protocol

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from clipkit.contracts import Batch
from clipkit.dist.collectives import gather_rows
from clipkit.dist.group import World
from clipkit.eval.base import NonFiniteResult
from clipkit.eval.feature_cache import FeatureCache
from clipkit.retrieval.refinement import Refinement
from clipkit.towers.dual import FeatureEncoder

_PART = 64  # batches a file of the cache holds
_TEXTS = 4  # text batches are this many times the size of image batches


class ImageSource(Protocol):
    """A list of images in a fixed order.

    Attributes:
        place: Where it lies; names it within this process.
        identity: Hash of its content; names it for ever.
    """

    @property
    def place(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def __len__(self) -> int: ...

    def images(self, start: int, stop: int) -> Iterator[Image.Image]:
        """Images start .. stop - 1, in order."""
        ...


@dataclass(frozen=True)
class View:
    """A change made to every image before the transform, e.g. a corruption.

    Attributes:
        name: Identity of the change with all its parameters; part of the cache's key.
        change: (image, index in the source) -> image.
    """

    name: str
    change: Callable[[Image.Image, int], Image.Image]


class Embedder:
    """A model seen through its features, each image set and list of texts embedded once.

    Args:
        encoder: The model.
        world: Ranks that share the work; all must call alike.
        cache: Where features outlive the process; None keeps them in memory only.
        batch_size: Images encoded at once per rank.
        progress: Show a progress bar.
        refinements: Applied to all features, in order. The cache holds features of before.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        world: World,
        *,
        cache: FeatureCache | None = None,
        batch_size: int = 64,
        progress: bool = False,
        refinements: Sequence[Refinement] = (),
    ) -> None:
        self.refinements = tuple(refinements)
        self.encoder, self.world, self.cache = encoder, world, cache
        self.batch_size, self.progress = batch_size, progress
        self._kept: dict[tuple[str, ...], Tensor] = {}

    def refined_by(self, refinements: Sequence[Refinement]) -> Embedder:
        """The same model and cache, with other refinements."""
        return Embedder(
            self.encoder,
            self.world,
            cache=self.cache,
            batch_size=self.batch_size,
            progress=self.progress,
            refinements=refinements,
        )

    @cached_property
    def logit_scale(self) -> float:
        """The model's learned scale of cosines, exp'd."""
        tokens = self.encoder.tokenizer(["a"])[:, None]
        with torch.no_grad():
            batch = Batch({}, {"text": tokens}, torch.zeros(1, dtype=torch.int64))
            return float(self.encoder.forward(batch.to(self.encoder.device)).logit_scale)

    @property
    def threads(self) -> str:
        """Threads of a rank, which decide last bits on a CPU; "" on a GPU."""
        on_cpu = self.encoder.device.type == "cpu"
        return str(torch.get_num_threads()) if on_cpu else ""

    def images(self, source: ImageSource, view: View | None = None) -> Tensor:
        """(n, D) unit fp32 features of the source's images, in its order, on the CPU, on all ranks.

        Raises:
            DataError: An image is missing or unreadable.
            NonFiniteResult: The image tower gives NaN or infinity.
        """
        change = view.name if view else ""
        key = ("image", source.place, change)
        if key not in self._kept:
            facts = {"kind": "image", "view": change}
            if self.cache:
                facts |= {"data": source.identity, "transform": self.encoder.transform_hash}

            def encode(spans: list[tuple[int, int]]) -> Iterator[Tensor]:
                return self._encode_images(source, view, spans)

            rows = self._embed(len(source), self.batch_size, encode, facts)
            for refinement in self.refinements:
                rows = refinement.image(rows)
            self._kept[key] = rows
        return self._kept[key]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, D) unit fp32 features of texts, on the CPU, the same on every rank.

        Raises:
            NonFiniteResult: The text tower gives NaN or infinity.
        """
        content = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
        key = ("text", content)
        if key not in self._kept:
            facts = {"kind": "text", "data": content, "transform": self.encoder.tokenizer_hash}

            def encode(spans: list[tuple[int, int]]) -> Iterator[Tensor]:
                return (self._encode_texts(list(texts[a:b])) for a, b in spans)

            rows = self._embed(len(texts), _TEXTS * self.batch_size, encode, facts)
            for refinement in self.refinements:
                rows = refinement.text(rows)
            self._kept[key] = rows
        return self._kept[key]

    def _encode_images(
        self, source: ImageSource, view: View | None, spans: list[tuple[int, int]]
    ) -> Iterator[Tensor]:
        """Features of each span, images decoded ahead by threads."""

        def prepare(index: int) -> Tensor:
            image = next(iter(source.images(index, index + 1)))
            return self.encoder.preprocess(view.change(image, index) if view else image)

        workers = min(8, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(workers) as pool:
            ahead = _in_order(
                pool, prepare, (i for a, b in spans for i in range(a, b)), 4 * workers
            )
            for start, stop in spans:
                pixels = torch.stack(list(islice(ahead, stop - start)))
                padded = _padded(pixels, _bucket(len(pixels), self.batch_size))
                batch = Batch({"image": padded}, {}, torch.arange(len(padded)))
                out = self.encoder.forward(batch.to(self.encoder.device))
                yield out.embeddings["image"][: stop - start, 0]

    def _encode_texts(self, texts: list[str]) -> Tensor:
        size = _bucket(len(texts), _TEXTS * self.batch_size)
        tokens = _padded(self.encoder.tokenizer(texts), size)[:, None]
        batch = Batch({}, {"text": tokens}, torch.arange(len(tokens)))
        out = self.encoder.forward(batch.to(self.encoder.device))
        return out.embeddings["text"][: len(texts), 0]

    @torch.no_grad()
    def _embed(
        self,
        n: int,
        size: int,
        encode: Callable[[list[tuple[int, int]]], Iterator[Tensor]],
        facts: dict[str, str],
    ) -> Tensor:
        """Features of samples 0 .. n - 1: parts of the cache where they are, the rest computed."""
        facts |= {"weights": self.encoder.weights_hash, "precision": self.encoder.precision}
        facts |= {"batch_size": str(size), "threads": self.threads}
        spans = [(a, min(a + size, n)) for a in range(0, n, size)]
        parts = [spans[i : i + _PART] for i in range(0, len(spans), _PART)]
        found = [self._cached(facts, p, part) for p, part in enumerate(parts)]
        missing = [p for p, rows in enumerate(found) if rows is None]
        done = self._computed([s for p in missing for s in parts[p]], size, encode, facts["kind"])
        for p in missing:
            rows = torch.cat(list(islice(done, len(parts[p]))))
            self._check(rows, facts["kind"])
            found[p] = rows
            if self.cache and self.world.is_main:
                self.cache.write(facts, p, rows)
        return torch.cat([rows for rows in found if rows is not None])

    def _cached(
        self, facts: dict[str, str], part: int, spans: list[tuple[int, int]]
    ) -> Tensor | None:
        """A part that every rank can read."""
        if self.cache is None:
            return None
        rows = self.cache.read(facts, part, spans[-1][1] - spans[0][0])
        return None if self.world.max_int(int(rows is None)) else rows

    def _computed(
        self,
        spans: list[tuple[int, int]],
        size: int,
        encode: Callable[[list[tuple[int, int]]], Iterator[Tensor]],
        kind: str,
    ) -> Iterator[Tensor]:
        """Features of each span on every rank; rank r encodes spans r, r + N, ... ."""
        ranks = self.world.world_size
        rounds = -(-len(spans) // ranks)
        if not rounds:
            return
        last = len(spans) - 1
        mine = encode([spans[min(r * ranks + self.world.rank, last)] for r in range(rounds)])
        console = Console(stderr=True)
        show = self.progress and self.world.is_main and console.is_terminal
        with Progress(console=console, disable=not show, transient=True) as bar:
            task = bar.add_task(f"{kind}s", total=sum(b - a for a, b in spans))
            for r, rows in enumerate(mine):
                gathered = gather_rows(_padded(rows.float(), size), ranks).cpu()
                for k, (start, stop) in enumerate(spans[r * ranks : (r + 1) * ranks]):
                    bar.advance(task, stop - start)
                    yield gathered[k * size : k * size + stop - start].clone()

    @staticmethod
    def _check(rows: Tensor, kind: str) -> None:
        finite = torch.isfinite(rows).all(dim=1)
        if not bool(finite.all()):
            raise NonFiniteResult(
                f"the {kind} tower gives NaN or infinity for {int((~finite).sum())} of {len(rows)} "
                f"inputs; its weights are broken"
            )


def _bucket(rows: int, size: int) -> int:
    """The batch that `rows` are computed in: the next power of two, at most `size`."""
    return min(size, 1 << (rows - 1).bit_length())


def _padded(rows: Tensor, size: int) -> Tensor:
    """(size, ...) rows: zeros below."""
    if len(rows) == size:
        return rows
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[int], Tensor],
    indices: Iterable[int],
    ahead: int,
) -> Iterator[Tensor]:
    """work(i) for each index, in order, at most `ahead` of them at once."""
    todo = iter(indices)
    queue = [pool.submit(work, i) for i in islice(todo, ahead)]
    while queue:
        result = queue.pop(0).result()
        queue.extend(pool.submit(work, i) for i in islice(todo, 1))
        yield result
