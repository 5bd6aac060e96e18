"""The threat to a text: its tokens' embeddings move, each by at most a radius in l2, and nothing else does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certkit.bounds.number import Up
from certkit.bounds.spectral import euclidean, up
from certkit.errors import ConfigError

Floats = NDArray[np.float64]
ENTRIES = 2**22  # of one piece of a table of all pairs of tokens


@dataclass(frozen=True, slots=True)
class Domain:
    """Where embeddings may lie: every entry in ``box``, no token longer than ``longest``. Convex.

    It holds every row of the table and whatever lies within ``reach`` of one, and so every ball of the threat whole.
    """

    reach: float
    box: tuple[float, float]
    longest: float


def domain(table_VD: Tensor, reach: float) -> Domain:
    """The box around all rows, out by ``reach`` on every side, and the longest row plus ``reach``: rounded outward.

    A ball of l2 radius r moves no entry by more than r, and makes no token longer by more. Raises ConfigError for a reach
    that is no radius.
    """
    if not 0 < reach < math.inf:
        raise ConfigError(f"the largest radius must be above 0 and finite, got {reach}")
    rows = table_VD.detach().double().cpu().numpy()
    return Domain(
        reach=reach,
        box=(float(np.nextafter(rows.min() - reach, -np.inf)), up(float(rows.max()) + reach)),
        longest=up(float(euclidean(rows, axis=1).max()) + reach),
    )


def of_few(everywhere: Floats, jointly: Floats, count: int) -> Floats:
    """Certified radii when at most ``count`` tokens move, whichever they are: one position, or a suffix of that length.

    ``everywhere`` are radii for all tokens moving by r each, ``jointly`` those for all tokens together moving by r in l2.
    Few tokens that move by r each are a case of the first, and by sqrt(count) r together a case of the second: the better
    radius holds. Rounded down.
    """
    if count < 1:
        raise ConfigError(f"the number of tokens that move must be 1 or more, got {count}")
    root = Up.of(count).sqrt().to_float()
    shared = jointly if count == 1 else np.maximum(np.nextafter(jointly / root, -np.inf), 0.0)
    return np.asarray(np.maximum(everywhere, shared))


def substitutions(table_VD: Tensor) -> Floats:
    """How far each token's embedding is from that of the nearest other token, in float64: what replacing it costs at least.

    A product of the table with itself tells, row by row, which others may be the nearest: |a - b|^2 from |a|^2, |b|^2 and a.b
    is off by less than 4 (D + 8) units of (|a| + |b|)^2. Of those the differences themselves are taken.
    """
    rows = table_VD.detach().double().cpu().numpy()
    squares, off = np.square(rows).sum(axis=1), 4 * (rows.shape[1] + 8) * 2.0**-52
    found = np.full(len(rows), np.inf)
    size = max(1, ENTRIES // max(len(rows), 1))
    for start in range(0, len(rows), size):
        here = rows[start : start + size]
        slack = off * 2 * (squares[start : start + size, None] + squares)
        apart = squares[start : start + size, None] + squares - 2 * (here @ rows.T)
        np.fill_diagonal(apart[:, start:], np.inf)
        may = apart - slack <= (apart + slack).min(axis=1, keepdims=True)
        for row, others in enumerate(may):
            near = rows[others & (np.arange(len(rows)) != start + row)]
            if len(near):
                found[start + row] = np.linalg.norm(near - here[row], axis=1).min()
    return found
