"""Folders of embeddings: aligned, counted, atomic, the same warm, cold and on two ranks."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clipkit.data.shard_images import ShardImages, find_shards, hash_shards, open_shards
from clipkit.dist.group import World
from clipkit.errors import ConfigError, DataError
from clipkit.eval import embedding_writer
from clipkit.eval.base import NonFiniteResult
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_folder import open_embeddings
from clipkit.eval.embedding_writer import embed_shards
from clipkit.eval.feature_cache import FeatureCache
from tests.fixtures_encoder import COLORS, color_encoder
from tests.fixtures_shards import image_bytes, noise_bytes, write_tar

BAD = {2: b"no image", 5: b"\x89PNG damaged", 6: None}


def write_set(root: Path, counts: tuple[int, ...] = (3, 4, 2), bad=BAD, silent=(4,)) -> Path:
    """Noise with a colour as its caption; some images bad, some samples without a caption."""
    row = 0
    for number, count in enumerate(counts):
        members = []
        for i in range(row, row + count):
            image = bad.get(i, noise_bytes(i))
            if image is not None:
                members.append((f"{i:04d}.png", image))
            if i not in silent:
                members.append((f"{i:04d}.txt", f"a {list(COLORS)[i % 4]} thing".encode()))
        write_tar(root / f"{number}.tar", members)
        row += count
    return root


def model_of(cache=None, world=None, batch_size=2, weights="w", **options) -> Embedder:
    encoder = color_encoder(**options)
    encoder.weights_hash, encoder.transform_hash = weights, "t"
    pixels = encoder.preprocess
    encoder.preprocess = lambda image: pixels(image.resize((8, 8)))  # a placeholder is larger
    kept = FeatureCache(Path(cache)) if cache else None
    return Embedder(encoder, world or World(), cache=kept, batch_size=batch_size)


def embed(shards: Path, out: Path, model=None, limit=0.5, rows=4, **options) -> bool:
    model = model or model_of()
    paths = find_shards([str(shards)])
    source = ShardImages(open_shards(paths)[0], hash_shards(paths, model.world))
    return embed_shards(
        model, source, out, checkpoint="c", rows_per_file=rows, max_bad_fraction=limit, **options
    )


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def columns(out: Path, number: int) -> dict[str, list]:
    return parquet.read_table(out / "metadata" / f"metadata_{number}.parquet").to_pydict()


def test_layout_for_plain_numpy_and_pyarrow(tmp_path):
    shards, out = write_set(tmp_path / "s"), tmp_path / "out"
    assert embed(shards, out)
    names = {p.name for p in out.iterdir()}
    assert names == {"img_emb", "text_emb", "metadata", "index.json"}
    good = [[0, 1, 3], [4, 7], [8]]
    place = {0: ("0", 0), 1: ("0", 1), 3: ("1", 0), 4: ("1", 1), 7: ("2", 0), 8: ("2", 1)}
    for number, rows in enumerate(good):
        images = np.load(out / "img_emb" / f"img_emb_{number}.npy", allow_pickle=False)
        texts = np.load(out / "text_emb" / f"text_emb_{number}.npy", allow_pickle=False)
        table = columns(out, number)
        assert images.dtype == texts.dtype == np.float16
        assert images.shape == texts.shape == (len(rows), 3)
        assert table["key"] == [f"{i:04d}" for i in rows]
        assert table["has_caption"] == [i != 4 for i in rows]
        assert [(Path(s).stem, n) for s, n in zip(table["shard"], table["sample"])] == [
            place[i] for i in rows
        ]
        for i, image, text, caption in zip(rows, images, texts, table["caption"]):
            pixels = np.asarray(_decode(noise_bytes(i))).reshape(-1, 3).astype(np.float64)
            expected = F.normalize(torch.from_numpy(pixels.mean(0) - 120), dim=0)
            assert np.abs(image - expected.numpy()).max() < 1e-3
            if i != 4:
                color = list(COLORS)[i % 4]
                expected = F.normalize(torch.tensor(COLORS[color]).double() - 120, dim=0)
                assert caption == f"a {color} thing"
                assert np.abs(text - expected.numpy()).max() < 1e-3
    facts = json.loads((out / "index.json").read_text())
    assert (facts["rows"], facts["file_rows"], facts["dim"]) == (6, [3, 2, 1], 3)
    assert (facts["samples"], facts["without_caption"], facts["text"]) == (9, 1, True)
    assert facts["skipped"] == {"unreadable_image": 2, "no_image": 1}
    assert {Path(k).name: v for k, v in facts["skipped_shards"].items()} == {"0.tar": 1, "1.tar": 2}
    assert [s["samples"] for s in facts["shards"]] == [3, 4, 2] and facts["checkpoint"] == "c"
    assert set(facts["versions"]) >= {"clipkit", "torch", "numpy", "pyarrow", "python"}


def _decode(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def test_without_captions_there_is_no_text_side(tmp_path):
    write_set(tmp_path / "s", silent=range(9))
    embed(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out" / "text_emb").exists()
    assert columns(tmp_path / "out", 0)["caption"] == [""] * 3
    assert open_embeddings(tmp_path / "out").sides() == ("image",)


def test_files_of_any_length_hold_the_same_rows(tmp_path):
    shards = write_set(tmp_path / "s")
    found = []
    for rows in (1, 4, 100):
        embed(shards, tmp_path / f"{rows}", rows=rows)
        folder = open_embeddings(tmp_path / f"{rows}")
        folder.check()
        blocks = [block for _, block in folder.blocks("image")]
        keys = [m["key"] for m in folder.metadata(range(len(folder)))]
        found.append((np.concatenate(blocks).tolist(), keys))
    assert found[0] == found[1] == found[2]
    assert open_embeddings(tmp_path / "1").file_rows == [1, 1, 0, 1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("kept_parts", ["all", "none", "text"])
def test_a_warm_cache_gives_what_a_cold_one_gave(tmp_path, kept_parts):
    shards, out, calls = write_set(tmp_path / "s"), tmp_path / "out", []
    embed(shards, out, model_of(tmp_path / "cache"))
    cold = content(out)
    shutil.rmtree(out)
    if kept_parts != "all":
        for note in list((tmp_path / "cache").rglob("key.json")):
            if kept_parts == "none" or json.loads(note.read_text())["kind"] == "image":
                shutil.rmtree(note.parent)
    assert embed(shards, out, model_of(tmp_path / "cache", calls=calls))
    assert content(out) == cold
    kinds = {"image" if b.images else "text" for b in calls}
    assert kinds == {"all": set(), "none": {"image", "text"}, "text": {"image"}}[kept_parts]


def test_an_interrupted_pass_goes_on(tmp_path):
    shards, out, calls = write_set(tmp_path / "s"), tmp_path / "out", []
    count = [0]

    def dies(color):
        count[0] += 1
        if count[0] > 3:
            raise KeyboardInterrupt
        return F.normalize(color - 120, dim=-1)

    with pytest.raises(KeyboardInterrupt):
        embed(shards, out, model_of(tmp_path / "cache", image_features=dies))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "s"]
    embed(shards, out, model_of(tmp_path / "cache", calls=calls))
    assert len([b for b in calls if b.images]) == 3  # two of the five batches were kept
    embed(shards, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")


def test_up_to_date_is_weights_transform_shards_and_layout(tmp_path):
    shards, out, calls = write_set(tmp_path / "s"), tmp_path / "out", []
    assert embed(shards, out)
    before = content(out)
    assert not embed(shards, out, model_of(calls=calls)) and not calls
    (out / "search.html").write_text("a sheet of clipkit search")
    assert not embed(shards, out)
    for change in (
        lambda: embed(shards, out, model_of(weights="other")),
        lambda: embed(shards, out, rows=5),
    ):
        with pytest.raises(ConfigError, match="--overwrite"):
            change()
    other = model_of()
    other.encoder.transform_hash = "other"
    with pytest.raises(ConfigError, match="--overwrite"):
        embed(shards, out, other)
    write_tar(shards / "2.tar", [("7.png", noise_bytes(70)), ("8.png", noise_bytes(8))])
    with pytest.raises(ConfigError, match="other shards, weights or settings"):
        embed(shards, out)
    assert content(out) == {**before, "search.html": b"a sheet of clipkit search"}
    assert embed(shards, out, overwrite=True)
    assert content(out)["img_emb/img_emb_1.npy"] != before["img_emb/img_emb_1.npy"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s"]


@pytest.mark.parametrize("name", ["img_emb/img_emb_1.npy", "metadata/metadata_0.parquet"])
@pytest.mark.parametrize("change", ["cut", "gone"])
def test_a_damaged_folder_is_written_again(tmp_path, name, change):
    shards, out = write_set(tmp_path / "s"), tmp_path / "out"
    embed(shards, out)
    whole = content(out)
    if change == "gone":
        (out / name).unlink()
    else:
        (out / name).write_bytes(whole[name][:-3])
    assert embed(shards, out)
    assert content(out) == whole


def test_what_is_not_ours_is_left_alone(tmp_path):
    shards = write_set(tmp_path / "s")
    for number, (name, text) in enumerate(
        (("mine.txt", "x"), ("index.json", '{"a": 1}'), ("img_emb", ""), ("index.json", "{"))
    ):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / name).write_text(text)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="not written by clipkit embed"):
                embed(shards, out, overwrite=overwrite)
        assert content(out) == {name: text.encode()}
    embed(shards, tmp_path / "own")
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not written by"):
        embed(shards, tmp_path / "own", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        embed(shards, tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        embed(shards, tmp_path / "file" / "below")


def test_an_empty_folder_and_a_link_are_filled(tmp_path):
    shards = write_set(tmp_path / "s")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert embed(shards, tmp_path / "link") and (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "index.json").is_file()


def test_too_many_bad_images_name_the_worst_shard(tmp_path):
    shards, out = write_set(tmp_path / "s"), tmp_path / "out"
    with pytest.raises(
        DataError,
        match=r"3 of 9 samples .*2 unreadable_image, 1 no_image; worst shard: .*/1.tar with 2"
        r".*--max-bad-fraction 0.3;",
    ):
        embed(shards, out, limit=0.3, rows=100)
    assert not out.exists() and sorted(p.name for p in tmp_path.iterdir()) == ["s"]
    assert embed(shards, out, limit=3 / 9)
    all_bad = write_set(tmp_path / "bad", counts=(2, 2), bad=dict.fromkeys(range(4), b"x"))
    with pytest.raises(DataError, match="none of 4 samples has a usable image"):
        embed(all_bad, tmp_path / "none", limit=1.0, rows=100)
    with pytest.raises(DataError, match="none of 4 samples has a usable image"):
        embed(all_bad, tmp_path / "none", limit=1.0, rows=2)


def test_a_failure_leaves_the_old_folder(tmp_path):
    shards, out = write_set(tmp_path / "s"), tmp_path / "out"
    embed(shards, out)
    before = content(out)
    broken = model_of(weights="n", image_features=lambda color: color * float("nan"))
    with pytest.raises(NonFiniteResult):
        embed(shards, out, broken, overwrite=True)
    assert content(out) == before and sorted(p.name for p in tmp_path.iterdir()) == ["out", "s"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedding_writer, "flush", full)
    with pytest.raises(ConfigError, match="out: cannot be written: No space left"):
        embed(write_set(tmp_path / "s"), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def _embedded(world, shards, out, cache):
    return embed(Path(shards), Path(out), model_of(cache, world))


def test_two_ranks_equal_one(tmp_path, ranks):
    shards = write_set(tmp_path / "s")
    embed(shards, tmp_path / "one")
    arguments = (str(shards), str(tmp_path / "two"), str(tmp_path / "cache"))
    assert ranks(2).run(_embedded, *arguments) == [True, True]
    assert content(tmp_path / "two") == content(tmp_path / "one")
    assert ranks(2).run(_embedded, *arguments) == [False, False]
    shutil.rmtree(tmp_path / "two")
    assert ranks(2).run(_embedded, *arguments) == [True, True]
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_grey_images_that_are_good_stay(tmp_path):
    members = [("a.png", image_bytes((128, 128, 128), side=64)), ("b.png", b"x")]
    write_tar(tmp_path / "s" / "0.tar", members)
    embed(tmp_path / "s", tmp_path / "out")
    assert columns(tmp_path / "out", 0)["key"] == ["a"]


class Flipped:
    name = "flipped"

    def image(self, features):
        return -features

    def text(self, features):
        return features.flip(1)


def test_refined_features_are_written_and_said(tmp_path):
    shards = write_set(tmp_path / "s")
    embed(shards, tmp_path / "plain")
    model = model_of(tmp_path / "cache")
    embed(shards, tmp_path / "out", model.refined_by([Flipped()]))
    for number in (0, 1, 2):
        for side, change in (("img_emb", lambda x: -x), ("text_emb", lambda x: x[:, ::-1])):
            name = f"{side}/{side}_{number}.npy"
            plain = np.load(tmp_path / "plain" / name)
            assert np.array_equal(np.load(tmp_path / "out" / name), change(plain))
    assert open_embeddings(tmp_path / "out").refinements == ["flipped"]
    assert open_embeddings(tmp_path / "plain").refinements == []
    assert not embed(shards, tmp_path / "out", model.refined_by([Flipped()]))
    for out, other in (("out", model), ("plain", model.refined_by([Flipped()]))):
        with pytest.raises(ConfigError, match="--overwrite"):
            embed(shards, tmp_path / out, other)
