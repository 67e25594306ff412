"""The page by itself: whole, self-contained, hostile text stays text, the same each time."""

import base64
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from PIL import Image

from clipkit.eval.base import EvalResult
from clipkit.eval.report import report_page, write_report
from tests.eval.report_results import made_gap, made_up, store, zero_shot
from tests.fixtures_encoder import write_color_set

HOSTILE = (
    '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }} https://evil.example/ '
    "\x00\u202e"
)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, addresses, and text of a page; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.ids, self.styles, self.text = [], [], [], [], []
        self.open = []
        self.feed(html)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name in ("alt", "title", "src") or "//" not in (value or ""), (tag, name, value)
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                self.addresses.append((tag, value))
            if name == "id":
                self.ids.append(value)
            if name == "style":
                self.styles.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open[-1:] == ["style"] else self.text).append(data)


def page_of(*results, **options):
    html = report_page(results, command="clipkit eval report x", date="2026-01-02", **options)
    return html, Page(html)


def check_self_contained(html, page):
    for tag, address in page.addresses:
        if tag == "a":
            assert address.startswith("#") and address[1:] in page.ids, address
            continue
        assert tag == "img"
        kind, content = re.fullmatch(r"data:image/(jpeg|svg\+xml);base64,(.*)", address).groups()
        content = base64.b64decode(content, validate=True)
        if kind == "jpeg":
            Image.open(io.BytesIO(content)).load()
        else:
            ElementTree.fromstring(content)
    assert not re.search(r"url\(|@import|expression\(", " ".join(page.styles))
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert len(set(page.ids)) == len(page.ids)
    assert "default-src 'none'" in html and "49" not in page.text
    html.encode("utf-8")


def test_a_page_of_three_tasks_stands_alone_and_is_small(tmp_path):
    two = [zero_shot(tmp_path, "a", 1), zero_shot(tmp_path, "b", 2)]
    gap = store(tmp_path / "results", made_gap(), "modality_gap", "b", 2)
    html, page = page_of(*two, gap)
    check_self_contained(html, page)
    kinds = [a.split(";")[0] for t, a in page.addresses if t == "img"]
    assert kinds.count("data:image/jpeg") == 16 and kinds.count("data:image/svg+xml") == 4
    assert len(html) < 2_000_000
    text = " ".join(page.text)
    for expected in ("clipkit eval report x", "2026-01-02", "aaaaaaaaaaaa", "torch 2.15", "runs/a",
                     "clipkit eval compare", "overlap", "Hardest samples", "ViT-tiny"):  # fmt: skip
        assert expected in text, expected


def test_hostile_text_stays_text_everywhere(tmp_path):
    root = write_color_set(tmp_path / "colors", [0, 2])
    names = [HOSTILE, HOSTILE + "2"]
    record = {"id": HOSTILE, "class": HOSTILE, "predicted": names[1], "margin": 0.1, "tags": names,
              "caption": HOSTILE, "values": {"acc1": 1.0}}  # fmt: skip
    details = {
        "matrix": [[1, 0], [1, 0]],
        "classes": names,
        "confusions": [[HOSTILE, names[1], 3]],
        "per_class": [{"class": n, "n": 1, "recall": 0.0} for n in names],
        "per_tag": [{"tag": HOSTILE, HOSTILE: 0.5}],
        "reliability": {HOSTILE: [{"confidence": 0.1, "accuracy": 0.1, "n": 1}]},
        "histograms": {HOSTILE: {"edges": [0, 1], "in": [1], "out": [1]}},
        "examples": [{"id": HOSTILE, "targets": [{"caption": HOSTILE, "id": HOSTILE}]}],
    }
    where = {"data": str(root), "split": "test", HOSTILE: HOSTILE}
    made = EvalResult.from_records(
        "t", "d", [record], metrics={HOSTILE: 0.5}, details=details, provenance=where
    )
    results = [
        store(tmp_path / str(step), made, "k", "m", step, versions={HOSTILE: HOSTILE})
        for step in (1, 2)
    ]
    for result in results:
        facts = {
            "dataset": HOSTILE,
            "kind": HOSTILE,
            "model_name": HOSTILE,
            "weights_hash": HOSTILE,
        }
        result.data.update(facts)
    html = report_page(results, command=HOSTILE, date=HOSTILE)
    page = Page(html)
    check_self_contained(html, page)
    assert html.count("&lt;script&gt;") > 30 and "{{ 7*7 }}" in html
    assert not re.search("[\x00\u202e\ud800]", html)
    assert "unknown shape" not in html and "Trends over steps" in html
    out = write_report(results, tmp_path / "page.html", command=HOSTILE, date=HOSTILE)
    assert out.read_text(encoding="utf-8") == html


