"""ONNX files: read, checked, and run by torch operators, so that torch.export can capture them.

Weights and graph stand in one file, whose sha256 is its identity. What no table covers is refused by name: another operator
set or domain, external data, an operator or an attribute. What a file computes is compared with a runtime that others wrote.

Importers of others (onnx2torch 1.5.15, onnx2pytorch 0.6.0) were measured first: torch.export captures neither's transformers, as
they compute shapes with tensors, and both need torchvision, which does not load beside a torch without CUDA.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from certkit.data import Dataset
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError, CheckpointError, ConfigError, NoRule, Refusal, one_line
from certkit.files import digest
from certkit.foreign.operators import OPERATORS, Attributes, Value
from certkit.records import Subject

SUFFIX = ".onnx"
MAX_BYTES = 2**31  # of a protobuf message
MAX_NODES = 100_000
OPSETS = range(9, 24)
FLOATS = {1: torch.float32, 11: torch.float64}  # ONNX's numbers of types
BATCH = 64
SLACK = (
    1e-3  # of the largest logit: two programs of one network do not differ by more, whatever their rounding may allow
)


def is_file(path: Path) -> bool:
    """Whether the path is a file that is called an ONNX file."""
    return os.path.isfile(path) and Path(path).suffix.lower() == SUFFIX


def load(path: Path) -> tuple[nn.Module, Subject]:
    """The network in an ONNX file, in eval mode, with its identity. Raises CheckpointError, or NoRule for an operator."""
    raw, name = _bytes(Path(path)), one_line(Path(path).name, 120)
    model = read(raw, name)
    try:
        module = Network(model).eval()
    except CertkitError:
        raise
    except Exception as error:  # noqa: BLE001 - what onnx's checker lets through, its readers of tensors may not read
        raise CheckpointError(
            f"{name}: not a valid ONNX model ({type(error).__name__}: {one_line(error, 120)})"
        ) from None
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return module, Subject(sha256=digest(raw), architecture=f"ONNX opset {module.opset}", parameters=parameters)


def compare(path: Path, module: nn.Module, data: Dataset) -> float:
    """The largest difference on the samples between the module and ONNX's own runtime (onnxruntime, else onnx.reference).

    Both are float32 programs of one function, each off by at most the error E that the ledger proves for that arithmetic, so
    that they may differ by 2 E, and by no more than a thousandth of the largest logit. Raises Refusal where they do.
    """
    program = export(module, tuple(data.images.shape[1:]))
    proved = Interpreter(program)("l2", data.box, arithmetic=program.arithmetic).pairs.error.to_float()
    run = _refusing(runtime, "load")(_bytes(Path(path)))
    largest, scale = 0.0, 0.0
    for piece in torch.split(data.images, BATCH if getattr(module, "batched", True) else 1):
        with torch.no_grad():
            own = module(piece.to(program.dtype)).double().numpy()
        theirs = np.asarray(_refusing(run, "run")(piece.to(program.dtype).numpy()), dtype=np.float64)
        if own.shape != theirs.shape:
            raise Refusal(f"the ONNX runtime gives {theirs.shape}, certkit's import {own.shape}; no certificate")
        largest = max(largest, float(np.abs(own - theirs).max(initial=0.0)))
        scale = max(scale, float(np.abs(theirs).max(initial=0.0)))
    if not largest <= (allowed := min(proved, SLACK * scale)):
        raise Refusal(
            f"the ONNX runtime and certkit's import of the file differ by {largest:.3g}, more than rounding explains "
            f"({allowed:.3g}); an operator is read differently, so no certificate"
        )
    return largest


def _refusing(call: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The call, with whatever a runtime of others raises as a Refusal."""

    def guarded(given: Any) -> Any:
        try:
            return call(given)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises classes of its own
            raise Refusal(
                f"the ONNX runtime cannot {what} this file ({one_line(str(error).strip(), 200)}), so that nobody can compare what "
                "certkit reads in it; no certificate"
            ) from None

    return guarded


def _bytes(path: Path) -> bytes:
    name = one_line(path.name, 120)
    try:
        if path.stat().st_size >= MAX_BYTES:
            raise CheckpointError(f"{name}: {path.stat().st_size} bytes; an ONNX file has less than 2 GiB")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror or error})") from None


def runtime(raw: bytes) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A program of others that runs the file on one array."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(raw)
        held = {tensor.name for tensor in evaluator.proto_.graph.initializer}
        (name,) = [name for name in evaluator.input_names if name not in held]
        return lambda x: evaluator.run(None, {name: x})[0]  # type: ignore[index]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(raw, settings, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    return lambda x: session.run(None, {given: x})[0]


