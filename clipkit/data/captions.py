"""A sample's captions, and the one that is drawn.

A caption key is a member extension ("txt", "1.txt") or "json.<field>": a string or list of strings
in the sample's json member, dots descending. One that is empty, no UTF-8 or too long is passed over
while the sample has another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clipkit.data.bad_samples import BadSample
from clipkit.errors import ConfigError

Rule = Literal["first", "random", "weighted"]
_MAX_CAPTION = 65_536  # bytes; the tokenizer cuts far earlier
_JSON = "json."


@dataclass(frozen=True)
class CaptionRule:
    """Which caption of a sample is drawn.

    Attributes:
        keys: Caption keys, in order of preference.
        rule: first: the first caption of the first key that has one. random: each caption of the
            sample alike. weighted: a key by `weights` among those that have one, then each of its
            captions alike.
        weights: weighted: one per key.
        lines: A member holds one caption a line.

    Raises:
        ConfigError: Keys or weights that mean nothing.
    """

    keys: tuple[str, ...] = ("txt",)
    rule: Rule = "first"
    weights: tuple[float, ...] = ()
    lines: bool = False

    def __post_init__(self) -> None:
        for key in self.keys:
            if key == "json" or (key.startswith(_JSON) and not all(key.split("."))):
                raise ConfigError(
                    f"data.caption_keys: '{key}' names no field of the json member; "
                    f"write json.<field>, e.g. json.caption"
                )
        if self.rule == "weighted" and (
            len(self.weights) != len(self.keys) or min(self.weights, default=0) <= 0
        ):
            raise ConfigError(
                f"data.caption_weights: give one weight greater than 0 for each of "
                f"{', '.join(self.keys)}, got {list(self.weights)}"
            )

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of the members that hold captions."""
        return tuple(dict.fromkeys("json" if k.startswith(_JSON) else k for k in self.keys))

    @property
    def uses_json(self) -> bool:
        """Whether a key is a field of the json member."""
        return any(key.startswith(_JSON) for key in self.keys)

    def pick(
        self,
        members: dict[str, bytes],
        meta: dict[str, Any],
        rng: Callable[[], np.random.Generator],
    ) -> str:
        """The caption of this sample.

        Args:
            members: Extension -> bytes.
            meta: The json member, parsed.
            rng: Gives the generator; asked only where there is something to draw.

        Raises:
            BadSample: None can be used; with the cause of the first.
        """
        groups: list[list[str]] = []  # good captions of each key
        cause = ""
        for key in self.keys:
            good, problem = self._usable(key, members, meta)
            cause = cause or problem
            groups.append(good)
            if good and self.rule == "first":
                return good[0]
        total = sum(len(group) for group in groups)
        if not total:
            raise BadSample(cause or "no_caption")
        if total > 1 and self.rule == "weighted":
            groups = [self._weighted(groups, rng)]
        captions = [caption for group in groups for caption in group]
        return captions[int(rng().integers(len(captions))) if len(captions) > 1 else 0]

    def every(self, members: dict[str, bytes], meta: dict[str, Any]) -> list[str]:
        """All captions of this sample that can be used, whichever would be drawn."""
        return [text for key in self.keys for text in self._usable(key, members, meta)[0]]

    def _usable(
        self, key: str, members: dict[str, bytes], meta: dict[str, Any]
    ) -> tuple[list[str], str]:
        """Captions of one key, and the cause of the first that cannot be used."""
        good: list[str] = []
        cause = ""
        for candidate in self._candidates(key, members, meta):
            try:
                good.append(clean(candidate))
            except BadSample as error:
                cause = cause or error.cause
        return good, cause

    def _weighted(
        self, groups: list[list[str]], rng: Callable[[], np.random.Generator]
    ) -> list[str]:
        present = [(group, weight) for group, weight in zip(groups, self.weights) if group]
        ends = np.cumsum([weight for _, weight in present])
        drawn = int(np.searchsorted(ends, rng().random() * ends[-1], side="right"))
        return present[min(drawn, len(present) - 1)][0]

    def _candidates(
        self, key: str, members: dict[str, bytes], meta: dict[str, Any]
    ) -> list[bytes | str]:
        if key.startswith(_JSON):
            value: Any = meta
            for name in key.split(".")[1:]:
                value = value.get(name) if isinstance(value, dict) else None
            values = value if isinstance(value, list) else [value]
            return [v for v in values if isinstance(v, str)]
        data = members.get(key)
        if data is None:
            return []
        return list(data.split(b"\n")) if self.lines else [data]


def clean(candidate: bytes | str) -> str:
    """A caption as the tokenizer may have it, without space at its ends.

    Raises:
        BadSample: Empty, too long or no UTF-8.
    """
    try:
        data = candidate.encode("utf-8") if isinstance(candidate, str) else candidate
        if len(data) > _MAX_CAPTION:
            raise BadSample("caption_too_long", f"{len(data)} bytes")
        text = data.decode("utf-8").strip()
    except UnicodeError:  # also a lone surrogate, which JSON can spell and no tokenizer can read
        raise BadSample("caption_not_utf8") from None
    if not text:
        raise BadSample("empty_caption")
    return text
