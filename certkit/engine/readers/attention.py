"""Readers of softmax attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from certkit.bounds.number import Up
from certkit.bounds.rules.attention import largest_score
from certkit.bounds.softmax import softmax_mass
from certkit.bounds.spectral import largest, up
from certkit.engine.execute import MASKED, allowed
from certkit.engine.program import module_path
from certkit.engine.readers.table import argument, reads
from certkit.engine.reading import Graph, Reading, array
from certkit.errors import Refusal

aten = torch.ops.aten


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
