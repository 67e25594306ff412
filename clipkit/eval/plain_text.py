"""Text from data sets (keys, captions, class names) made fit to be shown."""

from __future__ import annotations

import re
import unicodedata

# Control characters are commands to a terminal; with lone surrogates and non-characters they are
# forbidden in XML and UTF-8; marks of writing direction make a line read otherwise than it stands.
_UNFIT = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """One line for a page or a terminal: what neither may hold is U+FFFD, a break a space."""
    return _UNFIT.sub("\ufffd", re.sub("[\t\n]", " ", text))


def shortened(text: str, length: int) -> str:
    """At most `length` characters on one line; a cut is shown by an ellipsis."""
    line = " ".join(text[: 4 * length + 100].split())
    if len(line) <= length:
        return line
    kept = line[: length - 1]
    while kept and unicodedata.combining(line[len(kept)]):  # keep a letter with its accents
        kept = kept[:-1]
    return f"{kept}…"


def number(value: float) -> str:
    """Four decimals for what lies near one, four significant digits for the rest."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{value:.0f}" if abs(value) < 1e15 else f"{value:.3e}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10 or value == 0 else f"{value:.4g}"
