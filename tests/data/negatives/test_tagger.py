"""Adjectives that the lexicon does not know."""

import pytest

from clipkit.data.negatives import CaptionEditor, tagger
from clipkit.data.negatives.edits import apply
from clipkit.data.negatives.reading import Caption
from clipkit.errors import ConfigError


def exchanged(text):
    return {apply(text, e.changes("")) for e in tagger.tagged_exchanges(Caption(text))}


def test_unknown_adjectives_of_two_things():
    pytest.importorskip("textblob")
    assert exchanged("A shaggy dog and an ornate robot.") == {"An ornate dog and a shaggy robot."}
    assert exchanged("a shaggy dog and a ornate dog") == set()  # of one thing
    assert exchanged("a red dog and a blue robot") == set()  # the lexicon's
    assert exchanged("a dog on the first bed, next time") == set()
    assert exchanged("") == set() == exchanged("3 × 4, naïve café")


def test_the_editor_asks_it():
    pytest.importorskip("textblob")
    caption = "a shaggy dog and a bulky robot"
    plain, tagged = CaptionEditor(), CaptionEditor(tagger=True)
    more = set(tagged.candidates(caption)) - set(plain.candidates(caption))
    assert {n.text for n in more} == {"a bulky dog and a shaggy robot"}


def test_a_missing_package_is_told_at_once(monkeypatch):
    monkeypatch.setattr(tagger, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'clipkit\[tagger\]'"):
        CaptionEditor(tagger=True)
