"""Phrases that no negative may name, from a file."""

from __future__ import annotations

import json
from pathlib import Path

from clipkit.errors import ConfigError


def read_phrases(path: str, setting: str) -> tuple[str, ...]:
    """One phrase a line, # before a comment; or of a .json file the list "held_out".

    Args:
        path: File.
        setting: Where the user named it, for messages.

    Raises:
        ConfigError: No such file, or no phrase in it: what is held out would be trained on.
    """
    where = f"{setting}: '{path}'"
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".json"):
            facts = json.loads(text)
            listed = facts.get("held_out") if isinstance(facts, dict) else None
        else:
            listed = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where} cannot be read: {reason}") from None
    strings = [p for p in listed if isinstance(p, str)] if isinstance(listed, list) else []
    phrases = tuple(p.strip() for p in strings if p.strip())
    if not phrases:
        raise ConfigError(f'{where} holds no phrase; give one a line, or a JSON list "held_out"')
    return phrases
