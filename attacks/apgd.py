"""Projected gradient ascent that finds its own step size. Croce and Hein 2020, "Reliable evaluation of adversarial
robustness with an ensemble of diverse parameter-free attacks" (arXiv 2003.01690), algorithm 1; under l1 with the sparse
steps of Croce and Hein 2021, "Mind the box" (arXiv 2103.01208). Shape suffixes: B batch, N entries of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .draws import start
from .geometry import along, project, steepest
from .losses import cross_entropy, dlr_targeted, towards
from .path import Search, ranked

MOMENTUM = 0.75
RISES = 0.75  # of the steps since the last checkpoint: with fewer, the step size is halved
SPARSE, SPARSER, SHRINK, LEAST = 0.2, 1.5, 1.5, 0.1  # l1: share of entries moved at first, and how it and the step fall

LEFT = 0.75  # once no more of the rows than this are without an example, the others are left behind

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, labels and the class to aim at: larger is better


def checkpoints(steps: int) -> list[int]:
    """After how many steps the step size is looked at again: 22 % of them first, then ever more often."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    whole = [max(1, -(-round(share * steps * 10**6) // 10**6)) for share in shares[1:]]
    return sorted({point for point in whole if point <= steps})


def apgd_ce(search: Search) -> Tensor:
    """Cross-entropy of the label, or against the class that the threat aims at."""
    return ascend(search, *_likelihood(search))


def apgd_targeted(search: Search) -> Tensor:
    """The targeted difference-of-logits ratio, towards the rival that ranks at the input as this restart counts."""
    return ascend(search, dlr_targeted, _aim(search))


def transfer(search: Search) -> Tensor:
    """The strongest point for the surrogate under cross-entropy and margins in turn; the model itself is not asked."""
    surrogate = search.surrogate
    if surrogate is None:
        raise ValueError("a transfer attack has a surrogate")
    if search.restart == 0:
        return ascend(search, *_likelihood(search), surrogate)
    if search.path.target is not None:
        aim = torch.full_like(search.labels, search.path.target)
    else:
        with torch.no_grad():
            aim = ranked(surrogate(search.x), search.labels, search.restart)
    return ascend(search, towards, aim, surrogate)


def _likelihood(search: Search) -> tuple[Loss, Tensor]:
    target = search.path.target
    if target is None:
        return lambda logits, labels, _: cross_entropy(logits, labels), search.labels
    return lambda logits, _, aim: -cross_entropy(logits, aim), torch.full_like(search.labels, target)


def _aim(search: Search) -> Tensor:
    if search.path.target is not None:
        return torch.full_like(search.labels, search.path.target)
    with torch.no_grad():
        logits = search.path.classifier(search.x)
    return ranked(logits, search.labels, 1 + search.restart_B % (logits.shape[1] - 1))


def ascend(search: Search, loss: Loss, aim: Tensor, model: torch.nn.Module | None = None) -> Tensor:
    """Each row's point of largest loss; examples on the way are kept by the path.

    Rows whose sample has an example, under whichever restart, are left behind: their points stay where they are, and
    when none is left it is over.
    """
    x, eps_B, labels, path = search.x, search.eps_B, search.labels, search.path
    norm, box, steps = search.norm, search.box, search.whole("steps")

    def climb(point: Tensor) -> tuple[Tensor, Tensor]:
        point = point.detach().requires_grad_(True)
        with torch.enable_grad():
            value_B = loss((path if model is None else model)(point), labels, aim)
            (gradient,) = torch.autograd.grad(value_B.sum(), point)
        return value_B.detach(), torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)

    drawn = torch.stack([start(norm, tuple(x.shape[1:]), source) for source in search.sources]).to(x.device)
    point = project(norm, x, x + along(eps_B, x) * drawn, eps_B, box)
    ends, rows, sample_B = point.clone(), torch.arange(len(x), device=x.device), search.sample_B
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    value_B, gradient = climb(point)
    pace = (_Sparse if norm == "l1" else _Halving)(x, eps_B, steps)
    before = best = point
    best_B, best_gradient = value_B, gradient
    for step in range(steps):
        broken[sample_B[path.found()]] = True
        left = ~broken[sample_B]
        if model is None and not bool(left.any()):
            break
        if model is None and not path.classifier.tied and int(left.sum()) <= LEFT * len(x):
            ends[rows] = best
            path, rows, x, eps_B, labels, aim = (
                path.part(left),
                rows[left],
                x[left],
                eps_B[left],
                labels[left],
                aim[left],
            )
            point, before, best, gradient = point[left], before[left], best[left], gradient[left]
            value_B, best_B, best_gradient = value_B[left], best_B[left], best_gradient[left]
            sample_B = sample_B[left]
            pace.narrow_(left)
        ahead = project(norm, x, point + pace.move(norm, gradient), eps_B, box)
        if pace.momentum and step:
            ahead = project(norm, x, point + MOMENTUM * (ahead - point) + (1 - MOMENTUM) * (point - before), eps_B, box)
        before, point = point, ahead
        last_B = value_B
        value_B, gradient = climb(point)
        higher = value_B > best_B
        best_B = torch.where(higher, value_B, best_B)
        best = torch.where(along(higher, x), point, best)
        best_gradient = torch.where(along(higher, x), gradient, best_gradient)
        back = pace.look(step + 1, value_B > last_B, best_B, best)
        if back is not None:
            point = torch.where(along(back, x), best, point)
            gradient = torch.where(along(back, x), best_gradient, gradient)
    ends[rows] = best
    return ends


