"""Negatives by replacement: a term gives way to one that excludes it.

After the concept lists of Roesch et al. 2024, https://arxiv.org/abs/2403.02875. A term that is read
with doubt is left alone: a missing negative costs less than a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clipkit.data.negatives.edits import Change, Edit, put
from clipkit.data.negatives.lexicon import Group
from clipkit.data.negatives.reading import Caption, Phrase, Term

_RACES = frozenset(["black", "white", "brown", "yellow", "red"])


def replacements(caption: Caption) -> Iterator[Edit]:
    """Every replacement of a caption, in the order of its words."""
    done = -1
    for term in caption.terms:
        if term.first <= done or caption.is_denied(term.first):
            continue  # another meaning of words that were read already, or nothing to contradict
        change = _READERS[term.entry.kind](caption, term)
        if change is not None and change.options:
            done = term.last
            yield change


def _edit(caption: Caption, term: Term, options: Sequence[str], kind: str = "") -> Edit:
    return Edit(
        kind or term.entry.kind,
        "replace",
        options,
        lambda text: (put(caption, term.first, term.last, text),),
    )


def allowed(caption: Caption, group: Group, form: str) -> list[str]:
    """What may be put in for an entry: nothing that the caption may name already."""
    present = caption.present
    return [text for text, concept in group.options.get(form, ()) if concept not in present]


def _object(caption: Caption, term: Term) -> Edit | None:
    entry = term.entry
    traits, following = entry.group.traits, caption.word(term.last + 1)
    if "still" in traits or not _stands_as_head(caption, term):
        return None
    if entry.group.rule.get("measure") and (following != "of" or caption.closes(term.last)):
        return None
    if "modified" in traits and not _is_modified(caption, term):
        return None
    if following == "and" and any(
        t.entry.kind == "color" for i in (0, 2) for t in caption.starting(term.first + i)
    ):
        return None  # "an orange and blue kite"
    colors = any(t.entry.kind == "color" for t in caption.starting(term.first))
    if colors and entry.form == "one" and not caption.of(term.first - 1, "determiners"):
        return None  # "grey/orange"
    if caption.word(term.first - 2) in ("slice", "slices", "piece", "pieces"):
        return None  # not everything is cut into slices
    if any(t.entry.group.name == "cooking" for t in caption.ending(term.first - 1)):
        return None
    if "place" in traits and not caption.of(term.first - 1, "determiners"):
        return None
    return _edit(caption, term, allowed(caption, entry.group, entry.form))


def _stands_as_head(caption: Caption, term: Term) -> bool:
    """As `is_head`; a profession may follow a word for a man or a woman."""
    if caption.is_head(term):
        return True
    before = [t for t in caption.ending(term.first - 1) if "person" in t.entry.group.traits]
    return (
        bool(before)
        and not caption.opens(term.first)
        and "person" in term.entry.group.traits
        and caption.begins_noun(before[0])
        and caption.ends_noun(term)
    )


def _is_modified(caption: Caption, term: Term) -> bool:
    return not caption.opens(term.first) and any(
        t.entry.kind in ("color", "size") for t in caption.ending(term.first - 1)
    )


def _gender(caption: Caption, term: Term) -> Edit | None:
    """A man for a woman, where nothing else in the caption says which it is."""
    if any(word in caption.classes["gendered"] for word in caption.words):
        return None
    last = term.last
    next_one = caption.noun_at(last + 1) if not caption.closes(last) else None
    apposed = next_one is not None and "person" in next_one.entry.group.traits
    couple = any("gender" in t.entry.group.traits for t in caption.ending(term.first - 1))
    if not (caption.ends_noun(term) or apposed) or not (caption.begins_noun(term) or couple):
        return None
    return _edit(caption, term, allowed(caption, term.entry.group, term.entry.form))


def is_quality(caption: Caption, term: Term) -> bool:
    """Whether a size or a quality stands before a noun that it may qualify."""
    entry = term.entry
    group, rule = entry.group, entry.group.rule
    words, head = caption.run_after(term.last)
    if not words or words[0] != term.last + 1 or caption.of(term.first - 1, "auxiliaries"):
        return False
    if caption.words[words[0]] in group.words("not"):
        return False
    only = rule.get("only before")
    if only and not any(caption.words[word] in only for word in words):
        return False
    names = rule.get("of_second" if entry.form == "second" else "of", rule.get("of"))
    if names and (head is None or not head.entry.has(names)):
        return False
    return head is None or not head.entry.has(rule.get("not_of", ()))


def _quality(caption: Caption, term: Term) -> Edit | None:
    group = term.entry.group
    if term.entry.noun:
        return _gender(caption, term)
    place = group.rule["place"]
    if place == "before" and not is_quality(caption, term):
        return None
    if place == "after":
        before = " ".join(caption.words[max(term.first - 2, 0) : term.first])
        only = group.rule["only after"]
        comma = "," in only and caption.opens(term.first) and term.first > 0
        if not caption.closes(term.last) and not caption.of(term.last + 1, "closed"):
            return None
        if not comma and not any(before.endswith(words) for words in only if words != ","):
            return None
    return _edit(caption, term, allowed(caption, group, ""))


def _size(caption: Caption, term: Term) -> Edit | None:
    if not is_quality(caption, term):
        return None
    return _edit(caption, term, allowed(caption, term.entry.group, ""))


def is_color(caption: Caption, term: Term) -> bool:
    """Whether a colour's name is meant as one, and of a thing."""
    words, head = caption.run_after(term.last)
    if head is not None and head.entry.has(("person",)):  # a race, not a colour
        return _RACES.isdisjoint(term.entry.concepts)
    if any(caption.words[i] in ("people", "folks", "guy", "guys") for i in words):
        return False
    if caption.word(term.last) not in term.entry.group.words("things"):
        return not caption.of(term.first - 1, "possessives") or bool(words)
    near = [t for i in (1, 2) for t in caption.ending(term.first - i)]
    near += [t for i in (1, 2) for t in caption.starting(term.last + i)]
    joined_by = {caption.word(term.first - 1), caption.word(term.last + 1)}
    listed = any(t.entry.kind == "color" and t != term for t in near) and "and" in joined_by
    return bool(words) or listed


