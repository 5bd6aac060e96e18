"""What training minimises. The first two know the certificate's bound and ask for margins that it would certify.

Shapes: logits (N, classes), wanted (N,); ``gain`` (classes, classes) bounds how fast each logit difference can change. The
loop derives it again now and then; in between it is that of slightly older weights, and no gradient flows through it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def offset_cross_entropy(logits: Tensor, wanted: Tensor, gain: Tensor, *, eps: float, temperature: float) -> Tensor:
    """Cross-entropy on logits of which each wrong one is raised by eps times the gain of its lead over the true one.

    A sample whose raised logits still favour its label has the margin that certifies it at eps under this gain. ``gain.max() / sqrt(2)`` is the bound of one
    logit, so that the temperature is in its units. Prach and Lampert 2022, arXiv 2208.03160; GloRo, arXiv 2102.08452.
    """
    raised = logits + eps * gain[wanted]
    return F.cross_entropy(raised * (math.sqrt(2) / temperature / gain.max()), wanted)


def hinge(logits: Tensor, wanted: Tensor, gain: Tensor, *, eps: float) -> Tensor:
    """How far the certified radius, margin over gain to the nearest class, falls short of eps, on average.

    Zero exactly when every sample of the batch has that radius under this gain. Anil, Lucas and Grosse 2019, arXiv 1811.05381.
    """
    own = F.one_hot(wanted, logits.shape[-1]).bool()
    leads = logits.gather(1, wanted[:, None]) - logits
    radius = (leads / gain[wanted].masked_fill(own, 1.0)).masked_fill(own, math.inf).amin(1)
    return F.relu(eps - radius).mean()


def correct(logits: Tensor, wanted: Tensor) -> int:
    """How many of the logits favour the wanted class."""
    return int((logits.argmax(-1) == wanted).sum())


@torch.no_grad()
def finite(value: Tensor) -> bool:
    """Whether every entry is a number."""
    return bool(torch.isfinite(value).all())
