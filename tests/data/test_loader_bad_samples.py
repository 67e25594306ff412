"""Indexed mode: bad samples are replaced, counted once each, and too many end the run."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pytest
import torch

from clipkit.errors import DataError
from tests.data.indexed_loaders import COUNTS, B, Planted, joined, make, take
from tests.fixtures_shards import small_reader, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), COUNTS)


def located(shards, number):
    """(shard, row in it) of a sample."""
    begins = np.cumsum([0, *COUNTS])
    part = int(np.searchsorted(begins, number, side="right")) - 1
    return shards[part], number - int(begins[part])


class TestBadSamples:
    """Replaced, counted, and too many of them end the run."""

    bad = (1, 2, 3, 15, 30)

    @pytest.fixture
    def damaged(self, tmp_path):
        return write_shards(tmp_path, COUNTS, self.bad)

    @pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (2, 2)])
    def test_replacement_does_not_depend_on_the_layout(self, shards, damaged, world, workers):
        steps = 5
        reference = take(make(damaged), steps)
        whole = take(make(shards), steps)
        for got, wanted in zip(reference, whole):
            for a, b in zip(got.ids.tolist(), wanted.ids.tolist()):
                assert (a == b) == (b not in self.bad)  # the order does not slide
                assert a not in self.bad
        loaders = [make(damaged, rank=r, world_size=world, workers=workers) for r in range(world)]
        parts = [take(loader, steps) for loader in loaders]
        assert joined(parts)[0] == [b.ids.tolist() for b in reference]
        assert sum(loader.bad.total for loader in loaders) == self.counted(damaged, steps)

    @staticmethod
    def counted(damaged, steps):
        loader = make(damaged)
        take(loader, steps)
        assert set(loader.bad.causes) == {"unreadable_image"} and loader.bad.seen == steps * B
        assert loader.bad.total >= 5
        return loader.bad.total

    def test_too_many_name_the_worst_shard(self, tmp_path):
        damaged = write_shards(tmp_path, COUNTS, tuple(range(13, 20)))
        with pytest.raises(
            DataError, match=r"unusable.*worst shards: 001\.tar.*data\.max_bad_fraction"
        ):
            take(make(damaged, max_bad_fraction=0.002, streams=1), 10)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_nothing_but_bad_samples_ends_at_once_in_one_line(self, tmp_path, workers):
        damaged = write_shards(tmp_path, [10], tuple(range(10)))
        with pytest.raises(DataError, match="a sample of .* and all 63 substitutes") as caught:
            take(make(damaged, workers=workers), 1)
        assert "\n" not in str(caught.value) and "000.tar" in str(caught.value)

    def test_shard_shrunk_or_gone_after_indexing(self, tmp_path):
        for harm, cause in (
            (lambda p: os.truncate(p, 5000), "changed_shard"),
            (os.remove, "unreadable_shard"),
        ):
            paths = write_shards(tmp_path, [20, 20])
            loader = make(paths, streams=1, max_bad_fraction=1.0)
            harm(paths[0])
            take(loader, 3)
            assert loader.bad.causes[cause] > 0 and set(loader.bad.shards) == {paths[0]}

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_substitute_is_recorded_with_its_own_id(self, shards, damaged, workers):
        whole = take(make(shards), 5)
        loader, records = make(damaged, workers=workers), []
        loader.bad.sink = records.append
        batches = take(loader, 5)
        moved = {
            (step, row)
            for step in range(5)
            for row in np.flatnonzero(batches[step].ids != whole[step].ids).tolist()
        }
        assert {(r.step, r.batch_row) for r in records} == moved and len(moved) >= 3
        for batch in batches:  # what was trained is what its id says
            assert batch.texts["text"].flatten().tolist() == batch.ids.tolist()
        by_place = {}
        for record in records:
            by_place.setdefault((record.step, record.batch_row), []).append(record)
        for (step, row), group in by_place.items():
            assert group[0].key == f"{whole[step].ids[row]:06d}"  # the one that was drawn
            record, instead = group[0], int(batches[step].ids[row])
            assert len(group) == 1 and record.cause == "unreadable_image"
            assert (record.substitute, record.substitute_key) == (instead, f"{instead:06d}")
            drawn = loader.mixture.rows(step, slice(0, B))  # the first usable one
            tried = (loader.mixture.substitute(drawn, row, n)[3] for n in range(64))
            assert next(number for number in tried if number not in self.bad) == instead
            assert (record.shard, record.shard_row) == located(damaged, int(record.key))
            assert record.substitute_shard == located(damaged, instead)[0]
        assert len(records) == loader.bad.total == len(moved)

    def test_a_substitute_is_augmented_as_the_one_it_stands_for(self, shards, damaged):
        seeds = []

        class Spy(type(small_reader())):
            def read(self, members, sample_id, rng, key=""):
                seeds.append(copy.deepcopy(rng).integers(1 << 62))
                return super().read(members, sample_id, rng, key)

        loader = make(damaged, reader=Spy(small_reader().views))
        take(loader, 5)
        assert loader.bad.total > 4
        assert len(seeds) >= 5 * B + loader.bad.total and len(set(seeds)) == 5 * B

    def test_counts_survive_a_restart(self, damaged):
        whole, first = (make(damaged, max_bad_fraction=1.0) for _ in range(2))
        take(whole, 10)
        take(first, 4)
        second = make(damaged, workers=2, max_bad_fraction=1.0)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        take(second, 6)
        assert second.state_dict()["bad"] == whole.state_dict()["bad"]
        assert second.bad.total < whole.bad.total  # its own; the rest came with the state

    def test_a_position_counts_once_however_many_substitutes_fail(self):
        source = Planted([60, 40], bad={(0, row) for row in range(60)})
        loader, records = make(None, source=source, batch=10, max_bad_fraction=1.0), []
        loader.bad.sink = records.append
        take(loader, loader.batches_per_epoch)
        assert len(source.asked) > loader.bad.seen + loader.bad.total  # some substitutes failed
        assert 50 <= loader.bad.total <= 60 and loader.bad.seen == 100
        assert len({(r.step, r.batch_row) for r in records}) == len(records) == loader.bad.total
        assert f"{len(records)} of 100 samples" in loader.bad.own.text()

    def test_the_limit_holds_over_restarts(self, damaged):
        loader = make(damaged, max_bad_fraction=0.01)
        state = loader.state_dict()
        state["bad"] = {"seen": 0, "causes": {"x": 10}, "shards": {"/far/old.tar": 10}}
        loader.load_state_dict(state)
        with pytest.raises(DataError, match=r"10 x.*worst shards: old\.tar"):
            take(loader, 5)


class TestManyBadTogether:
    """What is lost in one place is replaced from everywhere: the run goes on."""

    @pytest.mark.parametrize("batch", [10, 64])  # 64 streams, each within one shard
    def test_a_shard_that_went_away(self, batch):
        source = Planted([100] * 40, bad={(7, row) for row in range(100)})
        loader, records = make(None, source=source, batch=batch, max_bad_fraction=1.0), []
        loader.bad.sink = records.append
        ids = [b.ids for b in take(loader, loader.batches_per_epoch)]
        assert 90 <= loader.bad.total <= 100
        assert max(np.unique(torch.cat(ids), return_counts=True)[1]) <= 3
        assert len({r.substitute for r in records}) > 0.9 * len(records)

    def test_neighbours_within_the_limit(self):
        source = Planted([20_000], bad={(0, row) for row in range(12_000, 12_050)})
        loader = make(None, source=source, streams=1, max_bad_fraction=0.01)
        before = {"seen": 1495 * B, "causes": {}, "shards": {}}
        loader.load_state_dict({**loader.state_dict(), "step": 1495, "bad": before})
        take(loader, 20)
        assert loader.bad.total == 50


class TestLost:
    """What the sources know to be missing is held against the limit before the first step."""

    def test_too_much_ends_before_the_first_step(self):
        source = Planted([90])
        source.lost = [("/d/cut.tar", "missing_samples", 10)]
        with pytest.raises(DataError) as caught:
            make(None, source=source, max_bad_fraction=0.09)
        assert "10 of 100 samples" in str(caught.value)
        assert "10 missing_samples; worst shards: cut.tar" in str(caught.value)
        assert not source.asked

    def test_little_is_told(self):
        source = Planted([90])
        source.lost = [("/d/cut.tar", "missing_samples", 10)]
        loader = make(None, source=source, max_bad_fraction=0.11)
        assert loader.lost.total == 10 and "missing: 10 of 100" in loader.notes[-1]