def _color(caption: Caption, term: Term) -> Edit | None:
    if not is_color(caption, term):
        return None
    return _edit(caption, term, allowed(caption, term.entry.group, ""))


def counted(caption: Caption, term: Term) -> tuple[list[int], Term | None] | None:
    """Words of what a number counts, and its noun if that is known; None if it measures."""
    words, head = caption.run_after(term.last)
    before = caption.word(term.first - 1)
    if any(caption.of(i, "measures") for i in words) or caption.of(term.last + 1, "measures"):
        return None
    if caption.of(term.first - 1, "prepositions") and before not in ("of", "with", "by", "between",
                                                                    "behind", "for"):  # fmt: skip
        return None
    return (words, head) if words else None


def _number(caption: Caption, term: Term) -> Edit | None:
    if term.entry.form == "single":
        return _one(caption, term)
    following = caption.word(term.last + 1)
    if following == "o'clock":
        return _hour(caption, term)
    family = caption.word(term.first - 1) == "of" and caption.word(term.first - 2) in (
        "family", "group", "team", "pack", "set")  # fmt: skip
    found = counted(caption, term)
    if not family and (found is None or not _many(caption, found)):
        return None
    return _edit(caption, term, allowed(caption, term.entry.group, ""))


def _many(caption: Caption, found: tuple[list[int], Term | None]) -> bool:
    words, head = found
    if head is not None:
        return head.entry.form == "many"
    word = caption.words[words[-1]]
    return word.endswith("s") and not word.endswith(("ss", "us", "'s"))


