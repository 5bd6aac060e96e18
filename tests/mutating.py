"""Mutants of the rules, made from their source, and what catches them: measurements that no sound bound may fall below.

Every sum of a rule loses a term or becomes a maximum, every product becomes a maximum, every root and every change of norm
is dropped; and every rule's gain, size and error are shrunk as a whole. A mutant is killed when some number that it states
falls below what the same value was measured to do, in cases by hand, at points that a search climbed to, or in float32.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.bound import Axes, Bound
from certkit.bounds.ledger import Ledger, facts_for
from certkit.bounds.number import ONE, ZERO, Interval, Up, most
from certkit.bounds.rules import RULES, derive
from certkit.engine.program import export
from certkit.engine.slopes import block_norm, dual
from certkit.errors import CertkitError, RecordError
from tests.attained import Attained
from tests.laws import length, proof_of
from tests.modules import NOISE, Case, Net, Proof, points, prove, slopes
from tests.searching import climb

OFF = 1e-6  # an error that comes in with the input, large beside float64 and small beside the bends of the rules
SHRUNK = {"gain": 0.9, "size": 0.5, "error": 0.5}
NUMBERS = ("size", "gain", "error")


# --- What values really do --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Instance:
    """One program under one threat: its ledger, and per value and set of axes the largest that was measured of each number.

    ``single`` is the ledger of the execution whose errors were measured, None where none were; ``off`` is the error that
    the input itself came with there.
    """

    name: str
    rules: frozenset[str]
    ledger: Ledger
    single: Ledger | None
    off: Up = ZERO
    measured: dict[str, dict[Axes, dict[str, float]]] = field(default_factory=dict)
    ends: dict[str, tuple[float, float]] = field(default_factory=dict)

    @functools.cached_property
    def views(self) -> list[tuple[dict[str, Bound], Ledger, Up, tuple[str, ...]]]:
        """The unchanged bounds, the ledger and incoming error that they follow from, and the numbers to compare there."""
        found = [(rederived(self.ledger), self.ledger, ZERO, ("size", "gain"))]
        if self.single is not None:
            # a slope that was proved on the range of an exact input says nothing of one that is off
            with contextlib.suppress(RecordError):
                found.append((rederived(self.single, self.off), self.single, self.off, ("error",)))
        return found

    def note(self, node: str, axes: Axes, name: str, value: float) -> None:
        numbers = self.measured.setdefault(node, {}).setdefault(axes, dict.fromkeys(NUMBERS, 0.0))
        numbers[name] = max(numbers[name], value)


def every(axes: Axes) -> list[Axes]:
    """All sets of axes: every norm that a bound may be asked for."""
    return [frozenset(some) for n in range(len(axes) + 1) for some in itertools.combinations(sorted(axes), n)]


def of_case(case: Case, seed: int, norm: str, pairs: int = 96) -> Instance:
    """A case of the laws, at random points and at those that searches climb to; its float32 errors at many more."""
    proof = proof_of(case, seed, norm)
    single = _single(proof, case.shape, case.box, norm)
    made = Instance(case.name, _rules(proof), proof.ledger, single and single.ledger)
    x, y = points(case.shape, case.box, pairs, 1), points(case.shape, case.box, pairs, 2)
    sets = [(x, y), (x, x + 1e-4 * (y - x)), climb(proof, norm, case.shape, case.box, pairs, seed, 6)]
    xs, ys = (torch.cat(both) for both in zip(*sets, strict=True))
    _measure(made, proof, xs, ys, norm)
    if single is not None:
        many = points(case.shape, case.box, 2048, 3).float().double().clamp(*case.box)
        _measure_errors(made, proof, single, many, many)
    return made


def of_attained(case: Attained, factor: float = 1.0) -> Instance:
    """A case by hand, at the very points where its bound is met; behind a factor, so that gains that come in are not 1.

    Besides, the input is off by OFF in the direction that the rule's value moves most in: the error must carry it.
    """
    at = torch.as_tensor(case.x, dtype=torch.float64) / factor
    largest = at if case.largest is None else torch.as_tensor(case.largest, dtype=torch.float64) / factor
    box = (case.box[0] / factor, case.box[1] / factor)
    program = case.program if factor == 1 else export(Net(lambda net, x: case.module(factor * x)), tuple(at.shape))
    proof = prove(program, tuple(at.shape), box=box, norm=case.norm, fixed=case.fixed)
    size = OFF * min(1.0, box[1] - box[0])
    made = Instance("by hand", _rules(proof), proof.ledger, proof.ledger, Up.of(size))
    _measure(made, proof, torch.stack([at, largest]), torch.stack([largest, at]), case.norm)
    for node, step in proof.nodes:
        jacobians = proof.jacobians(node, at[None])
        for axes in every(step.bound.axes):
            found = float(slopes(jacobians, step.bound.shape, axes, case.norm)[0])
            made.note(node.name, axes, "gain", found * (1 - NOISE))
        jacobian, threat = jacobians[0], frozenset({1}) if case.norm == "l2" else frozenset[int]()
        top = torch.cat([jacobian[:8], torch.linalg.svd(jacobian, full_matrices=False).Vh[:1]])
        moves = dual(torch.cat([top, -top]), threat).reshape(-1, *at.shape) * size
        _measure_errors(made, proof, proof, at.expand_as(moves), (at + moves).clamp(*box))
    return made


def _rules(proof: Proof) -> frozenset[str]:
    return frozenset(step.rule for step in proof.ledger.steps)


def _single(proof: Proof, shape: tuple[int, ...], box: tuple[float, float], norm: str) -> Proof | None:
    """The proof of the float32 execution, with constants that it can be run on."""
    program = proof.program
    if program.dtype is not torch.float32 or any(float(torch.tensor(end)) != end for end in box):
        return None
    fixed = next(iter(proof.fixed.values()), None)
    single = prove(program, shape, box=box, norm=norm, arithmetic="float32", fixed=fixed)
    constants = {n: c.float() if c.is_floating_point() else c for n, c in program.constants.items()}
    return replace(
        single,
        program=replace(program, constants=constants),
        fixed={name: w.float() for name, w in proof.fixed.items()},
    )


def _measure(made: Instance, proof: Proof, xs: Tensor, ys: Tensor, norm: str) -> None:
    apart = length(ys - xs, norm) * (1 + NOISE)
    for node, step in proof.nodes:
        at_x, at_y = proof.values(node, xs), proof.values(node, ys)
        slack = step.bound.within(frozenset()).error.to_float()
        made.ends[node.name] = (
            float(torch.minimum(at_x, at_y).min()) + slack,
            float(torch.maximum(at_x, at_y).max()) - slack,
        )
        for axes in every(step.bound.axes):
            slack = step.bound.within(axes).error.to_float()
            moved = (block_norm(at_y - at_x, axes) - 2 * slack) / apart
            made.note(node.name, axes, "gain", float(torch.where(apart > 1e-9, moved, 0.0).max()))
            for value in (at_x, at_y):
                made.note(node.name, axes, "size", float(block_norm(value, axes).max()) * (1 - NOISE) - slack)


def _measure_errors(made: Instance, proof: Proof, other: Proof, exact: Tensor, given: Tensor) -> None:
    """How far the execution of another proof, on inputs that may be off, is from the float64 values at the exact ones."""
    dtype = torch.float32 if other.ledger.arithmetic == "float32" else torch.float64
    for node, step in proof.nodes:
        off = other.values(node, given.to(dtype)).double() - proof.values(node, exact)
        for axes in every(step.bound.axes):
            slack = step.bound.within(axes).error.to_float()
            made.note(node.name, axes, "error", float(block_norm(off, axes).max()) * (1 - NOISE) - 2 * slack)


# --- Mutants ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Mutant:
    """A change to one rule, or to one place of a module of rules. ``lines`` are those of the statement that changes."""

    kind: str
    module: ModuleType | None
    place: str
    old: str
    new: str
    lines: range = range(0)
    tree: ast.Module | None = None
    rule: str = ""

    @property
    def name(self) -> str:
        return f"{self.place}: {self.kind}: {self.old} -> {self.new}"

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The table of rules with the mutant in it."""
        kept = dict(RULES)
        try:
            if self.tree is None:
                RULES[self.rule] = shrunk(kept[self.rule], self.old, SHRUNK[self.old])
            else:
                for name, function in kept.items():
                    if inspect.getmodule(function) is self.module:
                        del RULES[name]
                assert self.module is not None
                names = {"__name__": "mutant", "most_": most, "unit_": unit}
                exec(compile(self.tree, "mutant", "exec"), names)  # noqa: S102 - the rules' own source, changed in one place
            yield
        finally:
            RULES.clear()
            RULES.update(kept)


