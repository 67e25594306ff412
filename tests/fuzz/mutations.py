"""Damage: bytes cut, flipped, repeated and moved; values of JSON exchanged for odd ones."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 1e308, 1e-320,
     float("nan"), float("inf")]
)  # fmt: skip
ODD_TEXTS = st.sampled_from(
    ["", "\0", "/", "..", "../../x", "/etc/passwd", "~", "a\nb", "\ud800", "%s", "{}", "$(touch x)",
     "pipe:touch x", "x" * 5000, "\u202e", "nan", "-0", "[", "{", "*", "?", "con:", "file:///etc",
     "\x1b]0;x\x07", "[/x]", "<script>alert(1)</script>"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | ODD_NUMBERS | ODD_TEXTS | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(ODD_TEXTS | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, most: int = 4) -> bytes:
    """`whole` after a few edits of its bytes."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, most))):
        size = len(data)
        place = draw(st.integers(0, max(size - 1, 0)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "repeat", "swap"]))
        other = draw(st.integers(0, max(size - 1, 0)))
        low, high = min(place, other), max(place, other)
        if kind == "flip" and size:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and size:
            data[place : place + 8] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[low:high]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=600))
        elif kind == "repeat":
            data[place:place] = data[low:high]
        elif kind == "swap":
            half = (low + high) // 2
            data[low:high] = data[half:high] + data[low:half]
    return bytes(data)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values below a JSON value."""
    found = [path] if path else []
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, whole: Any, most: int = 3) -> Any:
    """A JSON value with some of its values exchanged, moved or gone."""
    tree = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, most))):
        there = places(tree)
        if not there:
            return draw(VALUES)
        path = draw(st.sampled_from(there))
        node = tree
        for key in path[:-1]:
            node = node[key]
        kind = draw(st.sampled_from(["value", "value", "drop", "copy", "add"]))
        if kind == "value":
            node[path[-1]] = draw(VALUES)
        elif kind == "drop":
            del node[path[-1]]
        elif kind == "copy":
            source: Any = tree
            for key in draw(st.sampled_from(there)):
                try:
                    source = source[key]
                except (KeyError, IndexError, TypeError):
                    break
            node[path[-1]] = copy.deepcopy(source)
        elif isinstance(node, dict):
            node[draw(ODD_TEXTS | st.text(max_size=6))] = draw(VALUES)
    return tree


def json_of(tree: Any) -> bytes:
    """JSON of anything `changed` gives."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


@st.composite
def changed_json(draw: st.DrawFn, whole: Any) -> bytes:
    """A JSON file: values changed, or bytes."""
    if draw(st.booleans()):
        return json_of(draw(changed(whole)))
    return draw(damaged(json_of(whole)))
