"""Norms of convolutions: never below the norm of the operator written out, whatever its stride, padding and groups."""

from __future__ import annotations

import inspect
import math
import sys
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import certkit
from certkit.bounds import convolution
from certkit.bounds.convolution import (
    Convolution,
    by_dense,
    by_symbol,
    convolution_norms,
    live,
    turns,
)
from certkit.bounds.spectral import spectral_norm
from certkit.data import load
from certkit.engine.direct import convolve
from certkit.engine.interpret import Interpreter
from certkit.engine.program import REMEDY, export
from certkit.errors import CertkitError, Refusal
from tests.modules import BOX, Net, prove, small

Array = np.ndarray
NOISE = 1 + 1e-12  # of the float64 singular values that the bounds are compared with


def operator(weight: Array, given: Convolution) -> Array:
    """The convolution as torch computes it of every unit image: (outputs, inputs)."""
    inputs = weight.shape[1] * given.groups
    units = torch.eye(inputs * math.prod(given.size), dtype=torch.float64).reshape(-1, inputs, *given.size)
    units = F.pad(units, [n for pad in reversed(given.padding) for n in pad])
    run = (F.conv1d, F.conv2d, F.conv3d)[len(given.size) - 1]
    images = run(units, torch.tensor(weight), stride=given.stride, dilation=given.dilation, groups=given.groups)
    return images.flatten(1).numpy().T


def norm(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Array, Convolution]:
    """A weight of integers and a geometry, one or two dimensions, with at least one output."""
    dims = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.integers(1, 3))
    outputs, inputs = groups * draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, size = each(1, 4), each(1, 6)
    found = Convolution(size, each(1, 3), tuple(zip(each(0, 4), each(0, 4), strict=True)), each(1, 2), groups)
    assume(min(found.outputs(kernel)) >= 1)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    weight = rng.integers(-3, 4, (outputs, inputs, *kernel)) * rng.choice([1.0, 0.125], (outputs, 1, *(1,) * dims))
    return weight.astype(float), found


