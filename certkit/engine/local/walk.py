"""One pass over the ledger's steps on the ball around each sample.

What is proved, for B the ball of radius r around x0 meeting the box, v the exact value of a step, v^ a computed one:

    size    sup of N(v(x)) over B
    gain    sup of N(v(x) - v(y)) / |x - y| over pairs of B
    error   sup of N(v^(x) - v(x)) over B
    range   every entry of v(x), x in B
    moved   sup of N(v(x) - v(x0)) over B

Rules turn such facts of their inputs into facts of their output on any set of inputs for which the evidence holds; where
they use the mean value theorem the set must be convex, and B is. So the rule of each step is applied again, with the same
evidence of the weights, and that of where values lie taken on B (evidence.py). Facts of the box hold on B as well, and the
better of two is taken, number by number. The centre improves them:

    N(v(x)) <= N(v^(x0)) + error + moved,    v(x) >= min v^(x0) - error - moved, in linf,

v^(x0) being the float64 value that was measured, so that a deviation starts at its error. And for a ball B' of radius
r' < r whose ``moved`` is known, moved(r) <= moved(r') + gain(r) (r - r'): on the way from x0 to x lies a point y of B', on
the same straight line, |x - y| <= r - r', and both are in B. From r' = 0 it is gain(r) r. Gains grow with the ball, so
that many thin shells prove more than one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.bound import Axes, Bound, Reach
from certkit.bounds.ledger import Ledger, Step, facts_for
from certkit.bounds.number import ZERO, Interval, Up, least
from certkit.bounds.rules import derive
from certkit.engine.local.centre import GROUPED, Centre, axes_of
from certkit.engine.local.evidence import EXACT, EXECUTED, Evidence, Place
from certkit.engine.local.numbers import Ups, as_interval, as_up


@dataclass(frozen=True, slots=True)
class Known:
    """What the box's ledger says of a step, made ready once: its bound in the norms of interest."""

    step: Step
    reaches: Mapping[Axes, Reach]


@dataclass(frozen=True, slots=True)
class Balls:
    """What one pass proved, per step, for balls of ``radius`` (N,); ``evidence`` replaces that of the box."""

    radius: Ups
    bounds: dict[str, Bound]
    moved: dict[str, Bound]
    evidence: dict[str, Mapping[str, Up]]


def ready(ledger: Ledger) -> tuple[Known, ...]:
    """The steps with the norms that a local pass follows."""
    found = []
    for step in ledger.steps:
        reaches = {axes: step.bound.within(axes) for axes in axes_of(step)}
        if step.rule != "constant":  # constants stay single numbers, which every sample shares
            reaches = {axes: Reach(_each(r.size), _each(r.gain), _each(r.error)) for axes, r in reaches.items()}
        found.append(Known(step, reaches))
    return tuple(found)


def _each(number: Up) -> Up:
    return as_up(Ups.of(number))


def walk(steps: tuple[Known, ...], centre: Centre, radius: Ups, inner: Balls | None = None) -> Balls:
    """Facts of the balls of ``radius``, errors being those of float64, from the centres and from ``inner`` balls, if known.

    ``steps`` are those of a float64 ledger: their errors cover the centres.
    """
    found = Balls(radius, {}, {}, {})
    shell = _thickness(radius, inner)
    for known in steps:
        step, name = known.step, known.step.node
        if step.rule == "constant":
            bound, moved = step.bound, Bound(step.bound.shape, {step.bound.axes: Reach(ZERO, ZERO, ZERO)})
        else:
            place = _place("float64", step, found.bounds, found.moved, found.bounds, centre)
            found.evidence[name] = _measured(place, EXACT, EXECUTED)
            given = _applied("float64", place, found.evidence[name])
            before = None if inner is None else inner.moved[name]
            bound, moved = _improved(known, given, centre, shell, before)
        found.bounds[name], found.moved[name] = bound, moved
    return found


