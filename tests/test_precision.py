"""What rounding the weights does: formats bit for bit, drift that no input and no search exceeds, survivors that survive."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.cli import main
from certkit.config import LanguageModelConfig, VisionBaselineConfig, VisionTransformerConfig
from certkit.engine.drift import Drift, difference, drift
from certkit.engine.execute import centres, run
from certkit.engine.formats import FORMATS, named, rounded
from certkit.engine.interpret import Interpreter
from certkit.engine.precision import precision
from certkit.engine.program import Program, export
from certkit.errors import CertkitError, ConfigError, RecordError, Refusal, Tampered
from certkit.files import digest_file
from certkit.models import create
from certkit.rounding import Columns, Computed, keeps, load_precision, read, write
from tests.laws import program_of
from tests.modules import CASES, NOISE, points
from tests.networks import linear, perceptron, samples

# --- Formats ----------------------------------------------------------------------------------------------------------


def bits(x: Tensor) -> Tensor:
    """The bytes of float32 numbers, in which -0.0 is not 0.0."""
    return x.contiguous().view(torch.int32)


EDGES = torch.tensor(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        447.9,
        448.0,
        -448.0,
        1e-45,
        -1e-45,
        1.1754944e-38,
        2.0**-9,
        1.5 * 2.0**-9,
        2.0**-10,
        2.0**-6,
    ]
)


@pytest.mark.parametrize(
    ("name", "dtype", "width"), [("bf16", torch.bfloat16, 16), ("fp8-e4m3-unscaled", torch.float8_e4m3fn, 8)]
)
def test_every_number_of_a_format_and_all_that_lies_between_is_rounded_as_torch_casts(
    name: str, dtype: torch.dtype, width: int
) -> None:
    integers = torch.int16 if width == 16 else torch.uint8
    held = torch.arange(2**width).to(integers).view(dtype).float()
    held = held[held.isfinite()].sort().values
    between = (held[1:].double() + held[:-1].double()) / 2  # a tie, and its neighbours in float32
    middle = between.float()
    nearby = [torch.nextafter(middle, torch.full_like(middle, end)) for end in (-torch.inf, torch.inf)]
    for values in (held, middle, *nearby, EDGES):
        assert torch.equal(bits(FORMATS[name](values)), bits(values.to(dtype).float()))
        assert torch.equal(bits(FORMATS[name](FORMATS[name](values))), bits(FORMATS[name](values)))


def test_e4m3_without_a_scale_ends_at_448() -> None:
    far = torch.tensor([448.0, 449.0, 464.0, 1e9, -1e9, -3.4e38])
    assert FORMATS["fp8-e4m3-unscaled"](far).tolist() == [448.0, 448.0, 448.0, 448.0, -448.0, -448.0]


def test_e4m3_with_a_scale_reaches_every_size() -> None:
    for size in (1e-30, 1.0, 1e30):
        weight = size * torch.tensor([1.0, -0.5, 0.25, 0.0])
        assert torch.allclose(FORMATS["fp8-e4m3"](weight), weight, rtol=1e-6, atol=0)


def test_int8_has_a_scale_per_channel_and_ties_go_to_even() -> None:
    weight = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5], [12.7, 0.05, 0.16, -12.7, 0.0]])
    found = FORMATS["int8"](weight)
    assert found[0].tolist() == [127.0, 0.0, 2.0, 2.0, 0.0]
    assert torch.allclose(found[1], torch.tensor([12.7, 0.0, 0.2, -12.7, 0.0]), rtol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros_and_nothing_is_divided_by_them(name: str) -> None:
    assert torch.equal(FORMATS[name](torch.zeros(2, 3)), torch.zeros(2, 3))
    assert FORMATS[name](torch.zeros(0, 3)).shape == (0, 3)
    mixed = FORMATS[name](torch.tensor([[0.0, 0.0], [1e-44, -1e-44], [2.0, -1.0]]))
    assert bool(mixed.isfinite().all())
    assert mixed[2].tolist() == pytest.approx([2.0, -1.0], rel=0.01)


def test_int8_leaves_a_bias_alone() -> None:
    bias = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FORMATS["int8"](bias), bias)


@given(seed=st.integers(0, 10**6), size=st.floats(1e-30, 1e30))
def test_int8_is_off_by_at_most_half_a_step(seed: int, size: float) -> None:
    weight = size * torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    half = weight.abs().amax(1, keepdim=True) / 254
    assert bool(((FORMATS["int8"](weight) - weight).abs() <= half * (1 + 1e-4)).all())


def test_a_weight_beyond_bf16_is_refused() -> None:
    net = linear()
    with torch.no_grad():
        net[1].weight[0, 0] = 3.4e38  # type: ignore[index, operator, union-attr]
    with pytest.raises(
        Refusal,
        match=r"^weight '1\.weight' cannot be rounded to bf16: it holds 3\.4e\+38, which bf16 rounds to infinity$",
    ):
        rounded(net, "bf16")


def test_a_scale_that_rounds_up_past_the_largest_number_is_refused_and_not_blamed_on_the_weight() -> None:
    net = linear()
    with torch.no_grad():
        net[1].weight[0, 0] = torch.finfo(torch.float32).max  # type: ignore[index, operator, union-attr]
    with pytest.raises(
        Refusal,
        match=r"^weight '1\.weight' cannot be rounded to int8: it holds 3\.403e\+38, which int8 rounds to infinity$",
    ):
        rounded(net, "int8")


def test_a_float64_weight_is_cast_by_way_of_float32() -> None:
    beside_a_tie = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert FORMATS["bf16"](beside_a_tie).item() == 1.0


def test_an_unknown_format_gets_a_suggestion() -> None:
    message = r"^no number format is called 'bf61'; expected one of bf16, fp8-e4m3, fp8-e4m3-unscaled, int8; did you mean 'bf16'\?$"
    with pytest.raises(ConfigError, match=message):
        named(("bf61",))
    with pytest.raises(ConfigError, match=r"^no number format was given; expected some of bf16, "):
        named(())


def test_tied_weights_stay_tied_and_buffers_and_the_model_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    net[1].weight = net[0].weight  # type: ignore[assignment]
    net[2].running_mean.fill_(0.1)  # type: ignore[operator, union-attr]
    before = copy.deepcopy(net.state_dict())
    twin = rounded(net, "bf16")
    assert twin[0].weight is twin[1].weight  # type: ignore[index]
    assert torch.equal(twin[2].running_mean, before["2.running_mean"])  # type: ignore[arg-type, index, union-attr]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.equal(twin[0].weight, net[0].weight)  # type: ignore[arg-type, index]


# --- Drift ------------------------------------------------------------------------------------------------------------


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_a_difference_is_a_sum_of_floats_exactly(old: float, new: float) -> None:
    from fractions import Fraction

    parts = difference(torch.tensor([old], dtype=torch.float64), torch.tensor([new], dtype=torch.float64))
    assert sum(Fraction(float(part)) for part in parts) == Fraction(new) - Fraction(old)


def drifts(first: Program, second: Program, box: tuple[float, float]) -> Drift:
    ledgers = Interpreter(first)("linf", box), Interpreter(second)("linf", box)
    return drift(first, second, box, ledgers)


def within(found: Drift, moved: Tensor) -> None:
    """No row of moved logits (N, classes) leaves the bounds."""
    pairs = torch.tensor([[number.to_float() for number in row] for row in found.pairs], dtype=torch.float64)
    apart = (moved[:, :, None] - moved[:, None, :]).abs().amax(0)
    assert float(moved.norm(dim=1).max()) <= found.l2.to_float() * (1 + NOISE) + 1e-12
    assert float(moved.abs().max()) <= found.linf.to_float() * (1 + NOISE) + 1e-12
    assert bool((apart <= pairs * (1 + NOISE) + 1e-12).all())


def searched(
    first: Program, second: Program, shape: tuple[int, ...], box: tuple[float, float], *, count: int, steps: int
) -> Tensor:
    """How the logits differ at many inputs, each moved uphill inside the box: (steps * N, classes)."""

    def one(x: Tensor) -> Tensor:
        return (run(second, x.unsqueeze(0)) - run(first, x.unsqueeze(0))).flatten()

    xs = points(shape, box, count, 0).requires_grad_()
    ascent, found = torch.optim.Adam([xs], lr=0.1 * (box[1] - box[0])), []
    for _ in range(steps):
        moved = torch.func.vmap(one)(xs)
        found.append(moved.detach())
        if not moved.requires_grad:
            break
        ascent.zero_grad()
        (-moved.norm(dim=1).sum()).backward()  # type: ignore[no-untyped-call]
        xs.grad = torch.zeros_like(xs) if xs.grad is None else xs.grad.nan_to_num()
        ascent.step()
        with torch.no_grad():
            xs.clamp_(*box)
    return torch.cat(found)


def replaced(program: Program, change: Callable[[Tensor], Tensor]) -> Program:
    """The program with each of its real constants changed, whatever they are for."""
    kept = {
        n: change(v) if v.is_floating_point() and bool(v.isfinite().all()) else v for n, v in program.constants.items()
    }
    return replace(program, constants=kept)


def noisy(scale: float) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(7)
    return lambda w: w + scale * torch.randn(w.shape, generator=generator, dtype=w.dtype)


TABLE = {f"{rule}: {case.name}": case for rule, cases in CASES.items() for case in cases if case.fixed is None}
DIVIDES = "scale: divided by a tensor"


@pytest.mark.parametrize("name", [name for name in TABLE if name != DIVIDES])
def test_no_input_and_no_search_moves_logits_further_than_the_drift(name: str) -> None:
    case = TABLE[name]
    first = program_of(case, 0)
    second = replaced(first, noisy(1.0))
    within(drifts(first, second, case.box), searched(first, second, case.shape, case.box, count=12, steps=3))


class Parametric(nn.Module):
    """A forward written in one line over parameters by name."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._forward = forward
        generator = torch.Generator().manual_seed(3)
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size, generator=generator)))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x).flatten(1)


