"""Search in a corpus of texts, images, and documents of both (MixBench), Li et al. 2025,
https://arxiv.org/abs/2507.19054.

Shapes: Q queries, M documents, D embed dim.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipkit.data.mixed_set import MODALITIES, Item, MixedSet, open_mixed_set
from clipkit.errors import ConfigError, DataError
from clipkit.eval.base import EvalResult, Record
from clipkit.eval.embed import Embedder
from clipkit.retrieval.calibration import (
    Calibration,
    Centring,
    ModalityMeans,
    fit_means,
    fuse,
    load_calibration,
)
from clipkit.retrieval.ndcg import normalised_gain, random_ndcg, top_order
from clipkit.retrieval.scores import tile_scores

_K = 10
_CELLS = 1 << 24  # scores held at once


class MixedModalityEval:
    """nDCG@10 and recall@10 in a mixed corpus, and which modality fills the first ten places.

    recall@10 is the share of a query's relevant documents. ndcg@10_retrieved_only is the variant
    some published numbers use; its ideal knows the retrieved documents only, so it is higher. Ties
    count against the model; tie_rate is the share of queries whose ten depend on how ties fall.
    Every modality's mean can be subtracted (GR-CLIP), from documents of both after they are fused.
    With `calibrate` the means come from a part of the set that is then not scored: some queries,
    the documents only these ask for, and as large a share of those nobody asks for. With
    `calibration`, or of a model with one, they are those of `clipkit calibrate`, and all is scored.
    ndcg@10_uncalibrated stands beside, on the same scored part.

    Args:
        split: Name of the judgements' file in qrels/.
        alpha: Weight of the text in a document or query that has both; 1 - alpha is the image's.
        calibrate: Subtract each modality's mean, fitted on a part of this set.
        calibration: Subtract the means of this file, of `clipkit calibrate`.
        calibration_share: Share of the queries that the means are fitted on.
        seed: Of the choice of that part.
    """

    reads: ClassVar[tuple[str, ...]] = ("mixed_search",)
    files: ClassVar[tuple[str, ...]] = ("calibration",)

    def __init__(
        self,
        data: str,
        name: str,
        *,
        split: str = "test",
        alpha: float = 0.5,
        calibrate: bool = False,
        calibration: str = "",
        calibration_share: float = 0.3,
        seed: int = 0,
    ) -> None:
        self.data, self.name, self.split = data, name, split
        self.alpha, self.calibrate, self.calibration = alpha, calibrate, calibration
        self.calibration_share, self.seed = calibration_share, seed

    def check(self) -> MixedSet:
        """Open the set and its images, and see that a calibration part can be had.

        Raises:
            ConfigError: alpha or calibration_share is out of range, or there are two calibrations.
            CheckpointError: The file of `calibration` is missing or damaged.
            DataError: The set is not whole, or too small to calibrate on.
        """
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"mixed_modality: alpha is {self.alpha}; choose 0 .. 1")
        if not 0 < self.calibration_share < 1:
            raise ConfigError(
                f"mixed_modality: calibration_share is {self.calibration_share}; choose a share "
                f"between 0 and 1"
            )
        if self.calibrate and self.calibration:
            raise ConfigError(
                "mixed_modality: calibrate fits means on a part of the set, calibration reads them "
                "from a file; choose one"
            )
        if self.calibration:
            load_calibration(self.calibration)
        data = open_mixed_set(self.data, self.split)
        len(data.image_files)  # every file is there
        self._parts(data)
        return data

    def run(self, model: Embedder) -> EvalResult:
        """Evaluate on all ranks; every rank gets the result."""
        data = self.check()
        model, fitted = self._uncentred(model)
        parts = self._parts(data)
        queries = _features(model, data, data.queries)
        documents = _features(model, data, data.documents)

        def search(means: tuple[ModalityMeans | None, ModalityMeans | None]) -> _Found:
            asked = queries.fused(parts.queries, self.alpha, means[0])
            corpus = documents.fused(parts.documents, self.alpha, means[1])
            return _search(asked, corpus, data, parts)

        means = (fitted.queries, fitted.documents) if fitted else None
        if self.calibrate:
            means = _means(queries, documents, parts)
        found = search(means or (None, None))
        records = [_record(found, row, data, parts) for row in range(len(parts.queries))]
        if means:
            for record, value in zip(records, search((None, None)).ndcg.tolist()):
                record["values"]["ndcg@10_uncalibrated"] = value
        provenance = {
            "data": str(data.root),
            "split": self.split,
            "alpha": self.alpha,
            "calibrate": self.calibrate,
            "calibration_share": self.calibration_share if self.calibrate else 0.0,
            "seed": self.seed,
            "documents": len(parts.documents),
            "unjudged_queries": data.unjudged,
        }
        details = _details(data, parts, found)
        if fitted:
            facts = {"identity": fitted.identity, "data": fitted.data, "counts": fitted.counts}
            details["calibration"] = facts
        return EvalResult.from_records(
            "mixed_modality", self.name, records, details=details, provenance=provenance
        )

    def _uncentred(self, model: Embedder) -> tuple[Embedder, Calibration | None]:
        """The model before it centres, as documents of both are fused first; and its means.

        Raises:
            CheckpointError: The means are of other weights.
            ConfigError: The model is centred, and the task asks for means of its own.
        """
        last = model.refinements[-1] if model.refinements else None
        if isinstance(last, Centring):
            if self.calibrate or self.calibration:
                raise ConfigError(
                    "mixed_modality: the model's features are centred already; leave "
                    "calibrate and calibration out, or evaluate without --calibration"
                )
            return model.refined_by(model.refinements[:-1]), last.calibration
        if not self.calibration:
            return model, None
        fitted = load_calibration(self.calibration)
        names = [refinement.name for refinement in model.refinements]
        fitted.check(model.encoder.weights_hash, names, self.calibration)
        return model, fitted

    def _parts(self, data: MixedSet) -> _Parts:
        if not self.calibrate:
            every = np.arange(len(data.queries)), np.arange(len(data.documents))
            return _Parts(*every, every[0][:0], every[1][:0])
        return split_off(data, self.calibration_share, self.seed)


@dataclass
class _Parts:
    """Rows of the set's queries and documents: scored, and for calibration."""

    queries: np.ndarray
    documents: np.ndarray
    calibration_queries: np.ndarray
    calibration_documents: np.ndarray


