"""Fusion and centring: closed forms, and what must not change a ranking."""

import json
import os
import stat

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.calibration import (
    Calibration,
    Centring,
    ModalityMeans,
    Shift,
    fit_means,
    fuse,
    load_calibration,
)


@pytest.fixture
def features():
    """(texts, images): two cones far apart, as CLIP's are."""
    rng = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(60, 8, generator=rng) + torch.eye(8)[0] * 5, dim=1)
    images = F.normalize(torch.randn(60, 8, generator=rng) + torch.eye(8)[1] * 5, dim=1)
    return texts, images


def plain(texts, images, a):
    """One item at a time."""
    rows = []
    for text, image, weight in zip(texts, images, a.tolist()):
        mixed = weight * text.double() + (1 - weight) * image.double()
        rows.append(mixed / mixed.norm())
    return torch.stack(rows).float()


def test_fused_rows_are_weighted_sums_of_unit_length(features):
    weight = torch.linspace(0, 1, 60, dtype=torch.float64)
    fused = fuse(*features, weight)
    assert fused.dtype == torch.float32
    assert torch.allclose(fused, plain(*features, weight), atol=1e-7)
    assert torch.allclose(fused.norm(dim=1), torch.ones(60), atol=1e-6)


def test_weight_one_is_the_text_and_zero_the_image(features):
    texts, images = features
    means = fit_means(texts, images)
    for subtracted in (None, means):
        one, zero = torch.ones(60), torch.zeros(60)
        text = fuse(texts, images, one, subtracted)
        assert torch.equal(text, fuse(texts, torch.zeros_like(images), one, subtracted))
        image = fuse(texts, images, zero, subtracted)
        assert torch.equal(image, fuse(torch.zeros_like(texts), images, zero, subtracted))
    assert torch.allclose(fuse(texts, images, torch.ones(60)), texts, atol=1e-6)
    assert torch.allclose(
        fuse(texts, images, torch.zeros(60), means),
        F.normalize(images - images.mean(dim=0), dim=1),
        atol=1e-6,
    )


def test_zero_means_leave_every_bit(features):
    zero = ModalityMeans(torch.zeros(8).double(), torch.zeros(8).double())
    weight = torch.tensor([0.0, 0.5, 1.0]).repeat(20)
    assert torch.equal(fuse(*features, weight, zero), fuse(*features, weight))


def test_centring_makes_the_centroids_coincide(features):
    texts, images = features
    means = fit_means(texts, images)
    assert float((texts.mean(dim=0) - images.mean(dim=0)).norm()) > 1
    centred = [texts.double() - means.text, images.double() - means.image]
    for rows in centred:
        assert float(rows.mean(dim=0).norm()) < 1e-12
    # the unit rows of the fused function are those rows, renormalised; at any alpha
    for alpha in (0.0, 0.3, 1.0):
        weight = torch.full((60,), alpha)
        w = float(weight.double()[0])
        expected = F.normalize(w * centred[0] + (1 - w) * centred[1], dim=1)
        assert torch.allclose(fuse(texts, images, weight, means).double(), expected, atol=1e-7)


def test_half_the_gap_on_both_sides_closes_it(features):
    """Mind the Gap: moving each side by half the gap vector makes the centroids coincide."""
    texts, images = (rows.double() for rows in features)
    means = fit_means(texts, images)
    gap = means.image - means.text
    assert torch.allclose((texts + gap / 2).mean(0), (images - gap / 2).mean(0), atol=1e-12)


def test_means_of_nothing_are_zero():
    means = fit_means(torch.zeros(0, 4), torch.ones(3, 4))
    assert means.text.tolist() == [0.0] * 4 and means.image.tolist() == [1.0] * 4


def test_a_row_that_is_the_mean_becomes_zero_not_nan():
    rows = torch.tensor([[1.0, 0.0]])
    assert fuse(rows, rows, torch.ones(1), fit_means(rows, rows)).tolist() == [[0.0, 0.0]]


def test_equal_items_stay_equal(features):
    texts, images = features
    texts[7], images[7] = texts[3], images[3]
    fused = fuse(texts, images, torch.full((60,), 0.4), fit_means(texts, images))
    assert torch.equal(fused[7], fused[3])


