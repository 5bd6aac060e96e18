"""An attack on the smoothed classifier itself: the upper rung that its radius must stay below."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from certkit.campaign import distance_up
from certkit.crosscheck.smoothing import Sampler
from certkit.data import Dataset
from certkit.machine import pinned
from certkit.records.crosscheck import SmoothedAttack, SmoothingResult

STEPS = 12
COPIES = 16
SHARES = (0.999, 1.1, 1.25, 1.5, 2.0, 3.0)  # of the certified radius, or of half of sigma where that is larger
PURPOSE = 1  # noise of its own


def attack_smoothed(
    model: torch.nn.Module, data: Dataset, result: SmoothingResult, *, threads: int | None = None
) -> SmoothingResult:
    """The result with an attack on each sample that the smoothed classifier gets right.

    Projected gradient ascent on the loss of the mean probability over noisy copies (expectation over transformation),
    at growing radii, the first inside the certified one. An example counts only if the smoothed classifier is *seen* to
    predict another class there: with the plan's number of draws that class beats the label. All tries together are
    wrong in at most the plan's alpha.
    """
    sampler = Sampler.of(model, result.plan)
    found = []
    with pinned(threads):
        for row, sample in enumerate(result.samples):
            distance = None
            if sample.predicted == sample.label:
                distance = _nearest(sampler, data.images[row], sample.label, sample.index, sample.radius)
            found.append(SmoothedAttack(index=sample.index, distance=distance))
    return result.model_copy(update={"attacks": tuple(found)})


def _nearest(sampler: Sampler, image: Tensor, label: int, index: int, radius: float) -> float | None:
    generator = sampler.generator(index, PURPOSE)
    x = sampler.on_grid(image)
    for share in SHARES:
        eps = share * max(radius, sampler.plan.sigma / 2)
        point = sampler.on_grid(_ascended(sampler, x, label, eps, generator))
        if beaten(sampler.counts(point, generator, sampler.plan.draws), label, sampler.plan.alpha / len(SHARES)):
            return float(distance_up("l2", x.numpy()[None], point.numpy()[None])[0])
    return None


def beaten(counts: np.ndarray[tuple[int], np.dtype[np.int64]], label: int, alpha: float) -> bool:
    """Whether another class came out so much more often than the label that chance explains it at most in alpha.

    The class is chosen after the draws, so that each of the others gets an equal part of alpha (Bonferroni).
    """
    from scipy.stats import binomtest

    others = counts.copy()
    others[label] = 0
    top, own = int(others.max()), int(counts[label])
    return top > own and binomtest(top, top + own, 0.5, alternative="greater").pvalue <= alpha / (len(counts) - 1)


def _ascended(sampler: Sampler, x: Tensor, label: int, eps: float, generator: np.random.Generator) -> Tensor:
    """The end of the ascent from x, inside the ball; noise is drawn anew at every step."""
    move = torch.zeros_like(x)
    for step in range(STEPS):
        copies = sampler.noisy(x, generator, COPIES).double()
        here = move.clone().requires_grad_()
        with torch.enable_grad():
            chances = torch.softmax(sampler.model((copies + here).to(sampler.dtype)).double(), dim=1)[:, label].mean()
            (slope,) = torch.autograd.grad(-torch.log(chances + 1e-30), here)
        move = move + 2 * eps / (1 + step) * slope / slope.norm().clamp(min=1e-300)
        move = move * (eps / move.norm().clamp(min=eps))
    return x + move
