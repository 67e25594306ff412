"""Small add-ons, each using one part of the contract that later work stands on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.addons.base import AddOn, StepView
from clipkit.addons.ema import ExponentialMovingAverage
from clipkit.contracts import Batch, Features, Outputs, Pair
from tests.tiny_model import tiny_model


class ExtraTexts(AddOn):
    """K negative captions per sample become columns."""

    def pairs(self, pairs: list[Pair]) -> list[Pair]:
        return [Pair(p.image, p.text, (*p.columns, "negative"), p.weight) for p in pairs]


class SecondView(AddOn):
    """Another view, of another size, meets the text in a pair of its own."""

    def pairs(self, pairs: list[Pair]) -> list[Pair]:
        return [*pairs, Pair("small", "text", weight=0.5)]


class Uniformity(AddOn):
    """Log of a mean over all pairs of the global batch: no sum of ranks' local terms gives it."""

    def loss_terms(self, features: Features) -> dict[str, Tensor]:
        local, everyone = features.local("image")[:, 0], features.all("image")[:, 0]
        sums = features.sum(torch.exp(-2 * torch.cdist(local, everyone).clamp(min=1e-6) ** 2).sum())
        return {"uniformity": 0.3 * torch.log(sums / len(everyone) ** 2)}


class _Captioner(nn.Module):
    """A per-sample loss over a varying number of tokens, left as a sum and a count."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.project = nn.Linear(16, 8)

    def forward(self, out: Outputs, batch: Batch) -> Outputs:
        valid = (batch.texts["text"][:, 0] % 3 != 0).float()  # (b, 8)
        per_token = self.project(out.embeddings["image"][:, 0]) ** 2  # (b, 8)
        sums, counts = (per_token * valid).sum(dim=1), valid.sum(dim=1)
        return out._replace(per_sample={"caption": sums, "caption_count": counts})


class Captioning(AddOn):
    def heads(self) -> dict[str, nn.Module]:
        return {"captioner": _Captioner()}


class _Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.weight = nn.Parameter(torch.eye(16) + 0.1 * torch.randn(16, 16))

    def forward(self, out: Outputs, batch: Batch) -> Outputs:
        image = F.normalize(out.embeddings["image"] @ self.weight, dim=-1)
        return out._replace(embeddings={**out.embeddings, "image": image})


class Adapter(AddOn):
    """A trainable head over frozen towers."""

    def heads(self) -> dict[str, nn.Module]:
        return {"adapter": _Adapter()}


class _Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model(seed=77).requires_grad_(False)
        self.calls = 0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        assert not torch.is_grad_enabled()
        out = self.model(batch)
        return {"teacher_image": out.embeddings["image"]}


class Distillation(AddOn):
    """A teacher's features, compared with the student's over the global batch."""

    def __init__(self) -> None:
        self.teacher = _Teacher()

    def frozen_models(self) -> dict[str, nn.Module]:
        return {"teacher": self.teacher}

    def loss_terms(self, features: Features) -> dict[str, Tensor]:
        student = features.local("image")[:, 0] @ features.all("image")[:, 0].T
        teacher = features.local("teacher_image")[:, 0] @ features.all("teacher_image")[:, 0].T
        return {"distillation": ((student - teacher.detach()) ** 2).mean()}


class Queue(AddOn):
    """Texts of earlier steps as further negatives."""

    def __init__(self) -> None:
        self.queue = torch.zeros(0, 16)

    def loss_terms(self, features: Features) -> dict[str, Tensor]:
        if not len(self.queue):
            return {}
        logits = features.logit_scale * features.local("image")[:, 0] @ self.queue.T
        return {"queue": 0.1 * torch.logsumexp(logits, dim=1).mean()}

    def after_step(self, result: StepView) -> None:
        self.queue = torch.cat([self.queue, result.features.all("text")[:, 0]])[-32:]

    def state_dict(self) -> dict[str, Any]:
        return {"queue": self.queue}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.queue = state["queue"]


PROBES: dict[str, type[AddOn]] = {
    "extra_texts": ExtraTexts,
    "second_view": SecondView,
    "uniformity": Uniformity,
    "captioning": Captioning,
    "adapter": Adapter,
    "distillation": Distillation,
    "queue": Queue,
    "ema": ExponentialMovingAverage,
}