def calibrated(texts, images, asked=None, **facts):
    means = fit_means(texts, images)
    query = means.text if asked is None else fit_means(asked, images).text
    return Calibration(query, means.text, means.image, "w" * 64, **facts)


def test_centring_with_zero_means_ranks_as_before(features):
    zero = torch.zeros(8, dtype=torch.float64)
    centring = Centring(Calibration(zero, zero, zero, "w"))
    texts, images = features
    plain = (texts.double() @ images.double().T).argsort(dim=1)
    centred = (centring.text(texts).double() @ centring.image(images).double().T).argsort(dim=1)
    assert torch.equal(plain, centred)


def test_centring_is_the_feature_minus_its_mean_made_unit(features):
    texts, images = features
    fitted = calibrated(texts, images, asked=texts[:20])
    centring = Centring(fitted)
    for rows, found, mean in (
        (texts, centring.text(texts), fitted.text),
        (images, centring.image(images), fitted.image),
        (texts, centring.for_queries().text(texts), fitted.query_text),
        (images, centring.for_queries().image(images), fitted.image),
    ):
        expected = torch.stack([(r.double() - mean) / (r.double() - mean).norm() for r in rows])
        assert found.dtype == torch.float32 and torch.allclose(found.double(), expected, atol=1e-7)
    assert not torch.allclose(centring.text(texts), centring.for_queries().text(texts), atol=1e-3)


def test_before_they_are_made_unit_centred_centroids_coincide_exactly():
    """In numbers that fp64 adds without rounding, exactly is exactly."""
    rng = torch.Generator().manual_seed(1)
    texts = torch.randint(-64, 64, (64, 8), generator=rng) / 64
    images = torch.randint(-64, 64, (64, 8), generator=rng) / 64 + 1
    fitted = calibrated(texts, images)
    moved = [texts.double() - fitted.text, images.double() - fitted.image]
    assert torch.equal(moved[0].mean(0), moved[1].mean(0)) and not moved[0].mean(0).any()


def test_a_document_that_is_all_text_is_the_centred_text(features):
    texts, images = features
    fitted = calibrated(texts, images)
    assert torch.equal(
        fuse(texts, images, torch.ones(60), fitted.documents), Centring(fitted).text(texts)
    )
    assert torch.equal(
        fuse(texts, images, torch.zeros(60), fitted.documents), Centring(fitted).image(images)
    )


def test_a_shift_of_zero_leaves_every_bit(features):
    shift = Shift(calibrated(*features), 0.0)
    for rows, found in zip(features, (shift.text(features[0]), shift.image(features[1]))):
        assert torch.equal(rows, found)


@pytest.mark.parametrize("weight", [0.5, -0.3, 0.25])
def test_a_shift_moves_both_sides_along_the_gap(features, weight):
    texts, images = features
    fitted = calibrated(texts, images, asked=texts[:20])
    gap = fitted.image - fitted.text
    shift = Shift(fitted, weight)
    moved = texts.double() + weight * gap, images.double() - weight * gap
    expected = (1 - 2 * weight) * gap  # half of it on both sides closes it
    assert torch.allclose(moved[1].mean(0) - moved[0].mean(0), expected, atol=1e-12)
    for found, rows in zip((shift.text(texts), shift.image(images)), moved):
        assert torch.allclose(found.double(), rows / rows.norm(dim=1, keepdim=True), atol=1e-7)
        assert found.dtype == torch.float32


def test_names_tell_what_is_done_and_by_which_means(features):
    texts, images = features
    one, other = calibrated(texts, images), calibrated(texts, images + 1e-6)
    assert one.identity == calibrated(texts, images).identity != other.identity
    assert one.identity != calibrated(texts, images, asked=texts[:20]).identity
    assert Centring(one).name == Centring(one).for_queries().name == f"centring-{one.identity}"
    assert Shift(one, 0.5).name == f"shift0.5-{one.identity}"
    assert len({Shift(one, 0.1).name, Shift(one, 0.1 + 1e-9).name, Shift(other, 0.1).name}) == 3