def _one(caption: Caption, term: Term) -> Edit | None:
    """More than one, with the noun in the plural; not where a verb would have to follow."""
    found = caption.phrase_from(term.first)
    if found is None or found.head.entry.form != "one" or found.head.first == term.first:
        return None
    after = found.last + 1
    bound = any(caption.of(i, "possessives") for i in range(len(caption)))
    verb = bound or any(
        t.entry.kind == "relation" and t.entry.form == "s" for t in caption.starting(after)
    )
    concept = next(iter(found.head.entry.concepts)) if len(found.head.entry.concepts) == 1 else ""
    many = caption.lexicon.forms.get((concept, "many"))
    if caption.of(after, "auxiliaries") or verb or many is None:
        return None
    noun = put(caption, found.head.first, found.head.last, many)
    options = allowed(caption, term.entry.group, "")[:2]

    def changes(text: str) -> tuple[Change, ...]:
        return put(caption, term.first, term.last, text), noun

    return Edit("number", "replace", options, changes)


def _hour(caption: Caption, term: Term) -> Edit:
    return _edit(caption, term, sorted(caption.classes["clock"] - {caption.word(term.first)}))


def digits(caption: Caption) -> Iterator[Edit]:
    """Replacements of numbers in digits that count a known thing, and of times like six-thirty."""
    for i, word in enumerate(caption.words):
        if word.endswith("-thirty") and word[:-7] in caption.classes["clock"]:
            hours = sorted(caption.classes["clock"] - {word[:-7]})
            yield _at(caption, i, [f"{hour}-thirty" for hour in hours])
        if not word.isdecimal() or word.startswith("0") or caption.names[i]:
            continue
        value, found = int(word), caption.run_after(i)
        known = found[1] is not None and found[1].entry.form == "many"
        if not known or not 2 <= value <= 20 or caption.text[caption.starts[i] - 1 :][:1] == "#":
            continue
        near = (str(number) for number in range(2, value + 4))
        yield _at(caption, i, [number for number in near if number not in caption.words])


def _at(caption: Caption, i: int, options: Sequence[str]) -> Edit:
    return Edit("number", "replace", options, lambda text: (put(caption, i, i, text),))


def _relation(caption: Caption, term: Term) -> Edit | None:
    entry = term.entry
    rule = entry.group.rule
    if entry.form == "doing":
        fits = _does(caption, term)
    elif "alone" in entry.group.traits:
        fits = _has_subject(caption, term) and _is_alone(caption, term)
    elif rule:
        fits = _has_subject(caption, term) and _has_object(caption, term, rule["object"])
    else:
        return None
    if not fits:
        return None
    options = allowed(caption, entry.group, entry.form)
    done_to = caption.phrase_from(term.last + 1) if rule.get("object") else None
    if done_to is not None and caption.of(done_to.last + 1, "paths"):
        options = [text for text in options if text in caption.classes["moving"]]
    return _edit(caption, term, options, "relation")


def _does(caption: Caption, term: Term) -> bool:
    """Whether a person's doing ends a name, but for a skin tone or a direction."""
    before = [t for t in caption.ending(term.first - 1) if "person" in t.entry.group.traits]
    if not before or caption.opens(term.first):
        return False
    follower = caption.starting(term.last + 1)
    return caption.closes(term.last) or any(
        t.entry.group.name == "skin tone"
        or (t.entry.kind == "spatial" and "follows" not in t.entry.group.rule)
        for t in follower
    )


def _has_subject(caption: Caption, term: Term) -> bool:
    """Whether a living thing does it, and the form is a verb's."""
    i, form = term.first - 1, term.entry.form
    before = [] if caption.opens(term.first) else caption.ending(i)
    living = [t for t in before if "animate" in t.entry.group.traits]
    if form == "s":
        return any(t.entry.form == "one" for t in living) or caption.word(i) == "who"
    if form == "base":
        return any(t.entry.form == "many" for t in living)
    if living:
        return True
    earlier = any("animate" in t.entry.group.traits for t in caption.terms if t.last < i)
    if caption.of(i, "auxiliaries") or caption.word(i) in ("while", "and", "who"):
        return earlier
    transitive = "alone" not in term.entry.group.traits
    closed = caption.of(i, "determiners") or caption.of(i, "possessives")
    return transitive and earlier and not closed and not caption.may_precede(i)


