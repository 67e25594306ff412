"""Each benchmark's published files, tiny, read as items."""

import csv
import json
import random

import pytest

from clipkit.errors import DataError
from data_tools.selection_formats import READERS, SOURCES, Options, _shuffles


def read(kind, source, **options):
    return list(READERS[kind](source, Options(**options)))


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def names(draft):
    return [picture.names for picture in draft.images]


def test_sugarcrepe(tmp_path):
    row = {"filename": "0.jpg", "caption": "a dog", "negative_caption": "a cat"}
    write_json(tmp_path / "swap_obj.json", {"0": row, "7": {**row, "filename": "7.jpg"}})
    write_json(tmp_path / "add_att.json", {"0": row})
    drafts = read("sugarcrepe", tmp_path)
    assert [d.id for d in drafts] == ["add_att/0", "swap_obj/0", "swap_obj/7"]
    assert names(drafts[2]) == [("7.jpg",)] and drafts[2].tags == ("swap_obj",)
    assert drafts[0].texts == ("a dog", "a cat") and drafts[0].answer == 0


def valse_row(votes, **more):
    return {
        "dataset": "SWiG",
        "image_file": "x.jpg",
        "caption": "A man exercises.",
        "foil": "A torso exercises.",
        "linguistic_phenomena": "actions",
        "mturk": {"foil": 0, "caption": votes, "other": 0},
        **more,
    }


def test_valse_keeps_what_annotators_confirmed(tmp_path):
    rows = {f"actions_{votes}": valse_row(votes) for votes in (0, 1, 2, 3)}
    rows["listed"] = valse_row(3, caption=["A man exercises."])
    write_json(tmp_path / "actant-swap.json", rows)
    drafts = read("valse", tmp_path)
    ids = [f"actant-swap/{key}" for key in ("actions_2", "actions_3", "listed")]
    assert [d.id for d in drafts] == ids
    assert drafts[0].tags == ("actant-swap", "actions")
    assert names(drafts[0]) == [("x.jpg", "actant-swap/x.jpg", "SWiG/x.jpg")]
    assert {d.texts for d in drafts} == {("A man exercises.", "A torso exercises.")}
    assert len(read("valse", tmp_path, min_votes=3)) == 2
    assert len(read("valse", tmp_path, min_votes=0)) == 5
    write_json(tmp_path / "plurals.json", {"1": {**valse_row(3), "mturk": None}})
    with pytest.raises(DataError, match="'1': has no annotators' votes"):
        read("valse", tmp_path)


def aro_row(**tag):
    box = {f"bbox_{side}": value for side, value in zip("xywh", (1, 2, 3, 4))}
    row = {"image_path": "a.jpg", "true_caption": "t", "false_caption": "f"}
    return {**row, **box, **tag}


def test_aro(tmp_path):
    rows = [aro_row(relation_name="on"), aro_row(attributes=["red", "big"])]
    drafts = read("aro", write_json(tmp_path / "vg.json", rows))
    assert [d.tags for d in drafts] == [("on",), ("red_big",)]
    assert drafts[0].images[0].box == (1, 2, 3, 4) and drafts[0].id == "vg/0"
    assert drafts[0].texts[drafts[0].answer] == "t"
    for bad in (
        aro_row(),
        aro_row(attributes=["red"]),
        {**aro_row(relation_name="on"), "bbox_w": "3"},
    ):
        with pytest.raises(DataError, match="entry 0"):
            read("aro", write_json(tmp_path / "bad.json", [bad]))


def test_order_shuffles_words_and_says_so_of_short_captions(tmp_path):
    caption = "Two men, near a big red bus, watch the GREEN dog run."
    rows = [
        {"image": "a.jpg", "caption": [caption, "one", caption]},
        {"image": "b", "caption": "a b"},
    ]
    path = write_json(tmp_path / "test.json", rows)
    drafts = read("order", path)
    assert [d.id for d in drafts] == ["0/0", "0/2", "1/0"]  # one word has no order
    first = "two men near a big red bus watch the green dog run"
    for draft in drafts[:2]:
        assert draft.texts[0] == first and len(draft.texts) == 3 and draft.answer == 0
        assert all(sorted(t.split()) == sorted(first.split()) for t in draft.texts)
        within, among = (t.split() for t in draft.texts[1:])
        words = first.split()
        parts = [words[i : i + 3] for i in range(0, 12, 3)]
        assert all(sorted(within[i : i + 3]) == sorted(words[i : i + 3]) for i in range(0, 12, 3))
        assert sorted(among[i : i + 3] for i in range(0, 12, 3)) == sorted(parts)
    assert drafts[2].texts == ("a b", "b a")
    assert drafts[0].texts != drafts[1].texts  # the same caption elsewhere is shuffled anew
    assert read("order", path) == drafts and read("order", path, seed=1) != drafts


def test_long_captions_are_cut_and_equal_words_do_not_loop(tmp_path):
    path = write_json(tmp_path / "t.json", [{"image": "a", "caption": ["w " * 50, "x y " * 50]}])
    (draft,) = read("order", path)
    assert draft.id == "0/1" and all(len(t.split()) == 30 for t in draft.texts)
    assert _shuffles(["a"] * 6, random.Random(0)) == []


