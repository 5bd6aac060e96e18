"""Rules for operators that only move entries, leave some out, or lay values side by side. All are exact."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.number import ZERO, Interval, Up, most
from certkit.bounds.rules.registry import Facts, only, rule
from certkit.errors import RecordError


@rule("relabel")
def relabel(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """View and permute only rename axes: a norm over whole groups of axes stays the same number.

    ``groups`` pairs input axes with the output axes that hold the same entries. A norm over some input axes of a group
    that is merged has no name afterwards; it is first widened to the whole group (joining H heads costs sqrt(H)).
    """
    (x,) = only(inputs, 1)
    shape = facts.shape()
    groups = [(tuple(a), tuple(b)) for a, b in facts.attributes["groups"]]
    _check_groups(groups, x.shape, shape)
    norms: dict[Axes, Reach] = {}
    for chosen in itertools.product((False, True), repeat=len(groups)):
        taken = [group for group, wanted in zip(groups, chosen, strict=True) if wanted]
        before = frozenset(axis for group, _ in taken for axis in group)
        after = frozenset(axis for _, group in taken for axis in group)
        norms[after] = x.within(before)
    return bound(shape, norms, x.range)


def _check_groups(
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Every axis longer than 1 stands in one group, and a group holds as many entries before as after."""
    for index, shape in ((0, before), (1, after)):
        named = [axis for group in groups for axis in group[index]]
        if (
            len(set(named)) < len(named)
            or {a for a, n in enumerate(shape) if n > 1} - {*named}
            or {*named} - set(range(1, len(shape)))
        ):
            raise RecordError(f"the groups {groups} do not cover the axes of {shape} once each")
    for old, new in groups:
        if not old or not new:
            raise RecordError(f"the groups {groups} pair axes with nothing")
        if math.prod(before[axis] for axis in old) != math.prod(after[axis] for axis in new):
            raise RecordError(f"axes {old} of {before} do not hold as many entries as axes {new} of {after}")


@rule("part")
def part(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Leaving entries out never enlarges a norm. ``axes`` names, for each output axis, the input axis it is a part of."""
    (x,) = only(inputs, 1)
    shape, origin = facts.shape(), facts.integers("axes")
    if len(origin) != len(shape) or len(set(origin)) < len(origin) or origin[0] != 0:
        raise RecordError(f"axes {origin} do not name an axis of {x.shape} for each axis of {shape}")
    if any(shape[new] > x.shape[old] for new, old in enumerate(origin)):
        raise RecordError(f"a part of {x.shape} cannot have shape {shape}")
    norms: dict[Axes, Reach] = {}
    for axes in {*x.norms, x.axes, frozenset[int]()}:
        after = frozenset(new for new, old in enumerate(origin) if old in axes)
        reach = x.within(axes)
        norms[after] = reach.best(norms[after]) if after in norms else reach
    return bound(shape, norms, x.range)


@rule("join")
def join(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Values laid side by side move together: squares add in l2 over the joined axis, else the largest counts."""
    axis, shape = facts.integer("axis"), facts.shape()
    rest = (*shape[:axis], *shape[axis + 1 :])
    if (
        not 0 < axis < len(shape)
        or any((*x.shape[:axis], *x.shape[axis + 1 :]) != rest for x in inputs)
        or sum(x.shape[axis] for x in inputs) != shape[axis]
    ):
        raise RecordError(f"the parts do not make up axis {axis} of {shape}")
    norms: dict[Axes, Reach] = {}
    for axes in {
        *itertools.chain.from_iterable(x.norms for x in inputs),
        frozenset(range(1, len(shape))),
        frozenset[int](),
    }:
        reaches = [x.within(axes) for x in inputs]
        columns = [[r.size for r in reaches], [r.gain for r in reaches], [r.error for r in reaches]]
        norms[axes] = Reach(*(_root_of_squares(c) if axis in axes else most(*c) for c in columns))
    ranges = [x.range for x in inputs]
    hull = ranges[0]
    for other in ranges[1:]:
        hull = hull.hull(other) if hull is not None and other is not None else None
    return bound(shape, norms, hull)


def _root_of_squares(numbers: Sequence[Up]) -> Up:
    total = numbers[0] * numbers[0]
    for number in numbers[1:]:
        total = total + number * number
    return total.sqrt()


def routes(
    facts: Facts, name: str, before: tuple[int, ...], after: tuple[int, ...], *, whole: bool = True
) -> list[tuple[Axes, Axes, int, int]]:
    """Pairs of axes (read, out) with two counts, as the attribute states them; the axes are those of the two shapes.

    A fibre along the axes ``out`` of the output holds each entry of one fibre along ``read`` of the input at most
    ``copies`` times, and ``filled`` entries that are constant. With ``whole`` one pair has all axes of the output.
    """
    found = []
    for route in facts.attributes.get(name) or []:
        read, out = frozenset(route[0]), frozenset(route[1])
        copies, filled = route[2], route[3]
        if not read <= {*range(1, len(before))} or not out <= {*range(1, len(after))} or copies < 1 or filled < 0:
            raise RecordError(f"the route {route} does not lead from {before} to {after}")
        found.append((read, out, int(copies), int(filled)))
    if whole and frozenset(range(1, len(after))) not in {out for _, out, _, _ in found}:
        raise RecordError(f"no route of {name!r} leads to all axes of {after}")
    return found


@rule("copies")
def copies(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """Entries that are moved, left out, repeated or padded: a sum of squares grows by how often one entry is repeated.

    Along the axes ``out`` of the output stand entries of one fibre along ``read`` of the input, each at most ``copies``
    times, and ``filled`` constants, of absolute value at most ``fill``, which do not move. The counts are those of the
    operator itself, run on the numbers of the entries. Exact, but for a constant of the code that float32 rounds.
    """
    (x,) = only(inputs, 1)
    shape = facts.shape()
    fill, rounding = facts.evidence.get("fill", ZERO), facts.evidence.get("rounding", ZERO)
    norms: dict[Axes, Reach] = {}
    filling = False
    for read, out, repeats, filled in routes(facts, "routes", x.shape, shape):
        if math.prod(shape[axis] for axis in out) - filled > repeats * x.count(read):
            raise RecordError(f"axes {sorted(read)} of {x.shape} do not hold axes {sorted(out)} of {shape}")
        reach = x.within(read).scaled(Up.of(repeats).sqrt())
        if filled:
            filling = True
            still = fill * Up.of(filled).sqrt()
            size = (reach.size * reach.size + still * still).sqrt() if out else most(reach.size, fill)
            reach = Reach(size, reach.gain, reach.error + rounding * Up.of(filled).sqrt())
        norms[out] = reach.best(norms[out]) if out in norms else reach
    constant = Interval.of(facts.attributes["low"], facts.attributes["high"]) if filling else None
    interval = x.range.hull(constant) if x.range is not None and constant is not None else x.range
    return bound(shape, norms, interval)
