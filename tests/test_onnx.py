"""ONNX files: read operator by operator, compared with a runtime of others, certified like the module they came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import certkit
from certkit.commands.loading import compare_runtime, load_model
from certkit.data import Dataset
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CheckpointError, NoRule, Refusal
from certkit.files import digest
from certkit.foreign import onnx as foreign
from certkit.foreign.operators import OPERATORS

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
from onnx import TensorProto, helper, numpy_helper

SHAPE = (1, 8, 8)


class Small(nn.Module):
    """A vision transformer as it is usually written: one projection, permuted to (3, batch, heads, tokens, features)."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.patch = heads, nn.Conv2d(1, width, 4, 4)
        self.first, self.place = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.place
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        x = x + self.down(F.gelu(self.up(x)))
        logits: Tensor = self.head(x[:, 0])
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3),
    ),
    "vit": Small,
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def written(path: Path, module: nn.Module, *, batched: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.rand(1, *SHAPE),), str(path), dynamo=False, opset_version=17, input_names=["x"],
            dynamic_axes={"x": {0: "n"}} if batched else None,
        )  # fmt: skip
    return path


def samples(count: int = 6) -> Dataset:
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Dataset.of(images, torch.arange(count) % 3, name="random", classes=["a", "b", "c"])


def graph(*nodes: Any, weights: dict[str, Any] | None = None, opset: int = 17, **changes: Any) -> Any:
    """A model x (n, 4) -> y of these nodes."""
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", changes.pop("kind", TensorProto.FLOAT), ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def put(path: Path, model: Any) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@every_network
@pytest.mark.parametrize("batched", [True, False], ids=["any batch", "batch 1"])
def test_a_file_gives_the_logits_of_the_module_that_wrote_it(tmp_path: Path, name: str, batched: bool) -> None:
    module, data = network(name), samples()
    path = written(tmp_path / "net.onnx", module, batched=batched)
    found, subject = load_model(path)
    with torch.no_grad():
        assert torch.allclose(found(data.images), module(data.images), atol=1e-5)
    assert foreign.compare(path, found, data) < 1e-5
    assert subject.sha256 == digest(path.read_bytes())
    assert subject.architecture == "ONNX opset 17"


@every_network
def test_a_file_is_certified_as_well_as_the_module(tmp_path: Path, name: str) -> None:
    module = network(name)
    found, subject = load_model(written(tmp_path / "net.onnx", module))
    certificate = certkit.certify(found, samples(), eps=["0.001"], out=tmp_path / "out", subject=subject)
    direct = Interpreter(export(module, SHAPE))("l2", (0.0, 1.0)).pairs.gain[0][1].to_float()
    # Attention comes written out in a file, whose bound is a few times that of the whole operator.
    assert direct * 0.99 <= certificate.pair_gain[0][1] <= direct * (10 if name == "vit" else 1.01)


def test_the_gain_of_a_linear_file_is_exact(tmp_path: Path) -> None:
    weight = np.array([[3.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]], dtype=np.float32)
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    found, _ = load_model(put(tmp_path / "a.onnx", graph(gemm, weights={"w": weight})))
    gain = Interpreter(export(found, (4,)))("l2", (0.0, 1.0)).pairs.gain[0][1].to_float()
    assert 5.0 <= gain <= 5.0 + 1e-9


