"""Foolbox 3.3.4 as a proposer of examples. Nothing it says about success, distance or radius is believed.

What is avoided: its global random stream (starts are handed in), its clean errors counted as successes (only samples
that are right come here), its repeats on broken samples (the engine passes survivors), its clipping (the engine
measures again). PyPI has had no newer release; the version is part of the plan.
"""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from certkit.records import AttackSpec, Norm

from .draws import directions, generator, seeded, start
from .model import Classifier, predictions, rivals
from .suites import METHODS, OWN

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which needs a git binary or this
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox
    from eagerpy.astensor import astensor, astensor_


class Error(foolbox.criteria.Misclassification):  # type: ignore[misc, unused-ignore]
    """An example counts while it is searched for as it counts in the end: a tie is an error."""

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        logits, restore = astensor_(outputs)
        return restore(astensor(predictions(logits.raw, self.labels.raw) != self.labels.raw))


class Duel(nn.Module):
    """The label against one rival alone, whatever the library's loss: the k-th strongest at the input, or at each point
    the strongest there.

    Cross-entropy pulls towards all wrong classes at once, and misses the nearest when it is not the likeliest; and it
    has no gradient left where the model is confident. Here the label has logit 0 and the rival margin / |margin|: the
    cross-entropy's gradient has the direction of the margin's and never vanishes with it.
    """

    def __init__(self, classifier: Classifier, x: Tensor, labels: Tensor, rank: int | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.labels = labels
        self.chosen: Tensor | None = None
        if rank is not None:
            with torch.no_grad():
                logits_BK = classifier(x).scatter(1, labels.unsqueeze(1), -torch.inf)
            self.chosen = logits_BK.argsort(dim=1, descending=True)[:, min(rank, logits_BK.shape[1] - 1) - 1]

    def forward(self, x: Tensor) -> Tensor:
        logits_BK = self.classifier(x)
        label_B1 = self.labels.unsqueeze(1)
        rival_B1 = (rivals(logits_BK, self.labels) if self.chosen is None else self.chosen).unsqueeze(1)
        margin_B1 = logits_BK.gather(1, rival_B1) - logits_BK.gather(1, label_B1)
        duel_BK = torch.full_like(logits_BK, -1e4).scatter(1, label_B1, 0.0)
        return duel_BK.scatter(1, rival_B1, margin_B1 / margin_B1.detach().abs().clamp_min(1e-30))


class Foolbox:
    """Foolbox's attacks on one classifier inside one box."""

    def __init__(self, classifier: Classifier, box: tuple[float, float], seed: int) -> None:
        self.classifier = classifier.eval()
        self.box = box
        self.device = classifier.device
        self.seed = seed

    def propose(
        self, spec: AttackSpec, x: Tensor, labels: Tensor, samples: list[int], eps: float | None, restart: int
    ) -> Tensor:
        """One candidate per row, in the shape of ``x``; it may be no example at all, too far away or not finite.

        ``samples`` are the rows' indices in the dataset: each names its own random start.
        """
        method, shape = METHODS[spec.name], tuple(x.shape[1:])
        attack = getattr(foolbox.attacks, method.kind)(**{k: v for k, v in spec.settings.items() if k not in OWN})
        sources = [generator(self.seed, sample, spec.name, restart) for sample in samples]
        if method.role == "floor":
            attack.check_trivial = False
            drawn = torch.stack([directions(method.norm, shape, attack.repeats, source) for source in sources], dim=1)
            prepared = iter(drawn.to(self.device))
            attack.sample_noise = lambda x0: astensor(next(prepared))
        elif getattr(attack, "random_start", False):
            point = torch.stack([start(method.norm, shape, source) for source in sources]).to(self.device)
            attack.get_random_start = lambda x0, epsilon: x0 + epsilon * astensor(point)
        losses = str(spec.settings.get("losses", "library")).split(", ")
        seen = self._under(losses[restart % len(losses)], x, labels)
        model = foolbox.models.pytorch.PyTorchModel(seen, bounds=self.box, device=self.device)
        radius = {} if eps is None else {"epsilon": min(eps, self._diameter(method.norm, x[0].numel()))}
        with warnings.catch_warnings(), seeded(self.device, self.seed, spec.name, restart, samples[0]):
            warnings.simplefilter("ignore")
            found: Tensor = attack.run(model, x, Error(labels), **radius)
        return found.detach()

    def _diameter(self, norm: Norm, size: int) -> float:
        """The largest distance within the box: a step in proportion to any larger radius would only hit its corners."""
        low, high = self.box
        return (high - low) * (1.0 if norm == "linf" else math.sqrt(size))

    def _under(self, loss: str, x: Tensor, labels: Tensor) -> nn.Module:
        """The model under which the library's loss is the one asked for: ``library``, ``margin`` or ``rival k``."""
        if loss == "library":
            return self.classifier
        rank = None if loss == "margin" else int(loss.removeprefix("rival "))
        return Duel(self.classifier, x, labels, rank).eval()
