"""Rows of the decode stage: who is compared, and that the same crops are."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.bench import decode as bench
from clipkit.bench.photographs import jpeg, photographs


@pytest.fixture(autouse=True)
def _one_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    flower = photographs()["flower"]
    monkeypatch.setattr(bench, "photographs", lambda: {"flower": flower})


def test_rows() -> None:
    rows = {(r["impl"], r["side"]): r for r in bench.decode_rows((80, 160), 32, 2)}
    assert {side for _, side in rows} == {80, 160}
    peer, ours = rows["open_clip", 160], rows["clipkit", 160]
    assert peer["ratio_to_open_clip"] == 1 and peer["mean_abs_difference"] == 0
    assert ours["stage"] == "decode" and ours["size"] == 32 and ours["images"] == 1
    assert ours["images_per_s"] > 0 and ours["ratio_to_open_clip"] > 0
    assert 0 < ours["mean_abs_difference"] < 0.1 and ours["psnr"] > 60


def test_scaled_has_a_row_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    if bench.decoders.simplejpeg is not None:
        scaled = bench.decode_rows((160,), 32, 1)[-1]
        assert scaled["impl"] == "clipkit_scaled" and scaled["mean_abs_difference"] > 0.1
    monkeypatch.setattr(bench.decoders, "simplejpeg", None)
    assert "pip install simplejpeg" in bench.decode_rows((80,), 32, 1)[-1]["skipped"]


def test_a_different_crop_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    square = photographs()["flower"][:, :427]  # a longer one has no choice of crops
    reader, files = bench._reader("exact", 32), [jpeg(square, 160)]
    right = bench._difference(reader, files)["mean_abs_difference"]
    real = bench._pillow
    other = np.random.default_rng(9)
    monkeypatch.setattr(bench, "_pillow", lambda image, view, rng: real(image, view, other))
    assert bench._difference(reader, files)["mean_abs_difference"] > 10 * right
