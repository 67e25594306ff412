"""Parts and outcomes pass between ranks; what is lost is named; nothing stays in the store."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as torch_dist

from clipkit.checkpoint.meeting import Meeting
from clipkit.dist.group import World
from tests.fixtures_checkpoint import ThreadWorld


def pair(patience_s: float = 20) -> list[Meeting]:
    barrier, board, store = threading.Barrier(2), {}, torch_dist.HashStore()
    made: dict[int, Meeting] = {}

    def make(rank: int) -> None:
        made[rank] = Meeting(ThreadWorld(rank, 2, barrier, board, store), patience_s)

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[0], made[1]]


def test_alone() -> None:
    meeting = Meeting(World())
    meeting.hand_in(0, {"a": 1})
    assert meeting.collect(0) == [{"a": 1}]
    meeting.announce(0, "")
    assert meeting.outcome(0) == ""


def test_two_ranks_and_a_clean_store() -> None:
    first, second = pair()
    assert first.id == second.id
    for number in range(3):
        late = threading.Timer(0.2, second.hand_in, (number, {"rank": 1}))
        late.start()
        first.hand_in(number, {"rank": 0})
        assert first.collect(number) == [{"rank": 0}, {"rank": 1}]
        first.announce(number, f"so {number}")
        assert first.outcome(number) == second.outcome(number) == f"so {number}"
    assert first._store.num_keys() == 1  # the last outcome


def test_a_rank_that_is_silent_is_named() -> None:
    first, second = pair(patience_s=0.1)
    first.hand_in(0, {})
    with pytest.raises(TimeoutError, match="0/part/1"):
        first.collect(0)
    with pytest.raises(TimeoutError, match="0/outcome"):
        second.outcome(0)


def test_two_of_them_do_not_meet() -> None:
    one, two = Meeting(World()), Meeting(World())
    assert one.id != two.id


def test_several_ranks_need_a_store() -> None:
    with pytest.raises(AssertionError):
        Meeting(World(world_size=2))
