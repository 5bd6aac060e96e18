"""The claim about this float execution: what the deployed program may be off by anywhere on the ball, and what that rests on.

With M the margin of the exact function at the centre, computed in float64 up to E_ctr, the program is right everywhere on
the ball if for every other class j

    M_j - E_ctr - E_ball  >  up(eps K_j),

E_ball the error of a difference of two logits of the program, over the whole box and so over every ball. Each rule derives
``error`` for that; here stands whether the kernels that run are those the rules charge for, whether a number on the way can
overflow, and whether a number of the code is too small or large for its rounding to be relative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from certkit.bounds.bound import Bound
from certkit.bounds.elementary import CHARGED, MEASURED, Build
from certkit.bounds.ledger import Ledger, Step
from certkit.bounds.number import ONE, SMALLEST, UNIT_ROUNDOFF, Up, most
from certkit.bounds.rules import RULES
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS
from certkit.engine.execute import MASKING, aten
from certkit.engine.kernels import COVERED, MOVES, PINNED, UNCOVERED
from certkit.engine.program import Program, module_path, operator_name

# A sixteenth of the largest number: what a kernel computes on the way may be a few times its operands and its result.
LIMIT = {"float32": Up.of(2.0**124), "float64": Up.of(2.0**1020)}
NUMBERS = (2.0**-100, 2.0**100)  # of the code: float32 rounds them, their reciprocals and small powers relatively
SINGLE = float(torch.finfo(torch.float32).max)
EXPONENT = {"float32": 80.0, "float64": 700.0}  # e to it is below the limit


@dataclass(frozen=True, slots=True)
class FloatClaim:
    """What is proved of a float execution. ``pair_error`` bounds the error of any difference of two logits on the whole box.

    None when nothing is claimed; then ``reasons`` say why. ``assumptions`` are what the claim rests on beside the proof.
    """

    arithmetic: str
    pair_error: float | None
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether there is a claim: it may still be too weak to certify anything."""
        return self.pair_error is not None


def float_claim(program: Program, ledger: Ledger) -> FloatClaim:
    """The claim that the ledger's own arithmetic allows about the execution of this program, or the reasons why there is none.

    The program is the exported graph with its constants, run by eager torch on a CPU in ``ledger.arithmetic`` under
    ``kernels.deployed()``, on inputs that are numbers of that arithmetic. ``ledger`` must be this program's, interpreted in
    that arithmetic without replaced attention weights.
    """
    arithmetic = ledger.arithmetic
    reasons = [
        *_precision(program, arithmetic),
        *_constants(program, arithmetic),
        *_kernels(program),
        *_numbers(program),
        *_sizes(ledger),
    ]
    error = ledger.pairs.error.to_float()
    if not math.isfinite(error):
        reasons.append("the error bound of the logits is beyond 1.8e308")
    return FloatClaim(
        arithmetic=arithmetic,
        pair_error=None if reasons else error,
        reasons=tuple(dict.fromkeys(reasons)),
        assumptions=tuple(assumptions(ledger, folded(program, arithmetic), running())),
    )


# --- Reasons against a claim ------------------------------------------------------------------------------------------


def _precision(program: Program, arithmetic: str) -> Iterator[str]:
    if arithmetic == "float32" and program.dtype is not torch.float32:
        yield f"the weights are {str(program.dtype).removeprefix('torch.')}; float32 would round them, which no rule charges for"


def _constants(program: Program, arithmetic: str) -> Iterator[str]:
    """Constants that torch casts to float32 before it uses them: whole numbers, and single ones of float64.

    A factor, a divisor and what stands in place of a masked entry are charged a rounding of their own, which is relative
    where the number is neither tiny nor huge.
    """
    if arithmetic != "float32":
        return
    low, high = NUMBERS
    for node in program.nodes:
        charged: Iterable[Any] = ()
        if node.target is aten.mul.Tensor or (node.target in MASKING and node.target is not aten.add.Tensor):
            charged = node.args
        elif node.target is aten.div.Tensor:
            charged = node.args[1:]
        for source in node.all_input_nodes:
            value = program.constants.get(source)
            if value is None or (value.is_floating_point() and value.ndim > 0):
                continue
            number = value.double()
            cast = number != number.float().double()
            if source in charged:
                cast &= (number.abs() < low) | (number.abs() > high)
            if bool(cast.any()):
                kind = str(value.dtype).removeprefix("torch.")
                yield f"{module_path(node)}: {operator_name(node)} with a constant of {kind} that float32 would round"


