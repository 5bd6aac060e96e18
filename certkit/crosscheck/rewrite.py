"""The exported graph written again in operators that auto_LiRPA bounds correctly, and checked to be the same function.

The program is the subject of certkit's own certificate, so that both bound the same thing. Everything is float64.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn import functional as F

from certkit.engine.execute import allowed, centres, masked
from certkit.engine.program import Program, module_path, operator_name
from certkit.errors import Refusal

aten = torch.ops.aten
ALLOWED = 1e-12  # of the largest logit, or of 1 where that is larger
LARGEST_PREFIX = 2**26  # entries of the matrix that the first affine operators make together: 512 MiB

MOVES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
SAME = (
    aten.clone.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.alias.default,
    aten.detach.default,
)
TURNS = (aten.permute.default, aten.transpose.int)
AFFINE = (
    *MOVES,
    *SAME,
    *TURNS,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.neg.default,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.linear.default,
    aten.addmm.default,
    aten.mm.default,
    aten.matmul.default,
    aten.conv2d.default,
    aten.conv1d.default,
    aten.convolution.default,
    aten.mean.dim,
    aten.sum.dim_IntList,
)  # affine in the one operand that depends on the input, when all others are constant

PAIRS = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default)


class Written(nn.Module):
    """Flat inputs (B, entries) in float64 -> logits (B, classes): the program in other words.

    The affine operators that stand first are one linear layer here. auto_LiRPA's intervals know an l2 ball only where the
    input meets a linear layer; anything else there, a layer norm for instance, gets an interval of width zero.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        names = {node: f"c{i}" for i, node in enumerate(program.constants)}
        prefix, last = _prefix(program)
        self.first, self.rest = last, [node for node in program.nodes if node not in prefix]
        read = {source for node in self.rest for source in node.all_input_nodes}
        self.names = {node: name for node, name in names.items() if node in read}
        for node, name in self.names.items():
            self._keep(name, program.constants[node])
        self.extras = {node: _extras(program, node) for node in self.rest}
        for i, found in enumerate(self.extras.values()):
            for name, tensor in found.items():
                self._keep(f"{name}{i}", tensor)
        weight, bias = _matrix(program, prefix, last)
        self._keep("weight", weight)
        self._keep("bias", bias)

    def _keep(self, name: str, tensor: Tensor) -> None:
        # A parameter, where it can be one: auto_LiRPA 0.3 takes its dtype from the first of them.
        if tensor.is_floating_point():
            self.register_parameter(name, nn.Parameter(tensor.double().contiguous(), requires_grad=False))
        else:
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        shape = self.program.shapes[self.first][1:]
        y = F.linear(x, self.get_parameter("weight"), self.get_parameter("bias"))
        constants = {node: getattr(self, name) for node, name in self.names.items()}
        extras = {
            node: {name: getattr(self, f"{name}{i}") for name in found}
            for i, (node, found) in enumerate(self.extras.items())
        }
        start = y if len(shape) == 1 else y.reshape(-1, *shape)
        values = _run(self.program, self.rest, {**constants, self.first: start}, extras)
        logits: Tensor = values[self.program.output]
        return logits

    def flat(self, images: Tensor) -> Tensor:
        """Images (B, ...) as this module reads them."""
        return images.cpu().double().flatten(1)


def written(program: Program, images: Tensor) -> tuple[Written, float]:
    """The program written for auto_LiRPA, and the largest difference of its logits from the program's own on ``images``.

    Both in float64. Raises Refusal when they differ by more than 1e-12 of the largest logit (of 1 where that is larger),
    or when an operator cannot be written for a batch.
    """
    with torch.no_grad():
        model = Written(program).eval()
        own = centres(program, images)
        try:
            other = torch.cat([model(piece) for piece in torch.split(model.flat(images), 64)])
        except (RuntimeError, TypeError) as error:
            raise Refusal(f"the graph cannot be run on a batch ({str(error).splitlines()[0]})") from None
    if own.shape != other.shape:
        raise Refusal(f"the rewritten graph gives {tuple(other.shape)}, the graph itself {tuple(own.shape)}")
    difference = (own - other).abs().max().item() if own.numel() else 0.0
    limit = ALLOWED * max(1.0, own.abs().max().item())
    if not difference <= limit:  # NaN too
        raise Refusal(
            f"the graph as rewritten for auto_LiRPA differs from the graph itself by {difference:.3g} in float64, more "
            f"than {limit:.3g}; bounds of another function say nothing of this one"
        )
    return model, difference


