"""The proof of a certificate as a list of steps, derived again with the standard library alone.

    python -m certkit.bounds.ledger certificate.json

Each step names an operator of the graph, the rule that covers it, the values it reads, its evidence and the bound. Here
every rule is applied again to the stated evidence, and a bound that differs in one digit is refused. What the ledger
cannot show is that evidence and attributes are those of this network: for that, certify the checkpoint again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import DecimalException
from pathlib import Path
from typing import Any

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.number import SMALLEST, UNIT_ROUNDOFF, ZERO, Interval, Up, least
from certkit.bounds.rules import RULES, Facts, derive
from certkit.errors import CertkitError, RecordError, RuleViolation, one_line

MAX_TEXT = 64  # no honest number of DIGITS digits is longer
MAX_AXES = 16
MAX_PAIRED_CLASSES = 100  # beyond, a matrix with a number per pair of classes would outgrow the certificate
TWO = Up.of(2)
SQRT_2 = TWO.sqrt()


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the graph: the operator, what its rule read, what it gave."""

    node: str
    op: str
    module: str
    rule: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    evidence: Mapping[str, Up]
    bound: Bound


@dataclass(frozen=True, slots=True)
class Pairs:
    """How fast the difference of two logits can change: the last step, from which radii follow.

    When the logits are x W' + b, logit i minus logit j moves by at most |W_i - W_j| times the gain of x, in l2, or in l1
    with the gain of x in linf; ``node`` is then x. Without such a last layer ``l2`` and ``l1`` are None, ``node`` is the
    output, and the factors are sqrt(2) in l2 and 2 in linf (Tsuzuku et al. 2018, arXiv 1802.04034).
    """

    node: str
    l2: tuple[tuple[Up, ...], ...] | None
    l1: tuple[tuple[Up, ...], ...] | None
    gain: tuple[tuple[Up, ...], ...]
    error: Up


@dataclass(frozen=True, slots=True)
class Ledger:
    """A whole proof: steps in execution order, the output, and the gains of the logit pairs."""

    arithmetic: str
    steps: tuple[Step, ...]
    output: str
    pairs: Pairs

    def check(self) -> dict[str, Bound]:
        """Derive every bound again and return them by node; RuleViolation names the first that differs."""
        known: dict[str, Bound] = {}
        for step in self.steps:
            if missing := [name for name in step.inputs if name not in known]:
                raise RuleViolation(f"{step.node}: reads {missing[0]!r}, which no earlier step gives")
            if step.node in known:
                raise RuleViolation(f"{step.node}: stands twice in the ledger")
            facts = facts_for(self.arithmetic, step.attributes, step.evidence)
            given = derive(step.rule, [known[name] for name in step.inputs], facts)
            if given != step.bound:
                raise RuleViolation(f"{step.node}: the stated bound is not the one that rule {step.rule!r} gives")
            known[step.node] = given
        for name in (self.output, self.pairs.node):
            if name not in known:
                raise RuleViolation(f"the proof ends at {name!r}, which no step gives")
        gain, error = pair_gains(known[self.pairs.node], known[self.output], self.pairs.l2, self.pairs.l1)
        if (gain, error) != (self.pairs.gain, self.pairs.error):
            raise RuleViolation("the gains of the logit pairs are not those that the last step gives")
        return known


def facts_for(arithmetic: str, attributes: Mapping[str, Any], evidence: Mapping[str, Up]) -> Facts:
    """The facts of one step under a named arithmetic."""
    if arithmetic not in UNIT_ROUNDOFF:
        raise RecordError(f"arithmetic must be one of {', '.join(UNIT_ROUNDOFF)}, got {one_line(arithmetic)!r}")
    return Facts(attributes, evidence, UNIT_ROUNDOFF[arithmetic], SMALLEST[arithmetic])


Matrix = tuple[tuple[Up, ...], ...]


