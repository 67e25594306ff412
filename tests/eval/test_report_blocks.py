"""Each kind of block has its place on the page, and its text stays text."""

import pytest

from clipkit.eval import report
from clipkit.eval.report_blocks import (
    Card,
    CardsBlock,
    Example,
    ExamplesBlock,
    FigureBlock,
    TableBlock,
)
from clipkit.eval.report_data import Value
from tests.eval.report_results import made_up, store

URI = "data:image/png;base64,AAAA"


def card(name):
    return Card([URI], f"key of {name}", [("caption", "<i>" + name)], True)


@pytest.mark.parametrize(
    "block, shown",
    [
        (FigureBlock("T", URI, "in <words>", "why"), [URI, 'alt="in &lt;words&gt;"', "why"]),
        (TableBlock("T", ["head"], [["<b>"], [Value("0.5000", "0.4 – 0.6")]]),
         [">head<", "<td>&lt;b&gt;</td>", ">0.5000<", ">0.4 – 0.6<"]),
        (CardsBlock("T", [card("one"), card("two")]),
         ["key of one", "&lt;i&gt;two", "card right", URI]),
        (ExamplesBlock("T", [Example(card("query"), [card("answer")])]),
         ['class="query"', "key of query", "&lt;i&gt;answer"]),
    ],
)  # fmt: skip
def test_a_block_is_drawn_by_its_layout(tmp_path, monkeypatch, block, shown):
    monkeypatch.setattr(report, "blocks_of", lambda *_: ([block], []))
    result = store(tmp_path, made_up({"m": 0.5}), "kind")
    page = report.report_page([result], command="c", date="d")
    own = page[page.index("<h4>T</h4>") : page.index("<details>")]
    assert all(words in own for words in shown), own
