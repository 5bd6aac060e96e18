"""The centre of a certificate: the exported graph executed in float64, sample by sample, by arithmetic that is known.

Attention and convolutions are written out, views are reshapes and clones do nothing, so that the operations are those whose rounding the
rules charge for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from certkit.engine.direct import CONVOLUTIONS, convolve
from certkit.engine.program import Program

aten = torch.ops.aten
CHUNK = 64
MASKING = (
    aten.add.Tensor,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.self,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
)
MASKED = -1e30  # additive masks at or below this drop a key, as float32's lowest number does

Attend = Callable[[Node, Tensor], Tensor]  # from softmax weights (..., rows, keys) to the weights that are used instead


def allowed(mask: Tensor) -> Tensor:
    """Which keys an additive or boolean mask leaves in."""
    return mask if mask.dtype is torch.bool else mask > MASKED


See = Callable[[Node, Tensor], None]  # is shown each value of the graph
Watch = dict[str, tuple[Tensor, Tensor]]  # by node name: the logits q·k, and those with the mask


def masked(scores: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Scores with an additive mask, −inf for keys that are left out."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is None:
        return scores
    if mask.dtype is not torch.bool:
        scores = scores + torch.where(allowed(mask), mask, 0.0)
    return scores.masked_fill(~allowed(mask), -math.inf)


def run(
    program: Program, x: Tensor, attend: Attend | None = None, watch: Watch | None = None, see: See | None = None
) -> Tensor:
    """The logits of one sample (batch axis of 1) in float64. ``watch`` receives what each attention computes.

    ``see`` is shown every tensor in turn, input included, while all that later operators read is still held.
    """

    def attention(node: Node, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
                  is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False) -> Tensor:  # fmt: skip
        content = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
        scores = masked(content, attn_mask, is_causal)
        if watch is not None:
            watch[node.name] = (content, scores)
        weights = torch.softmax(scores, dim=-1)
        return (weights if attend is None else attend(node, weights)) @ v

    values: dict[Node, Any] = {**program.constants, program.input: x}
    unread = {node: len(node.users) for node in (program.input, *program.nodes)}
    finite = torch.ones((), dtype=torch.bool)
    if see is not None:
        see(program.input, x)
    for node in program.nodes:
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        if node.target is aten.scaled_dot_product_attention.default:
            values[node] = attention(node, *args, **kwargs)
        elif node.target in (aten.view.default, aten._unsafe_view.default, aten.reshape.default):
            values[node] = torch.reshape(args[0], args[1])
        elif node.target in CONVOLUTIONS:
            values[node] = convolve(node.target, *args)
        elif node.target is aten.group_norm.default:
            values[node] = group_norm(*args, **kwargs)
        elif node.target in (aten.clone.default, aten.contiguous.default, aten.dropout.default):
            values[node] = args[0]
        else:
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
        finite = finite & _in_range(node, values[node])
        if see is not None and isinstance(values[node], Tensor):
            see(node, values[node])
        for operand in node.all_input_nodes:
            if operand in unread:
                unread[operand] -= 1
                if not unread[operand] and operand is not program.output:
                    del values[operand]
    result = values[program.output]
    assert isinstance(result, Tensor)
    # An overflow on the way can end in a finite number that means nothing, and no rule charges for it.
    return torch.where(finite, result, math.nan) if result.is_floating_point() else result


def _in_range(node: Node, value: Any) -> Tensor:
    """Whether a value holds no NaN and no infinity, but for the minus infinity of a mask."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return torch.ones((), dtype=torch.bool)
    masks = node.target in MASKING
    return ((value < math.inf) & ((value > -math.inf) | (masks & (value == -math.inf)))).all()


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Group norm in two passes: torch's own takes a difference of squares for some layouts, which errs by far more."""
    y = x.reshape(x.shape[0], groups, -1)
    centred = y - y.mean(-1, keepdim=True)
    normal = (centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()).reshape(x.shape)
    channels = (1, -1, *(1,) * (x.ndim - 2))
    scaled = normal if weight is None else normal * weight.reshape(channels)
    return scaled if bias is None else scaled + bias.reshape(channels)


def centres(program: Program, images: Tensor, attend: Attend | None = None) -> Tensor:
    """Logits (N, classes) in float64 of images (N, ...), each widened exactly."""

    def one(image: Tensor) -> Tensor:
        return run(program, image.unsqueeze(0), attend).squeeze(0)

    with torch.no_grad():
        pieces = [torch.func.vmap(one)(piece.to(torch.float64)) for piece in torch.split(images.cpu(), CHUNK)]
    return torch.cat(pieces)


def attention_nodes(program: Program) -> list[Node]:
    """The softmax attention operators of the graph, in execution order."""
    return [node for node in program.nodes if node.target is aten.scaled_dot_product_attention.default]


@dataclass(slots=True)
class Statistics:
    """Per attention the mean softmax weights over some images; over all, the largest spread of logits within one row.

    ``content_spread`` leaves the constant mask out: it is what the input itself can tell two keys apart by.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    spread: float = 0.0
    content_spread: float = 0.0


def attention_statistics(program: Program, images: Tensor) -> Statistics:
    """Run the images through the graph in float64 and watch its attention."""
    found = Statistics()

    def one(image: Tensor) -> Watch:
        seen: Watch = {}
        run(program, image.unsqueeze(0), watch=seen)
        return seen

    with torch.no_grad():
        for piece in torch.split(images.cpu(), CHUNK):
            for name, (content, scores) in torch.func.vmap(one)(piece.to(torch.float64)).items():
                weights = torch.softmax(scores, dim=-1).sum(0) / len(images)
                found.weights[name] = found.weights[name] + weights if name in found.weights else weights
                visible = ~torch.isinf(scores)
                found.spread = max(found.spread, _spread(scores, visible))
                found.content_spread = max(found.content_spread, _spread(content, visible))
    return found


def _spread(scores: Tensor, visible: Tensor) -> float:
    """The largest difference of two visible scores in one row."""
    high = scores.masked_fill(~visible, -math.inf).amax(-1)
    low = scores.masked_fill(~visible, math.inf).amin(-1)
    return float((high - low).max())
