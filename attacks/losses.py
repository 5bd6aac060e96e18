"""What an attack raises: one number per sample, larger where the label loses. Shape suffixes: B batch, K classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import rivals

TINY = 1e-12


def cross_entropy(logits_BK: Tensor, labels: Tensor) -> Tensor:
    """-log softmax of the label."""
    return torch.nn.functional.cross_entropy(logits_BK, labels, reduction="none")


def towards(logits_BK: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The margin of one class over the label: above 0 where that class beats it."""
    rows = torch.arange(len(labels), device=labels.device)
    return logits_BK[rows, target] - logits_BK[rows, labels]


def margin(logits_BK: Tensor, labels: Tensor) -> Tensor:
    """The margin of the strongest rival over the label. Carlini and Wagner 2017, arXiv 1608.04644."""
    return towards(logits_BK, labels, rivals(logits_BK, labels))


def dlr_targeted(logits_BK: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The margin of the target over the label, divided by what no shift and no scale of the logits changes.

    (z_t - z_y) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest logit: Croce and Hein 2020, arXiv 2003.01690. With
    fewer than four classes that divisor does not exist, and the plain margin is taken.
    """
    gap = towards(logits_BK, labels, target)
    if logits_BK.shape[1] < 4:
        return gap
    top = logits_BK.sort(dim=1, descending=True).values
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)
