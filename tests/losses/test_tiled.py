"""The streaming kernel against full matrices: gradients, precision, memory, and what saves it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipkit.contracts import Features, Pair, Tiling
from clipkit.losses import strip, tiled
from clipkit.losses.infonce import InfoNCELoss
from clipkit.losses.siglip import SigLIPLoss
from clipkit.losses.tiled import Channel, Negatives, loss_and_feature_grads, negatives
from tests.losses import reference
from tests.losses.problems import (
    LOSSES,
    Answer,
    answer_of,
    cast,
    features_of,
    leaves_of,
    make_problem,
    norm_error,
    ours,
    pair_of,
    reference_value,
    truth,
    unit,
    value_of,
    wanted,
    worst,
)
from tests.losses.reference import Problem

KINDS = list(LOSSES)
SOFTMAX_KINDS = [k for k in KINDS if k != "siglip"]
SCALES = [1.0, 14.3, 100.0]


@pytest.fixture
def recompute(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is kept for the gradients."""
    monkeypatch.setattr(tiled, "keeps_products", lambda num_pairs: False)


@functools.cache
def right(kind: str, scale: float, columns: bool, mask_duplicates: bool) -> Answer:
    """The reference's answer, computed once for all tile sizes."""
    return wanted(kind, make_problem(scale, columns=columns), mask_duplicates)


def check(found: Answer, right: Answer, loss: float = 1e-12, grads: float = 1e-11) -> None:
    """Both within these relative errors."""
    assert found.loss.item() == pytest.approx(right.loss.item(), rel=loss)
    assert worst(found, right) <= grads


def equal(one: Answer, other: Answer) -> bool:
    """Bit for bit, gradients that both have."""
    shared = one.grads.keys() & other.grads.keys()
    same = all(torch.equal(one.grads[n], other.grads[n]) for n in shared)
    return same and torch.equal(one.loss, other.loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_reference_smooths_as_torch_does(smoothing: float) -> None:
    p = make_problem(columns=False)
    logits, target = p.scale * p.image @ p.text.T, torch.arange(10)
    parts = [F.cross_entropy(x, target, label_smoothing=smoothing) for x in (logits, logits.T)]
    found = reference.infonce(p, False, smoothing)
    torch.testing.assert_close(found, sum(parts) / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mask_duplicates", [False, True])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("tile_size", [None, 1, 5, 4, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(
    kind: str, tile_size: int | None, scale: float, columns: bool, mask_duplicates: bool
) -> None:
    p = make_problem(scale, columns=columns)
    found = ours(kind, p, mask_duplicates, Tiling(tile_size))
    check(found, right(kind, scale, columns, mask_duplicates))


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_real(kind: str) -> None:
    assert worst(right(kind, 14.3, True, False), right(kind, 14.3, True, True)) > 1e-3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind: str, tile_size: int | None, scale: float) -> None:
    p = cast(make_problem(scale, size=32, dim=16), torch.float32)
    found, exact = ours(kind, p, True, Tiling(tile_size)), truth(kind, p, True)
    used = [n for n, g in exact.grads.items() if g.abs().sum() > 0]
    assert {n: norm_error(found, exact, n) for n in used} == dict.fromkeys(
        used, pytest.approx(0.0, abs=1e-5)
    )


