"""Which caption of a sample is drawn, and what is passed over."""

import json
from collections import Counter

import numpy as np
import pytest

from clipkit.data.bad_samples import BadSample
from clipkit.data.captions import CaptionRule
from clipkit.errors import ConfigError

META = {"alt": "alt text", "all": ["one", "two", "three"], "deep": {"en": "deep one"}, "n": 5}


def pick(rule, members, meta=META, seed=0):
    return rule.pick(members, meta, lambda: np.random.default_rng(seed))


def no_draw():
    raise AssertionError("nothing to draw")


def cause(rule, members, meta=META):
    with pytest.raises(BadSample) as caught:
        rule.pick(members, meta, no_draw)
    return caught.value.cause


def shares(rule, members, draws=4000, meta=META):
    rng = np.random.default_rng(1)
    found = Counter(rule.pick(members, meta, lambda: rng) for _ in range(draws))
    return {caption: count / draws for caption, count in found.items()}


@pytest.mark.parametrize(
    ("keys", "members", "expected"),
    [
        (("txt",), {"txt": b" a cat\n"}, "a cat"),
        (("2.txt", "1.txt"), {"1.txt": b"one", "2.txt": b"two"}, "two"),
        (("cap", "txt"), {"txt": b"there"}, "there"),
        (("json.alt", "txt"), {"txt": b"x"}, "alt text"),
        (("json.all",), {}, "one"),
        (("json.deep.en",), {}, "deep one"),
        (("json.none", "txt"), {"txt": b"x"}, "x"),
        (
            ("json.n", "json.deep", "json.alt.en", "txt"),
            {"txt": b"no string there"},
            "no string there",
        ),
        (("txt",), {"txt": "Füße 犬".encode()}, "Füße 犬"),
    ],
)
def test_first(keys, members, expected):
    assert CaptionRule(keys).pick(members, META, no_draw) == expected


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (b"\xff\xfe", "caption_not_utf8"),
        (b" \n", "empty_caption"),
        (b"x" * 65_537, "caption_too_long"),
    ],
)
@pytest.mark.parametrize("rule", ["first", "random"])
def test_a_bad_caption_is_passed_over_while_there_is_another(bad, name, rule):
    captions = CaptionRule(("1.txt", "2.txt"), rule)
    for members in ({"1.txt": bad, "2.txt": b"good"}, {"1.txt": b"good", "2.txt": bad}):
        assert captions.pick(members, {}, no_draw) == "good"
    assert cause(captions, {"2.txt": bad}) == name
    assert cause(captions, {"1.txt": bad, "2.txt": b""}) == name, "the first cause is told"


def test_the_longest_caption_that_is_allowed():
    assert len(pick(CaptionRule(), {"txt": b"x" * 65_536})) == 65_536
    assert cause(CaptionRule(), {"txt": "ä".encode() * 32_769}) == "caption_too_long", "bytes"


def test_no_caption():
    assert cause(CaptionRule(), {}) == "no_caption"
    assert cause(CaptionRule(("json.x", "json.all")), {}, {"all": [], "x": None}) == "no_caption"
    assert cause(CaptionRule(("json.x",)), {}, {"x": [" ", 3]}) == "empty_caption"


def test_a_lone_surrogate_is_no_text():
    meta = json.loads('{"x": ["\\ud800", "fine"]}')
    assert pick(CaptionRule(("json.x",)), {}, meta) == "fine"
    assert cause(CaptionRule(("json.x",)), {}, {"x": meta["x"][0]}) == "caption_not_utf8"


def test_lines():
    members = {"txt": b"one\r\n\n \ntwo\n\xff\nthree"}
    assert pick(CaptionRule(lines=True), members) == "one"
    assert set(shares(CaptionRule(rule="random", lines=True), members)) == {"one", "two", "three"}
    assert pick(CaptionRule(), {"txt": b"one\ntwo"}) == "one\ntwo", "one caption unless asked for"


def test_random_is_uniform_over_captions_not_keys():
    rule = CaptionRule(("txt", "json.all"), "random")
    found = shares(rule, {"txt": b"zero"})
    assert found == pytest.approx(dict.fromkeys(("zero", "one", "two", "three"), 0.25), abs=0.03)


def test_weighted_draws_the_key_then_uniformly():
    rule = CaptionRule(("txt", "json.all", "json.alt"), "weighted", (1.0, 3.0, 4.0))
    expected = {"zero": 1 / 8, "one": 1 / 8, "two": 1 / 8, "three": 1 / 8, "alt text": 1 / 2}
    assert shares(rule, {"txt": b"zero"}) == pytest.approx(expected, abs=0.03)
    without = {"zero": 1 / 4, "one": 1 / 4, "two": 1 / 4, "three": 1 / 4}
    found = shares(rule, {"txt": b"zero"}, meta={"all": META["all"]})
    assert found == pytest.approx(without, abs=0.03), "weights of the keys that are there"


def test_the_draw_is_the_generators():
    rule = CaptionRule(("json.all",), "random")
    drawn = [pick(rule, {}, seed=s) for s in range(20)]
    assert drawn == [pick(rule, {}, seed=s) for s in range(20)] and len(set(drawn)) == 3


def test_members_to_read():
    rule = CaptionRule(("txt", "json.a", "1.txt", "json.b"))
    assert rule.members == ("txt", "json", "1.txt") and rule.uses_json
    assert not CaptionRule().uses_json


@pytest.mark.parametrize("key", ["json", "json.", "json..a", "json.a."])
def test_keys_that_name_nothing(key):
    with pytest.raises(ConfigError, match=r"json\.<field>"):
        CaptionRule((key,))


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, 1.0, 1.0)])
def test_weights_that_mean_nothing(weights):
    with pytest.raises(ConfigError, match=r"data\.caption_weights"):
        CaptionRule(("txt", "json.a"), "weighted", weights)


def test_every_usable_caption_whatever_the_rule():
    rule = CaptionRule(("1.txt", "json.all", "2.txt", "none"), lines=True)
    members = {"1.txt": b"first\n\nsecond", "2.txt": b"\xff"}
    assert rule.every(members, META) == ["first", "second", "one", "two", "three"]
    assert CaptionRule(("none",)).every({}, {}) == []
