"""Outputs that are really reached inside a ball: what a lower bound of a margin must not exceed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from certkit.data import Dataset
from certkit.engine.execute import centres
from certkit.engine.program import Program
from certkit.records import Norm

STEPS = 5
INSIDE = 1.0 - 1e-9  # of the radius: rounding cannot carry a point out of the ball
CHUNK = 256


def attained(program: Program, model: nn.Module, data: Dataset, norm: Norm, eps: float) -> NDArray[np.float64]:
    """Per sample and other class the smallest margin seen (N, classes - 1), other classes in order.

    Points lie inside the ball and the data's box: the sample itself, and each point of a projected gradient descent on
    the smallest margin, in float64. ``model`` gives the gradients, from flat inputs; outputs are those of the program.
    """
    low, high = data.box
    found = []
    for start in range(0, len(data.labels), CHUNK):
        images, labels = data.images[start : start + CHUNK].double(), data.labels[start : start + CHUNK]
        x = images.flatten(1)
        point, seen = x, _margins(centres(program, images), labels)
        for step in range(STEPS):
            moved = point + 2 * eps / (step + 1) * _descent(model, point, labels, norm)
            point = projected(x, moved, norm, eps * INSIDE).clamp(low, high)
            seen = torch.minimum(seen, _margins(centres(program, point.reshape(images.shape)), labels))
        found.append(seen.numpy())
    return np.concatenate(found)


def projected(x: Tensor, point: Tensor, norm: Norm, eps: float) -> Tensor:
    """The points (N, entries) moved back into the balls around ``x``."""
    move = point - x
    if norm == "linf":
        return x + move.clamp(-eps, eps)
    length = move.norm(dim=1, keepdim=True)
    inside: Tensor = x + move * (eps / length.clamp(min=eps))
    return inside


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)
    own = logits.gather(1, labels[:, None])
    return own - logits[others].reshape(len(logits), -1)


def _descent(model: nn.Module, point: Tensor, labels: Tensor, norm: Norm) -> Tensor:
    """The direction of length 1 in ``norm`` in which the smallest margin falls fastest."""
    start = point.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(_margins(model(start), labels).amin(1).sum(), start)
    length = 1.0 if norm == "linf" else slope.norm(dim=1, keepdim=True).clamp(min=1e-300)
    down: Tensor = -(slope.sign() if norm == "linf" else slope / length)
    return down
