"""An exported graph made plain before it is read: operators that say nothing go, the batch axis stays in front.

At batch 1 what is put in place gives the same entries by the same sums, so that the graph stays the one that runs.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
PRODUCTS = (aten.addmm.default, aten.mm.default, aten.matmul.default)
COPIES = (aten.clone.default, aten.contiguous.default)
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
SQUEEZES = (aten.squeeze.dim, aten.squeeze.dims)
CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device)


def tidy(graph: Graph) -> None:
    """Rewrite the graph in place, where a rewrite applies."""
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it held when the graph was captured, for the one shape that is certified
        elif node.target in CASTS and _unchanged(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.softmax.int and len(node.args) > 2 and _unchanged(node, node.args[0]):
            node.args = node.args[:2]
        elif node.target in PRODUCTS and not node.kwargs:
            _unflatten(graph, node)
        elif node.target is aten.permute.default:
            _swap(node)


def _unchanged(node: Node, x: Any) -> bool:
    """Whether an operator that names a type or a device keeps those of its operand."""
    return isinstance(x, Node) and (
        (node.meta["val"].dtype, node.meta["val"].device) == (x.meta["val"].dtype, x.meta["val"].device)
    )


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _unflatten(graph: Graph, node: Node) -> None:
    """View to (tokens, features), addmm or a product, view back: one linear map of (1, ..., tokens, features).

    The Conv1D layers of GPT-2 are written so. Both are the same sum of products per entry, and both round it as a dot
    product of the same length and one sum.
    """
    bias, flat, weight = node.args if len(node.args) == 3 else (None, *node.args)
    assert isinstance(flat, Node)
    assert isinstance(weight, Node)
    if flat.target not in VIEWS or len(_shape(flat)) != 2 or len(_shape(weight)) != 2:
        return
    source = flat.args[0]
    assert isinstance(source, Node)
    before = _shape(source)
    after = (*before[:-1], _shape(node)[1])
    back = [user for user in node.users if user.target in VIEWS and _shape(user) == after]
    joined = before[0] == 1 and len(before) > 2 and _shape(flat)[1] == before[-1]
    if not joined or len(back) < len(node.users) or (isinstance(bias, Node) and len(_shape(bias)) != 1):
        return
    with graph.inserting_before(node):
        turned = graph.call_function(aten.permute.default, (weight, [1, 0]))
        whole = graph.call_function(aten.linear.default, (source, turned, bias))
    turned.meta = {**node.meta, "val": weight.meta["val"].permute(1, 0)}
    whole.meta = {**node.meta, "val": back[0].meta["val"]}
    for user in back:
        user.replace_all_uses_with(whole)
        graph.erase_node(user)
    graph.erase_node(node)
    if not flat.users:
        graph.erase_node(flat)


def _swap(node: Node) -> None:
    """A permutation to (parts, batch, ...) whose parts are all taken apart again: the same with (batch, parts, ...).

    Queries, keys and values of one joint projection are often separated so.
    """
    x: Any = node.args[0]
    order: Any = node.args[1]
    rank = len(order)
    axes = [axis % rank for axis in order]
    if rank < 3 or axes[1] != 0 or _shape(x)[0] != 1:
        return
    chain = _taken_apart(node)
    if chain is None:
        return
    node.args = (x, [0, axes[0], *axes[2:]])
    node.meta = {**node.meta, "val": node.meta["val"].transpose(0, 1)}
    for user, position in chain:
        if position is None:
            user.meta = {**user.meta, "val": _swapped(user.meta["val"])}
        else:
            args = [*user.args, *[0] * (position + 1 - len(user.args))]
            args[position] = [1] if user.target is aten.squeeze.dims else 1
            user.args = tuple(args)
            if user.target in SPLITS:
                user.meta = {**user.meta, "val": _swapped(user.meta["val"])}


def _swapped(value: object) -> object:
    """The value with its first two axes exchanged; every value of several."""
    if isinstance(value, torch.Tensor):
        return value.transpose(0, 1)
    assert isinstance(value, (list, tuple))
    return type(value)(part.transpose(0, 1) for part in value)


def _taken_apart(node: Node) -> list[tuple[Node, int | None]] | None:
    """What reads a value along its first axis alone, until that axis is gone: each reader with the place of the argument.

    None as argument stands for a reader that names no axis. None in all: something else reads the value.
    """
    found: list[tuple[Node, int | None]] = []
    for user in node.users:
        named = user.args[1] if len(user.args) > 1 else 0
        if user.target in COPIES:
            deeper = _taken_apart(user)
            place: int | None = None
        elif user.target in (aten.select.int, aten.unbind.int) and named == 0 and not user.kwargs:
            deeper, place = [], 1
        elif user.target in SPLITS and (len(user.args) < 3 or user.args[2] == 0) and not user.kwargs:
            pieces = [(piece, _taken_apart(piece)) for piece in user.users if piece.target is operator.getitem]
            if len(pieces) < len(user.users) or any(rest is None for _, rest in pieces):
                return None
            deeper = [entry for piece, rest in pieces for entry in [(piece, None), *(rest or [])]]
            place = 2
        elif user.target in SQUEEZES and named in (0, [0], (0,)) and _shape(node)[0] == 1:
            deeper, place = [], 1
        else:
            return None
        if deeper is None:
            return None
        found += [(user, place), *deeper]
    return found