ALONE: dict[str, tuple[Any, dict[str, Any]]] = {
    "Add": (helper.make_node("Add", ["x", "w"], ["y"]), {"w": np.ones(4, np.float32)}),
    "Clip": (helper.make_node("Clip", ["x", "a", "b"], ["y"]), {"a": np.float32(0.2), "b": np.float32(0.6)}),
    "Concat": (helper.make_node("Concat", ["x", "x"], ["y"], axis=1), {}),
    "Div": (helper.make_node("Div", ["x", "w"], ["y"]), {"w": np.float32(3.0)}),
    "Dropout": (helper.make_node("Dropout", ["x"], ["y"]), {}),
    "Elu": (helper.make_node("Elu", ["x"], ["y"], alpha=0.5), {}),
    "Erf": (helper.make_node("Erf", ["x"], ["y"]), {}),
    "Gather": (helper.make_node("Gather", ["x", "i"], ["y"], axis=1), {"i": np.array([2, -1])}),
    "Gemm": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0),
        {"w": np.arange(12, dtype=np.float32).reshape(4, 3), "b": np.ones(3, np.float32)},
    ),
    "HardSigmoid": (helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.3), {}),
    "LayerNormalization": (
        helper.make_node("LayerNormalization", ["x", "w"], ["y"], epsilon=0.1),
        {"w": np.arange(4, dtype=np.float32)},
    ),
    "LeakyRelu": (helper.make_node("LeakyRelu", ["x"], ["y"]), {}),
    "MatMul": (helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": np.arange(8, dtype=np.float32).reshape(4, 2)}),
    "Max": (helper.make_node("Max", ["x", "w"], ["y"]), {"w": np.full(4, 0.5, np.float32)}),
    "Min": (helper.make_node("Min", ["x", "w"], ["y"]), {"w": np.float32(0.5)}),
    "Mul": (helper.make_node("Mul", ["w", "x"], ["y"]), {"w": np.array([[1, 2, 3, 4]], np.float32)}),
    "Pad": (
        helper.make_node("Pad", ["x", "p", "v"], ["y"]),
        {"p": np.array([0, 1, 0, 2]), "v": np.array([0.5], np.float32)},
    ),
    "PRelu": (helper.make_node("PRelu", ["x", "w"], ["y"]), {"w": np.array([0.2], np.float32)}),
    "Pow": (helper.make_node("Pow", ["x", "w"], ["y"]), {"w": np.float32(2.0)}),
    "ReduceMean": (helper.make_node("ReduceMean", ["x"], ["y"], axes=[1]), {}),
    "ReduceSum": (helper.make_node("ReduceSum", ["x", "a"], ["y"]), {"a": np.array([-1])}),
    "Reshape": (helper.make_node("Reshape", ["x", "s"], ["y"]), {"s": np.array([0, 2, -1])}),
    "Slice": (
        helper.make_node("Slice", ["x", "a", "b", "c", "d"], ["y"]),
        {"a": np.array([-4]), "b": np.array([2**31]), "c": np.array([1]), "d": np.array([2])},
    ),
    "Softmax": (helper.make_node("Softmax", ["x"], ["y"]), {}),
    "Sub": (helper.make_node("Sub", ["w", "x"], ["y"]), {"w": np.float32(1.0)}),
    "Transpose": (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1]), {}),
    "Unsqueeze": (helper.make_node("Unsqueeze", ["x", "a"], ["y"]), {"a": np.array([-1])}),
    "Where": (
        helper.make_node("Where", ["c", "x", "w"], ["y"]),
        {"c": np.array([[True, False, True, False]]), "w": np.float32(0.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("operator", ALONE)
def test_an_operator_means_what_the_reference_of_onnx_computes(operator: str) -> None:
    from onnx.reference import ReferenceEvaluator

    node, weights = ALONE[operator]
    model = graph(node, weights=weights)
    x = np.random.default_rng(0).random((3, 4)).astype(np.float32) - np.float32(0.3)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    module = foreign.Network(foreign.read(model.SerializeToString(), "a.onnx")).eval()
    with torch.no_grad():
        found = module(torch.from_numpy(x)).numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_no_node_is_taken_for_another_of_its_name() -> None:
    nodes = [
        helper.make_node("LeakyRelu", ["x"], ["a"], alpha=0.5, name="LeakyRelu1"),
        helper.make_node("LeakyRelu", ["a"], ["y"], alpha=0.25),
    ]
    raw = graph(*nodes).SerializeToString()
    x = np.array([[-1.0, 2.0, -3.0, 4.0]], np.float32)
    with torch.no_grad():
        found = foreign.Network(foreign.read(raw, "a.onnx")).eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, foreign.runtime(raw)(x))


OLD: dict[str, tuple[Any, dict[str, Any]]] = {
    "Clip": (helper.make_node("Clip", ["x"], ["y"], min=0.2, max=0.6), {}),
    "Dropout": (helper.make_node("Dropout", ["x"], ["y"], ratio=0.5), {}),
    "Pad": (helper.make_node("Pad", ["x"], ["y"], pads=[0, 1, 0, 2]), {}),
    "ReduceSum": (helper.make_node("ReduceSum", ["x"], ["y"], axes=[1]), {}),
    "Slice": (helper.make_node("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[1]), {}),
    "Softmax": (helper.make_node("Softmax", ["x"], ["y"]), {}),
    "Unsqueeze": (helper.make_node("Unsqueeze", ["x"], ["y"], axes=[1]), {}),
}


@pytest.mark.parametrize("operator", OLD)
def test_older_operator_sets_mean_what_the_runtime_computes(operator: str) -> None:
    node, weights = OLD[operator]
    raw = graph(node, weights=weights, opset=9).SerializeToString()
    x = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    with torch.no_grad():
        found = foreign.Network(foreign.read(raw, "a.onnx")).eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, foreign.runtime(raw)(x), rtol=1e-6, atol=1e-6)


def test_every_operator_of_the_cases_is_in_the_table() -> None:
    assert ALONE.keys() <= OPERATORS.keys()


# --- what is refused


def relu(**given: Any) -> Any:
    return helper.make_node("Relu", ["x"], ["y"], **given)


def external() -> Any:
    model = graph(helper.make_node("Add", ["x", "w"], ["y"]), weights={"w": np.ones(4, np.float32)})
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].ClearField("raw_data")
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    return model


def foreign_domain() -> Any:
    model = graph(relu())
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def not_finite() -> Any:
    return graph(helper.make_node("Add", ["x", "w"], ["y"]), weights={"w": np.array([1, np.nan, 0, 0], np.float32)})


def two_outputs() -> Any:
    model = graph(relu(), helper.make_node("Neg", ["x"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]))
    return model


def two_versions() -> Any:
    model = graph(relu())
    model.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    return model


def unknown_type() -> Any:
    model = graph(helper.make_node("Add", ["x", "w"], ["y"]), weights={"w": np.ones(4, np.float32)})
    model.graph.initializer[0].data_type = 77
    return model


def of_four() -> Any:
    model = graph(relu())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an old operator set": (
        lambda: graph(relu(), opset=6),
        "a.onnx: operator set 6; certkit reads 9 to 23; onnx.version_converter translates",
    ),
    "another domain": (
        foreign_domain,
        "a.onnx: uses com.microsoft; certkit reads the operators of ai.onnx only (onnx.inliner removes functions)",
    ),
    "external data": (
        external,
        (
            "a.onnx: tensor 'w' lies in another file; save the model in one file "
            "(onnx.save_model(..., save_as_external_data=False))"
        ),
    ),
    "an unknown operator": (
        lambda: graph(helper.make_node("Atan", ["x"], ["y"], name="/head/Atan")),
        (
            "head-Atan: no rule for ONNX operator Atan; certkit refuses what it cannot bound. To certify this model, "
            "replace it by covered operators, or add it to certkit/foreign/operators/"
        ),
    ),
    "an output without a name": (
        lambda: graph(helper.make_node("Split", ["x"], ["", "y"], axis=1)),
        "Split0: ONNX operator Split with an output that is left out has no rule",
    ),
    "weights that are not finite": (not_finite, "tensor 'w' holds NaN or infinity"),
    "two versions of its operators": (two_versions, "a.onnx: names its operator set 2 times; expected one version"),
    "a type that is none": (unknown_type, "a.onnx: not a valid ONNX model (KeyError: 77)"),
    "four samples at once": (
        of_four,
        "the model reads 4 samples at once; export it for one sample, or for any number of them",
    ),
    "two outputs": (two_outputs, "the model has 1 inputs and 2 outputs; expected one tensor in, logits out"),
    "integers in": (
        lambda: graph(relu(), kind=TensorProto.INT64),
        "the model's input is not float32 or float64; certkit certifies neither integers nor halves",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_is_refused_with_one_line(tmp_path: Path, what: str) -> None:
    made, message = REFUSED[what]
    path = put(tmp_path / "a.onnx", made())
    with pytest.raises((CheckpointError, Refusal)) as caught:
        load_model(path)
    assert str(caught.value) == message


def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for raw in (b"", b"PK\x03\x04", b"\x80\x02}q", b"not a model at all"):
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"^a\.onnx: "):
            load_model(path)


BOMBS: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "ConstantOfShape": (
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])],
        {"s": np.array([2**20, 2**20])},
        "ConstantOfShape0: ConstantOfShape makes a constant of more than 67108864 entries",
    ),
    "Concat": (
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Concat", ["c"] * 80, ["d"], axis=0),
         helper.make_node("Add", ["x", "d"], ["y"])],
        {"s": np.array([2**20])},
        "Concat1: Concat makes a constant of more than 67108864 entries",
    ),
    "Gather": (
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Gather", ["c", "i"], ["d"]),
         helper.make_node("Add", ["x", "d"], ["y"])],
        {"s": np.array([1, 2**16]), "i": np.zeros(2**12, np.int64)},
        "Gather1: Gather makes a constant of more than 67108864 entries",
    ),
    "MaxPool": (
        [helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[1], pads=[2**40, 0]),
         helper.make_node("Add", ["x", "d"], ["y"])],
        {"c": np.ones((1, 1, 1), np.int8)},
        "MaxPool0: no rule for ONNX operator MaxPool on constants alone",
    ),
    "Pad": (
        [helper.make_node("Pad", ["x", "p"], ["y"])],
        {"p": np.array([0, 0, 0, 2**27])},
        "Pad0: makes a value of more than 67108864 entries of one sample",
    ),
}  # fmt: skip


