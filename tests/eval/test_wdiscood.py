"""WDiscOOD: what whitening and discriminants must satisfy, and scores by a slow reference."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clipkit.eval import wdiscood
from clipkit.eval.wdiscood import fit


def clusters(n=600, d=6, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    mixing = torch.randn(d, d, generator=g, dtype=torch.float64)
    means = 3 * torch.randn(classes, d, generator=g, dtype=torch.float64)
    x = means[labels] + torch.randn(n, d, generator=g, dtype=torch.float64) @ mixing
    return x, labels


def test_whitened_within_class_covariance_is_the_identity():
    x, labels = clusters()
    found = fit(x, labels)
    within = (x - found.class_means[labels]) @ found.whitening
    assert torch.allclose(within.T @ within / len(x), torch.eye(6).double(), atol=1e-9)


def test_axes_are_orthonormal_and_leave_nothing_of_the_classes_outside():
    x, labels = clusters()
    found = fit(x, labels)
    assert found.axes.shape == (3, 6)  # C - 1
    assert torch.allclose(found.axes @ found.axes.T, torch.eye(3).double(), atol=1e-12)
    outside = torch.eye(6).double() - found.axes.T @ found.axes
    assert (outside @ found.axes.T).abs().max() < 1e-12
    assert ((found.class_means - found.mean) @ found.whitening @ outside).abs().max() < 1e-9


def test_fewer_axes_are_the_strongest_discriminants():
    x, labels = clusters()
    one = fit(x, labels, 1)
    line = (x - one.mean) @ one.whitening @ one.axes[0]
    peer = LinearDiscriminantAnalysis(solver="eigen", n_components=1)
    other = peer.fit(x.numpy(), labels.numpy()).transform(x.numpy())[:, 0]
    assert abs(np.corrcoef(line, other)[0, 1]) == pytest.approx(1, abs=1e-4)
    assert len(fit(x, labels, 2).axes) == 2 and len(fit(x, labels, 50).axes) == 3


def test_a_class_mean_has_no_distance_to_its_class():
    x, labels = clusters()
    found = fit(x, labels)
    assert found.score(found.class_means, 0.0).abs().max() < 1e-5
    assert (found.score(x, 0.0) <= 0).all()


def test_scores_against_a_slow_reference(monkeypatch):
    monkeypatch.setattr(wdiscood, "_ROWS", 16)
    x, labels = clusters(120)
    found = fit(x, labels, 2)
    outside = np.eye(6) - found.axes.numpy().T @ found.axes.numpy()
    white, axes = found.whitening.numpy(), found.axes.numpy()
    for alpha in (0.0, 5.0):
        scores = found.score(x[:40], alpha).tolist()
        for row, score in zip(x[:40].numpy(), scores):
            to_class = [np.linalg.norm(axes @ white @ (row - m)) for m in found.class_means.numpy()]
            rest = np.linalg.norm(outside @ white @ (row - found.mean.numpy()))
            assert score == pytest.approx(-min(to_class) - alpha * rest, abs=1e-6)


def test_alpha_alone_sees_what_no_class_has():
    x, labels = clusters()
    found = fit(x, labels)
    residual = torch.linalg.svd(found.axes)[2][-1]  # along no discriminant
    strange = x + 100 * torch.linalg.solve(found.whitening, residual)
    assert torch.allclose(found.score(strange, 0.0), found.score(x, 0.0), atol=1e-5)
    assert found.score(strange, 5.0).max() < found.score(x, 5.0).min() - 300


def test_the_rotation_of_features_does_not_matter():
    x, labels = clusters()
    turn = torch.linalg.qr(clusters(6, 6)[0])[0]
    assert torch.allclose(
        fit(x, labels).score(x, 5.0), fit(x @ turn, labels).score(x @ turn, 5.0), atol=1e-6
    )


def test_fewer_samples_than_dimensions_and_no_variance_at_all():
    x, labels = clusters(8, 20)
    assert torch.isfinite(fit(x, labels).score(clusters(5, 20, seed=3)[0], 5.0)).all()
    flat = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    scores = fit(flat, torch.tensor([0, 1, 2, 0])).score(torch.eye(3), 5.0)
    assert torch.isfinite(scores).all() and scores.abs().max() < 1