def _is_alone(caption: Caption, term: Term) -> bool:
    if caption.closes(term.last):
        return True
    return caption.of(term.last + 1, "where") and caption.word(term.last + 2) != "one"


def _has_object(caption: Caption, term: Term, wanted: Iterable[str]) -> bool:
    found = caption.phrase_from(term.last + 1) if caption.joined[term.last] else None
    if found is None or not found.head.entry.has(wanted):
        return False
    if "thing" in wanted and found.head.entry.has(("place", "scenery")):
        return False
    if not (found.determined or found.head.entry.form == "many" or found.head.entry.has(("mass",))):
        return False
    after = found.last + 1
    if caption.closes(found.last):
        return True
    if (
        caption.word(after) == "to"
        or caption.starting(after)[:1]
        and any(t.entry.kind in ("color", "size") for t in caption.starting(after))
    ):  # "throws the ball to", "painting the ceiling white"
        return False
    return not (caption.of(after, "prepositions") and caption.of(after + 1, "possessives"))


def _place(caption: Caption, term: Term) -> Edit | None:
    group = term.entry.group
    before, rule = caption.word(term.first - 1), group.rule
    if before in rule.get("not_after", ()) and not caption.opens(term.first):
        return None
    if "after" in rule and (before not in rule["after"] or caption.opens(term.first)):
        return None
    if not _follows(caption, term, rule):
        return None
    options = allowed(caption, group, "")
    if _bears_nothing(caption, term):
        options = [text for text in options if not text.startswith(("on top", "under"))]
    return _edit(caption, term, options)


def _follows(caption: Caption, term: Term, rule: Mapping[str, Any]) -> bool:
    """Whether behind the term stands what its rule wants there."""
    wanted, i = rule.get("follows"), term.last + 1
    if wanted is None:
        return True
    if caption.closes(term.last) or caption.word(i) in rule.get("not", ()):
        return False
    if wanted == "word":
        return not caption.of(i, "closed")
    if wanted == "event":
        return not caption.of(i, "prepositions") and not caption.of(i, "auxiliaries")
    if wanted == "noun":
        if caption.word(i) in ("each", "one", "all", "which", "who", "what"):
            return False
        known = any(t.entry.noun or caption.is_modifier(t) for t in caption.starting(i))
        return known or caption.names[i] or any(
            caption.of(i, name) for name in ("determiners", "possessives", "pronouns")
        )  # fmt: skip
    found = caption.phrase_from(i)
    return found is not None and _is_thing(found, str(wanted))


def _is_thing(found: Phrase, wanted: str) -> bool:
    entry = found.head.entry
    if wanted != "thing":
        return wanted in entry.group.traits and (found.determined or entry.form == "many")
    scenery = entry.has(("place", "scenery", "outfit", "mass"))
    return entry.kind in ("object", "attribute") and not scenery and (
        found.determined or entry.form == "many"
    )  # fmt: skip


def _bears_nothing(caption: Caption, term: Term) -> bool:
    """Whether what follows is a person or a part of something: nothing is put on top of it."""
    found = caption.phrase_from(term.last + 1)
    return found is not None and found.head.entry.has(("person", "still"))


def _nothing(caption: Caption, term: Term) -> Edit | None:
    return None


_READERS = {
    "object": _object,
    "attribute": _quality,
    "size": _size,
    "color": _color,
    "number": _number,
    "relation": _relation,
    "spatial": _place,
    "order": _place,
    "fixed": _nothing,
}
