"""How far the values of a network move when its weights are replaced by others: the graph bounded beside its twin.

Both networks are one graph f with two sets of constants, W and W'. For each operator, x and x' its inputs in the two,

    f(x'; W') - f(x; W) = [f(x'; W) - f(x; W)] + [f(x'; W') - f(x'; W)].

The first bracket is one operator at two inputs. Every rule proves its ``gain`` from what the operator does to any two
inputs of the stated sizes and ranges, some on the straight line between them, where norms and intervals hold as well; so
it holds with the drift in place of a move of the input, when sizes, ranges and evidence are those of both networks, each
taken from that network's own proof. In the second bracket the input is one and the weights differ. The operators here are
linear in their weights, so it is the operator itself with the weights W' - W, and its ``size`` on the values of x' bounds
it: the same rule again, not a second formula. And a value drifts no further than both are large, size(x) + size(x').

Where an operator reads a changed constant and is not linear in it, it is handled by name or refused.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from certkit.bounds.bound import Axes, Bound, Reach, bound
from certkit.bounds.ledger import Ledger, Matrix
from certkit.bounds.number import ZERO, Up, least, most
from certkit.bounds.softmax import softmax_mass
from certkit.bounds.spectral import euclidean, largest, row_differences, up
from certkit.engine.direct import CONVOLUTIONS
from certkit.engine.head import head_of
from certkit.engine.program import Program, module_path, operator_name
from certkit.engine.readers import argument, curves, table
from certkit.engine.readers.attention import attention_mask
from certkit.engine.readers.normalisation import SOFTMAX, along, masking, original, scores_of
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import Refusal

aten = torch.ops.aten

# The arguments in which an operator is linear, all at once. A factor that is left out stands for 1.
WITH_FACTOR_AND_SHIFT: dict[Any, tuple[tuple[int, str], ...]] = {
    aten.layer_norm.default: ((2, "weight"), (3, "bias")),
    aten.rms_norm.default: ((2, "weight"),),
    aten.group_norm.default: ((2, "weight"), (3, "bias")),
    aten.instance_norm.default: ((1, "weight"), (2, "bias")),
    aten.batch_norm.default: ((1, "weight"), (2, "bias")),
    aten._native_batch_norm_legit_no_training.default: ((1, "weight"), (2, "bias")),
    aten.native_batch_norm.default: ((1, "weight"), (2, "bias")),
    aten._native_batch_norm_legit.default: ((1, "weight"), (2, "bias")),
}
LINEAR_IN: dict[Any, tuple[tuple[int, str], ...]] = {
    aten.linear.default: ((1, "weight"), (2, "bias")),
    **dict.fromkeys((aten.matmul.default, aten.mm.default, aten.bmm.default), ((0, "self"), (1, "mat2"))),
    aten.mv.default: ((1, "vec"),),
    aten.addmm.default: ((0, "self"), (1, "mat1"), (2, "mat2")),
    **dict.fromkeys(CONVOLUTIONS, ((1, "weight"), (2, "bias"))),
    aten.mul.Tensor: ((0, "self"), (1, "other")),
    **WITH_FACTOR_AND_SHIFT,
}


@dataclass(frozen=True, slots=True)
class Drift:
    """How far the logits of two networks can lie apart, for every input of a box.

    ``l2`` and ``linf`` bound the whole vector; ``pairs[i][j]`` the change of logit i minus logit j.
    """

    l2: Up
    linf: Up
    pairs: Matrix


def drift(first: Program, second: Program, box: tuple[float, float], ledgers: tuple[Ledger, Ledger]) -> Drift:
    """A bound of second - first for two programs of one graph, whose ``ledgers`` were derived on the box.

    Raises Refusal where the graphs differ, or where a changed weight enters in a way that has no bound.
    """
    if first.sha256 != second.sha256:
        raise Refusal(
            "the rounded weights make the model another graph (a branch or a number of its code depends on them); "
            "there is no bound between two graphs"
        )
    graph = _Twins(first, second, ledgers)
    start = first.input
    attributes = {"shape": list(first.shapes[start]), "norm": "linf", "low": box[0], "high": box[1]}
    graph.step("input", start, [], attributes, {})
    graph.bounds[start.name] = Bound(
        first.shapes[start], still(graph.bounds[start.name]), graph.bounds[start.name].range
    )
    for node in first.nodes:
        graph.settle(node)
    output = graph.bounds[first.output.name]
    whole, entry = output.within(output.axes).gain, output.within(frozenset()).gain
    return Drift(whole, entry, _pairs(graph, whole, entry))


def difference(old: Tensor, new: Tensor) -> list[Tensor]:
    """new - old as a sum of float64 tensors, exactly: the rounded difference and, if there is any, what rounding took.

    Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B; it needs no order of sizes.
    """
    total = new - old
    part = total - new
    rest = (new - (total - part)) - (old + part)
    return [total] if not bool((rest != 0).any()) else [total, rest]


def total(numbers: Iterable[Up]) -> Up:
    """The sum, rounded up."""
    found = ZERO
    for number in numbers:
        found = found + number
    return found


def still(x: Bound) -> dict[Axes, Reach]:
    """The norms of a value that is the same in both networks."""
    return {axes: Reach(reach.size, ZERO, ZERO) for axes, reach in x.norms.items()}


class _Twins(Graph):
    """A program while it is bounded with its twin: a bound holds for both networks' values, ``gain`` is their drift.

    ``own`` and ``twin`` are what the two proofs say of each value, by node.
    """

    def __init__(self, first: Program, second: Program, ledgers: tuple[Ledger, Ledger]) -> None:
        super().__init__(first, "float64", {})
        theirs = {node.name: value for node, value in second.constants.items()}
        values = {node.name for node in (first.input, *first.nodes)}  # what a reader puts in between may differ
        self.own, self.twin = (
            {step.node: step.bound for step in ledger.steps if step.node in values} for ledger in ledgers
        )
        self.others = {node: theirs[node.name] for node in first.constants}
        self.changed = {
            node: difference(value.double(), self.others[node].double())
            for node, value in first.constants.items()
            if not torch.equal(value, self.others[node])
        }
        self._settled: set[Node] = set()
        for node in self.changed:
            if not self.constants[node].is_floating_point():
                raise Refusal(f"{node.name}: rounding changes a constant that is no real number; that has no bound")

    def operand(self, node: Node, value: Any, shape: tuple[int, ...] | None = None) -> str:
        """As it is; a constant that changes is a value that drifts by the change."""
        name = super().operand(node, value, shape)
        if isinstance(value, Node) and value in self.changed:
            held = self.bounds[name]
            moves = [_constant(np.broadcast_to(array(part), held.shape)) for part in self.changed[value]]
            norms = {}
            for axes in {*held.norms, *moves[0].norms}:
                off = total(move.within(axes).size for move in moves)
                norms[axes] = Reach(held.within(axes).size + off, off, ZERO)
            entries = None if held.range is None else held.range.widened(norms[frozenset()].gain)
            self.bounds[name] = bound(held.shape, norms, entries)
            self._settled.add(value)
        return name

    def settle(self, node: Node) -> None:
        """Enter the node's steps and bound its drift. Raises Refusal where there is no bound."""
        self._settled = set()
        begun = len(self.steps)
        reading = self._read(node)
        if reading is None:
            return
        self.step(reading.rule, node, reading.inputs, reading.attributes, reading.evidence)
        entered = self.steps[begun:]
        read_here = {name for step in entered for name in step.inputs} - {step.node for step in entered}
        if reading.rule == "mixture":
            read_here -= {
                reading.inputs[0]
            }  # the rule looks past the weights, at the scores that they are a softmax of
        moved = self._between(node, read_here) & self.changed.keys() - self._settled
        if node.name not in self.twin:
            raise Refusal(f"{module_path(node)}: rounding changes how {operator_name(node)} is read; that has no bound")
        self.keep(node.name, self._moves(node, reading, moved) if moved else [])

    def keep(self, name: str, moves: Sequence[Bound]) -> None:
        """A value of the graph drifts by its rule's ``gain`` and the sizes of some moves, and by no more than both sizes."""
        x, own, twin = self.bounds[name], self.own[name], self.twin[name]
        norms = {}
        for axes in {*x.norms, *own.norms, *twin.norms, *(axes for move in moves for axes in move.norms)}:
            here, there = own.within(axes).size, twin.within(axes).size
            off = total([x.within(axes).gain, *(move.within(axes).size for move in moves)])
            norms[axes] = Reach(most(here, there), least(off, here + there), ZERO)
        entries = None if own.range is None or twin.range is None else own.range.hull(twin.range)
        self.bounds[name] = bound(x.shape, norms, entries)

    def _read(self, node: Node) -> Reading | None:
        """By operators where several would make one function whose numbers change, as that function has no twin."""
        found = curves.expression_of(node, self)
        if found is not None and any(
            source in self.changed for part in (node, *found[2]) for source in part.all_input_nodes
        ):
            return table.read(node, self)
        return curves.read(node, self)

    def _between(self, node: Node, known: set[str]) -> set[Node]:
        """The constants that are read between the values of these names and the node."""
        constants, seen, waiting = set[Node](), {node}, [node]
        while waiting:
            for source in waiting.pop().all_input_nodes:
                if source in self.constants:
                    constants.add(source)
                elif source.name not in known and source not in seen:
                    seen.add(source)
                    waiting.append(source)
        return constants

    def _moves(self, node: Node, reading: Reading, moved: set[Node]) -> list[Bound]:
        """Bounds of values that add up to what the changed constants add to the node's value."""
        here: Any = node.args[0] if node.target is operator.getitem else node
        target = here.target
        if reading.rule in ("attention", "mixture", "softmax") and moved <= self._masks(node, reading.rule):
            return [self._reweighted(node, reading)]
        if target is aten.prelu.default:
            # the entries below 0, each times the change of its slope
            x = self.twin[self.name(here.args[0])]
            steepest = total(Up.of(largest(array(part))) for slope in moved for part in self.changed[slope])
            return [Bound(x.shape, {axes: reach.scaled(steepest) for axes, reach in x.norms.items()})]
        places = [argument(here, *place) for place in LINEAR_IN.get(target, ())]
        factors = target not in WITH_FACTOR_AND_SHIFT or places[0] is not None
        if factors and moved <= {place for place in places if isinstance(place, Node)}:
            return self._with_differences(node, [place for place in places if place in self.constants])
        names = ", ".join(sorted(str(source.name) for source in moved))
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} is not linear in a weight that rounding changes ({names}); "
            "that has no bound here, so keep this weight in full precision, as a buffer"
        )

    def _with_differences(self, node: Node, places: list[Node]) -> list[Bound]:
        """The node's own rule with the differences of its weights, on the values of the twin."""
        found = []
        here: Any = node.args[0] if node.target is operator.getitem else node
        values = [source for source in here.all_input_nodes if source not in self.constants]
        for part in range(max(len(self.changed.get(place, ())) for place in places)):
            weights = {}
            for place in places:
                parts = self.changed.get(place, [])
                weights[place] = parts[part] if part < len(parts) else torch.zeros_like(self.constants[place])
            shadow = Graph(self.program, self.arithmetic, {})
            shadow.constants = {**self.constants, **weights}
            shadow.bounds = {source.name: self.twin[source.name] for source in values}
            reading = table.read(node, shadow)
            assert reading is not None
            shadow.step(reading.rule, node, reading.inputs, reading.attributes, reading.evidence)
            found.append(shadow.bounds[node.name])
        return found

    # Masks that are weights, such as a learned score for every pair of positions.

    def _scores(self, node: Node, rule: str) -> Node | None:
        """The softmax whose scores are masked, where it is written out; None for the operator of the whole attention."""
        if node.target is aten.scaled_dot_product_attention.default:
            return None
        found = node if rule == "softmax" else original(node.args[0])
        assert isinstance(found, Node)
        assert found.target in SOFTMAX
        return found

    def _masks(self, node: Node, rule: str) -> set[Node]:
        """The constants that mask the node's scores."""
        softmax = self._scores(node, rule)
        if softmax is None:
            given = argument(node, 3, "attn_mask")
            return {given} & self.constants.keys()
        found, value = set[Node](), original(softmax.args[0])
        while (inner := masking(value, self)) is not None:
            found |= set(value.all_input_nodes) & self.constants.keys()
            value = original(inner.value)
        return found

    def _mask(self, node: Node, rule: str, constants: Mapping[Node, Tensor]) -> tuple[Tensor, Tensor]:
        shown = Graph(self.program, self.arithmetic, {})
        shown.constants = dict(constants)
        softmax = self._scores(node, rule)
        if softmax is None:
            return attention_mask(node, shown)
        found = scores_of(softmax.args[0], shown)
        return found.mask, found.keep

    def _reweighted(self, node: Node, reading: Reading) -> Bound:
        """How far a change d of a mask moves a softmax, or the values v mixed by one: a row by t m in l1, and by t m max|v|.

        m is the largest |d| once the middle of each row is taken off, as a softmax does not see it. Under weights p on the
        way a row moves by sum_j p_j |d_j - mean d|. That is at most m, the deviation of what lies in [-m, m], and at most
        twice the mean of |d - d at the largest weight|, so 4 m r when the other weights add up to r; t = min(1, 4 r). The
        weights on the way are those of the first mask for scores that are larger by m at most. A row's changes add up to
        0, so that none is more than half their sum. Entries that are left out must be the same in both.
        """
        rule, shape = reading.rule, self.shape(node)
        (old, keep), (new, kept) = (self._mask(node, rule, c) for c in (self.constants, self.others))
        if not torch.equal(keep, kept):
            raise Refusal(f"{module_path(node)}: rounding changes which keys a mask leaves out; that has no bound")
        old, softmax = torch.where(keep, old, 0.0), self._scores(node, rule)
        axis = -1 if softmax is None else int(argument(softmax, 1, "dim"))
        scores = (
            (*self.shape(node.args[0])[:-1], self.shape(node.args[1])[-2]) if softmax is None else self.shape(softmax)
        )
        axis %= len(scores)
        rows = along(keep.numpy(), axis, scores)
        parts = difference(old, torch.where(keep, new, 0.0))
        m = total(Up.of(_half_spread(along(array(part), axis, scores), rows)) for part in parts)
        if rule == "mixture":
            values, score = reading.inputs[1], self.bounds[reading.inputs[2]].within(frozenset()).size
        else:
            values, score = reading.inputs[-1], Up.of(reading.evidence["score"])
        reached = score + m
        _, rest = softmax_mass(along(array(old), axis, scores), rows, reached.to_float())
        moved = least(m, m * Up.of(rest) * 4)
        if rule != "softmax":
            token = frozenset({len(shape) - 1})
            mixed = self.bounds[values].within(token).size
            return Bound(shape, {token: Reach(moved * mixed, ZERO, ZERO)})
        return Bound(shape, {frozenset({axis}): Reach(moved, ZERO, ZERO), frozenset(): Reach(moved / 2, ZERO, ZERO)})


