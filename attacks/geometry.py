"""Balls, steps and projections in the norms of a threat. Shape suffixes: B batch; a sample's own axes stay as they are.

Everything here serves the search and may round as it likes: what counts is measured again, in float64, by the engine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from certkit.records import AttackNorm

HALVINGS = 40
TINY = 1e-30


def along(values_B: Tensor, like: Tensor) -> Tensor:
    """One number per sample, shaped so that it multiplies a batch."""
    return values_B.reshape(-1, *[1] * (like.ndim - 1))


def size(norm: AttackNorm, move: Tensor) -> Tensor:
    """The norm of each sample's move; for ``token`` the largest over the tokens, which lie along the last axis."""
    flat = move.flatten(1)
    if norm == "linf":
        return flat.abs().amax(dim=1)
    if norm == "l0":
        return torch.count_nonzero(flat, dim=1).to(move.dtype)
    if norm == "l1":
        return flat.abs().sum(dim=1)
    euclidean: Tensor = torch.linalg.vector_norm(move if norm == "token" else flat, dim=-1)
    return euclidean.flatten(1).amax(dim=1) if norm == "token" else euclidean


def diameter(norm: AttackNorm, shape: tuple[int, ...], box: tuple[float, float]) -> float:
    """The largest distance within the box: a step in proportion to any larger radius would only hit its corners."""
    width, entries = box[1] - box[0], math.prod(shape)
    if norm == "l0":
        return float(entries)
    return width * {"linf": 1.0, "l1": float(entries), "token": math.sqrt(shape[-1])}.get(norm, math.sqrt(entries))


def steepest(norm: AttackNorm, gradient: Tensor) -> Tensor:
    """The move of size 1 along which a function with this gradient rises most; for l1 it changes one entry alone."""
    if norm == "linf":
        return gradient.sign()
    if norm in ("l1", "l0"):
        flat = gradient.flatten(1)
        top = flat.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).reshape(gradient.shape)
    flat = gradient if norm == "token" else gradient.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).clamp_min(TINY)
    return (flat / length).reshape(gradient.shape)


def project(norm: AttackNorm, x: Tensor, point: Tensor, eps_B: Tensor, box: tuple[float, float]) -> Tensor:
    """A point of the ball around x and of the box near the given one; the nearest, under l1 and linf.

    l2 and token: first onto the ball, then into the box, which shortens the move further as x lies in the box. l1: the
    nearest point of the intersection shrinks every entry by one threshold, after Croce and Hein 2021, "Mind the box"
    (arXiv 2103.01208), found here by bisection.
    """
    low, high = box
    move, eps = point - x, along(eps_B, x)
    if norm == "linf":
        return (x + move.clamp(min=-eps, max=eps)).clamp(low, high)
    if norm == "token":
        length: Tensor = torch.linalg.vector_norm(move, dim=-1, keepdim=True)
        return (x + move * (eps / length.clamp_min(TINY)).clamp(max=1.0)).clamp(low, high)
    if norm == "l2":
        scale = eps / along(size("l2", move).clamp_min(TINY), move)
        return (x + move * scale.clamp(max=1.0)).clamp(low, high)
    if norm == "l1":
        return _l1_in_box(x, move, eps, box)
    flat, count = move.flatten(1), eps_B.floor().long()
    order = flat.abs().argsort(dim=1, descending=True)
    rank = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter(1, order, rank < count.unsqueeze(1))
    return (x + torch.where(kept, flat, torch.zeros_like(flat)).reshape(move.shape)).clamp(low, high)


def _l1_in_box(x: Tensor, move: Tensor, eps: Tensor, box: tuple[float, float]) -> Tensor:
    room = torch.where(move > 0, box[1] - x, x - box[0])
    low = torch.zeros_like(eps)
    high = along(move.flatten(1).abs().amax(dim=1), move)
    within = along(torch.minimum(move.abs(), room).flatten(1).sum(dim=1), move) <= eps
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        left = torch.minimum((move.abs() - middle).clamp_min(0), room)
        fits = along(left.flatten(1).sum(dim=1), move) <= eps
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    threshold = torch.where(within, torch.zeros_like(high), high)
    left = torch.minimum((move.abs() - threshold).clamp_min(0), room)
    return (x + move.sign() * left).clamp(*box)


def to_plane(norm: AttackNorm, x: Tensor, slope: Tensor, value_B: Tensor, box: tuple[float, float]) -> Tensor:
    """The nearest point of the box at which the linear function with this value and slope at x is 0.

    Where no point of the box is, the one that comes closest. l1 fills the entries of steepest slope first, which is
    exact; for the other norms the farthest point along the steepest move of one length, cut off at the box, is the
    best of that length, and the length is found by bisection. Croce and Hein 2020 (FAB), arXiv 1907.02044.
    """
    down = -slope * along(value_B.sign(), slope)
    wanted = value_B.abs()
    room = torch.where(down > 0, box[1] - x, x - box[0])
    if norm == "l1":
        flat, gain = room.flatten(1), down.flatten(1).abs()
        order = gain.argsort(dim=1, descending=True)
        sorted_gain, sorted_room = gain.gather(1, order), flat.gather(1, order)
        before = (sorted_gain * sorted_room).cumsum(dim=1) - sorted_gain * sorted_room
        left = (wanted.unsqueeze(1) - before).clamp_min(0) / sorted_gain.clamp_min(TINY)
        taken = torch.zeros_like(flat).scatter(1, order, torch.minimum(left, sorted_room))
        return (x + down.sign() * taken.reshape(x.shape)).clamp(*box)
    unit = steepest(norm, down)
    low = torch.zeros_like(wanted)
    high = torch.full_like(wanted, diameter(norm, tuple(x.shape[1:]), box))
    if norm != "linf":  # a small entry reaches its side of the box only after a longer way than the box is wide
        high = high / unit.abs().flatten(1).masked_fill(unit.flatten(1) == 0, 1.0).amin(dim=1).clamp_min(1e-4)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        moved = torch.minimum(unit.abs() * along(middle, x), room)
        enough = (moved * down.abs()).flatten(1).sum(dim=1) >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (x + unit.sign() * torch.minimum(unit.abs() * along(high, x), room)).clamp(*box)
