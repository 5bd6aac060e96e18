"""Readers of functions that bend, and of operators that together are one function of one value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from certkit.bounds.bound import Bound
from certkit.bounds.curves import SOFTPLUS_THRESHOLD, Expression, Proved, prove
from certkit.bounds.ledger import facts_for
from certkit.bounds.number import Up
from certkit.bounds.rules import derive
from certkit.bounds.rules.curves import MAX_EXPONENT, reaches
from certkit.engine.program import module_path, operator_name
from certkit.engine.readers import table
from certkit.engine.readers.table import argument, reads
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import RecordError, Refusal

aten = torch.ops.aten

PLAIN = {
    aten.tanh.default: "tanh",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.mish.default: "mish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.hardswish.default: "hardswish",
    aten.exp.default: "exp",
    aten.log.default: "log",
    aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "rsqrt",
    aten.reciprocal.default: "reciprocal",
    aten.erf.default: "erf",
    aten.sin.default: "sin",
    aten.cos.default: "cos",
}
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@reads(*PLAIN)
def plain(node: Node, graph: Graph) -> Reading:
    return graph.reading(PLAIN[node.target], node, [node.args[0]], {}, {})  # type: ignore[index]


def number(node: Node, value: Any, name: str) -> float:
    """A finite number of the code."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with {name} {value!r} has no rule")
    return float(value)


@reads(aten.softplus.default, aten.log_sigmoid.default)
def softplus(node: Node, graph: Graph) -> Reading:
    if node.target is aten.log_sigmoid.default:  # -softplus(-x), and executed without a threshold
        minus = graph.step("negate", node, [graph.name(node.args[0])], graph.attributes(node), {}, suffix="minus")
        attributes = {**graph.attributes(node), "beta": 1.0, "threshold": None}
        name = graph.step("softplus", node, [minus], attributes, {}, suffix="softplus")
        return Reading("negate", [name], graph.attributes(node), {})
    beta = number(node, argument(node, 1, "beta", 1.0), "beta")
    threshold = number(node, argument(node, 2, "threshold", SOFTPLUS_THRESHOLD), "threshold")
    return graph.reading("softplus", node, [node.args[0]], {"beta": beta, "threshold": threshold}, {})


@reads(aten.elu.default, aten.selu.default, aten.celu.default)
def elu(node: Node, graph: Graph) -> Reading:
    if node.target is aten.selu.default:
        numbers = {"alpha": SELU_ALPHA, "scale": SELU_SCALE, "rate": 1.0}
    elif node.target is aten.celu.default:
        alpha = number(node, argument(node, 1, "alpha", 1.0), "alpha")
        numbers = {"alpha": alpha, "scale": 1.0, "rate": 1.0 / alpha if alpha else math.nan}
    else:
        names = (("alpha", "alpha"), ("scale", "scale"), ("input_scale", "rate"))
        numbers = {short: number(node, argument(node, k + 1, long, 1.0), long) for k, (long, short) in enumerate(names)}
    if not all(value >= 0 for value in numbers.values()):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with a negative factor has no rule")
    return graph.reading("elu", node, [node.args[0]], {}, numbers)


@reads(aten.leaky_relu.default, aten.prelu.default)
def leaky_relu(node: Node, graph: Graph) -> Reading:
    slope: Any = argument(node, 1, "negative_slope", 0.01)
    if isinstance(slope, Node):
        if graph.depends(slope):
            raise Refusal(f"{module_path(node)}: a PReLU whose slope depends on the input has no rule")
        slopes = array(graph.constants[slope])
        low, high = float(slopes.min()), float(slopes.max())
    else:
        low = high = number(node, slope, "negative_slope")
    return graph.reading("leaky-relu", node, [node.args[0]], {"low": low, "high": high}, {})


def bounds(node: Node) -> tuple[Any, Any]:
    """The two ends of a clamp; infinite ones are none."""
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target is aten.hardtanh.default:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif node.target in (aten.clamp_min.default, aten.clamp_min.Tensor):
        low, high = argument(node, 1, "min"), None
    elif node.target in (aten.clamp_max.default, aten.clamp_max.Tensor):
        low, high = None, argument(node, 1, "max")
    else:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
    return None if low == -math.inf else low, None if high == math.inf else high


