"""Secrets never reach a file: keys that sound like one and values that look like one are masked."""

from __future__ import annotations

import re
from typing import Any

MASK = "[redacted]"
_KEY = re.compile(
    r"(api[_-]?key|access[_-]?key|token(?!iz)|secret|passw(or)?d|credential|authorization)", re.I
)
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abpr]-[A-Za-z0-9-]{10,}"
    r"|AKIA[A-Z0-9]{12,}|(?<![0-9a-f/])[0-9a-f]{40}(?![0-9a-f]))"
)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]+):([^/@\s]+)@")
_ASSIGNMENT = re.compile(r"^(-*[\w.-]+)=(.+)$", re.S)


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of `value` with secrets masked, at any depth of dicts, lists and tuples."""
    if isinstance(value, dict):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(redact(v, key) for v in value)
    if not isinstance(value, str):
        return value
    if key and _KEY.search(key) and value:
        return MASK
    assignment = _ASSIGNMENT.match(value)
    if assignment and _KEY.search(assignment.group(1)):
        return f"{assignment.group(1)}={MASK}"
    value = _URL_PASSWORD.sub(rf"\1:{MASK}@", value)
    return _VALUE.sub(MASK, value)
