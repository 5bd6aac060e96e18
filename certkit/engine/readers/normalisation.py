"""Readers of normalisation layers, softmax and norms; written-out forms are matched to the rule of the layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from certkit.bounds.number import Up
from certkit.bounds.softmax import softmax_mass
from certkit.bounds.spectral import U, euclidean, largest, up
from certkit.engine.execute import MASKED, MASKING, allowed
from certkit.engine.program import module_path, operator_name
from certkit.engine.readers import shape as shapes
from certkit.engine.readers.table import READERS, Reader, argument, reads
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import Refusal

aten = torch.ops.aten

SOFTMAX = (aten.softmax.int, aten._softmax.default)


# --- Layer norm and its kin -------------------------------------------------------------------------------------------


def inverse_root(node: Node, eps: Any) -> float:
    """An upper bound of 1/sqrt(eps): a root, a division, and one digit for each and for a rounded eps."""
    if not isinstance(eps, (int, float)) or not eps > 0:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} with eps = {eps} has no finite global bound: "
            "its slope grows without limit where all normalised entries are equal; give it a positive eps"
        )
    return up(up(up(1.0 / math.sqrt(float(eps)))))


def constant(node: Node, graph: Graph, value: Any) -> Tensor | None:
    """A weight of a normalisation, which must not depend on the input."""
    if value is not None and value not in graph.constants:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with a weight that depends on the input has no rule")
    return None if value is None else graph.constants[value]


def affine(factor: Tensor | None, shift: Tensor | None, shape: tuple[int, ...], axes: list[int]) -> dict[str, float]:
    """How large the factor and the shift of a normalisation over ``axes`` are; each stands for its broadcast to ``shape``."""
    evidence = {"weight": 1.0 if factor is None else largest(array(factor)), "bias_l2": 0.0, "bias_linf": 0.0}
    if shift is not None:
        whole = np.broadcast_to(array(shift), shape)
        rest = [axis for axis in range(len(shape)) if axis not in axes]
        rows = np.transpose(whole, [*rest, *axes]).reshape(-1, math.prod(shape[axis] for axis in axes))
        evidence |= {"bias_l2": float(euclidean(rows, axis=1).max()), "bias_linf": largest(whole)}
    return evidence


def rooted(node: Node, eps: Any) -> dict[str, float]:
    """1/sqrt(eps), for the slope and for the errors; a pass that knows more of the deviation lowers the first alone."""
    found = inverse_root(node, eps)
    return {"inverse_deviation": found, "inverse_root": found}


@reads(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(node: Node, graph: Graph) -> Reading:
    x, weight = node.args[0], argument(node, 2, "weight")
    rms = node.target is aten.rms_norm.default
    bias = None if rms else argument(node, 3, "bias")
    eps = argument(node, 3 if rms else 4, "eps", None if rms else 1e-5)
    if eps is None:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} without eps takes that of the precision in which it happens to run; "
            "state it, as by nn.RMSNorm(width, eps=1e-6)"
        )
    shape, normalised = graph.shape(x), list(argument(node, 1, "normalized_shape"))
    axes = list(range(len(shape) - len(normalised), len(shape)))
    if not axes or axes[0] == 0:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} over the batch axis has no rule")
    factor, shift = (constant(node, graph, value) for value in (weight, bias))
    evidence = affine(factor, shift, shape, axes) | rooted(node, eps)
    return graph.reading("rms-norm" if rms else "layer-norm", node, [x], {"axes": axes}, evidence)


@reads(aten.group_norm.default, aten.instance_norm.default)
def group_norm(node: Node, graph: Graph) -> Reading:
    """Layer norm over the channels of a group, after a view of the channels as groups."""
    x, shape = node.args[0], graph.shape(node.args[0])
    if node.target is aten.group_norm.default:
        groups, weight, bias, eps = (
            node.args[1],
            *(argument(node, *a) for a in ((2, "weight"), (3, "bias"), (4, "eps", 1e-5))),
        )
    else:
        groups, weight, bias, eps = shape[1], node.args[1], node.args[2], node.args[7]
        if not node.args[5]:
            return channelwise(node, graph, node.args[1:5], node.args[7])
    assert isinstance(groups, int)
    split = (shape[0], groups, shape[1] // groups, *shape[2:])
    axes = list(range(2, len(split)))
    channels = (1, groups, shape[1] // groups, *(1,) * (len(shape) - 2))
    factor, shift = (
        None if value is None else value.reshape(channels)
        for value in (constant(node, graph, weight), constant(node, graph, bias))
    )
    evidence = affine(factor, shift, split, axes) | rooted(node, eps)
    before, after = shapes.view_groups(shape, split), shapes.view_groups(split, shape)
    name = graph.step("relabel", node, [graph.name(x)], {"shape": list(split), "groups": before}, {}, suffix="grouped")
    name = graph.step("layer-norm", node, [name], {"shape": list(split), "axes": axes}, evidence, suffix="normalised")
    return Reading("relabel", [name], {**graph.attributes(node), "groups": after}, {})


@reads(aten.batch_norm.default)
def batch_norm(node: Node, graph: Graph) -> Reading:
    if node.target is aten._native_batch_norm_legit_no_training.default:
        return channelwise(node, graph, node.args[1:5], node.args[6])
    if node.target is aten._native_batch_norm_legit.no_stats or node.args[5] or node.args[3] is None:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} normalises by the statistics of the batch, so that one sample "
            "changes the logits of another; keep running statistics and call model.eval()"
        )
    return channelwise(node, graph, node.args[1:5], node.args[7])


def channelwise(node: Node, graph: Graph, given: Sequence[Any], eps: Any) -> Reading:
    """x a + c per channel for a weight, bias, mean and variance: a = weight / sqrt(var + eps), c = bias - mean a.

    Each takes at most five roundings in float64, covered by eight.
    """
    x = node.args[0]
    held = [constant(node, graph, value) for value in given]
    values = [
        np.full(graph.shape(x)[1], default) if value is None else array(value)
        for value, default in zip(held, (1.0, 0.0, 0.0, 1.0), strict=True)
    ]
    g, b, m, v = values
    if not isinstance(eps, float) or not bool((v + eps > 0).all()):
        raise Refusal(f"{module_path(node)}: {operator_name(node)} divides by a variance + eps that is not positive")
    factor = g / np.sqrt(v + eps)
    moved = m * factor
    shift = b - moved
    off = 8 * U * np.abs(factor) + 1e-300
    around = 8 * U * (np.abs(moved) + np.abs(b)) + 1e-300
    rows = {name: row.reshape(1, -1) for name, row in {
        "shift": np.nextafter(np.abs(shift) + around, np.inf),
        "absolute": np.nextafter(np.abs(moved) + np.abs(b) + around, np.inf),
    }.items()}  # fmt: skip
    evidence = {"largest": up(largest(np.abs(factor) + off))}
    for name, row in rows.items():
        evidence |= {f"{name}_l2": float(euclidean(row, axis=1)[0]), f"{name}_linf": largest(row)}
    ends = {
        "factor_low": math.nextafter(float((factor - off).min()), -math.inf),
        "factor_high": up(float((factor + off).max())),
        "shift_low": math.nextafter(float((shift - around).min()), -math.inf),
        "shift_high": up(float((shift + around).max())),
    }
    return Reading("batch-norm", [graph.name(x)], {"shape": list(graph.shape(x)), **ends}, evidence)


def extreme_of(node: Node, graph: Graph) -> Reading:
    """max and min along one axis; where the largest entry stands is no value that can be bounded."""
    axes = reduced_axes(node, graph, argument(node, 1, "dim"))
    shape = graph.shape(node.args[0])
    length = [1] if argument(node, 2, "keepdim", False) else []
    after = [*shape[: axes[0]], *length, *shape[axes[0] + 1 :]]
    return Reading("extreme", [graph.name(node.args[0])], {"shape": after, "axes": axes}, {})


FIRST: dict[Any, Reader] = {  # operators that give several values, of which the first is the one that counts
    aten._native_batch_norm_legit_no_training.default: batch_norm,
    aten.native_batch_norm.default: batch_norm,
    aten._native_batch_norm_legit.default: batch_norm,
    aten._native_batch_norm_legit.no_stats: batch_norm,
    aten.max.dim: extreme_of,
    aten.min.dim: extreme_of,
}
_other_piece = READERS[operator.getitem]


@reads(*FIRST)
def several(node: Node, graph: Graph) -> None:
    """Its first value is bounded where it is taken."""


@reads(operator.getitem)
def piece(node: Node, graph: Graph) -> Reading | None:
    source = node.args[0]
    if isinstance(source, Node) and source.target in FIRST and node.args[1] == 0:
        return FIRST[source.target](source, graph)
    return _other_piece(node, graph)


# --- Softmax ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scores:
    """What a softmax reads: a value that depends on the input, a constant mask in float64, and the entries it leaves in.

    Entries left out are 0 in the mask. Where masks replace scores, ``value`` stands for one with zeros there.

    ``lowest`` is the largest of the finite numbers that stand for minus infinity, if there are any. ``refilled`` says that the
    outermost mask puts other numbers in place of some scores.
    """

    value: Node
    mask: Tensor
    keep: Tensor
    lowest: float | None
    refilled: bool = False


IDENTITIES = (aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default)


def original(node: Any) -> Any:
    """The value behind copies and inactive dropout."""
    while isinstance(node, Node):
        idle = node.target is aten.dropout.default and not argument(node, 2, "train")
        if node.target not in IDENTITIES and not idle:
            break
        node = node.args[0]
    return node


def masking(node: Any, graph: Graph) -> Scores | None:
    """The value and the constant mask of ``value + mask``, ``masked_fill(value, ..)`` or ``where(.., value, ..)``, or None.

    A softmax of the node is one of mask + S, where S is the value, or 0 where it is replaced: no larger, and moving no more.
    """
    if not isinstance(node, Node) or node.target not in MASKING:
        return None
    shape = graph.shape(node)
    if node.target is aten.add.Tensor and argument(node, 2, "alpha", 1) == 1:
        value, mask = node.args if graph.depends(node.args[0]) else reversed(node.args)
        if graph.depends(mask) or not isinstance(mask, Node) or graph.constants[mask].dtype is torch.bool:
            return None
        added = graph.constants[mask].double()
        keep = allowed(added)
    elif node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.self, aten.where.ScalarOther):
        filled = node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
        value, where, other = node.args if filled else (node.args[1], node.args[0], node.args[2])
        if graph.depends(where) or graph.depends(other) or not graph.depends(value):
            return None
        number = graph.constants[other].double() if isinstance(other, Node) else torch.tensor(float(other)).double()  # type: ignore[arg-type]
        chosen = graph.constants[where].bool()  # type: ignore[index]
        kept = ~chosen if filled else chosen
        added = torch.where(kept, 0.0, number)  # what is replaced counts as a score of 0 under this mask
        keep = allowed(added)
    else:
        return None
    if not isinstance(value, Node) or graph.shape(value) != shape or bool((added.isnan() | (added == math.inf)).any()):
        return None
    finite = added[~keep & added.isfinite()]
    refilled = node.target is not aten.add.Tensor and bool((~kept & keep).any())
    return Scores(value, torch.where(keep, added, 0.0), keep, float(finite.max()) if finite.numel() else None, refilled)


def scores_of(value: Any, graph: Graph) -> Scores:
    """Masks taken off, one after the other.

    Raises Refusal where an outer mask puts numbers in place of what an inner one has masked: the inner one is gone there.
    """
    found = Scores(original(value), torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.bool), None)
    while (inner := masking(found.value, graph)) is not None:
        if found.refilled:
            raise Refusal(
                f"{module_path(found.value)}: a mask that refills another mask has no rule; make them one mask"
            )
        lowest = [low for low in (found.lowest, inner.lowest) if low is not None]
        mask = torch.where(found.keep & inner.keep, found.mask + inner.mask, 0.0)
        found = Scores(original(inner.value), mask, found.keep & inner.keep, max(lowest, default=None), inner.refilled)
    return found


def left_out(node: Node, graph: Graph) -> bool:
    """Whether a value holds minus infinity by a constant mask, and nothing but a softmax reads it: it has no bound itself."""
    if masking(node, graph) is None or not _only_softmax(node, graph):
        return False
    return not bool(scores_of(node, graph).keep.all())


def _only_softmax(node: Node, graph: Graph) -> bool:
    return node is not graph.program.output and all(
        user.target in SOFTMAX or (masking(user, graph) is not None and _only_softmax(user, graph))
        for user in node.users
    )


def along(mask: NDArray[Any], axis: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """A mask as rows (..., 1, keys) of a softmax over one axis; axes along which it does not change stay 1 long."""
    whole = mask.reshape((1,) * (len(shape) - mask.ndim) + mask.shape)
    spread = np.broadcast_to(whole, [shape[axis] if at == axis else n for at, n in enumerate(whole.shape)])
    return np.ascontiguousarray(np.moveaxis(spread, axis, -1)[..., None, :])


@reads(*SOFTMAX)
def softmax(node: Node, graph: Graph) -> Reading:
    shape = graph.shape(node)
    axis = argument(node, 1, "dim") % len(shape)
    last = argument(node, 2, "half_to_float" if node.target is aten._softmax.default else "dtype")
    if last not in (None, False):
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} with another precision ({last}) has no rule; leave dtype out"
        )
    if axis == 0:
        raise Refusal(f"{module_path(node)}: a softmax over the batch axis has no rule")
    scores = scores_of(node.args[0], graph)
    size = graph.bounds[graph.name(scores.value)].within(frozenset()).size
    finite, keep = constant_mask(node, scores, size, shape)
    rows, kept = along(finite, axis, shape), along(keep, axis, shape)
    top, rest = softmax_mass(rows, kept, size.to_float())
    size_of_mask = mask_size(rows, kept, size)
    evidence: dict[str, float | Up] = {"score": size, "mask_size": size_of_mask, "top": top, "rest": rest}
    return graph.reading("softmax", node, [scores.value], {"axis": axis}, evidence)


def constant_mask(
    node: Node, scores: Scores, score: Up, shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The finite part of a mask and what it leaves in. Raises Refusal where scores may outweigh a finite minus infinity."""
    if scores.lowest is not None and score >= Up.of(-MASKED / 10):
        raise Refusal(
            f"{module_path(node)}: scores may reach {score.to_float():.3g}, so that a mask of {scores.lowest:g} need not "
            "leave a key out; mask with -inf"
        )
    return array(scores.mask), scores.keep.numpy()


