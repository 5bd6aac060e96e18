"""What the float64 execution at each sample shows of every value of the graph, rounded outward: the centres of the balls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from certkit.bounds.bound import Axes
from certkit.bounds.ledger import Ledger, Step
from certkit.bounds.number import Interval, Up
from certkit.engine.execute import CHUNK, run
from certkit.engine.local.numbers import Floats, Intervals, Ups
from certkit.engine.program import Program
from certkit.errors import Refusal

SDPA = torch.ops.aten.scaled_dot_product_attention.default
U = 2.0**-53
LOST = 1e-150  # more than the root of what squares can lose to underflow
GROUPED = {
    "layer-norm": True,
    "rms-norm": False,
    "unit": False,
}  # rules that divide by a length: is the mean taken off?
SHARES = ("attention", "softmax", "mixture")


@dataclass(frozen=True, slots=True)
class Shares:
    """Softmax weights as computed: the largest sum over a column, what a row leaves beside its largest, the largest weight.

    ``spreads``: of keys and of values, the largest sum of variances of their entries under a row of weights, and the longest.
    """

    column_sum: Ups
    rest: Ups
    top: Ups
    rows: int
    spreads: tuple[tuple[Ups, Ups], ...]


@dataclass(slots=True)
class Centre:
    """Per step and sample, of computed values: N_A for the axes of interest, the entries' range, and what rules divide by.

    ``lengths`` are lower bounds of the shortest vector that a normalisation divides by the length of, by the step's name.
    """

    norms: dict[str, dict[Axes, Ups]] = field(default_factory=dict)
    ranges: dict[str, Intervals] = field(default_factory=dict)
    lengths: dict[str, Floats] = field(default_factory=dict)
    shares: dict[str, Shares] = field(default_factory=dict)


def axes_of(step: Step) -> list[Axes]:
    """The norms that a local pass follows: those of the box's ledger, l2, linf and the last axis."""
    everything = frozenset(range(1, len(step.bound.shape)))
    last = frozenset({len(step.bound.shape) - 1}) & everything
    return sorted({*step.bound.norms, everything, last, frozenset[int]()}, key=lambda axes: (len(axes), sorted(axes)))


def measure(program: Program, ledger: Ledger, images: Tensor) -> Centre:
    """Run the images (N, ...) through the graph in float64, a chunk at a time, and keep only numbers per sample.

    Raises Refusal for an image outside the ledger's domain: its ball's part of the domain need not hold the way to it.
    """
    for step in ledger.steps:
        if step.rule == "input":
            _within(step, images.to(torch.float64))
    observer = _Observer(program, ledger)

    def one(image: Tensor) -> Tensor:
        return observer.look(image.unsqueeze(0))

    some = images if len(images) else torch.zeros(1, *images.shape[1:])  # to know which numbers there are none of
    with torch.no_grad():
        pieces = [torch.func.vmap(one)(piece.to(torch.float64)) for piece in torch.split(some.cpu(), CHUNK)]
    return observer.centre(np.ascontiguousarray(torch.cat(pieces)[: len(images)].numpy().T))


