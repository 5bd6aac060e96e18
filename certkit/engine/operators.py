"""Readers: for each ATen operator, which rule covers it and what that rule must know.

A reader looks at one node of the graph and measures its weights; it never decides a bound. An operator without a reader
is refused by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from certkit.bounds.number import Up
from certkit.bounds.rules.attention import largest_score
from certkit.bounds.softmax import softmax_mass
from certkit.bounds.spectral import (
    absolute_norm,
    absolute_sums,
    euclidean,
    largest,
    spectral_norm,
    up,
)
from certkit.engine.execute import MASKED, allowed
from certkit.engine.program import REMEDY, module_path, operator_name
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import NoRule, Refusal

aten = torch.ops.aten
Reader = Callable[[Node, Graph], Reading]
READERS: dict[Any, Reader] = {}


def reads(*targets: Any) -> Callable[[Reader], Reader]:
    """Enter a reader for some operators."""

    def enter(reader: Reader) -> Reader:
        for target in targets:
            READERS[target] = reader
        return reader

    return enter


def read(node: Node, graph: Graph) -> Reading:
    """What the node's rule must know. Raises NoRule, naming operator, module and remedy, when no reader covers it."""
    if node.target not in READERS:
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)}; certkit refuses what it cannot bound. "
            f"To certify this model, {REMEDY}"
        )
    return READERS[node.target](node, graph)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a node, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


@reads(aten.linear.default)
def linear(node: Node, graph: Graph) -> Reading:
    x, weight, bias = argument(node, 0, "input"), argument(node, 1, "weight"), argument(node, 2, "bias")
    if weight not in graph.constants or (bias is not None and bias not in graph.constants):
        raise Refusal(f"{module_path(node)}: a linear map whose weight depends on the input has no rule")
    w = array(graph.constants[weight])
    b = array(graph.constants[bias]) if bias is not None else None
    if len(graph.shape(x)) < 2 or w.ndim != 2 or (b is not None and b.shape != w.shape[:1]):
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} of {graph.shape(x)} with weight {w.shape} and bias "
            f"{None if b is None else b.shape} has no rule; expected weight (outputs, inputs) and bias (outputs,)"
        )
    evidence = graph.measured(
        ("linear", weight.name),
        lambda: {
            "sigma": spectral_norm(w),
            "absolute": absolute_norm(w),
            "row_l2": float(euclidean(w, axis=1).max()),
            "row_l1": float(absolute_sums(w, axis=1).max()),
        },
    )
    vector = {
        "bias_l2": 0.0 if b is None else float(euclidean(b.reshape(1, -1), axis=1)[0]),
        "bias_linf": 0.0 if b is None else largest(b),
    }
    return graph.reading("linear", node, [x], {}, {**evidence, **vector})


@reads(aten.add.Tensor, aten.sub.Tensor)
def add(node: Node, graph: Graph) -> Reading:
    if argument(node, 2, "alpha", 1) != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with alpha has no rule; multiply first")
    a, b = node.args[0], node.args[1]
    names = [graph.operand(node, a), graph.operand(node, b)]
    if node.target is aten.sub.Tensor:
        names[1] = graph.step("negate", node, [names[1]], graph.attributes(node), {}, suffix="minus")
    return Reading("add", names, graph.attributes(node), {})


@reads(aten.mul.Tensor, aten.div.Tensor)
def scale(node: Node, graph: Graph) -> Reading:
    a: Any = node.args[0]
    b: Any = node.args[1]
    if node.target is aten.mul.Tensor and not graph.depends(a):
        a, b = b, a
    if graph.depends(b):
        raise NoRule(
            f"{module_path(node)}: no rule for {operator_name(node)} where both operands depend on the input; "
            f"to certify this model, {REMEDY}"
        )
    factor = graph.constants[b] if isinstance(b, Node) else torch.tensor(float(b), dtype=torch.float64)
    values = array(factor)
    if node.target is aten.div.Tensor:
        if bool((values == 0).any()):
            raise Refusal(f"{module_path(node)}: a division by zero has no bound")
        values = 1.0 / values
        stretch = up(up(largest(values)))
        low, high = math.nextafter(float(values.min()), -math.inf), up(float(values.max()))
    else:
        stretch, low, high = largest(values), float(values.min()), float(values.max())
    return graph.reading("scale", node, [a], {"low": low, "high": high}, {"largest": stretch})


@reads(aten.neg.default)
def negate(node: Node, graph: Graph) -> Reading:
    return graph.reading("negate", node, [node.args[0]], {}, {})


@reads(aten.abs.default)
def absolute(node: Node, graph: Graph) -> Reading:
    return graph.reading("abs", node, [node.args[0]], {}, {})


