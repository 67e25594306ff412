"""Sums by SQL equal sums by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from data_tools.stats.aggregate import BINS, as_table, summed_up
from data_tools.stats.tables import SCHEMA
from data_tools.tables import write_table


def write(root: Path, shards: list[list[dict]]) -> list[Path]:
    """A table for each list of lines; columns that a line lacks are null."""
    paths = []
    for number, lines in enumerate(shards):
        named = [
            {"shard": f"{number}.tar", "row": i, "key": f"{number}{i}", "members": "png"} | line
            for i, line in enumerate(lines)
        ]
        table = pyarrow.Table.from_pylist(named, SCHEMA)
        path = root / f"{number}.parquet"
        write_table(path, dict(zip(SCHEMA.names, table.columns)))
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    random = np.random.default_rng(0)
    lines = []
    for i in range(500):
        caption = f"a {'cat' if i % 3 else 'dog'} {i % 50}"
        line = {
            "width": int(random.integers(10, 2000)), "height": int(random.integers(10, 900)),
            "image_bytes": int(random.integers(100, 90_000)), "format": "PNG" if i % 4 else "JPEG",
            "mode": "RGB", "sha256": f"{i % 450}", "caption": caption,
            "caption_chars": len(caption), "caption_words": 3,
        }  # fmt: skip
        if i % 100 == 99:
            line = {"caption": "", "caption_chars": 0, "caption_words": 0, "error": "no_image"}
        lines.append(line)
    root = tmp_path_factory.mktemp("tables")
    shards = [lines[:200], lines[200:450], lines[450:]]
    return lines, summed_up(write(root, shards), root / "spill", show=10, seed=0)


def test_totals(pool) -> None:
    lines, stats = pool
    good = [line for line in lines if "width" in line]
    assert stats.totals == {
        "samples": 500, "usable samples": 495, "images": 495, "captions": 495,
        "bytes of images": sum(line["image_bytes"] for line in good),
        "distinct images": len({line["sha256"] for line in good}),
        "distinct captions": len({line["caption"] for line in good}),
    }  # fmt: skip


def test_histograms_hold_every_sample_once(pool) -> None:
    lines, stats = pool
    good = [line for line in lines if "width" in line]
    for name, values in (
        ("width", [line["width"] for line in good]),
        ("aspect ratio", [line["width"] / line["height"] for line in good]),
        ("image bytes", [line["image_bytes"] for line in good]),
        ("caption characters", [line["caption_chars"] for line in lines]),
    ):
        found = stats.histograms[name]
        slow, _ = np.histogram(values, found.edges)
        # a value on an edge may fall to either side, by rounding of the logarithm
        assert np.abs(np.cumsum(found.counts) - np.cumsum(slow)).max() <= 2, name
        assert found.counts.sum() == len(values) and len(found.counts) <= BINS
        assert found.summary["50%"] == pytest.approx(np.quantile(values, 0.5))
        assert found.summary["max"] == max(values)
    edges = stats.histograms["caption characters"].edges  # whole numbers stand inside their bins
    assert (edges % 1 == 0.5).all()
    x, y, counts = stats.sizes
    slow, _, _ = np.histogram2d(
        [line["width"] for line in good], [line["height"] for line in good], [x, y]
    )
    assert counts.sum() == 495 and np.abs(counts - slow).sum() <= 8


def test_frequent_ones(pool) -> None:
    lines, stats = pool
    captions = Counter(line["caption"] for line in lines if line["caption"])
    assert stats.captions == sorted(captions.items(), key=lambda p: (-p[1], p[0]))[:20]
    words = Counter(w for line in lines for w in line["caption"].split())
    assert dict(stats.words[:3]) == dict(words.most_common(3))
    assert dict(stats.groups["format"]) == {
        kind: sum(line.get("format") == kind for line in lines) for kind in ("PNG", "JPEG")
    }
    assert stats.causes == [("no_image", 5)]
    assert stats.bad_shards == [("0.tar", 2, 200), ("1.tar", 2, 250), ("2.tar", 1, 50)]


def test_the_choice_hangs_on_the_seed_alone(tmp_path: Path) -> None:
    shards = [
        [{"width": 1, "height": 1, "caption": f"{s}{i}"} for i in range(50)] for s in range(2)
    ]
    paths = write(tmp_path, shards)

    def chosen(tables, seed):
        stats = summed_up(tables, tmp_path / "spill", show=8, seed=seed)
        return [(s["shard"], s["row"]) for s in stats.chosen]

    one = chosen(paths, 0)
    assert len(set(one)) == 8 and one == chosen(paths[::-1], 0) != chosen(paths, 1)


def test_nothing_and_one_value(tmp_path: Path) -> None:
    empty = summed_up(write(tmp_path / "a", [[]]), tmp_path / "spill", show=4, seed=0)
    assert empty.totals["samples"] == 0 and not empty.histograms and empty.sizes is None
    line = {"width": 8, "height": 8, "image_bytes": 10, "caption": "x", "caption_chars": 1,
            "caption_words": 1}  # fmt: skip
    stats = summed_up(write(tmp_path / "b", [[line] * 3]), tmp_path / "spill", show=4, seed=0)
    for found in stats.histograms.values():
        assert found.counts.sum() == 3 and found.counts.max() == 3
        bin = int(found.counts.argmax())
        assert found.edges[bin] * 0.999 <= found.summary["50%"] <= found.edges[bin + 1] * 1.001


def test_the_table_of_sums(pool) -> None:
    _, stats = pool
    table = as_table(stats)
    assert table.column_names == ["fact", "item", "low", "high", "value"]
    lines = table.to_pylist()
    assert {
        line["item"]: line["value"] for line in lines if line["fact"] == "total"
    } == stats.totals
    bins = [line for line in lines if (line["fact"], line["item"]) == ("width", "bin")]
    assert sum(line["value"] for line in bins) == 495
    assert bins[0]["high"] == bins[1]["low"]
    assert {line["fact"] for line in lines} >= {"word", "caption", "error", "format", "members"}