def mask_size(mask: NDArray[np.float64], keep: NDArray[np.bool_], score: Up) -> float:
    """The largest entry of a mask that rounding can matter to.

    A key 1000 below another, whatever the scores, has a weight below 1e-400, exact or computed: it rounds to 0.
    """
    mask, keep = np.broadcast_arrays(np.atleast_1d(mask), np.atleast_1d(keep))
    top = np.where(keep, mask, -np.inf).max(axis=-1, keepdims=True)
    heard = keep & (mask >= top - up(2 * score.to_float()) - 1000.0)
    return largest(mask[heard])


# --- Norms ------------------------------------------------------------------------------------------------------------


def reduced_axes(node: Node, graph: Graph, given: Any) -> list[int]:
    """The axes that an operator reduces; all of one sample when it names none and keeps no batch axis apart."""
    rank = len(graph.shape(node.args[0]))
    listed = [given] if isinstance(given, int) else list(given or ())
    axes = sorted({axis % rank for axis in listed}) if listed else list(range(rank))
    if 0 in axes:
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} over the batch axis has no rule; name the axes of one sample"
        )
    return axes


@reads(aten.linalg_vector_norm.default)
def norm(node: Node, graph: Graph) -> Reading:
    if (order := argument(node, 1, "ord", 2)) != 2:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} with ord = {order} has no rule; expected 2")
    axes = reduced_axes(node, graph, argument(node, 2, "dim"))
    return graph.reading("norm", node, [node.args[0]], {"axes": axes}, {})


