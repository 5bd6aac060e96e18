"""What is known of one value of the graph: size, gain and error in every norm that earns its place.

A norm is named by a set of axes A of the value, batch axis 0 left out: N_A(x) is the largest, over all other axes, of
the Euclidean norm over A. All axes give ``l2``, no axes give ``linf``, the feature axis gives ``token``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from certkit.bounds.number import Interval, Up, least

Axes = frozenset[int]


@dataclass(frozen=True, slots=True)
class Reach:
    """Three numbers of a value x(input) in one norm N, on the whole input domain.

    size    sup of N(x)
    gain    sup of N(x(a) - x(b)) / |a - b| over pairs of the domain, |.| the norm of the threat
    error   sup of N(computed x - exact x) for the float64 execution at a centre
    """

    size: Up
    gain: Up
    error: Up

    def scaled(self, factor: Up) -> Reach:
        """The same facts after a change of norm that costs ``factor``."""
        return Reach(self.size * factor, self.gain * factor, self.error * factor)

    def best(self, other: Reach) -> Reach:
        """Each number on its own may take the better of two sound routes."""
        return Reach(least(self.size, other.size), least(self.gain, other.gain), least(self.error, other.error))


@dataclass(frozen=True, slots=True)
class Bound:
    """What is proved of one value. ``shape`` is that of one sample, with its batch axis of length 1 in front."""

    shape: tuple[int, ...]
    norms: Mapping[Axes, Reach]
    range: Interval | None = None
    found: dict[Axes, Reach] = field(default_factory=dict, init=False, repr=False, compare=False)  # by ``within``

    def __post_init__(self) -> None:
        if not self.norms:
            raise ValueError("a bound knows at least one norm")
        for axes in self.norms:
            if not axes <= self.axes:
                raise ValueError(f"axes {sorted(axes)} do not belong to shape {self.shape}")

    @property
    def axes(self) -> Axes:
        """All axes of one sample: the norm l2."""
        return frozenset(range(1, len(self.shape)))

    def count(self, axes: Axes) -> int:
        """How many entries the axes span."""
        return math.prod(self.shape[axis] for axis in axes)

    def within(self, axes: Axes) -> Reach:
        """The best that is known in norm N_A.

        From a known N_B: N_{A∩B} <= N_B, as a Euclidean norm over fewer axes is smaller; and
        N_A <= sqrt(product of the lengths of A \\ B) * N_{A∩B}, as it joins that many entries, each at most the largest.
        """
        if axes not in self.found:
            self.found[axes] = self._routes(axes)
        return self.found[axes]

    def _routes(self, axes: Axes) -> Reach:
        routes = [
            reach if axes <= known else reach.scaled(root(self.count(axes - known)))
            for known, reach in sorted(self.norms.items(), key=lambda item: sorted(item[0]))
        ]
        found = routes[0]
        for route in routes[1:]:
            found = found.best(route)
        if self.range is not None:
            found = Reach(least(found.size, self.range.largest * root(self.count(axes))), found.gain, found.error)
        return found


@lru_cache(maxsize=4096)
def root(count: int) -> Up:
    """An upper bound of the square root of a count."""
    return Up.of(count).sqrt()


def bound(shape: Iterable[int], norms: Mapping[Axes, Reach], range: Interval | None = None) -> Bound:
    """A bound without the norms that the others already imply, so that a ledger shows only what carries the proof.

    Numbers that are one per sample imply each other for some samples and not for others: all their norms stay.
    """
    shape = tuple(shape)
    kept = dict(norms)
    if not all(isinstance(reach.gain, Up) for reach in norms.values()):
        return Bound(shape, kept, range)
    for axes in sorted(norms, key=lambda a: (len(a), sorted(a))):
        others = {known: reach for known, reach in kept.items() if known != axes}
        if others and Bound(shape, others, range).within(axes).best(kept[axes]) == Bound(shape, others, range).within(
            axes
        ):
            kept = others
    return Bound(shape, kept, range)


def per_norm(x: Bound, rule: Callable[[Axes, Reach], Reach]) -> dict[Axes, Reach]:
    """Apply a rule that holds in every norm to each norm that is known."""
    return {axes: rule(axes, reach) for axes, reach in x.norms.items()}


def norm_name(shape: tuple[int, ...], axes: Axes) -> str:
    """``l2``, ``linf``, ``token`` (the last axis alone), else the axes: ``l2 over axes 1,3``."""
    everything = frozenset(range(1, len(shape)))
    if axes == everything:
        return "l2"
    if not axes:
        return "linf"
    if axes == {len(shape) - 1}:
        return "token"
    return "l2 over axes " + ",".join(str(axis) for axis in sorted(axes))