def attends(net: nn.Module, x: Tensor) -> Tensor:
    """Softmax attention written out, with a learned score for every pair and the last key left out for the first query."""
    hidden = torch.tensor([[False, False, True], [False, False, False], [False, False, False]])
    scores = 0.5 * F.linear(x, net.q) @ F.linear(x, net.k).transpose(1, 2) + net.position  # type: ignore[arg-type]
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1) @ F.linear(x, net.v)  # type: ignore[arg-type]


def normalised(module: nn.Module) -> nn.Module:
    """With factors, shifts and running statistics that are not the ones a layer starts with."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


WEIGHTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: normalised(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, eps=0.1), nn.Flatten())), (3, 4)),
    "rms norm": (lambda: normalised(nn.Sequential(nn.RMSNorm(4, eps=0.1), nn.Flatten())), (3, 4)),
    "group norm": (lambda: normalised(nn.Sequential(nn.GroupNorm(2, 4, eps=0.1), nn.Flatten())), (4, 2, 2)),
    "batch norm": (lambda: normalised(nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Flatten())), (1, 3, 3)),
    "strided convolution": (
        lambda: normalised(nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.Flatten())),
        (2, 4, 4),
    ),
    "slopes below 0": (lambda: normalised(nn.Sequential(nn.Linear(4, 3), nn.PReLU(3))), (4,)),
    "matrix on the left": (lambda: Parametric(lambda net, x: net.w @ x, w=(2, 3)), (3, 2)),
    "vector": (lambda: Parametric(lambda net, x: x @ net.w, w=(3,)), (2, 3)),
    "class token": (
        lambda: Parametric(
            lambda net, x: torch.cat([net.c.expand(x.shape[0], 1, 2), x], 1) * net.s, c=(1, 1, 2), s=(2,)
        ),
        (2, 2),
    ),
    "table of scores": (
        lambda: Parametric(
            lambda n, x: F.scaled_dot_product_attention(x @ n.q, x, x, attn_mask=n.m), q=(2, 2), m=(3, 3)
        ),
        (3, 2),
    ),
    "attention written out": (lambda: Parametric(attends, q=(2, 2), k=(2, 2), v=(2, 2), position=(3, 3)), (3, 2)),
    "weights of learned scores alone": (
        lambda: Parametric(lambda n, x: torch.softmax(2 * x + n.m, -1) @ x, m=(3, 3)),
        (3, 3),
    ),
    "softmax with a learned shift": (lambda: Parametric(lambda n, x: torch.softmax(x + n.b, 1), b=(3,)), (3,)),
    "learned Swish": (lambda: Parametric(lambda n, x: x * torch.sigmoid(n.beta * x), beta=()), (3,)),
    "clamped to weights": (lambda: Parametric(lambda n, x: torch.clamp(x, -n.w.abs(), n.w.abs()), w=(3,)), (3,)),
    "weight computed from weights": (lambda: Parametric(lambda n, x: F.linear(x, n.a @ n.b), a=(3, 2), b=(2, 4)), (4,)),
    "norm written out": (
        lambda: Parametric(lambda n, x: n.g * F.normalize(F.linear(x, n.w), dim=1, eps=0.1), g=(3,), w=(3, 3)),
        (3,),
    ),
}


def shaken(module: nn.Module, scale: float) -> nn.Module:
    """A copy with noise on every parameter."""
    twin, change = copy.deepcopy(module), noisy(scale)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(change(parameter))
    return twin


@pytest.mark.parametrize("name", WEIGHTED)
def test_every_kind_of_weight_may_change(name: str) -> None:
    build, shape = WEIGHTED[name]
    module, box = build(), (-1.0, 1.0)
    first = export(module, shape)
    for twin in (rounded(module, "fp8-e4m3"), shaken(module, 0.5)):
        second = export(twin, shape)
        found = drifts(first, second, box)
        moved = searched(first, second, shape, box, count=16, steps=5)
        within(found, moved)
        # neither vacuous, nor 0 where something moves
        assert found.l2.to_float() <= 60 * float(moved.norm(dim=1).max()) + 1e-6


def test_a_divisor_that_changes_is_refused() -> None:
    case = TABLE[DIVIDES]
    with pytest.raises(
        Refusal,
        match=r"^the model: aten\.div\.Tensor is not linear in a weight that rounding changes \(\w+\); that has no bound "
        r"here, so keep this weight in full precision, as a buffer$",
    ):
        drifts(program_of(case, 0), replaced(program_of(case, 0), noisy(0.1)), case.box)


def test_a_temperature_inside_attention_is_refused_and_not_overlooked() -> None:
    net = Parametric(lambda n, x: torch.softmax(n.t * (x @ x.transpose(1, 2)), -1) @ x, t=())
    with pytest.raises(Refusal, match=r"^the model: aten\.matmul\.default is not linear in a weight .* \(p_t\); "):
        drifts(export(net, (3, 2)), export(shaken(net, 0.1), (3, 2)), (-1.0, 1.0))


def test_two_graphs_are_not_compared() -> None:
    first, second = (export(nn.Sequential(nn.Linear(2, 2), layer()).eval(), (2,)) for layer in (nn.ReLU, nn.GELU))
    with pytest.raises(
        Refusal, match=r"^the rounded weights make the model another graph \(a branch or a number of its code"
    ):
        drifts(first, second, (-1.0, 1.0))


def test_the_drift_of_one_linear_map_is_attained() -> None:
    # dW = u v' of rank one, v along a corner of the box: |dW x| is largest there, |u| |v| |x|.
    u, corner = torch.tensor([3.0, 0.0, 4.0]) * 2.0**-10, torch.tensor([1.0, -1.0, 1.0, 1.0])
    net = nn.Linear(4, 3).eval()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).mul(64).round() / 64)
        twin.weight.copy_(net.weight + u[:, None] * corner)  # exact: few bits
    twin.bias = net.bias
    found = drifts(export(net, (4,)), export(twin, (4,)), (-1.0, 1.0))
    assert found.l2.to_float() == pytest.approx(5 * 2.0**-10 * 4, rel=1e-9)
    assert found.linf.to_float() == pytest.approx(4 * 2.0**-10 * 4, rel=1e-9)
    assert found.pairs[0][2].to_float() == pytest.approx(1 * 2.0**-10 * 4, rel=1e-9)
    assert found.pairs[0][1].to_float() == pytest.approx(3 * 2.0**-10 * 4, rel=1e-9)


def test_a_changed_weight_meets_the_values_of_the_changed_network() -> None:
    # Both maps were 0 and become the identity: the second one's change acts on values that the first network never has.
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).eval()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for old, new in zip(net.parameters(), twin.parameters(), strict=True):
            old.zero_()
            new.copy_(torch.eye(2))
    found = drifts(export(net, (2,)), export(twin, (2,)), (-1.0, 1.0))
    assert found.l2.to_float() == pytest.approx(2**0.5, rel=1e-9)
    assert found.pairs[0][1].to_float() == pytest.approx(2, rel=1e-9)


def test_a_product_knows_the_sizes_of_both_networks() -> None:
    net = Parametric(lambda n, x: F.linear(x, n.a) * F.linear(x, n.b), a=(1, 1), b=(1, 1))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for old, new in zip(net.parameters(), twin.parameters(), strict=True):
            old.zero_()
            new.fill_(1.0)
    assert drifts(export(net, (1,)), export(twin, (1,)), (-1.0, 1.0)).linf.to_float() == pytest.approx(1, rel=1e-9)


def test_what_does_not_change_does_not_drift() -> None:
    for name in ("attention: two heads", "linear: twice", "softmax with a learned shift"):
        first = program_of(TABLE[name], 0) if name in TABLE else export(WEIGHTED[name][0](), WEIGHTED[name][1])
        assert drifts(first, first, (-1.0, 1.0)).l2.to_float() == 0.0


# --- Whole networks ---------------------------------------------------------------------------------------------------


class LastToken(nn.Module):
    """A language model from its embeddings, read at the last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.from_embeddings(x)[:, -1]  # type: ignore[no-any-return, operator]


