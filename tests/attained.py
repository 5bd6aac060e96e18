"""Cases by hand in which a bound is met: a point where the slope is the gain, one where the norm is the size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.bound import Axes
from certkit.engine.program import Program, export
from tests.modules import BOX, NOISE, Net, prove, size, slopes


@dataclass(frozen=True, eq=False)
class Attained:
    """At ``x`` the slope of the rule's value meets its gain, and at ``largest`` its norm meets its size."""

    rule: str
    module: nn.Module
    x: Any
    norm: str = "l2"
    box: tuple[float, float] = BOX
    axes: Axes | None = None
    largest: Any = None
    fixed: Tensor | None = None
    tight: float = 1e-9

    @functools.cached_property
    def program(self) -> Program:
        return export(self.module, tuple(torch.as_tensor(self.x).shape))

    def check(self) -> None:
        at = torch.as_tensor(self.x, dtype=torch.float64)
        proof = prove(self.program, tuple(at.shape), box=self.box, norm=self.norm, fixed=self.fixed)
        node, step = proof.last(self.rule)
        axes = step.bound.axes if self.axes is None else self.axes
        reach = step.bound.within(axes)
        found = [(slopes(proof.jacobians(node, at[None]), step.bound.shape, axes, self.norm), reach.gain)]
        if self.largest is not None:
            value = proof.values(node, torch.as_tensor(self.largest, dtype=torch.float64)[None])
            found.append((size(value, axes), reach.size))
        for measured, stated in found:
            assert float(measured[0]) <= stated.to_float() * (1 + NOISE)
            assert float(measured[0]) >= stated.to_float() * (1 - self.tight) - 1e-150  # the last for underflow alone


def flat(forward: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda net, x: forward(x).flatten(1))


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


def mapped(w: Tensor, b: Tensor | None = None) -> Net:
    return Net(lambda net, x: F.linear(x, w, b).flatten(1))