@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_features_lose_no_more_than_a_naive_loss(kind: str, scale: float) -> None:
    if kind.startswith("hcl") and scale == 100.0:
        pytest.skip("the naive formula overflows: nothing to compare with")
    p = cast(make_problem(scale, size=32, dim=16), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        naive = wanted(kind, p, True)
    found, exact = ours(kind, p, True), truth(kind, p, True)
    for name in ("image", "text", "columns"):
        limit = norm_error(naive, exact, name)
        assert math.isfinite(limit) and norm_error(found, exact, name) <= 1.2 * limit, name
    assert abs(found.loss - exact.loss) <= 1.2 * abs(naive.loss - exact.loss)


class _Rerun(torch.autograd.Function):
    """Runs a function again in each backward: gradcheck asks several from one forward."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *inputs: Tensor) -> Any:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.function(*inputs)
        return None, *torch.autograd.grad(outputs, inputs, grads, allow_unused=True)


@pytest.mark.parametrize(
    "channels, sigmoid",
    [([Channel()], False), ([Channel(1.7), Channel(0.7)], False), ([Channel()], True)],
)
@pytest.mark.parametrize("mask_duplicates", [False, True])
def test_gradcheck(channels: list[Channel], sigmoid: bool, mask_duplicates: bool) -> None:
    p = leaves_of(make_problem(3.0, size=5, dim=3))

    def sums(*inputs: Tensor) -> tuple[Tensor, ...]:
        q = replace(p, **dict(zip(("image", "text", "columns", "scale", "bias"), inputs)))
        how = {"channels": channels, "sigmoid": sigmoid, "mask_duplicates": mask_duplicates}
        found = negatives(features_of(q, Tiling(2)), pair_of(q), **how)
        if sigmoid:
            return found.by_image, found.cosine
        return found.by_image, found.by_text, found.cosine

    inputs = (p.image, p.text, p.columns, p.scale, p.bias)
    assert torch.autograd.gradcheck(lambda *x: _Rerun.apply(sums, *x), inputs)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("size", [1, 2, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str, size: int, columns: bool) -> None:
    p = make_problem(size=size, columns=columns)
    if size == 1:
        p.mask[:] = True
    check(ours(kind, p), wanted(kind, p))


@pytest.mark.parametrize("kind", SOFTMAX_KINDS)
def test_all_duplicates_leave_only_positives(kind: str) -> None:
    p = make_problem(columns=False)
    p.ids[:] = 3
    check(ours(kind, p, True), wanted(kind, p, True))


def opposite() -> Problem:
    """All cosines near -1 at scale 100."""
    p, g = make_problem(100.0, columns=False), torch.Generator().manual_seed(5)
    sides = [a + 0.1 * unit(10, 6, generator=g) for a in (p.image[:1], -p.image[:1])]
    image, text = (F.normalize(s, dim=-1) for s in sides)
    return cast(replace(p, image=image, text=text), torch.float32)


def copies() -> Problem:
    """Duplicates with cosine 1 and other negatives far below, as is row 0's positive."""
    p = make_problem(100.0, size=8, columns=False)
    axis, g = F.one_hot(torch.tensor([0]), 6).double(), torch.Generator().manual_seed(5)
    rows = axis * torch.tensor([1.0, -1.0]).repeat_interleave(4)[:, None]
    rows = F.normalize(rows + 0.01 * unit(8, 6, generator=g), dim=-1)
    p.ids[:] = torch.arange(2).repeat_interleave(4)
    text = torch.cat([-rows[:1], rows[1:]])
    return cast(replace(p, image=rows, text=text), torch.float32)


def hot() -> Problem:
    """Nearly orthogonal rows at scale 300, where HCL's exponents could reach 600."""
    return cast(make_problem(300.0, size=32, dim=4096), torch.float32)


LOST = {
    "opposite-infonce": ("infonce", opposite),
    "opposite-llave": ("llave", opposite),
    "opposite-dcl": ("dcl", opposite),
    "copies-infonce": ("infonce", copies),
    "copies-dcl": ("dcl", copies),
    "copies-hcl": ("hcl_biased", copies),
    "hot-hcl": ("hcl", hot),
    "hot-hcl_biased": ("hcl_biased", hot),
}


@pytest.mark.parametrize("tile_size", [None, 3])
@pytest.mark.parametrize("case", LOST)
def test_lost_terms_are_found_and_summed_again(case: str, tile_size: int | None) -> None:
    kind, make = LOST[case]
    p = make()
    found, exact = ours(kind, p, True, Tiling(tile_size)), truth(kind, p, True)
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
    assert worst(found, exact) < 2e-5


@pytest.mark.parametrize("case", LOST)
def test_without_the_guard_the_result_is_wrong(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, make = LOST[case]
    never = torch.zeros((), dtype=torch.bool)
    monkeypatch.setattr(strip.Softmax, "lost", lambda self, sums, counts: never)
    p = make()
    assert worst(ours(kind, p, True), truth(kind, p, True)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_float64_of_a_lost_batch(kind: str) -> None:
    p = cast(opposite(), torch.float64)
    check(ours(kind, p), wanted(kind, p))


@pytest.mark.parametrize("tile_size", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_products_equal_computed_ones(
    kind: str, tile_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, calls = make_problem(), []
    product = strip.scaled_product
    monkeypatch.setattr(strip, "scaled_product", lambda *x: (calls.append(1), product(*x))[1])
    kept, num_kept = ours(kind, p, True, Tiling(tile_size)), len(calls)
    monkeypatch.setattr(tiled, "keeps_products", lambda num_pairs: False)
    assert equal(kept, ours(kind, p, True, Tiling(tile_size)))
    assert len(calls) == 3 * num_kept  # once, then twice


def test_recompute_after_a_lost_batch(recompute: None) -> None:
    assert worst(ours("infonce", opposite()), truth("infonce", opposite())) < 2e-5


@pytest.mark.parametrize("name", ["image", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_nan_out(kind: str, name: str) -> None:
    p = make_problem()
    getattr(p, name)[3, 0] = torch.nan
    assert torch.isnan(ours(kind, p).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_rounds_nothing(kind: str) -> None:
    p = cast(make_problem(), torch.float32)
    plain = ours(kind, p, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(ours(kind, p, True), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_two_calls_are_bit_identical(kind: str) -> None:
    p = cast(make_problem(size=40), torch.float32)
    assert equal(ours(kind, p, True, Tiling(8)), ours(kind, p, True, Tiling(8)))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_columns_are_bit_identical_to_none(kind: str) -> None:
    p = make_problem()
    p.mask[:] = False
    masked, none = ours(kind, p), ours(kind, replace(p, columns=None))
    assert masked.grads["columns"].abs().sum() == 0
    if kind == "smoothed":  # means over texts and columns are added in another order
        return check(masked, none, 1e-14, 1e-14)
    assert equal(masked, none)


class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor any operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, Tensor):
                self.nbytes = max(self.nbytes, t.untyped_storage().nbytes())
        return out


def _storages(x: Any, found: dict[int, int]) -> dict[int, int]:
    """Address -> bytes of every tensor that plain containers and dataclasses reach."""
    if isinstance(x, Tensor):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    elif isinstance(x, (list, tuple, dict)):
        for y in x.values() if isinstance(x, dict) else x:
            _storages(y, found)
    elif is_dataclass(x):
        for f in fields(x):
            _storages(getattr(x, f.name), found)
    return found


def _graph_state(loss: Tensor) -> dict[int, int]:
    """What nodes of the graph hold besides saved tensors."""
    found: dict[int, int] = {}
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            _storages(getattr(node, "problem", None), found)
            nodes += [n for n, _ in node.next_functions]
    return found


def memory(value: Callable[[Problem], Tensor], p: Problem) -> tuple[int, int]:
    """Bytes the graph holds after forward, and of the largest tensor of forward and backward."""
    p, saved = leaves_of(p), {}

    def pack(t: Tensor) -> Tensor:
        _storages(t, saved)
        return t

    with _Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = value(p)
        held = sum((saved | _graph_state(loss)).values())
        loss.backward()
    return held, largest.nbytes


def test_memory_grows_with_the_batch_not_its_square() -> None:
    size, dim, tiling = 2048, 32, Tiling(256)
    p = cast(make_problem(size=size, dim=dim, columns=False), torch.float32)
    # features twice, their gradients and O(B) sums; one float32 B x B matrix is 256 * B * D bytes
    limit = 40 * size * dim
    assert limit < 4 * size * size / 5
    held, largest = memory(lambda q: value_of("infonce", q, tiling=tiling), p)
    assert held < limit and largest < limit
    held, largest = memory(lambda q: reference_value("infonce", q), p)
    assert held > 5 * limit and largest > 5 * limit


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_products(kind: str, recompute: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"scaled_product": 0, "add_product": 0}

    def counted(name: str, call: Callable[..., Any], *args: Any) -> Any:
        counts[name] += 1
        return call(*args)

    for name in counts:
        call = functools.partial(counted, name, getattr(strip, name))
        monkeypatch.setattr(strip, name, call)
    p, tiles = leaves_of(make_problem()), 3 * (3 + 5)  # 10 rows; 10 texts, 20 columns, by 4
    loss = value_of(kind, p, tiling=Tiling(4))
    assert counts == {"scaled_product": tiles, "add_product": 0}
    loss.backward()
    assert counts == {"scaled_product": 2 * tiles, "add_product": 2 * tiles}


@pytest.mark.parametrize("kind", SOFTMAX_KINDS)
def test_seeded_fault_without_column_sums(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add = strip.Softmax.add

    def rows_only(self: strip.Softmax, sums: Tensor, terms: Tensor, dim: int) -> None:
        add(self, sums, terms if dim == 1 else terms * 0 + 1, dim)

    monkeypatch.setattr(strip.Softmax, "add", rows_only)
    assert worst(ours(kind, make_problem()), wanted(kind, make_problem())) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_seeded_fault_positives_kept_as_negatives(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strip.Strip, "fill_positives", lambda *args: None)
    assert worst(ours(kind, make_problem()), wanted(kind, make_problem())) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_backward_is_refused(kind: str) -> None:
    loss = value_of(kind, leaves_of(make_problem()))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="for one backward"):
        loss.backward()


@pytest.mark.parametrize("frozen", ["image", "text", "columns", "scale"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_input_changes_no_other_gradient(kind: str, frozen: str) -> None:
    p = make_problem()

    def value(q: Problem) -> Tensor:
        return value_of(kind, replace(q, **{frozen: getattr(q, frozen).detach()}))

    found, full = answer_of(value, p), ours(kind, p)
    assert found.grads.pop(frozen).abs().sum() == 0
    assert equal(found, full)


def test_no_gradient_asked() -> None:
    with torch.no_grad():
        loss = value_of("infonce", make_problem())
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(right("infonce", 14.3, True, False).loss.item(), rel=1e-12)


def dclw_of_negatives(found: Negatives, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A loss that reads the positives' cosines and a bias outside of the sums."""
    return (found.by_image[0] - scale * found.cosine * (1 + found.cosine)).mean() * (1 + bias)


@pytest.mark.parametrize(
    "loss_of, sigmoid",
    [
        (InfoNCELoss.of_negatives, False),
        (SigLIPLoss.of_negatives, True),
        (dclw_of_negatives, False),
    ],
)
@pytest.mark.parametrize("columns", [False, True])
def test_without_autograd(loss_of: Callable[..., Tensor], sigmoid: bool, columns: bool) -> None:
    p = make_problem(columns=columns)
    p.mask[:] = True

    def value(q: Problem) -> Tensor:
        found = negatives(features_of(q, Tiling(4)), pair_of(q), sigmoid=sigmoid)
        return loss_of(found, q.scale, q.bias)

    right = answer_of(value, p)
    extra = [] if p.columns is None else [p.columns.flatten(0, 1)]
    found = loss_and_feature_grads(
        p.image,
        p.text,
        p.scale,
        loss_of,
        logit_bias=p.bias,
        columns=extra,
        sigmoid=sigmoid,
        tiling=Tiling(4),
    )
    bias = torch.zeros(()) if found.logit_bias is None else found.logit_bias
    grads = {"image": found.image, "text": found.text, "scale": found.logit_scale, "bias": bias}
    if columns:
        grads["columns"] = found.columns[0].view_as(p.columns)
    check(Answer(found.loss, grads), right, 1e-15, 1e-14)


def test_pair_names_are_honoured() -> None:
    p = make_problem(columns=False)
    views = {"image": p.text[:, None], "a": p.image[:, None], "b": p.text[:, None]}
    found = InfoNCELoss()(Features(views, p.scale), Pair("a", "b"))["contrastive"]
    assert found.item() == pytest.approx(right("infonce", 14.3, False, False).loss.item())


def test_a_queue_is_extra_columns_of_any_number() -> None:
    p = make_problem(14.3, size=9, columns=False)
    queue = unit(23, p.image.shape[-1], generator=torch.Generator().manual_seed(3))
    features = features_of(p, Tiling(tile_size=4))
    leaves = {n: features.local(n).detach().clone().requires_grad_() for n in ("image", "text")}
    features.embeddings = {**leaves, "queue": queue[:, None]}
    loss = InfoNCELoss()(features, Pair(columns=("queue",)))["contrastive"]
    loss.backward()
    image, text = (x.detach().clone().requires_grad_() for x in (p.image, p.text))
    logits = p.scale * image @ text.T
    by_image = torch.cat([logits, p.scale * image @ queue.T], dim=1)
    labels = torch.arange(9)
    wanted = (F.cross_entropy(by_image, labels) + F.cross_entropy(logits.T, labels)) / 2
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    for name, leaf in (("image", image), ("text", text)):
        torch.testing.assert_close(leaves[name].grad[:, 0], leaf.grad, rtol=1e-10, atol=1e-13)


def test_half_precision_features_are_widened() -> None:
    p = cast(make_problem(14.3, size=40, columns=False), torch.float16)
    found, exact = ours("infonce", p), truth("infonce", p)
    assert worst(found, exact) < 2e-3  # the gradient itself is returned in float16


def test_a_sigmoid_takes_one_channel_only() -> None:
    p = make_problem(14.3, size=4, columns=False)
    with pytest.raises(ValueError, match="channels"):
        negatives(features_of(p, Tiling()), Pair(), sigmoid=True, channels=[Channel(2.0)])
    with pytest.raises(ValueError, match="'nope'.*image, text"):
        negatives(features_of(p, Tiling()), Pair(columns=("nope",)))
