"""The lexicon as it is looked up: phrase -> what it may mean, and what may stand in its place."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, NamedTuple

import yaml


class Option(NamedTuple):
    """What may be put in: its text, and the concept that it names."""

    text: str
    concept: str


@dataclass(frozen=True, eq=False)
class Group:
    """Entries that exclude each other.

    Attributes:
        name, kind: The group's, and the kind of its negatives ("object", "color", ...).
        traits: What its entries are ("animate", "place", ...) and its name.
        rule: Further fields of the lexicon, as in its files.
        options: Form ("one", "many", "ing", ...) -> what may be put in.
    """

    name: str
    kind: str
    traits: frozenset[str] = frozenset()
    rule: Mapping[str, Any] = field(default_factory=dict)
    options: dict[str, list[Option]] = field(default_factory=dict)

    def words(self, name: str) -> frozenset[str]:
        """A list of words of the rule."""
        return frozenset(self.rule.get(name, ()))


class Entry(NamedTuple):
    """One meaning of a phrase.

    Attributes:
        group: Those it excludes.
        concepts: What it names and what it may be taken for.
        form: "one" or "many" of nouns, "s", "ing" or "base" of verbs, else "".
        noun: Whether it is the head of a noun phrase.
    """

    group: Group
    concepts: frozenset[str]
    form: str = ""
    noun: bool = False

    @property
    def kind(self) -> str:
        """The group's."""
        return self.group.kind

    def has(self, names: Iterable[str]) -> bool:
        """Whether it is of one of these groups or traits, or names one of these concepts."""
        traits = self.group.traits
        return any(
            name in traits or name in self.concepts or (name == "thing" and "animate" not in traits)
            for name in names
        )


@dataclass(frozen=True)
class Lexicon:
    """All entries, and closed word classes.

    Attributes:
        phrases: First word -> (words, entries), the longest phrase first.
        concepts: Word -> everything that it alone may name.
        classes: Name of a class of words.yaml -> its words.
        others: Concept of a noun -> form -> its text.
    """

    phrases: dict[str, list[tuple[tuple[str, ...], tuple[Entry, ...]]]]
    concepts: dict[str, frozenset[str]]
    classes: dict[str, frozenset[str]]
    forms: dict[tuple[str, str], str]


@functools.cache
def lexicon() -> Lexicon:
    """The one lexicon, read once in a process."""
    words = _read("words")
    irregular = words.pop("irregular")
    found: list[tuple[str, Entry]] = []
    forms: dict[tuple[str, str], str] = {}
    fixed = Group("fixed", "fixed")
    found += [(phrase, Entry(fixed, frozenset())) for phrase in words.pop("fixed")]
    for phrase, entry, canonical in _nouns(irregular):
        found.append((phrase, entry))
        if canonical:
            forms[canonical, entry.form] = phrase
    for source in (_qualities(), _colors(), _sizes(), _verbs(), _places()):
        found += source
    classes = {name: frozenset(str(word) for word in listed) for name, listed in words.items()}
    numbers = _read("numbers")
    classes |= {"measures": frozenset(numbers["measures"]), "clock": frozenset(numbers["clock"])}
    classes["counting"] = frozenset(numbers["words"])
    counting = Group("number", "number")
    for word in numbers["words"]:
        counting.options.setdefault("", []).append(Option(word, word))
        found.append((word, Entry(counting, frozenset([word]))))
    found.append(("one", Entry(counting, frozenset(["one"]), "single")))
    classes["closed"] = frozenset().union(
        *(classes[n] for n in ("determiners", "possessives", "pronouns", "prepositions",
                               "conjunctions", "auxiliaries", "adverbs"))
    )  # fmt: skip
    return Lexicon(*_table(found), classes, forms)


def _table(
    found: list[tuple[str, Entry]],
) -> tuple[
    dict[str, list[tuple[tuple[str, ...], tuple[Entry, ...]]]],
    dict[str, frozenset[str]],
]:
    meanings: dict[tuple[str, ...], list[Entry]] = {}
    for phrase, entry in found:
        meanings.setdefault(tuple(phrase.lower().split()), []).append(entry)
    phrases: dict[str, list[tuple[tuple[str, ...], tuple[Entry, ...]]]] = {}
    for words in sorted(meanings, key=len, reverse=True):
        phrases.setdefault(words[0], []).append((words, tuple(meanings[words])))
    concepts = {
        words[0]: frozenset().union(*(entry.concepts for entry in entries))
        for words, entries in meanings.items()
        if len(words) == 1
    }
    return phrases, concepts