def _kernels(program: Program) -> Iterator[str]:
    for node in program.nodes:
        name = operator_name(node)
        if name not in COVERED:
            yield f"{module_path(node)}: {name}: {UNCOVERED.get(name, 'its kernel was not gone through')}"


def _numbers(program: Program) -> Iterator[str]:
    """Numbers of the code whose rounding, or whose reciprocal's, need not be relative, as rules charge for it.

    What stands in place of a masked entry is only rounded: its rule charges one rounding of it, as for a sum.
    """
    low, high = NUMBERS
    for node in program.nodes:
        filling = node.target in MASKING and node.target is not aten.add.Tensor
        largest = SINGLE if filling else high
        for value in _listed([*node.args, *node.kwargs.values()]):
            if value != 0 and not low <= abs(value) <= largest and not math.isinf(value):
                yield (
                    f"{module_path(node)}: {operator_name(node)} with the number {value!r}; "
                    f"expected 0 or an absolute value from {low:.3g} to {largest:.3g}"
                )
        if node.target in (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default):
            yield from _batch_norm(node, program)


def _listed(value: Any) -> Iterator[float]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _listed(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def _batch_norm(node: Node, program: Program) -> Iterator[str]:
    """The factors g / sqrt(var + eps) are rounded on the way, and relatively only while they are normal numbers."""
    weight, _, _, variance = (None if arg is None else program.constants[arg] for arg in node.args[1:5])  # type: ignore[index]
    eps: Any = node.args[7 if node.target is aten.batch_norm.default else 6]
    assert variance is not None
    factors = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    low, high = NUMBERS
    for what, values in (("weights", weight), ("variances", variance), ("factors", factors)):
        if values is not None and bool(((values != 0) & ((values.abs() < low) | (values.abs() > high))).any()):
            yield (
                f"{module_path(node)}: {operator_name(node)} with {what} outside {low:.3g} to {high:.3g}: "
                "their rounding need not be relative"
            )
            return


def _sizes(ledger: Ledger) -> Iterator[str]:
    """Values, and numbers on the way to them, that may come near the largest number of the arithmetic."""
    limit = LIMIT[ledger.arithmetic]
    known: dict[str, Bound] = {}
    for step in ledger.steps:
        inputs = [known[name] for name in step.inputs]
        known[step.node] = step.bound
        if step.rule not in PEAKS:
            yield f"{step.module}: rule {step.rule}: how large a number on the way gets is not known"
            continue
        largest = most(_entry(step.bound), PEAKS[step.rule](step, inputs))
        if largest > limit:
            yield (
                f"{step.module}: {step.op}: a number on the way may reach {_shown(largest)}; "
                f"{ledger.arithmetic} is claimed up to {_shown(limit)}"
            )
        if step.rule == "attention" and not _loud(step, inputs, ledger.arithmetic):
            yield f"{step.module}: {step.op}: queries and keys are so small that their products may underflow"
        if step.rule == "softplus" and not _bounded_exponential(step, inputs, ledger.arithmetic):
            yield f"{step.module}: {step.op}: its exponential may overflow below the threshold"


def _shown(number: Up) -> str:
    return f"{number.value:.3g}"


def _entry(x: Bound) -> Up:
    """The largest absolute value that an entry has, exact or computed."""
    reach = x.within(frozenset())
    return reach.size + reach.error


def _last(x: Bound) -> Up:
    """The longest vector along the last axis, exact or computed."""
    reach = x.within(frozenset({len(x.shape) - 1}))
    return reach.size + reach.error


def _loud(step: Step, inputs: list[Bound], arithmetic: str) -> bool:
    """Whether what underflows in q sqrt(scale) and k sqrt(scale) is below one rounding of the scores' own bound.

    The attention rule charges d + 10 roundings of scale |q||k| for a dot product of d terms, of which the math kernel needs
    d + 7 (two products with the root of the scale, itself rounded, the mask, and the largest score subtracted); what each factor loses, at most
    ``smallest`` an entry, meets the other factor, at most sqrt(d) max(1, sqrt(scale)) |k| in all.
    """
    q, k, _ = inputs
    scale = step.evidence["scale"]
    a, b = _last(q), _last(k)
    root = Up.of(q.shape[-1]).sqrt() * most(ONE, scale.sqrt())
    lost = SMALLEST[arithmetic] * root * (a + b) * 2
    return lost <= UNIT_ROUNDOFF[arithmetic] * scale * a * b


def _bounded_exponential(step: Step, inputs: list[Bound], arithmetic: str) -> bool:
    beta, threshold = step.attributes["beta"], step.attributes["threshold"]
    if threshold is None:  # log_sigmoid takes the exponential of -|x|
        return True
    return bool(threshold <= EXPONENT[arithmetic]) or _entry(inputs[0]) * beta <= Up.of(EXPONENT[arithmetic])


Peak = Callable[[Step, list[Bound]], Up]


def _nothing_more(step: Step, inputs: list[Bound]) -> Up:
    return most(ONE, *map(_entry, inputs))


def _dot(step: Step, inputs: list[Bound]) -> Up:
    """Partial sums of |w||x| and the bias: rows in l1 against the largest entry, or in l2 against the length."""
    (x,) = inputs
    rows = min(step.evidence["row_l1"] * _entry(x), step.evidence["row_l2"] * _last(x))
    return rows + step.evidence["bias_linf"]


def _window(step: Step, inputs: list[Bound]) -> Up:
    return step.evidence["row_l1"] * _entry(inputs[0]) + step.evidence["bias_linf"]


def _scaled(step: Step, inputs: list[Bound]) -> Up:
    return step.evidence["largest"] * _entry(inputs[0])


def _summed(step: Step, inputs: list[Bound]) -> Up:
    (x,) = inputs
    return _entry(x) * x.count(x.axes)


def _squared(step: Step, inputs: list[Bound]) -> Up:
    """Sums of squares of entries, or of differences of two of them, and twice as much by rounding."""
    (x,) = inputs
    return (_entry(x) * _entry(x) + ONE) * (8 * x.count(x.axes))


def _divided_by_deviation(step: Step, inputs: list[Bound]) -> Up:
    steep = step.evidence.get("inverse_root", ONE) * most(ONE, step.evidence.get("weight", ONE))
    return most(_squared(step, inputs), steep * _entry(inputs[0]) * 2, steep)


def _affine(step: Step, inputs: list[Bound]) -> Up:
    return step.evidence["largest"] * _entry(inputs[0]) + step.evidence["absolute_linf"]


def _multiplied(step: Step, inputs: list[Bound]) -> Up:
    a, b, *_ = inputs
    return _entry(a) * _entry(b)


def _products_of_rows(step: Step, inputs: list[Bound]) -> Up:
    a, b, *_ = inputs
    return _entry(a) * _entry(b) * a.shape[-1]


def _attended(step: Step, inputs: list[Bound]) -> Up:
    q, k, v = inputs
    scale = step.evidence["scale"]
    scores = scale * _last(q) * _last(k) + step.evidence["mask_size"]
    return most(scores, most(ONE, scale) * most(_last(q), _last(k)), _entry(v) * 4)


def _raised(step: Step, inputs: list[Bound]) -> Up:
    found, base = ONE, most(ONE, _entry(inputs[0]))
    for _ in range(step.attributes["exponent"]):
        found = found * base
    return found


def _masked_scores(step: Step, inputs: list[Bound]) -> Up:
    return _entry(inputs[0]) + step.evidence["mask_size"]


# fmt: off
ENTRYWISE = (
    "input", "constant", "add", "negate", "abs", "relu", "relabel", "part", "join", "copies", "broadcast", "clamp",
    "larger-or-smaller", "sorted-pairs", "extreme", "window-max", "leaky-relu", "hardsigmoid", "hardswish", "tanh", "sigmoid",
    "silu", "mish", "softplus", "elu", "gelu", "exp", "log", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos", "quotient",
    "curve", "linear-parts", "combination", "expansion",
)
# fmt: on
# By rule, how large a number can get on the way to the result, beside the result itself.
PEAKS: Mapping[str, Peak] = {
    **dict.fromkeys(ENTRYWISE, _nothing_more),
    "linear": _dot,
    "convolution": _window,
    "scale": _scaled,
    "product": _multiplied,
    "matmul": _products_of_rows,
    "mixture": _products_of_rows,
    "attention": _attended,
    "softmax": _masked_scores,
    "mean": _summed,
    "sum": _summed,
    "window-mean": _summed,
    "norm": _squared,
    "variance": _squared,
    "layer-norm": _divided_by_deviation,
    "rms-norm": _divided_by_deviation,
    "unit": _divided_by_deviation,
    "batch-norm": _affine,
    "power": _raised,
}


# --- What a claim rests on --------------------------------------------------------------------------------------------

SOFTMAX = ("softmax", "softmax of columns")
FUNCTIONS: Mapping[str, tuple[str, ...]] = {  # by rule, the measured functions that it executes
    **{name: (name,) for name in CHARGED if name in RULES},
    "gelu": ("gelu", "gelu-tanh"),
    "softplus": ("softplus", "log-sigmoid"),
    "elu": ("elu", "selu"),
    "power": tuple(name for name in CHARGED if name.startswith("power ")),
    "softmax": SOFTMAX,
    "attention": SOFTMAX,
}


def assumptions(ledger: Ledger, computed: Sequence[str], here: Build) -> Iterator[str]:
    """What the claim about the execution of a ledger's program rests on, where it was made by this build of torch.

    ``computed`` are the constants that are ``folded``, which only the program knows.
    """
    yield f"the program runs in {ledger.arithmetic}, on inputs that are {ledger.arithmetic} numbers, in {PINNED}"
    yield "the module runs the operators of its exported graph (checked on the evaluation samples)"
    if computed:
        yield (
            f"constants that the code computes ({', '.join(computed)}) are held as float32 gave them; the module converted to "
            "float64 would compute others"
        )
    used = sorted({name for step in ledger.steps for name in FUNCTIONS.get(step.rule, ())})
    if not used:
        return
    if ledger.arithmetic == "float64":
        yield f"exp, erf, tanh and the like are accurate to {ELEMENTARY_ULPS} units in the last place in float64 (not measured)"
        return
    known = MEASURED.get(here, {})
    for every in sorted({known[name].every for name in used if name in known}):
        names = [name for name in used if name in known and known[name].every == every]
        numbers = "every float32 number" if every == 1 else f"one float32 number in {every}"
        yield (
            f"{', '.join(names)}: within what the rules charge, measured on {numbers} for torch {here.torch} with "
            f"{here.capability}"
        )
    if missing := [name for name in used if name not in known]:
        builds = " and ".join(f"torch {build.torch} with {build.capability}" for build in MEASURED)
        yield (
            f"{', '.join(missing)}: within what the rules charge (not measured for torch {here.torch} with {here.capability}, "
            f"only for {builds})"
        )


def folded(program: Program, arithmetic: str) -> list[str]:
    """Constants of a float32 program that are computed and not only moved, where another arithmetic runs it."""
    if arithmetic == "float32" or program.dtype is torch.float64:
        return []
    read = {source for node in program.nodes for source in node.all_input_nodes if source in program.constants}
    return sorted(node.name for node in read if not _stored(node) and program.constants[node].is_floating_point())


def _stored(node: Node) -> bool:
    """Whether a constant is a weight, moved at most."""
    moved = node.op == "call_function" and COVERED.get(operator_name(node)) == MOVES
    return node.op != "call_function" or (moved and all(_stored(source) for source in node.all_input_nodes))


def running() -> Build:
    """The build of torch that runs, and the vector instructions that it uses."""
    return Build(torch.__version__, torch.backends.cpu.get_cpu_capability())
