"""The singular values of a network's weights, measured in float64, beside the norms that are proved of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from certkit.bounds.ledger import Ledger
from certkit.bounds.spectral import euclidean, power_above, spectral_norm
from certkit.engine.direct import CONVOLUTIONS
from certkit.engine.program import Program
from certkit.engine.reading import array
from certkit.errors import one_line
from certkit.health.parts import LONGEST
from certkit.models.geometry import Entries, Geometry, Rows, weights
from certkit.progress import bar
from certkit.records.health import MAX_VALUES, MAX_WEIGHTS, Kind, Spectrum

Array = NDArray[np.float64]
WIDEST = 4096  # of the smaller side of a matrix that is decomposed
WORK = 1e11  # rows x columns x smaller side, over all weights: some twenty seconds of one core
NEAR = 0.99  # of the cap: at it
BOTH = "sigma"


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One weight before it is decomposed: ``stack`` (matrices, rows, columns), its proved norm and its cap, if any."""

    name: str
    kind: Kind
    stack: Callable[[], Array]
    shape: tuple[int, int, int]
    proved: float
    cap: float | None

    @property
    def work(self) -> float:
        count, rows, columns = self.shape
        return float(count * rows * columns) * (1 if self.kind == "table" else min(rows, columns))


def weight_norms(named: Iterator[tuple[str, Tensor]]) -> dict[str, float]:
    """The proved spectral norm of each matrix, and of the largest of each stack of them; vectors are left out."""
    return {name: _norm(_stack(weight)) for name, weight in named if weight.ndim >= 2}


def spectra(
    model: nn.Module, program: Program, ledger: Ledger, *, cap: float | None = None, work: float = WORK
) -> tuple[tuple[Spectrum, ...], int]:
    """The spectrum of every weight, in order, and how many weights there are beyond ``MAX_WEIGHTS``.

    Weights of certkit's own networks stand under their names, per head where the cap is per head; ``cap`` is the factor of
    training on the caps that they declare, None where nothing was capped. Of any other network they are the constant
    operands of linear maps and convolutions, under the names of the modules that hold these, with the norms of the ledger.
    Where decomposing all would take more than ``work``, as many as that allows are drawn, always the same ones.
    """
    found = _declared(model, cap) or _operands(program, ledger)
    shown, chosen = found[:MAX_WEIGHTS], _chosen(found[:MAX_WEIGHTS], work)
    values = MAX_VALUES if len(shown) <= 60 else MAX_VALUES // 2 + 1 if len(shown) <= 150 else MAX_VALUES // 4 + 1
    spectrums = []
    with bar("spectra", len(shown)) as progress:
        for weight in shown:
            why = None if weight in chosen else _why(weight, len(chosen), len(shown))
            spectrums.append(_spectrum(weight, values, why))
            progress.advance(weight.name)
    return tuple(spectrums), len(found) - len(shown)


def _chosen(found: Sequence[Weight], work: float) -> set[Weight]:
    """Those that are decomposed: all that fit, in an order that a fixed seed draws."""
    kept: set[Weight] = set()
    for at in np.random.default_rng(0).permutation(len(found)):
        weight = found[at]
        if (weight.kind == "table" or min(weight.shape[1:]) <= WIDEST) and weight.work <= work:
            work -= weight.work
            kept.add(weight)
    return kept


def _why(weight: Weight, chosen: int, count: int) -> str:
    if weight.kind != "table" and min(weight.shape[1:]) > WIDEST:
        return f"its smaller side is above {WIDEST}: too slow to decompose"
    return f"decomposing all would take too long; {chosen} of {count} weights were drawn"


def _declared(model: nn.Module, cap: float | None) -> list[Weight]:
    """The weights of a network whose layers declare where they live; none of any other."""
    try:
        every: list[tuple[str, nn.Parameter, Geometry]] = list(weights(model))
    except ValueError:
        return []
    found = []
    for name, parameter, geometry in every:
        if isinstance(geometry, Entries) or not parameter.numel():
            continue
        stack = _stack(parameter)
        count, outputs, inputs = stack.shape
        rows = isinstance(geometry, Rows)
        found.append(
            Weight(
                name=name,
                kind="table" if rows else "matrix",
                stack=lambda parameter=parameter: _stack(parameter),  # type: ignore[misc]
                shape=(count, outputs, inputs),
                proved=_longest(stack) if rows else _norm(stack),
                cap=None if cap is None else cap * geometry.limit(parameter.shape),
            )
        )
    return found


