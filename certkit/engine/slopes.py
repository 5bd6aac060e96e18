"""Slopes that are really attained: lower bounds to hold against the gains of a ledger.

A gain is the supremum of N_A(f(x) - f(y)) / |x - y| over pairs of the domain, so the quotient of any one pair is at most
that. The search below looks for a pair that comes near it; how well it looks changes the tightness it shows, and never
the truth of the number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certkit.bounds.bound import Axes
from certkit.bounds.ledger import Ledger
from certkit.bounds.rules.linear import threat_axes
from certkit.engine.execute import run
from certkit.engine.program import Program
from certkit.errors import RecordError

DISTANCE = 1e-4  # of a pair, in the threat's norm: long beside rounding, short beside the bends of a network
POWERS = 4  # steps of power iteration at each point
TOO_NEAR = 1e-100  # squares of what is nearer underflow
FARTHEST = 0.3  # of the box: how far the first step of the climb goes

Batched = Callable[[Tensor], Tensor]  # samples (N, ...) -> values (N, 1, ...)


@dataclass(frozen=True, slots=True, eq=False)
class Slope:
    """A pair of inputs (without batch axis) and a number that its quotient is not below."""

    value: float
    x: Tensor
    y: Tensor


def attained_slope(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    norm: str,
    *,
    axes: Axes | None = None,
    box: tuple[float, float] | None = None,
    longest: float | None = None,
    error: float = 0.0,
    rounds: int = 20,
) -> Slope:
    """The largest N_A(f(x) - f(y)) / |x - y| that a search from ``inputs`` (N, ...) finds, rounded down.

    ``function`` maps one sample with its batch axis of 1 to a value (1, ...) by torch operators, ``norm`` measures the
    inputs (l2, linf or token), ``axes`` the value: all of one sample (l2) unless said otherwise. Pairs stay in ``box``, and
    every token, the entries along the last axis, within the length ``longest``. ``error`` bounds N_A(computed f - f); it is
    taken off twice, so that the number holds for the exact function. Everything is computed in float64. Raises RecordError
    for another norm, and for a box that does not hold 0 beside ``longest``.

    At each point, power iteration on the Jacobian finds the direction that moves the value most (each step takes the
    dual of the gradient of a convex function, which cannot lower it); the point then climbs along the gradient of the
    pair's movement, and goes back half a step wherever that did not help.
    """
    threat = threat_axes(norm, inputs.ndim)
    x = inputs.to(torch.float64)
    axes = frozenset(range(1, function(x[:1]).ndim)) if axes is None else axes
    batched: Batched = torch.func.vmap(lambda one: function(one.unsqueeze(0)))
    low, high = (-math.inf, math.inf) if box is None else box
    if longest is not None and not low <= 0 <= high:
        raise RecordError(f"tokens can be shortened in a box that holds 0 only, got [{low}, {high}]")

    def inside(point: Tensor) -> Tensor:
        point = point.clamp(low, high)
        if longest is None:
            return point
        lengths: Tensor = point.norm(dim=-1, keepdim=True).clamp_min(1e-300)
        return point * (longest * (1 - 1e-9) / lengths).clamp_max(1.0)

    def facing(x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The steeper of x + d and x - d, and its quotient: at an edge only one of the two goes all the way."""
        y, other = (inside(x + step * direction) for step in (DISTANCE, -DISTANCE))
        found, rival = (quotients(batched, x, to, axes, threat, error) for to in (y, other))
        return torch.where((found >= rival).reshape(reach.shape), y, other), torch.maximum(found, rival)

    x = inside(x)
    reach = torch.full((len(x), *[1] * (x.ndim - 1)), FARTHEST * (high - low if box is not None else 1.0)).double()
    generator = torch.Generator().manual_seed(0)
    start = dual(torch.randn(x.shape, generator=generator, dtype=torch.float64), threat)
    direction = powers(batched, x, start, axes, threat)
    y, found = facing(x, direction)
    for _ in range(rounds):
        uphill = dual(ascent(batched, x, direction, axes), threat)
        x1 = inside(x + reach * uphill)
        direction1 = powers(batched, x1, direction, axes, threat)
        y1, found1 = facing(x1, direction1)
        better = (found1 > found).reshape(reach.shape)
        x, y = torch.where(better, x1, x), torch.where(better, y1, y)
        direction, found = torch.where(better, direction1, direction), torch.maximum(found, found1)
        reach = torch.where(better, reach, reach / 2)
    steepest = int(found.argmax())
    return Slope(float(found[steepest]), x[steepest], y[steepest])


