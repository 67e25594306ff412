"""A folder of `clipkit-data memory build`: answers, refusals, damage, and that it is mapped."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.errors import CheckpointError, DataError
from clipkit.retrieval.memory import FolderMemory, stored_side
from tests.retrieval.memory.cells import all_features, rows_of, slow_search, unit, write_memory

CAPTIONS = ["" if i % 5 == 2 else f"caption {i}" for i in range(200)]


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory") / "m"
    return FolderMemory(write_memory(root, 200, captions=CAPTIONS))


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("k", [1, 7, 230])
def test_search_equals_brute_force(memory, side, k):
    queries = unit(30)
    expected = slow_search(memory, queries, side, k)
    assert all(torch.equal(a, b) for a, b in zip(memory.search(queries, side, k), expected))


def test_rows_without_a_caption(memory):
    without = torch.tensor([i for i, caption in enumerate(CAPTIONS) if not caption])
    _, rows = memory.search(unit(30), "text", 200)
    assert not bool(torch.isin(rows, without).any())
    assert not bool(memory.features("text", without).any())
    assert bool((memory.features("image", without).norm(dim=-1) - 1).abs().max() < 1e-6)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("columns", [1, 3])
def test_excluded_rows_never_come_back(memory, side, columns, monkeypatch):
    monkeypatch.setattr(stored_side, "_QUERIES", 7)
    queries = all_features(memory, "image")
    exclude = np.stack([np.arange(200), np.arange(200)[::-1], np.full(200, -1)], axis=1)
    exclude = exclude[:, 0] if columns == 1 else exclude
    found = memory.search(queries, side, 5, exclude=exclude)
    expected = slow_search(memory, queries, side, 5, exclude)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert not bool((found[1] == torch.arange(200)[:, None]).any())
    if side == "image":  # without, each finds itself, or its equal of a lower row
        assert bool((memory.search(queries, side, 1)[1][:, 0] <= torch.arange(200)).all())


def test_near_duplicates_are_dropped_and_replaced(memory):
    queries = all_features(memory, "image")
    at_the_border = float(memory.search(queries[:1], "image", 9)[0][0, 8])
    assert memory.search(queries[:1], "image", 1, max_similarity=at_the_border)[0] == at_the_border
    for limit in (0.999, 0.8, 0.1, -1.1):
        found = memory.search(queries, "image", 5, max_similarity=limit)
        expected = slow_search(memory, queries, "image", 5, None, limit)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert bool((found[0][found[1] >= 0] <= limit).all())
    assert bool((found[1] == -1).all())


@pytest.mark.parametrize("side", ["image", "text"])
def test_near_duplicates_by_the_samples_own_image(memory, side):
    queries, images = all_features(memory, "text")[3:60], all_features(memory, "image")[3:60]
    found = memory.search(queries, side, 6, max_similarity=0.7, own_images=images)
    expected = slow_search(memory, queries, side, 6, None, 0.7, images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    plain = memory.search(queries, side, 6, max_similarity=0.7)
    assert not torch.equal(found[1], plain[1])


def test_features_of_rows(memory):
    rows = torch.tensor([[0, -1], [199, 3]])
    found = memory.features("image", rows)
    assert found.shape == (2, 2, 8) and found.dtype == torch.float32 and not found[0, 1].any()
    stored = rows_of(200, 0)[[0, 199, 3]]
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    np.testing.assert_allclose(found.view(4, 8)[[0, 2, 3]].numpy(), stored, atol=1e-3)
    assert memory.features("image", torch.zeros(0, 5, dtype=torch.int64)).shape == (0, 5, 8)


def test_ivf_finds_what_its_lists_hold_with_exact_scores(tmp_path):
    path = write_memory(tmp_path / "m", 900, dim=16, flat_below=0, nlist=30, target_recall=0.5)
    memory, queries = FolderMemory(path), unit(50, 16)
    assert memory.facts["sides"]["image"]["kind"] == "ivf_sq8"
    scores, rows = memory.search(queries, "image", 10)
    exact, _ = slow_search(memory, queries, "image", 10)
    own = (memory.features("image", rows).double() @ queries.double()[:, :, None])[..., 0]
    torch.testing.assert_close(scores.double(), own, rtol=0, atol=1e-6)
    assert bool((scores <= exact).all()) and float((scores == exact).float().mean()) > 0.5


def test_no_captions_at_all(tmp_path):
    path = write_memory(tmp_path / "m", 20, captions=[""] * 20)
    memory = FolderMemory(path)
    assert not (path / "text.npy").exists()
    assert memory.search(unit(3), "text", 2)[1].tolist() == [[-1, -1]] * 3
    assert not memory.features("text", torch.tensor([[4]])).any()
    assert memory.table(["key"])["key"].to_pylist() == [f"k{i}" for i in range(20)]


def test_other_weights_are_refused_in_one_line(tmp_path):
    path = write_memory(tmp_path / "m", 9)
    assert len(FolderMemory(path, "w")) == 9
    with pytest.raises(CheckpointError) as caught:
        FolderMemory(path, "0123456789abcdef")
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and "(w, c)" in line and "0123456789ab" in line


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _other_rows(path: Path) -> None:
    facts = json.loads((path / "memory.json").read_text())
    facts["rows"] += 1
    (path / "memory.json").write_text(json.dumps(facts))


def _edited(change):
    """Damage: `change` is done to the facts, those of the image side beside them."""

    def damage(path: Path) -> None:
        facts = json.loads((path / "memory.json").read_text())
        change(facts, facts["sides"]["image"])
        (path / "memory.json").write_text(json.dumps(facts))

    return damage


def _other_index(path: Path) -> None:
    import faiss

    index = faiss.read_index(str(path / "image.faiss"))
    index.add(np.zeros((1, 8), np.float32))
    faiss.write_index(index, str(path / "image.faiss"))
    facts = json.loads((path / "memory.json").read_text())
    facts["files"]["image.faiss"] = (path / "image.faiss").stat().st_size
    (path / "memory.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "damage, named",
    [
        (lambda p: _cut(p / "image.npy"), "image.npy: holds .* bytes, not"),
        (lambda p: _cut(p / "text.faiss"), "text.faiss: holds .* bytes, not"),
        (lambda p: (p / "rows.parquet").unlink(), "rows.parquet: is missing"),
        (lambda p: (p / "memory.json").write_text("{"), "memory.json: cannot be read"),
        (lambda p: (p / "memory.json").write_text("[1]"), "is no memory"),
        (lambda p: (p / "memory.json").unlink(), "no memory there; write one with"),
        (
            lambda p: (p / "memory.json").write_text('{"format": "clipkit-memory-1"}'),
            "'checkpoint' is missing",
        ),
        (_other_rows, r"image.npy: holds float16 \(300, 8\), not"),
        (_other_index, "image.faiss: is not the flat index of 300 rows of 8"),
        (_edited(lambda f, s: f.update(rows=-5)), "memory.json: 'rows' is missing or damaged"),
        (_edited(lambda f, s: f.update(dim=True)), "memory.json: 'dim' is missing or damaged"),
        (_edited(lambda f, s: f.update(sides={})), "memory.json: 'sides' is missing or dam"),
        (_edited(lambda f, s: f["sides"].update(image="x")), "'image' of 'sides' is"),
        (_edited(lambda f, s: f["sides"].update(image={})), "'image' of 'sides' is"),
        (_edited(lambda f, s: f["sides"].update(sound=s)), "'sound' of 'sides' is"),
        (_edited(lambda f, s: s.pop("rows")), "'rows' of 'image' is missing"),
        (_edited(lambda f, s: s.update(rows=-5)), "'rows' of 'image' is missing"),
        (_edited(lambda f, s: s.update(rows=301)), "'rows' of 'image' is missing"),
        (_edited(lambda f, s: s.pop("kind")), "'kind' of 'image' is missing"),
        (_edited(lambda f, s: s.update(kind="x")), "'kind' of 'image' is missing"),
        (_edited(lambda f, s: s.pop("recall")), "'recall' of 'image' is missing"),
        (_edited(lambda f, s: s.update(kind="ivf_sq8")), "'nlist' of 'image' is missing"),
        (
            _edited(lambda f, s: s.update(kind="ivf_sq8", nprobe=0, nlist=4)),
            "'nprobe' of 'image' is missing",
        ),
        (
            _edited(lambda f, s: s.update(kind="ivf_sq8", nprobe=2, nlist=4)),
            "image.faiss: is a flat index, not ivf_sq8",
        ),
        (_edited(lambda f, s: f["files"].pop("image.npy")), "'files' says nothing of image.npy"),
    ],
)
def test_damage_is_named(tmp_path, damage, named):
    path = write_memory(tmp_path / "m", 300)
    damage(path)
    with pytest.raises(DataError, match=named) as caught:
        FolderMemory(path).search(unit(2), "image", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0, 4, 8, 16, 32, 33, 37])
def test_a_header_that_faiss_would_trust_is_not_shown_to_it(tmp_path, monkeypatch, place):
    monkeypatch.setattr("faiss.read_index", None)
    index = write_memory(tmp_path / "m", 300) / "image.faiss"
    content = bytearray(index.read_bytes())
    content[place] ^= 0x40
    index.write_bytes(content)
    with pytest.raises(DataError, match="is not the flat index of 300 rows of 8"):
        FolderMemory(tmp_path / "m").search(unit(1), "image", 3)


def test_an_index_that_faiss_cannot_read(tmp_path):
    path = write_memory(tmp_path / "m", 300)
    size = (path / "image.faiss").stat().st_size
    (path / "image.faiss").write_bytes(b"x" * size)
    with pytest.raises(DataError, match="image.faiss: is not the flat index of 300") as caught:
        FolderMemory(path).search(unit(2), "image", 1)
    assert "\n" not in str(caught.value)


def test_pickled_as_its_path(memory):
    data = pickle.dumps(memory)
    assert len(data) < 1000
    other = pickle.loads(data)
    queries = unit(4)
    assert torch.equal(other.search(queries, "text", 3)[1], memory.search(queries, "text", 3)[1])
    assert other.name == memory.name and other.dim == 8 and other.weights_hash == "w"


_MEASURE = """
import sys, torch
from clipkit.retrieval.memory import FolderMemory, stored_side
import faiss
def private():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))
query = torch.nn.functional.normalize(torch.ones(1, 768))
warm = FolderMemory(sys.argv[2]); warm.search(query, "image", 5)
before = private()
memory = FolderMemory(sys.argv[1])
assert memory.search(query, "image", 5)[1].min() >= 0
print(private() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells private memory")
@pytest.mark.parametrize("flat_below", [10**6, 0])
def test_an_open_memory_is_mapped_not_read(tmp_path, flat_below):
    options = {"dim": 768, "flat_below": flat_below, "nlist": 20, "queries": 8}
    big = write_memory(tmp_path / "big", 20_000, **options)
    small = write_memory(tmp_path / "small", 1000, **options)
    size = sum((big / name).stat().st_size for name in ("image.faiss", "image.npy")) / 1024
    command = [sys.executable, "-c", _MEASURE, str(big), str(small)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < size / 4, f"{grown} kB more of {size:.0f}"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_told_when_they_are_read(tmp_path, value):
    path = write_memory(tmp_path / "m", 30)
    features = np.load(path / "image.npy", mmap_mode="r+")
    features[7, 3] = value
    features.flush()
    memory = FolderMemory(path)
    assert memory.features("image", torch.tensor([6])).isfinite().all()
    for call in (
        lambda: memory.features("image", torch.tensor([6, 7])),
        lambda: memory.search(unit(2), "image", 3),
    ):
        with pytest.raises(DataError, match="image.npy: holds NaN or infinity; build the memory"):
            call()