@pytest.mark.parametrize("operator", BOMBS)
def test_a_value_that_would_fill_the_memory_is_refused(tmp_path: Path, operator: str) -> None:
    nodes, weights, message = BOMBS[operator]
    module, _ = load_model(put(tmp_path / "a.onnx", graph(*nodes, weights=weights)))
    with pytest.raises((CheckpointError, NoRule)) as caught, torch.device("meta"):
        module(torch.empty(1, 4, device="meta"))
    assert str(caught.value) == message


def test_an_attribute_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Pad", ["x", "p"], ["y"], mode="reflect")
    module, _ = load_model(put(tmp_path / "a.onnx", graph(node, weights={"p": np.array([0, 1, 0, 1])})))
    with pytest.raises(NoRule) as caught:
        module(torch.rand(1, 4))
    assert str(caught.value) == "Pad0: ONNX operator Pad with mode = reflect has no rule"


def test_shapes_that_depend_on_the_input_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["w", "x"], ["y"])]
    module, _ = load_model(put(tmp_path / "a.onnx", graph(*nodes, weights={"w": np.ones((4, 4), np.float32)})))
    with pytest.raises(Refusal) as caught:
        module(torch.rand(1, 4))
    assert str(caught.value) == "Gather0: the indices of ONNX operator Gather depends on the input; that has no rule"


MIXED = {
    "types that do not go together": graph(
        helper.make_node("Add", ["x", "w"], ["y"]), weights={"w": np.ones((1, 4), np.float16)}
    ),
    "no kernel": graph(helper.make_node("Squeeze", ["x", "a"], ["y"]), weights={"a": np.array([1])}),
}


@pytest.mark.parametrize("what", MIXED)
def test_a_file_that_the_runtime_cannot_run_is_refused(tmp_path: Path, what: str) -> None:
    path = put(tmp_path / "a.onnx", MIXED[what])
    module, _ = load_model(path)
    data = Dataset.of(torch.rand(3, 4), [0, 1, 2], name="random")
    with pytest.raises(
        Refusal, match=r"^the ONNX runtime cannot (load|run) this file \(.*\), so that nobody can compare"
    ):
        compare_runtime(path, module, data)


def test_a_reading_that_the_runtime_does_not_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "net.onnx", network("mlp"))
    module, _ = load_model(path)
    monkeypatch.setitem(OPERATORS, "Relu", lambda given, x: torch.relu(x) * 1.001)
    with pytest.raises(
        Refusal, match=r"^the ONNX runtime and certkit's import of the file differ by [\d.e-]+, more than"
    ):
        compare_runtime(path, module, samples())
