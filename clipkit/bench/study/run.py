"""A study and where it lies: list, execute, tabulate."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from clipkit.bench.study.commands import Chain, Places, row_chains, setup_chain
from clipkit.bench.study.definition import Study
from clipkit.bench.study.execute import StudyFailed, forget, is_done, run_chains
from clipkit.bench.study.numbers import cells
from clipkit.bench.study.stored import Results
from clipkit.bench.study.table import facts_of, json_lines, markdown
from clipkit.checkpoint.files import write_text
from clipkit.config.parts import suggest
from clipkit.errors import ConfigError, DataError


def default_out(file: Path) -> Path:
    """Folder of the runs of a study where none is named."""
    return Path("runs/studies") / file.stem


class StudyRun:
    """One study with the folder of its runs.

    Args:
        study: What its file says.
        file: The file; its stem names the table.
        out: Folder of the runs.
        data: Folder of the data sets; None: no command may name {data}.
    """

    def __init__(self, study: Study, file: Path, out: Path, data: Path | None = None) -> None:
        self.study, self.file = study, file
        self.places = Places(out, file.parent, data)
        self.setup = setup_chain(study, self.places)

    @property
    def command(self) -> str:
        """The line that runs the study anywhere; {data} comes from --data or CLIPKIT_DATA."""
        return shlex.join(["clipkit", "bench", "study", str(self.file)])

    def chains(self, rows: Sequence[str] | None, seeds: Sequence[str] | None) -> list[Chain]:
        """The commands of the named rows and seeds; None: of all.

        Raises:
            ConfigError: A name that the study does not have.
        """
        known = {"rows": list(self.study.rows), "seeds": list(map(str, self.study.seeds))}
        for option, given in (("rows", rows), ("seeds", seeds)):
            for name in given or ():
                if name not in known[option]:
                    raise ConfigError(
                        f"--{option} {name}: the study has {', '.join(known[option])}"
                        f"{suggest(name, known[option])}"
                    )
        numbers = self.study.seeds if seeds is None else [int(s) for s in seeds]
        return row_chains(self.study, self.places, rows or known["rows"], numbers)

    def listing(self, chains: Sequence[Chain]) -> Iterator[str]:
        """One line a command: whether it is done, and the command."""
        seen = set()
        for chain in (self.setup, *chains):
            for command in chain.commands:
                if command.mark not in seen:
                    state = "done" if is_done(command) else "to do"
                    yield f"{state:5}  {chain.name}: {command.shown}"
                seen.add(command.mark)

    def execute(self, chains: Sequence[Chain], jobs: int, table: Path | None) -> None:
        """Run what is not done.

        Raises:
            StudyFailed: A command failed; what can be tabulated has been.
            ConfigError: OUT cannot be written.
        """
        try:
            forget(self.places, [self.setup, *self.chains(None, None)])
            run_chains(self.setup, chains, self.places, jobs)
        except OSError as error:
            raise ConfigError(f"{self.places.out}: cannot be written: {error}") from None
        except StudyFailed:
            with suppress(DataError):  # nothing to tabulate: what failed is said anyway
                self.tabulate(table)
            raise

    def tabulate(self, table: Path | None = None) -> str:
        """Write <study>.md and .jsonl from all results in the folder; gives the markdown.

        Raises:
            DataError: There are no results yet, or they do not fit together.
        """
        found = cells(self.study, Results(self.study, self.places))
        if not found:
            raise DataError(f"{self.places.out}: holds no results of the study yet; run it first")
        facts = facts_of([self.setup, *self.chains(None, None)])
        page = markdown(self.study, self.command, found, facts)
        lines = json_lines(self.file.stem, found, facts)
        for folder in (self.places.out, *([table] if table else [])):
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{self.file.stem}.md", page)
            write_text(folder / f"{self.file.stem}.jsonl", lines)
        return page
