"""Attacks on the embeddings of a text, in the threat of its certificate: every token that may move, by at most r in l2.

Shape suffixes: N contexts, T tokens, D width, V vocabulary. ``model`` maps embeddings (N, T, D) to the logits (N, T, V) of
all positions. What an attack says counts only as measured: a position is broken where the float32 logits of the moved
embeddings do not strictly prefer its label, at the float64 distance of those float32 embeddings, rounded up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Answers = Callable[[Tensor], Tensor]
TINY = 1e-20


@dataclass(frozen=True, slots=True)
class Hit:
    """Embeddings (T, D) of one context that break a position within the distance asked about, and how clearly."""

    distance: float
    lead: float
    example: Tensor


@dataclass(slots=True)
class Nearest:
    """The nearest example of each position so far: ``distance`` (N, T), infinite where there is none.

    ``example`` (N, T, D) are, per context, the embeddings that broke the last position nearest. ``within`` (N, T) asks for
    examples up to a distance: of these the nearest and the clearest of each position are kept in ``hits``, by context,
    position, and which of the two.
    """

    distance: NDArray[np.float64]
    example: Tensor
    within: NDArray[np.float64]
    hits: dict[tuple[int, int, str], Hit]

    @classmethod
    def none(cls, x_NTD: Tensor, within: NDArray[np.float64] | None = None) -> Nearest:
        asked = np.full(x_NTD.shape[:2], -np.inf) if within is None else within
        return cls(np.full(x_NTD.shape[:2], np.inf), x_NTD.clone(), asked, {})

    def saw(self, x_NTD: Tensor, moved_NTD: Tensor, lead_NT: Tensor) -> None:
        """Keep what is nearer than before; the distance is the longest move of any token, rounded up."""
        far_N = token_distance(x_NTD, moved_NTD)
        leads = lead_NT.double().cpu().numpy()
        each_NT = np.where(leads > 0, np.inf, far_N[:, None])
        better_N = torch.from_numpy(each_NT[:, -1] < self.distance[:, -1])
        self.example[better_N] = moved_NTD[better_N]
        self.distance = np.minimum(self.distance, each_NT)
        rows: dict[int, Tensor] = {}
        for n, t in np.argwhere(each_NT <= self.within).tolist():
            lead = float(np.nan_to_num(leads[n, t], nan=0.0))  # no number breaks a position, and is no clear case
            for which in ("distance", "lead"):
                before = self.hits.get((n, t, which))
                found = Hit(float(each_NT[n, t]), lead, rows.setdefault(n, moved_NTD[n].clone()))
                if before is None or getattr(found, which) < getattr(before, which):
                    self.hits[n, t, which] = found


def token_distance(x_NTD: Tensor, moved_NTD: Tensor) -> NDArray[np.float64]:
    """The longest move of a token (N,), in l2, in float64 and rounded up: D squares and a root lose less than D + 4 units.

    0 where nothing moved, infinite where a move is no number: nothing can be said of such an example.
    """
    move = (moved_NTD.double() - x_NTD.double()).cpu().numpy()
    length = np.sqrt((move * move).sum(axis=-1)).max(axis=1)
    up = np.fmin(np.nextafter(length * (1.0 + (move.shape[-1] + 4) * 2.0**-52), np.inf), np.inf)
    return np.asarray(np.where((move == 0).all(axis=(1, 2)), 0.0, up))


def margins(logits_NTV: Tensor, y_NT: Tensor) -> Tensor:
    """The lead of each label over its strongest rival, (N, T): a position is broken unless it is above 0, NaN included."""
    label = y_NT.unsqueeze(-1)
    rival = logits_NTV.scatter(-1, label, -torch.inf).amax(-1)
    lead_NT: Tensor = logits_NTV.gather(-1, label).squeeze(-1) - rival
    return lead_NT


def pgd(
    model: Answers,
    x_NTD: Tensor,
    y_NT: Tensor,
    radii: Sequence[float],
    *,
    steps: int = 20,
    restarts: int = 1,
    movable_NT: Tensor | None = None,
    judged_NT: Tensor | None = None,
    within_NT: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Nearest:
    """Projected gradient descent in the largest l2 move of a token, on the sum of all positions' leads at once.

    Each step follows the gradient token by token to its own length, the steepest in this norm, and goes back onto the ball;
    positions that are broken leave the sum, so that the rest are pushed on. Radii run upward, with a random start each. The
    first restart pushes the strongest rival, the next ones the rivals by their rank on the text itself, as the strongest is
    not always the nearest.
    ``movable_NT`` says which tokens may move (all), ``judged_NT`` which positions are attacked (all): with the last alone
    this is an ordinary attack on the next token. Examples no farther than ``within_NT`` are kept as hits; the text itself,
    unmoved, is looked at first.
    """
    found = Nearest.none(x_NTD, within_NT)
    free = torch.ones(x_NTD.shape[:2]) if movable_NT is None else movable_NT.to(x_NTD.dtype)
    wanted = torch.ones(y_NT.shape, dtype=torch.bool) if judged_NT is None else judged_NT
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        clean = model(x_NTD)
        found.saw(x_NTD, x_NTD, margins(clean, y_NT))
        ranked_NTV = clean.scatter(-1, y_NT.unsqueeze(-1), -torch.inf).topk(max(restarts - 1, 0)).indices
    for radius in sorted(radii):
        for restart in range(restarts):
            start = torch.randn(x_NTD.shape, generator=source)
            move = free.unsqueeze(-1) * start * (radius / (start.norm(dim=-1, keepdim=True) + TINY))
            for step in range(steps + 1):
                move.requires_grad_(True)
                logits = model(x_NTD + move)
                lead = margins(logits, y_NT)
                found.saw(x_NTD, (x_NTD + move).detach(), lead.detach())
                if step == steps:
                    break
                goal = lead if restart == 0 else _over(logits, y_NT, ranked_NTV[..., restart - 1])
                (gradient,) = torch.autograd.grad((goal * (wanted & (lead > 0))).sum(), move)
                with torch.no_grad():
                    pace = 5 * radius / steps * (1 - 0.9 * step / steps)  # the ball is crossed, whatever the start
                    move = free.unsqueeze(-1) * (move - pace * _directions(gradient))
                    move = move * (radius / (move.norm(dim=-1, keepdim=True) + TINY)).clamp(max=1.0)
    return found


def ddn(
    model: Answers,
    x_NTD: Tensor,
    y_NT: Tensor,
    first: float,
    *,
    steps: int = 60,
    share: float = 0.1,
    movable_NT: Tensor | None = None,
    within_NT: NDArray[np.float64] | None = None,
) -> Nearest:
    """The nearest example of the last position: direction from the gradient, length shrunk where broken and grown where not.

    Rony et al. 2019 (DDN, arXiv 1811.09600) in the largest l2 move of a token, each context with a length of its own.
    """
    found = Nearest.none(x_NTD, within_NT)
    free = torch.ones(x_NTD.shape[:2]) if movable_NT is None else movable_NT.to(x_NTD.dtype)
    length_N = torch.full((len(x_NTD),), first)
    move = torch.zeros_like(x_NTD)
    for step in range(steps + 1):
        move.requires_grad_(True)
        logits = model(x_NTD + move)
        lead_NT = margins(logits, y_NT)
        lead_N = lead_NT[:, -1]
        found.saw(x_NTD, (x_NTD + move).detach(), lead_NT.detach())
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(lead_N.sum(), move)
        with torch.no_grad():
            length_N = torch.where(lead_N > 0, length_N * (1 + share), length_N / (1 + share))
            pace = (length_N * (1 - 0.9 * step / steps))[:, None, None]
            move = free.unsqueeze(-1) * (move - pace * _directions(gradient))
            move = move * (length_N[:, None, None] / (move.norm(dim=-1, keepdim=True) + TINY)).clamp(max=1.0)
    return found


def _over(logits_NTV: Tensor, y_NT: Tensor, rival_NT: Tensor) -> Tensor:
    """The lead of each label over one rival, (N, T)."""
    both = logits_NTV.gather(-1, torch.stack([y_NT, rival_NT], dim=-1))
    return both[..., 0] - both[..., 1]


def _directions(gradient: Tensor) -> Tensor:
    """The gradient of each token at unit length; 0 where it vanishes."""
    length: Tensor = gradient.norm(dim=-1, keepdim=True)
    return gradient / (length + TINY)