def routes_hold(module: Any, weight: Array, given: Convolution) -> None:
    """Each route alone is an upper bound of the operator written out."""
    matrix = operator(weight, given)
    truth, absolute = norm(matrix), norm(np.abs(matrix))
    kept = module.live(weight, given)
    window = max(norm(group) for group in kept.reshape(given.groups, len(kept) // given.groups, -1)) * NOISE
    assert truth <= module.by_symbol(kept, given) * NOISE
    assert truth <= module.by_dense(kept, given) * NOISE
    assert truth <= module.by_windows(window, kept, given) * NOISE
    assert absolute <= module.by_absolute(kept, given) * NOISE


def held(module: Any, weight: Array, given: Convolution) -> bool:
    try:
        routes_hold(module, weight, given)
    except AssertionError:
        return False
    return True


@given(convolutions())
@settings(max_examples=150)
def test_every_route_is_at_least_the_norm_of_the_operator_written_out(drawn: tuple[Array, Convolution]) -> None:
    weight, given = drawn
    routes_hold(convolution, weight, given)
    matrix = operator(weight, given)
    found = convolution_norms(weight, given)
    positions = math.prod(given.outputs(weight.shape[2:]))
    channels = matrix.reshape(len(weight), positions, -1)
    assert norm(matrix) <= found["sigma"] * NOISE
    assert found["sigma"] <= norm(matrix) * (1 + 1e-9) + 1e-9  # small ones are written out
    assert norm(np.abs(matrix)) <= found["absolute"] * NOISE
    assert np.abs(matrix).sum(1).max() <= found["row_l1"] * NOISE
    assert np.linalg.norm(matrix, axis=1).max() <= found["row_l2"] * NOISE
    assert max(norm(channels[:, p]) for p in range(positions)) <= found["window"] * NOISE


@given(convolutions())
@settings(max_examples=50)
def test_direct_sums_are_the_convolution(drawn: tuple[Array, Convolution]) -> None:
    weight, given = drawn
    dims = len(given.size)
    pads = tuple(before for before, _ in given.padding)
    x = torch.randn(1, weight.shape[1] * given.groups, *given.size, dtype=torch.float64)
    w = torch.tensor(weight)
    bias = torch.arange(len(weight), dtype=torch.float64)
    assume(
        min(Convolution(given.size, given.stride, tuple((p, p) for p in pads), given.dilation, 1).outputs(w.shape[2:]))
        > 0
    )
    run = (F.conv1d, F.conv2d)[dims - 1]
    expected = run(x, w, bias, given.stride, pads, given.dilation, given.groups)
    target = (torch.ops.aten.conv1d.default, torch.ops.aten.conv2d.default)[dims - 1]
    found = convolve(target, x, w, bias, given.stride, pads, given.dilation, given.groups)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-12)
    same = (F.conv1d, F.conv2d)[dims - 1](x, w, padding="same", dilation=given.dilation, groups=given.groups)
    named = (torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding)[dims - 1]
    found = convolve(named, x, w, None, [1], "same", given.dilation, given.groups)
    torch.testing.assert_close(found, same, rtol=1e-13, atol=1e-12)


def line(*taps: float) -> Array:
    return np.array([[taps]], dtype=float)


def on_a_line(size: int, before: int, *, groups: int = 1, stride: int = 1, dilation: int = 1) -> Convolution:
    return Convolution((size,), (stride,), ((before, before),), (dilation,), groups)


# Mutants of the measurement: where it is wrong, one of these operators shows it.
SHOWN: tuple[tuple[Array, Convolution], ...] = (
    (line(1, 0, -1), on_a_line(2, 1)),  # swaps two entries: 1; on the circle of two places everything cancels
    (line(1, -1), on_a_line(7, 1)),  # strongest at the highest frequency, which an even grid has
    (line(1, 1), on_a_line(6, 0, stride=2)),
    (line(1, 2, 3, 4), on_a_line(9, 3, stride=2)),
    (line(1, 0, 1), on_a_line(4, 2, dilation=2)),
    (line(1, 1), on_a_line(8, 0, stride=2, dilation=2)),
    (line(1, -1, 1), on_a_line(12, 1)),
    (np.array([[[2.0]], [[0.25]]]), on_a_line(3, 0, groups=2)),
    (np.array([[[0.25]], [[0.5]]]), on_a_line(3, 0, groups=2)),
)
MUTANTS = [
    ("grid = max(hi - first, last - lo, 0) + 1", "grid = hi - lo + 1"),
    ("dims[-1].grid // 2 + 1]", "dims[-1].grid // 2]"),
    ("divmod(t * d, s)", "divmod(t, s)"),
    ("hi = max((before + n - 1 - r) // s for r in used)", "hi = max((n - 1 - r) // s for r in used)"),
    ("return max(spectral_norm(matrix) for", "return min(spectral_norm(matrix) for"),
    ("return max(spectral_norm(matrix) for", "return math.prod(spectral_norm(matrix) for"),
    (
        "certified = max(certified, largest(euclidean(parts, axis=1)))",
        "certified = float(euclidean(parts, axis=1).min())",
    ),
    ("repeats *= int(np.bincount(seen).max())", "repeats *= 1"),
    ("sums(np.abs(full.reshape(*full.shape[:3], -1)), axis=3)", "np.abs(full.reshape(*full.shape[:3], -1).sum(3))"),
    ("full[(slice(None),) * 3 + residues + places] =", "full[(slice(None),) * 3 + (0,) * len(dims) + places] ="),
]


def test_the_shown_operators_are_bounded() -> None:
    for weight, geometry in SHOWN:
        routes_hold(convolution, weight, geometry)


@pytest.mark.parametrize(("old", "new"), [pytest.param(*m, id=m[1]) for m in MUTANTS])
def test_a_wrong_measurement_is_caught(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect.getsource(convolution)
    assert source.count(old) == 1
    mutant = type(convolution)("certkit.bounds.mutant")
    monkeypatch.setitem(sys.modules, mutant.__name__, mutant)  # where dataclasses look their module up
    exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)  # noqa: S102 - the module's own source
    assert not all(held(mutant, weight, geometry) for weight, geometry in SHOWN)


def test_groups_count_by_their_largest_and_not_by_their_product() -> None:
    # orthogonium's get_conv_sv multiplies the norms of groups: one damped group then lowers the stated norm.
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, groups=2, padding=1).double()
    with torch.no_grad():
        conv.weight[:2] *= 0.1
    weight, given = conv.weight.detach().numpy(), Convolution((6, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 2)
    groups = [
        norm(operator(part, Convolution(given.size, given.stride, given.padding, given.dilation, 1)))
        for part in (weight[:2], weight[2:])
    ]
    assert groups[0] * groups[1] < 0.2 * max(groups)
    for found, excess in ((convolution_norms(weight, given)["sigma"], 1e-9), (by_symbol(weight, given), 0.15)):
        assert max(groups) <= found * NOISE <= max(groups) * (1 + excess)


def test_a_circle_of_the_images_own_length_is_not_a_bound() -> None:
    weight, given = SHOWN[0]
    symbol = [abs(sum(w * np.exp(2j * np.pi * f * t / 2) for t, w in enumerate(weight[0, 0]))) for f in range(2)]
    assert max(symbol) < 1e-12 < norm(operator(weight, given)) == 1.0 <= by_symbol(weight, given)


@pytest.mark.parametrize(("size", "excess"), [(8, 0.08), (16, 0.03)])
def test_the_symbol_exceeds_the_operator_by_little_and_less_on_larger_images(size: int, excess: float) -> None:
    given = Convolution((size, size), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    for seed in range(3):
        weight = np.random.default_rng(seed).normal(size=(4, 3, 3, 3))
        truth = norm(operator(weight, given))
        assert truth <= by_symbol(weight, given) <= truth * (1 + excess)
        assert truth <= by_dense(weight, given) <= truth * (1 + 1e-9)


def test_a_symbol_block_is_proved_to_a_billionth() -> None:
    given = Convolution((7, 6), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    for seed in range(3):
        weight = np.random.default_rng(seed).normal(size=(5, 3, 3, 3)) * 10.0 ** (seed * 30 - 30)
        largest = 0.0
        blocks = np.fft.fft2(weight[..., ::1], (8, 7)).transpose(2, 3, 0, 1)
        largest = np.linalg.norm(blocks, 2, axis=(2, 3)).max()
        assert largest / NOISE <= by_symbol(weight, given) <= largest * (1 + 1e-9)


def test_patches_cost_nothing() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 3, 4, 4))
    given = Convolution((64, 64), (4, 4), ((0, 0), (0, 0)), (1, 1), 1)
    truth = norm(weight.reshape(6, -1))
    for found in (convolution_norms(weight, given)["sigma"], by_symbol(weight, given)):
        assert truth / NOISE <= found <= truth * (1 + 1e-9)


def test_taps_that_only_read_padding_do_not_count() -> None:
    weight = np.full((1, 1, 7, 7), 5.0)
    weight[0, 0, 3, 3] = 1.0
    given = Convolution((1, 1), (1, 1), ((3, 3), (3, 3)), (1, 1), 1)
    assert 1.0 <= convolution_norms(weight, given)["row_l1"] <= 1 + 1e-12
    assert np.count_nonzero(live(weight, given)) == 1


def test_a_wrong_guess_costs_tightness_and_never_soundness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_guess", lambda hermitian: 1e-3)
    for seed in range(10):
        weight = np.random.default_rng(seed).normal(size=(3, 2, 3))
        given = on_a_line(9, 1)
        assert norm(operator(weight, given)) <= by_symbol(weight, given) * NOISE


def test_zero_is_zero_and_what_is_not_finite_is_refused() -> None:
    given = on_a_line(4, 1)
    assert max(convolution_norms(np.zeros((2, 2, 3)), given).values()) < 1e-300
    for bad in (math.nan, math.inf):
        with pytest.raises(
            Refusal, match=r"^a weight holds NaN or infinity; a network with such a weight has no bound$"
        ):
            convolution_norms(line(1.0, bad, 0.0), given)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9, 12, 30, 33, 225])
