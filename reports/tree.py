"""The ledger as a tree: the operations of each module under its name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from certkit.records import LedgerRow

DEEPEST = 6  # modules within modules; what lies deeper stands with its whole name in the innermost part


@dataclass(frozen=True, slots=True)
class Run:
    """Operations that follow one another without a module of their own inside ``within``: places in the ledger."""

    within: str
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of a module: its name within the part above, its path, and what it consists of, in running order.

    A module that is run twice, with others between, is two parts: the ledger is a proof in order.
    """

    name: str
    path: str
    first: int
    last: int
    inside: tuple[Part | Run, ...]

    @property
    def count(self) -> int:
        return self.last - self.first + 1


def tree(ledger: Sequence[LedgerRow]) -> tuple[Part | Run, ...]:
    """The ledger by module. Every step stands in it once, and read from top to bottom they stand in their order."""
    return _inside([(place, tuple(filter(None, row.module.split(".")))) for place, row in enumerate(ledger)], (), 0)


def _inside(steps: list[tuple[int, tuple[str, ...]]], prefix: tuple[str, ...], depth: int) -> tuple[Part | Run, ...]:
    found: list[Part | Run] = []
    at = len(prefix)
    for name, group in groupby(steps, key=lambda step: step[1][at] if len(step[1]) > at else None):
        held = list(group)
        if name is None or depth >= DEEPEST:
            found.append(Run(".".join(prefix), tuple(place for place, _ in held)))
            continue
        path = _shared(held, (*prefix, name))  # a chain of modules that hold nothing but one another is one part
        found.append(
            Part(
                name=".".join(path[at:]),
                path=".".join(path),
                first=held[0][0],
                last=held[-1][0],
                inside=_inside(held, path, depth + 1),
            )
        )
    return tuple(found)


def _shared(steps: list[tuple[int, tuple[str, ...]]], path: tuple[str, ...]) -> tuple[str, ...]:
    """The longest path that all of the steps lie under."""
    first = steps[0][1]
    while len(first) > len(path) and all(modules[: len(path) + 1] == first[: len(path) + 1] for _, modules in steps):
        path = first[: len(path) + 1]
    return path
