"""Square attack: random search over square windows that asks for logits only. Andriushchenko et al. 2020, arXiv
1912.00049. Shape suffixes: B batch, C channels, H rows, W columns, Q queries.

A sample that is no image is read as one: a matrix as one channel, a vector as one row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .geometry import along, project, size
from .losses import margin, towards
from .path import Search

SHARE = 0.8  # of the entries in the first windows; halved at these iterations of 10,000
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def share_at(query: int, queries: int) -> float:
    """The share of the entries that a window changes: it halves as the search goes on, whatever its length."""
    scaled = query / queries * 10_000
    return SHARE / float(2 ** sum(scaled > point for point in HALVED_AT))


def square(search: Search) -> Tensor:
    """Each row's best point so far, changed in one window at a time where that lowers the label's lead."""
    shape = tuple(search.x.shape[1:])
    channels, height, width = {1: (1, 1, shape[0]), 2: (1, *shape)}.get(len(shape), shape)[:3]
    if len(shape) > 3:
        channels, height, width = 1, 1, math.prod(shape)
    x = search.x.reshape(-1, channels, height, width)
    queries = search.whole("queries")
    draws_QBU = torch.stack([torch.rand(queries, 5 + 2 * channels, generator=one) for one in search.sources], dim=1)
    draws_QBU = draws_QBU.to(x.device)
    first = (_stripes if search.norm == "linf" else _tiles)(x, search)
    change = _repainted if search.norm == "linf" else _moved

    def lead(point: Tensor) -> Tensor:
        with torch.no_grad():
            logits = search.path(point.reshape(search.x.shape))
        if search.path.target is None:
            return -margin(logits, search.labels)
        return -towards(logits, search.labels, torch.full_like(search.labels, search.path.target))

    best = project(search.norm, x, x + first, search.eps_B, search.box)
    lead_B = lead(best)
    for query in range(1, queries):
        if bool(search.path.found().all()):
            break
        side = math.sqrt(share_at(query, queries) * height * width)
        window = _Window.of(side, height, width, draws_QBU[query], odd=search.norm != "linf")
        proposed = project(
            search.norm, x, x + change(best - x, window, draws_QBU[query], search), search.eps_B, search.box
        )
        new_B = lead(proposed)
        lower = new_B < lead_B
        best = torch.where(along(lower, x), proposed, best)
        lead_B = torch.where(lower, new_B, lead_B)
    return search.path.best


class _Window:
    """One rectangle per row, and a second of the same size elsewhere, as masks (B, 1, H, W) and sizes."""

    def __init__(self, high: int, wide: int, height: int, width: int, corners_B4: Tensor) -> None:
        self.high, self.wide = high, wide
        rows = torch.arange(height, device=corners_B4.device).reshape(1, 1, -1, 1)
        columns = torch.arange(width, device=corners_B4.device).reshape(1, 1, 1, -1)
        self.top, self.left, top2, left2 = (
            (corners_B4[:, i] * (1 + (height - high if i % 2 == 0 else width - wide))).long().reshape(-1, 1, 1, 1)
            for i in range(4)
        )
        self.rows, self.columns = rows - self.top, columns - self.left
        self.here = self._inside(self.rows, self.columns)
        self.there = self._inside(rows - top2, columns - left2)

    def _inside(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (rows >= 0) & (rows < self.high) & (columns >= 0) & (columns < self.wide)

    @classmethod
    def of(cls, side: float, height: int, width: int, draws_BU: Tensor, *, odd: bool) -> _Window:
        whole = max(round(side), 3 if odd else 1)
        whole += odd and whole % 2 == 0
        high = min(whole, height)
        wide = min(max(whole, -(-whole * whole // height)) if high < whole else whole, width)
        return cls(high, wide, height, width, draws_BU[:, :4])


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _stripes(x: Tensor, search: Search) -> Tensor:
    """Vertical stripes at the radius, each of a random sign per channel."""
    shape = (x.shape[1], 1, x.shape[3])
    signs = torch.stack([_signs(torch.rand(shape, generator=one)) for one in search.sources]).to(x.device)
    return signs.expand_as(x) * along(search.eps_B, x)


def _repainted(move: Tensor, window: _Window, draws_BU: Tensor, search: Search) -> Tensor:
    """The window painted at the radius, one random sign per channel."""
    signs_BC11 = _signs(draws_BU[:, 5 : 5 + move.shape[1]]).reshape(*move.shape[:2], 1, 1)
    return torch.where(window.here, signs_BC11 * along(search.eps_B, move), move)


def _bump(rows: Tensor, columns: Tensor, high: int, wide: int) -> Tensor:
    """A positive and a negative hill side by side, of l2 size 1, at the window of each row; split along the longer side."""

    def hill(a: Tensor, b: Tensor, long: int, short: int) -> Tensor:
        away = torch.maximum((a - (long - 1) // 2).abs(), (b - (short - 1) // 2).abs())
        levels = torch.cumsum(1.0 / torch.arange(max(long, short) + 1, 0, -1, device=a.device) ** 2, dim=0).flip(0)
        return levels[away.clamp(max=len(levels) - 1)]

    a, b, long, short = (rows, columns, high, wide) if high >= wide else (columns, rows, wide, high)
    half = long // 2
    first, second = hill(a, b, max(half, 1), short), hill(a - half, b, long - half, short)
    shape = torch.where(a < half, first, -second)
    inside = (rows >= 0) & (rows < high) & (columns >= 0) & (columns < wide)
    shape = torch.where(inside, shape, torch.zeros_like(shape))
    return shape / along(size("l2", shape).clamp_min(1e-30), shape)


def _tiles(x: Tensor, search: Search) -> Tensor:
    """Hills on a grid of five by five, each of a random sign per channel, at the radius together."""
    height, width = x.shape[2:]
    high, wide = max(height // 5, 1), max(width // 5, 1)
    rows = (torch.arange(height, device=x.device) % high).reshape(1, 1, -1, 1)
    columns = (torch.arange(width, device=x.device) % wide).reshape(1, 1, 1, -1)
    pattern = _bump(rows, columns, high, wide)
    shape = (x.shape[1], -(-height // high), -(-width // wide))
    signs = torch.stack([_signs(torch.rand(shape, generator=one)) for one in search.sources]).to(x.device)
    signs = signs.repeat_interleave(high, 2)[:, :, :height].repeat_interleave(wide, 3)[:, :, :, :width]
    tiles = pattern * signs
    return tiles / along(size("l2", tiles).clamp_min(1e-30), x) * along(search.eps_B, x)


def _moved(move: Tensor, window: _Window, draws_BU: Tensor, search: Search) -> Tensor:
    """The second window's share of the radius, and what is unused, moved into the first as a hill (algorithm 3)."""
    here, there, channels = window.here, window.there, move.shape[1]
    bump = _bump(window.rows, window.columns, window.high, window.wide)
    flip = (draws_BU[:, 4] < 0.5).reshape(-1, 1, 1, 1)
    if window.high == window.wide:
        turned = _bump(window.columns, window.rows, window.wide, window.high)
        bump = torch.where(flip, turned, bump)
    squares = move.square()
    unused_B = (search.eps_B.square() - squares.flatten(1).sum(dim=1)).clamp_min(0)
    both = squares * (here | there)
    spare_BC11 = (both.sum(dim=(2, 3), keepdim=True) + along(unused_B, move) / channels).sqrt()
    inside = move * here
    old = inside / inside.square().sum(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    signs_BC11 = _signs(draws_BU[:, 5 : 5 + channels]).reshape(*move.shape[:2], 1, 1)
    new = signs_BC11 * bump + old
    new = new / new.square().sum(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-12) * spare_BC11
    return torch.where(here, new, torch.where(there, torch.zeros_like(move), move))
