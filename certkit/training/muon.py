"""Muon: momentum, then the steepest step in each weight's norm. Keller Jordan 2024; Bernstein and Newhouse 2024."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from certkit.errors import suggestion
from certkit.models.geometry import Entries, Geometry, Rows, Spectral
from certkit.training.newton_schulz import SETS, Coefficients, Triples, orthogonalised

Mapped: TypeAlias = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]

INFLATION = 16.0  # a row of the update is at most this often as long, against its momentum, as the longest row's

# How far lr moves a matrix: its update has singular values of about lr times this.
SCALES: dict[str, Callable[[Spectral, Sequence[int]], float]] = {
    "geometry": lambda kind, shape: kind.unit(shape),  # lr in the norm that the layer declares
    "rms": lambda kind, shape: math.sqrt(shape[-2] / shape[-1]),  # lr from RMS to RMS; arXiv 2507.13338
    "original": lambda kind, shape: math.sqrt(max(1, shape[-2] / shape[-1])),  # Jordan
    "match-rms-adamw": lambda kind, shape: 0.2 * math.sqrt(max(shape[-2:])),  # Moonlight, arXiv 2502.16982
    "spectral": lambda kind, shape: 1.0,
}


def _whole(function: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
    return function(stack)


class Muon(Optimizer):
    """Moves each weight against its momentum by ``lr`` in the norm that it lives in, and never by more.

    A matrix moves along the polar factor of its momentum, by Newton-Schulz in float32 (float64 for float64 weights)
    with six coefficient triples that never exceed 1; all matrices of one shape are one batch. A table of rows moves
    each row along its momentum, all by lr in RMS. Momentum is an exponential average, Nesterov's by default; weight
    decay is decoupled and uses lr as given. Other coefficients, a length by another rule of ``SCALES``, or bfloat16 are
    for comparison: ``moved`` says what can still be promised. ``mapped`` computes a function of a stack (k, m, n) that
    treats its matrices one by one, for instance in several processes, and returns a tensor that Muon may overwrite.
    """

    def __init__(
        self,
        weights: Iterable[tuple[Tensor, Geometry]],
        lr: float,
        momentum: float = 0.95,
        *,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        scale: str = "geometry",
        coefficients: str | Triples = "six-step",
        dtype: torch.dtype | None = None,
        mapped: Mapped = _whole,
    ) -> None:
        if not 0 < lr < math.inf or not 0 <= momentum < 1:
            raise ValueError(f"Muon needs lr > 0 and 0 <= momentum < 1, got {lr} and {momentum}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"Muon needs weight_decay >= 0, got {weight_decay}")
        if dtype not in (None, torch.float32, torch.float64, torch.bfloat16):
            raise ValueError(f"Muon computes in float32, float64 or bfloat16, not {dtype}")
        self._scale, self._dtype, self._mapped = _named(scale, SCALES, "scale"), dtype, mapped
        self._coefficients = (
            _named(coefficients, SETS, "coefficients")
            if isinstance(coefficients, str)
            else Coefficients(coefficients, maximum=math.inf)
        )
        held = list(weights)
        for weight, kind in held:
            if isinstance(kind, Entries) or weight.ndim < 2:
                raise ValueError(
                    f"Muon steps matrices and tables of rows; a weight of shape {tuple(weight.shape)} with geometry "
                    f"{kind} belongs to another optimiser"
                )
        self._geometry: dict[Tensor, Geometry] = dict(held)
        self._moved: dict[Tensor, float] = {}
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__([weight for weight, _ in held], defaults)

    def moved(self, weight: Tensor) -> float | None:
        """A bound of how far the latest step moved this weight, its decay apart; None where none is proved.

        In the largest singular value for matrices, in the l2 norm of a row for tables. 0 without a gradient.
        """
        bound = self._moved.get(weight, 0.0)
        return bound if bound < math.inf else None

    def weighing(self, weight: Tensor) -> float:
        """What this weight's steps are multiplied by: 1 unless ``weigh_`` said otherwise."""
        return float(self.state[weight].get("weighing", 1.0))

    def weigh_(self, weight: Tensor, factor: float) -> None:
        """Multiply this weight's steps by a factor from here on; it is kept with the state."""
        self.state[weight]["weighing"] = torch.tensor(factor, dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._moved.clear()
        for group in self.param_groups:
            batches: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
            moving = [weight for weight in group["params"] if weight.grad is not None]
            for weight, direction in zip(moving, self._directions(moving, group), strict=True):
                table = isinstance(self._geometry[weight], Rows)
                key = (table, weight.shape[-2:], weight.dtype, weight.device)
                batches.setdefault(key, []).append((weight, direction))
            for (table, *_), same in batches.items():
                move = self._move_rows_ if table else self._move_matrices_
                move([weight for weight, _ in same], [direction for _, direction in same], group)
        return loss

    def _directions(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The averages of the gradients, moved on by Nesterov's step; no gradient is changed."""
        if not weights:
            return []
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averages = [self.state[weight].setdefault("momentum", torch.zeros_like(weight)) for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, averages, group["momentum"])) if group["nesterov"] else averages

    def _move_matrices_(self, weights: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
        dtype = self._dtype or (torch.float64 if weights[0].dtype == torch.float64 else torch.float32)
        stack = torch.cat([one.reshape(-1, *one.shape[-2:]) for one in directions]).to(dtype)
        found = self._mapped(self._orthogonalised, stack).to(weights[0].dtype)
        pieces = torch.split(found, [one.shape[:-2].numel() for one in directions])
        lengths = []
        for weight in weights:
            kind = self._geometry[weight]
            assert isinstance(kind, Spectral)
            lengths.append(group["lr"] * self._scale(kind, weight.shape) * self.weighing(weight))
            exact = dtype != torch.bfloat16 and weight.dtype != torch.bfloat16
            self._moved[weight] = lengths[-1] * self._coefficients.maximum if exact else math.inf
        _move_(weights, [piece.view_as(one) for piece, one in zip(pieces, weights, strict=True)], lengths, group)

    def _orthogonalised(self, stack: Tensor) -> Tensor:
        return orthogonalised(stack, self._coefficients.triples)

    def _move_rows_(self, weights: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
        """The steepest step in the largest RMS of a row: every row to RMS 1, short ones inflated to 16 times at most.

        A row that no sample looked up has no momentum and stays; one of rounding noise must not move as far as the
        rest. Reference code of arXiv 2507.13338, which also inflates by at most 16.
        """
        lengths = [group["lr"] * self.weighing(weight) for weight in weights]
        for weight, length in zip(weights, lengths, strict=True):
            self._moved[weight] = length * math.sqrt(weight.shape[-1]) * (1 + 1e-6)  # float32 rounds
        _move_(weights, [_steepest_rows(one) for one in directions], lengths, group)


def _steepest_rows(table: Tensor) -> Tensor:
    """Each row over its RMS, or over a sixteenth of the largest RMS where that is more; zero stays zero."""
    table = table / table.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(table.dtype).tiny)
    rms = table.square().mean(-1, keepdim=True, dtype=torch.float64).sqrt().to(table.dtype)
    least = rms.amax(-2, keepdim=True) / INFLATION
    return table / torch.maximum(rms, least).clamp_min(torch.finfo(table.dtype).tiny)


def _move_(weights: list[Tensor], updates: list[Tensor], lengths: list[float], group: dict[str, Any]) -> None:
    """weight - (length·update + lr·decay·weight), rounded once: float32's 1 - lr·decay is another share."""
    torch._foreach_mul_(updates, lengths)
    if decay := group["lr"] * group["weight_decay"]:
        torch._foreach_add_(updates, weights, alpha=decay)
    torch._foreach_sub_(weights, updates)


def _named(given: str, known: dict[str, Any], what: str) -> Any:
    if given not in known:
        raise ValueError(
            f"Muon knows no {what} {given!r}; expected one of {', '.join(known)}{suggestion(given, known)}"
        )
    return known[given]
