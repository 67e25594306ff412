"""Secrets never reach a file: what sounds like one, looks like one, or is one of the environment.

Masked are values of keys such as `api_key`, strings such as `hf_...`, credentials of URLs, and the
value of every environment variable whose name is such a key, wherever it stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

MASK = "[redacted]"
_KEY = re.compile(
    r"(api[_-]?key|access[_-]?key|private[_-]?key|account[_-]?key|storage[_-]?key|secret|passw(or)?d"
    r"|passphrase|credential|authorization|connection[_-]?string|cookie|(^|[_.-])(pwd|auth|sas)$"
    r"|token(?!iz|_cache|s\b|s_))",
    re.I,
)
_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|xox[abpr]-[A-Za-z0-9-]{10,}|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{30,}"
    r"|wandb_v\d_\w{16,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|(?<![0-9a-f/])[0-9a-f]{40}(?![0-9a-f]))"
)
_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|\Z)", re.S)
_HEADER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.I)
_URL_USER = re.compile(r"(?<=://)([^/@\s:]*)(?::([^/\s]*))?@")
_OVERRIDE = re.compile(r"^([\w.-]+)=(.+)$", re.S)
_NAME = re.compile(r"(?<![\w.-])([\w.-]+)(?:=|:\s+|\":\s*\"|':\s*')")
_WORD = re.compile(r"[^\s&;'\"]*")
_SIGNATURES = ("sig", "signature", "x-amz-signature", "x-goog-signature")
_OPTION = re.compile(r"^--?[\w.-]+$")
_PLAIN_USERS = ("", "git", "user", "anonymous", "root")
_PLACES = ("_PATH", "_FILE", "_DIR", "_URL")  # where a secret lies, not the secret
_SHORTEST = 8  # a shorter value of the environment would be found in innocent words


def redact(value: Any, key: str = "") -> Any:
    """Return a copy of `value` with secrets masked, at any depth of dicts, lists and tuples."""
    return _redact(value, key, _environment())


def _redact(value: Any, key: str, known: list[str]) -> Any:
    if isinstance(value, dict):
        return {_text(k, known) if isinstance(k, str) else k: _redact(v, str(k), known)
                for k, v in value.items()}  # fmt: skip
    if isinstance(value, (list, tuple)):
        return type(value)(_items(value, key, known))
    if not isinstance(value, str):
        return value
    return MASK if key and value and _KEY.search(key) else _text(value, known)


def _items(values: Iterable[Any], key: str, known: list[str]) -> Iterable[Any]:
    """`--api-key VALUE` is two words of a command line."""
    option = ""
    for value in values:
        yield _redact(value, option or key, known)
        option = value if isinstance(value, str) and _OPTION.match(value) else ""


def _text(value: str, known: list[str]) -> str:
    for secret in known:
        value = value.replace(secret, MASK)
    override = _OVERRIDE.match(value)
    if override and _KEY.search(override.group(1)):
        return f"{override.group(1)}={MASK}"
    value = _BLOCK.sub(MASK, value)
    value = _URL_USER.sub(_user, value)
    value = _HEADER.sub(rf"\1 {MASK}", value)
    value = _assignments(value)
    return _VALUE.sub(MASK, value)


def _user(match: re.Match[str]) -> str:
    """A name stays where there is a password; alone, it may be a token."""
    name, password = match.groups()
    if password is None:
        return match.group() if name in _PLAIN_USERS or len(name) < _SHORTEST else f"{MASK}@"
    return f"{name}:{MASK}@"


def _assignments(value: str) -> str:
    """`name=secret` and the like anywhere in a text, behind other assignments too."""
    pieces, done = [], 0
    for match in _NAME.finditer(value):
        name = match.group(1)
        if match.start() >= done and (_KEY.search(name) or name.lower() in _SIGNATURES):
            pieces += [value[done : match.end()], MASK]
            found = _WORD.match(value, match.end())
            done = found.end() if found else match.end()
    return "".join([*pieces, value[done:]])


def _environment() -> list[str]:
    """Values of the environment's secrets, long ones first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and _KEY.search(name)
        and not name.endswith(_PLACES)
        and name != "PWD"  # the folder one is in, and no password; so is SAVED_PWD and the like
        and not (value.startswith("/") and os.path.isdir(value))
    }
    return sorted(values, key=len, reverse=True)