def shrunk(original: Callable[..., Bound], name: str, factor: float) -> Callable[..., Bound]:
    """The rule with one of its numbers multiplied by a factor in every norm."""

    def mutant(inputs: Any, facts: Any) -> Bound:
        found = original(inputs, facts)
        norms = {axes: replace(reach, **{name: getattr(reach, name) * factor}) for axes, reach in found.norms.items()}
        interval = found.range
        if interval is not None and name == "size":
            interval = interval * Interval.of(str(factor), str(factor))
        return Bound(found.shape, norms, interval)

    return mutant


def unit(number: Any) -> Any:
    """1 for the root of a bound; other roots stay."""
    return ONE if isinstance(number, Up) else number.sqrt()


def mutants(modules: Sequence[ModuleType]) -> Iterator[Mutant]:
    """All mutants of some modules of rules."""
    for name in sorted(RULES):
        if inspect.getmodule(RULES[name]) in modules:
            for number, factor in SHRUNK.items():
                yield Mutant(f"{number} x {factor}", None, name, number, f"{factor} {number}", rule=name)
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        nodes = list(ast.walk(tree))
        for function, statement, at in _sites(tree):
            position = nodes.index(at)
            for kind, changed in _changes(at):
                mutated = copy.deepcopy(tree)
                _replace(mutated, list(ast.walk(mutated))[position], changed)
                yield Mutant(
                    kind,
                    module,
                    f"{module.__name__.rpartition('.')[2]}.{function}",
                    ast.unparse(at),
                    ast.unparse(changed),
                    range(statement.lineno, (statement.end_lineno or statement.lineno) + 1),
                    ast.fix_missing_locations(mutated),
                )


