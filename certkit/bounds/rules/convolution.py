"""Rules for convolutions and for pooling over windows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.number import Interval, Up, gamma
from certkit.bounds.rules.registry import Facts, only, rule
from certkit.bounds.rules.shape import routes
from certkit.errors import RecordError


@rule("convolution")
def convolution(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """A zero-padded convolution stretches by at most its operator's spectral norm; the bias moves nothing.

    In l2 by ``sigma``, the largest norm of the symbol's blocks on a grid on which no padding wraps around, or of the
    operator written out (certkit.bounds.convolution). An output entry reads its window once: l1 of its weights in linf,
    l2 of them from l2. The channels of one position are a matrix times what the position reads: ``window`` from l2,
    ``taps`` from channels to channels. Execution by direct sums: a dot product of ``terms`` terms and a bias is off by
    gamma_{terms+1} (|w| |x| + |b|) in any order of summation (Higham, ASNA 2nd ed., section 3.1); Winograd and FFT
    algorithms are not covered.
    """
    (x,) = only(inputs, 1)
    shape, terms = facts.shape(), facts.integer("terms")
    if len(shape) != len(x.shape) or len(shape) < 3 or shape[0] != x.shape[0] or terms < 1:
        raise RecordError(f"a convolution of {terms} terms cannot make {shape} of {x.shape}")
    rounding, lost = gamma(terms + 1, facts.roundoff), facts.smallest * (terms + 1)
    everything, nothing, channels = x.axes, frozenset[int](), frozenset({1})
    spread = Up.of(math.prod(shape[2:])).sqrt()
    bias = {
        everything: facts.measured("bias_l2") * spread,
        channels: facts.measured("bias_l2"),
        nothing: facts.measured("bias_linf"),
    }
    norms: dict[Axes, Reach] = {}
    for read, out, stretch, absolute in (
        (everything, everything, "sigma", "absolute"),
        (everything, channels, "window", "window_absolute"),
        (channels, channels, "taps", "taps_absolute"),
        (everything, nothing, "row_l2", "row_l2"),
        (nothing, nothing, "row_l1", "row_l1"),
    ):
        reach, factor = x.within(read), facts.measured(stretch)
        entries = Up.of(math.prod(shape[axis] for axis in out)).sqrt()
        moved = facts.measured(absolute) * (reach.size + reach.error) + bias[out]
        found = Reach(
            size=factor * reach.size + bias[out],
            gain=factor * reach.gain,
            error=factor * reach.error + rounding * moved + lost * entries,
        )
        norms[out] = found.best(norms[out]) if out in norms else found
    return bound(shape, norms)


@rule("window-max")
def window_max(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The largest entry of a window moves by at most the largest move in it, and a sum of squares by what it reads.

    |max a - max b| <= max |a - b|: linf never grows. Over axes A, the sum over A of the largest square in each window is
    at most the sum of all squares there, in which each input entry stands at most ``copies`` times. Exact.
    """
    (x,) = only(inputs, 1)
    shape = facts.shape()
    norms: dict[Axes, Reach] = {}
    for read, out, copies, _ in routes(facts, "routes", x.shape, shape):
        reach = x.within(read).scaled(Up.of(copies).sqrt())
        norms[out] = reach.best(norms[out]) if out in norms else reach
    return bound(shape, {**norms, frozenset[int](): x.within(frozenset[int]())}, x.range)


@rule("window-mean")
def window_mean(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The mean of a window shrinks what it reads by the root of its length (Cauchy-Schwarz), and never grows the largest.

    A window of D entries, zeros of the padding among them if they count: the sum over A of |mean|² is at most 1/D times
    the sum of all squares there, each input entry standing in at most ``copies`` of them; D is at least ``fewest``. And a
    mean of vectors over A is at most the longest: ``single``, one place of the window at a time, which has routes only to
    axes along which all windows are of one length. Execution: a sum of ``terms`` entries and up to two divisions.
    """
    (x,) = only(inputs, 1)
    shape, fewest, terms = facts.shape(), facts.integer("fewest"), facts.integer("terms")
    if not 1 <= fewest <= terms:
        raise RecordError(f"a window of {terms} entries cannot average over {fewest} of them")
    rounding, lost = gamma(terms + 2, facts.roundoff), facts.smallest * (terms + 2)
    norms: dict[Axes, Reach] = {}
    for name in ("joint", "single"):
        for read, out, copies, _ in routes(facts, name, x.shape, shape, whole=name == "joint"):
            reach = x.within(read)
            factor = Up.of(copies * fewest).sqrt() / fewest if name == "joint" else Up.of(copies).sqrt()
            entries = Up.of(math.prod(shape[axis] for axis in out)).sqrt()
            mean = reach.scaled(factor)
            found = Reach(mean.size, mean.gain, mean.error + rounding * (mean.size + mean.error) + lost * entries)
            norms[out] = found.best(norms[out]) if out in norms else found
    padded = facts.integer("padded") > 0
    interval = x.range.hull(Interval.of(0, 0)) if x.range is not None and padded else x.range
    return bound(shape, norms, interval)
