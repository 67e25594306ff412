"""Negatives by exchange: two terms of one sort trade places.

After NegCLIP, Yuksekgonul et al. 2023, https://arxiv.org/abs/2210.01936; only where it changes what
is said: "a cat next to a dog" says the same both ways.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from clipkit.data.negatives.edits import Edit, exchange
from clipkit.data.negatives.reading import Caption, Phrase, Term
from clipkit.data.negatives.replace import counted, is_color, is_quality

_POSTURES = frozenset(
    ["sitting", "standing", "lying", "placed", "parked", "sits", "stands", "lies", "is", "are",
     "was", "were", "resting", "kneeling"]
)  # fmt: skip
_FINITE = frozenset(["is", "are", "was", "were", "has", "sits", "stands", "lies"])
_LIST = re.compile(r"(?:^|\W)from (?:left to right|top to bottom|right to left)\W+", re.I)
_THEN = re.compile(r"(?:,? and then |, then )", re.I)


def exchanges(caption: Caption) -> Iterator[Edit]:
    """Every exchange in a caption."""
    yield from _modifiers(caption)
    yield from _numbers(caption)
    yield from _tones(caption)
    yield from _parties(caption)
    yield from _sides(caption)
    yield from _opposites(caption)
    yield from _listed(caption)


def _exchange(caption: Caption, kind: str, one: tuple[int, int], two: tuple[int, int]) -> Edit:
    return Edit(kind, "swap", [""], lambda _: exchange(caption, one, two))


def _modifiers(caption: Caption) -> Iterator[Edit]:
    """Colours, sizes or qualities of two different things: "a red circle and a blue square"."""
    found: list[tuple[Term, list[int]]] = []
    for term in caption.terms:
        if term.entry.kind == "number" or not caption.is_modifier(term):
            continue
        meant = is_color if term.entry.kind == "color" else is_quality
        words, _ = caption.run_after(term.last)
        if words and meant(caption, term) and not caption.is_denied(term.first):
            found.append((term, words))
    for (one, words), (two, others) in itertools.combinations(found, 2):
        same = one.entry.group is two.entry.group
        apart = same and one.entry.concepts.isdisjoint(two.entry.concepts)
        if apart and two.first not in words and _differ(caption, words, others):
            kind = one.entry.kind
            yield _exchange(caption, kind, (one.first, one.last), (two.first, two.last))


def _differ(caption: Caption, words: list[int], others: list[int]) -> bool:
    """Whether two runs of words name different things."""
    one, two = ({caption.words[i] for i in run} for run in (words, others))
    singular = {word.rstrip("s") for word in one} & {word.rstrip("s") for word in two}
    return not singular


def _numbers(caption: Caption) -> Iterator[Edit]:
    """ "two swans and six ducks"."""
    found = []
    for term in caption.terms:
        if term.entry.kind == "number" and not term.entry.form:
            run = counted(caption, term)
            if run is not None and run[1] is not None and run[1].entry.form == "many":
                found.append((term, run[0]))
    for (one, words), (two, others) in itertools.combinations(found, 2):
        if one.entry.concepts != two.entry.concepts and _differ(caption, words, others):
            yield _exchange(caption, "number", (one.first, one.last), (two.first, two.last))


def _tones(caption: Caption) -> Iterator[Edit]:
    """Skin tones of two people whom the caption tells apart, in the order of their mention."""
    tones = [t for t in caption.terms if t.entry.group.name == "skin tone"]
    people = [t for t in caption.terms if "gender" in t.entry.group.traits]
    if len(tones) == 2 == len(people):
        one, two = tones
        if one.entry.concepts != two.entry.concepts and (
            people[0].entry.concepts != people[1].entry.concepts
        ):
            yield _exchange(caption, "attribute", (one.first, one.last), (two.first, two.last))


def _parties(caption: Caption) -> Iterator[Edit]:
    """Who does it to whom, and what lies where."""
    for term in caption.terms:
        entry = term.entry
        if entry.kind == "relation" and entry.form != "doing":
            if "directed" in entry.group.traits:
                yield from _roles(caption, term, caption.phrase_from(term.last + 1))
            if "giving" in entry.group.traits:
                yield from _roles(caption, term, _receiver(caption, term))
        elif entry.kind == "spatial" and entry.group.rule.get("swap"):
            yield from _whereabouts(caption, term)


def _subject(caption: Caption, verb: Term) -> tuple[Phrase | None, bool]:
    """The noun phrase before a verb, and whether the verb agrees with it in number."""
    i, finite = verb.first - 1, verb.entry.form in ("s", "base")
    if caption.of(i, "auxiliaries"):
        i, finite = i - 1, True
    if i < 0 or not all(caption.joined[i : verb.first]):
        return None, finite
    return caption.phrase_to(i), finite


def _roles(caption: Caption, verb: Term, second: Phrase | None) -> Iterator[Edit]:
    first, finite = _subject(caption, verb)
    if first is None or second is None or not caption.joined[verb.last]:
        return
    if not all("animate" in p.head.entry.group.traits for p in (first, second)):
        return
    if _tellable(caption, first, second, finite):
        yield _exchange(caption, "relation", first[:2], second[:2])


def _receiver(caption: Caption, verb: Term) -> Phrase | None:
    """ "gives a vaccine to a boy": whom it is given to."""
    for i in range(verb.last + 1, min(verb.last + 7, len(caption))):
        if not caption.joined[i - 1]:
            return None
        if caption.word(i) == "to":
            return caption.phrase_from(i + 1)
        if any(t.entry.kind in ("relation", "spatial") for t in caption.starting(i)):
            return None
    return None


def _tellable(caption: Caption, first: Phrase, second: Phrase, finite: bool) -> bool:
    """Whether two phrases name different things and either may stand in the other's place."""
    one, two = first.head.entry, second.head.entry
    if not one.concepts.isdisjoint(two.concepts) or (finite and one.form != two.form):
        return False
    if any(caption.of(p.first, "possessives") for p in (first, second)):
        return False
    if caption.word(second.last + 1) == "of" and not caption.closes(second.last):
        return False
    return all(p.determined or p.head.entry.form == "many" for p in (first, second))


