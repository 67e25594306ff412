"""Where tables are printed: a terminal's own width, and room for all columns in a file or a log."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 160


def table_console() -> Console:
    """Standard output; where it is no terminal, as wide as COLUMNS says or wide enough."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDE
    return console
