"""What a search found, as one HTML file: thumbnails inside, nothing fetched, all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from html import escape

from PIL import Image

from clipkit.data.bad_samples import BadSample
from clipkit.data.shard_images import read_image
from clipkit.data.tar_index import TarIndex, load_index
from clipkit.errors import DataError
from clipkit.eval.embedding_search import Hit
from clipkit.eval.plain_text import printable, shortened
from clipkit.eval.thumbnails import thumbnail

_SIDE = 224  # pixels, of a thumbnail
_CAPTION = 500  # characters shown
# no script, nothing fetched: whatever a caption holds stays text
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fafafa }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1rem }
figure { margin: 0; padding: .7rem; background: #fff; border: 1px solid #ddd; border-radius: 6px }
img { max-width: 100%; display: block; margin: 0 auto .5rem }
.small { width: 224px; height: 224px; object-fit: contain; image-rendering: pixelated }
.none { padding: 3rem 1rem; text-align: center; color: #777; background: #eee }
figcaption { overflow-wrap: anywhere }
small { color: #666; display: block; overflow-wrap: anywhere }
"""


def contact_sheet(
    title: str,
    hits: Sequence[Hit],
    pictures: Sequence[Image.Image | str],
    query: Image.Image | None = None,
    note: str = "",
) -> str:
    """A page of hits in order.

    Args:
        title: The query.
        hits: What was found.
        pictures: Image of each hit, or why there is none.
        query: Shown on top where the query is an image.
        note: A line below the title.
    """
    figures = "\n".join(_figure(hit, picture) for hit, picture in zip(hits, pictures))
    head = _image(query, "query") if query is not None else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{_text(title)}</h1>{head}\n<p>{_text(note)}</p>\n"
        f"<main>\n{figures}\n</main></body></html>\n"
    )


def _figure(hit: Hit, picture: Image.Image | str) -> str:
    shown = shortened(hit.caption, _CAPTION)
    image = (
        f'<div class="none">{_text(picture)}</div>'
        if isinstance(picture, str)
        else _image(picture, hit.key)
    )
    return (
        f"<figure>{image}<figcaption><b>{hit.rank}. {hit.score:.4f}</b> {_text(shown)}"
        f"<small>{_text(hit.key)}</small><small>{_text(hit.shard)}</small></figcaption></figure>"
    )


def _image(image: Image.Image, name: str) -> str:
    small = ' class="small"' if 2 * max(image.size) <= _SIDE else ""
    return f'<img{small} alt="{_text(name)}" src="{thumbnail(image, _SIDE)}">'


def _text(text: str) -> str:
    return escape(printable(text))


def pictures_of(hits: Sequence[Hit]) -> list[Image.Image | str]:
    """Image of each hit from its shard, or in words why there is none."""

    @lru_cache
    def opened(path: str) -> TarIndex | str:
        try:
            return load_index(path, write=False)
        except DataError:
            return "its shard cannot be read"

    return [_picture(hit, opened(hit.shard)) for hit in hits]


def _picture(hit: Hit, index: TarIndex | str) -> Image.Image | str:
    if isinstance(index, str):
        return index
    if not 0 <= hit.sample < len(index) or str(index.keys[hit.sample]) != hit.key:
        return "its shard has changed"
    try:
        return read_image(index, hit.sample)
    except (BadSample, DataError):
        return "its image cannot be read"