def _half_spread(change: NDArray[np.float64], keep: NDArray[np.bool_]) -> float:
    """Half of the largest difference of two kept entries of a row, rounded up."""
    keep, change = np.broadcast_arrays(keep, change)
    high = np.where(keep, change, -np.inf).max(axis=-1)
    low = np.where(keep, change, np.inf).min(axis=-1)
    return up(float((high - low).max(initial=0.0))) / 2


def _constant(values: NDArray[np.float64]) -> Bound:
    """The size of an array, batch axis in front, as the rule of constants has it."""
    shape = values.shape
    everything, last = frozenset(range(1, len(shape))), frozenset({len(shape) - 1})
    whole = float(euclidean(np.ascontiguousarray(values).reshape(1, -1), axis=1)[0])
    norms = {everything: whole, frozenset[int](): largest(values)}
    if len(shape) > 1:
        norms[last] = float(euclidean(np.ascontiguousarray(values).reshape(-1, shape[-1]), axis=1).max())
    return Bound(shape, {axes: Reach(Up.of(size), ZERO, ZERO) for axes, size in norms.items()})


def _pairs(graph: _Twins, whole: Up, entry: Up) -> Matrix:
    """The drift of each logit difference: no more than sqrt(2) of all logits' in l2, twice the largest one's, and, when
    the logits are x W' + b times numbers, |W_i - W_j| of that of x and |dW_i - dW_j| of the size of the twin's x.
    """
    classes = graph.shape(graph.program.output)[-1]
    factor = least(Up.of(2).sqrt() * whole, entry * 2)
    pairs = [[ZERO if i == j else factor for j in range(classes)] for i in range(classes)]
    head = head_of(graph)
    if head is None:
        return tuple(map(tuple, pairs))
    x, twin = graph.bounds[graph.name(head.x)], graph.twin[graph.name(head.x)]
    norms = (x.axes, frozenset[int]())
    carried, sizes = [x.within(axes).gain for axes in norms], [twin.within(axes).size for axes in norms]
    own = row_differences(array(graph.constants[head.weight]))
    changes = [row_differences(array(part)) for part in graph.changed.get(head.weight, [])]
    shifts = [_differences(array(part)) for part in graph.changed.get(head.bias, [])] if head.bias else []
    for i in range(classes):
        for j in range(classes):
            if i == j:
                continue
            apart = least(*(Up.of(float(m[i, j])) * off for m, off in zip(own, carried, strict=True)))
            for change in changes:
                apart = apart + least(*(Up.of(float(m[i, j])) * size for m, size in zip(change, sizes, strict=True)))
            for shift in shifts:
                apart = apart + Up.of(float(shift[i, j]))
            pairs[i][j] = least(pairs[i][j], apart * head.factor)
    return tuple(map(tuple, pairs))


def _differences(entries: NDArray[np.float64]) -> NDArray[np.float64]:
    """|b_i - b_j| for all pairs, as upper bounds."""
    return row_differences(entries.reshape(-1, 1))[1]