def _prefix(program: Program) -> tuple[set[Node], Node]:
    """The chain of affine operators that the input meets first, and its last value."""
    inside = set(program.nodes)
    entries = math.prod(program.input_shape)
    if entries**2 > LARGEST_PREFIX:
        raise Refusal(f"an input of {entries} entries is too large to be written as one linear layer for auto_LiRPA")
    chain: list[Node] = []
    last = program.input
    while True:
        readers = [node for node in last.users if node in inside]
        if len(readers) != 1 or readers[0].target not in AFFINE or last is program.output:
            break
        (node,) = readers
        # One operand that depends on the input, named once and first: not x * x, and not 1 / x.
        named = [i for i, operand in enumerate(node.args) if operand is last]
        if named != [1 if node.target is aten.addmm.default else 0]:
            break
        if math.prod(program.shapes[node]) * entries > LARGEST_PREFIX:
            break
        chain.append(node)
        last = node
    return set(chain), last


def _matrix(program: Program, prefix: set[Node], last: Node) -> tuple[Tensor, Tensor]:
    """The prefix as x -> weight x + bias over flat entries; the weight is its derivative, so that nothing cancels."""
    nodes = [node for node in program.nodes if node in prefix]

    def run(flat: Tensor) -> Tensor:
        values = {**program.constants, program.input: flat.reshape(1, *program.input_shape)}
        extras = {node: _extras(program, node) for node in nodes}
        y: Tensor = _run(program, nodes, values, extras)[last].reshape(-1)
        return y

    zero = torch.zeros(math.prod(program.input_shape), dtype=torch.float64)
    columns = torch.func.vmap(lambda e: torch.func.jvp(run, (zero,), (e,))[1], chunk_size=256)(
        torch.eye(len(zero), dtype=torch.float64)
    )
    return columns.T.contiguous(), run(zero)


def _run(
    program: Program, nodes: list[Node], known: Mapping[Node, Any], extras: Mapping[Node, Mapping[str, Tensor]]
) -> dict[Node, Any]:
    """The values of ``nodes``, in order, each written as WRITTEN says or left to torch."""
    values: dict[Node, Any] = dict(known)
    shared: dict[tuple[Node, Node], Tensor] = {}
    for node in nodes:
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        extra = dict(extras[node])
        args = tuple(extra.pop(f"operand{i}_", arg) for i, arg in enumerate(args))
        if node.target in MOVES:
            values[node] = args[0].reshape(-1, *_sample(program, node)[1:])
        elif node.target in TURNS:
            _sample(program, node)
            values[node] = node.target(*args)
        elif node.target in SAME:
            values[node] = args[0]
        elif node.target in (aten.maximum.default, aten.minimum.default):
            a, b = node.args
            assert isinstance(a, Node)
            assert isinstance(b, Node)
            if (a, b) not in shared:
                shared[a, b] = torch.relu(values[a] - values[b])
            over = shared[a, b]
            values[node] = values[b] + over if node.target is aten.maximum.default else values[a] - over
        elif node.target is operator.getitem:
            values[node] = args[0][args[1]]
        elif (write := WRITTEN.get(node.target)) is not None:
            values[node] = write(*args, **kwargs, **extra)
        else:
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)
    return values


def _sample(program: Program, node: Node) -> tuple[int, ...]:
    """The shape of a value whose first axis is the batch. Raises Refusal where it is not."""
    shape = program.shapes[node]
    axes: Any = node.args[1:]
    moved = (node.target is aten.permute.default and axes[0][0] % len(shape) != 0) or (
        node.target is aten.transpose.int and 0 in (axis % len(shape) for axis in axes)
    )
    if moved or shape[0] != 1:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} moves the batch axis; auto_LiRPA needs it first")
    return shape


def _extras(program: Program, node: Node) -> dict[str, Tensor]:
    """Constants that the written form of a node reads beside its operands: computed here, as a trace would keep the
    operators that compute them, and auto_LiRPA would have to bound those too."""
    constants = program.constants
    args: Any = node.args
    sample = program.shapes.get(node, ())[1:]
    if node.target in PAIRS:
        # auto_LiRPA 0.3 mistakes a leading axis of 1 for the batch.
        given = [(i, one) for i, one in enumerate(args[:2]) if isinstance(one, Node) and one in constants]
        return {f"operand{i}_": constants[one].expand(1, *sample)[0] for i, one in given}
    if node.target is aten.linear.default and len(args) == 2 and len(program.shapes[node]) == 2:
        # auto_LiRPA 0.3 merges the margins only into a linear layer that has a bias.
        return {"zero": torch.zeros(program.shapes[node][-1], dtype=torch.float64)}
    if node.target is aten.div.Tensor and args[1] in constants:
        return {"inverse": (1.0 / constants[args[1]]).expand(1, *sample)[0]}
    if node.target is aten._native_batch_norm_legit_no_training.default:
        weight, bias, mean, var = (None if one is None else constants[one] for one in args[1:5])
        assert mean is not None
        assert var is not None
        shape = (-1, *(1,) * (len(program.shapes[args[0]]) - 2))
        eps = float(args[6])
        factor = 1.0 / torch.sqrt(var + eps) * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * factor
        whole = program.shapes[args[0]][1:]
        return {"factor": factor.reshape(shape).expand(whole), "shift": shift.reshape(shape).expand(whole)}
    if node.target is aten.scaled_dot_product_attention.default:
        return _mask(program, node)
    return {}


