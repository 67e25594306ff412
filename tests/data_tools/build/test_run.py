"""A build goes on where it stopped, repeats to the byte, and says what it left out."""

import json
import os
from pathlib import Path

import pytest
import webdataset

import data_tools.map_shards as mapping
from clipkit.errors import DataError
from data_tools.build.rows import Columns
from data_tools.build.run import build, guess_format
from data_tools.engines.task import run_task
from data_tools.tables import read_table
from tests.fixtures_shards import noise_bytes


def fill(root: Path, count: int, bad: tuple[int, ...] = ()) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (root / f"{i:02d}.png").write_bytes(b"junk" if i in bad else noise_bytes(i))
        (root / f"{i:02d}.txt").write_text(f"caption {i}")
    return root


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_plain_webdataset_reads_what_is_built(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 7), tmp_path / "out"
    facts = build(source, out, samples_per_shard=3, prefix="train")
    assert facts["samples"] == 7 and facts["counts"]["rejects"] == 0
    names = [f"train-0000{i}.tar" for i in range(3)]
    assert list(tars(out)) == names
    assert json.loads((out / "sizes.json").read_text()) == dict(zip(names, (3, 3, 1)))
    urls = [str(out / name) for name in names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"{i:09d}" for i in range(7)]
    assert [s["txt"] for s in samples] == [b"caption %d" % i for i in range(7)]
    assert [s["png"] for s in samples] == [noise_bytes(i) for i in range(7)]
    assert json.loads((out / "summary.json").read_text())["tool"] == "build"


