"""Certified radii of a language model's program as it runs: in its own arithmetic, at every position of a text.

With h the vector of exact arithmetic that the head reads, h^ the computed one, and d their distance anywhere on the ball, a
computed difference of two logits is off from the exact head's on h^ by the head's own rounding R alone, and h^ lies within
moved + d of the exact vector at the centre. So the predicted token stays on top of the computed logits, strictly, if

    lead - E_ctr - R  >  |W_i - W_j| (moved + d)        for every other j,

E_ctr the error of the float64 centre: the condition of the exact claim, with less room and more movement.

d and R are derived on the largest ball of each context that the exact claim reaches, and hold on every smaller one. They hold
at every position: d is of every token, and the steps after it act on one token, whichever it is. A program that answers all
positions at once has the same operators as the graph of one, its head on more rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.ledger import Ledger, facts_for
from certkit.bounds.number import ZERO
from certkit.bounds.rules import derive
from certkit.engine.floats import FloatClaim, float_claim
from certkit.engine.local.centre import Centre, measure
from certkit.engine.local.numbers import Floats, Ups
from certkit.engine.local.walk import executed, ready, walk
from certkit.language.certificate import Bounded, Proof, joined, pieces_of, room

UNWRITTEN = "a bound of its rounding is larger than any number that can be written down"
SHELLS = 4  # on the way to the ball whose rounding is derived: many thin ones prove more than one


@dataclass(frozen=True, slots=True, eq=False)
class Executed:
    """What is proved of the program as it runs, beside the proof of the exact function.

    ``everywhere`` and ``jointly`` are certified radii (N, T) for every token moving by the radius, and for all together
    moving by it in l2: never above those of the exact claim, and 0 throughout where ``claim`` holds nothing.
    """

    claim: FloatClaim
    everywhere: Floats
    jointly: Floats


def execution(given: Bounded, found: Proof, embedded_NTD: Tensor) -> Executed:
    """The radii at which the program itself keeps each predicted token, of the contexts that ``found`` is about."""
    none = np.zeros(found.room.shape)
    if given.deployed is None:
        return Executed(FloatClaim(given.program.arithmetic, None, (UNWRITTEN,), ()), none, none)
    claim = float_claim(given.program, given.deployed)
    if not claim.holds or not len(found.radii):
        return Executed(claim, none, none)
    parts = torch.split(embedded_NTD, pieces_of(embedded_NTD.shape[1]))
    seen = joined([measure(given.program, given.everywhere, part) for part in parts])
    return Executed(
        claim,
        _radii(given, given.everywhere, found, found.everywhere, seen),
        _radii(given, given.jointly, found, found.jointly, seen),
    )


def _radii(given: Bounded, ledger: Ledger, found: Proof, moved_RN: Floats, seen: Centre) -> Floats:
    """The largest radius that was tried and passes, none beyond the ball on which the rounding was derived.

    A larger radius passes for the exact claim at no position, and the more so not here.
    """
    reach_N = found.radius(moved_RN).max(axis=1)
    off_N, lost_N = rounding(given, ledger, seen, reach_N)
    free_NT = _room(found, np.nextafter(found.error + lost_N, np.inf))
    passed = np.zeros(free_NT.shape)
    for radius, moved_N in zip(found.radii, moved_RN, strict=True):
        inside = radius <= reach_N
        reached = np.nextafter(moved_N + off_N, np.inf)
        passed = np.where((inside & np.isfinite(reached))[:, None] & (reached[:, None] < free_NT), radius, passed)
    return passed


def rounding(given: Bounded, ledger: Ledger, seen: Centre, radius_N: Floats) -> tuple[Floats, Floats]:
    """How far rounding moves what the head reads, in l2 at any token, and a difference of two logits within the head, (N,) each.

    Anywhere on the balls of ``radius_N`` in the norm of ``ledger``, for the arithmetic of ``given.deployed``: its errors hold
    on the whole domain, whichever norm the threat has. The head is given the computed vector as it is, no longer than the
    exact one and its error.
    """
    steps, deployed = ready(ledger), given.deployed
    assert deployed is not None
    with np.errstate(all="ignore"):
        balls = walk(steps, seen, Ups(np.zeros(len(radius_N))))
        for part in range(1, SHELLS + 1):
            balls = walk(steps, seen, Ups(radius_N * (part / SHELLS)), balls)
        read = executed(steps, deployed, seen, balls)[given.source]
        computed = {axes: Reach(reach.size + reach.error, reach.gain, ZERO) for axes, reach in read.norms.items()}
        after = {given.source: Bound(read.shape, computed)}
        for step in deployed.steps:
            if step.inputs and all(name in after for name in step.inputs):
                facts = facts_for(deployed.arithmetic, step.attributes, step.evidence)
                after[step.node] = derive(step.rule, [after[name] for name in step.inputs], facts)
        off = read.within(frozenset({len(read.shape) - 1})).error
        lost = after[deployed.output].within(frozenset()).error * 2
        return tuple(np.array(np.broadcast_to(Ups.of(number).value, radius_N.shape)) for number in (off, lost))  # type: ignore[return-value]


def _room(found: Proof, error_N: Floats) -> Floats:
    """``Proof.room`` with another error of a difference of two logits per context; 0 where that is not finite."""
    read, error_P = found.hidden.reshape(-1, found.hidden.shape[-1]), np.repeat(error_N, found.hidden.shape[1])
    free_P = np.zeros(len(read))
    for part in found.head.pieces(len(read)):
        logits = found.head.logits(read[part])
        ids, back = np.unique(logits.argmax(axis=1), return_inverse=True)
        free_P[part] = room(logits, found.head.slopes(ids)[back.reshape(-1)], error_P[part])
    return np.where(np.isfinite(error_N)[:, None], free_P.reshape(found.room.shape), 0.0)