def made(config: object) -> nn.Module:
    torch.manual_seed(0)
    model = create(config)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and outputs start at zero, which every format holds
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[float, float]]] = {
    "vit": (lambda: made(VisionTransformerConfig()), (1, 8, 8), (0.0, 1.0)),
    "vit-layernorm": (lambda: made(VisionBaselineConfig(width=8, heads=2)), (1, 8, 8), (0.0, 1.0)),
    "gpt": (
        lambda: LastToken(
            made(LanguageModelConfig(vocabulary=11, context=8, width=16, heads=4, blocks=2, expansion=2))
        ),
        (8, 16),
        (-1.0, 1.0),
    ),
}


@functools.cache
def network(name: str) -> tuple[nn.Module, Program]:
    build, shape, _ = NETWORKS[name]
    module = build()
    return module, export(module, shape)


@pytest.mark.parametrize(
    ("name", "format_"),
    [("vit", "bf16"), ("vit", "fp8-e4m3"), ("vit-layernorm", "bf16"), ("vit-layernorm", "int8"), ("gpt", "fp8-e4m3")],
)
def test_transformers_drift_within_the_bound(name: str, format_: str) -> None:
    (module, first), (_, shape, box) = network(name), NETWORKS[name]
    second = export(rounded(module, format_), shape)
    found = drifts(first, second, box)
    moved = searched(first, second, shape, box, count=12, steps=4)
    assert float(moved.norm(dim=1).max()) > 1e-4
    within(found, moved)