@reads(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default, aten.relu6.default)
def clamp(node: Node, graph: Graph) -> Reading:
    low, high = (None if end is None else number(node, end, "a bound of") for end in bounds(node))
    off = {}
    if graph.arithmetic == "float32":
        off["rounding"] = max(abs(end - float(np.float32(end))) for end in (low, high, 0.0) if end is not None)
    return graph.reading("clamp", node, [node.args[0]], {"low": low, "high": high}, off)


@reads(aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def clamp_to_tensors(node: Node, graph: Graph) -> Reading:
    name = graph.operand(node, node.args[0])
    low, high = bounds(node)
    if low is not None and high is not None:
        inputs = [name, graph.operand(node, low)]
        name = graph.step("larger-or-smaller", node, inputs, graph.attributes(node), {}, suffix="raised")
    end = high if high is not None else low
    return Reading("larger-or-smaller", [name, graph.operand(node, end)], graph.attributes(node), {})


@reads(aten.square.default, aten.pow.Tensor_Scalar)
def power(node: Node, graph: Graph) -> Reading:
    exponent = 2.0 if node.target is aten.square.default else number(node, node.args[1], "the exponent")
    if exponent in ROOTS:
        return graph.reading(ROOTS[exponent], node, [node.args[0]], {}, {})
    if not exponent.is_integer() or not 2 <= abs(exponent) <= MAX_EXPONENT:
        raise Refusal(
            f"{module_path(node)}: a power with exponent {exponent:g} has no rule; covered are -1, -0.5, 0.5 and integers "
            f"of absolute value 2 to {MAX_EXPONENT}"
        )
    name = graph.name(node.args[0])
    if exponent < 0:
        name = graph.step("reciprocal", node, [name], graph.attributes(node), {}, suffix="reciprocal")
    return Reading("power", [name], {**graph.attributes(node), "exponent": int(abs(exponent))}, {})


ROOTS = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}


