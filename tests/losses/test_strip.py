"""One strip: tile shapes, masks, positives and counts, on strips made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipkit.contracts import Tiling
from clipkit.losses import strip
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.link import OnlineSoftmax, Sigmoid, Softmax, softplus
from clipkit.losses.strip import Channel, Exponents, Strip, Sums
from clipkit.losses.sweep import Sweep
from clipkit.losses.tiled import loss_and_feature_grads

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "l2_bytes, shape",
    [
        (2**20, (512, 512)),
        (2**21, (1024, 512)),
        (5 * 2**18, (640, 512)),  # 1.25 MiB
        (2**15, (256, 256)),  # never smaller
        (2**26, (1024, 1024)),  # never larger
    ],
)
def test_tile_shape_follows_the_cache(
    l2_bytes: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strip, "_l2_bytes", lambda: l2_bytes)
    assert strip.tile_shape(CPU, None) == shape


def test_tile_size_overrides_the_cache() -> None:
    assert strip.tile_shape(CPU, 7) == (7, 7)


@pytest.mark.parametrize(
    "text, wanted",
    [("1280K\n", 1280 * 2**10), ("2M", 2**21), ("", 2**20), ("12", 2**20), ("K", 2**20)],
)
def test_cache_size_is_read(
    text: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "size").write_text(text)
    monkeypatch.setattr(strip, "_L2_FILE", tmp_path / "size")
    assert strip._l2_bytes.__wrapped__() == wanted


def test_no_cache_size_is_a_mebibyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip, "_L2_FILE", tmp_path / "none")
    assert strip._l2_bytes.__wrapped__() == 2**20


def test_products_are_kept_up_to_a_size() -> None:
    assert strip.keeps_products(2**21) and not strip.keeps_products(2**21 + 1)


def by_hand(same: bool = True, valid: bool = True) -> tuple[Strip, Tensor]:
    """A strip of 4 rows and 6 columns whose rows 1, 2 belong to columns 4, 5; and its negatives."""
    g = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn((n, 3), generator=g, dtype=torch.float64) for n in (4, 6))
    made = Strip(rows, columns, positives=(1, 3, 3))
    negative = torch.ones(4, 6, dtype=torch.bool)
    negative[1, 4] = negative[2, 5] = False
    if same:
        made.same = [
            (torch.tensor([1, 2, 3, 4]), torch.tensor([2, 0, 0, 0, 0, 4])),
            (torch.tensor([9, 9, 8, 7]), torch.tensor([9, 0, 0, 0, 0, 0])),
        ]
        negative[1, 0] = negative[3, 5] = negative[0, 0] = False
    if valid:
        made.valid = torch.tensor([True, True, False, True, True, True])
        negative[:, 2] = False
    return made, negative


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("valid", [False, True])
def test_masks_and_positives(same: bool, valid: bool) -> None:
    made, negative = by_hand(same, valid)
    i, j = slice(0, 4), slice(0, 6)
    mask = made.no_negatives(i, j)
    assert (mask is None) == (not same and not valid)
    out = torch.zeros(4, 6, dtype=torch.bool) if mask is None else mask.expand(4, 6).clone()
    made.fill_positives(out, i, j, True)
    assert torch.equal(~out, negative)


@pytest.mark.parametrize("i", [slice(0, 2), slice(2, 4), slice(1, 3)])
@pytest.mark.parametrize("j", [slice(0, 4), slice(4, 6), slice(3, 5), slice(5, 6)])
def test_a_tile_is_a_window(i: slice, j: slice) -> None:
    made, negative = by_hand()
    mask = made.no_negatives(i, j)
    assert mask is not None
    made.fill_positives(mask, i, j, True)
    assert torch.equal(~mask, negative[i, j])


def empty_sums(link: Softmax, like: Tensor) -> Sums:
    """For one channel of the strip made by hand."""
    counts = [torch.zeros(n, dtype=torch.int64) for n in (4, 6)]
    return Sums(link.begin(1, 4, like=like), link.begin(1, 6, like=like), *counts)


@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (2, 4), (4, 6), (9, 9)])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("valid", [False, True])
@pytest.mark.parametrize("link", [Softmax(9.0), OnlineSoftmax()])
def test_counts_and_sums(link: Softmax, valid: bool, same: bool, tile: tuple[int, int]) -> None:
    made, negative = by_hand(same, valid)
    sums = empty_sums(link, made.rows)
    strip.add_sums(made, Exponents([2.0], 0.0, tile), [link], sums)
    assert torch.equal(sums.num_rows, negative.sum(1))
    assert torch.equal(sums.num_columns, negative.sum(0))
    logits = (2 * made.rows @ made.columns.T).masked_fill(~negative, -torch.inf)
    torch.testing.assert_close(link.finish(sums.rows)[0], logits.logsumexp(1))
    torch.testing.assert_close(link.finish(sums.columns)[0], logits.logsumexp(0))


@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (9, 9)])
def test_sigmoid_sums_and_bias(tile: tuple[int, int]) -> None:
    made, negative = by_hand()
    sums = replace_columns(empty_sums(Sigmoid(), made.rows))
    strip.add_sums(made, Exponents([2.0], -1.5, tile), [Sigmoid()], sums)
    terms = torch.nn.functional.softplus(2 * made.rows @ made.columns.T - 1.5, threshold=100)
    torch.testing.assert_close(sums.rows[0], (terms * negative).sum(1))


def replace_columns(sums: Sums) -> Sums:
    """Sums over rows only."""
    sums.columns = sums.num_columns = None
    return sums


def test_softplus_is_exact_beyond_torchs_threshold() -> None:
    x = torch.tensor([-800.0, -25.0, 0.0, 21.0, 49.0, 51.0, 800.0], dtype=torch.float64)
    wanted = torch.logaddexp(x, torch.zeros_like(x))
    torch.testing.assert_close(softplus(x), wanted, rtol=1e-15, atol=0)


def test_slopes() -> None:
    assert Channel().slope(10.0) == 10.0
    assert Channel(1.5, 2.0).slope(10.0) == 17.0


def test_sums_out_of_range_are_lost_where_there_are_negatives() -> None:
    link, counts = Softmax(100.0), torch.tensor([3, 3, 3, 0])
    lost = [[1.0, 1e-26, 1.0, 0.0], [1.0, torch.inf, 1.0, 0.0], [1.0, torch.nan, 1.0, 0.0]]
    assert all(link.lost(torch.tensor(s, dtype=torch.float64), counts) for s in lost)
    assert not link.lost(torch.tensor([1.0, 1e-24, 1e30, 0.0], dtype=torch.float64), counts)


def test_half_precision_products_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's branch: features read as bf16, every sum and exponent in float32."""

    def multiply(x: torch.Tensor, y: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        assert x.dtype == y.dtype == torch.bfloat16
        return x.to(out_dtype) @ y.to(out_dtype)

    torch.manual_seed(0)
    rows = [torch.nn.functional.normalize(torch.randn(37, 8), dim=1) for _ in range(2)]
    rounded = [r.bfloat16().float() for r in rows]
    scale, tiling = torch.tensor(20.0), Tiling(tile_size=10)
    wanted = loss_and_feature_grads(*rounded, scale, InfoNCELoss.of_negatives, tiling=tiling)
    monkeypatch.setattr(Sweep, "_product_dtype", lambda self, x: torch.bfloat16)
    monkeypatch.setattr(strip, "_mixed_product", multiply)
    found = loss_and_feature_grads(*rows, scale, InfoNCELoss.of_negatives, tiling=tiling)
    assert found.image.dtype == torch.float32
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-5, atol=0)
    for a, b in zip(found[1:4], wanted[1:4]):
        # the gradient tile itself is rounded to bf16 before its product
        assert float((a - b).norm() / b.norm()) < 5e-3
