"""Multinomial logistic regression with an L2 penalty, by L-BFGS over rows in blocks.

Minimises C * sum_i -log softmax(W x_i + b)[y_i] + 0.5 |W|^2 over W and b, as scikit-learn's
LogisticRegression(C) does for three classes and more. For two classes scikit-learn fits one weight
vector; this form equals it at half its C.

Shapes: n samples, D features, K classes that occur, C classes in all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

_BLOCK = 1 << 24  # entries of one block of logits
NO_CHANCE = torch.finfo(torch.float32).min  # of a class without training samples; finite for JSON


@dataclass(frozen=True)
class Logistic:
    """A fitted classifier.

    Attributes:
        weight: (K, D) fp64 on the CPU.
        bias: (K,) fp64 on the CPU.
        classes: (K,) which of the C classes each row stands for.
        num_classes: C.
        iterations: Of L-BFGS.
        converged: False where the limit of iterations ended the search.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor
    num_classes: int
    iterations: int
    converged: bool

    def log_probabilities(self, features: Tensor) -> Tensor:
        """(n, C) fp32, computed in fp64 so that equal classes tie; NO_CHANCE for unseen classes."""
        out = torch.full((len(features), self.num_classes), NO_CHANCE)
        rows = max(1, _BLOCK // self.num_classes)
        for start in range(0, len(features), rows):
            logits = features[start : start + rows].double() @ self.weight.T + self.bias
            out[start : start + rows, self.classes] = logits.log_softmax(dim=1).float()
        return out


class LogisticProblem:
    """Training data, ready to be fitted at any C.

    The search runs over features that are centred and scaled by one number. The optimum stays the
    same, since the intercept is free and the penalty is scaled along, and far fewer steps reach it:
    the features of a tower share a large mean.

    Args:
        features: (n, D) training features.
        labels: (n,) int64, 0 .. C - 1; classes may be missing.
        num_classes: C.
        device: Where to compute; fp64 on the CPU, fp32 elsewhere.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_classes = num_classes
        self.classes, targets = labels.cpu().unique(return_inverse=True)  # (K,), (n,)
        wide = features.double()
        self._mean = wide.mean(dim=0).cpu()
        centred = wide - self._mean.to(wide.device)
        self._scale = float(centred.square().mean().sqrt()) or 1.0
        dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32
        self._rows = (centred / self._scale).to(device, dtype)
        self._targets = targets.to(device)

    def fit(
        self,
        c: float,
        start: Logistic | None = None,
        *,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
    ) -> Logistic:
        """The classifier of least loss.

        Args:
            c: Inverse strength of the penalty, over the sum of losses.
            start: Where to begin, e.g. the fit at a neighbouring C; None begins at zero.
            tolerance: Largest entry of the gradient of the mean loss at which to stop.
            max_iterations: Where to stop at the latest.
        """
        kinds, dim = len(self.classes), self._rows.shape[1]
        penalty = 1.0 / (c * len(self._rows) * self._scale**2)
        first = np.zeros(kinds * (dim + 1))
        if start is not None:
            bias = start.bias + start.weight @ self._mean
            weight = start.weight * self._scale
            first = torch.cat([weight.reshape(-1), bias]).numpy()

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            return self._loss(flat, penalty)

        found = minimize(
            objective,
            first,
            jac=True,
            method="L-BFGS-B",
            options={
                "maxiter": max_iterations,
                "maxfun": 2 * max_iterations,
                "maxls": 50,
                "gtol": tolerance,
                "ftol": 64 * float(np.finfo(float).eps),
            },
        )
        best = torch.from_numpy(np.array(found.x))
        weight = best[: kinds * dim].view(kinds, dim) / self._scale
        bias = best[kinds * dim :] - weight @ self._mean
        iterations, converged = int(found.nit), found.status != 1  # 1: limit reached
        return Logistic(weight, bias, self.classes, self.num_classes, iterations, converged)

    def _loss(self, flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        """Mean loss and penalty at (W, b) in the scaled features, and the gradient."""
        kinds, dim = len(self.classes), self._rows.shape[1]
        point = torch.from_numpy(flat)
        here = point.to(self._rows)
        weight, bias = here[: kinds * dim].view(kinds, dim), here[kinds * dim :]
        loss = 0.0
        gradient = torch.zeros(kinds, dim + 1, dtype=torch.float64)
        size = max(1, _BLOCK // kinds)
        for first in range(0, len(self._rows), size):
            rows, targets = self._rows[first : first + size], self._targets[first : first + size]
            logits = torch.addmm(bias, rows, weight.T)  # (rows, K)
            logits -= logits.logsumexp(dim=1, keepdim=True)
            loss -= float(logits.gather(1, targets[:, None]).sum(dtype=torch.float64))
            excess = logits.exp_()
            excess.scatter_add_(1, targets[:, None], -torch.ones_like(excess[:, :1]))
            gradient[:, :dim] += (excess.T @ rows).double().cpu()
            gradient[:, dim] += excess.sum(dim=0, dtype=torch.float64).cpu()
        gradient /= len(self._rows)
        weight = point[: kinds * dim].view(kinds, dim)
        gradient[:, :dim] += penalty * weight
        value = loss / len(self._rows) + 0.5 * penalty * float(weight.square().sum())
        flat_gradient = torch.cat([gradient[:, :dim].reshape(-1), gradient[:, dim]])
        return value, flat_gradient.numpy()
