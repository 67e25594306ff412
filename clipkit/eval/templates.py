"""HTML templates whose every text is escaped and printable, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from clipkit.eval.plain_text import printable


def template(path: Path) -> Template:
    """A page's template; a name it uses and is not given is an error."""
    return Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda shown: printable(shown) if type(shown) is str else shown,
    ).get_template(path.name)