def _whereabouts(caption: Caption, term: Term) -> Iterator[Edit]:
    """ "a cat on top of a laptop": the two things, and their nouns alone if both are qualified."""
    i, finite = term.first - 1, False
    while i > 0 and caption.word(i) in _POSTURES:
        finite = finite or caption.word(i) in _FINITE
        i -= 1
    second = caption.phrase_from(term.last + 1) if caption.joined[term.last] else None
    if i < 0 or second is None or not all(caption.joined[i : term.first]):
        return
    first = caption.phrase_to(i)
    if first is None or not _tellable(caption, first, second, finite):
        return
    if any(
        p.head.entry.has(("place", "scenery", "outfit", "mass", "part")) for p in (first, second)
    ):
        return
    if not caption.opens(first.first) and caption.word(first.first - 1) not in ("and", "while"):
        return
    yield _exchange(caption, "spatial", first[:2], second[:2])
    colors = [_color_of(caption, phrase) for phrase in (first, second)]
    if all(colors) and colors[0] != colors[1] and first.head.entry.form == second.head.entry.form:
        one, two = first.head, second.head
        yield _exchange(caption, "object", (one.first, one.last), (two.first, two.last))


def _color_of(caption: Caption, phrase: Phrase) -> frozenset[str] | None:
    terms = caption.ending(phrase.head.first - 1)
    return next((t.entry.concepts for t in terms if t.entry.kind == "color"), None)


