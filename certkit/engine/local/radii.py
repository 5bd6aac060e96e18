"""How far each sample may move before its predicted class can change, proved from facts of its own ball."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certkit.bounds.bound import Bound
from certkit.bounds.ledger import Ledger, pair_gain
from certkit.bounds.number import Up
from certkit.certified import gains_of, margins, radii
from certkit.engine.local.centre import Centre, measure
from certkit.engine.local.numbers import Floats, Ups, as_up
from certkit.engine.local.walk import Balls, Known, executed, ready, selected, walk
from certkit.engine.program import Program
from certkit.errors import Refusal

PASSES = 8
FIRST = 4  # the first ball tried is this part of where the bound at the centre alone would end, or the box's
BITS = 20  # of the numbers that a search starts from, so that hardly any rounding of a centre moves them


@dataclass(frozen=True, slots=True, eq=False)
class LocalRadii:
    """Per sample: the largest radius that was tried and proved, never below that of the box.

    ``gain`` (N, classes) bounds the slope of the predicted logit minus each other on that ball; ``error`` the float error of
    such a difference there, of the centre and of the arithmetic that was asked for together.
    """

    radius: Floats
    gain: Floats
    error: Floats


def local_radii(
    program: Program,
    ledger: Ledger,
    images: Tensor,
    logits: Floats,
    *,
    deployed: Ledger | None = None,
    passes: int = PASSES,
    centre: Centre | None = None,
) -> LocalRadii:
    """Certified radii (N,) in the ledger's norm, of images (N, ...) with float64 logits (N, classes) at the centres.

    ``ledger`` is the program's, for float64 and the box. A sample is certified at r iff for every other class the lead in
    ``logits``, less the error, exceeds what the difference can move on the ball of radius r meeting the box (see ``walk``).
    With ``deployed``, the same program's ledger for another arithmetic, the error of executing that one anywhere on the
    ball is taken off too. The search halves the gap between the largest radius that passed and the smallest that failed,
    ``passes`` tries in all; every sample is on its own, so neither the order nor the company of samples matters.
    ``centre`` is what ``measure`` gives for these three; who asks for both kinds of radii measures once.
    """
    with np.errstate(all="ignore"):
        search = _Search(ledger, measure(program, ledger, images) if centre is None else centre, logits, deployed)
        return search.run(passes)


def local_bounds(
    program: Program, ledger: Ledger, images: Tensor, radius: float | Floats, *, deployed: Ledger | None = None
) -> dict[str, Bound]:
    """The bounds of every step on the ball of ``radius`` around each image, meeting the box; radius 0 is the sample itself.

    Numbers are ``certkit.engine.local.numbers.Ups`` and ``Intervals``, with one entry per image, or one for all. With
    ``deployed`` the errors are those of that ledger's arithmetic.
    Raises Refusal for a radius that is NaN or negative.
    """
    if not (np.asarray(radius) >= 0).all():
        raise Refusal(f"a ball has a radius of at least 0, got {radius}")
    with np.errstate(all="ignore"):
        centre = measure(program, ledger, images)
        steps = ready(ledger)
        balls = walk(steps, centre, Ups(np.broadcast_to(np.asarray(radius, dtype=np.float64), len(images))))
        return dict(balls.bounds if deployed is None else executed(steps, deployed, centre, balls))


class _Search:
    """The search of all samples at once."""

    def __init__(self, ledger: Ledger, centre: Centre, logits: Floats, deployed: Ledger | None) -> None:
        self.ledger, self.centre, self.deployed = ledger, centre, deployed
        self.steps: tuple[Known, ...] = ready(ledger)
        self.logits = logits
        self.top = logits.argmax(axis=1)
        pairs = ledger.pairs
        self.l2, self.l1 = (None if m is None else _rows(m, self.top) for m in (pairs.l2, pairs.l1))

    def gains(self, balls: Balls) -> Floats:
        """Upper bounds (N, classes) of the slope of the top logit minus each other."""
        read = balls.bounds[self.ledger.pairs.node]
        shape = self.logits.T.shape
        if self.l2 is None or self.l1 is None:
            return np.broadcast_to(Ups.of(pair_gain(read)).value, shape).T.copy()
        return np.broadcast_to(Ups.of(pair_gain(read, as_up(self.l2), as_up(self.l1))).value, shape).T.copy()

    def errors(self, balls: Balls) -> Floats:
        """How far the computed lead (N,) may be off, at the centre and, if asked for, where it is executed."""
        error = balls.bounds[self.ledger.output].within(frozenset()).error * 2
        if self.deployed is not None:
            found = executed(self.steps, self.deployed, self.centre, balls)
            error = error + found[self.deployed.output].within(frozenset()).error * 2
        return np.broadcast_to(Ups.of(error).value, len(self.logits)).copy()

    def run(self, passes: int) -> LocalRadii:
        """See ``local_radii``."""
        none = np.zeros(len(self.logits))
        here = walk(self.steps, self.centre, Ups(none))
        gain, error = self.gains(here), self.errors(here)
        lead = margins(self.logits, 0.0)  # the errors are taken off below, as they grow with the ball
        ends = np.min(np.where(np.isfinite(lead), (lead - error[:, None]) / gain, np.inf), axis=1, initial=np.inf)
        moved, radius, box = np.zeros_like(gain), none, self.box()
        ceiling = np.maximum(_short(ends), 0.0)  # gains grow with the ball: no larger radius can pass
        tried = np.minimum(np.maximum(ceiling / FIRST, _short(box.radius)), ceiling)
        for _ in range(passes):
            there = walk(self.steps, self.centre, Ups(tried), here)
            slope, off = self.gains(there), self.errors(there)
            reached = (Ups(moved) + Ups(slope) * Ups(np.nextafter(tried - radius, np.inf)[:, None])).value
            passed = (tried > radius) & _leads(lead, off, reached)
            here = selected(passed, there, here)
            moved, gain = np.where(passed[:, None], reached, moved), np.where(passed[:, None], slope, gain)
            radius, error = np.where(passed, tried, radius), np.where(passed, off, error)
            ceiling = np.where(passed, ceiling, tried)
            tried = radius + (ceiling - radius) / 2
        better = box.radius > radius
        gain = np.where(better[:, None], box.gain, gain)
        return LocalRadii(np.maximum(radius, box.radius), gain, np.where(better, box.error, error))

    def box(self) -> LocalRadii:
        """The radii that follow from the ledger of the whole box."""
        gain = np.array([[number.to_float() for number in row] for row in self.ledger.pairs.gain])
        error = Ups.of(self.ledger.pairs.error)
        if self.deployed is not None:
            error = error + self.deployed.pairs.error
        radius = radii(self.logits, gain, float(error.value))
        return LocalRadii(radius, gains_of(gain, self.logits), np.full(len(self.top), float(error.value)))


def _rows(matrix: tuple[tuple[Up, ...], ...], top: NDArray[np.int64]) -> Ups:
    """Per sample the row of its class, as (classes, N)."""
    return Ups(np.array([[number.to_float() for number in row] for row in matrix])[top].T.copy())


def _leads(lead: Floats, error: Floats, reached: Floats) -> NDArray[np.bool_]:
    """lead - error > reached for every other class; the lead over itself is infinite."""
    slack = np.nextafter(lead - error[:, None], -np.inf)
    return np.asarray(((slack > reached) | np.isposinf(lead)).all(axis=1))


def _short(number: Floats) -> Floats:
    """The next smaller number of ``BITS`` binary digits; 0 for what is not finite."""
    digits, exponent = np.frexp(np.where(np.isfinite(number), number, 0.0))
    return np.asarray(np.ldexp(np.floor(digits * 2.0**BITS), exponent - BITS))