def read(raw: bytes, name: str) -> Any:
    """The ModelProto of a file's bytes, once it is one graph of known operators. Raises CheckpointError naming the fault."""
    try:
        import onnx
    except ImportError:
        raise ConfigError("an ONNX file needs onnx and onnxruntime: pip install 'certkit[onnx]'") from None
    try:
        model = onnx.ModelProto.FromString(raw)
    except Exception as error:  # noqa: BLE001 - protobuf raises its own
        raise CheckpointError(f"{name}: not an ONNX file ({one_line(error, 120)})") from None
    graph = model.graph
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if versions.keys() - {"ai.onnx"} or model.functions:
        others = ", ".join(sorted(versions.keys() - {"ai.onnx"})) or "functions of its own"
        raise CheckpointError(
            f"{name}: uses {one_line(others, 120)}; certkit reads the operators of ai.onnx only (onnx.inliner removes functions)"
        )
    if len(model.opset_import) != len(versions):
        raise CheckpointError(f"{name}: names its operator set {len(model.opset_import)} times; expected one version")
    if versions.get("ai.onnx") not in OPSETS:
        raise CheckpointError(
            f"{name}: operator set {versions.get('ai.onnx')}; certkit reads {OPSETS[0]} to {OPSETS[-1]}; "
            "onnx.version_converter translates"
        )
    if len(graph.node) > MAX_NODES:
        raise CheckpointError(f"{name}: {len(graph.node)} operators; certkit reads at most {MAX_NODES}")
    if graph.sparse_initializer or model.training_info:
        raise CheckpointError(f"{name}: holds sparse weights or a training graph, which certkit does not read")
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    if outside := [t.name for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]:
        raise CheckpointError(
            f"{name}: tensor {one_line(outside[0], 120)!r} lies in another file; save the model in one file "
            "(onnx.save_model(..., save_as_external_data=False))"
        )
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 - the checker raises its own
        raise CheckpointError(f"{name}: not a valid ONNX model ({one_line(str(error).strip(), 200)})") from None
    return model


class Network(nn.Module):
    """The graph of an ONNX file with one input and one output; floating weights are parameters, all else is folded.

    Values that depend on neither input nor weights, such as shapes, are arrays and are computed by onnx's own reference.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        from onnx import numpy_helper

        graph = model.graph
        (self.opset,) = (entry.version for entry in model.opset_import)
        self._constants: dict[str, NDArray[Any]] = {}
        self._weights: dict[str, str] = {}
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            if tensor.data_type in FLOATS and (array.size != 1 or array.ndim > 1):
                if not np.isfinite(array).all():
                    raise CheckpointError(f"tensor {one_line(tensor.name, 120)!r} holds NaN or infinity")
                self._weights[tensor.name] = f"weight{len(self._weights)}"
                parameter = nn.Parameter(torch.from_numpy(array.copy()), requires_grad=False)
                self.register_parameter(self._weights[tensor.name], parameter)
            else:
                self._constants[tensor.name] = array
        held = self._constants.keys() | self._weights.keys()
        inputs = [value for value in graph.input if value.name not in held]
        if len(inputs) != 1 or len(graph.output) != 1:
            raise Refusal(
                f"the model has {len(inputs)} inputs and {len(graph.output)} outputs; expected one tensor in, logits out"
            )
        kind = inputs[0].type.tensor_type
        if kind.elem_type not in FLOATS:
            raise Refusal("the model's input is not float32 or float64; certkit certifies neither integers nor halves")
        self._input, self._output = inputs[0].name, graph.output[0].name
        first = kind.shape.dim[0] if kind.HasField("shape") and kind.shape.dim else None
        self.batched = first is None or not first.HasField("dim_value")
        if first is not None and not self.batched and first.dim_value != 1:
            raise Refusal(
                f"the model reads {first.dim_value} samples at once; export it for one sample, or for any number of them"
            )
        self._steps = []
        for place, node in enumerate(graph.node):
            label = one_line(node.name or f"{node.op_type}{place}", 80).strip("/").replace("/", "-").replace(".", "-")
            part = Operator(node, self.opset, label)
            key = label if label and not hasattr(self, label) else f"{node.op_type}{place}"
            while hasattr(
                self, key
            ):  # a file may call another node so, and a module of the same name would replace that one
                key += "-"
            self.add_module(key, part)
            self._steps.append((key, tuple(node.input), tuple(node.output)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch; one sample at a time where the file fixes its batch."""
        if self.batched or len(x) == 1:
            return self._run(x)
        return torch.cat([self._run(piece) for piece in torch.split(x, 1)])

    def _run(self, x: Tensor) -> Tensor:
        values: dict[str, Value] = {"": None, self._input: x, **self._constants}
        values |= {name: getattr(self, held) for name, held in self._weights.items()}
        for key, inputs, outputs in self._steps:
            found = getattr(self, key)(*(values[name] for name in inputs))
            values.update(zip(outputs, found, strict=False))
            if sum(value.numel() for value in found if isinstance(value, Tensor)) > MAX_ENTRIES * len(x):
                raise CheckpointError(f"{key}: makes a value of more than {MAX_ENTRIES} entries of one sample")
        logits = values[self._output]
        if not isinstance(logits, Tensor):
            raise Refusal("the model's output does not depend on its input; there is nothing to certify")
        return logits


