"""Means of every kind of set against loops; what is recorded; what cannot be fitted is named."""

import hashlib
import json

import pytest
import torch

from clipkit.data.mixed_set import open_mixed_set
from clipkit.data.shard_images import ShardImages, find_shards, hash_shards, open_shards
from clipkit.dist.group import World
from clipkit.errors import CheckpointError, DataError
from clipkit.eval.embed import Embedder
from clipkit.eval.embedding_writer import embed_shards
from clipkit.eval.modality_means import fit_calibration, scored_files
from clipkit.retrieval.calibration import Centring
from tests.eval import cells
from tests.fixtures_encoder import COLORS, color_encoder, write_color_set
from tests.fixtures_shards import image_bytes, write_tar

NAMES = list(COLORS)


def model_of(**options):
    """Features in which colours and texts differ by a gap."""
    encoder = color_encoder(lambda c: cells.mixed(c), lambda c: cells.mixed(c + 3))
    encoder.weights_hash = "w" * 64
    return Embedder(encoder, World(), batch_size=2, **options)


def text_mean(names):
    colors = torch.tensor([COLORS[n] for n in names], dtype=torch.float32)
    return cells.mixed(colors + 3).double().mean(0)


def image_mean(names):
    colors = torch.tensor([COLORS[n] for n in names], dtype=torch.float32)
    return cells.mixed(colors).double().mean(0)


def check(fit, images, texts, asked=None):
    """Means, counts and gaps are those of these colours."""
    found = fit.calibration
    for mean, expected in (
        (found.image, image_mean(images)),
        (found.text, text_mean(texts)),
        (found.query_text, text_mean(asked or texts)),
    ):
        assert mean.dtype == torch.float64 and torch.allclose(mean, expected, atol=1e-6)
    counts = {"query_text": len(asked or texts), "text": len(texts), "image": len(images)}
    assert found.counts == counts and found.weights_hash == "w" * 64
    assert fit.gap == pytest.approx(float((found.image - found.text).norm()))
    centring = Centring(found)
    colors = [torch.tensor([COLORS[n] for n in names]).float() for names in (images, texts)]
    after = centring.image(cells.mixed(colors[0])).double().mean(0) - centring.text(
        cells.mixed(colors[1] + 3)
    ).double().mean(0)
    assert fit.gap_after == pytest.approx(float(after.norm()), abs=1e-6)
    return found


def hashes(root):
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.tar")}


def test_a_retrieval_set_gives_all_its_captions(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2], ["a red", "a green\nno blue", "a blue"])
    found = check(
        fit_calibration(model_of(), str(root)), NAMES[:3], ["red", "green", "blue", "blue"]
    )
    assert found.files == hashes(root) == scored_files(root, "test")
    assert found.data == str(root) and found.refinements == ()


def test_a_classification_set_gives_its_prompts(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 1, 2])
    images = [NAMES[i] for i in (0, 1, 1, 2)]
    check(fit_calibration(model_of(), str(root)), images, [n for n in NAMES for _ in range(2)])


def write_loose(root):
    """Shards with a bad image, a sample without a caption and one without an image."""
    rows = [("red", "blue"), (None, "red"), ("green", ""), ("white", "green")]
    members = []
    for i, (color, caption) in enumerate(rows):
        image = image_bytes(COLORS[color]) if color else b"no image"
        members += [(f"{i}.png", image)] + [(f"{i}.txt", caption.encode())] * bool(caption)
    write_tar(root / "0.tar", members[:3])
    write_tar(root / "1.tar", members[3:])
    return root


def sized(model):
    """The encoder takes a placeholder too, which is larger than the images."""
    pixels = model.encoder.preprocess
    model.encoder.preprocess = lambda image: pixels(image.resize((8, 8)))
    return model


def test_shards_give_good_images_and_their_captions(tmp_path):
    root = write_loose(tmp_path)
    fit = fit_calibration(sized(model_of()), str(root / "*.tar"))
    found = check(fit, ["red", "green", "white"], ["blue", "red", "green"])
    assert found.files == hashes(root)


def embedded(root, out, model):
    paths = find_shards([str(root)])
    source = ShardImages(open_shards(paths)[0], hash_shards(paths, model.world))
    embed_shards(model, source, out, checkpoint="c", max_bad_fraction=0.5)
    return out


