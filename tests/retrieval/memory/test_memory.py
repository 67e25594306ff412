"""Opening one memory, or several as one."""

from __future__ import annotations

import sys

import pytest
import torch

from clipkit.errors import CheckpointError, DataError
from clipkit.retrieval.memory import FolderMemory, ShardedMemory, open_memory, stored_side
from tests.retrieval.memory.cells import write_memory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("open")
    for name, size in (("m[0]", 5), ("a1", 6), ("a0", 7)):
        write_memory(root / name, size)
    return root


def test_a_folder_a_glob_a_list(root):
    assert isinstance(open_memory(root / "a0"), FolderMemory)
    assert len(open_memory(str(root / "m[0]"), "w")) == 5  # its own name holds glob signs
    found = open_memory(str(root / "a?"))
    assert isinstance(found, ShardedMemory) and [len(part) for part in found.parts] == [7, 6]
    found = open_memory([root / "a1", str(root / "a0")], "w")
    assert isinstance(found, ShardedMemory) and [len(part) for part in found.parts] == [6, 7]


def test_what_cannot_be_opened(root):
    with pytest.raises(DataError, match="b[*]: no memory there"):
        open_memory(str(root / "b*"))
    with pytest.raises(DataError, match="list of memories is empty"):
        open_memory([])
    with pytest.raises(CheckpointError, match="a1: was built with other weights"):
        open_memory([root / "a1", root / "a0"], "other")


def test_faiss_is_imported_by_the_first_search_only(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # an import of it fails
    memory = open_memory(root / "a0")
    assert memory.features("image", torch.tensor([1])).shape == (1, 8)
    assert not hasattr(stored_side, "faiss")
