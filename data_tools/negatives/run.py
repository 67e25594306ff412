"""Writes shards anew with negatives in their json members; all else stays byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import clipkit.data.negatives
from clipkit.data.captions import CaptionRule
from clipkit.data.negatives import KINDS, CaptionEditor, Negative
from clipkit.data.negatives.phrases import read_phrases
from clipkit.data.shard_reader import RawSample, iter_samples
from clipkit.data.tar_index import load_index
from clipkit.errors import DataError
from data_tools.map_shards import map_shards
from data_tools.summary import write_summary
from data_tools.tables import shard_names

_FIELDS = ("negatives", "negative_tags")
_LARGEST = 1 << 40  # bytes: every member is copied


def add_negatives(
    shards: Sequence[str],
    out: Path,
    *,
    count: int = 1,
    kinds: Sequence[str] = (),
    styles: Sequence[str] = ("replace", "swap"),
    forbid: Path | None = None,
    tagger: bool = False,
    caption_keys: Sequence[str] = ("txt",),
    caption_lines: bool = False,
    seed: int = 0,
    **run: Any,
) -> dict[str, Any]:
    """Copy shards to `out`, under their names, with negatives in each sample's json member.

    Args:
        shards: Paths of the sources.
        out: Folder of the copies.
        count: Negatives of a sample, at most.
        kinds, styles, tagger: As CaptionEditor's; no kinds: all.
        forbid: File of the phrases that no negative may name.
        caption_keys, caption_lines: Where captions are, as in `data` of a config.
        seed: Draws among the negatives that there are, together with the sample's key.
        run: Engine, workers, retries, limit and dry_run of `map_shards`.

    Returns:
        What summary.json says.

    Raises:
        ConfigError: An unknown kind, style or key, no tagger, or no phrase in `forbid`.
        DataError: A copy would replace its source, or a shard failed.
    """
    editor: dict[str, Any] = {
        "kinds": list(kinds) or list(KINDS),
        "styles": list(styles),
        "tagger": tagger,
        "forbid": list(read_phrases(str(forbid), "--forbid")) if forbid else [],
    }
    CaptionEditor(**editor)
    captions = {"keys": list(caption_keys), "lines": caption_lines}
    CaptionRule(tuple(caption_keys))
    params = {"root": _root(shards, out), "editor": editor, "captions": captions, "count": count}
    params |= {"seed": seed, "rules": _version_of_rules(tagger)}
    report = map_shards(copy_shard, shards, out=out, params=params, label="negatives", **run)
    if run.get("dry_run"):
        return {"shards": len(report.shards)}
    tags: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for result in report.done:
        tags.update(result["tags"])
        counts.update(result["counts"])
    damage = {s: r["damage"] for s, r in zip(report.shards, report.results) if r and r["damage"]}
    arguments = {"shards": list(shards), "count": count, "seed": seed, **editor, **captions}
    summary = {"arguments": arguments, "counts": dict(counts), "tags": dict(tags.most_common())}
    summary |= {"damage": damage, **report.facts()}
    write_summary(out, "negatives", summary)
    report.raise_failures()
    return summary


def copy_shard(
    shard: str,
    out: Path,
    *,
    root: str,
    editor: dict[str, Any],
    captions: dict[str, Any],
    count: int,
    seed: int,
    rules: str,
) -> dict[str, Any]:
    """Write OUT/<name of the shard below `root`>.

    `rules`, a hash of the rules, is there for the done marker alone.

    Raises:
        DataError: The shard cannot be read, or nothing can be written.
    """
    from clipkit.data.shard_writer import write_shard  # brings torch, for the workers alone

    name, index = os.path.relpath(os.path.abspath(shard), root), load_index(shard)
    counts: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    rule = CaptionRule(tuple(captions["keys"]), lines=captions["lines"])
    maker = CaptionEditor(**editor)

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for sample in iter_samples(index, max_bytes=_LARGEST):
            meta = _meta(sample)
            if meta is None:
                counts["samples whose json member is no object"] += 1
                yield sample.key, sample.members
                continue
            found = draw(sample, meta, rule, maker, count, seed)
            counts["samples with negatives" if found else "samples without"] += 1
            tags.update(f"{negative.kind}/{negative.style}" for negative in found)
            yield sample.key, with_negatives(sample.members, meta, found)

    facts = write_shard(out / name, samples())
    if not facts.samples:
        (out / name).unlink()  # an empty tar would be taken for a damaged one
    return {
        "samples": facts.samples,
        "sha256": facts.sha256,
        "counts": dict(counts),
        "tags": dict(tags),
        "damage": index.damage,
        "outputs": [name] if facts.samples else [],
    }


def draw(
    sample: RawSample,
    meta: dict[str, Any],
    rule: CaptionRule,
    editor: CaptionEditor,
    count: int,
    seed: int,
) -> list[Negative]:
    """At most `count` negatives of a sample's captions, the first caption's first."""
    rng = np.random.default_rng([seed, *hashlib.sha256(sample.key.encode()).digest()])
    captions, found = rule.every(sample.members, meta), list[Negative]()
    avoid = [*captions, *_every_caption(sample.members, meta)]
    for caption in dict.fromkeys(captions):
        taken = [*avoid, *(negative.text for negative in found)]
        found += editor.negatives(caption, count - len(found), rng, taken)
    return found


def _every_caption(members: dict[str, bytes], meta: dict[str, Any]) -> list[str]:
    """Whatever may be a caption of the image, whole and by line."""
    texts = (extension for extension in members if extension.split(".")[-1] == "txt")
    keys = (*texts, "json.caption", "json.captions")
    return [
        t for lines in (True, False) for t in CaptionRule(keys, lines=lines).every(members, meta)
    ]


def with_negatives(
    members: dict[str, bytes], meta: dict[str, Any], found: Sequence[Negative]
) -> dict[str, bytes]:
    """The members with negatives added; a json member's other bytes stay as they are."""
    if not found and not any(name in meta for name in _FIELDS):
        return members
    values = [n.text for n in found], [f"{n.kind}/{n.style}" for n in found]
    fields = dict(zip(_FIELDS, values))
    old = members.get("json", b"{}").rstrip()
    if any(name in meta for name in _FIELDS):
        new = json.dumps(meta | fields).encode()
    else:
        new = old[:-1] + (b", " if meta else b"") + json.dumps(fields)[1:].encode()
    return members | {"json": new}


def _meta(sample: RawSample) -> dict[str, Any] | None:
    """The json member, {} if there is none, None if it is no object."""
    if "json" not in sample.members:
        return {}
    try:
        meta = json.loads(sample.members["json"].decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return meta if isinstance(meta, dict) else None


def _root(shards: Sequence[str], out: Path) -> str:
    """Folder from which the shards are named.

    Raises:
        DataError: A copy would replace its source.
    """
    names = shard_names(list(shards))
    for shard, name in zip(shards, names):
        if os.path.realpath(shard) == os.path.realpath(out / name):
            raise DataError(f"OUT: would replace '{shard}'; name another folder")
    return str(Path(os.path.abspath(shards[0])).parents[names[0].count("/")])


def _version_of_rules(tagger: bool) -> str:
    """Hash of the rules and the lexicon, which `done.code_hash` does not see."""
    folder = Path(clipkit.data.negatives.__path__[0])
    digest = hashlib.sha256(version("textblob").encode() if tagger else b"")
    for file in sorted([*folder.glob("*.py"), *folder.glob("lexicon/*.yaml")]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()
