"""Options that the tools share, for signatures of typer commands."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipkit.errors import ConfigError


def finite(parameter: typer.CallbackParam, value: float | None) -> float | None:
    """Callback of an option that must be a number proper.

    Raises:
        ConfigError: It is nan or inf.
    """
    if value is not None and not math.isfinite(value):
        raise ConfigError(f"--{(parameter.name or '').replace('_', '-')} {value}: give a number")
    return value


ShardsArgument = Annotated[
    list[str],
    typer.Argument(help="Brace patterns, globs, files or folders of tars, in quotes."),
]
OutArgument = Annotated[Path, typer.Argument(help="Folder of the results.")]
EngineOption = Annotated[
    Literal["process", "ray", "spark"],
    typer.Option(
        "--engine",
        help="process: this machine. ray and spark (extras of clipkit): this machine, or the "
        "cluster that RAY_ADDRESS or SPARK_MASTER names.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Shards at once; default: one for each CPU."),
]
RetriesOption = Annotated[
    int, typer.Option("--retries", min=0, help="Further tries for a shard that failed.")
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first so many shards.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and touch nothing.")
]
RunOptions = dict[str, Any]  # keyword arguments of `map_shards`
_RUN: dict[str, tuple[Any, Any]] = {  # name -> type, default
    "engine": (EngineOption, "process"),
    "workers": (WorkersOption, None),
    "retries": (RetriesOption, 2),
    "limit": (LimitOption, None),
    "dry_run": (DryRunOption, False),
}


def with_run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `map_shards` in place of its last parameter, `run`."""
    return with_options("run", _RUN, command)


def with_options(
    last: str, options: dict[str, tuple[Any, Any]], command: Callable[..., None]
) -> Callable[..., None]:
    """Give a command options, name -> (type, default), in place of its parameter `last`."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        command(**{last: {name: given.pop(name) for name in options}}, **given)

    signature = inspect.signature(command, eval_str=True)
    own = [value for name, value in signature.parameters.items() if name != last]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in options.items()
    ]
    vars(wrapped)["__signature__"] = signature.replace(parameters=[*own, *shared])
    wrapped.__annotations__ = {value.name: value.annotation for value in [*own, *shared]}
    return wrapped