@reads(aten.amax.default, aten.amin.default)
def extreme(node: Node, graph: Graph) -> Reading:
    return graph.reading(
        "extreme", node, [node.args[0]], {"axes": reduced_axes(node, graph, argument(node, 1, "dim"))}, {}
    )


@reads(aten.var.dim, aten.var.correction)
def variance(node: Node, graph: Graph) -> Reading:
    """Both forms: (x, axes, unbiased, keepdim) and (x, axes, *, correction, keepdim)."""
    axes = reduced_axes(node, graph, argument(node, 1, "dim"))
    correction = correction_of(node)
    count = math.prod(graph.shape(node.args[0])[axis] for axis in axes)
    if not isinstance(correction, int) or not 0 <= correction < count:
        raise Refusal(f"{module_path(node)}: a variance of {count} entries with correction {correction} has no rule")
    return graph.reading("variance", node, [node.args[0]], {"axes": axes, "correction": correction}, {})


def correction_of(node: Node) -> Any:
    if node.target is aten.var.dim:
        return int(argument(node, 2, "unbiased", True))
    found = node.kwargs.get("correction", 1)
    return 1 if found is None else found


# --- Written-out forms: y / sqrt(mean(y^2) + eps), y / max(|y|, eps) --------------------------------------------------


def written(node: Node, graph: Graph) -> Reading | None:
    """A quotient (or product with a reciprocal root) that normalises its own numerator, as the rule of the whole; or None."""
    if node.target is aten.div.Tensor:
        return _of_root(node, graph, node.args[0], node.args[1], (aten.sqrt.default, 0.5)) or _of_norm(node, graph)
    for value, factor in (node.args, tuple(reversed(node.args))):
        if (found := _of_root(node, graph, value, factor, (aten.rsqrt.default, -0.5))) is not None:
            return found
    return None