class _Halving:
    """Starts at twice the radius; halves a row's step, and puts it back on its best point, where it stopped rising."""

    momentum = True

    def __init__(self, x: Tensor, eps_B: Tensor, steps: int) -> None:
        self.step_B = 2 * eps_B
        points = checkpoints(steps)
        self.since = dict(zip(points, [end - begin for begin, end in pairwise([0, *points])], strict=True))
        self.rises_B = torch.zeros(len(x), device=x.device)
        self.best_B = torch.full((len(x),), -torch.inf, device=x.device)
        self.halved_B = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def narrow_(self, rows: Tensor) -> None:
        self.step_B, self.rises_B = self.step_B[rows], self.rises_B[rows]
        self.best_B, self.halved_B = self.best_B[rows], self.halved_B[rows]

    def move(self, norm: str, gradient: Tensor) -> Tensor:
        return along(self.step_B, gradient) * steepest(norm, gradient)  # type: ignore[arg-type]

    def look(self, step: int, rose_B: Tensor, best_B: Tensor, best: Tensor) -> Tensor | None:
        self.rises_B = self.rises_B + rose_B
        if step not in self.since:
            return None
        stuck = ~self.halved_B & (best_B <= self.best_B)
        back = (self.rises_B <= RISES * self.since[step]) | stuck
        self.step_B = torch.where(back, self.step_B / 2, self.step_B)
        self.rises_B, self.best_B, self.halved_B = torch.zeros_like(self.rises_B), best_B, back
        return back


class _Sparse:
    """Moves the entries of largest gradient alone, fewer of them as the best point gets sparser."""

    momentum = False

    def __init__(self, x: Tensor, eps_B: Tensor, steps: int) -> None:
        self.x, self.eps_B, self.step_B = x, eps_B, eps_B.clone()
        self.entries = x[0].numel()
        self.share_B = torch.full((len(x),), SPARSE, device=x.device)
        self.changed_B = torch.full((len(x),), float(self.entries), device=x.device)
        self.every = max(1, int(0.04 * steps))

    def narrow_(self, rows: Tensor) -> None:
        self.x, self.eps_B, self.step_B = self.x[rows], self.eps_B[rows], self.step_B[rows]
        self.share_B, self.changed_B = self.share_B[rows], self.changed_B[rows]

    def move(self, norm: str, gradient: Tensor) -> Tensor:
        flat_BN = gradient.flatten(1)
        count_B = (self.share_B * self.entries).long().clamp(1, self.entries)
        sorted_BN = flat_BN.abs().sort(dim=1, descending=True).values
        least_B1 = sorted_BN.gather(1, (count_B - 1).unsqueeze(1))
        kept_BN = torch.where(flat_BN.abs() >= least_B1, flat_BN.sign(), torch.zeros_like(flat_BN))
        unit_BN = kept_BN / kept_BN.abs().sum(dim=1, keepdim=True).clamp_min(1.0)
        return along(self.step_B, gradient) * unit_BN.reshape(gradient.shape)

    def look(self, step: int, rose_B: Tensor, best_B: Tensor, best: Tensor) -> Tensor | None:
        if step % self.every:
            return None
        changed_B = (best != self.x).flatten(1).sum(dim=1).float()
        sparser = changed_B < 0.95 * self.changed_B
        self.share_B = (changed_B / self.entries / SPARSER).clamp_min(1 / self.entries)
        slower = torch.maximum(self.step_B / SHRINK, LEAST * self.eps_B)
        self.step_B = torch.where(sparser, self.eps_B, slower)
        self.changed_B = changed_B.clamp_min(1.0)
        return sparser