def _mask(program: Program, node: Node) -> dict[str, Tensor]:
    """What is added to the scores of an attention, and which keys stay, each only where it does anything."""
    parts: Any = node.args
    rows, keys = (program.shapes[part][-2] for part in parts[:2])
    given: Any = parts[3] if len(parts) > 3 else node.kwargs.get("attn_mask")
    if given is not None and given not in program.constants:
        raise Refusal(f"{module_path(node)}: an attention mask that depends on the input is not written for auto_LiRPA")
    mask = None if given is None else program.constants[given]
    causal = bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))
    scores = masked(torch.zeros(rows, keys, dtype=torch.float64), mask, causal)
    keep = allowed(scores)
    added = torch.where(keep, scores, 0.0)
    whole = (*program.shapes[node][:-2], rows, keys)
    found = {"added": added.expand(whole)[0]} if bool((added != 0).any()) else {}
    return found if bool(keep.all()) else {**found, "keep": keep.double().expand(whole)[0]}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, zero: Tensor | None = None) -> Tensor:
    if x.ndim == 2:
        return F.linear(x, weight, zero if bias is None else bias)
    y = x.matmul(weight.transpose(-2, -1))
    return y if bias is None else y + bias


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.transpose(-2, -1), bias)


def _over(a: Any, b: Any, inverse: Any = None) -> Tensor:
    """a / b; a divisor that depends on the input through its reciprocal: auto_LiRPA 0.3 takes a / sqrt(b) for a layer
    norm whatever a and b are, and its intervals of a / b are wrong where a can be negative."""
    if inverse is None:
        inverse = torch.reciprocal(b) if isinstance(b, Tensor) else 1.0 / b
    quotient: Tensor = inverse * a
    return quotient


def _root(x: Tensor) -> Tensor:
    """1 / sqrt(x) for x > 0; the lines with which auto_LiRPA 0.3 bounds sqrt from above have the wrong slope."""
    return torch.exp(-0.5 * torch.log(x))


def _sqrt(x: Tensor) -> Tensor:
    return torch.exp(0.5 * torch.log(x))


def _shares(scores: Tensor, axis: int, keep: Tensor | None = None) -> Tensor:
    """Softmax written out; keys that ``keep`` drops weigh exactly nothing. Overflows where a score exceeds 709."""
    weights = torch.exp(scores) if keep is None else torch.exp(scores) * keep
    return weights * torch.reciprocal(weights.sum(axis, keepdim=True))


def _softmax(x: Tensor, axis: int, *_: Any, **__: Any) -> Tensor:
    return _shares(x, axis)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    added: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    scores = torch.matmul(q * (1.0 / math.sqrt(q.shape[-1]) if scale is None else scale), k.transpose(-2, -1))
    return torch.matmul(_shares(scores if added is None else scores + added, -1, keep), v)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    axes = list(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * _root((centred * centred).mean(axes, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = list(range(-len(shape), 0))
    tiny = torch.finfo(torch.float64).eps if eps is None else eps
    y = x * _root((x * x).mean(axes, keepdim=True) + tiny)
    return y if weight is None else y * weight


def _batch_norm(x: Tensor, *_: Any, factor: Tensor, shift: Tensor) -> tuple[Tensor]:
    return (x * factor + shift,)


def _split(x: Tensor, sizes: int | list[int], axis: int = 0) -> list[Tensor]:
    entries = x.shape[axis]
    parts = [min(sizes, entries - i) for i in range(0, entries, sizes)] if isinstance(sizes, int) else sizes
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return [_slice(x, axis, start, start + part) for start, part in zip(starts, parts, strict=True)]


def _slice(x: Tensor, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, end, step)
    return x[tuple(index)]


WRITTEN: dict[Any, Callable[..., Any]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.div.Tensor: _over,
    aten.reciprocal.default: partial(_over, 1.0),
    aten.rsqrt.default: _root,
    aten.sqrt.default: _sqrt,
    aten.abs.default: lambda x: torch.relu(x) + torch.relu(-x),
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.slice.Tensor: _slice,
    aten.square.default: lambda x: x * x,
}