def executed(steps: tuple[Known, ...], deployed: Ledger, centre: Centre, balls: Balls) -> Mapping[str, Bound]:
    """The bounds of the same balls with the errors of another arithmetic, whose ledger of the same program is ``deployed``.

    Sizes, gains and ranges are of exact values and stay; so does the evidence, but for what carries errors. Each step of the
    ledgers is the other's counterpart only if all of them are the same: else the facts of the box serve, as they hold on a
    ball.
    """
    if [_counterpart(known.step) for known in steps] != [_counterpart(step) for step in deployed.steps]:
        return {step.node: step.bound for step in deployed.steps}
    found: dict[str, Bound] = {}
    for step in deployed.steps:
        name = step.node
        if step.rule == "constant":
            found[name] = step.bound
            continue
        place = _place(deployed.arithmetic, step, found, balls.moved, balls.bounds, centre)
        given = _applied(deployed.arithmetic, place, {**balls.evidence.get(name, {}), **_measured(place, EXECUTED)})
        exact = balls.bounds[name]
        norms = {
            axes: Reach(reach.size, reach.gain, least(given.within(axes).error, step.bound.within(axes).error))
            for axes, reach in exact.norms.items()
        }
        found[name] = Bound(exact.shape, norms, exact.range)
    return found


def _counterpart(step: Step) -> tuple[str, str, tuple[str, ...]]:
    return step.node, step.rule, step.inputs


def _place(
    arithmetic: str,
    step: Step,
    bounds: Mapping[str, Bound],
    moved: Mapping[str, Bound],
    centred: Mapping[str, Bound],
    centre: Centre,
) -> Place:
    length = centre.lengths.get(step.node)
    error = ZERO
    if length is not None:
        error = centred[step.inputs[0]].within(frozenset(step.attributes["axes"])).error
    return Place(
        step=step,
        inputs=[bounds[source] for source in step.inputs],
        moved=[moved[source] for source in step.inputs],
        facts=facts_for(arithmetic, step.attributes, step.evidence),
        shares=centre.shares.get(step.node),
        length=length,
        centre_error=error,
    )


def _measured(place: Place, *tables: Mapping[str, Evidence]) -> dict[str, Up]:
    """The evidence of this step on the balls; the box's stays where there is no centre to take it from."""
    found: dict[str, Up] = {}
    rule = place.step.rule
    for table in tables:
        if rule in table and (rule not in GROUPED or place.length is not None):
            found |= table[rule](place)
    return found


def _applied(arithmetic: str, place: Place, evidence: Mapping[str, Up]) -> Bound:
    facts = facts_for(arithmetic, place.step.attributes, {**place.step.evidence, **evidence})
    return derive(place.step.rule, place.inputs, facts)


def _thickness(radius: Ups, inner: Balls | None) -> Ups:
    """r - r', rounded up; r where nothing is known of a smaller ball."""
    return radius if inner is None else Ups(np.maximum(np.nextafter(radius.value - inner.radius.value, np.inf), 0.0))


def _improved(known: Known, given: Bound, centre: Centre, shell: Ups, before: Bound | None) -> tuple[Bound, Bound]:
    """Bound and movement of one step: the best of its rule, of the box and of the centre."""
    name, sizes = known.step.node, centre.norms.get(known.step.node, {})
    norms: dict[Axes, Reach] = {}
    steps: dict[Axes, Reach] = {}
    for axes, box in known.reaches.items():
        best = given.within(axes).best(box)
        moved = best.gain * as_up(shell)
        if before is not None:
            moved = moved + before.within(axes).size
        size = best.size
        if axes in sizes:
            size = least(size, as_up(sizes[axes]) + best.error + moved)
        norms[axes] = Reach(size, best.gain, best.error)
        steps[axes] = Reach(moved, best.gain, best.error)
    shape = given.shape
    held = norms[frozenset()].error + steps[frozenset()].size
    around = as_interval(centre.ranges[name]).widened(held) if name in centre.ranges else None
    range_: Interval | None = None
    for interval in (given.range, known.step.bound.range, around):
        if interval is not None:
            range_ = interval if range_ is None else range_.meet(interval)
    return Bound(shape, norms, range_), Bound(shape, steps)


def selected(chosen: NDArray[np.bool_], there: Balls, here: Balls) -> Balls:
    """The balls of ``there`` for the samples that are chosen, else those of ``here``; what was moved alone is kept."""

    def choose(a: Up, b: Up) -> Up:
        return as_up(Ups(np.where(chosen, Ups.of(a).value, Ups.of(b).value)))

    moved = {
        name: Bound(
            bound.shape,
            {
                axes: Reach(choose(reach.size, here.moved[name].norms[axes].size), ZERO, ZERO)
                for axes, reach in bound.norms.items()
            },
        )
        for name, bound in there.moved.items()
    }
    return Balls(Ups(np.where(chosen, there.radius.value, here.radius.value)), {}, moved, {})