def _sites(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, ast.expr]]:
    """Every sum, product, root and change of norm inside a function, with its function and innermost statement."""

    def visit(node: ast.AST, function: str, statement: ast.stmt | None) -> Iterator[tuple[str, ast.stmt, ast.expr]]:
        if isinstance(node, ast.FunctionDef):
            function = function or node.name
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.expr) and function and statement is not None and any(_changes(node)):
            yield function, statement, node
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.FunctionDef) and child in (*node.decorator_list, node.args, node.returns)):
                yield from visit(child, function, statement)

    for top in tree.body:
        yield from visit(top, "", None)


def _changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.BinOp(left, ast.Add(), right):
            yield "term dropped", left
            yield "term dropped", right
            yield "max for sum", _call("most_", left, right)
        case ast.BinOp(left, ast.Mult(), right):
            yield "max for product", _call("most_", left, right)
        case ast.Call(ast.Attribute(value, "sqrt"), []):
            yield "root dropped", _call("unit_", value)
        case ast.Call(ast.Attribute(value, "scaled"), [_]):
            yield "change of norm dropped", value


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _replace(tree: ast.AST, old: ast.AST, new: ast.expr) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                return
            if isinstance(value, list) and any(item is old for item in value):
                value[[item is old for item in value].index(True)] = new
                return
    raise AssertionError("the place to change is not in the tree")


