"""Tensors copied once are what the file says, for the library that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from clipkit.checkpoint.files import write_file
from clipkit.checkpoint.host_copy import _NAMES, HostCopy, Slice


def written(path: Path, copy: HostCopy) -> dict[str, torch.Tensor]:
    write_file(path, copy.blocks())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def test_every_type_and_odd_lengths(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    slices = [
        Slice(kind, f"{dtype}", (n,), 3, (torch.rand(n, generator=generator) * 9).to(dtype))
        for kind, n in (("weight", 5), ("buffer", 1))
        for dtype in _NAMES
    ]
    copy = HostCopy()
    copy.take(slices)
    read = written(tmp_path / "a", copy)
    assert len(read) == len(slices)
    for s in slices:
        got = read[f"{s.kind}/{s.name}@3"]
        assert got.dtype == s.data.dtype and torch.equal(got, s.data)


def test_the_copy_is_not_the_tensor(tmp_path: Path) -> None:
    live = torch.ones(8, requires_grad=True)
    copy = HostCopy()
    copy.take([Slice("weight", "w", (4,), 0, live[::2])])
    live.data.zero_()
    assert written(tmp_path / "a", copy)["weight/w@0"].tolist() == [1.0] * 4


def test_half_precision_is_widened_where_asked(tmp_path: Path) -> None:
    data = torch.tensor([1.5, 2.25], dtype=torch.bfloat16)
    copy = HostCopy()
    copy.take(
        [Slice("weight", "w", (2,), 0, data, torch.float32), Slice("buffer", "b", (2,), 0, data)]
    )
    read = written(tmp_path / "a", copy)
    assert read["weight/w@0"].dtype == torch.float32 and read["weight/w@0"].tolist() == [1.5, 2.25]
    assert read["buffer/b@0"].dtype == torch.bfloat16


def test_the_buffer_stays_while_it_is_large_enough(tmp_path: Path) -> None:
    copy = HostCopy()
    places = []
    for length in (100, 100, 40, 101):
        copy.take([Slice("weight", "w", (length,), 0, torch.full((length,), float(length)))])
        places.append(copy._buffer.data_ptr())
        assert written(tmp_path / "a", copy)["weight/w@0"].tolist() == [float(length)] * length
    assert places[0] == places[1] == places[2]
    assert copy._buffer.numel() == 404


def test_nothing_and_empty_slices(tmp_path: Path) -> None:
    copy = HostCopy()
    copy.take([])
    assert written(tmp_path / "a", copy) == {} and copy.entries == []
    copy.take([Slice("weight", "w", (4,), 4, torch.empty(0))])
    assert written(tmp_path / "a", copy) == {} and copy.entries == []


def test_entries_say_where_each_part_belongs() -> None:
    copy = HostCopy()
    copy.take([Slice("exp_avg", "w", (3, 4), 6, torch.ones(2))])
    assert copy.entries == [
        {"tensor": "exp_avg/w", "shape": [3, 4], "key": "exp_avg/w@6", "start": 6, "stop": 8}
    ]


def test_large_tensors_go_in_several_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipkit.checkpoint.host_copy.BLOCK", 1000)
    copy = HostCopy()
    data = torch.arange(1001, dtype=torch.float32)
    copy.take([Slice("weight", "w", (1001,), 0, data)])
    assert [len(block) for block in copy.blocks()][1:] == [1000, 1000, 1000, 1000, 4]
    assert torch.equal(written(tmp_path / "a", copy)["weight/w@0"], data)
