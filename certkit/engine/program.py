"""The subject of a certificate: a module as a functional graph of ATen operators, its constants folded."""

from __future__ import annotations

import logging
import operator
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_arg

from certkit.engine.tidy import tidy
from certkit.errors import NoRule, Refusal, one_line
from certkit.files import digest
from certkit.records import Arithmetic

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """An exported network for one sample: ``nodes`` depend on the input, ``constants`` do not.

    Constants were computed once in the model's own dtype and widened exactly to float64. ``sha256`` identifies the graph
    (operators, arguments, shapes) and the constants of the code (those no checkpoint holds), not the weights.
    """

    nodes: tuple[Node, ...]
    constants: dict[Node, Tensor]
    input: Node
    output: Node
    sha256: str
    dtype: torch.dtype
    shapes: dict[Node, tuple[int, ...]] = field(repr=False)

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic that the module itself runs in."""
        return "float64" if self.dtype is torch.float64 else "float32"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch axis."""
        return self.shapes[self.input][1:]


def export(module: nn.Module, input_shape: tuple[int, ...]) -> Program:
    """The module's graph at batch 1, functional, with composite operators kept whole.

    ``run_decompositions({})`` makes in-place operators visible as functional ones and keeps softmax attention, layer norm
    and linear maps as single operators. Raises Refusal for training mode, weights that are not finite, a graph that
    torch.export cannot capture, that mutates state, or that has more than one input or output.
    """
    if training := [name or "the model" for name, part in module.named_modules() if part.training]:
        raise Refusal(f"{training[0]} is in training mode; call model.eval() before certifying")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Refusal(f"weight {name!r} holds NaN or infinity; a network with such a weight has no bound")
    floating = {p.dtype for p in module.parameters() if p.is_floating_point()} or {torch.float32}
    if len(floating) > 1 or not floating <= {torch.float32, torch.float64}:
        names = ", ".join(sorted(str(dtype) for dtype in floating))
        raise Refusal(f"the weights are {names}; expected all float32 or all float64")
    dtype = floating.pop()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    silenced = logging.root.manager.disable
    try:
        logging.disable(
            logging.CRITICAL
        )  # torch logs tracebacks of what the traced code raises; one line is said below
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = torch.zeros(1, *input_shape, dtype=dtype, device=device)
            exported = torch.export.export(module, (example,), strict=False).run_decompositions({})
    except Exception as error:  # noqa: BLE001 - torch.export raises what the traced code raises, and much of its own
        reason = one_line(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 200)
        raise Refusal(
            f"torch.export cannot capture this model on an input of shape {(1, *input_shape)} ({reason}); "
            "certkit needs a forward without data-dependent branches that takes one tensor"
        ) from None
    finally:
        logging.disable(silenced)
    return _program(exported, dtype)


def _program(exported: torch.export.ExportedProgram, dtype: torch.dtype) -> Program:
    signature = exported.graph_signature
    tidy(exported.graph)
    if mutated := [spec for spec in signature.output_specs if spec.kind is not OutputKind.USER_OUTPUT]:
        raise Refusal(f"the model changes its own state ({mutated[0].target!r}) while it runs; certkit refuses that")
    values: dict[str, Tensor] = {}
    lines: list[str] = []
    for spec in signature.input_specs:
        name = spec.arg.name
        if spec.kind is InputKind.USER_INPUT:
            continue
        if spec.target in exported.state_dict:
            values[name] = exported.state_dict[spec.target]
        elif isinstance(found := exported.constants.get(str(spec.target)), Tensor):
            values[name] = found
            lines.append(
                f"{name}: {found.dtype} {digest(found.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())}"
            )
        else:
            raise Refusal(f"the model reads {name!r}, which is not a tensor; certkit refuses that")
    inputs = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name not in values]
    (output_node,) = [n for n in exported.graph.nodes if n.op == "output"]
    outputs = [n for n in output_node.args[0] if isinstance(n, Node)]
    if len(inputs) != 1 or len(outputs) != 1 or len(output_node.args[0]) != 1:
        raise Refusal(
            f"the model has {len(inputs)} inputs and {len(outputs)} outputs; expected one tensor in, logits out"
        )

    constants: dict[Node, Tensor] = {}
    native: dict[Node, Any] = {}
    dependent: list[Node] = []
    shapes: dict[Node, tuple[int, ...]] = {}
    reached = {inputs[0]}
    for node in exported.graph.nodes:
        if isinstance(value := node.meta.get("val"), Tensor):
            shapes[node] = tuple(int(n) for n in value.shape)
        if node.op == "placeholder":
            lines.append(f"{node.name}: placeholder {shapes.get(node)}")
            if node.name in values:
                native[node] = values[node.name].detach()
            continue
        if node.op == "output":
            continue
        lines.append(f"{node.name}: {node.target}{node.args}{dict(sorted(node.kwargs.items()))} {shapes.get(node)}")
        _check_operator(node)
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            dependent.append(node)
        else:
            _check_repeatable(node)
            with torch.no_grad():
                native[node] = node.target(
                    *map_arg(node.args, native.__getitem__), **map_arg(node.kwargs, native.__getitem__)
                )
    if outputs[0] not in reached:
        raise Refusal("the model's output does not depend on its input; there is nothing to certify")
    for node, value in native.items():
        if isinstance(value, Tensor):
            constants[node] = (
                value.detach().cpu().to(torch.float64) if value.is_floating_point() else value.detach().cpu()
            )
    lines.append(f"output: {outputs[0].name}")
    return Program(
        nodes=tuple(dependent),
        constants=constants,
        input=inputs[0],
        output=outputs[0],
        sha256=digest("\n".join(lines).encode()),
        dtype=dtype,
        shapes=shapes,
    )


def _check_operator(node: Node) -> None:
    if node.target is operator.getitem:
        return
    if not isinstance(node.target, torch._ops.OpOverload):
        raise NoRule(
            f"{module_path(node)}: no rule for {node.target}; certkit refuses what it does not know ({REMEDY})"
        )
    if node.target._schema.is_mutable:
        raise Refusal(
            f"{module_path(node)}: {node.target} changes a tensor in place; certkit refuses what it cannot follow"
        )


def check_value(node: Node, dtype: torch.dtype) -> None:
    """A value that depends on the input is real floating point of at least the model's own precision, and not empty."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return
    if value.dtype not in (dtype, torch.float64):
        raise Refusal(
            f"{module_path(node)}: {operator_name(node)} gives {value.dtype} in a {dtype} model; that has no rule"
        )
    if value.numel() == 0:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} gives a value without entries; that has no rule")


def _check_repeatable(node: Node) -> None:
    """A constant must be the same on every run: random operators are refused."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    inactive = {
        aten.dropout.default: (2, True),
        aten.scaled_dot_product_attention.default: (4, 0.0),
    }
    if node.target in inactive:
        position, default = inactive[node.target]
        switch = node.args[position] if len(node.args) > position else default
        if not switch:
            return
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        raise Refusal(f"{module_path(node)}: {operator_name(node)} is random; a network that draws has no certificate")


REMEDY = "replace it by covered operators, or add a rule: docs/rules.md"


def module_path(node: Node) -> str:
    """Where in the module the operator stands, as a dotted path; ``the model`` for the top level."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return (paths[-1] if paths else "") or "the model"


def operator_name(node: Node) -> str:
    """The operator as the ledger cites it: ``aten.linear.default``."""
    return "getitem" if node.target is operator.getitem else str(node.target)
