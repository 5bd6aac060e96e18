"""What an attack sees of the model, and what is kept of its way. Shape suffixes: B batch, K classes.

An attack that returns its last point, as the library's projected gradient descent does, may have passed over an example
and lost it again. The path keeps, for each row, the nearest example that it passed: Pintor et al. 2022, "Indicators of
Attack Failure" (arXiv 2106.09947), call the loss of it a silent success.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certkit.records import AttackNorm

from .geometry import along, size
from .model import Classifier, predictions, rivals
from .suites import Setting

SLACK = 1 + 1e-6  # the engine pulls inside what overshoots by rounding


class Spent(Exception):
    """The queries that one attack may spend are spent: what it found by then stands."""


class Path(nn.Module):
    """A classifier that watches every whole batch it is shown.

    ``eps_B`` bounds what counts, None bounds nothing. ``target``: the only class that counts, None for any but the
    label. ``queries``: how many each sample may get; the next one raises Spent.
    """

    def __init__(
        self,
        classifier: Classifier,
        x: Tensor,
        labels: Tensor,
        norm: AttackNorm,
        eps_B: Tensor | None,
        box: tuple[float, float],
        target: int | None = None,
        queries: int | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.x, self.labels = x, labels
        self.norm, self.eps_B, self.box = norm, eps_B, box
        self.target = target
        self.queries, self.spent = queries, 0
        self.best = x.clone()
        self.distance = torch.full((len(x),), torch.inf, device=x.device)

    def reached(self, logits_BK: Tensor) -> Tensor:
        """Which rows are where the attacker wants them, by the rule that counts in the end: a tie is an error."""
        seen = predictions(logits_BK.detach(), self.labels)
        hit: Tensor = (seen != self.labels) if self.target is None else (seen == self.target)
        return hit

    def found(self) -> Tensor:
        """Which rows have an example by now."""
        return self.distance.isfinite()

    def forward(self, x: Tensor) -> Tensor:
        self.spent += -(-len(x) // len(self.x))
        if self.queries is not None and self.spent > self.queries:
            raise Spent
        logits_BK: Tensor = self.classifier(x)
        if x.shape == self.x.shape:
            self._keep(x.detach(), logits_BK)
        return logits_BK

    def part(self, rows: Tensor) -> Path:
        """A path for some of the rows alone, with the queries that are left."""
        left = None if self.queries is None else max(self.queries - self.spent, 0)
        eps_B = None if self.eps_B is None else self.eps_B[rows]
        return Path(self.classifier, self.x[rows], self.labels[rows], self.norm, eps_B, self.box, self.target, left)

    def take(self, rows: Tensor, part: Path) -> None:
        """What the path of some rows found, where it is nearer."""
        nearer = part.distance < self.distance[rows]
        self.best[rows] = torch.where(along(nearer, part.x), part.best, self.best[rows])
        self.distance[rows] = torch.minimum(part.distance, self.distance[rows])

    def _keep(self, x: Tensor, logits_BK: Tensor) -> None:
        distance = size(self.norm, x - self.x)
        inside = ((x >= self.box[0]) & (x <= self.box[1])).flatten(1).all(dim=1)
        nearer = self.reached(logits_BK) & inside & (distance < self.distance)
        if self.eps_B is not None:
            nearer &= distance <= self.eps_B * SLACK
        self.distance = torch.where(nearer, distance, self.distance)
        self.best = torch.where(along(nearer, x), x, self.best)


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One attack on one batch at one radius, as certkit's own attacks get it.

    ``sources`` is one generator per row. ``eps_B`` is infinite for an attack that looks for its own radius.
    ``surrogate``: the other network of a transfer attack.
    """

    path: Path
    x: Tensor
    labels: Tensor
    eps_B: Tensor
    norm: AttackNorm
    box: tuple[float, float]
    sources: list[torch.Generator]
    restart: int
    settings: Mapping[str, Setting]
    surrogate: Classifier | None = None

    def whole(self, name: str) -> int:
        """A setting that is a whole number."""
        return int(self.settings[name])


def ranked(logits_BK: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The k-th strongest class of each row other than its label; the last there is, for a larger k."""
    logits_BK = logits_BK.detach().scatter(1, labels.unsqueeze(1), -torch.inf)
    return logits_BK.argsort(dim=1, descending=True)[:, min(rank, logits_BK.shape[1] - 1) - 1]


class Duel(nn.Module):
    """The label against one rival alone, whatever the library's loss: the k-th strongest at the input, or at each point
    the strongest there, or the one class that the threat aims at.

    Cross-entropy pulls towards all wrong classes at once, and misses the nearest when it is not the likeliest; and it
    has no gradient left where the model is confident. Here the label has logit 0 and the rival margin / |margin|: the
    cross-entropy's gradient has the direction of the margin's and never vanishes with it.
    """

    def __init__(self, path: Path, rank: int | None) -> None:
        super().__init__()
        self.path = path
        self.labels = path.labels
        self.chosen: Tensor | None = None
        if path.target is not None:
            self.chosen = torch.full_like(path.labels, path.target)
        elif rank is not None:
            with torch.no_grad():
                self.chosen = ranked(path.classifier(path.x), path.labels, rank)

    def forward(self, x: Tensor) -> Tensor:
        logits_BK = self.path(x)
        label_B1 = self.labels.unsqueeze(1)
        rival_B1 = (rivals(logits_BK, self.labels) if self.chosen is None else self.chosen).unsqueeze(1)
        margin_B1 = logits_BK.gather(1, rival_B1) - logits_BK.gather(1, label_B1)
        duel_BK = torch.full_like(logits_BK, -1e4).scatter(1, label_B1, 0.0)
        return duel_BK.scatter(1, rival_B1, margin_B1 / margin_B1.detach().abs().clamp_min(1e-30))
