"""Search sets whose documents are texts, images, or both: MixBench's layout.

    <root>/queries.jsonl         {"query_id", "text", "image"}, one a line; one of both may be empty
    <root>/mixed_corpus.jsonl    {"corpus_id", "text", "image"}, likewise
    <root>/qrels/<split>.tsv     query_id, corpus_id, score; or qrels.tsv, or qrels.jsonl

Images are paths below <root>. Keys may be spelt as BEIR does ("query-id", "_id"). Judgements may
have a header line, and trec_eval's second column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipkit.data.image_files import ImageFiles
from clipkit.errors import DataError

MODALITIES = ("text", "image", "mixed")
_QUERY = ("query_id", "qid", "_id", "id")
_DOCUMENT = ("corpus_id", "doc_id", "docid", "pid", "_id", "id")
_SCORE = ("score", "relevance", "label")
_TEXT = ("text", "query_text", "corpus_text")
_IMAGE = ("image", "query_image", "corpus_image", "image_path")


@dataclass(frozen=True)
class Item:
    """A query or a document.

    Attributes:
        id: Its name.
        text: "" where it has none.
        image: Path below the set's folder; "" where it has none.
    """

    id: str
    text: str
    image: str

    @property
    def modality(self) -> str:
        """ "text", "image", or "mixed" for both."""
        if self.text and self.image:
            return "mixed"
        return "text" if self.text else "image"


@dataclass
class MixedSet:
    """Queries, documents and which document answers which query.

    Attributes:
        root: Its folder.
        queries: Those with at least one relevant document, in the file's order.
        documents: All, in the file's order.
        judgements: For each query: row of a document -> relevance > 0.
        unjudged: Queries of the file that have no relevant document and are left out.
    """

    root: Path
    queries: list[Item]
    documents: list[Item]
    judgements: list[dict[int, float]]
    unjudged: int = 0

    def __len__(self) -> int:
        return len(self.queries)

    @cached_property
    def image_files(self) -> ImageFiles:
        """Images of queries and documents, each once.

        Raises:
            DataError: One is missing, or its path leads out of the folder.
        """
        return ImageFiles(
            self.root, [item.image for item in self.queries + self.documents if item.image]
        )


def open_mixed_set(root: str | Path, split: str = "test") -> MixedSet:
    """Open a search set.

    Args:
        root: Its folder.
        split: Name of the file in qrels/; not needed where there is only one.

    Raises:
        DataError: A file is missing or a line in it is wrong, with file and line.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"evaluation set '{root}': no such folder")
    queries = _items(root / "queries.jsonl", _QUERY)
    documents = _items(root / "mixed_corpus.jsonl", _DOCUMENT)
    path = _qrels(root, split)
    rows = {document.id: row for row, document in enumerate(documents)}
    found: dict[str, dict[int, float]] = {query.id: {} for query in queries}
    for where, query, document, score in _judgements(path):
        if query not in found:
            raise DataError(f"{where}: query '{query[:100]}' is not in queries.jsonl")
        if document not in rows:
            raise DataError(f"{where}: document '{document[:100]}' is not in mixed_corpus.jsonl")
        if found[query].setdefault(rows[document], score) != score:
            raise DataError(
                f"{where}: query '{query[:100]}' and document '{document[:100]}' are judged twice, "
                f"with different scores; keep one"
            )
    judged = [q for q in queries if any(found[q.id].values())]
    if not judged:
        raise DataError(f"{path}: no query has a document with a score above 0")
    gains = [{row: s for row, s in found[q.id].items() if s > 0} for q in judged]
    return MixedSet(root, judged, documents, gains, len(queries) - len(judged))


def _items(path: Path, id_keys: Sequence[str]) -> list[Item]:
    items: dict[str, Item] = {}
    for where, row in _json_lines(path):
        name = _name(row, id_keys, where)
        text, image = _string(row, _TEXT, where), _string(row, _IMAGE, where)
        if not text and not image:
            raise DataError(f"{where}: '{name[:100]}' has neither text nor image; remove it")
        if name in items:
            raise DataError(f"{where}: id '{name[:100]}' is there twice; ids must be unique")
        items[name] = Item(name, text, image)
    if not items:
        raise DataError(f"{path}: is empty; write one JSON object a line")
    return list(items.values())


def _qrels(root: Path, split: str) -> Path:
    """The file of judgements.

    Raises:
        DataError: None, or several and none is the split's.
    """
    for path in (root / "qrels" / f"{split}.tsv", root / "qrels.tsv", root / "qrels.jsonl"):
        if path.is_file():
            return path
    others = sorted((root / "qrels").glob("*.tsv"))
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(p.stem for p in others[:10])
        raise DataError(f"{root / 'qrels'}: has no {split}.tsv; choose split from: {names}")
    raise DataError(
        f"evaluation set '{root}': has no judgements; write qrels/{split}.tsv with lines of "
        f"query_id, corpus_id and score"
    )


def _judgements(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """(place, query id, document id, score) of each line."""
    if path.suffix == ".jsonl":
        for where, row in _json_lines(path):
            score = next((row[k] for k in _SCORE if k in row), None)
            yield (
                where,
                _name(row, _QUERY, where),
                _name(row, _DOCUMENT, where),
                _score(score, where),
            )
        return
    columns: tuple[int, int, int] | None = None
    for where, line in _lines(path):
        cells = [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())]
        if columns is None:
            header = _header(cells)
            columns = header or _places(cells)
            if header:
                continue
        if len(cells) <= max(columns):
            raise DataError(f"{where}: needs query_id, corpus_id and score, separated by tabs")
        query, document, score = (cells[c] for c in columns)
        yield where, query, document, _score(score, where)


def _header(cells: list[str]) -> tuple[int, int, int] | None:
    """Columns of query, document and score where the first line names any of them."""
    names = [_key(cell) for cell in cells]
    known = (_QUERY[:2], _DOCUMENT[:4], _SCORE)
    found = [next((names.index(k) for k in keys if k in names), None) for keys in known]
    query, document, score = found
    if query is not None and document is not None and score is not None:
        return query, document, score
    return None if found == [None] * 3 else _places(cells)


def _places(cells: list[str]) -> tuple[int, int, int]:
    """Columns where nothing names them; trec_eval has a second one that says nothing."""
    return (0, 2, 3) if len(cells) == 4 else (0, 1, 2)


def _score(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise DataError(f"{where}: score {str(value)[:40]!r} is no number of 0 or more")
    return number


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _name(row: dict[str, Any], keys: Sequence[str], where: str) -> str:
    value = next((row[k] for k in keys if k in row), None)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise DataError(f"{where}: has no '{keys[0]}', or it is neither text nor a whole number")
    return str(value)


def _string(row: dict[str, Any], keys: Sequence[str], where: str) -> str:
    key = next((k for k in keys if row.get(k) is not None), None)
    if key is None:
        return ""
    if not isinstance(row[key], str):
        raise DataError(f"{where}: '{key}' is no text; leave it empty where there is none")
    return row[key].strip()


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{where}: is no JSON object")
        yield where, {_key(k): v for k, v in row.items()}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", line) of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