# --- The job and the command ------------------------------------------------------------------------------------------


def test_a_tie_and_a_lead_of_exactly_the_drift_keep_nothing() -> None:
    logits = np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [2.0, 1.5, 0.0]])
    drifts = np.array([[0.0, 1.0, 1.0]] * 3)
    assert keeps(Computed(logits, 0.0), drifts).tolist() == [False, False, False]
    assert keeps(Computed(logits, 0.0), drifts * 0.999).tolist() == [True, False, False]
    assert keeps(Computed(logits, 0.01), drifts * 0.999).tolist() == [False, False, False]
    assert keeps(Computed(logits, 0.0), drifts * 0.1).tolist() == [True, False, True]


def test_who_survives_keeps_its_class_when_the_rounded_network_runs(tmp_path: Path) -> None:
    net, data = perceptron(), samples(200)
    found = precision(net, data, formats=tuple(FORMATS), out=tmp_path)
    table = pq.read_table(tmp_path / "precision.parquet")
    before = centres(export(net, (1, 2, 2)), data.images)
    for each in found.formats:
        after = centres(export(rounded(net, each.format), (1, 2, 2)), data.images)
        same, moved = (before.argmax(1) == after.argmax(1)).numpy(), (after - before).abs()
        by_bound = table.column(f"anywhere {each.format}").to_numpy()
        at_sample = table.column(f"survives {each.format}").to_numpy()
        assert bool(same[by_bound].all())
        assert bool(same[at_sample].all())
        assert bool((moved.amax(1).numpy() <= table.column(f"drift {each.format}").to_numpy()).all())
        assert float(moved.max()) == each.largest_observed <= each.drift
        assert (each.anywhere.count, each.survives.count) == (by_bound.sum(), at_sample.sum())
        assert each.anywhere.count <= each.survives.count <= each.unchanged.count == same.sum()
        assert 0 < each.changed <= each.weights == 4 * 8 + 8 + 8 * 3 + 3
    bf16 = found.formats[0]
    assert 0 < bf16.anywhere.count < 200
    assert bf16.drift < 10 * bf16.largest_observed


