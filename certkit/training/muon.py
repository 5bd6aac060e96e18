"""Muon: momentum, then the steepest step in the spectral norm. Keller Jordan 2024; Bernstein and Newhouse 2024."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from certkit.training.newton_schulz import orthogonalised


class Muon(Optimizer):
    """Moves matrices (or stacks of them) by ``lr`` times the polar factor of their momentum: at most lr in spectral norm.

    Nesterov momentum as an exponential average, Newton-Schulz in float32 with six coefficient triples that never exceed
    1; weights of one shape are orthogonalised as one batch. Weights that are no maps of l2 belong to another optimiser.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        if not lr > 0 or not 0 <= momentum < 1:
            raise ValueError(f"Muon needs lr > 0 and 0 <= momentum < 1, got {lr} and {momentum}")
        super().__init__(list(weights), {"lr": lr, "momentum": momentum})
        if flat := [tuple(w.shape) for group in self.param_groups for w in group["params"] if w.ndim < 2]:
            raise ValueError(f"Muon steps matrices; a weight of shape {flat[0]} is none")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every weight that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            batches: dict[tuple[Any, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    batches.setdefault((weight.shape, weight.dtype, weight.device), []).append(weight)
            for same in batches.values():
                updates = torch.stack([self._direction(weight, group["momentum"]) for weight in same])
                for weight, update in zip(same, orthogonalised(updates), strict=True):
                    weight.add_(update.to(weight.dtype), alpha=-group["lr"])
        return loss

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        assert weight.grad is not None
        state = self.state[weight]
        average = state.setdefault("momentum", torch.zeros_like(weight))
        average.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum).float()
