"""A study's YAML file: rows of command lines, and the metrics they are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from clipkit.config.load import read_yaml
from clipkit.config.parts import suggest
from clipkit.config.section import Section
from clipkit.errors import ConfigError

RESERVED = ("data", "out", "here", "row", "seed", "case")  # placeholders of every study
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _flat(value: Any) -> Any:
    """Lists in lists as one list, so that a YAML anchor can stand for several commands."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        return value
    return tuple(x for part in value for x in (_flat(part) if isinstance(part, list) else [part]))


def _cases(value: Any) -> Any:
    return {name: {} for name in value} if isinstance(value, list) else value


Commands = Annotated[tuple[str, ...], BeforeValidator(_flat)]
Variables = dict[Name, Annotated[str, BeforeValidator(str)]]


class Metric(Section):
    """One number of the stored results.

    Attributes:
        dataset, kind, metric: As the result names them.
        label: Heading of its table; "": made of those three.
        better: Which way is better.
        where: Field of the per-sample records -> value, or values, that count; of a list field one
            of them must stand in it.
        tag: The same as where: {tags: ...}.
    """

    dataset: str
    kind: str
    metric: str
    label: str = ""
    better: Literal["higher", "lower"] = "higher"
    where: dict[str, Annotated[tuple[str, ...], BeforeValidator(_flat)]] = {}
    tag: str | None = None

    @property
    def filters(self) -> dict[str, tuple[str, ...]]:
        """`where` and `tag` in one."""
        return {**self.where, **({"tags": (self.tag,)} if self.tag is not None else {})}

    @property
    def title(self) -> str:
        """The heading."""
        parts = [f"{k}={'|'.join(v)}" for k, v in self.filters.items()]
        return self.label or " ".join([self.dataset, self.kind, self.metric, *parts])


class Study(Section):
    """A whole study.

    Attributes:
        title, claim, notes: Text above the table.
        data: What the models were trained on, in words.
        seeds: Each row runs once a seed.
        cases: Further runs of everything, as {case}; each with values of its own placeholders.
        setup: Command lines run once (once a case where they hold {case}).
        rows: Name -> command lines, in order. A line that several rows share runs once.
        baseline: Row, or rows, that the others are compared with.
        metrics: What is tabulated.
        results: Folder or file of a row's results, with placeholders.
    """

    title: str
    data: str
    claim: str = ""
    notes: str = ""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    cases: Annotated[dict[Name, Variables], BeforeValidator(_cases)] = {"": {}}
    setup: Commands = ()
    rows: dict[Name, Commands]
    baseline: Annotated[tuple[str, ...], BeforeValidator(_flat)]
    metrics: tuple[Metric, ...] = Field(min_length=1)
    results: str

    @model_validator(mode="after")
    def _fits_together(self) -> Study:
        for name in self.baseline:
            if name not in self.rows:
                raise ValueError(f"baseline: '{name}' is no row{suggest(name, list(self.rows))}")
        for case, values in self.cases.items():
            for name in values:
                if name in RESERVED:
                    raise ValueError(f"cases.{case}.{name}: has a meaning of its own; rename it")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)}: give each once, and at least one")
        titles = [metric.title for metric in self.metrics]
        twice = next((t for t in titles if titles.count(t) > 1), None)
        if twice is not None:
            raise ValueError(f"metrics: two are called '{twice}'; give each a label")
        return self


def load_study(path: Path) -> Study:
    """Read and check a study.

    Raises:
        ConfigError: One line with the file, the key and the remedy.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a study is a mapping (title, data, rows, baseline, metrics)")
    # keys that begin with a dot hold what is anchored for use elsewhere
    tree = {k: v for k, v in tree.items() if not str(k).startswith(".")}
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        if first["type"] == "extra_forbidden":
            known = Metric.model_fields if "metrics" in first["loc"] else Study.model_fields
            what = f"unknown key{suggest(str(first['loc'][-1]), list(known))}"
        else:
            what = str(first.get("ctx", {}).get("error", first["msg"]))
        raise ConfigError(f"{path}: {f'{place}: ' if place else ''}{what}") from None
