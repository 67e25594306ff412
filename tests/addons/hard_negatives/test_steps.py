"""Steps with hard negatives: chunks and ranks change nothing, whatever the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipkit.config.parts import build_part, list_kinds
from clipkit.dist.group import World
from tests.addons.hard_negatives.cells import FORMS, step_with

KINDS = list_kinds("losses")


def check(form: str, mask_duplicates: bool, pool: Any) -> None:
    """Two ranks of four chunks, and one of four, against the whole batch at once; in float64."""
    losses = [
        (kind, build_part("losses", {"kind": kind, "mask_duplicates": mask_duplicates}))
        for kind in KINDS
    ]
    whole = step_with(World(), losses, form, 1)
    cached = [] if mask_duplicates else [step_with(World(), losses, form, 4)]
    for answers in [*cached, *pool.run(step_with, losses, form, 4)]:
        for (kind, _), wanted, found in zip(losses, whole, answers):
            assert found[0] == pytest.approx(wanted[0], rel=1e-9), kind
            for name, gradient in wanted[1].items():
                torch.testing.assert_close(
                    found[1][name], gradient, rtol=1e-9, atol=1e-11, msg=f"{kind}: {name}"
                )


@pytest.mark.parametrize("form", FORMS)
def test_chunks_and_ranks_equal_one_process(form: str, ranks) -> None:  # type: ignore[no-untyped-def]
    check(form, True, ranks(2))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_so_they_do_where_duplicates_count(form: str, ranks) -> None:  # type: ignore[no-untyped-def]
    check(form, False, ranks(2))


@pytest.mark.parametrize("form", FORMS)
def test_masked_duplicates_count_in_every_pair(form: str) -> None:
    """The batch has equal captions and ids, so a loss that masks them is another one."""
    losses = [
        ("infonce", build_part("losses", {"kind": "infonce", "mask_duplicates": m}))
        for m in (False, True)
    ]
    (seen, _), (masked, _) = step_with(World(), losses, form, 1)
    assert masked < seen