def test_saved_and_read_to_the_last_bit(features, tmp_path):
    facts = {
        "refinements": ("fusion x",),
        "counts": {"query_text": 20, "text": 60, "image": 60},
        "data": "some/set",
        "files": frozenset({"b" * 64, "a" * 64}),
    }
    saved = calibrated(*features, asked=features[0][:20], **facts)
    path = tmp_path / "deep" / "calibration.safetensors"
    saved.save(path)
    saved.save(path)  # again, over itself
    found = load_calibration(path, "w" * 64)
    for name in ("query_text", "text", "image"):
        assert torch.equal(getattr(found, name), getattr(saved, name))
    assert found.identity == saved.identity and found.weights_hash == saved.weights_hash
    assert {k: getattr(found, k) for k in facts} == facts
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~_mask()


def _mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_other_weights_or_refinements_are_refused_by_name(features, tmp_path):
    fitted = calibrated(*features)
    fitted.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="weights wwwwwwwwwwww, the model has vvvvvvvvvvvv"):
        load_calibration(tmp_path / "c", "v" * 64)
    with pytest.raises(CheckpointError, match="weights that still change"):
        load_calibration(tmp_path / "c", "")
    with pytest.raises(CheckpointError, match="with no refinement, these have fusion x"):
        fitted.check("w" * 64, ["fusion x"])
    refined = calibrated(*features, refinements=("fusion x",))
    with pytest.raises(CheckpointError, match="with fusion x, these have no refinement"):
        refined.check("w" * 64, [])
    refined.check("w" * 64, ["fusion x"])


def test_what_cannot_be_read_is_one_line(features, tmp_path):
    path = tmp_path / "c"
    with pytest.raises(CheckpointError, match="no such calibration; write one with clipkit cal"):
        load_calibration(path)
    fitted = calibrated(*features)
    fitted.save(path)
    whole = path.read_bytes()
    means = {n: getattr(fitted, n).clone() for n in ("query_text", "text", "image")}
    facts = {"weights_hash": "w", "refinements": [], "counts": {}, "data": "", "files": []}
    notes = {"format": "clipkit-calibration-1", "facts": json.dumps(facts)}

    def written(changed, metadata):
        return safetensors.torch.save({**means, **changed}, metadata)

    for content, words in (
        (b"", "is no calibration"),
        (whole[:-9], "is no calibration"),
        (b"x" * 200, "is no calibration"),
        (written({}, None), "its format is unknown"),
        (written({}, {**notes, "format": "other"}), "its format is other"),
        (written({}, {**notes, "facts": "{"}), "is no calibration"),
        (written({}, {**notes, "facts": "[]"}), "is no calibration"),
        (written({}, {"format": notes["format"]}), "facts"),
        (written({"text": torch.zeros(8)}, notes), "text is torch.float32"),
        (written({"text": torch.zeros(7).double()}, notes), "is no calibration"),
        (written({"text": torch.full((8,), torch.nan).double()}, notes), "text is not finite"),
        (written({"text": torch.eye(8)[0].double() * 1.1}, notes), "text is longer than a unit"),
        *[
            (written({}, {**notes, "facts": json.dumps({**facts, name: value})}), f"'{name}' is")
            for name, value in (("counts", []), ("refinements", "xy"), ("files", {}))
        ],
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_calibration(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="is no calibration"):
        load_calibration(tmp_path)


def test_means_of_another_length_are_one_line(features):
    texts, images = features
    fitted = calibrated(texts[:, :1], images[:, :1])  # would broadcast
    for change in (Centring(fitted), Shift(fitted, 0.5)):
        for call, rows in ((change.text, texts), (change.image, images)):
            with pytest.raises(CheckpointError, match="means of length 1, features of 8; run clip"):
                call(rows)
    with pytest.raises(CheckpointError, match="means of length 1, features of 8"):
        fuse(texts, images, torch.ones(60), fitted.documents)


def test_a_place_that_cannot_be_written_is_named(features, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        calibrated(*features).save(tmp_path / "file" / "c")
