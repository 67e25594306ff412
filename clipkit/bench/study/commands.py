"""The command lines of a study: placeholders filled in, each known by what it depends on.

A line is split as a shell would, and run without one. `{name}` stands for a placeholder; other
braces ({000..123}, {kind: gap}) stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipkit.bench.study.definition import Study
from clipkit.config.parts import suggest
from clipkit.errors import ConfigError

PROGRAMS = {"clipkit": "clipkit", "clipkit-data": "data_tools"}  # command -> module
_PLACEHOLDER = re.compile(r"\{([A-Za-z]\w*)\}")
_CONFIGS = (".yaml", ".yml", ".json")
_PLACES = ("out", "data", "here")  # where things lie changes no result


@dataclass(frozen=True)
class Places:
    """What placeholders stand for.

    Attributes:
        out: Folder of the study's runs, {out}.
        here: Folder of the study's file, {here}.
        data: Folder of the data, {data}; None where nobody named one.
    """

    out: Path
    here: Path
    data: Path | None = None

    def fill(self, text: str, values: Mapping[str, str]) -> str:
        """`text` with its placeholders filled in.

        Raises:
            ConfigError: An unknown placeholder, or {data} without a folder.
        """
        known = {"out": str(self.out), "here": str(self.here), **values}
        if self.data is not None:
            known["data"] = str(self.data)

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            if name == "data" and "data" not in known:
                raise ConfigError(f"'{text}': {{data}} is not known; give --data, or CLIPKIT_DATA")
            if name not in known:
                raise ConfigError(
                    f"'{text}': unknown placeholder {{{name}}}{suggest(name, list(known))}"
                )
            return known[name]

        return _PLACEHOLDER.sub(value, text)


@dataclass(frozen=True)
class Command:
    """One command line, ready to run.

    Attributes:
        words: Of the line, with its values.
        portable: The same with the places left as placeholders.
        out: Folder of the study's runs.
    """

    words: tuple[str, ...]
    portable: tuple[str, ...]
    out: Path

    @property
    def argv(self) -> list[str]:
        """For subprocess: this Python runs the module."""
        return [sys.executable, "-m", PROGRAMS[self.words[0]], *self.words[1:]]

    @property
    def shown(self) -> str:
        """For readers, as a line to copy."""
        return shlex.join(self.words)

    @cached_property
    def mark(self) -> str:
        """Hash of the line and of the configs it names (what earlier commands wrote aside)."""
        texts = []
        for word in self.words[1:]:
            path = Path(word.rpartition("=")[2])
            inside = self.out.absolute() in path.absolute().parents
            if path.suffix in _CONFIGS and not inside and path.is_file():
                texts.append(hashlib.sha256(path.read_bytes()).hexdigest())
        whole = json.dumps([self.portable, texts])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Chain:
    """Commands that follow each other: the setup, or one row at one seed.

    Attributes:
        name: For messages.
        commands: In order.
    """

    name: str
    commands: tuple[Command, ...]


def values_of(study: Study, row: str, case: str, seed: int) -> dict[str, str]:
    """Placeholder -> value of one run."""
    return {**_case_values(study, case), "row": row, "seed": str(seed)}


def _case_values(study: Study, case: str) -> dict[str, str]:
    return {**study.cases[case], **({"case": case} if case else {})}


def setup_chain(study: Study, places: Places) -> Chain:
    """The commands run once, those of all cases."""
    found = (
        command
        for case in study.cases
        for command in _commands(study.setup, places, _case_values(study, case))
    )
    return Chain("setup", _once(found))


def row_chains(
    study: Study, places: Places, rows: Iterable[str], seeds: Sequence[int]
) -> list[Chain]:
    """Every row of every case at every seed, seed after seed."""
    return [
        Chain(
            " ".join(["row", row, *([case] if case else []), "seed", str(seed)]),
            _once(_commands(study.rows[row], places, values_of(study, row, case, seed))),
        )
        for seed in seeds
        for case in study.cases
        for row in rows
    ]


def _once(commands: Iterable[Command]) -> tuple[Command, ...]:
    return tuple(dict.fromkeys(commands))


def _commands(lines: Sequence[str], places: Places, values: Mapping[str, str]) -> Iterable[Command]:
    fixed = {name: f"{{{name}}}" for name in _PLACES}
    for line in lines:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ConfigError(f"'{line}': cannot be read as a command: {error}") from None
        if not words or words[0] not in PROGRAMS:
            raise ConfigError(f"'{line}': a study runs {' and '.join(PROGRAMS)} commands only")
        real = tuple(places.fill(word, values) for word in words)
        yield Command(real, tuple(places.fill(w, {**values, **fixed}) for w in words), places.out)
