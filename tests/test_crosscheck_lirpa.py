"""auto_LiRPA beside certkit: the same function, bounds that no attained output refutes, and its own words where it fails."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.crosscheck import lirpa as job
from certkit.crosscheck.attained import attained
from certkit.crosscheck.lirpa import bisected, cross_check, differences
from certkit.crosscheck.package import MISSING, Unavailable, package, quietly
from certkit.crosscheck.rewrite import written
from certkit.data import Dataset
from certkit.engine.program import Program, export
from certkit.errors import ConfigError, Refusal
from certkit.models.attention import Attention
from certkit.models.layers import MaxMin
from certkit.records import Norm
from certkit.records.crosscheck import Lirpa

installed = pytest.mark.skipif(
    importlib.util.find_spec("auto_LiRPA") is None, reason="auto_LiRPA is optional and not installed: make setup"
)
both_norms = pytest.mark.parametrize("norm", ["l2", "linf"])


class Of(nn.Module):
    """A linear map of the 6 entries, a function, and a linear head of three classes."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.function = function
        self.first, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.function(self.first(x.flatten(1))))
        return logits


class Tokens(nn.Module):
    """Two tokens of 3 entries, attention over them, MaxMin and a head."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(8, 3)
        self.inner = inner or Attention(4, 2, torch.randn(2, 2, 2), scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(MaxMin()(self.inner(self.embed(x.reshape(-1, 2, 3)))).flatten(1))
        return logits


class Causal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.unsqueeze(1)
        return F.scaled_dot_product_attention(y, y, y, is_causal=True).squeeze(1)


class NormFirst(nn.Module):
    """The trap: auto_LiRPA's l2 intervals are of width zero where a layer norm reads the input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(x.flatten(1)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)),
    "linear without bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False)),
    "relu": lambda: Of(torch.relu),
    "tanh": lambda: Of(torch.tanh),
    "sigmoid": lambda: Of(torch.sigmoid),
    "abs": lambda: Of(torch.abs),
    "square": lambda: Of(lambda x: x * x),
    "square first": lambda: nn.Sequential(nn.Flatten(), Squared(), nn.Linear(6, 3)),
    "maxmin": lambda: Of(MaxMin()),
    "quotient": lambda: Of(lambda x: x / (1.0 + torch.exp(x))),
    "reciprocal": lambda: Of(lambda x: 1.0 / (2.0 + torch.tanh(x))),
    "root": lambda: Of(lambda x: torch.sqrt(1.0 + x * x)),
    "softmax": lambda: Of(lambda x: torch.softmax(x, -1)),
    "layer norm": lambda: Of(nn.LayerNorm(8)),
    "layer norm first": NormFirst,
    "rms norm": lambda: Of(nn.RMSNorm(8)),
    "batch norm": lambda: Of(shaken(nn.BatchNorm1d(8))),
    "constants of one row": lambda: Of(lambda x: (x + torch.ones(1, 1)) * torch.full((1, 8), 0.5) - torch.ones(8)),
    "attention": Tokens,
    "causal attention": lambda: Tokens(Causal()),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
}


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def shaken(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    """Statistics and weights that are not those of a new layer."""
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


def network(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name]().eval()


def samples(model: nn.Module, count: int = 3, seed: int = 0) -> Dataset:
    """Samples with the labels that the network gives them."""
    torch.manual_seed(seed)
    images = torch.rand(count, 1, 2, 3)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return Dataset.of(images, labels, name="random", classes=["a", "b", "c"])


@cache
def exported(name: str) -> tuple[Program, Dataset]:
    model = network(name)
    return export(model, (1, 2, 3)), samples(model)


def checked(name: str, norm: Norm, eps: list[str], methods: list[str], **options: object) -> Lirpa:
    program, data = exported(name)
    return cross_check(program, data, eps=eps, norm=norm, methods=methods, batch=3, **options)  # type: ignore[arg-type]


# What auto_LiRPA 0.3 cannot do, in its own words.
SAID: dict[tuple[str, str], str] = {}

every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_the_rewritten_graph_is_the_same_function(name: str) -> None:
    program, _ = exported(name)
    _, difference = written(program, torch.rand(70, 1, 2, 3))
    assert difference < 1e-13


@installed
@both_norms
@every_network
def test_no_attained_output_refutes_a_bound_and_bounds_fall_with_the_radius(name: str, norm: Norm) -> None:
    result = checked(name, norm, ["0", "0.1"], ["IBP", "CROWN-IBP", "CROWN"])
    assert result.message is None
    for method in result.methods:
        assert method.message == SAID.get((name, method.name))
        assert method.faults == ()
        if method.message is None:
            margins = np.array([bounded.margins for bounded in method.bounds], float)
            assert (margins[0] - margins[1] > 1e-4).all(), "at a radius of 0.1 every one of these networks moves"


@installed
@both_norms
@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN"])
def test_a_linear_network_has_its_closed_form(norm: Norm, method: str) -> None:
    # The smallest margin over the ball is the margin less eps times the dual norm of the difference of two rows; the
    # ball lies inside the box here.
    model = network("linear")
    images = 0.5 + 0.2 * torch.rand(4, 1, 2, 3)
    with torch.no_grad():
        logits = model.double()(images.double())
    data = Dataset.of(images, logits.argmax(1), name="random", classes=["a", "b", "c"])
    result = cross_check(export(network("linear"), (1, 2, 3)), data, eps=["0.05"], norm=norm, methods=[method])  # type: ignore[list-item]
    layer = model[1]
    assert isinstance(layer, nn.Linear)
    closed = []
    for row, label in enumerate(data.labels.tolist()):
        rows = [layer.weight.detach()[label] - layer.weight.detach()[j] for j in range(3) if j != label]
        dual = [float(r.norm() if norm == "l2" else r.abs().sum()) for r in rows]
        margins = [float(logits[row, label] - logits[row, j]) for j in range(3) if j != label]
        closed.append(min(m - 0.05 * d for m, d in zip(margins, dual, strict=True)))
    assert result.methods[0].bounds[0].margins == pytest.approx(closed, abs=1e-12)


@installed
@both_norms
def test_each_sample_may_have_its_own_radius(norm: Norm) -> None:
    model = network("relu")
    data, program = samples(model, 4), export(model, (1, 2, 3))
    bounder = job._Bounder(package(), written(program, data.images)[0], data, norm, 4)
    apart = job._Bounder(package(), written(program, data.images)[0], data, norm, 1)
    eps = np.array([0.0, 0.01, 0.05, 0.2])
    with quietly():
        together = bounder.margins("CROWN-IBP", range(4), eps)
        alone = np.concatenate([apart.margins("CROWN-IBP", [row], eps[row : row + 1]) for row in range(4)])
    assert together == pytest.approx(alone, abs=1e-12)


@installed
@both_norms
def test_radii_are_tried_and_verified(norm: Norm) -> None:
    result = checked("relu", norm, ["0.01"], ["CROWN-IBP"], with_radii=True)
    radii = result.methods[0].radii
    assert radii is not None
    assert max(radii) > 0
    program, data = exported("relu")
    bounder = job._Bounder(package(), written(program, data.images)[0], data, norm, 3)
    with quietly():
        at = bounder.margins("CROWN-IBP", range(3), np.array(radii)).min(axis=1)
        beyond = bounder.margins("CROWN-IBP", range(3), 1.01 * np.array(radii)).min(axis=1)
    capped = np.array(radii) > 1  # linf: beyond 1 the ball is the box
    assert (at > 0).all()
    assert ((beyond <= 0) | capped).all()


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_bisection_meets_the_boundary_from_below(edges: list[float]) -> None:
    def margins(rows: object, eps: np.ndarray) -> np.ndarray:
        return np.array([[edges[row] - one] for row, one in zip(rows, eps, strict=True)])  # type: ignore[call-overload]

    found = bisected(margins, range(len(edges)), 0.1)
    assert (found < edges).all()
    assert found == pytest.approx(edges, rel=1e-3)


def test_a_sample_that_nothing_verifies_has_radius_zero() -> None:
    assert bisected(lambda rows, eps: np.full((len(rows), 1), -1.0), range(2), 0.1).tolist() == [0.0, 0.0]


@installed
def test_the_trap_is_real_and_is_not_stepped_into() -> None:
    # auto_LiRPA itself, where anything but a linear map reads the input, says that an l2 ball moves nothing.
    used, x = package(), torch.rand(3, 6, dtype=torch.float64)
    with quietly():
        module = used.BoundedModule(nn.Sequential(nn.Tanh(), nn.Linear(6, 3)).double(), x, device="cpu")
        ball = used.PerturbationLpNorm(norm=2.0, eps=0.1)
        low, high = module.compute_bounds(x=(used.BoundedTensor(x, ball),), method="IBP")
    assert float((high - low).detach().max()) == 0.0
    method = checked("layer norm first", "l2", ["0.1"], ["IBP"]).methods[0]
    plain = checked("layer norm first", "l2", ["0"], ["IBP"]).methods[0]
    moved = np.array(plain.bounds[0].margins, float) - np.array(method.bounds[0].margins, float)
    assert (moved > 0.01).all()
    assert method.faults == ()


@installed
def test_a_bound_that_excludes_an_attained_output_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    own = job._Bounder.margins

    def zero_width(self: object, method: object, rows: object, eps: np.ndarray) -> np.ndarray:
        return own(self, method, rows, np.zeros_like(eps))  # type: ignore[arg-type]

    monkeypatch.setattr(job._Bounder, "margins", zero_width)
    method = checked("relu", "l2", ["0.1"], ["IBP"]).methods[0]
    assert len(method.faults) == 6
    assert method.message == "6 of its bounds exclude an output that was attained: a fault of these bounds"
    assert not method.trusted
    assert all(fault.attained < fault.bound for fault in method.faults)


@installed
def test_its_own_words_stand_where_it_fails_and_other_methods_go_on() -> None:
    torch.manual_seed(0)
    model = Of(nn.GELU()).eval()
    result = cross_check(export(model, (1, 2, 3)), samples(model), eps=["0.01"], norm="linf", methods=["IBP", "CROWN"])
    if package().old:
        words = "NotImplementedError: There are unsupported operations (onnx::Erf)"
        assert [method.message for method in result.methods] == [words, words]
    assert all(method.bounds == () and not method.trusted for method in result.methods if method.message)


@installed
def test_where_the_bound_of_a_divisor_reaches_zero_there_is_no_bound() -> None:
    # x tanh(x) is never negative, but its relaxations are where x may have either sign.
    torch.manual_seed(0)
    model = Of(lambda x: 1.0 / (0.05 + x * torch.tanh(x))).eval()
    result = cross_check(
        export(model, (1, 2, 3)), samples(model), eps=["0.3"], norm="linf", methods=["IBP", "CROWN"], batch=3
    )
    interval, crown = result.methods
    assert interval.message == "AssertionError: Only positive values are supported in BoundReciprocal"
    assert crown.message == "no meaningful bound for 3 of 3 samples at 0.3"
    assert crown.bounds[0].margins == (None, None, None)
    assert crown.bounds[0].verified.count == 0


@installed
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_bound_that_overflowed_verifies_nothing(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    class Overflowing:
        def __init__(self, *_: object, **__: object) -> None:
            self._modules: dict[str, nn.Module] = {}

        def compute_bounds(self, C: Tensor, **_: object) -> tuple[Tensor, None]:
            return torch.full(C.shape[:2], value), None

    ours = SimpleNamespace(
        version="of this test", BoundedModule=Overflowing, BoundedTensor=lambda x, ball: x,
        PerturbationLpNorm=lambda **given: given,
    )  # fmt: skip
    monkeypatch.setattr(job, "package", lambda: ours)
    program, data = exported("relu")
    (method,) = cross_check(program, data, eps=["0.1"], norm="l2", methods=["IBP"], with_radii=True).methods
    assert method.bounds[0].margins == (None,) * 3
    assert method.bounds[0].verified.count == 0
    assert method.radii == (0.0,) * 3
    assert method.message == "no meaningful bound for 3 of 3 samples at 0.1"


def test_nothing_global_is_left_changed() -> None:
    checked("relu", "l2", ["0.01"], ["IBP"])
    assert torch.get_default_dtype() is torch.float32


def test_without_the_package_the_record_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> object:
        raise Unavailable(MISSING)

    monkeypatch.setattr(job, "package", gone)
    result = checked("relu", "l2", ["0.01"], ["IBP"])
    assert (result.version, result.methods, result.costs) == (None, (), ())
    assert result.message == (
        "auto_LiRPA is not installed, so no independent bound stands beside certkit's own; "
        "get it with: pip install --no-deps auto_LiRPA==0.3 && pip install appdirs ninja packaging pyyaml tqdm"
    )


def test_an_absent_package_is_found_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    absent = SimpleNamespace(find_spec=lambda name: None if name == "auto_LiRPA" else own(name))
    monkeypatch.setattr("certkit.crosscheck.package.importlib", SimpleNamespace(util=absent))
    package.cache_clear()
    with pytest.raises(Unavailable, match="auto_LiRPA is not installed"):
        package()
    package.cache_clear()


def test_a_graph_that_became_another_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("relu")
    program = export(model, (1, 2, 3))
    monkeypatch.setattr(
        "certkit.crosscheck.rewrite._matrix", lambda *_: (torch.zeros(8, 6).double(), torch.zeros(8).double())
    )
    with pytest.raises(
        Refusal, match=r"^the graph as rewritten for auto_LiRPA differs from the graph itself by 0\.\d+ in"
    ):
        written(program, torch.rand(3, 1, 2, 3))


def test_a_batch_axis_that_moves_is_refused() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).relu().T.exp().T

    program = export(Turned().eval(), (1, 2, 3))
    with pytest.raises(Refusal, match="moves the batch axis; auto_LiRPA needs it first"):
        written(program, torch.rand(3, 1, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm must be l2 or linf, got 'l1'"),
        ({"methods": ["crown"]}, "method 'crown' is none of IBP, CROWN-IBP, CROWN, alpha-CROWN"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"eps": []}, "no eps was given; expected at least one radius such as 0.25 or 36/255"),
    ],
)
def test_arguments_that_cannot_be_meant(options: dict[str, object], message: str) -> None:
    model = network("linear")
    meant = {"eps": ["0.1"], "norm": "l2", "methods": ["IBP"], **options}
    with pytest.raises(ConfigError) as caught:
        cross_check(export(model, (1, 2, 3)), samples(model), **meant)  # type: ignore[arg-type]
    assert str(caught.value) == message


