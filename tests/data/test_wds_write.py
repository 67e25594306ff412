"""What is written is read back, by our reader and by plain webdataset; never a half set."""

import io

import numpy as np
import pytest
import webdataset

from clipkit.data.eval_sets import find_sets
from clipkit.data.wds_folder import open_folder
from clipkit.data.wds_write import write_folder
from clipkit.errors import DataError
from tests.fixtures_shards import noise_bytes

NAMES, PROMPTS = ["red", "dark blue", "green"], ["a {c}", "{c}, seen from above"]
SET = {"classnames": NAMES, "templates": PROMPTS}


def labelled(count, first=0):
    return ({"png": noise_bytes(first + i), "cls": b"%d" % (i % 3)} for i in range(count))


def content(root):
    """Path -> bytes, without the indexes that a reader leaves beside shards."""
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.endswith(".idx.npz")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_classification_round_trip(tmp_path):
    root = tmp_path / "new" / "pipe:50%d"
    assert write_folder(root, "test", labelled(25), **SET, samples_per_shard=2) == 25
    folder = open_folder(root, kind="classification")
    assert (folder.classnames, folder.templates) == (NAMES, PROMPTS)
    assert folder.labels() == [i % 3 for i in range(25)]
    assert folder.keys == [f"s{i:07d}" for i in range(25)]
    pixels = [np.array(image) for image in folder.images(0, 25)]
    for i in (0, 11, 24):
        expected = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        assert (pixels[i] == expected).all()
    tars = [f"test/{i}.tar" for i in range(13)]
    beside = ["classnames.txt", "dataset_type.txt", "zeroshot_classification_templates.txt"]
    assert sorted(content(root)) == sorted([*beside, "test/nshards.txt", *tars])
    assert (root / "test" / "nshards.txt").read_text() == "13\n"
    assert (root / "dataset_type.txt").read_text() == "classification\n"
    assert find_sets(root)[0].types == ("classification",)


def test_plain_webdataset_reads_the_shards_in_order(tmp_path):
    write_folder(tmp_path / "set", "test", labelled(7), **SET, samples_per_shard=3)
    urls = [str(tmp_path / "set" / "test" / f"{i}.tar") for i in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"s{i:07d}" for i in range(7)]
    assert [s["cls"] for s in samples] == [b"%d" % (i % 3) for i in range(7)]
    assert samples[4]["png"] == noise_bytes(4)


def test_multilabel_and_retrieval_round_trip(tmp_path):
    truth = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    samples = []
    for i, row in enumerate(truth):
        out = io.BytesIO()
        np.save(out, row)
        samples.append({"png": noise_bytes(i), "npy": out.getvalue()})
    write_folder(tmp_path / "tags", "test", samples, **SET, kind="multilabel")
    folder = open_folder(tmp_path / "tags", kind="multilabel")
    assert (folder.label_sets() == truth.astype(bool)).all()

    pairs = [{"png": noise_bytes(i), "txt": f"one {i}\ntwo é\n".encode()} for i in range(2)]
    write_folder(tmp_path / "pairs", "val", pairs, kind="retrieval")
    folder = open_folder(tmp_path / "pairs", "val", kind="retrieval")
    assert folder.captions() == [["one 0", "two é"], ["one 1", "two é"]]


def test_the_same_bytes_twice(tmp_path, monkeypatch):
    write_folder(tmp_path / "a", "test", labelled(5), **SET)
    monkeypatch.setattr("time.time", lambda: 1e9)
    reordered = ({k: s[k] for k in reversed(s)} for s in labelled(5))
    write_folder(tmp_path / "b", "test", reordered, **SET)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_second_split_joins_and_shares_the_names(tmp_path):
    root = tmp_path / "set"
    write_folder(root, "train", labelled(6), **SET)
    before = content(root)
    with pytest.raises(DataError, match="classnames.txt differs.*all splits of a set share it"):
        write_folder(root, "test", labelled(3), classnames=["x"], templates=PROMPTS)
    with pytest.raises(DataError, match="train exists; remove it"):
        write_folder(root, "train", labelled(3), **SET)
    assert content(root) == before
    write_folder(root, "test", labelled(3, first=6), **SET)
    assert len(open_folder(root, "train")) == 6 and len(open_folder(root)) == 3


def test_a_failure_leaves_nothing(tmp_path):
    def broken():
        yield from labelled(3)
        raise RuntimeError("source died")

    with pytest.raises(RuntimeError, match="source died"):
        write_folder(tmp_path / "set", "test", broken(), **SET, samples_per_shard=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no samples to write"):
        write_folder(tmp_path / "set", "test", [], **SET)
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / "set", "train", labelled(3), **SET)
    before = content(tmp_path)
    with pytest.raises(RuntimeError, match="source died"):
        write_folder(tmp_path / "set", "test", broken(), **SET)
    assert content(tmp_path) == before and sorted((tmp_path / "set").iterdir())[-1].suffix == ".txt"
    assert not list((tmp_path / "set").glob(".*"))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_folder(tmp_path / "file" / "set", "test", labelled(1), **SET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "multilable"}, "unknown type 'multilable'; did you mean 'multilabel'"),
        ({"kind": "retrieval"}, "no class names"),
        ({"classnames": []}, "needs class names, one line each; there are none"),
        ({"classnames": ["a", " "]}, "' ' is no line"),
        ({"classnames": ["a", "b\nc"]}, r"'b\\nc' is no line"),
        ({"templates": ["a photo"]}, "template 'a photo' has no {c}"),
        ({"split": "../test"}, "is no folder name"),
        ({"split": ".test"}, "is no folder name"),
        ({"samples_per_shard": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, options, message):
    arguments = {"split": "test", **SET, **options}
    with pytest.raises(DataError, match=message):
        write_folder(tmp_path / "set", arguments.pop("split"), labelled(2), **arguments)
    assert list(tmp_path.iterdir()) == []