@reads(aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power_of_tensors(node: Node, graph: Graph) -> Reading:
    raise Refusal(
        f"{module_path(node)}: a power whose exponent is not one number of the code has no rule; "
        "write a constant exponent, or exp(y * log(x)) with x bounded away from 0"
    )


@reads(aten.rsub.Scalar)
def subtracted_from(node: Node, graph: Graph) -> Reading:
    if argument(node, 2, "alpha", 1) != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with alpha has no rule; multiply first")
    minus = graph.step("negate", node, [graph.name(node.args[0])], graph.attributes(node), {}, suffix="minus")
    return Reading("add", [minus, graph.operand(node, node.args[1])], graph.attributes(node), {})


# --- Several operators that are one function of one value. -----------------------------------------------------------

MAX_STEPS = 40  # of one expression
Step = tuple[str, tuple[Node, ...], tuple[Any, ...]]  # a function, the values it reads, and its numbers


def elementwise(node: Node, graph: Graph) -> Step | None:
    """The operator as a function of entries of values of its own shape and of numbers, if it is one."""
    if node.target not in ENTRYWISE:
        return None
    step = ENTRYWISE[node.target](node, graph)
    if step is None or any(graph.shape(value) != graph.shape(node) for value in step[1]):
        return None
    return step


def _unary(name: str) -> Callable[[Node, Graph], Step | None]:
    return lambda node, graph: (name, (node.args[0],), ())  # type: ignore[return-value]


def _constant(value: Any, graph: Graph) -> float | None:
    """The number that all entries of a constant are."""
    if isinstance(value, Node):
        values = array(graph.constants[value])
        return float(values.flat[0]) if values.size and bool((values == values.flat[0]).all()) else None
    return float(value)


def _binary(together: str, with_number: Callable[[float, bool], list[tuple[Any, ...]]]) -> Any:
    """Of two values, or of a value and a number; ``with_number`` gets the number and whether it stands on the left."""

    def read(node: Node, graph: Graph) -> Step | None:
        a, b = node.args[0], node.args[1]
        if argument(node, 2, "alpha", 1) != 1:
            return None
        if graph.depends(a) and graph.depends(b):
            return together, (a, b), ()  # type: ignore[return-value]
        left = not graph.depends(a)
        found = _constant(a if left else b, graph)
        steps = with_number(found, left) if found is not None and math.isfinite(found) else []
        return ("chain", (b if left else a,), tuple(steps)) if steps else None  # type: ignore[return-value]

    return read


def _clamped(node: Node, graph: Graph) -> Step | None:
    ends = bounds(node)
    finite = all(end is None or math.isfinite(end) for end in ends)
    return ("clamp", (node.args[0],), ends) if finite else None  # type: ignore[return-value]


def _powered(node: Node, graph: Graph) -> Step | None:
    exponent = 2.0 if node.target is aten.square.default else float(node.args[1])  # type: ignore[arg-type]
    if exponent in ROOTS:
        return ROOTS[exponent], (node.args[0],), ()  # type: ignore[return-value]
    if exponent.is_integer() and 2 <= exponent <= MAX_EXPONENT:
        return "power", (node.args[0],), (int(exponent),)  # type: ignore[return-value]
    return None


def _softplus(node: Node, graph: Graph) -> Step | None:
    usual = argument(node, 1, "beta", 1) == 1 and argument(node, 2, "threshold", 20) == SOFTPLUS_THRESHOLD
    return ("softplus", (node.args[0],), ()) if usual else None  # type: ignore[return-value]


def _leaky(node: Node, graph: Graph) -> Step | None:
    return "leaky-relu", (node.args[0],), (float(argument(node, 1, "negative_slope", 0.01)),)  # type: ignore[return-value]


ENTRYWISE: dict[Any, Callable[[Node, Graph], Step | None]] = {
    **{
        getattr(aten, name).default: _unary(name)
        for name in (
            ["tanh", "sigmoid", "silu", "exp", "log", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos", "abs", "relu"]
        )
    },
    aten.neg.default: _unary("negate"),
    aten.softplus.default: _softplus,
    aten.leaky_relu.default: _leaky,
    aten.square.default: _powered,
    aten.pow.Tensor_Scalar: _powered,
    aten.clamp.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.clamp_max.default: _clamped,
    aten.hardtanh.default: _clamped,
    aten.relu6.default: _clamped,
    aten.add.Tensor: _binary("sum", lambda c, left: [("shift", c)]),
    aten.sub.Tensor: _binary("difference", lambda c, left: [("negate",), ("shift", c)] if left else [("shift", -c)]),
    aten.mul.Tensor: _binary("product", lambda c, left: [("scale", c)]),
    aten.div.Tensor: _binary(
        "quotient", lambda c, left: [("reciprocal",), ("scale", c)] if left else [("divide", c)] if c else []
    ),
    aten.rsub.Scalar: _binary("none", lambda c, left: [("negate",), ("shift", c)]),
}
STRAIGHT = {"sum", "difference", "scale", "divide", "shift", "negate"}


def expression_of(node: Node, graph: Graph) -> tuple[Node, Expression, frozenset[Node]] | None:
    """The value that the node is a function of, entry by entry, the function, and the values in between.

    The value is the earliest one of which that is true within MAX_STEPS operators. None unless the function joins two
    branches of the value and bends: else one rule per operator loses little.
    """
    if node.target not in ENTRYWISE:
        return None
    order = {value: place for place, value in enumerate([graph.program.input, *graph.program.nodes])}
    frontier, taken = {node}, dict[Node, Step]()
    found: tuple[Node, dict[Node, Step]] | None = None
    while len(taken) < MAX_STEPS:
        if len(frontier) == 1 and taken:
            (root,) = frontier
            found = root, dict(taken)
        last = max(frontier, key=order.__getitem__)
        step = elementwise(last, graph) if last is not graph.program.input else None
        if step is None:
            break
        taken[last] = step
        frontier = (frontier - {last}) | {*step[1]}
    if found is None:
        return None
    root, steps = found
    inner = sorted(steps, key=order.__getitem__)
    joined = any(len(steps[value][1]) == 2 for value in inner)
    lines: list[tuple[Any, ...]] = []
    place = {root: 0}
    for value in inner:
        name, operands, numbers = steps[value]
        places = [place[operand] for operand in operands]
        for short, *rest in numbers if name == "chain" else [(name, *numbers)]:
            lines.append((short, *places, *rest))
            places = [len(lines)]
        place[value] = len(lines)
    if not joined or all(line[0] in STRAIGHT for line in lines):
        return None
    return root, tuple(lines), frozenset(inner) - {node}


def read(node: Node, graph: Graph) -> Reading | None:
    """What the node's rule must know: of its own operator, or of the function that it completes; None as in the table.

    Where several operators make one function of one value, the function's own bound stands beside the one by operators;
    it may be the only one.
    """
    found = expression_of(node, graph)
    if found is None or found[0].name not in graph.bounds:
        return table.read(node, graph)
    refused: Refusal | None = None
    reading: Reading | None = None
    try:
        reading = table.read(node, graph)
        if reading is None:  # what reads the value takes it in
            return None
        applied(reading, graph)
    except Refusal as error:
        refused, reading = error, None
    if reading is not None and _inside(node, graph):
        return reading
    root, expression, _ = found
    x = graph.bounds[root.name]
    proved = _proved(expression, x, graph)
    if proved is None:
        if reading is None:
            assert refused is not None
            raise refused
        return reading
    domain = _domain(x)
    attributes = {
        **graph.attributes(node),
        "expression": [_line(k, line) for k, line in enumerate(expression, start=1)],
        "domain": list(domain),
        "image": list(proved.image),
    }
    evidence: dict[str, float | Up] = {"slope": Up.of(proved.slope), "off": Up.of(proved.off)}
    if proved.foot is not None:
        evidence["foot"] = Up.of(proved.foot)
    inputs = [root.name]
    if reading is not None:
        inputs.append(
            graph.step(reading.rule, node, reading.inputs, reading.attributes, reading.evidence, suffix="operators")
        )
    return Reading("curve", inputs, attributes, evidence)


def applied(reading: Reading, graph: Graph) -> Bound:
    """The bound that a reading leads to, without entering it. Raises Refusal where its rule has none."""
    try:
        numbers = {key: Up.of(value) for key, value in reading.evidence.items()}
        facts = facts_for(graph.arithmetic, reading.attributes, numbers)
        return derive(reading.rule, [graph.bounds[name] for name in reading.inputs], facts)
    except (RecordError, ValueError) as error:
        raise Refusal(str(error)) from None


def _inside(node: Node, graph: Graph) -> bool:
    """Whether everything that reads the value is part of one function that passes over it."""
    users = [user for user in node.users if user in graph.program.shapes]
    curves = [expression_of(user, graph) for user in users]
    return bool(users) and node is not graph.program.output and all(c is not None and node in c[2] for c in curves)


def _domain(x: Bound) -> tuple[str, str]:
    _, wide = reaches(x)
    return str(wide.low), str(wide.high)


def _proved(expression: Expression, x: Bound, graph: Graph) -> Proved | None:
    facts = facts_for(graph.arithmetic, {}, {})
    return prove(expression, *_domain(x), str(facts.roundoff), str(facts.smallest))


def _line(place: int, line: tuple[Any, ...]) -> str:
    """A step of an expression for people: ``v3 = v0 * v2``, where v0 is the value that the function is of."""
    name, first, *rest = line
    if name in SIGNS:
        return f"v{place} = v{first} {SIGNS[name]} {rest[0]!r}"
    if name in JOINS:
        return f"v{place} = v{first} {JOINS[name]} v{rest[0]}"
    return f"v{place} = {name}({', '.join([f'v{first}', *map(repr, rest)])})"


SIGNS = {"scale": "*", "divide": "/", "shift": "+", "power": "**"}
JOINS = {"sum": "+", "difference": "-", "product": "*", "quotient": "/"}
