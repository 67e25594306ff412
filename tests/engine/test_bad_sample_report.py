"""Bad samples: each rank lists its own, bounded; all know the totals of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipkit.data.bad_samples import BadRecord, BadSampleCounter, BadTotals
from clipkit.dist.group import World
from clipkit.engine.bad_sample_report import (
    BadSampleList,
    check_share,
    forget_after,
    shared_totals,
)
from clipkit.errors import DataError


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The list as written."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(step: int, key: str = "k") -> BadRecord:
    """One that says everything."""
    return BadRecord("/d/a.tar", "no_image", key, "web", step, 3, 12, 77, "/d/b.tar", "other")


def test_a_line_says_where_why_and_what_instead(tmp_path: Path) -> None:
    listed = BadSampleList(tmp_path, rank=2)
    assert not listed.path.exists()  # nothing bad, no file
    listed(record(step=4))
    assert lines_of(tmp_path / "bad_samples.rank2.jsonl") == [
        {
            "shard": "/d/a.tar",
            "cause": "no_image",
            "key": "k",
            "source": "web",
            "step": 5,  # of metrics.jsonl, which counts trained steps
            "batch_row": 3,
            "shard_row": 12,
            "substitute": 77,
            "substitute_shard": "/d/b.tar",
            "substitute_key": "other",
        }
    ]


def test_the_list_is_bounded_and_says_so_once_over_restarts_too(tmp_path: Path) -> None:
    for _ in range(3):
        listed = BadSampleList(tmp_path, rank=0, max_lines=5)
        for step in range(3):
            listed(record(step))
        listed.close()
    lines = lines_of(tmp_path / "bad_samples.rank0.jsonl")
    assert len(lines) == 6 and all("key" in line for line in lines[:5])
    assert lines[5] == {"step": 3, "note": "further ones are counted, not listed"}


def test_a_resumed_run_writes_later_lines_again(tmp_path: Path) -> None:
    for rank in (0, 1):
        listed = BadSampleList(tmp_path, rank)
        for step in range(4):
            listed(record(step))
    forget_after(tmp_path, 2)
    for rank in (0, 1):
        assert [x["step"] for x in lines_of(tmp_path / f"bad_samples.rank{rank}.jsonl")] == [1, 2]


def test_secrets_in_names_are_masked(tmp_path: Path) -> None:
    listed = BadSampleList(tmp_path, 0)
    listed(record(0)._replace(shard="https://bob:secret@host/a.tar"))
    assert "secret" not in listed.path.read_text()


def count(world: World) -> tuple[dict[str, Any], dict[str, int], str]:
    """Totals and causes on each rank, and what over the limit is said."""
    counter = BadSampleCounter(0.5, world.world_size)
    counter.before = BadTotals.from_json({"seen": 100, "causes": {"old": 1}, "shards": {"z": 1}})
    bad = [(f"long name of shard {world.rank}", "no_image")] * (1 + 600 * world.rank)
    counter.add(1000, bad)
    totals = shared_totals(counter, world).as_json()
    causes = dict(shared_totals(counter, world, shards=0).causes)
    check_share(counter, 602, 2000, world)  # 603 of 2100: within
    try:
        check_share(counter, 1100, 2000, world)
    except DataError as error:
        return totals, causes, str(error)
    return totals, causes, ""


def test_all_ranks_know_the_same_totals(ranks) -> None:  # type: ignore[no-untyped-def]
    (totals, causes, text), other = ranks(2).run(count)
    assert other == (totals, causes, text)
    assert totals["seen"] == 2100 and totals["causes"] == {"no_image": 602, "old": 1}
    assert totals["shards"]["long name of shard 1"] == 601
    assert causes == {"no_image": 602, "old": 1}
    assert "603 of 2100" in text and "worst shards: long name of shard 1, " in text
