"""Groups and order: what is compared with what, and who comes first."""

import pyarrow
import pytest

from data_tools.dedup.perceptual import group_codes, same_look


def table(keys: list[str], hashes: list[int | None], **more: list) -> pyarrow.Table:
    return pyarrow.table(
        {
            "shard": more.get("shard", ["a"] * len(keys)),
            "key": keys,
            "group": pyarrow.array(more.get("group", [None] * len(keys)), pyarrow.string()),
            "hash": pyarrow.array(hashes, pyarrow.uint64()),
            "mirrored": pyarrow.array(more.get("mirrored", hashes), pyarrow.uint64()),
        }
    )


KEYS = ["v1_s2", "v1_s1", "v2_s1", "v2_s2", "single"]


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("all", [0, 0, 0, 0, 0]),
        ("shard", [0, 0, 0, 1, 1]),
        ("key", [0, 0, 1, 1, 2]),
        ("json:volume", [0, 0, -1, 1, 1]),
    ],
)
def test_groups(group_by: str, expected: list[int]) -> None:
    rows = table(KEYS, [0] * 5, shard=list("aaabb"), group=["x", "x", None, "y", "y"])
    assert group_codes(rows, group_by, "_").tolist() == expected


def test_the_first_key_of_a_group_is_the_exemplar() -> None:
    rows = table(KEYS, [0b111, 0, 0b1, 0b11, 0])
    of, distance = same_look(rows, group_codes(rows, "key", "_"), 3, mirrored=False)
    assert of.tolist() == [1, -1, -1, 2, -1] and distance.tolist() == [3, 0, 0, 1, 0]
    of, _ = same_look(rows, group_codes(rows, "all", "_"), 3, mirrored=False)
    assert of.tolist() == [4, 4, 4, 4, -1]  # "single" sorts first


def test_equal_keys_keep_the_order_of_shards_and_shards_decide_nothing_else() -> None:
    rows = table(["k", "k", "k"], [0, 0, 0])
    assert same_look(rows, group_codes(rows, "all", "_"), 0, False)[0].tolist() == [-1, 0, 0]
    rows = table(KEYS, [0b111, 0, 0b1, 0b11, 2**64 - 1])
    for places in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        own = rows.take(places)
        of, _ = same_look(own, group_codes(own, "all", "_"), 2, False)
        kept = {key for key, place in zip(own["key"].to_pylist(), of) if place < 0}
        assert kept == {"single", "v1_s1", "v1_s2"}


def test_what_cannot_be_hashed_or_has_no_group_stays() -> None:
    rows = table(list("abcd"), [None, 0, 0, 0], group=["x", "x", None, None])
    of, _ = same_look(rows, group_codes(rows, "json:g", "_"), 64, mirrored=True)
    assert of.tolist() == [-1, -1, -1, -1]


def test_mirror_images_count_where_asked() -> None:
    rows = table(list("ab"), [0, 2**64 - 1], mirrored=[7, 1])
    groups = group_codes(rows, "all", "_")
    assert same_look(rows, groups, 6, mirrored=False)[0].tolist() == [-1, -1]
    of, distance = same_look(rows, groups, 6, mirrored=True)
    assert of.tolist() == [-1, 0] and distance.tolist() == [0, 1]