def pair_gains(read: Bound, logits: Bound, l2: Matrix | None, l1: Matrix | None) -> tuple[Matrix, Up]:
    """Upper bounds of the slope of each logit difference, and of its float64 error at a centre (the same for all pairs).

    See ``Pairs`` for the reason. More classes than MAX_PAIRED_CLASSES share one number, a matrix of 1 by 1. Raises
    RecordError unless the output holds one logit per class.
    """
    if len(logits.shape) != 2 or logits.shape[1] < 1:
        raise RecordError(f"the output must be one logit per class, shape (1, classes), got {logits.shape}")
    classes = logits.shape[1]
    for matrix in (l2, l1):
        if matrix is not None and (len(matrix) != classes or any(len(row) != classes for row in matrix)):
            raise RecordError(f"the pair norms must form a {classes} x {classes} matrix")
    if l2 is None or l1 is None:
        factor, few = pair_gain(read), classes <= MAX_PAIRED_CLASSES
        square = tuple(tuple(ZERO if i == j else factor for j in range(classes)) for i in range(classes if few else 0))
        gain = square or ((factor,),)
    else:
        gain = tuple(
            tuple(ZERO if i == j else pair_gain(read, l2[i][j], l1[i][j]) for j in range(classes))
            for i in range(classes)
        )
    return gain, logits.within(frozenset()).error * 2


def pair_gain(read: Bound, l2: Up = SQRT_2, l1: Up = TWO) -> Up:
    """The slope of one logit difference, a linear function of ``read`` with norms at most ``l2`` and ``l1``: see ``Pairs``."""
    return least(l2 * read.within(read.axes).gain, l1 * read.within(frozenset()).gain)


def to_json(ledger: Ledger) -> dict[str, Any]:
    """The ledger as plain JSON values; numbers are exact decimal texts."""

    def matrix(rows: Matrix | None) -> list[list[str]] | None:
        return None if rows is None else [[str(number) for number in row] for row in rows]

    return {
        "arithmetic": ledger.arithmetic,
        "steps": [
            {
                "node": step.node,
                "op": step.op,
                "module": step.module,
                "rule": step.rule,
                "inputs": list(step.inputs),
                "attributes": dict(step.attributes),
                "evidence": {name: str(number) for name, number in step.evidence.items()},
                "bound": _bound_to_json(step.bound),
            }
            for step in ledger.steps
        ],
        "output": ledger.output,
        "pairs": {
            "node": ledger.pairs.node,
            "l2": matrix(ledger.pairs.l2),
            "l1": matrix(ledger.pairs.l1),
            "gain": matrix(ledger.pairs.gain),
            "error": str(ledger.pairs.error),
        },
    }


def from_json(value: object) -> Ledger:
    """The ledger in plain JSON values. Raises RecordError for anything that is not one; does not check the proof."""
    try:
        top = _object(value, "ledger", {"arithmetic", "steps", "output", "pairs"})
        pairs = _object(top["pairs"], "pairs", {"node", "l2", "l1", "gain", "error"})
        gain = _matrix(pairs["gain"], "pairs.gain")
        if gain is None:
            raise RecordError("ledger: pairs.gain must be a matrix")
        return Ledger(
            arithmetic=_text(top["arithmetic"], "arithmetic"),
            steps=tuple(_step(step) for step in _list(top["steps"], "steps")),
            output=_text(top["output"], "output"),
            pairs=Pairs(
                node=_text(pairs["node"], "pairs.node"),
                l2=_matrix(pairs["l2"], "pairs.l2"),
                l1=_matrix(pairs["l1"], "pairs.l1"),
                gain=gain,
                error=_number(pairs["error"], "pairs.error"),
            ),
        )
    except (ValueError, DecimalException, RecursionError) as error:
        raise RecordError(f"ledger: {one_line(error)}") from None


def checked(value: object) -> Ledger:
    """Read a ledger and derive it again. Raises RecordError or RuleViolation, never anything else."""
    try:
        ledger = from_json(value)
        ledger.check()
    except CertkitError as error:  # what it quotes comes from the file
        raise type(error)(one_line(error)) from None
    except (ValueError, TypeError, KeyError, IndexError, ArithmeticError, RecursionError, MemoryError) as error:
        raise RecordError(f"ledger: a rule cannot read what is stated ({one_line(repr(error))})") from None
    return ledger


