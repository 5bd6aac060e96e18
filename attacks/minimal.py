"""Attacks that look for the nearest example: FAB in l2, linf, l1 and token, sigma-zero in l0; and the noise floor.

Shape suffixes: B batch, N entries of a sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .draws import directions, start
from .geometry import along, diameter, project, size, to_plane
from .losses import margin, towards
from .path import Search, ranked

OVERSHOOT, BIAS, BACK = 1.05, 0.1, 0.9  # FAB's eta, alpha_max and beta
SIGMA, THRESHOLD, ADJUST = 1e-3, 0.3, 0.01  # sigma-zero's sigma, tau_0 and t


def fab(search: Search) -> Tensor:
    """Steps onto the plane where the linearised margin to one rival is 0, drawn towards the input: Croce and Hein 2020,
    "Minimally distorted adversarial examples with a fast adaptive boundary attack" (arXiv 1907.02044), targeted.

    The restart names the rival; from the second round through the rivals on, the start is random.
    """
    x, norm, box = search.x, search.norm, search.box
    with torch.no_grad():
        logits = search.path.classifier(x)
    others = logits.shape[1] - 1
    target = search.path.target
    aim = ranked(logits, search.labels, 1 + search.restart % others)
    aim = aim if target is None else torch.full_like(aim, target)
    point = x.clone()
    if search.restart >= (1 if target is not None else others):
        drawn = torch.stack([start(norm, tuple(x.shape[1:]), source) for source in search.sources]).to(x.device)
        near = torch.full((len(x),), diameter(norm, tuple(x.shape[1:]), box) / 20, device=x.device)
        point = project(norm, x, x + along(near, x) * drawn, near, box)
    for _ in range(search.whole("steps")):
        point.requires_grad_(True)
        with torch.enable_grad():
            value_B = towards(search.path(point), search.labels, aim)
            (slope,) = torch.autograd.grad(value_B.sum(), point)
        point, value_B, slope = point.detach(), value_B.detach(), torch.nan_to_num(slope)
        best = search.path.best
        hit = along(value_B >= 0, x)
        here = torch.where(hit, (1 - BACK) * x + BACK * point, point)
        offset_B = ((here - point) * slope).flatten(1).sum(dim=1)
        value_B = value_B + offset_B
        step = to_plane(norm, here, slope, value_B, box) - here
        # The same plane, seen from the input: its linear function there.
        origin_B = value_B + ((x - here) * slope).flatten(1).sum(dim=1)
        straight = to_plane(norm, x, slope, origin_B, box) - x
        one_B, two_B = size(norm, step), size(norm, straight)
        share = along((one_B / (one_B + two_B).clamp_min(1e-30)).clamp(max=BIAS), x)
        ahead = (1 - share) * (here + OVERSHOOT * step) + share * (x + OVERSHOOT * straight)
        point = ahead.clamp(*box)
        point = torch.where(along(point.isfinite().flatten(1).all(dim=1), x), point, best)
    with torch.no_grad():
        search.path(point)
    return search.path.best


def sigma_zero(search: Search) -> Tensor:
    """Descends on the margin and a smooth count of changed entries, and sets the small ones back: Cinà et al. 2024,
    "sigma-zero: gradient-based optimization of l0-norm adversarial examples" (arXiv 2402.01879).

    The first restart starts at the input as published, later ones at a random point.
    """
    x, (low, high) = search.x, search.box
    width, steps = high - low, search.whole("steps")
    losses = str(search.settings.get("losses", "margin")).split(", ")
    rank = losses[search.restart % len(losses)].removeprefix("rival ")
    aim: Tensor | None = None
    if search.path.target is not None:
        aim = torch.full_like(search.labels, search.path.target)
    elif rank.isdecimal():
        with torch.no_grad():
            aim = ranked(search.path.classifier(x), search.labels, int(rank))
    move = torch.zeros_like(x)
    if search.restart >= len(losses):
        drawn = torch.stack([directions("linf", tuple(x.shape[1:]), 1, one)[0] for one in search.sources]).to(x.device)
        move = (x + 0.5 * width * drawn).clamp(low, high) - x
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    threshold_B = torch.full((len(x),), THRESHOLD, device=x.device)
    for step in range(steps):
        point = (x + move).requires_grad_(True)
        with torch.enable_grad():
            logits = search.path(point)
            value_B = margin(logits, search.labels) if aim is None else towards(logits, search.labels, aim)
            moved = ((point - x) / width).flatten(1).square()
            loss_B = (-value_B).clamp_min(0) + (moved / (moved + SIGMA)).mean(dim=1)
            (slope,) = torch.autograd.grad(loss_B.sum(), point)
        slope = torch.nan_to_num(slope)
        slope = slope / along(slope.flatten(1).abs().amax(dim=1).clamp_min(1e-12), x)
        rate = 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2  # cosine annealing from 1 to a tenth
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope.square()
        scale = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
        move = move - rate * width * first / (1 - 0.9 ** (step + 1)) / scale
        move = (x + move).clamp(low, high) - x
        hit = search.path.reached(logits)
        threshold_B = (threshold_B + torch.where(hit, ADJUST * rate, -ADJUST * rate)).clamp(0, 1)
        move = torch.where(move.abs() < along(threshold_B * width, x), torch.zeros_like(move), move)
    with torch.no_grad():
        search.path(x + move)
    return search.path.best


def noise(search: Search) -> Tensor:
    """Random points at the radius: of the l1 ball, of every token's sphere, or floor(eps) random entries at a random end
    of the box."""
    x, norm, eps_B = search.x, search.norm, search.eps_B
    shape, repeats = tuple(x.shape[1:]), search.whole("repeats")
    drawn = torch.stack([directions(norm, shape, repeats, source) for source in search.sources], dim=1).to(x.device)
    with torch.no_grad():
        for move in drawn:
            if norm == "l0":
                ends = torch.where(move > 0, search.box[1], search.box[0]) - x
                ranks = move.flatten(1).abs().argsort(dim=1, descending=True).argsort(dim=1)
                chosen = (ranks < eps_B.floor().unsqueeze(1)).reshape(x.shape)
                far = torch.where(chosen, ends, torch.zeros_like(ends))
            elif norm == "token":
                far = move / torch.linalg.vector_norm(move, dim=-1, keepdim=True) * along(eps_B, x)
            else:
                far = move / along(size(norm, move).clamp_min(1e-30), x) * along(eps_B, x)
            search.path(project(norm, x, x + far, eps_B, search.box))
    return search.path.best