def _within(step: Step, images: Tensor) -> None:
    """Refuse images outside the box, or with tokens that are longer than the domain's, if it says so."""
    if not len(images):
        return
    low, high = (float(end) for end in torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise Refusal("a sample holds NaN or infinity; there is no ball around it")
    box = step.bound.range
    if box is not None and not box.holds(Interval.of(low, high)):
        raise Refusal(f"a sample has entries in [{low:.6g}, {high:.6g}], outside the box {box} of the certificate")
    if "token_size" in step.evidence:
        computed = images.square().sum(-1).amax().sqrt().numpy()
        longest = float(_enlarged(computed, images.shape[-1]).value)
        if Up.of(longest) > step.evidence["token_size"]:
            limit = step.evidence["token_size"].to_float()
            raise Refusal(
                f"a sample has a token of length {longest:.6g}, longer than the {limit:.6g} of the certificate"
            )


class _Observer:
    """Which numbers are taken of one run, in which order, and what they mean."""

    def __init__(self, program: Program, ledger: Ledger) -> None:
        self.program = program
        self.steps = {step.node: step for step in ledger.steps}
        self.shown: dict[Node, list[Step]] = {}  # by value: the steps whose bounds are of it, or of a view of it
        self.products: dict[Node, Step] = {}  # by operator: the step that mixes with softmax weights, or gives them
        self.held: dict[Node, Tensor | None] = {}  # values that are needed once more after they were seen
        self.readers: dict[str, list[Step]] = {}  # by what they read: the steps that divide by its length
        nodes = {node.name: node for node in (program.input, *program.nodes)}
        for step in ledger.steps:
            node = nodes.get(step.node)
            if node is None:  # a step of the rules' own, which may still be a view of a value
                viewed = nodes.get(step.inputs[0]) if _is_view(step) else None
                if viewed is not None:
                    self.shown.setdefault(viewed, []).append(step)
                elif step.rule not in GROUPED:
                    continue
            elif step.rule != "constant":
                self.shown.setdefault(node, []).append(step)
            if step.rule in GROUPED:
                self.readers.setdefault(step.inputs[0], []).append(step)
            elif step.rule in SHARES and node is not None:
                self.products[node] = step
                if step.rule == "attention":
                    self.held |= {nodes[name]: None for name in step.inputs[1:] if name in nodes}
                if step.rule != "softmax" and node.target is not SDPA:
                    self.held[node.all_input_nodes[0]] = None
        self.nodes = nodes
        self.names: list[tuple[str, ...]] = []
        self.numbers: list[Tensor] = []

    def look(self, x: Tensor) -> Tensor:
        """The numbers of one sample (batch axis of 1); NaN where the run left the range of float64."""
        self.names, self.numbers = [], []
        logits = run(self.program, x, attend=self._attend, see=self._see)
        return torch.stack([torch.where(logits.isnan().any(), torch.nan, number) for number in self.numbers])

    def _keep(self, number: Tensor, *name: str) -> None:
        self.names.append(name)
        self.numbers.append(number)

    def _attend(self, node: Node, weights: Tensor) -> Tensor:
        self._weigh(self.products[node], weights)
        return weights

    def _see(self, node: Node, value: Tensor) -> None:
        if node in self.held:
            self.held[node] = value
        for step in self.shown.get(node, ()):
            whole = value.reshape(step.bound.shape)
            self._norms(step, whole)
            for reader in self.readers.get(step.node, ()):
                self._lengths(reader, whole)
        if node in self.products and node.target is not SDPA:
            step = self.products[node]
            weights = value if step.rule == "softmax" else self.held[node.all_input_nodes[0]]
            assert weights is not None
            self._weigh(step, weights)

    def _weigh(self, step: Step, weights: Tensor) -> None:
        if step.rule == "softmax":
            weights = weights.movedim(step.attributes["axis"], -1)
        top = weights.amax(-1)
        self._keep(weights.sum(-2).amax(), step.node, "column")
        self._keep((1.0 - top).amax(), step.node, "rest")
        self._keep(top.amax(), step.node, "top")
        if step.rule == "attention":
            for name in step.inputs[1:]:
                x = self.held.get(self.nodes[name]) if name in self.nodes else None
                if x is not None:
                    mean = weights @ x
                    squares = weights @ x.square().sum(-1, keepdim=True) - mean.square().sum(-1, keepdim=True)
                    self._keep(squares.amax(), step.node, "spread", name)

    def _norms(self, step: Step, value: Tensor) -> None:
        low, high = torch.aminmax(value)
        self._keep(low, step.node, "low")
        self._keep(high, step.node, "high")
        squares: dict[Axes, Tensor] = {frozenset(): value.square()}
        for axes in axes_of(step)[1:]:
            held = max((known for known in squares if known <= axes), key=len)
            squares[axes] = squares[held].sum(sorted(axes - held), keepdim=True)
            self._keep(squares[axes].amax().sqrt(), step.node, *map(str, sorted(axes)))

    def _lengths(self, step: Step, value: Tensor) -> None:
        axes = step.attributes["axes"]
        if GROUPED[step.rule]:
            value = value - value.mean(axes, keepdim=True)
        self._keep(value.square().sum(axes).amin().sqrt(), step.node, "length")

    def centre(self, rows: Floats) -> Centre:
        """The numbers (how many, N) of all samples, rounded outward."""
        raw = dict(zip(self.names, rows, strict=True))
        found = Centre()
        for step in self.steps.values():
            name = step.node
            if (name, "low") in raw:
                low, high = raw[name, "low"], raw[name, "high"]
                unknown = np.isnan(low) | np.isnan(high)
                ends = Intervals(np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high))
                found.ranges[name], found.norms[name] = ends, {frozenset(): ends.largest}
                for axes in axes_of(step)[1:]:
                    found.norms[name][axes] = _enlarged(raw[(name, *map(str, sorted(axes)))], step.bound.count(axes))
            if (name, "top") in raw:
                rows_ = self.steps[step.inputs[0]].bound.shape[-2] if step.rule != "softmax" else 1
                column, rest, top = (raw[name, which] for which in ("column", "rest", "top"))
                found.shares[name] = Shares(
                    column_sum=_enlarged(column, rows_),
                    rest=_enlarged(rest, 1),
                    top=Ups(_known(top)),
                    rows=rows_,
                    spreads=self._spreads(step, raw, found),
                )
        for step in self.steps.values():
            if (step.node, "length") in raw:
                found.lengths[step.node] = self._shortest(step, raw[step.node, "length"], found)
        return found

    def _spreads(self, step: Step, raw: dict[tuple[str, ...], Floats], centre: Centre) -> tuple[tuple[Ups, Ups], ...]:
        """The spreads of keys and values, of which both must have been seen.

        With computed weights p of sum 1 + d, sum p |v - m|^2 = sum p |v|^2 - |m|^2 + d |m|^2 for m = sum p v. Sums of n
        products and of w squares, and d, are off by at most gamma_{n+w+8} R^2 each, R the longest v.
        """
        names = [name for name in step.inputs[1:] if (step.node, "spread", name) in raw]
        if step.rule != "attention" or len(names) < 2:
            return ()
        found = []
        for name in names:
            shape = self.steps[name].bound.shape
            longest = centre.norms[name][frozenset({len(shape) - 1})]
            off = longest * longest * (8 * (shape[-1] + shape[-2] + 16) * U)
            computed = _known(np.maximum(raw[step.node, "spread", name], 0.0))
            found.append((Ups(computed) + off, longest))
        return tuple(found)

    def _shortest(self, step: Step, computed: Floats, centre: Centre) -> Floats:
        """A lower bound of the shortest length, for the length that was computed.

        n squares, their sum and a root are off by gamma_{n+2}. A mean is off by gamma_n X, X the largest entry, and the
        difference by two more roundings of X: the centred vector by at most sqrt(n) gamma_{n+3} X, which is doubled here.
        """
        x = self.steps[step.inputs[0]].bound
        n = x.count(frozenset(step.attributes["axes"]))
        off = np.zeros_like(computed)
        if GROUPED[step.rule]:
            off = centre.norms[step.inputs[0]][frozenset()].value * (2 * (n + 8) * U * np.sqrt(n))
        found = computed * (1 - 2 * (n + 8) * U) - off * (1 + 2.0**-40) - LOST
        return np.asarray(np.where(np.isfinite(found), np.maximum(found, 0.0), 0.0))


def _is_view(step: Step) -> bool:
    """Whether a step only splits or joins neighbouring axes, as a view of a tensor's memory does."""
    if step.rule != "relabel":
        return False
    sides = [[axis for group in step.attributes["groups"] for axis in group[side]] for side in (0, 1)]
    return all(axes == sorted(axes) for axes in sides)


def _enlarged(computed: Floats, terms: int) -> Ups:
    """An upper bound of a sum of ``terms`` non-negative products, or of its root, for the number that was computed."""
    return Ups(_known(computed * (1 + 2 * (terms + 8) * U) + LOST))


def _known(computed: Floats) -> Floats:
    """Infinity in place of NaN."""
    return np.asarray(np.fmin(computed, np.inf))