def _read(name: str) -> Any:
    text = (files(__package__) / "lexicon" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _group(name: str, kind: str, rule: Mapping[str, Any], *traits: str) -> Group:
    return Group(name, kind, frozenset([name, *rule.get("traits", ()), *traits]), rule)


def plural(noun: str, irregular: Mapping[str, str]) -> str:
    """The regular plural, or that of its last word in `irregular`."""
    if noun in irregular:
        return irregular[noun]
    *before, last = noun.split(" ")
    if last in irregular:
        return " ".join([*before, irregular[last]])
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _nouns(irregular: Mapping[str, str]) -> Iterator[tuple[str, Entry, str]]:
    """(phrase, entry, concept if it is its own name) of things, and of people by gender."""
    for name, rule in _read("objects").items():
        yield from _forms(_group(name, "object", rule), rule["things"], irregular)
    for name, rule in _read("attributes").items():
        if rule["place"] == "noun":
            group = _group(name, "attribute", rule, "animate", "person", "gender")
            yield from _forms(group, rule["words"], irregular)


def _forms(
    group: Group, things: Mapping[str, list[str]], irregular: Mapping[str, str]
) -> Iterator[tuple[str, Entry, str]]:
    irregular = {**irregular, **group.rule.get("plurals", {})}
    for thing, names in things.items():
        for name in [thing, *names]:
            for form in _numbers_of(group):
                many = form == "many" and "plural" not in group.traits
                phrase = plural(name, irregular) if many else name
                entry = Entry(group, frozenset([thing, name]), form, noun=True)
                yield phrase, entry, thing if name == thing else ""
                offered = name == thing and name not in group.words("never")
                if offered and "still" not in group.traits:
                    group.options.setdefault(form, []).append(Option(phrase, thing))


def _numbers_of(group: Group) -> tuple[str, ...]:
    if "plural" in group.traits:
        return ("many",)
    return ("one",) if "mass" in group.traits else ("one", "many")


def _qualities() -> Iterator[tuple[str, Entry]]:
    for name, rule in _read("attributes").items():
        if rule["place"] == "noun":
            continue
        group = _group(name, "attribute", rule)
        for word, others in rule["words"].items():
            if word not in group.words("never"):
                group.options.setdefault("", []).append(Option(word, word))
            for phrase in [word, *others]:
                yield phrase, Entry(group, frozenset([word, phrase]))


def _colors() -> Iterator[tuple[str, Entry]]:
    facts = _read("colors")
    group = _group("color", "color", facts)
    meant: dict[str, set[str]] = {}
    for color, others in facts["names"].items():
        group.options.setdefault("", []).append(Option(color, color))
        for name in [color, *others]:
            meant.setdefault(name, {name}).add(color)
    for name, concepts in meant.items():
        yield name, Entry(group, frozenset(concepts))
        for shade in facts["shades"]:
            yield f"{shade} {name}", Entry(group, frozenset(concepts))


def _sizes() -> Iterator[tuple[str, Entry]]:
    for rule in _read("sizes"):
        group = _group(" or ".join(end[0] for end in rule["ends"]), "size", rule)
        for number, end in enumerate(rule["ends"]):
            group.options.setdefault("", []).append(Option(end[0], end[0]))
            for word in end:
                yield word, Entry(group, frozenset([end[0], word]), "second" if number else "first")


def _verbs() -> Iterator[tuple[str, Entry]]:
    """Verbs by form; their groups hold what may be done instead, of each form."""
    facts = _read("relations")
    for base, (third, ing, _) in facts["verbs"].items():
        forms = {"s": third, "ing": ing, "base": base}
        instead = [(r, r["by"]) for r in facts["instead"] if base in r["verbs"]]
        instead += [({}, facts["alone"][base])] if base in facts["alone"] else []
        traits = [t for t in ("directed", "giving") if base in facts[t]]
        for rule, others in instead or [({}, [])]:
            group = _group(base, "relation", rule, *traits, *(["alone"] if not rule else []))
            for form, phrase in forms.items():
                group.options[form] = [
                    Option(dict(zip(("s", "ing"), facts["verbs"][o])).get(form, o), o)
                    for o in others
                ]
                yield phrase, Entry(group, frozenset([base]), form)
    for rule in facts["doing"]:
        group = _group("doing", "relation", rule)
        group.options["doing"] = [Option(words, words) for words in rule["words"]]
        for words in dict.fromkeys([*rule["words"], *(w for s in rule["same"] for w in s)]):
            same = (s for s in rule["same"] if words in s)
            yield words, Entry(group, frozenset([words]).union(*same), "doing")


def _places() -> Iterator[tuple[str, Entry]]:
    for kind in ("spatial", "order"):
        for rule in _read(kind):
            group = _group(rule["words"], kind, rule)
            group.options[""] = [Option(text, text) for text in rule["instead"]]
            yield rule["words"], Entry(group, frozenset([rule["words"]]))
