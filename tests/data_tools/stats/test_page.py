"""The page shows what the data says as text, whatever it says."""

import re
from pathlib import Path

from data_tools.stats.aggregate import summed_up
from data_tools.stats.page import Shards, _number, _share, page, pictures
from data_tools.stats.tables import write_shard_table
from data_tools.tables import table_path
from tests.data_tools.stats.shards import write_zoo
from tests.fixtures_shards import image_bytes, write_tar


def page_of(root: Path, shard: str, **options) -> str:
    """The page of one shard, whose name in tables is its base name."""
    name = Path(shard).name
    write_shard_table(shard, root / "out", str(Path(shard).parent), False)
    tables = [table_path(root / "out" / "tables", name)]
    stats = summed_up(tables, root / "spill", show=24, seed=0)
    options = {"damaged": [], "failed": [], **options}
    return page(stats, Shards({name: shard}, **options), "clipkit-data stats", False)


def test_facts_stand_on_the_page(tmp_path: Path) -> None:
    shard = write_zoo(tmp_path / "d")[0]
    html = page_of(tmp_path, shard)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html[html.index("<body>") :]))
    for words in ("samples 9", "usable 44.4 % 5 have an error", "unreadable_image", "red apple"):
        assert words in text
    assert html.count("data:image/jpeg;base64,") == 6  # each sample whose image can be shown
    assert html.count("data:image/svg+xml;base64,") == 3
    assert html == page_of(tmp_path, shard)


def test_hostile_text_is_no_markup(tmp_path: Path) -> None:
    evil = '</style></bdi><script>alert(1)</script><img src="http://x/y">{{ 7 * 7 }}'
    key = '"><script>alert(2)<'
    members = [(f"{key}.png", image_bytes()), (f"{key}.txt", evil.encode())]
    members += [("b.png", image_bytes()), ("b.txt", b"\x1b[31m \xe2\x80\xae turned \0")]
    shard = str(write_tar(tmp_path / "d" / "<b>.tar", members))
    bad = [("<i>.tar", "<script>why</script>")]
    html = page_of(tmp_path, shard, damaged=bad, failed=bad)
    assert "<script" not in html and "<i>" not in html and 'src="http' not in html
    assert html.count("<img") == html.count('<img src="data:') + html.count(
        '<img class=small src="data:'
    )
    assert "&lt;script&gt;why" in html and "{{ 7 * 7 }}" in html
    assert "\x1b" not in html and "\u202e" not in html and "\0" not in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_samples_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    shard = str(write_tar(tmp_path / "0.tar", [("a.png", image_bytes()), ("a.txt", b"x")]))
    line = {"shard": "0.tar", "row": 0, "key": "a", "caption": None, "width": 8, "height": 8}
    absent = {"shard": "gone", **{k: v for k, v in line.items() if k != "shard"}}
    paths = {"0.tar": shard, "gone": str(tmp_path / "gone.tar")}
    found = pictures([line, line | {"row": 5}, absent, line | {"width": None}], paths)
    assert [bool(p.uri) for p in found] == [True, False, False, True]
    assert [p.size for p in found] == ["8 × 8"] * 3 + [""] and found[0].small


def test_shares_and_numbers() -> None:
    assert [_share(*p) for p in ((0, 0), (0, 9), (9, 9), (1, 8))] == ["–", "0 %", "100 %", "12.5 %"]
    assert _share(1, 10_000) == "< 0.1 %" and _share(9_999, 10_000) == "> 99.9 %"
    assert [_number(v) for v in (2.0, 0.123, 12_345.6)] == ["2", "0.12", "12,346"]
