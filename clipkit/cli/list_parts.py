"""`clipkit list losses|addons|evals`: what a config may name as a kind."""

from __future__ import annotations

from typing import Annotated

import typer

from clipkit.config.parts import list_kinds, read_part, suggest
from clipkit.errors import ConfigError

_ROOMS = {"losses": "losses", "addons": "addons", "evals": "eval"}


def list_parts(what: Annotated[str, typer.Argument(help="losses, addons or evals")]) -> None:
    """Print kinds with their arguments, defaults and what they do."""
    from rich.console import Console

    if what not in _ROOMS:
        raise ConfigError(f"list: '{what}' is no room{suggest(what, list(_ROOMS))}")
    console = Console()
    for kind in list_kinds(_ROOMS[what]):
        info = read_part(_ROOMS[what], kind)
        console.print(f"[bold]{kind}[/bold]  {info.doc}", highlight=False)
        for p in info.parameters:
            default = "required" if p.required else f"= {p.default!r}"
            console.print(
                f"    {p.name}: {p.type_text} {default}  [dim]{p.doc}[/dim]", highlight=False
            )