def behind(node: Any) -> Any:
    """The value behind copies and expansions."""
    node = original(node)
    while isinstance(node, Node) and node.target is aten.expand.default:
        node = original(node.args[0])
    return node


def same(a: Any, b: Any, depth: int = 4) -> bool:
    """Whether two values are computed alike from the same values: export keeps a term that is written twice twice."""
    a, b = original(a), original(b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, depth) for x, y in zip(a, b, strict=True))
    if not isinstance(a, Node) or not isinstance(b, Node):
        return type(a) is type(b) and bool(a == b)
    if a is b:
        return True
    alike = depth > 0 and a.op == b.op == "call_function" and a.target == b.target and a.kwargs == b.kwargs
    return alike and same(a.args, b.args, depth - 1)


def _calls(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.target in targets


def _number(value: Any, graph: Graph) -> float | None:
    if isinstance(value, Node):
        if graph.depends(value) or graph.constants[value].numel() != 1:
            return None
        return float(graph.constants[value])
    return float(value) if isinstance(value, (int, float)) else None


def _of_root(node: Node, graph: Graph, y: Any, factor: Any, root: tuple[Any, float]) -> Reading | None:
    y, inner = original(y), behind(factor)
    power = _calls(inner, aten.pow.Tensor_Scalar) and inner.args[1] == root[1]
    if (
        not graph.depends(y)
        or not (power or _calls(inner, root[0]))
        or not _calls(added := inner.args[0], aten.add.Tensor)
    ):
        return None
    spread, eps = added.args[0], _number(added.args[1], graph)
    if eps is None or not eps > 0 or argument(added, 2, "alpha", 1) != 1:
        return None
    centred = _centred(y, graph)
    axes = _kept_axes(spread, graph)
    if axes is None or graph.shape(y) != graph.shape(node):
        return None
    if _calls(spread, aten.mean.dim) and same(_squared(spread.args[0]), y):
        rms = centred is None or centred[1] != axes
        x = y if centred is None or rms else centred[0]
    elif _calls(spread, aten.var.dim, aten.var.correction) and correction_of(spread) == 0:
        if centred is None or centred[1] != axes or not (same(spread.args[0], y) or same(spread.args[0], centred[0])):
            return None
        rms, x = False, centred[0]
    else:
        return None
    evidence = {"weight": 1.0, "bias_l2": 0.0, "bias_linf": 0.0} | rooted(node, eps)
    return graph.reading("rms-norm" if rms else "layer-norm", node, [x], {"axes": axes}, evidence)


def _kept_axes(node: Any, graph: Graph) -> list[int] | None:
    """The axes that are reduced to length 1, if all of them are kept and none is the batch axis."""
    if not _calls(node, aten.mean.dim, aten.var.dim, aten.var.correction, aten.linalg_vector_norm.default):
        return None
    given = argument(node, 2, "dim") if node.target is aten.linalg_vector_norm.default else argument(node, 1, "dim")
    rank = len(graph.shape(node.args[0]))
    if not given or len(graph.shape(node)) != rank:
        return None
    axes = sorted({axis % rank for axis in given})
    return None if 0 in axes else axes


def _squared(node: Any) -> Any:
    """What a value is the square of, or None."""
    if _calls(node, aten.pow.Tensor_Scalar) and node.args[1] == 2:
        return original(node.args[0])
    if _calls(node, aten.square.default):
        return original(node.args[0])
    if _calls(node, aten.mul.Tensor) and same(node.args[0], node.args[1]):
        return original(node.args[0])
    return None


def _centred(y: Any, graph: Graph) -> tuple[Any, list[int]] | None:
    """(x, axes) for x - mean(x, axes), or None."""
    if not _calls(y, aten.sub.Tensor) or argument(y, 2, "alpha", 1) != 1:
        return None
    x, mean = original(y.args[0]), behind(y.args[1])
    if not _calls(mean, aten.mean.dim) or not same(mean.args[0], x):
        return None
    axes = _kept_axes(mean, graph)
    return None if axes is None else (x, axes)


def _of_norm(node: Node, graph: Graph) -> Reading | None:
    """x / clamp_min(|x|, eps), as torch.nn.functional.normalize is written."""
    x, divisor = original(node.args[0]), behind(node.args[1])
    if not _calls(divisor, aten.clamp_min.default, aten.clamp.default) or not _calls(
        length := divisor.args[0], aten.linalg_vector_norm.default
    ):
        return None
    floor, axes = _number(argument(divisor, 1, "min"), graph), _kept_axes(length, graph)
    if argument(divisor, 2, "max") is not None or argument(length, 1, "ord", 2) != 2 or not same(length.args[0], x):
        return None
    if axes is None or floor is None or not floor > 0 or graph.shape(x) != graph.shape(node):
        return None
    inverse = up(up(1.0 / floor))  # the floor itself is rounded in float32
    return graph.reading("unit", node, [x], {"axes": axes}, {"inverse_floor": inverse, "inverse_root": inverse})
