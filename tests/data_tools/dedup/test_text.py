"""Normalised forms, and near texts against the comparison of all pairs."""

import random

import pytest

from data_tools.dedup.text import jaccard, near_texts, normalise, shingles, signature


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  A  Photo, of\ta CAT!! ", "a photo of a cat"),
        ("ﬁsh №5", "fish no5"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("snake_case-word", "snake case word"),
        ("??? !", "??? !"),
        (" \n", ""),
        ("Ünï Фото 猫", "ünï фото 猫"),
    ],
)
def test_normalise(text: str, form: str) -> None:
    assert normalise(text) == form
    assert normalise(form) == form


def test_shingles_and_similarity() -> None:
    assert shingles("abcde") == {"abcd", "bcde"} and shingles("ab") == {"ab"}
    assert jaccard(shingles("abcde"), shingles("bcdef")) == 1 / 3


def slow(texts: list[str], threshold: float) -> list[int]:
    of = []
    for i, text in enumerate(texts):
        near = (
            j
            for j in range(i)
            if of[j] < 0 and jaccard(shingles(text), shingles(texts[j])) >= threshold
        )
        of.append(next(near, -1))
    return of


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_texts_are_those_of_all_pairs(threshold: float) -> None:
    rng = random.Random(0)
    words = ["red", "green", "blue", "dog", "cat", "house", "tree", "river", "cloud", "big", "runs"]
    base = [" ".join(rng.choices(words, k=8)) for _ in range(25)]
    texts = [
        " ".join(w if rng.random() > 0.1 else rng.choice(words) for w in rng.choice(base).split())
        for _ in range(150)
    ]
    of, distance = near_texts(texts, [signature(text) for text in texts], threshold)
    expected = slow(texts, threshold)
    # hashing may miss a pair, which then stays; what goes is near what stays, always
    assert sum(a != b for a, b in zip(of.tolist(), expected)) <= 4
    assert sum(i >= 0 for i in expected) > 30
    for i, j in enumerate(of.tolist()):
        if j >= 0:
            similarity = jaccard(shingles(texts[i]), shingles(texts[j]))
            assert similarity >= threshold and of[j] < 0 and distance[i] == 1 - similarity