def test_cosines_and_sines_are_off_by_at_most_a_roundoff(count: int) -> None:
    cosines, sines = turns(count)
    with mpmath.workdps(40):
        for k in range(count):
            for found, true in ((cosines[k], mpmath.cospi), (sines[k], mpmath.sinpi)):
                assert abs(mpmath.mpf(float(found)) - true(2 * mpmath.mpf(k) / count)) <= mpmath.mpf(2) ** -53


def test_convolutions_agree_with_the_linear_rule_where_they_are_linear_maps() -> None:
    w = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    as_conv = prove(Net(lambda net, x: F.conv1d(x, net.w, stride=4).flatten(1), w=w), (2, 4))
    as_linear = prove(Net(lambda net, x: F.linear(x.flatten(1), net.w.flatten(1)), w=w), (2, 4))
    gains = [proof.ledger.steps[-1].bound for proof in (as_conv, as_linear)]
    a, b = (bound.within(bound.axes).gain.to_float() for bound in gains)
    assert abs(a - b) <= 1e-12 * b


# --- Refusals. --------------------------------------------------------------------------------------------------------

W = torch.ones(1, 1, 3)


def by_itself(x: Tensor) -> Tensor:
    return F.conv1d(x, x[:, :, :2]).flatten(1)


REFUSED = {
    "a transposed convolution": (
        lambda x: F.conv_transpose1d(x, W).flatten(1),
        f"the model: no rule for aten.conv_transpose1d.default; certkit refuses what it cannot bound. To certify this model, {REMEDY}",
    ),
    "a transposed convolution, in general form": (
        lambda x: torch.ops.aten.convolution(x, W, None, [1], [0], [1], True, [0], 1).flatten(1),
        "the model: a transposed convolution has no rule",
    ),
    "a weight that depends on the input": (
        by_itself,
        "the model: a convolution whose weight depends on the input has no rule",
    ),
    "places that depend on the input": (
        lambda x: x.gather(2, x.argsort(2)).flatten(1),
        "the model: aten.argsort.default gives torch.int64 in a torch.float32 model; that has no rule",
    ),
    "averages of windows that hang over": (
        lambda x: F.avg_pool1d(x, 2, ceil_mode=True).flatten(1),
        "the model: aten.avg_pool1d.default with ceil_mode has no rule",
    ),
    "an odd divisor": (
        lambda x: F.avg_pool2d(x[None], 1, divisor_override=3)[0].flatten(1),
        "the model: aten.avg_pool2d.default with divisor_override has no rule; multiply instead",
    ),
    "a window of padding alone": (
        lambda x: F.max_pool1d(x[:, :, :1], 2, 2, 1, 2).flatten(1),
        "the model: aten.max_pool1d.default has a window of padding alone; its value is -infinity",
    ),
    "a flip of the batch": (
        lambda x: x.flip(0).flatten(1),
        "the model: aten.flip.default moves the batch axis; that has no rule",
    ),
    "a roll of everything": (
        lambda x: x.roll(1).flatten(1),
        "the model: aten.roll.default moves the batch axis; that has no rule",
    ),
    "a choice of samples": (
        lambda x: x[[0]].flatten(1),
        "the model: aten.index.Tensor moves the batch axis; that has no rule",
    ),
    "a batch taken apart": (
        lambda x: x.unbind(0)[0].flatten()[None],
        "the model: aten.unbind.int takes the batch axis apart; that has no rule",
    ),
    "an interpolation": (
        lambda x: F.interpolate(x, scale_factor=2, mode="linear").flatten(1),
        f"the model: no rule for aten.upsample_linear1d.vec; certkit refuses what it cannot bound. To certify this model, {REMEDY}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused(name: str) -> None:
    forward, words = REFUSED[name]
    with pytest.raises(CertkitError) as caught:
        Interpreter(export(*small(forward, (1, 4))))("l2", BOX)
    assert str(caught.value) == words


def test_a_complex_convolution_is_refused() -> None:
    weight = torch.ones(1, 1, 3, dtype=torch.complex64)
    with pytest.raises(CertkitError, match=r"complex|has no rule|no rule for"):
        Interpreter(export(*small(lambda x: F.conv1d(x.to(torch.complex64), weight).abs().flatten(1), (1, 4))))(
            "l2", BOX
        )


def test_images_without_a_batch_are_refused() -> None:
    with pytest.raises(CertkitError, match=r"has no rule; expected a batch of images with channels$"):
        prove(Net(lambda net, x: F.conv1d(x.flatten(1), net.w)[:, 0][None] * 1.0, w=W), (1, 4))


# --- A whole network. -------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 8, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_small_convolutional_network_certifies_end_to_end(norm: Any, tmp_path: Path) -> None:
    train, test = load("digits", "train"), load("digits", "test", limit=60)
    torch.manual_seed(0)
    model = Small()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    for _ in range(60):
        loss = F.cross_entropy(model(train.images) * 3, train.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    found = certkit.certify(model, test, eps=["0.02" if norm == "l2" else "0.001"], norm=norm, out=tmp_path)
    assert found.clean.count >= 48
    assert found.certified[0].certified.count >= 20
    assert {"convolution", "window-max", "linear"} <= {step["rule"] for step in found.ledger["steps"]}


def test_windows_that_hold_their_entries_at_different_places_are_not_averaged_place_by_place() -> None:
    # Two windows over one entry: each holds it, at another place, and without counting padding each is that entry.
    module = nn.Sequential(nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False), nn.Flatten())
    proof = prove(module.eval(), (1, 1, 1))
    node, step = proof.nodes[-1]
    slope = float(
        torch.linalg.matrix_norm(proof.jacobians(node, torch.zeros(1, 1, 1, 1, dtype=torch.float64))[0], ord=2)
    )
    assert slope == 2.0
    assert step.bound.within(step.bound.axes).gain.to_float() >= slope


def test_a_point_that_average_pooling_flips_inside_its_radius_is_not_certified() -> None:
    layers = nn.Sequential(
        nn.Conv2d(1, 1, 4, bias=False),
        nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    with torch.no_grad():
        layers[0].weight.fill_(0.25)
        layers[3].weight.copy_(torch.stack([torch.ones(4), -torch.ones(4)]))
        layers[3].bias.copy_(torch.tensor([-7.5, 7.5]))
    gain = prove(layers.double().eval(), (1, 4, 4), box=(0.0, 1.0)).ledger.pairs.gain[0][1].to_float()
    assert 8 <= gain <= 8 * (1 + 1e-9)
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    margin = float((layers(x)[0, 0] - layers(x)[0, 1]).detach())
    assert float(layers(x - 0.05625).detach()[0, 0] - layers(x - 0.05625).detach()[0, 1]) < 0
    assert margin / gain < 0.225


def test_float32_arrays_are_measured_as_float64() -> None:
    w = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    assert spectral_norm(w) == spectral_norm(w.astype(np.float64)) >= float(np.linalg.norm(w.astype(np.float64), 2))


def test_a_pad_of_the_batch_is_refused() -> None:
    with pytest.raises(Refusal):
        prove(Net(lambda net, x: F.pad(x, (0, 0, 1, -1))), (2,))