@dataclass
class _Features:
    """Features of items, 0 where an item has no text or no image.

    Attributes:
        texts: (n, D) rows.
        images: (n, D) rows.
        modalities: (n,) of MODALITIES.
    """

    texts: Tensor
    images: Tensor
    modalities: np.ndarray

    def fused(self, rows: np.ndarray, alpha: float, means: ModalityMeans | None) -> Tensor:
        """(len(rows), D) one feature an item."""
        weights = {"text": 1.0, "image": 0.0, "mixed": alpha}
        weight = torch.tensor([weights[m] for m in self.modalities[rows]], dtype=torch.float64)
        return fuse(self.texts[rows], self.images[rows], weight, means)


@dataclass
class _Found:
    """Rankings of the scored queries.

    Attributes:
        order: (Q, 10) columns among the scored documents.
        gains: (Q, 10) their relevance.
        ndcg: (Q,), retrieved_only: (Q,), chance: (Q,) expected nDCG of a random order.
        tied: (Q,) bool, whether ties decide what is found.
    """

    order: Tensor
    gains: Tensor
    ndcg: Tensor
    retrieved_only: Tensor
    chance: Tensor
    tied: Tensor


def split_off(data: MixedSet, share: float, seed: int) -> _Parts:
    """Take a calibration part away: what it holds is not scored.

    A document that a scored query asks for stays, so every scored query can still be answered.

    Raises:
        DataError: One of the two parts lacks queries, or the calibration part lacks a modality.
    """
    rng = np.random.default_rng(seed)
    total = len(data.queries)
    chosen = rng.permutation(total) < round(share * total)  # (Q,)
    wanted = [
        {d for q in np.flatnonzero(side) for d in data.judgements[q]} for side in (~chosen, chosen)
    ]
    drawn = rng.random(len(data.documents)) < share
    rows = range(len(data.documents))
    away = np.array([d not in wanted[0] and (d in wanted[1] or bool(drawn[d])) for d in rows])
    parts = _Parts(*(np.flatnonzero(mask) for mask in (~chosen, ~away, chosen, away)))
    for what, items, scored, fitted in (
        ("query", data.queries, parts.queries, parts.calibration_queries),
        ("document", data.documents, parts.documents, parts.calibration_documents),
    ):
        for modality in ("text", "image"):
            here = [any(getattr(items[i], modality) for i in part) for part in (scored, fitted)]
            if not len(scored) or not len(fitted) or (here[0] and not here[1]):
                raise DataError(
                    f"{data.root}: the calibration part has {len(fitted)} of {len(items)} {what} "
                    f"items, too few with {modality}; change calibration_share or seed, or set "
                    f"calibrate=false"
                )
    return parts