def powers(batched: Batched, x: Tensor, direction: Tensor, axes: Axes, threat: Axes) -> Tensor:
    """Directions of length 1 that the Jacobians at x stretch further, step by step."""
    pull = pullback(batched, x)[1]
    for _ in range(POWERS):
        moved: Tensor = torch.func.jvp(batched, (x,), (direction,))[1]
        gradient = pull(steepest_part(moved, axes))
        still = gradient.flatten(1).abs().amax(1) == 0
        direction = torch.where(still.reshape(-1, *[1] * (x.ndim - 1)), direction, dual(gradient, threat))
    return direction.detach()


def ascent(batched: Batched, x: Tensor, direction: Tensor, axes: Axes) -> Tensor:
    """The gradient, in x, of how far the pair x, x + DISTANCE * direction moves the value."""
    difference, pull = pullback(lambda at: batched(at + DISTANCE * direction) - batched(at), x)
    uphill: Tensor = pull(steepest_part(difference, axes))
    return uphill.detach()


def pullback(batched: Batched, x: Tensor) -> tuple[Tensor, Batched]:
    """The values at x, and the transposed Jacobian there."""
    values, pull = torch.func.vjp(batched, x)[:2]
    return values, lambda moved: pull(moved)[0]


def steepest_part(values: Tensor, axes: Axes) -> Tensor:
    """Values (N, 1, ...) with all but the longest block over ``axes`` set to 0: half the gradient of N_A squared."""
    own = [axis + 1 for axis in sorted(axes)]
    lengths = values.square().sum(own, keepdim=True) if own else values.square()
    longest = lengths.flatten(1).argmax(1, keepdim=True)
    mask = torch.zeros_like(lengths.flatten(1)).scatter(1, longest, 1.0).reshape(lengths.shape)
    return values * mask


def dual(gradient: Tensor, threat: Axes) -> Tensor:
    """The directions (N, ...) of length 1 along which linear functions grow most; 0 where the gradient is.

    ``threat`` are the axes of the threat's norm: each block over them goes along its own gradient.
    """
    if not threat:
        return gradient.sign()
    lengths: Tensor = torch.linalg.vector_norm(gradient, dim=sorted(threat), keepdim=True).clamp_min(1e-300)
    return gradient / lengths


def quotients(batched: Batched, x: Tensor, y: Tensor, axes: Axes, threat: Axes, error: float) -> Tensor:
    """N_A(f(x) - f(y)) / |x - y| of each pair, less what rounding and ``error`` may have added; 0 where that leaves nothing."""
    with torch.no_grad():
        at_x, at_y = batched(x), batched(y)
        moved, apart = block_norm(at_y - at_x, axes), block_norm((y - x).unsqueeze(1), threat)
        # Differences, squares, sums and roots: each norm is off by less than (terms + 4) u, relative, and u is 2^-53.
        off = (x[0].numel() + at_x[0].numel() + 16) * 2.0**-52
        found = (moved * (1 - off) - 2 * error) / (apart * (1 + off)) * (1 - 2.0**-50)
        return torch.where((apart > TOO_NEAR) & found.isfinite(), found, 0.0).clamp_min(0.0)


def block_norm(values: Tensor, axes: Axes) -> Tensor:
    """N_A of values (N, 1, ...): (N,)."""
    own = [axis + 1 for axis in sorted(axes)]
    lengths = values.square().sum(own, keepdim=True).sqrt() if own else values.abs()
    return lengths.flatten(1).amax(1)


def step_slopes(program: Program, ledger: Ledger, inputs: Tensor, *, rounds: int = 8) -> dict[str, Slope]:
    """For every operator of a proof the slope that a search from ``inputs`` (N, ...) attains, in l2 over its value.

    Norm and domain are those of the ledger's threat, and its float64 error is taken off: each number is at most the gain
    that the ledger states for the step of that name.
    """
    first, known = ledger.steps[0].attributes, ledger.steps[0].evidence
    longest = float(known["token_size"].value) if "token_size" in known else None
    nodes = {
        node.name: place
        for place, node in enumerate(program.nodes, start=1)
        if isinstance(node.meta.get("val"), Tensor)  # not the tuple that a split gives
    }
    found: dict[str, Slope] = {}
    for step in ledger.steps:
        place = nodes.get(step.node)
        if place is None:  # the input itself, a constant, or a part of an operator
            continue
        part = replace(program, nodes=program.nodes[:place], output=program.nodes[place - 1])
        found[step.node] = attained_slope(
            lambda x, part=part: run(part, x),  # type: ignore[misc]
            inputs,
            str(first["norm"]),
            axes=step.bound.axes,
            box=(float(first["low"]), float(first["high"])),
            longest=longest,
            error=step.bound.within(step.bound.axes).error.to_float(),
            rounds=rounds,
        )
    return found
