"""One process, torchrun and SLURM give the same training."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.runs import by_hand, curve, torchrun, write_run
from tests.engine.inprocess import fit_in_pool


def same_curve(a: list[tuple[int, float, int]], b: list[tuple[int, float, int]]) -> None:
    assert [x[0] for x in a] == [x[0] for x in b] == list(range(1, 21))
    assert [x[2] for x in a] == [x[2] for x in b], "sample ids"
    assert a[0][1] == pytest.approx(b[0][1], rel=1e-6)
    assert [x[1] for x in a] == pytest.approx([x[1] for x in b], rel=1e-3)


@pytest.mark.slow
def test_one_process_torchrun_and_slurm_agree(tmp_path: Path, ranks) -> None:  # type: ignore[no-untyped-def]
    config = write_run(tmp_path, engine={"strategy": "deepspeed", "zero_stage": 2})
    ranks(1).run(fit_in_pool, str(config), ["run.name=alone", "data.workers=0"])
    for name, go in {
        "torchrun": lambda: torchrun(config, "run.name=torchrun"),
        "slurm": lambda: by_hand(config, "run.name=slurm", job=random.randrange(20000)),
    }.items():
        answer = go()
        for status, _, err in answer if isinstance(answer, list) else [answer]:
            assert status == 0, f"{name}: {err}"
    alone, spread, slurm = (curve(tmp_path / "runs" / n) for n in ("alone", "torchrun", "slurm"))
    same_curve(alone, spread)
    assert spread == slurm, "two processes by hand are bit for bit those of torchrun"