@reads(aten.relu.default)
def relu(node: Node, graph: Graph) -> Reading:
    return graph.reading("relu", node, [node.args[0]], {}, {})


@reads(aten.gelu.default)
def gelu(node: Node, graph: Graph) -> Reading:
    return graph.reading("gelu", node, [node.args[0]], {"approximate": node.kwargs.get("approximate", "none")}, {})


@reads(aten.maximum.default, aten.minimum.default)
def larger_or_smaller(node: Node, graph: Graph) -> Reading:
    names = [graph.operand(node, argument) for argument in node.args]
    return Reading("larger-or-smaller", names, graph.attributes(node), {})


@reads(aten.mean.dim)
def mean(node: Node, graph: Graph) -> Reading:
    x, rank = node.args[0], len(graph.shape(node.args[0]))
    averaged = argument(node, 1, "dim")
    if not averaged:
        raise Refusal(f"{module_path(node)}: a mean over the batch axis has no rule; name the axes of one sample")
    axes = sorted({axis % rank for axis in averaged})
    if 0 in axes:
        raise Refusal(f"{module_path(node)}: a mean over the batch axis has no rule; name the axes of one sample")
    return graph.reading("mean", node, [x], {"axes": axes}, {})


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


@reads(operator.getitem)
def piece(node: Node, graph: Graph) -> Reading:
    source = node.args[0]
    if not isinstance(source, Node) or READERS.get(source.target) is not split:
        raise NoRule(f"{module_path(node)}: no rule for an element of {getattr(source, 'target', source)}; {REMEDY}")
    return graph.reading("part", node, [source], {"axes": list(range(len(graph.shape(node))))}, {})


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


@reads(aten.scaled_dot_product_attention.default)
def attention(node: Node, graph: Graph) -> Reading:
    q, k, v = node.args[:3]
    scale: Any = node.kwargs.get("scale")
    if argument(node, 4, "dropout_p", 0.0) != 0.0:
        raise Refusal(f"{module_path(node)}: attention with active dropout is random; set dropout_p to 0 in eval mode")
    if node.kwargs.get("enable_gqa"):
        raise Refusal(f"{module_path(node)}: grouped-query attention has no rule")
    for value in (q, k, v):
        if not graph.depends(value):
            raise Refusal(f"{module_path(node)}: attention with constant queries, keys or values has no rule")
    mask, keep = attention_mask(node, graph)
    finite = array(torch.where(keep, mask, 0.0))
    # 1/sqrt(d) is rounded twice; its upper bound serves
    factor = up(up(1.0 / math.sqrt(graph.shape(q)[-1]))) if scale is None else abs(float(scale))
    score = largest_score(graph.bounds[graph.name(q)], graph.bounds[graph.name(k)], Up.of(factor))
    if score >= Up.of(-MASKED / 10) and mask.dtype is not torch.bool and bool((~keep & torch.isfinite(mask)).any()):
        raise Refusal(
            f"{module_path(node)}: scores may reach {score.to_float():.3g}, so that a mask of {MASKED:g} need not leave "
            "a key out; mask with -inf or a boolean mask"
        )
    columns, rest = softmax_mass(finite, keep.numpy(), score.to_float())
    evidence: dict[str, float | Up] = {
        "scale": factor,
        "mask_size": largest(finite),
        "score": score,
        "column_sum": columns,
        "rest": rest,
    }
    return graph.reading("attention", node, [q, k, v], {}, evidence)


def attention_mask(node: Node, graph: Graph) -> tuple[Tensor, Tensor]:
    """The additive mask in float64 and which keys it leaves in, each (..., queries, keys)."""
    if any(len(graph.shape(value)) < 3 for value in node.args[:3]):
        raise Refusal(f"{module_path(node)}: attention needs values of shape (batch, ..., tokens, features)")
    rows, keys = graph.shape(node.args[0])[-2], graph.shape(node.args[1])[-2]
    given = argument(node, 3, "attn_mask")
    if argument(node, 5, "is_causal", False):
        return torch.zeros(rows, keys, dtype=torch.float64), torch.ones(rows, keys, dtype=torch.bool).tril()
    if given is None:
        return torch.zeros(rows, keys, dtype=torch.float64), torch.ones(rows, keys, dtype=torch.bool)
    if given not in graph.constants:
        raise Refusal(f"{module_path(node)}: an attention mask that depends on the input has no rule")
    mask = graph.constants[given]
    if bool((torch.isnan(mask) | (mask == math.inf)).any()):
        raise Refusal(f"{module_path(node)}: an attention mask that holds NaN or +infinity has no defined output")
    mask = mask.expand(*mask.shape[:-2], rows, keys)
    return (torch.zeros(mask.shape, dtype=torch.float64) if mask.dtype is torch.bool else mask), allowed(mask)