def reached(instances: Sequence[Instance]) -> dict[tuple[str, int], set[int]]:
    """Which lines of which files of rules the derivation of each instance executes: (file, line) -> instances."""
    lines: dict[tuple[str, int], set[int]] = {}
    files = {inspect.getfile(function) for function in RULES.values()}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        lines.setdefault((frame.f_code.co_filename, frame.f_lineno), set()).add(number)
        return trace

    for number, instance in enumerate(instances):  # noqa: B007 - read by trace
        sys.settrace(trace)
        try:
            instance.ledger.check()
        finally:
            sys.settrace(None)
    return lines


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant.

    status      ``killed``, ``survived`` (it claims less somewhere), ``no less`` (nowhere), ``refuses`` (the rule cannot run
                any more), ``unreached`` (no case executes the place)
    fields      the numbers that it claims less of
    closest     for a survivor, the largest measured / stated of any number that it claims less of; errors in float32
    by          for a killed one, what killed it
    """

    status: str
    fields: tuple[str, ...] = ()
    closest: float = 0.0
    by: str = ""


def rederived(ledger: Ledger, off: Up = ZERO) -> dict[str, Bound]:
    """The bounds that the rules now in the table give for the evidence of a ledger, on an input that is off by so much."""
    known: dict[str, Bound] = {}
    for step in ledger.steps:
        facts = facts_for(ledger.arithmetic, step.attributes, step.evidence)
        known[step.node] = derive(step.rule, [known[name] for name in step.inputs], facts)
        if off != ZERO and step.rule == "input":
            norms = {axes: replace(reach, error=reach.error + off) for axes, reach in known[step.node].norms.items()}
            known[step.node] = replace(known[step.node], norms=norms)
    return known


def judge(mutant: Mutant, instances: Sequence[Instance], lines: Mapping[tuple[str, int], set[int]]) -> Verdict:
    """Try a mutant on every instance that executes it, until one kills it."""
    if mutant.tree is None:
        numbers = [n for n, instance in enumerate(instances) if mutant.rule in instance.rules]
    else:
        assert mutant.module is not None
        file = inspect.getfile(mutant.module)
        numbers = sorted(set().union(*(lines.get((file, line), set()) for line in mutant.lines)))
    if not numbers:
        return Verdict("unreached")
    less: set[str] = set()
    closest, ran = 0.0, False
    unchanged = [(instances[number], instances[number].views) for number in numbers]
    with mutant.installed():
        for instance, views in unchanged:
            for before, ledger, off, fields in views:
                try:
                    bounds = rederived(ledger, off)
                except (CertkitError, ValueError, TypeError, AttributeError, ArithmeticError, KeyError):
                    continue
                ran = True
                found, ratio = _compare(instance, before, bounds, fields)
                less |= found
                closest = max(closest, ratio if off == ZERO else 0.0)
                if ratio > 1:
                    return Verdict("killed", tuple(sorted(less)), by=instance.name)
    if not ran:
        return Verdict("refuses")
    return Verdict("survived", tuple(sorted(less)), closest) if less else Verdict("no less")


def _compare(
    instance: Instance, before: Mapping[str, Bound], now: Mapping[str, Bound], fields: Sequence[str]
) -> tuple[set[str], float]:
    """Which numbers fell, and the largest measured / stated among those that fell."""
    less: set[str] = set()
    closest = 0.0
    for node, was in before.items():
        if now[node] == was:
            continue
        seen = instance.measured.get(node, {})
        for axes in every(was.axes):
            old, new = was.within(axes), now[node].within(axes)
            for name in fields:
                stated = getattr(new, name)
                if stated < getattr(old, name):
                    less.add(name)
                    measured = seen.get(axes, {}).get(name, 0.0)
                    closest = max(closest, measured / max(stated.to_float(), 1e-300) if measured > 1e-250 else 0.0)
        low, high = instance.ends.get(node, (0.0, 0.0))
        ends = now[node].range
        if "size" in fields and ends is not None and ends != was.range and low <= high:
            width = NOISE * max(abs(low), abs(high))
            if low + width < float(ends.low) or high - width > float(ends.high):
                less.add("size")
                closest = 2.0
    return less, closest


def instances_of(cases: Sequence[Case], by_hand: Sequence[Attained]) -> list[Instance]:
    """Everything that is measured for some cases."""
    found = [of_case(case, 0, norm) for case in cases for norm in ("l2", "linf")]
    return [*found, *(of_attained(case, factor) for case in by_hand for factor in (1.0, 3.0))]


def two_clusters() -> Attained:
    """Attention of two opposite tokens: no term of its bound stands alone, and three quarters of their sum are attained."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, scale=0.25).flatten(1)

    return Attained("attention", Net(forward), [[1.0], [-1.0]], box=(-1.0, 1.0))


def queries_and_keys() -> Attained:
    """Values 2 and -2 that stand still, queries and keys near 0 that move as one: their two terms add up."""

    def forward(net: Any, x: Tensor) -> Tensor:
        values = F.linear(x, torch.zeros(1, 1)) + torch.tensor([[2.0], [-2.0]])
        return F.scaled_dot_product_attention(x, x, values, scale=3.0).flatten(1)

    return Attained("attention", Net(forward), [[1e-4], [-1e-4]], box=(-1e-4, 1e-4))


def rows_of_two() -> Attained:
    """Constant weights whose rows add up to 2, on values up to 3: sqrt(8) in l2."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x).flatten(1)

    fixed = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    return Attained("fixed-attention", Net(forward), [[0.0]] * 2, box=(-3.0, 3.0), largest=[[3.0]] * 2, fixed=fixed)


def a_bias_on_two_tokens() -> Attained:
    """2x + 3 on two tokens: both the bias and the root of the tokens are above 1."""
    module = Net(lambda net, x: F.linear(x, torch.tensor([[2.0]]), torch.tensor([3.0])).flatten(1))
    return Attained("linear", module, [[0.0], [0.0]], largest=[[1.0], [1.0]])


EXTRA = (two_clusters(), queries_and_keys(), rows_of_two(), a_bias_on_two_tokens())
