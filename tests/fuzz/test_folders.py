"""Folders of embeddings, results and selection sets of others: read, shown, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipkit.data.selection_set import open_selection
from clipkit.eval.embedding_folder import open_embeddings
from clipkit.eval.embedding_search import search
from clipkit.eval.report import write_report
from clipkit.eval.results import read_results
from tests.eval.report_results import zero_shot
from tests.eval.test_embedding_folder import write_folder
from tests.fixtures_shards import noise_bytes
from tests.fuzz.bounds import bounds, cases, folder_of_its_own, some_or_many
from tests.fuzz.mutations import changed_json, damaged


def files_below(root: Path) -> dict[str, bytes]:
    """Relative path -> content."""
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in paths}


def copy_of(root: Path, files: dict[str, bytes]) -> Path:
    """A folder of its own with these files."""
    folder = folder_of_its_own(root)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def broken(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Damage of one file, after its kind."""
    return changed_json(json.loads(content)) if name.endswith(".json") else damaged(content)


@some_or_many(60, 1500)
def test_embeddings(tmp_path: Path, count: int) -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4))
    files = files_below(write_folder(tmp_path / "whole", rows, rows, lengths=[5, 4]))

    @cases(count)
    @given(st.sampled_from(sorted(files)), st.data())
    def one(name: str, data: st.DataObject) -> None:
        root = copy_of(tmp_path, {**files, name: data.draw(broken(name, files[name]))})
        with bounds(root):
            folder = open_embeddings(root)
            folder.check()
            for side in folder.sides():
                search(folder, torch.ones(folder.dim), 3, side)
        shutil.rmtree(root)

    one()


@some_or_many(60, 1500)
def test_selection_set(tmp_path: Path, count: int) -> None:
    items: list[dict[str, Any]] = [
        {"id": "a", "images": ["0.png"], "texts": ["x", "y"], "answer": 1, "tags": ["t"]},
        {"id": "b", "images": ["0.png", "d/1.png"], "texts": ["x", "y"], "answer": [1, 0]},
        {"id": "c", "images": [{"file": "0.png", "box": [0, 0, 8, 8]}, "d/1.png"],
         "texts": ["x"], "answer": 0},
    ]  # fmt: skip
    files = {"0.png": noise_bytes(0, side=16), "d/1.png": noise_bytes(1, side=16)}

    @cases(count)
    @given(st.sampled_from(items), st.data())
    def one(item: dict[str, Any], data: st.DataObject) -> None:
        told = data.draw(changed_json(item))
        root = copy_of(tmp_path, {**files, "test/selection.jsonl": told})
        with bounds(root):
            found = open_selection(root)
            list(found.source.images(0, len(found.source)))
            assert found.identity and len(found.rows) == len(found.source)
        shutil.rmtree(root)

    one()


@some_or_many(25, 600)
def test_results(tmp_path: Path, count: int) -> None:
    """As a page; what stands in a result is text there."""
    zero_shot(tmp_path / "whole")
    files = {n: c for n, c in files_below(tmp_path / "whole").items() if "results" in n}

    @cases(count)
    @given(st.sampled_from([n for n in files if n.endswith(".json")]), st.data())
    def one(name: str, data: st.DataObject) -> None:
        root = copy_of(tmp_path, {**files, name: data.draw(broken(name, files[name]))})
        with bounds(root):
            found = read_results(root)
            for result in found:
                result.records()
            write_report(found, root / "page.html", command="", date="", progress=False)
            assert "<script>alert" not in (root / "page.html").read_text(encoding="utf-8")
        shutil.rmtree(root)

    one()