def _sides(caption: Caption) -> Iterator[Edit]:
    """A caption that says nothing but where unknown things lie: "a bagel left of an owl"."""
    cuts = [t for t in caption.terms if t.entry.group.rule.get("directional")]
    if not 1 <= len(cuts) <= 3 or not all(caption.joined[:-1]):
        return
    starts = [0, *(t.last + 1 for t in cuts)]
    ends = [*(t.first - 1 for t in cuts), len(caption) - 1]
    parts = list(zip(starts, ends))
    if not all(0 <= last - first < 7 and _is_name(caption, first, last) for first, last in parts):
        return
    determined = {caption.of(first, "determiners") for first, _ in parts}
    if len(determined) > 1:
        return
    for one, two in itertools.combinations(parts, 2):
        names = [plain_words(caption, *part) for part in (one, two)]
        if names[0] != names[1]:
            yield _exchange(caption, "spatial", one, two)


def _is_name(caption: Caption, first: int, last: int) -> bool:
    """Whether words are a noun phrase, as far as can be told without knowing its noun."""
    for i in range(first, last + 1):
        word = caption.word(i)
        if (
            caption.of(i, "auxiliaries")
            or caption.of(i, "pronouns")
            or caption.of(i, "possessives")
        ):
            return False
        if i > first and caption.of(i, "closed") and word not in ("of", "with", "in", "on", "and"):
            return False
        if any(t.entry.kind == "spatial" for t in caption.starting(i)) and word not in ("in", "on"):
            return False
        if any(t.entry.kind == "relation" for t in caption.starting(i)) and i > first + 1:
            return False
    return not caption.of(last, "closed")


def plain_words(caption: Caption, first: int, last: int) -> list[str]:
    """Words of a noun phrase without its determiner."""
    return caption.words[first + caption.of(first, "determiners") : last + 1]


def _opposites(caption: Caption) -> Iterator[Edit]:
    """ "apples on the left and pears on the right": the sides."""
    places = [
        t
        for t in caption.terms
        if t.entry.kind == "spatial" and not {"swap", "follows"} & t.entry.group.rule.keys()
    ]
    for one, two in itertools.combinations(places, 2):
        opposite = two.entry.group.name in (option.text for option in one.entry.group.options[""])
        if opposite and _noun_before(caption, one) != _noun_before(caption, two):
            yield _exchange(caption, "spatial", (one.first, one.last), (two.first, two.last))


def _noun_before(caption: Caption, term: Term) -> frozenset[str] | None:
    nouns = [t.entry.concepts for t in caption.terms if t.entry.noun and t.last < term.first]
    return nouns[-1] if nouns else None


def _listed(caption: Caption) -> Iterator[Edit]:
    """Orders that mean something: from left to right, one after the other."""
    match = _LIST.search(caption.text)
    if match:
        yield from _items(caption, match.end())
    halves = _THEN.split(caption.text)
    if len(halves) == 2 and not any(caption.of(i, "pronouns") for i in range(len(caption))):
        yield from _clauses(caption, len(halves[0]), len(caption.text) - len(halves[1]))


def _items(caption: Caption, start: int) -> Iterator[Edit]:
    first = next((i for i, at in enumerate(caption.starts) if at >= start), len(caption))
    items: list[tuple[int, int]] = []
    begin = first
    for i in range(first, len(caption) + 1):
        between = i == len(caption) or caption.word(i) == "and" or (i > begin and caption.opens(i))
        if between:
            if i > begin:
                items.append((begin, i - 1))
            begin = i + (caption.word(i) == "and")
    if len(items) < 2 or not all(_is_name(caption, *item) for item in items):
        return
    for one, two in itertools.combinations(items, 2):
        if plain_words(caption, *one) != plain_words(caption, *two):
            yield _exchange(caption, "order", one, two)


def _clauses(caption: Caption, stop: int, start: int) -> Iterator[Edit]:
    """ "a man jumps, then a dog barks"."""
    last = max((i for i, end in enumerate(caption.ends) if end <= stop), default=-1)
    first = next((i for i, at in enumerate(caption.starts) if at >= start), len(caption))
    begin = 1 if caption.word(0) == "first" else 0
    both = begin <= last and first < len(caption)
    if both and caption.of(begin, "determiners") == caption.of(first, "determiners"):
        yield _exchange(caption, "order", (begin, last), (first, len(caption) - 1))