def test_winoground(tmp_path):
    row = {
        "id": 3,
        "image_0": "ex_3_img_0",
        "image_1": "ex_3_img_1",
        "caption_0": "a b",
        "caption_1": "b a",
        "tag": "Noun",
        "secondary_tag": "",
        "collapsed_tag": "Object",
    }
    path = write_lines(tmp_path / "examples.jsonl", [row])
    for source in (path, tmp_path):
        (draft,) = read("winoground", source)
        assert draft.id == "3" and draft.answer == [0, 1] and draft.texts == ("a b", "b a")
        assert draft.tags == ("Object", "Noun")
        assert names(draft) == [("ex_3_img_0",), ("ex_3_img_1",)]
    (tmp_path / "more.csv").write_text("x\n")
    with pytest.raises(DataError, match="holds 2"):
        read("winoground", tmp_path)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_bivlc(tmp_path, ending):
    row = {
        "image": "p.jpg",
        "caption": 'a "big", dog',
        "negative_caption": "a\ncat",
        "negative_image": "n.png",
        "type": "replace",
        "subtype": "obj",
    }
    path = tmp_path / f"test.{ending}"
    if ending == "jsonl":
        write_lines(path, [row])
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
    (draft,) = read("bivlc", path)
    assert draft.texts == ('a "big", dog', "a\ncat") and draft.answer == [0, 1]
    assert names(draft) == [("p.jpg",), ("n.png",)] and draft.tags == ("replace", "obj")


def test_inpaintcoco(tmp_path):
    row = {
        "concept": "color",
        "coco_image": "c.png",
        "coco_caption": "a red bus",
        "inpaint_image": "i.png",
        "inpaint_caption": "a blue bus",
    }
    (draft,) = read("inpaintcoco", write_lines(tmp_path / "t.jsonl", [row]))
    assert draft.texts == ("a red bus", "a blue bus") and names(draft) == [("c.png",), ("i.png",)]
    assert draft.tags == ("color",) and draft.answer == [0, 1]


def questions(tmp_path, *rows):
    path = tmp_path / "Questions.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("Question ID", "Type", "Statement"), *rows])
    return path


def test_mmvp(tmp_path):
    pattern = "Orientation and Direction"
    path = questions(
        tmp_path, (2, pattern, "a dog facing right"), (1, pattern, "a dog facing left"),
        (3, "Texts", "x"), (4, "Texts", "y"),
    )  # fmt: skip
    for source in (path, tmp_path):
        first, second = read("mmvp", source)
        assert first.texts == ("a photo of a dog facing left", "a photo of a dog facing right")
        assert names(first) == [(f"{pattern}/{n}.jpg", f"{n}.jpg") for n in (1, 2)]
        assert (first.id, second.id) == ("1", "2") and second.tags == ("Texts",)


@pytest.mark.parametrize(
    "rows",
    [
        [(1, "T", "a")],
        [(2, "T", "a"), (3, "T", "b")],
        [(1, "T", "a"), (3, "T", "b")],
        [(1, "T"), (2, "T", "b")],
        [("x", "T", "a"), (2, "T", "b")],
    ],
)
def test_mmvp_rows_that_are_no_pair(tmp_path, rows):
    with pytest.raises(DataError, match=r"Questions\.csv: questions 1 and 2"):
        read("mmvp", questions(tmp_path, *rows))


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe\xff", b"3", b"[3]", b'{"a": 3}', b"[" * 99999]
)
@pytest.mark.parametrize("kind", sorted(set(READERS) - {"mmvp"}))
def test_broken_files_are_named(tmp_path, kind, content):
    ending = "jsonl" if kind in ("winoground", "bivlc", "inpaintcoco") else "json"
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.{ending}"):
        read(kind, tmp_path if kind in ("sugarcrepe", "valse") else path)


@pytest.mark.parametrize("kind", sorted(READERS))
def test_missing_source_and_missing_fields_are_named(tmp_path, kind):
    with pytest.raises(DataError, match="nowhere"):
        read(kind, tmp_path / "nowhere")
    rows = [{"relation_name": "on", "bbox_x": 1, "bbox_y": 1, "bbox_w": 1, "bbox_h": 1}]
    rows[0] |= {"mturk": {"caption": 3}, "caption": []}
    write_json(tmp_path / "rows.json", rows)
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "rows.csv").write_text("Question ID,Type,Statement\n1\n")
    suffix = {"mmvp": "csv", "winoground": "jsonl", "bivlc": "jsonl", "inpaintcoco": "jsonl"}
    source = tmp_path / f"rows.{suffix.get(kind, 'json')}"
    with pytest.raises(DataError, match="rows"):
        read(kind, tmp_path if kind in ("sugarcrepe", "valse") else source)


@pytest.mark.parametrize("kind", ["aro", "order"])
def test_a_folder_in_place_of_a_file(tmp_path, kind):
    with pytest.raises(DataError, match="is a folder; name the JSON file$"):
        read(kind, tmp_path)


def test_every_benchmark_says_its_source():
    assert list(SOURCES) == list(READERS)


def test_a_table_that_is_none(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n"' + "x" * 200_000 + '",1\n')
    with pytest.raises(DataError, match="is no CSV"):
        read("bivlc", path)