def _operands(program: Program, ledger: Ledger) -> list[Weight]:
    """The constant matrices and kernels that the graph multiplies by, each once, in the order in which they are used."""
    proved = {step.node.partition(".")[0]: step for step in ledger.steps if BOTH in step.evidence}
    found: dict[str, Weight] = {}
    for node in program.nodes:
        step = proved.get(node.name)
        operand = _operand(node, program.constants)
        if step is None or operand is None or operand.name in found:
            continue
        kernel = node.target in CONVOLUTIONS
        shape = program.constants[operand].shape
        name = node.name if step.module == "the model" else step.module
        found[operand.name] = Weight(
            name=one_line(name, LONGEST),
            kind="convolution" if kernel else "matrix",
            stack=lambda operand=operand, kernel=kernel: _matrices(program.constants[operand], kernel),  # type: ignore[misc]
            shape=(1, shape[0], math.prod(shape[1:])) if kernel else (math.prod(shape[:-2]), shape[-2], shape[-1]),
            proved=step.evidence[BOTH].to_float(),
            cap=None,
        )
    return list(found.values())


def _operand(node: Node, constants: Mapping[Node, Tensor]) -> Node | None:
    """The weight among what an operator reads: its one constant of two or more axes."""
    held = [arg for arg in node.args if isinstance(arg, Node) and arg in constants and constants[arg].ndim >= 2]
    return held[0] if len(held) == 1 and constants[held[0]].numel() else None


def _matrices(tensor: Tensor, kernel: bool) -> Array:
    w = array(tensor)
    return w.reshape(1, len(w), -1) if kernel else w.reshape(-1, *w.shape[-2:])


def _stack(weight: Tensor) -> Array:
    return array(weight).reshape(-1, *weight.shape[-2:])


def _norm(stack: Array) -> float:
    return max(spectral_norm(matrix) for matrix in stack)


def _longest(stack: Array) -> float:
    return float(np.max(euclidean(stack.reshape(-1, stack.shape[-1]), axis=1)))


def singular_values(matrix: Array) -> Array:
    """From the largest to the smallest, by the eigenvalues of the smaller Gram matrix; off by some 1e-8 of the largest.

    Three times as fast as a decomposition. The matrix is scaled by a power of two, so that no square leaves float64.
    """
    power = power_above(matrix)
    if power == 0.0:
        return np.zeros(min(matrix.shape))
    scaled = matrix / power
    gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)) * power)


def _spectrum(weight: Weight, count: int, why: str | None) -> Spectrum:
    values = [] if why else _values(weight)
    every = np.sort(np.concatenate(values))[::-1] if values else np.zeros(0)
    line = weight.proved if weight.cap is None else weight.cap
    return Spectrum(
        name=weight.name,
        kind=weight.kind,
        shape=weight.shape[1:],
        matrices=weight.shape[0],
        proved=weight.proved,
        cap=weight.cap,
        values=quantiles(every, count),
        at_cap=float((every >= NEAR * line).mean()) if values and line else None,
        stable_rank=_stable_rank(values) if weight.kind != "table" else None,
        skipped=why,
    )


def _values(weight: Weight) -> list[Array]:
    stack = weight.stack()
    if weight.kind == "table":
        return [np.linalg.norm(stack.reshape(-1, stack.shape[-1]), axis=1)]
    return [singular_values(matrix) for matrix in stack]


def quantiles(falling: Array, count: int) -> tuple[float, ...]:
    """``count`` of the values at equal steps, first and last included, rounded to 7 digits; all where there are no more."""
    places = np.unique(np.linspace(0, len(falling) - 1, min(count, len(falling))).round().astype(int))
    return tuple(float(f"{falling[at]:.6e}") for at in places)


def _stable_rank(values: Sequence[Array]) -> float | None:
    """The sum of squares over the largest square, the mean over the matrices that are not zero; None if all are."""
    ranks = [float(((one / one[0]) ** 2).sum()) for one in values if len(one) and one[0] > 0]
    return float(f"{np.mean(ranks):.4e}") if ranks else None