def test_the_command_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "precisionnet.py").write_text(
        "from torch import nn\n\n\ndef small() -> nn.Module:\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    torch.manual_seed(0)
    save_file({"1.weight": torch.randn(10, 64), "1.bias": torch.zeros(10)}, folder / "own.safetensors")
    monkeypatch.chdir(folder)
    words = [
        "precision",
        "own.safetensors",
        "--model",
        "precisionnet:small",
        "--limit",
        "20",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(main, [*words, "--format", "bf16", "--format", "int8"])
    assert result.exit_code == 0, result.output
    record, _ = load_precision(tmp_path / "out")
    assert [each.format for each in record.formats] == ["bf16", "int8"]
    shown = result.stdout.splitlines()
    assert shown[0].startswith("clean accuracy     ")
    assert [line.split()[0] for line in shown[2:4]] == ["bf16", "int8"]
    assert float(shown[2].split()[1]) >= record.formats[0].drift
    assert shown[-1].endswith("precision.parquet")

    spoken = CliRunner().invoke(main, [*words, "--format", "bf16", "--json"])
    assert json.loads(spoken.stdout)["formats"][0] == record.formats[0].model_dump(mode="json")
    wrong = CliRunner().invoke(main, [*words, "--format", "fp9"])
    assert wrong.exit_code == 2
    assert "no number format is called 'fp9'; expected one of bf16, " in wrong.output


# --- The files, read back ---------------------------------------------------------------------------------------------

AGAIN = "; run certkit precision again"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job writes of a small network, in two formats."""
    out = tmp_path_factory.mktemp("written")
    precision(perceptron(), samples(40), formats=("bf16", "int8"), out=out)
    return out


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "own-precision"))


def refused(folder: Path, kind: type[CertkitError]) -> str:
    with pytest.raises(kind) as caught:
        load_precision(folder)
    assert type(caught.value) is kind
    return str(caught.value)


def test_what_was_written_is_what_is_read(written: Path) -> None:
    record, table = load_precision(written)
    assert [each.format for each in record.formats] == ["bf16", "int8"]
    assert table["logits"].shape == table["logits int8"].shape == (40, 3)
    assert record.formats[1].survives.count == table["survives int8"].sum() > 0


def forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "precision.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def counted(record: dict[str, Any], name: str) -> None:
    share = record["formats"][1][name]
    share["count"] -= 1


FORGED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    **{
        f"a share, {name}": (
            lambda record, name=name: counted(record, name),  # type: ignore[misc]
            f"int8: {name} is not what the samples give",
        )
        for name in ("anywhere", "survives", "unchanged", "clean")
    },
    "the clean share": (lambda record: record["clean"].update(count=1), "clean is not what the samples give"),
    "the largest move": (
        lambda record: record["formats"][0].update(largest_observed=0.0),
        "bf16: largest_observed is not what the samples give",
    ),
    "an error of computing": (
        lambda record: record.update(pair_error=10.0),
        "clean is not what the samples give",
    ),
    "an assumption left out": (lambda record: record["assumptions"].pop(), "assumptions is not what the samples give"),
    "a drift below its pairs'": (lambda record: record["formats"][1].update(drift=0.0), "int8: its bounds contradict each other"),
    "all drifts": (
        lambda record: record["formats"][1].update(
            drift=1e-9, drift_l2=1e-9, pair_drift=[[1e-9 * (i != j) for j in range(3)] for i in range(3)]
        ),
        "int8: pair_drift is below what a sample attains",
    ),
    "the drifts of whole vectors": (
        lambda record: record["formats"][1].update(
            drift=1e-3, drift_l2=record["formats"][1]["drift_l2"], pair_drift=[[0.0] * 3] * 3
        ),
        "int8: pair_drift is below what a sample attains",
    ),
    "more changed than there are": (
        lambda record: record["formats"][0].update(weights=1),
        "bf16: its bounds contradict each other",
    ),
    "a matrix of another size": (
        lambda record: record["formats"][0].update(pair_drift=[[0.0]]),
        "bf16: pair_drift is no matrix of 3 by 3 classes",
    ),
    "a format twice": (lambda record: record["formats"].append(record["formats"][0]), "a format stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_number_is_found(folder: Path, name: str) -> None:
    change, message = FORGED[name]
    forge(folder, change)
    assert refused(folder, Tampered) == f"precision.json: {message}{AGAIN}"


def retold(folder: Path, change: Callable[[Columns], None]) -> None:
    """Another table, under its own digest."""
    path = folder / "precision.parquet"
    table = read(path)
    change(table)
    write(table, path)
    forge(folder, lambda record: record["table"].update(sha256=digest_file(path)))


RETOLD: dict[str, tuple[Callable[[Columns], object], str]] = {
    "a survivor": (
        lambda table: table.update({"survives bf16": ~table["survives bf16"]}),
        "a stated survives bf16 is not the one that its logits give",
    ),
    "a margin": (lambda table: table.update(margin=table["margin"] * 2), "a stated margin is not the one that its logits give"),
    "a drift": (
        lambda table: table.update({"drift int8": table["drift int8"] / 2}),
        "a stated drift int8 is not the one that its logits give",
    ),
    "a column too many": (lambda table: table.update(more=table["margin"]), "its columns are not those of precision.json"),
    "a column too few": (lambda table: table.pop("margin"), "its columns are not those of precision.json"),
    "no logits": (lambda table: table.pop("logits int8"), "no column 'logits int8' with a row per sample of precision.json"),
    "logits of two classes": (
        lambda table: table.update(logits=table["logits"][:, :2].copy()),
        "logits holds no finite logit per class",
    ),
    "a logit that is no number": (
        lambda table: table.update(logits=np.where(table["logits"] > 0, np.nan, table["logits"])),
        "logits holds no finite logit per class",
    ),
    "fewer samples": (
        lambda table: table.update({name: values[:7] for name, values in table.items()}),
        "no column 'logits' with a row per sample of precision.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RETOLD)
def test_a_table_that_does_not_follow_from_its_logits_is_refused(folder: Path, name: str) -> None:
    change, message = RETOLD[name]
    retold(folder, change)
    assert refused(folder, Tampered) == f"precision.parquet: {message}{AGAIN}"


def test_a_missing_or_changed_file_is_named(folder: Path) -> None:
    table = folder / "precision.parquet"
    table.write_bytes(table.read_bytes() + b"!")
    assert refused(folder, Tampered) == (
        "precision.parquet: was changed after it was written (sha256 differs); run certkit precision again"
    )
    table.write_bytes(b"no table")
    forge(folder, lambda record: record["table"].update(sha256=digest_file(table)))
    assert refused(folder, RecordError).startswith("precision.parquet: not a table of samples (")
    table.unlink()
    assert (
        refused(folder, RecordError) == "precision.parquet: missing beside precision.json; run certkit precision again"
    )
    (folder / "precision.json").unlink()
    assert refused(folder, RecordError) == (
        "own-precision: no precision.json; run certkit precision CHECKPOINT --out own-precision"
    )
