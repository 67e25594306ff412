"""What any right judge says: a constant model knows nothing, a random one is at chance, and the
way samples lie in shards or ranks changes no digit."""

import pytest

from clipkit.data.eval_sets import find_sets
from clipkit.dist.group import World
from clipkit.eval.embed import Embedder
from clipkit.eval.intervals import wilson
from clipkit.eval.tasks import plan
from tests.eval import cells
from tests.fixtures_eval_sets import constant_encoder, random_encoder, write_noise_sets

N = 300
TASKS = ("zero_shot", "multilabel", "retrieval", "selection", "knn")
CHANCE = {
    ("zero_shot", "acc1"): 1 / 5,
    ("zero_shot", "mean_per_class_recall"): 1 / 5,
    ("knn", "knn_acc1"): 1 / 5,
    ("retrieval", "text_retrieval_recall@1"): 1 / N,
    ("retrieval", "text_retrieval_recall@10"): 10 / N,
    ("retrieval", "image_retrieval_recall@1"): 1 / N,
    ("retrieval", "image_retrieval_recall@10"): 10 / N,
    ("selection", "text_acc"): 1 / 2,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_noise_sets(tmp_path_factory.mktemp("noise"), N)


def results(root, encoder, tasks=TASKS):
    jobs, _ = plan(find_sets(root), tasks)
    embedder = Embedder(encoder, World())
    return {job.kind: job.evaluator.run(embedder) for job in jobs}


def test_a_constant_model_is_at_most_at_chance_and_all_ties(root):
    found = results(root, constant_encoder(), [t for t in TASKS if t != "knn"])
    for (kind, metric), chance in CHANCE.items():
        if kind in found:
            assert found[kind].metrics[metric] <= chance, (kind, metric)
    labels = found.pop("multilabel")
    for result in found.values():
        ties = [v for k, v in result.metrics.items() if "tie_rate" in k]
        assert ties and ties == [1.0] * len(ties)
    assert labels.metrics["mean_average_precision"] == pytest.approx(0.3, abs=0.05)  # prevalence


@pytest.mark.parametrize("seed", range(5))
def test_a_random_model_is_at_chance(root, seed):
    found = results(root, random_encoder(seed))
    for (kind, metric), chance in CHANCE.items():
        low, high = wilson(found[kind].metrics[metric], N, z=3.290527)  # 99.9 %
        assert low <= chance <= high, (kind, metric, found[kind].metrics[metric])


@pytest.mark.slow
def test_shards_and_ranks_change_no_digit(root, tmp_path_factory, ranks):
    other = write_noise_sets(tmp_path_factory.mktemp("shuffled"), N, shuffled=True)
    tasks = [*TASKS, "modality_gap", "calibration"]
    first = results(root, random_encoder(3), tasks)
    second = results(other, random_encoder(3), tasks)
    both = ranks(2).run(cells.numbers, str(root), 3, tasks)
    for kind, result in first.items():
        numbers = (result.metrics, result.intervals, result.records)
        assert numbers == (second[kind].metrics, second[kind].intervals, second[kind].records)
        assert all(numbers == rank[kind] for rank in both), kind