def test_a_data_address_in_the_data_is_no_picture(tmp_path):
    names = ("data:text/html,<b>", "javascript:alert(1)")
    records = [{"id": name, "margin": 0.0, "values": {"acc1": 1.0}} for name in names]
    where = {"data": str(tmp_path), "split": "test"}
    made = EvalResult.from_records("t", "d", records, provenance=where)
    html, page = page_of(store(tmp_path / "r", made, "k"))
    check_self_contained(html, page)
    assert "img" not in page.tags


def test_sections_come_and_go(tmp_path):
    html, page = page_of(store(tmp_path, made_up({"m": 0.5}), "plain"))
    text = " ".join(page.text)
    assert "Metrics" in text
    for absent in ("Trends", "Confusion", "Hardest", "intervals", "clipkit eval compare", "twice"):
        assert absent not in text
    assert [a for t, a in page.addresses if t == "a"] == ["#summary", "#r0"]
    check_self_contained(html, page)


def test_two_steps_of_a_run_make_a_trend_and_the_last_has_the_section(tmp_path):
    results = [
        store(tmp_path, made_up({"acc1": s / 10}), "zero_shot", f"r-step_{s}", s)
        for s in range(1, 7)
    ]
    html, page = page_of(*results)
    text = " ".join(page.text)
    assert "Trends over steps" in text and "5 older results stand in the trends" in text
    assert [a for t, a in page.addresses if t == "a"] == ["#summary", "#trends", "#r0"]
    assert text.count("0.6000") == 3 and "0.5000" not in text  # summary, headline, metrics
    check_self_contained(html, page)


def test_the_same_results_give_the_same_page_and_a_file_given_twice_stands_once(tmp_path):
    result = zero_shot(tmp_path)
    html, _ = page_of(result)
    assert page_of(result, result)[0] == html
    again = zero_shot(tmp_path / "again")
    assert "1 result came twice" in page_of(result, again)[0]


def test_without_thumbnails(tmp_path):
    html, _ = page_of(zero_shot(tmp_path), thumbnails=False)
    assert "image/jpeg" not in html and "Hardest samples" in html


def test_the_page_comes_whole_or_not_at_all(tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("the old page")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipkit.checkpoint.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report([], out, command="c", date="d")
    assert out.read_text() == "the old page"


FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_shows_every_picture(tmp_path):
    results = [zero_shot(tmp_path, "a", 1), zero_shot(tmp_path, "a", 2)]
    results.append(store(tmp_path / "results", made_gap(), "modality_gap"))
    html = report_page(results, command="c", date="d")
    # The page allows no script; the copy that is looked at may run this one.
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images];
      document.title = images.filter(i => i.complete && i.naturalWidth > 0).length + " of "
        + images.length + ", " + (document.documentElement.scrollWidth <= innerWidth);
    });</script></body>"""
    html = html.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    (tmp_path / "page.html").write_text(html.replace("</body>", probe), encoding="utf-8")
    command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command += ["--window-size=1200,900", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    count = html.count("<img ")
    assert count > 10 and f"<title>{count} of {count}, true</title>" in done.stdout
