"""A caption as the rules see it: words, terms of the lexicon, and what stands around them."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from clipkit.data.negatives.lexicon import Entry, lexicon

_WORD = re.compile(r"\w+(?:[-'’.]\w+)*")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")
_READ = 50  # words; a text encoder sees hardly more, and a change beyond would change nothing
_ADJECTIVE = ("ful", "ous", "less", "ish", "ed")


class Term(NamedTuple):
    """A phrase of the lexicon in a caption: its first and last word, and one of its meanings."""

    first: int
    last: int
    entry: Entry


class Phrase(NamedTuple):
    """A noun phrase: its first word (a determiner, if it has one), its last, and its noun."""

    first: int
    last: int
    head: Term
    determined: bool


class Caption:
    """Words and terms of a caption.

    Attributes:
        text: As given.
        words: In lower case; the first 50.
        starts, ends: Where each lies in `text`.
        terms: By first word; several where a phrase has several meanings.
        present: Concepts that any word may name, whether or not it is read so.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.lexicon = lexicon()
        self.classes = self.lexicon.classes
        found = list(itertools.islice(_WORD.finditer(text), _READ))
        self.starts = [match.start() for match in found]
        self.ends = [match.end() for match in found]
        self.words = [match.group().lower().replace("’", "'") for match in found]
        self.joined = [
            text[end:start].isspace() for end, start in zip(self.ends, self.starts[1:])
        ] + [False]
        self.names = self._names([match.group() for match in found])
        self.present: set[str] = set()
        self.terms: list[Term] = []
        self._ends_at: dict[int, list[Term]] = {}
        self._starts_at: dict[int, list[Term]] = {}
        self._find_terms()

    def __len__(self) -> int:
        return len(self.words)

    def _names(self, words: list[str]) -> list[bool]:
        """Which words are proper names, quoted, or tags: they are left alone."""
        text, starts = self.text, self.starts
        capital = [word[:1].isupper() for word in words]
        long = [word for word in words if len(word) > 3 and word.isalpha()]
        shouted = text.isupper()
        titled = not shouted and len(long) > 1 and all(word[:1].isupper() for word in long)
        names = []
        for i, (word, start) in enumerate(zip(words, starts)):
            opening = i == 0 or text[self.ends[i - 1] : start].strip()[-1:] in (".", "!", "?")
            name = capital[i] and not shouted and (titled or not opening)
            names.append(name or text[start - 1 : start] in ("#", "@", "_") or "_" in word)
        if '"' in text or "“" in text:
            for match in _QUOTED.finditer(text):
                for i, start in enumerate(starts):
                    names[i] = names[i] or match.start() <= start < match.end()
        return names

    def _find_terms(self) -> None:
        i, phrases, concepts = 0, self.lexicon.phrases, self.lexicon.concepts
        for word in self.words:
            if word in concepts:
                self.present |= concepts[word]
        while i < len(self.words):
            step = 1
            for words, entries in phrases.get(self.words[i], ()):
                last = i + len(words) - 1
                if last == i or (
                    words == tuple(self.words[i : last + 1]) and all(self.joined[i:last])
                ):
                    step = len(words)
                    if any(self.names[i : last + 1]):
                        break
                    for entry in self._of_one_number(entries, i, last):
                        term = Term(i, last, entry)
                        self.terms.append(term)
                        self._starts_at.setdefault(i, []).append(term)
                        self._ends_at.setdefault(last, []).append(term)
                        self.present |= entry.concepts
                    break
            i += step

    def _of_one_number(
        self, entries: tuple[Entry, ...], first: int, last: int
    ) -> tuple[Entry, ...]:
        """Of "sheep", one or many, what the word before it says; neither where it says nothing."""
        if len({entry.form for entry in entries if entry.noun}) < 2:
            return entries
        before, form = self.word(first - 1), ""
        if before in ("a", "an", "one") or len(self.words) == last - first + 1:
            form = "one"
        elif self.of(first - 1, "several") or self.of(first - 1, "counting"):
            form = "many"
        return tuple(entry for entry in entries if not entry.noun or entry.form == form)

    def of(self, i: int, name: str) -> bool:
        """Whether word `i` is of a closed class."""
        return 0 <= i < len(self.words) and self.words[i] in self.classes[name]

    def word(self, i: int) -> str:
        """Word `i`, "" beyond the ends."""
        return self.words[i] if 0 <= i < len(self.words) else ""

    def ending(self, i: int) -> list[Term]:
        """Terms whose last word is `i`."""
        return self._ends_at.get(i, [])

    def starting(self, i: int) -> list[Term]:
        """Terms whose first word is `i`."""
        return self._starts_at.get(i, [])

    def opens(self, i: int) -> bool:
        """Whether nothing stands directly before word `i`: the caption's start, or punctuation."""
        return i == 0 or not self.joined[i - 1]

    def closes(self, i: int) -> bool:
        """Whether nothing stands directly behind word `i`."""
        return i >= len(self.words) - 1 or not self.joined[i]

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Characters from word `first` to word `last`."""
        return self.starts[first], self.ends[last]

    def is_denied(self, i: int) -> bool:
        """Whether word `i` is part of what is said not to be there: "no cars"."""
        for k in range(i - 1, max(i - 5, -1), -1):
            if not self.joined[k]:
                return False
            if self.of(k, "negations"):
                return True
            if self.of(k, "closed") and not self.of(k, "determiners"):
                return False
        return False

    def is_ing(self, i: int) -> bool:
        """Whether word `i` looks like the -ing form of a verb."""
        word = self.word(i)
        return word.endswith("ing") and len(word) > 4 and not self.of(i, "things_in_ing")

    def is_participle(self, i: int) -> bool:
        """Whether word `i` looks like a participle behind its noun."""
        return (len(self.word(i)) > 4 and self.word(i).endswith("ed")) or self.of(i, "participles")

    def is_modifier(self, term: Term) -> bool:
        """Whether it may stand between a determiner and a noun."""
        entry = term.entry
        return entry.kind in ("color", "size", "number") or (
            entry.kind == "attribute" and entry.group.rule["place"] == "before"
        )

    def ends_noun(self, term: Term) -> bool:
        """Whether a noun is the last of its noun phrase: what follows is no further noun."""
        i = term.last + 1
        if self.closes(term.last) or self.of(i, "closed"):
            return True
        if self.word(i) in term.entry.group.words("before"):
            return True
        if self.names[i]:
            return False
        for follower in self.starting(i):
            entry = follower.entry
            if entry.kind in ("relation", "spatial", "order") and entry.form != "base":
                return True
            if entry.kind == "attribute" and entry.group.rule["place"] == "anywhere":
                return True
            if entry.kind == "color" and self.closes(follower.last):
                return True
            if entry.kind == "relation" and term.entry.form == "many":
                return True
        return self.is_ing(i) or self.is_participle(i)

    def begins_noun(self, term: Term) -> bool:
        """Whether a noun has no other noun before it that belongs to it."""
        i = term.first - 1
        if self.opens(term.first):
            return True
        if self.of(i, "auxiliaries") or self.names[i]:
            return False
        if self.of(i, "prepositions"):
            if term.entry.has(("outfit", "mass", "place")) or term.entry.form != "one":
                return True
            bare = self.words[i] in (
                "of",
                "with",
                "without",
                "as",
                "like",
            )  # else an idiom: "in bed"
            return bare and not term.entry.has(("scenery",))
        return self.of(i, "closed") or self.may_precede(i)

    def may_precede(self, i: int) -> bool:
        """Whether word `i` may stand before a noun without being one."""
        word = self.word(i)
        if any(self.is_modifier(t) or t.entry.kind == "relation" for t in self.ending(i)):
            return True
        return (
            self.of(i, "adjectives")
            or word.endswith(("'s", "s'"))
            or word.isdigit()
            or self.is_ing(i)
            or (len(word) > 4 and word.endswith(_ADJECTIVE))
        )

    def noun_at(self, i: int) -> Term | None:
        """A term of the lexicon that begins at word `i`, read as a noun."""
        return next((t for t in self.starting(i) if t.entry.noun), None)

    def is_head(self, term: Term) -> bool:
        """Whether a noun stands as a noun phrase's head."""
        return self.ends_noun(term) and self.begins_noun(term)

    def phrase_from(self, i: int) -> Phrase | None:
        """The noun phrase that begins at word `i`, if its noun is known."""
        first, determined = i, False
        if self.of(i, "determiners") or self.of(i, "possessives"):
            determined = True
            i += 1
        for _ in range(6):
            if i >= len(self.words) or self.names[i] or (i > first and not self.joined[i - 1]):
                return None
            noun = self.noun_at(i)
            if noun is not None and self.ends_noun(noun):
                number = any(t.entry.kind == "number" for t in self.starting(first))
                return Phrase(first, noun.last, noun, determined or number)
            modifier = next((t for t in self.starting(i) if self.is_modifier(t)), None)
            if modifier is not None:
                i = modifier.last + 1
            elif self.may_precede(i) and not self.is_ing(i):
                i += 1
            else:
                return None
        return None

    def phrase_to(self, last: int) -> Phrase | None:
        """The noun phrase that ends with word `last`: whole, from its determiner on."""
        for first in range(last, max(last - 6, -1), -1):
            if first < last and not self.joined[first]:
                return None
            starts = self.of(first, "determiners") or self.of(first, "possessives")
            if starts or self.opens(first):
                found = self.phrase_from(first)
                return found if found is not None and found.last == last else None
            number = any(t.entry.kind == "number" for t in self.starting(first))
            outside = self.of(first - 1, "closed") and not (
                self.of(first - 1, "determiners") or self.of(first - 1, "possessives")
            )
            if number and outside or (outside and self.noun_at(first) is not None):
                found = self.phrase_from(first)
                return found if found is not None and found.last == last else None
        return None

    def run_after(self, i: int) -> tuple[list[int], Term | None]:
        """Words of the noun phrase that goes on behind word `i`, and its noun if that is known."""
        words: list[int] = []
        head: Term | None = None
        k = i + 1
        while k < len(self.words) and self.joined[k - 1] and not self.of(k, "closed"):
            starting = self.starting(k)
            noun = next((t for t in starting if t.entry.noun), None)
            verb = any(t.entry.kind == "relation" for t in starting)
            other = any(t.entry.kind in ("spatial", "order") for t in starting)
            if words and noun is None and (verb or other):
                break
            if head is not None and (self.is_ing(k) or self.is_participle(k)):
                break
            if other and not words:
                break
            last = noun.last if noun else max((t.last for t in starting), default=k)
            words += range(k, last + 1)
            head = noun
            k = last + 1
        return words, head
