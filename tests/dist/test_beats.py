"""What a table of ranks says: who is behind, who is stopped, who is slow."""

from __future__ import annotations

from typing import Any

from clipkit.dist.beats import Beat, Seen, hung, slow, verdict


def seen(rank: int, silent: float = 0.1, mute: bool = False, **values: Any) -> Seen:
    """A rank at step 7 that has been idle for 20 s of 10."""
    beat = Beat(rank, **{"pid": 100 + rank, "step": 7, "idle": 20.0, "allowed": 10.0, **values})
    return Seen(beat, silent, mute)


def guilty(*table: Seen) -> list[int]:
    """Ranks that `hung` names, at 10 s."""
    return [s.beat.rank for s in hung(list(table), 10)]


def test_the_hindmost_rank_holds_up_the_others() -> None:
    assert guilty(seen(0, mark=2), seen(1, mark=1), seen(2, mark=2)) == [1]
    assert guilty(seen(0), seen(1, step=6, mark=9)) == [1]


def test_a_rank_that_may_take_long_is_waited_for() -> None:
    assert guilty(seen(0, mark=2), seen(1, mark=1, allowed=60.0)) == []
    assert guilty(seen(0, mark=2), seen(1, mark=1, idle=3.0)) == []


def test_of_ranks_at_one_mark_the_waiting_ones_are_not_to_blame() -> None:
    assert guilty(seen(0, waits=True), seen(1, waits=False)) == [1]
    assert guilty(seen(0, waits=True), seen(1, waits=True)) == [0, 1]
    assert guilty(seen(0), seen(1, silent=8.0, mute=True, idle=1.0)) == [1]


def test_silence_counts_whatever_the_phase() -> None:
    assert guilty(seen(0, idle=1.0), seen(1, silent=11.0, idle=0.0, allowed=60.0)) == [1]
    unheard = {"pid": 0, "idle": 0.0, "allowed": 60.0}
    assert guilty(seen(0, idle=1.0), seen(1, silent=11.0, **unheard)) == []
    assert guilty(seen(0, idle=1.0), seen(1, silent=61.0, **unheard)) == [1]


def test_the_verdict_names_process_place_and_remedy() -> None:
    stopped = seen(1, silent=61, mute=True, host="n3", phase="data", line="read (tar.py:3)")
    text = verdict([stopped], 4, 9, "r/hang")
    assert (
        "in step 9: rank 1 (pid 101 on n3): silent for 61 s, last seen in step 7, phase data"
        in text
    )
    assert "read (tar.py:3)" in text and "r/hang" in text and "kill -9 pid 101 on n3" in text
    assert "kill" not in verdict([seen(1)], 4, 9, "r/hang")
    assert "network" in verdict([seen(0), seen(1)], 2, 9, "") and "and 2 more" in verdict(
        [seen(i) for i in range(10)], 20, 9, ""
    )


def test_slow_ranks() -> None:
    def who(*busy: float | None) -> list[int]:
        return [b.rank for b in slow([seen(i, busy=s) for i, s in enumerate(busy)])]

    assert who(0.1, 0.3) == [1] and who(0.3, 0.1, 0.1) == [0]
    assert who(0.1, 0.14, 0.12) == []
    assert who(0.001, 0.009) == []  # milliseconds more hold nobody up
    assert who(0.1, None) == [] and who(0.5) == []


def test_a_beat_comes_back_as_it_was_sent() -> None:
    beat = seen(3, busy=0.25, line="a (b.py:1)", waits=True).beat
    assert Beat.load(beat.dump().encode()) == beat