def test_the_same_bytes_in_any_run_and_another_order_by_seed(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", 9)
    sets = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(source, tmp_path / name, samples_per_shard=4, shuffle_seed=seed)
        sets.append(tars(tmp_path / name))
    assert sets[0] == sets[1] != sets[2]


def test_a_build_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = fill(tmp_path / "in", 9), tmp_path / "out"
    whole = tmp_path / "whole"
    build(source, whole, samples_per_shard=3)
    load = mapping.load_engine

    def stopped(tasks, workers):
        yield 0, run_task(tasks[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(mapping, "load_engine", lambda name: stopped)
    with pytest.raises(KeyboardInterrupt):
        build(source, out, samples_per_shard=3)
    assert len(tars(out)) == 1
    monkeypatch.setattr(mapping, "load_engine", load)
    assert build(source, out, samples_per_shard=3)["done_before"] == 1
    assert tars(out) == tars(whole)
    (out / "shard-00001.tar").unlink()  # a lost shard comes back
    assert build(source, out, samples_per_shard=3)["done_before"] == 2
    assert tars(out) == tars(whole)


def test_rejects_are_listed_retried_and_limited(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 6, bad=(1, 4)), tmp_path / "out"
    (source / "05.txt").unlink()
    options = {"samples_per_shard": 2, "max_bad_fraction": 0.5}
    facts = build(source, out, **options)
    assert facts["samples"] == 3
    assert facts["counts"]["rejects unreadable_image"] == 2
    assert facts["counts"]["rejects no_caption"] == facts["counts"]["shards left empty"] == 1
    rejects = read_table(out / "rejects.parquet").to_pylist()
    assert [r["key"] for r in rejects] == ["000000001", "000000004", "000000005"]
    assert list(tars(out)) == ["shard-00000.tar", "shard-00001.tar"]
    with pytest.raises(DataError, match="3 of 6 .*2 unreadable_image.*--max-bad-fraction 0.4"):
        build(source, out, **{**options, "max_bad_fraction": 0.4})
    (source / "01.png").write_bytes(noise_bytes(1))
    (source / "05.txt").write_text("caption 5")
    facts = build(source, out, **options)
    assert (facts["samples"], facts["done_before"], facts["counts"]["rejects"]) == (5, 1, 1)
    (source / "04.png").write_bytes(noise_bytes(4))
    build(source, out, **options)
    assert not (out / "rejects.parquet").exists()
    build(fill(tmp_path / "good", 6), tmp_path / "fresh", samples_per_shard=2)
    assert tars(out) == tars(tmp_path / "fresh")


def test_images_that_are_no_files_are_rejects_and_not_opened(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 4), tmp_path / "out"
    for i in range(3):
        (source / f"{i:02d}.png").unlink()
    os.mkfifo(source / "00.png")
    (source / "01.png").symlink_to("/dev/zero")
    (source / "02.png").touch()
    os.truncate(source / "02.png", 6_000_000_000)
    facts = build(source, out, max_bad_fraction=1)
    assert facts["samples"] == 1 and facts["counts"]["rejects missing"] == 2
    assert facts["counts"]["rejects too_many_bytes"] == 1


def test_a_reject_that_can_be_read_later_is_tried_though_it_looks_the_same(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 4), tmp_path / "out"
    path, good = source / "02.png", noise_bytes(2)
    path.write_bytes(bytes(len(good)))
    os.utime(path, (0, 0))
    assert build(source, out, max_bad_fraction=1)["counts"]["rejects"] == 1
    path.write_bytes(good)
    os.utime(path, (0, 0))
    assert build(source, out)["samples"] == 4


def test_shards_keep_the_size_limit(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 12), tmp_path / "out"
    build(source, out, max_shard_mb=0.02)
    assert len(tars(out)) > 2 and all(len(data) <= 20_000 for data in tars(out).values())


def test_other_content_source_and_options_are_refused(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 4), tmp_path / "out"
    build(source, out)
    for options, message in [
        ({"shuffle_seed": 1}, "begun with shuffle seed None and not 1; repeat"),
        ({"samples_per_shard": 7}, "samples per shard 10000 and not 7"),
        ({"prefix": "train"}, "prefix shard and not train"),
    ]:
        with pytest.raises(DataError, match=message):
            build(source, out, **options)
    with pytest.raises(DataError, match="source .*in and not .*in2"):
        build(fill(tmp_path / "in2", 4), out)
    fill(source, 5)
    with pytest.raises(DataError, match="from a source that held other samples"):
        build(source, out)
    with pytest.raises(DataError, match="in exists"):
        build(source, tmp_path / "in")
    for arguments, message in [
        ({"kind": "cvs"}, "did you mean 'csv'"),
        ({"check": "x"}, "--check x"),
        ({"prefix": "a/b"}, "--prefix"),
        ({"samples_per_shard": 0}, "above 0"),
    ]:
        with pytest.raises(DataError, match=message):
            build(source, tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_dry_run_and_limit(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in", 6), tmp_path / "out"
    assert build(source, out, samples_per_shard=2, dry_run=True)["shards"] == 3
    assert not out.exists()
    assert build(source, out, samples_per_shard=2, limit=1)["samples"] == 2
    assert list(tars(out)) == ["shard-00000.tar"]
    assert build(source, out, samples_per_shard=2)["done_before"] == 1


def test_a_table_gives_the_shards_of_the_folder(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", 5)
    lines = [f'{{"image": "{i:02d}.png", "caption": "caption {i}"}}' for i in range(5)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    build(source, tmp_path / "a")
    build(tmp_path / "t.jsonl", tmp_path / "b", root=source, columns=Columns(image="image"))
    assert tars(tmp_path / "a") == tars(tmp_path / "b")


def test_the_form_is_told_by_the_look(tmp_path: Path) -> None:
    for name, form in [
        ("t.CSV", "csv"), ("t.tsv", "tsv"), ("t.ndjson", "jsonl"), ("t.parquet", "parquet")
    ]:  # fmt: skip
        (tmp_path / name).touch()
        assert guess_format(tmp_path / name) == form
    assert guess_format(tmp_path) == "parquet"
    (tmp_path / "0_stats.json").touch()
    (tmp_path / "0.tar").touch()
    assert guess_format(tmp_path) == "img2dataset"
    (tmp_path / "x").mkdir()
    assert guess_format(tmp_path / "x") == "folder"
    with pytest.raises(DataError, match="no such file"):
        guess_format(tmp_path / "none")
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(DataError, match="--format"):
        guess_format(tmp_path / "t.xlsx")