class Operator(nn.Module):
    """One node: by torch where a tensor is among its inputs, by onnx's reference where all are arrays."""

    def __init__(self, node: Any, opset: int, label: str) -> None:
        super().__init__()
        from onnx import helper

        self.node, self.opset, self.label = node, opset, label
        if node.op_type not in OPERATORS and node.op_type not in FOLDED:
            raise NoRule(
                f"{label}: no rule for ONNX operator {one_line(node.op_type, 60)}; certkit refuses what it cannot bound. To "
                "certify this model, replace it by covered operators, or add it to certkit/foreign/operators/"
            )
        if (
            "" in node.output
        ):  # an input that is left out is called so as well; onnxruntime 1.32 crashes on such a Split
            raise NoRule(f"{label}: ONNX operator {node.op_type} with an output that is left out has no rule")
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._reference: Any = None

    def forward(self, *inputs: Value) -> Sequence[Value]:
        if self.node.op_type == "Shape" and isinstance(inputs[0], Tensor):
            start, end = self.attributes.get("start", 0), self.attributes.get("end")
            return (np.array([int(n) for n in inputs[0].shape], dtype=np.int64)[start:end],)
        if not any(isinstance(value, Tensor) for value in inputs):
            return self._folded(inputs)
        if self.node.op_type not in OPERATORS:
            raise NoRule(
                f"{self.label}: no rule for ONNX operator {self.node.op_type} on values that depend on the input"
            )
        if self.node.op_type in WEIGHTED:
            inputs = tuple(torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for v in inputs)
        attributes = Attributes(self.label, self.node.op_type, dict(self.attributes), len(self.node.output), self.opset)
        found = OPERATORS[self.node.op_type](attributes, *inputs)
        attributes.finish()
        outputs = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        if len(outputs) != len(self.node.output):
            raise NoRule(
                f"{self.label}: ONNX operator {self.node.op_type} with {len(self.node.output)} outputs has no rule"
            )
        return outputs

    def _folded(self, inputs: Sequence[Value]) -> Sequence[Value]:
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator

        if self.node.op_type in UNFOLDED:
            raise NoRule(f"{self.label}: no rule for ONNX operator {self.node.op_type} on constants alone")
        if not entries(self.node.op_type, inputs) <= MAX_ENTRIES:
            raise CheckpointError(
                f"{self.label}: {self.node.op_type} makes a constant of more than {MAX_ENTRIES} entries"
            )
        feeds = {name: value for name, value in zip(self.node.input, inputs, strict=True) if name}
        if self._reference is None:
            given, made = ([helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names if name]
                           for names in (dict.fromkeys(self.node.input), self.node.output))  # fmt: skip
            alone = helper.make_graph([self.node], "constant", given, made)
            opsets = [helper.make_opsetid("", self.opset)]  # a node alone would be read by the newest set
            self._reference = ReferenceEvaluator(helper.make_model(alone, opset_imports=opsets))
        found: Sequence[Value] = self._reference.run(None, feeds)
        return found


# Operators that are met where shapes and masks are made, and run there by onnx's own reference.
FOLDED = frozenset([
    "And", "Ceil", "Constant", "ConstantOfShape", "CumSum", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual",
    "IsInf", "IsNaN", "Less", "LessOrEqual", "Mod", "NonZero", "Not", "Or", "Range", "ScatterND", "Shape", "Size", "Trilu",
])  # fmt: skip
WEIGHTED = frozenset(["BatchNormalization", "Conv", "Gemm", "InstanceNormalization", "LayerNormalization", "PRelu"])
UNFOLDED = WEIGHTED - {"Gemm"} | {"AveragePool", "GroupNormalization", "MaxPool"}  # nobody writes a shape or a mask so
MAX_ENTRIES = 2**26  # of an array that is folded, and of a value of one sample


def entries(operator: str, inputs: Sequence[Value]) -> int:
    """How many entries an operator on arrays can give: what a small file could ask memory for."""
    arrays = [np.asarray(value) for value in inputs if value is not None]
    numbers = [[float(n) for n in array.reshape(-1)[:64]] for array in arrays]
    if operator in ("ConstantOfShape", "Expand", "Tile", "Reshape"):
        own = math.prod(arrays[0].shape) if operator in ("Expand", "Tile") else 1
        return int(own * math.prod(max(n, 1.0) for n in numbers[operator != "ConstantOfShape"]))
    if operator == "Range":
        start, end, step = (numbers[at][0] for at in range(3))
        return int(abs((end - start) / step)) if step else 0
    if operator == "Pad":
        return math.prod(int(size + 2 * max(map(abs, numbers[1]))) for size in arrays[0].shape)
    if operator in ("MatMul", "Gemm", "Gather"):
        return math.prod(array.size for array in arrays[:2])
    if operator == "Concat":
        return sum(array.size for array in arrays)
    try:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    except ValueError:
        return sum(array.size for array in arrays)