def _features(model: Embedder, data: MixedSet, items: Sequence[Item]) -> _Features:
    words = [item.text for item in items if item.text]
    pictures = [data.image_files.index(item.image) for item in items if item.image]
    texts = model.texts(words) if words else None
    images = model.images(data.image_files)[pictures] if pictures else None
    return _Features(
        _spread(texts, [bool(item.text) for item in items], images),
        _spread(images, [bool(item.image) for item in items], texts),
        np.array([item.modality for item in items]),
    )


def _spread(rows: Tensor | None, there: list[bool], other: Tensor | None) -> Tensor:
    """(n, D) rows where they are, 0 elsewhere."""
    known = rows if rows is not None else other
    assert known is not None  # an item has text or an image
    out = known.new_zeros(len(there), known.shape[1])
    if rows is not None:
        out[torch.tensor(there)] = rows
    return out


def _means(
    queries: _Features, documents: _Features, parts: _Parts
) -> tuple[ModalityMeans, ModalityMeans]:
    """Of queries and of documents, from the calibration part; both halves of mixed items count."""
    out = []
    for features, rows in (
        (queries, parts.calibration_queries),
        (documents, parts.calibration_documents),
    ):
        modalities = features.modalities[rows]
        texts, images = rows[modalities != "image"], rows[modalities != "text"]
        out.append(fit_means(features.texts[texts], features.images[images]))
    return out[0], out[1]


def _search(asked: Tensor, corpus: Tensor, data: MixedSet, parts: _Parts) -> _Found:
    column = {row: i for i, row in enumerate(parts.documents.tolist())}
    step = max(1, _CELLS // len(corpus))
    blocks: list[tuple[Tensor, ...]] = []
    for start in range(0, len(asked), step):
        rows = parts.queries[start : start + step].tolist()
        gains = torch.zeros(len(rows), len(corpus))  # (block, M)
        for out, query in zip(gains, rows):
            for document, gain in data.judgements[query].items():
                out[column[document]] = gain
        scores = tile_scores(asked[start : start + step], corpus)
        order = top_order(scores, gains, _K)
        found = gains.gather(1, order)
        lucky = gains.gather(1, top_order(scores, gains, _K, ties_for=True))
        ndcg, alone = normalised_gain(found, gains), normalised_gain(found, found)
        tied = (found != lucky).any(dim=1)
        blocks.append((order, found, ndcg, alone, random_ndcg(gains, _K), tied))
    return _Found(*(torch.cat(column) for column in zip(*blocks)))


def _record(found: _Found, row: int, data: MixedSet, parts: _Parts) -> Record:
    """The record of one query."""
    query = int(parts.queries[row])
    top = [data.documents[parts.documents[column]] for column in found.order[row].tolist()]
    shares = Counter(document.modality for document in top)
    hits = int((found.gains[row] > 0).sum())
    values = {
        "ndcg@10": float(found.ndcg[row]),
        "ndcg@10_retrieved_only": float(found.retrieved_only[row]),
        "recall@10": hits / len(data.judgements[query]),
        **{f"share_{m}@10": shares[m] / len(top) for m in MODALITIES},
        "tie_rate": float(found.tied[row]),
    }
    item = data.queries[query]
    first = [document.id for document in top]
    return {
        "id": item.id,
        "unit": "query",
        "modality": item.modality,
        "top": first,
        "values": values,
    }


def _details(data: MixedSet, parts: _Parts, found: _Found) -> dict[str, Any]:
    """The corpus, chance, and how well relevant documents of each modality are found."""
    scored = [data.documents[i] for i in parts.documents]
    corpus = Counter(item.modality for item in scored)
    shares = {m: corpus[m] / len(scored) for m in MODALITIES}
    relevant, hits = Counter[str](), Counter[str]()
    for query, order, gains in zip(parts.queries, found.order.tolist(), found.gains.tolist()):
        relevant.update(data.documents[d].modality for d in data.judgements[query])
        hits.update(scored[c].modality for c, gain in zip(order, gains) if gain > 0)
    return {
        "corpus_share": shares,
        "chance": {
            "ndcg@10": float(found.chance.mean()),
            "recall@10": min(_K, len(scored)) / len(scored),
            **{f"share_{m}@10": shares[m] for m in MODALITIES},
        },
        "relevant_documents": [
            {"modality": m, "n": relevant[m], "recall@10": hits[m] / relevant[m]}
            for m in MODALITIES
            if relevant[m]
        ],
    }


PART = MixedModalityEval
