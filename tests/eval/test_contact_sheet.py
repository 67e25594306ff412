"""The page of a search: self-contained, and whatever a caption holds stays text."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser

from PIL import Image

from clipkit.eval.contact_sheet import contact_sheet, pictures_of
from clipkit.eval.embedding_search import Hit
from clipkit.eval.plain_text import printable
from tests.fixtures_shards import image_bytes, write_shards, write_tar

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> &lt; \u202e </figure> \x1b[31m'


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def hit(rank=1, **changes) -> Hit:
    return Hit(**{"rank": rank, "score": 0.5, "key": "k", "caption": "c", "shard": "s", "sample": 0}
               | changes)  # fmt: skip


def test_hostile_text_stays_text():
    found = hit(key=HOSTILE, caption=HOSTILE, shard=HOSTILE)
    pictures = [Image.new("RGB", (9, 9)), HOSTILE]
    html = contact_sheet(HOSTILE, [found, found], pictures, note=HOSTILE)
    assert "\u202e" not in html and "\x1b" not in html
    page = Page(html)
    assert not page.all("script") and len(page.all("figure")) == 2
    (image,) = page.all("img")
    assert set(image) == {"class", "alt", "src"} and image["alt"] == printable(HOSTILE)
    # title, heading and note; key, caption and shard of both; why one has no image
    assert page.text.count("<script>alert(1)</script>") == 3 + 2 * 3 + 1
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "p", "main", "figure",
               "figcaption", "b", "small", "img", "div"}  # fmt: skip
    assert {tag for tag, _ in page.tags} == allowed
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_fetched_and_thumbnails_are_small():
    wide = Image.new("RGB", (2000, 500), (250, 0, 0))
    page = Page(contact_sheet("q", [hit(1), hit(2)], [wide, wide], query=wide))
    assert "default-src 'none'" in next(m["content"] for m in page.all("meta") if "content" in m)
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 3 and not page.all("link")
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        assert small.size == (224, 56) and small.getpixel((9, 9))[0] > 240
    assert wide.size == (2000, 500)


def test_small_pictures_are_drawn_larger_pixel_by_pixel():
    sizes = [(32, 32), (112, 60), (113, 60), (300, 20)]
    html = contact_sheet("q", [hit()] * 4, [Image.new("RGB", size) for size in sizes])
    shown = [image.get("class") for image in Page(html).all("img")]
    assert shown == ["small", "small", None, None]
    (rule,) = (line for line in html.splitlines() if line.startswith(".small"))
    assert "width: 224px" in rule and "image-rendering: pixelated" in rule


def test_order_numbers_and_long_captions():
    hits = [hit(1, score=0.98765, caption="x" * 5000), hit(2, score=-0.25, caption="second")]
    text = Page(contact_sheet("a red circle", hits, ["none", "none"])).text
    assert "1. 0.9877" in text and "2. -0.2500" in text and text.index("1. ") < text.index("second")
    assert "x" * 499 + "…" in text and "x" * 500 not in text and "a red circle" in text


def test_a_search_does_not_wait_for_matplotlib():
    code = "import sys, clipkit.eval.contact_sheet; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_come_from_the_shards_or_say_why_not(tmp_path):
    (shard,) = write_shards(tmp_path, [3], bad=(1,))
    color = (10, 200, 30)
    write_tar(tmp_path / "c.tar", [("x.png", image_bytes(color))])
    found = pictures_of(
        [
            hit(shard=shard, key="000000", sample=0),
            hit(shard=shard, key="000001", sample=1),
            hit(shard=shard, key="000000", sample=2),
            hit(shard=shard, key="000009", sample=9),
            hit(shard=str(tmp_path / "gone.tar"), key="x"),
            hit(shard=str(tmp_path / "c.tar"), key="x"),
        ]
    )
    assert isinstance(found[0], Image.Image)
    assert found[1:5] == [
        "its image cannot be read",
        "its shard has changed",
        "its shard has changed",
        "its shard cannot be read",
    ]
    assert isinstance(found[5], Image.Image) and found[5].getpixel((0, 0)) == color
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".tar", ".tar"]  # nothing is written
