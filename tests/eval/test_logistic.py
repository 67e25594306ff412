"""Logistic regression against scikit-learn, finite differences and closed forms."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from clipkit.eval import logistic
from clipkit.eval.logistic import NO_CHANCE, LogisticProblem


def cone(n=300, dim=12, classes=5, seed=0):
    """Unit features with a large common mean, as a tower gives them, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, dim))
    x = 6 + centres[labels] + 1.5 * rng.normal(size=(n, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x).float(), torch.from_numpy(labels)


def peer(x, y, c):
    return LogisticRegression(C=c, tol=1e-10, max_iter=20000).fit(x.double().numpy(), y.numpy())


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0, 1e4])
def test_parity_with_scikit_learn(c):
    x, y = cone()
    other = peer(x, y, c)
    ours = LogisticProblem(x, y, 5).fit(c, tolerance=1e-10, max_iterations=5000)
    scale = max(1.0, np.abs(other.coef_).max())
    assert np.allclose(ours.weight.numpy(), other.coef_, atol=1e-4 * scale)
    assert np.allclose(ours.bias.numpy(), other.intercept_, atol=1e-4 * scale)
    found = ours.log_probabilities(x)
    assert np.allclose(found.exp().numpy(), other.predict_proba(x.double().numpy()), atol=1e-4)
    assert (found.argmax(1).numpy() == other.predict(x.double().numpy())).all()


def test_parity_at_the_default_tolerance_on_digits():
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float()
    train, test = slice(0, 600), slice(600, 1200)
    y = torch.from_numpy(y).long()
    other = peer(x[train], y[train], 10.0)
    ours = LogisticProblem(x[train], y[train], 10).fit(10.0)
    assert ours.converged
    probabilities = ours.log_probabilities(x[test]).exp().numpy()
    assert np.allclose(probabilities, other.predict_proba(x[test].double().numpy()), atol=1e-4)
    assert (probabilities.argmax(1) == other.predict(x[test].double().numpy())).all()


def test_two_classes_equal_scikit_learn_at_twice_the_c():
    x, y = cone(classes=2)
    ours = LogisticProblem(x, y, 2).fit(3.0, tolerance=1e-10)
    other = peer(x, y, 6.0)
    assert np.allclose((ours.weight[1] - ours.weight[0]).numpy(), other.coef_[0], atol=1e-4)
    assert np.allclose(
        ours.log_probabilities(x).exp().numpy(),
        other.predict_proba(x.double().numpy()),
        atol=1e-4,
    )


def test_gradient_against_finite_differences():
    x, y = cone(n=40, dim=4, classes=3)
    problem = LogisticProblem(x, y, 3)
    at = np.random.default_rng(1).normal(size=3 * 5)
    _, gradient = problem._loss(at, 0.3)
    for i in range(len(at)):
        step = np.zeros_like(at)
        step[i] = 1e-5
        slope = (problem._loss(at + step, 0.3)[0] - problem._loss(at - step, 0.3)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, abs=1e-8)


def test_blocks_do_not_change_the_fit(monkeypatch):
    x, y = cone(n=101)
    whole = LogisticProblem(x, y, 5).fit(10.0)
    monkeypatch.setattr(logistic, "_BLOCK", 5 * 16)
    parts = LogisticProblem(x, y, 5).fit(10.0)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)
    assert torch.allclose(whole.log_probabilities(x), parts.log_probabilities(x), atol=1e-6)


def test_a_warm_start_ends_where_a_cold_one_does_in_fewer_steps():
    x, y = cone()
    problem = LogisticProblem(x, y, 5)
    near = problem.fit(80.0, tolerance=1e-8)
    cold = problem.fit(100.0, tolerance=1e-8)
    warm = problem.fit(100.0, near, tolerance=1e-8)
    assert torch.allclose(cold.weight, warm.weight, atol=1e-4)
    assert torch.allclose(cold.bias, warm.bias, atol=1e-4)
    assert warm.iterations < cold.iterations
    assert problem.fit(100.0, cold, tolerance=1e-7).iterations <= 1


def test_features_without_content_give_the_prior():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    fitted = LogisticProblem(torch.ones(10, 4) / 2, labels, 3).fit(1e3, tolerance=1e-9)
    expected = torch.tensor([0.6, 0.3, 0.1])
    assert torch.allclose(
        fitted.log_probabilities(torch.ones(1, 4) / 2).exp()[0], expected, atol=1e-5
    )


def test_equal_priors_without_content_tie_exactly():
    labels = torch.arange(7).repeat(3)
    x = torch.full((21, 5), 5**-0.5)
    found = LogisticProblem(x, labels, 7).fit(1.0).log_probabilities(x)
    assert (found == found[:, :1]).all()


def test_classes_without_samples_never_win_and_stay_finite():
    x, y = cone(classes=3)
    fitted = LogisticProblem(x, y * 2, 7).fit(1.0)
    found = fitted.log_probabilities(x)
    assert found.shape == (300, 7) and bool(torch.isfinite(found).all())
    assert (found[:, [1, 3, 5, 6]] == NO_CHANCE).all()
    dense = LogisticProblem(x, y, 3).fit(1.0).log_probabilities(x)
    assert torch.equal(found[:, [0, 2, 4]], dense)


def test_one_class_is_certain():
    fitted = LogisticProblem(torch.eye(3), torch.ones(3, dtype=torch.int64), 2).fit(1.0)
    assert fitted.log_probabilities(torch.eye(3))[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_the_limit_of_steps_is_told():
    x, y = cone()
    problem = LogisticProblem(x, y, 5)
    assert not problem.fit(1e6, max_iterations=3).converged
    assert problem.fit(1.0).converged
