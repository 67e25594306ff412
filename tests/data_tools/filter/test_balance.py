"""Balancing equals a slow reading of its definition, and its draws hang on no shard."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import DataError
from data_tools.filter.balance import keep_balanced, read_entries
from tests.data_tools.filter.pools import kept_keys, pool_of


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, lower case."""
    text = unicodedata.normalize("NFC", text).lower()
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return kept.split()


def matches(entry: str, caption: str) -> bool:
    """Whether the entry's words follow each other in the caption."""
    return f" {' '.join(words(entry))} " in f" {' '.join(words(caption))} "


def balanced(root: Path, captions: list[str], entries: list[str], t: int, seed=0, shards=2):
    """(keys that stay, {entry: (count, probability, kept)})."""
    connection = pool_of(root, captions, shards)
    table = keep_balanced(connection, entries, t=t, seed=seed).to_pylist()
    return kept_keys(connection), {
        r["entry"]: (r["count"], r["probability"], r["kept"]) for r in table
    }


def zipf_captions(n: int) -> list[str]:
    """Captions of one to four words, word w about n / (w + 1) times."""
    random = np.random.default_rng(0)
    return [
        " ".join(f"w{int(w)}" for w in np.minimum(random.zipf(1.6, random.integers(1, 5)), 40))
        for _ in range(n)
    ]


@pytest.mark.parametrize(
    ("entry", "caption", "found"),
    [
        ("cat", "A CAT.", True),
        ("cat", "category", False),
        ("Hot Dog", "a hot-dog stand", True),
        ("hot dog", "a dog, hot", False),
        ("a b a", "a b a b", True),
        ("São Paulo", "sa\u0303o paulo by night", True),
        ("1984", "in 1984, it", True),
        ("...", "anything ...", False),
        ("cat", "", False),
    ],
)
def test_whole_words_in_order(tmp_path: Path, entry: str, caption: str, found: bool) -> None:
    keys, facts = balanced(tmp_path, [caption, "filler"], [entry], t=10)
    assert keys == ({"k0"} if found else set()) and bool(facts) is found


def test_counts_equal_a_slow_reading(tmp_path: Path) -> None:
    captions = zipf_captions(300)
    entries = [f"w{i}" for i in range(30)] + ["w1 w2", "w2 w1", "w1 w1 w1", "absent"]
    keys, facts = balanced(tmp_path, captions, entries, t=10_000)
    slow = {e: sum(matches(e, c) for c in captions) for e in entries}
    assert {e: f[0] for e, f in facts.items()} == {e: n for e, n in slow.items() if n}
    assert list(facts.values()) == sorted(facts.values(), key=lambda f: -f[0])
    # t >= every count: every match stays, nothing else
    assert keys == {f"k{i}" for i, c in enumerate(captions) if any(matches(e, c) for e in entries)}
    assert all(p == 1 and kept == n for n, p, kept in facts.values())
    assert len(keys) < len(captions)


def test_repeated_and_empty_entries_count_once(tmp_path: Path) -> None:
    _, facts = balanced(tmp_path, ["a cat", "cat cat"], ["cat", "CAT!", "", " cat "], t=1)
    assert list(facts) == ["cat"] and facts["cat"][:2] == (2, 0.5)


def test_a_head_entry_keeps_about_t(tmp_path: Path) -> None:
    n, t = 4000, 500
    captions = ["dog"] * n + ["rare dog"] * 10
    keys, facts = balanced(tmp_path, captions, ["dog", "rare"], t=t)
    assert facts["dog"][1] == pytest.approx(t / (n + 10))
    deviation = np.sqrt(n * (t / n) * (1 - t / n))
    assert abs(facts["dog"][2] - t - 10 * (1 - t / n)) < 4 * deviation
    assert {f"k{i}" for i in range(n, n + 10)} <= keys  # a rare entry keeps its captions


def test_entries_of_one_caption_draw_apart(tmp_path: Path) -> None:
    keys, _ = balanced(tmp_path, ["cat dog"] * 4000, ["cat", "dog"], t=1000)
    assert abs(len(keys) / 4000 - (1 - 0.75**2)) < 0.04


def test_every_head_entry_keeps_t_or_more(tmp_path: Path) -> None:
    captions, t = zipf_captions(3000), 150
    _, facts = balanced(tmp_path, captions, [f"w{i}" for i in range(1, 41)], t=t)
    heads = [f for f in facts.values() if f[0] > t]
    assert len(heads) >= 3 and all(kept >= t - 4 * np.sqrt(t) for _, _, kept in heads)
    assert all(kept == n for n, _, kept in facts.values() if n <= t)


def test_draws_hang_on_seed_and_sample_alone(tmp_path: Path) -> None:
    captions = zipf_captions(400)
    entries = [f"w{i}" for i in range(1, 41)]
    found = [
        balanced(tmp_path / str(i), captions, entries, t=20, seed=seed, shards=shards)[0]
        for i, (seed, shards) in enumerate([(0, 2), (0, 1), (0, 7), (1, 2)])
    ]
    assert found[0] == found[1] == found[2] != found[3]
    more, _ = balanced(tmp_path / "t", captions, entries, t=40)
    assert found[0] < more  # a larger t only adds


def test_equal_keys_of_other_captions_draw_apart(tmp_path: Path) -> None:
    connection = pool_of(tmp_path, [f"dog {i}" for i in range(400)])
    connection.execute("UPDATE kept SET key = 'same'")
    keep_balanced(connection, ["dog"], t=100, seed=0)
    left = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert left and 60 < left[0] < 140


def test_files_of_entries(tmp_path: Path) -> None:
    path = tmp_path / "entries.txt"
    path.write_text("hot dog\nsão paulo\n", encoding="utf-8")
    assert read_entries(path) == ["hot dog", "são paulo"]
    for content in (b"\xff\xfe", b"", b"\n\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_entries(path)
    with pytest.raises(DataError, match="absent"):
        read_entries(tmp_path / "absent")
