"""The table of rules, and the facts that a rule may read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from certkit.bounds.bound import Bound
from certkit.bounds.number import Up
from certkit.errors import NoRule, RecordError, suggestion


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rule reads beside its inputs: ``attributes`` of the graph, ``evidence`` measured and rounded up.

    ``roundoff`` is the unit roundoff of the arithmetic that executes the centre, ``smallest`` an upper bound of what one
    operation can lose to underflow.
    """

    attributes: Mapping[str, Any]
    evidence: Mapping[str, Up]
    roundoff: Up
    smallest: Up

    def shape(self) -> tuple[int, ...]:
        """The output's shape, as the graph states it."""
        return tuple(self.integers("shape"))

    def integers(self, name: str) -> list[int]:
        """An attribute that is a list of non-negative integers."""
        found = self.attributes.get(name)
        if not isinstance(found, list) or not all(
            isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in found
        ):
            raise RecordError(f"attribute {name!r} must be a list of non-negative integers, got {found!r}")
        return found

    def integer(self, name: str) -> int:
        """An attribute that is a non-negative integer."""
        found = self.attributes.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise RecordError(f"attribute {name!r} must be a non-negative integer, got {found!r}")
        return found

    def measured(self, name: str) -> Up:
        """A piece of evidence by name."""
        try:
            return self.evidence[name]
        except KeyError:
            raise RecordError(f"evidence {name!r} is missing") from None


Rule = Callable[[Sequence[Bound], Facts], Bound]
RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Enter a rule into the table under a name that the ledger cites."""

    def enter(function: Rule) -> Rule:
        if name in RULES:
            raise ValueError(f"two rules are called {name!r}")
        RULES[name] = function
        return function

    return enter


def derive(name: str, inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The bound that the named rule gives. Raises NoRule for a name that is not in the table."""
    if name not in RULES:
        raise NoRule(f"no rule is called {name!r}{suggestion(name, RULES)}")
    return RULES[name](inputs, facts)


def why(name: str) -> str:
    """The rule's promise: the first line of its docstring."""
    return (RULES[name].__doc__ or "").strip().splitlines()[0]


def alone(inputs: Sequence[Bound], facts: Facts) -> Bound:
    """The one input of a rule whose output has the input's shape."""
    (x,) = only(inputs, 1)
    if facts.shape() != x.shape:
        raise RecordError(f"the rule keeps the shape {x.shape}, but {facts.shape()} is stated")
    return x


def only(inputs: Sequence[Bound], count: int) -> Sequence[Bound]:
    """The inputs, if there are as many as the rule reads."""
    if len(inputs) != count:
        raise RecordError(f"the rule reads {count} inputs, got {len(inputs)}")
    return inputs
