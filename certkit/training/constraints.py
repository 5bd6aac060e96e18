"""What keeps every weight inside its cap after every step. Each entry says whether its promise is proved, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from certkit.training.newton_schulz import polar

SAFETY = 1e-6  # float32 rounding of the last Newton-Schulz step; the cap is approached to this share from below


@dataclass(frozen=True, slots=True)
class Constraint:
    """``project(weight, cap)`` gives the weight that replaces one which a step moved; ``provable`` is its promise.

    Provable means: the largest singular value is at most cap * (1 + 1e-6) after every step, whatever the gradient.
    """

    project: Callable[[Tensor, float], Tensor]
    provable: bool
    reason: str


def stiefel(weight: Tensor, cap: float) -> Tensor:
    """cap times the polar factor: every singular value becomes cap. Cesista 2025; arXiv 2507.13338, section 3."""
    return polar(weight) * (cap * (1 - SAFETY))


CONSTRAINTS = {
    "stiefel": Constraint(
        stiefel,
        provable=True,
        reason="1.5x - 0.5x^3 never exceeds 1 on [0, sqrt(3)], and the result is scaled down by more than float32 rounds",
    ),
}


@torch.no_grad()
def constrain_(weight: Tensor, cap: float, constraint: Constraint) -> None:
    """Replace the weight, or each matrix of a stack, by its projection."""
    weight.copy_(constraint.project(weight, cap))