@both_norms
def test_attained_points_lie_in_the_ball_and_come_near_the_worst(norm: Norm) -> None:
    model = network("linear")
    data = samples(model)
    program = export(model, (1, 2, 3))
    found = attained(program, written(program, data.images)[0], data, norm, 0.01)
    rows = differences(data.labels, 3)
    logits = model.double()(data.images.double()).detach()
    centre = (rows @ logits.unsqueeze(-1)).squeeze(-1).numpy()
    weight = model[1].weight.detach()  # type: ignore[union-attr, operator]
    dual = (rows @ weight).norm(dim=-1) if norm == "l2" else (rows @ weight).abs().sum(-1)
    worst = centre - 0.01 * dual.numpy()
    assert (found >= worst - 1e-12).all()
    assert (found.min(axis=1) <= (centre - 0.9 * (centre - worst)).min(axis=1)).mean() > 0.5


def test_records_and_agreement_load_no_torch() -> None:
    words = "import sys, certkit.records.crosscheck, certkit.crosscheck.agreement; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


@installed
def test_the_recursion_limit_stays_so_that_deep_json_is_refused_and_does_not_end_the_process() -> None:
    words = (
        "import json, sys; before = sys.getrecursionlimit(); "
        "from certkit.crosscheck.package import package; package(); "
        "assert sys.getrecursionlimit() == before\n"
        "try: json.loads('[' * 100_000)\nexcept RecursionError: print('refused')"
    )
    assert (
        subprocess.run([sys.executable, "-Ic", words], check=False, capture_output=True, text=True).stdout
        == "refused\n"
    )
