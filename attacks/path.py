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
        self.origin: tuple[Path, Tensor] | None = None  # of a part: the path that it is of, and its rows there

    def reached(self, logits_BK: Tensor) -> Tensor:
        """Which rows are where the attacker wants them, by the rule that counts in the end: a tie is an error."""
        logits_BK = logits_BK.detach()
        if self.target is not None:
            return predictions(logits_BK, self.labels) == self.target
        label_B1 = self.labels.unsqueeze(1)
        rival_B = logits_BK.scatter(1, label_B1, -torch.inf).amax(dim=1)
        return ~(logits_BK.gather(1, label_B1).squeeze(1) > rival_B)

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
        """A path for some of the rows alone, with the queries that are left; what it passes, this one keeps too."""
        left = None if self.queries is None else max(self.queries - self.spent, 0)
        eps_B = None if self.eps_B is None else self.eps_B[rows]
        part = Path(self.classifier, self.x[rows], self.labels[rows], self.norm, eps_B, self.box, self.target, left)
        part.origin = self, rows
        return part

    def _take(self, rows: Tensor, best: Tensor, distance: Tensor) -> None:
        """What the path of some rows found, where it is nearer."""
        nearer = distance < self.distance[rows]
        self.best[rows] = torch.where(along(nearer, best), best, self.best[rows])
        self.distance[rows] = torch.minimum(distance, self.distance[rows])
        self._pass_on()

    def _pass_on(self) -> None:
        if self.origin is not None:
            whole, rows = self.origin
            whole._take(rows, self.best, self.distance)

    def _keep(self, x: Tensor, logits_BK: Tensor) -> None:
        hit = self.reached(logits_BK)
        if not bool(hit.any()):
            return
        distance = size(self.norm, x - self.x)
        inside = ((x >= self.box[0]) & (x <= self.box[1])).flatten(1).all(dim=1)
        nearer = hit & inside & (distance < self.distance)
        if self.eps_B is not None:
            nearer &= distance <= self.eps_B * SLACK
        self.distance = torch.where(nearer, distance, self.distance)
        self.best = torch.where(along(nearer, x), x, self.best)
        self._pass_on()


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One attack on one batch at one radius, as certkit's own attacks get it.

    ``sources`` is one generator per row. ``eps_B`` is infinite for an attack that looks for its own radius. Several
    restarts may stand in one batch, one after the other: ``restart`` is the first of them, ``together`` how many.
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
    together: int = 1

    @property
    def restart_B(self) -> Tensor:
        """The restart that each row is."""
        each = torch.arange(self.restart, self.restart + self.together, device=self.x.device)
        return each.repeat_interleave(len(self.x) // self.together)

    @property
    def sample_B(self) -> Tensor:
        """Which rows are of one sample."""
        return torch.arange(len(self.x) // self.together, device=self.x.device).repeat(self.together)

    def whole(self, name: str) -> int:
        """A setting that is a whole number."""
        return int(self.settings[name])


def ranked(logits_BK: Tensor, labels: Tensor, rank: int | Tensor) -> Tensor:
    """The k-th strongest class of each row other than its label; the last there is, for a larger k."""
    logits_BK = logits_BK.detach().scatter(1, labels.unsqueeze(1), -torch.inf)
    place_B = torch.as_tensor(rank, device=labels.device).clamp(1, logits_BK.shape[1] - 1) - 1
    return logits_BK.argsort(dim=1, descending=True).gather(1, place_B.expand(len(labels)).unsqueeze(1)).squeeze(1)


LIBRARY, MARGIN = 0, -1  # what a row may have in place of the rank of a rival


class Duel(nn.Module):
    """The label against one rival alone: the k-th strongest at the input, or at each point the strongest there
    (``MARGIN``), or the one class that the threat aims at; rows of rank ``LIBRARY`` keep the library's loss.

    Cross-entropy pulls towards all wrong classes at once, and misses the nearest when it is not the likeliest; and it
    has no gradient left where the model is confident. Here the label has logit 0 and the rival margin / |margin|: the
    cross-entropy's gradient has the direction of the margin's and never vanishes with it.
    """

    def __init__(self, path: Path, rank_B: Tensor) -> None:
        super().__init__()
        self.path = path
        self.labels = path.labels
        self.plain_B1 = (rank_B == LIBRARY).unsqueeze(1)
        self.moving_B = rank_B == MARGIN
        if path.target is not None:
            self.plain_B1, self.moving_B = (torch.zeros_like(one) for one in (self.plain_B1, self.moving_B))
            self.chosen_B = torch.full_like(path.labels, path.target)
        else:
            with torch.no_grad():
                self.chosen_B = ranked(path.classifier(path.x), path.labels, rank_B)

    def forward(self, x: Tensor) -> Tensor:
        logits_BK = self.path(x)
        label_B1 = self.labels.unsqueeze(1)
        rival_B1 = torch.where(self.moving_B, rivals(logits_BK, self.labels), self.chosen_B).unsqueeze(1)
        margin_B1 = logits_BK.gather(1, rival_B1) - logits_BK.gather(1, label_B1)
        duel_BK = torch.full_like(logits_BK, -1e4).scatter(1, label_B1, 0.0)
        duel_BK = duel_BK.scatter(1, rival_B1, margin_B1 / margin_B1.detach().abs().clamp_min(1e-30))
        return torch.where(self.plain_B1, logits_BK, duel_BK)
