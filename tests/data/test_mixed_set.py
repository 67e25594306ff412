"""MixBench's layout: spellings are forgiven, wrong content is named with file and line."""

import json

import pytest

from clipkit.data.mixed_set import open_mixed_set
from clipkit.errors import DataError
from tests.fixtures_shards import image_bytes


def write(root, queries=None, documents=None, qrels=None, place="qrels/test.tsv"):
    """A set of two queries and three documents, or what is given instead."""
    root.mkdir(exist_ok=True)
    (root / "img").mkdir(exist_ok=True)
    for name in ("a", "b"):
        (root / "img" / f"{name}.png").write_bytes(image_bytes())
    queries = queries or [{"query_id": "q1", "text": "one"}, {"query_id": "q2", "text": "two"}]
    documents = documents or [
        {"corpus_id": "d1", "text": "a text", "image": None},
        {"corpus_id": "d2", "text": "", "image": "img/a.png"},
        {"corpus_id": "d3", "text": "both", "image": "img/b.png"},
    ]
    for file, rows in (("queries", queries), ("mixed_corpus", documents)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (root / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    path = root / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(qrels or "q1\td1\t1\nq1\td2\t0\nq2\td3\t2\n")
    return root


def test_items_modalities_and_judgements(tmp_path):
    data = open_mixed_set(write(tmp_path))
    assert [q.id for q in data.queries] == ["q1", "q2"] and len(data) == 2
    assert [d.modality for d in data.documents] == ["text", "image", "mixed"]
    assert data.documents[0].image == "" and data.documents[1].text == ""
    assert data.judgements == [{0: 1.0}, {2: 2.0}]  # judged 0 is not relevant
    assert data.image_files.names == ["img/a.png", "img/b.png"] and data.unjudged == 0


def test_a_query_without_a_relevant_document_is_left_out_and_counted(tmp_path):
    queries = [{"query_id": f"q{i}", "text": "x"} for i in (3, 1, 2, 4)]
    data = open_mixed_set(write(tmp_path, queries, qrels="q1\td1\t1\nq4\td1\t0\n"))
    assert [q.id for q in data.queries] == ["q1"] and data.unjudged == 3


@pytest.mark.parametrize(
    ("query", "document"), [("query-id", "corpus-id"), ("_id", "_id"), ("Query_ID", "docid")]
)
def test_spellings_of_keys(tmp_path, query, document):
    data = open_mixed_set(
        write(
            tmp_path,
            [{query: 1, "text": "one"}],
            [{document: "d1", "text": "t", "title": "more"}],
            "1\td1\t1\n",
        )
    )
    assert data.queries[0].id == "1" and data.documents[0].id == "d1"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t3\n"),
        ("qrels/test.tsv", "score\tcorpus_id\tquery_id\n3\td1\tq1\n"),
        ("qrels/other.tsv", "q1\td1\t3\n"),
        ("qrels.tsv", "q1 d1 3\n\n"),
        ("qrels.tsv", "q1 0 d1 3\n"),
        ("qrels.tsv", "query_id\titer\tcorpus_id\tscore\nq1\t0\td1\t3\n"),
        ("qrels.tsv", "query_id\tunknown\tscore\nq1\td1\t3\n"),
        ("qrels.jsonl", '{"query_id": "q1", "corpus_id": "d1", "score": 3}\n'),
        ("qrels.jsonl", '{"query-id": "q1", "corpus-id": "d1", "score": 3.0}\n'),
        ("qrels.tsv", "\ufeffq1\td1\t3\nq1\td1\t3\n"),
    ],
)
def test_forms_of_judgements(tmp_path, place, text):
    assert open_mixed_set(write(tmp_path, qrels=text, place=place)).judgements == [{0: 3.0}]


def test_the_splits_own_judgements_are_taken(tmp_path):
    root = write(tmp_path)
    (root / "qrels" / "dev.tsv").write_text("q2\td1\t1\n")
    assert open_mixed_set(root, "dev").judgements == [{0: 1.0}]
    with pytest.raises(DataError, match=r"has no val\.tsv; choose split from: dev, test"):
        open_mixed_set(root, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1\td1\t1\nq9\td1\t1\n", r"test\.tsv:2: query 'q9' is not in queries\.jsonl"),
        ("\nq1\td9\t1\n", r"test\.tsv:2: document 'd9' is not in mixed_corpus\.jsonl"),
        ("q1\td1\t1\nq1\td1\t2\n", r"test\.tsv:2: .* judged twice"),
        ("q1\td1\tgood\n", r"test\.tsv:1: score 'good' is no number of 0 or more"),
        ("q1\td1\t-1\n", r"test\.tsv:1: score '-1' is no number of 0 or more"),
        ("q1\td1\tnan\n", r"test\.tsv:1: score 'nan' is no"),
        ("q1\td1\tinf\n", r"test\.tsv:1: score 'inf' is no"),
        ("q1\td1\n", r"test\.tsv:1: needs query_id, corpus_id and score"),
        ("q1\td1\t0\n", r"test\.tsv: no query has a document with a score above 0"),
    ],
)
def test_wrong_judgements_are_named(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_mixed_set(write(tmp_path, qrels=text))


GOOD = {"corpus_id": "d1", "text": "t"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"corpus_id": "d2", "text": " "}], r"corpus\.jsonl:2: 'd2' has neither text nor"),
        ([GOOD, GOOD], r"corpus\.jsonl:2: id 'd1' is there twice"),
        ([GOOD, {"text": "t"}], r"corpus\.jsonl:2: has no 'corpus_id'"),
        ([GOOD, {"corpus_id": True, "text": "t"}], r"corpus\.jsonl:2: has no 'corpus_id'"),
        ([GOOD, {"corpus_id": "d2", "text": 5}], r"corpus\.jsonl:2: 'text' is no text"),
        ([GOOD, "[1]"], r"corpus\.jsonl:2: is no JSON object"),
        ([GOOD, "{"], r"corpus\.jsonl:2: is no JSON object"),
        ([GOOD, "[" * 100_000], r"corpus\.jsonl:2: is no JSON object"),
        ([""], r"corpus\.jsonl: is empty"),
    ],
)
def test_wrong_documents_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        open_mixed_set(write(tmp_path, documents=rows, qrels="q1\td1\t1\n"))


@pytest.mark.parametrize("image", ["../a.png", "/etc/passwd", "img/none.png"])
def test_images_are_there_and_below_the_folder(tmp_path, image):
    data = open_mixed_set(
        write(tmp_path / "set", documents=[{"corpus_id": "d1", "image": image}], qrels="q1 d1 1")
    )
    with pytest.raises(DataError, match="leads out of the folder|not there"):
        len(data.image_files)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_mixed_set(tmp_path / "nowhere")
    root = write(tmp_path)
    (root / "qrels" / "test.tsv").unlink()
    with pytest.raises(DataError, match=r"has no judgements; write qrels/test\.tsv"):
        open_mixed_set(root)
    (root / "queries.jsonl").unlink()
    with pytest.raises(DataError, match=r"queries\.jsonl cannot be read"):
        open_mixed_set(root)