def _bound_to_json(bound: Bound) -> dict[str, Any]:
    return {
        "shape": list(bound.shape),
        "range": None if bound.range is None else [str(bound.range.low), str(bound.range.high)],
        "norms": [
            {"axes": sorted(axes), "size": str(reach.size), "gain": str(reach.gain), "error": str(reach.error)}
            for axes, reach in sorted(bound.norms.items(), key=lambda item: sorted(item[0]))
        ],
    }


def _step(value: object) -> Step:
    step = _object(value, "step", {"node", "op", "module", "rule", "inputs", "attributes", "evidence", "bound"})
    evidence = step["evidence"]
    if not isinstance(evidence, dict) or not isinstance(step["attributes"], dict):
        raise RecordError("ledger: attributes and evidence of a step must be objects")
    return Step(
        node=_text(step["node"], "node"),
        op=_text(step["op"], "op"),
        module=_text(step["module"], "module"),
        rule=_text(step["rule"], "rule"),
        inputs=tuple(_text(name, "inputs") for name in _list(step["inputs"], "inputs")),
        attributes=step["attributes"],
        evidence={name: _number(number, name) for name, number in evidence.items()},
        bound=_bound(step["bound"]),
    )


def _bound(value: object) -> Bound:
    found = _object(value, "bound", {"shape", "range", "norms"})
    shape = tuple(_integer(n, "shape") for n in _list(found["shape"], "shape"))
    if not 1 <= len(shape) <= MAX_AXES:
        raise RecordError(f"ledger: a shape has 1 to {MAX_AXES} axes, got {len(shape)}")
    norms = {}
    for item in _list(found["norms"], "norms"):
        norm = _object(item, "norm", {"axes", "size", "gain", "error"})
        axes = frozenset(_integer(axis, "axes") for axis in _list(norm["axes"], "axes"))
        norms[axes] = Reach(*(_number(norm[name], name) for name in ("size", "gain", "error")))
    ends = found["range"]
    interval = None
    if ends is not None:
        low, high = (_digits(end, "range") for end in _list(ends, "range"))
        interval = Interval.of(low, high)
    return Bound(shape, norms, interval)


def _object(value: object, name: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != keys:
        raise RecordError(f"ledger: {name} must be an object with the keys {', '.join(sorted(keys))}")
    return value


def _list(value: object, name: str) -> Sequence[object]:
    if not isinstance(value, list):
        raise RecordError(f"ledger: {name} must be a list")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"ledger: {name} must be a text")
    return value


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise RecordError(f"ledger: {name} must hold non-negative integers")
    return value


def _digits(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise RecordError(f"ledger: {one_line(name)} must be a decimal text of at most {MAX_TEXT} characters")
    return value


def _number(value: object, name: str) -> Up:
    return Up.of(_digits(value, name))


def _matrix(value: object, name: str) -> Matrix | None:
    if value is None:
        return None
    return tuple(tuple(_number(number, name) for number in _list(row, name)) for row in _list(value, name))


def main(arguments: Sequence[str]) -> int:
    """Check one certificate.json; prints one line and returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m certkit.bounds.ledger certificate.json", file=sys.stderr)
        return 2
    try:
        value = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        if not isinstance(value, dict) or "ledger" not in value:
            raise RecordError("there is no ledger in this file")
        ledger = checked(value["ledger"])
        stated = value.get("pair_gain")
        if stated != [[number.to_float() for number in row] for row in ledger.pairs.gain]:
            raise RuleViolation("pair_gain is not what the ledger proves")
        if value.get("pair_error") != ledger.pairs.error.to_float():
            raise RuleViolation("pair_error is not what the ledger proves")
    except (OSError, ValueError, RecursionError) as error:
        print(f"{one_line(arguments[0])}: {one_line(error)}", file=sys.stderr)
        return 2
    except CertkitError as error:
        print(f"{one_line(arguments[0])}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(ledger.steps)} steps derived again from their evidence with {len(RULES)} rules: no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