def test_embeddings_give_what_was_embedded(tmp_path):
    root, model = write_loose(tmp_path / "s"), sized(model_of())
    fit = fit_calibration(model, str(embedded(root, tmp_path / "emb", model)))
    assert fit.calibration.counts == {"query_text": 2, "text": 2, "image": 3}
    assert torch.allclose(fit.calibration.image, image_mean(["red", "green", "white"]), atol=1e-3)
    assert torch.allclose(fit.calibration.text, text_mean(["blue", "green"]), atol=1e-3)
    assert fit.calibration.files == hashes(root) and fit.gap_after < fit.gap
    other = model_of()
    other.encoder.weights_hash = "v" * 64
    with pytest.raises(CheckpointError, match="weights wwwwwwwwwwww, the checkpoint has vvvvvvvv"):
        fit_calibration(other, str(tmp_path / "emb"))
    with pytest.raises(CheckpointError, match="refined by none, those of the checkpoint by turned"):
        fit_calibration(model_of(refinements=[Turned()]), str(tmp_path / "emb"))


class Turned:
    name = "turned"

    def image(self, features):
        return features.roll(1, dims=1)

    text = image


def write_search_set(root):
    documents = [("red", ""), ("", "green"), ("white", "blue")]
    (root / "img").mkdir(parents=True)
    rows = []
    for i, (text, image) in enumerate(documents):
        if image:
            (root / "img" / f"{i}.png").write_bytes(image_bytes(COLORS[image]))
        rows.append({"corpus_id": f"{i}", "text": text, "image": f"img/{i}.png" if image else ""})
    queries = [{"query_id": "q", "text": "green", "image": ""}]
    for file, lines in (("queries", queries), ("mixed_corpus", rows)):
        (root / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    (root / "qrels.tsv").write_text("q\t1\t1\n")
    open_mixed_set(root)
    return root


def test_a_search_set_gives_its_own_queries(tmp_path):
    fit = fit_calibration(model_of(), str(write_search_set(tmp_path)))
    found = check(fit, ["green", "blue"], ["red", "white"], ["green"])
    assert fit.asked == "the set's own"
    names = ("queries.jsonl", "mixed_corpus.jsonl")
    assert found.files == {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in names}
    assert found.files == scored_files(tmp_path, "test")


def test_queries_of_a_file_of_a_set_and_of_a_search_set(tmp_path):
    root = write_color_set(tmp_path / "a", [0, 1, 2], ["red", "green", "blue"])
    (tmp_path / "q.txt").write_text("white\n\nred\n")
    write_color_set(tmp_path / "b", [0, 1], ["white", "blue"])
    write_search_set(tmp_path / "c")
    for place, asked in (("q.txt", ["white", "red"]), ("b", ["white", "blue"]), ("c", ["green"])):
        queries = tmp_path / place
        fit = fit_calibration(model_of(), str(root), queries=str(queries))
        found = check(fit, NAMES[:3], NAMES[:3], asked)
        assert fit.asked == str(queries) and len(found.files) > len(hashes(root))
        assert found.files > hashes(root)
    assert "texts" in fit_calibration(model_of(), str(root)).asked


def test_what_refines_before_is_recorded_and_done(tmp_path):
    root = write_color_set(tmp_path, [0, 1, 2], ["red", "green", "blue"])
    found = fit_calibration(model_of(refinements=[Turned()]), str(root)).calibration
    assert found.refinements == ("turned",)
    assert torch.allclose(found.image, image_mean(NAMES[:3]).roll(1), atol=1e-6)


def test_what_cannot_be_fitted_is_named(tmp_path):
    root = write_color_set(tmp_path / "a", [0, 1], ["red", "green"])
    write_tar(tmp_path / "silent" / "0.tar", [("0.png", image_bytes())])
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\n")
    (tmp_path / "x.tar").write_bytes(b"0.txt\0\0\x01a red\n")
    for place, queries, words in (
        (tmp_path / "absent", None, "absent"),
        (tmp_path / "silent", None, "no sample has a caption"),
        (root, tmp_path / "empty.txt", "is empty; write one query a line"),
        (root, tmp_path / "odd.txt", "--queries .* cannot be read"),
        (root, tmp_path / "x.tar", "--queries .*x.tar: is no text; write one query a line"),
        (root, tmp_path / "gone", "no such folder"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            fit_calibration(model_of(), str(place), queries=str(queries) if queries else None)
        assert "\n" not in str(caught.value)


def fit_on_rank(world, root):
    encoder = color_encoder(cells.mixed, cells.mixed)
    pixels = encoder.preprocess
    encoder.preprocess = lambda image: pixels(image.resize((8, 8)))
    fit = fit_calibration(Embedder(encoder, world, batch_size=2), root)
    means = (fit.calibration.image, fit.calibration.text, fit.calibration.query_text)
    return [m.tolist() for m in means], sorted(fit.calibration.files), fit.gap_after


def test_two_ranks_fit_what_one_fits(tmp_path, ranks):
    root = str(write_loose(tmp_path))
    one = fit_on_rank(World(), root)
    assert ranks(2).run(fit_on_rank, root) == [one, one]
