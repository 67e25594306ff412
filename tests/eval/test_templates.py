"""What a page shows is escaped, printable and named."""

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from clipkit.eval.templates import template


def test_foreign_text_is_no_markup_and_a_missing_name_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.html.j2"
    page.write_text("<p>{{ caption }}</p>\n")
    shown = template(page).render(caption="<script>\x1b[31m\u202e")
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "\x1b" not in shown and "\u202e" not in shown
    with pytest.raises(UndefinedError):
        template(page).render()
