"""Readers of operators that only move entries, leave some out, or lay values side by side."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from certkit.engine.program import REMEDY, module_path, operator_name
from certkit.engine.readers.table import READERS, argument, reads
from certkit.engine.reading import Graph, Reading
from certkit.errors import NoRule, Refusal

aten = torch.ops.aten


@reads(aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)
def same(node: Node, graph: Graph) -> Reading:
    return relabelled(node, graph)


@reads(aten.dropout.default, aten.native_dropout.default)
def dropout(node: Node, graph: Graph) -> Reading:
    if node.target is aten.native_dropout.default or argument(node, 2, "train"):
        raise Refusal(
            f"{module_path(node)}: dropout is active in the exported graph, so that the output is random; "
            "use nn.Dropout and model.eval(), or pass training=self.training"
        )
    return relabelled(node, graph)


@reads(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def relabelled(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    before, after = graph.shape(x), graph.shape(node)
    if before[0] != 1 or after[0] != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} merges the batch axis with others; that has no rule")
    return graph.reading("relabel", node, [x], {"groups": view_groups(before, after)}, {})


def view_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[list[list[int]]]:
    """The finest pairing of input axes with output axes that hold the same entries in the same order."""
    old = [axis for axis in range(1, len(before)) if before[axis] > 1]
    new = [axis for axis in range(1, len(after)) if after[axis] > 1]
    groups: list[list[list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [old[i]], [new[j]]
        p, q = before[old[i]], after[new[j]]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                left.append(old[i])
                p, i = p * before[old[i]], i + 1
            else:
                right.append(new[j])
                q, j = q * after[new[j]], j + 1
        groups.append([left, right])
    return groups


@reads(aten.permute.default, aten.transpose.int)
def permute(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    rank = len(graph.shape(x))
    if node.target is aten.transpose.int:
        order = list(range(rank))
        a, b = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    else:
        order = [axis % rank for axis in argument(node, 1, "dims")]
    if order[0] != 0:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} moves the batch axis; that has no rule")
    groups = [[[old], [new]] for new, old in enumerate(order) if new > 0]
    return graph.reading("relabel", node, [x], {"groups": groups}, {})


@reads(aten.slice.Tensor)
def slice_(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    if argument(node, 1, "dim", 0) % len(graph.shape(x)) == 0 and graph.shape(x) != graph.shape(node):
        raise Refusal(f"{module_path(node)}: a slice of the batch axis has no rule")
    return graph.reading("part", node, [x], {"axes": list(range(len(graph.shape(x))))}, {})


@reads(aten.select.int)
def select(node: Node, graph: Graph) -> Reading:
    x = node.args[0]
    axis = argument(node, 1, "dim") % len(graph.shape(x))
    if axis == 0:
        raise Refusal(f"{module_path(node)}: a selection along the batch axis has no rule")
    return graph.reading("part", node, [x], {"axes": [a for a in range(len(graph.shape(x))) if a != axis]}, {})


@reads(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
def split(node: Node, graph: Graph) -> Reading:
    # The pieces are read by getitem; the tuple itself stands for the whole value.
    (x, *_) = node.args
    axis = argument(node, 2, "dim", 0) % len(graph.shape(x))
    if axis == 0:
        raise Refusal(f"{module_path(node)}: a split of the batch axis has no rule")
    return Reading(
        "part", [graph.name(x)], {"shape": list(graph.shape(x)), "axes": list(range(len(graph.shape(x))))}, {}
    )


@reads(aten.unbind.int)
def unbind(node: Node, graph: Graph) -> Reading:
    # As for split, the tuple stands for the whole value; its elements lack the axis.
    (x, *_) = node.args
    rank = len(graph.shape(x))
    if argument(node, 1, "dim", 0) % rank == 0:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} takes the batch axis apart; that has no rule")
    return Reading("part", [graph.name(x)], {"shape": list(graph.shape(x)), "axes": list(range(rank))}, {})


@reads(operator.getitem)
def piece(node: Node, graph: Graph) -> Reading:
    source = node.args[0]
    reader = READERS.get(source.target) if isinstance(source, Node) else None
    if not isinstance(source, Node) or reader not in (split, unbind):
        raise NoRule(f"{module_path(node)}: no rule for an element of {getattr(source, 'target', source)}; {REMEDY}")
    axes = list(range(len(graph.shape(node)) + (reader is unbind)))
    if reader is unbind:
        axes.remove(argument(source, 1, "dim", 0) % len(axes))
    return graph.reading("part", node, [source], {"axes": axes}, {})


@reads(aten.stack.default)
def stack(node: Node, graph: Graph) -> Reading:
    parts: Any = node.args[0]
    shape = graph.shape(node)
    axis = argument(node, 1, "dim", 0) % len(shape)
    if axis == 0:
        raise Refusal(f"{module_path(node)}: joining along the batch axis has no rule")
    slab = (*shape[:axis], 1, *shape[axis + 1 :])
    names = []
    for number, part in enumerate(parts):
        name = graph.operand(node, part, shape=graph.shape(part))
        attributes = {"shape": list(slab), "groups": view_groups(graph.shape(part), slab)}
        names.append(graph.step("relabel", node, [name], attributes, {}, suffix=f"part{number}"))
    return Reading("join", names, {**graph.attributes(node), "axis": axis}, {})


@reads(aten.cat.default)
def cat(node: Node, graph: Graph) -> Reading:
    parts = node.args[0]
    axis = argument(node, 1, "dim", 0) % len(graph.shape(node))
    if axis == 0:
        raise Refusal(f"{module_path(node)}: joining along the batch axis has no rule")
    pairs = _sorted_halves(parts, axis, graph)
    if pairs is not None:
        return graph.reading("sorted-pairs", node, [pairs], {"axis": axis}, {})
    assert isinstance(parts, (list, tuple))
    names = [graph.operand(node, part, shape=graph.shape(part)) for part in parts]
    return Reading("join", names, {**graph.attributes(node), "axis": axis}, {})


def _sorted_halves(parts: Any, axis: int, graph: Graph) -> Node | None:
    """The value whose two halves along ``axis`` are sorted entry against entry (MaxMin), or None.

    Matches cat([maximum(a, b), minimum(a, b)]) where a and b are the two pieces of one split along the same axis.
    """
    if len(parts) != 2 or [getattr(p, "target", None) for p in parts] != [aten.maximum.default, aten.minimum.default]:
        return None
    a, b = parts[0].args
    if tuple(parts[1].args) not in {(a, b), (b, a)}:
        return None
    if any(not isinstance(n, Node) or n.target is not operator.getitem for n in (a, b)) or a.args[0] is not b.args[0]:
        return None
    source = a.args[0]
    if READERS.get(source.target) is not split or {a.args[1], b.args[1]} != {0, 1}:
        return None
    whole = source.args[0]
    rank = len(graph.shape(whole))
    halves = graph.shape(a)[axis] == graph.shape(b)[axis] and graph.shape(a)[axis] * 2 == graph.shape(whole)[axis]
    return whole if argument(source, 2, "dim", 0) % rank == axis and halves else None


# --- Entries that are moved, repeated or padded: the operator itself tells where each one goes. -----------------------

# Which argument names axes: the batch axis must not be among them.
_NAMED_AXES: dict[Any, tuple[tuple[int, str], ...]] = {
    aten.roll.default: ((2, "dims"),),
    aten.flip.default: ((1, "dims"),),
    aten.rot90.default: ((2, "dims"),),
    aten.index_select.default: ((1, "dim"),),
    aten.gather.default: ((1, "dim"),),
    aten.unfold.default: ((1, "dimension"),),
    aten.diagonal.default: ((2, "dim1"), (3, "dim2")),
    aten.repeat_interleave.self_int: ((2, "dim"),),
}
_DEFAULT_AXES: dict[Any, Any] = {
    (aten.diagonal.default, "dim1"): 0,
    (aten.diagonal.default, "dim2"): 1,
    (aten.rot90.default, "dims"): [0, 1],
}
Route = tuple[list[int], list[int], int, int]


@reads(
    *_NAMED_AXES,
    aten.repeat.default,
    aten.tile.default,
    aten.index.Tensor,
    aten.pad.default,
    aten.constant_pad_nd.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.im2col.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
)
def copies(node: Node, graph: Graph) -> Reading:
    (x, *_) = node.args
    before, after = graph.shape(x), graph.shape(node)
    if any(graph.depends(other) for other in node.all_input_nodes if other is not x):
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)} at places that depend on the input; {REMEDY}"
        )
    if before[0] != 1 or after[0] != 1 or 0 in _axes_named(node, len(before)):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} moves the batch axis; that has no rule")
    sources, fill = _sources(node, graph, before)
    attributes: dict[str, Any] = {"routes": [list(route) for route in routes(sources, before)]}
    evidence: dict[str, float] = {}
    if fill.size:
        attributes |= {"low": float(fill.min()), "high": float(fill.max())}
        evidence["fill"] = float(np.abs(fill).max())
        if graph.arithmetic == "float32":
            evidence["rounding"] = float(np.abs(fill - fill.astype(np.float32)).max())
    return graph.reading("copies", node, [x], attributes, evidence)


def _axes_named(node: Node, rank: int) -> set[int]:
    """The axes that the node's arguments name; 0 among them also where it names none and takes the whole value apart."""
    found: set[int] = set()
    if node.target in (aten.pad.default, aten.constant_pad_nd.default):
        given: Any = node.args[1]
        return {rank - 1 - place // 2 for place, extent in enumerate(given) if extent}
    if node.target is aten.index.Tensor:
        indices: Any = node.args[1]
        return {axis for axis, index in enumerate(indices) if index is not None}
    for position, name in _NAMED_AXES.get(node.target, ()):
        named: Any = argument(node, position, name, _DEFAULT_AXES.get((node.target, name)))
        axes = named if isinstance(named, (list, tuple)) else [named]
        found |= {0 if axis is None else int(axis) % rank for axis in axes} or {0}
    return found


def _sources(node: Node, graph: Graph, before: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each output entry the number of the input entry that it is, or −1; and the constants that stand at −1.

    The node is run on the numbers 0, 1, .. and again on these plus their count: what moved grows by the count.
    """
    x, count = node.args[0], int(np.prod(before))
    runs = []
    for offset in (0, count):
        numbers = torch.arange(offset, offset + count, dtype=torch.float64).reshape(before)

        def value(operand: Node, numbers: Tensor = numbers) -> Tensor:
            return numbers if operand is x else graph.constants[operand]

        assert callable(node.target)
        runs.append(node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value)).numpy())
    first, second = runs
    moved, still = second - first == count, second == first
    if not (moved | still).all() or first.shape != graph.shape(node):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} does more than to move entries; that has no rule")
    return np.where(moved, first, -1).astype(np.int64), first[still]


MAX_WORK = 1 << 23  # beyond, only the norms that matter most are looked at


def routes(sources: NDArray[np.int64], before: tuple[int, ...], within: Sequence[int] = ()) -> list[Route]:
    """For sets of output axes: the fewest input axes that hold what stands along them, and how often an entry repeats.

    ``sources`` holds numbers of input entries, −1 for none; its axes ``within`` count as part of every set, and are the
    last ones. Each route is (input axes, output axes, copies, filled), as the rules read it.
    """
    axes = range(1, sources.ndim - len(within))
    sets = [chosen for size in range(len(axes) + 1) for chosen in itertools.combinations(axes, size)]
    if sources.size * len(sets) > MAX_WORK:
        sets = [(), *((axis,) for axis in axes), tuple(axes)]
    valid = sources >= 0
    places = np.unravel_index(np.where(valid, sources, 0), before)
    found: list[Route] = []
    for chosen in dict.fromkeys(sets):
        over = (*chosen, *within)
        if not over:
            found.append(([], [], 1, int((~valid).any())))
            continue
        varying = []
        for axis in range(1, len(before)):
            low = np.where(valid, places[axis], before[axis]).min(axis=over)
            high = np.where(valid, places[axis], -1).max(axis=over)
            if bool((low < high).any()):
                varying.append(axis)
        fibres = np.moveaxis(sources, over, range(-len(over), 0)).reshape(
            -1, math.prod(sources.shape[axis] for axis in over)
        )
        ordered = np.sort(fibres, axis=1)
        repeats = 1
        while bool(((ordered[:, repeats:] == ordered[:, :-repeats]) & (ordered[:, repeats:] >= 0)).any()):
            repeats += 1
        found.append((varying, list(chosen), repeats, int((fibres < 0).sum(axis=1).max())))
    return found
