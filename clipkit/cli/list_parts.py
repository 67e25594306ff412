"""`clipkit list losses|addons|evals`: what a config may name as a kind."""

from __future__ import annotations

from typing import Annotated

import typer

from clipkit.config.parts import list_kinds, read_part, suggest
from clipkit.errors import ConfigError

_ROOMS = {"losses": "losses", "addons": "addons", "evals": "eval"}
_COMMON = {
    "losses": "kind, weight (1.0)",
    "addons": "kind",
    "evals": "kind, data (a name of data.eval), name (that of the data)",
}


def list_parts(what: Annotated[str, typer.Argument(help="losses, addons or evals")]) -> None:
    """Print kinds with their arguments, defaults and what they do."""
    from rich.console import Console
    from rich.text import Text

    if what not in _ROOMS:
        raise ConfigError(f"list: '{what}' is nothing to list{suggest(what, list(_ROOMS))}")
    console = Console()
    for kind in list_kinds(_ROOMS[what]):
        info = read_part(_ROOMS[what], kind)
        console.print(Text.assemble((kind, "bold"), f"  {info.doc}"))
        for p in info.parameters:
            default = "required" if p.required else f"= {p.default!r}"
            line = f"    {p.name}: {p.type_text} {default}  "
            console.print(Text.assemble(line, (p.doc, "dim")))
    console.print(Text(f"every entry also takes: {_COMMON[what]}", style="dim"))
