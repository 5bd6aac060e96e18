"""The 17 places where the reference code of arXiv 2507.13338 computes a number that is no upper bound, each tried here.

Each test makes a small network in which the reference's number is below what really happens, and holds certkit's bound
against it. Names begin with the number of the error; the last is the one that is none.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.number import Up
from certkit.bounds.rules.pointwise import GELU_SLOPE
from certkit.bounds.spectral import spectral_norm
from certkit.config import preset
from certkit.engine.certify import pair_matrix
from certkit.engine.slopes import attained_slope
from certkit.models import activations
from certkit.models.attention import CausalAttention, Rotary
from certkit.models.geometry import Spectral, norm_over_cap
from certkit.models.layers import GELU, Linear
from certkit.training.distributed import World
from certkit.training.measure import largest_entries
from certkit.training.newton_schulz import SETS, orthogonalised
from certkit.training.train import made
from tests.modules import MultiHead, Net, Proof, points, prove

BOX = (-1.0, 1.0)


def gain(proof: Proof) -> float:
    """The certified l2 gain of the output, rounded up."""
    last = proof.ledger.steps[-1].bound
    return last.within(last.axes).gain.to_float()


def slope(proof: Proof, starts: Tensor, box: tuple[float, float] = BOX, rounds: int = 10) -> float:
    """The l2 slope of the output that a search attains."""
    last = proof.ledger.steps[-1].bound
    off = last.within(last.axes).error.to_float()
    return attained_slope(
        lambda x: proof.value(proof.program.output, x), starts, "l2", box=box, error=off, rounds=rounds
    ).value


def same_tokens(count: int, tokens: int, width: int) -> Tensor:
    """Inputs whose tokens are all alike: then attention hands every value on, whatever it looks at."""
    one = 2 * torch.rand(count, 1, width, generator=torch.Generator().manual_seed(0)).double() - 1
    return one.expand(count, tokens, width).contiguous()


@pytest.mark.parametrize(("heads", "least"), [(4, 1.2), (6, 1.4), (12, 1.9)])
def test_01_every_head_counts(heads: int, least: float) -> None:
    # Identity weights: each head hands on its own slice of the token, and different heads may look at different tokens.
    # The reference counts one head and claims 1.
    proof = prove(MultiHead(heads, scale=1.0), (4, 2 * heads), box=(-2.0, 2.0))
    starts = points((4, 2 * heads), (-2.0, 2.0), 48, 1)
    assert least < slope(proof, starts, (-2.0, 2.0)) <= gain(proof)


def scores_alone(scale: float) -> Proof:
    """A query near 0 against keys 3 and -3 with values 2 and -2 that stand still: 2 tanh(3 scale q), of slope 6 scale."""

    def forward(net: object, q: Tensor) -> Tensor:
        still = F.linear(q, torch.zeros(2, 1)).view(1, 2, 1)
        keys, values = (still + torch.tensor([[n], [-n]]) for n in (3.0, 2.0))
        return F.scaled_dot_product_attention(q, keys, values, scale=scale).flatten(1)

    return prove(Net(forward), (1, 1), box=(-1e-3, 1e-3))


@pytest.mark.parametrize("scale", [1.0, 4.0, 24.0])
def test_02_the_scale_of_scores_counts_in_full_and_not_by_its_root(scale: float) -> None:
    proof = scores_alone(scale)
    at = torch.zeros(1, 1, 1, dtype=torch.float64)
    steepest = float(proof.jacobians(proof.program.output, at).abs().max())
    assert steepest == pytest.approx(6 * scale)
    assert steepest * (1 - 1e-9) <= gain(proof)


@pytest.mark.parametrize("scale", [0.177, 0.001])
def test_03_the_scale_of_scores_does_not_shrink_the_values(scale: float) -> None:
    # The reference multiplies both paths by the scale: at 0.177 it claims 5.65 times less than values alone move.
    proof = prove(MultiHead(1, scale=scale), (3, 2))
    assert 0.999 < slope(proof, same_tokens(8, 3, 2)) <= gain(proof)


def test_04_a_gelu_over_its_slope_is_1_lipschitz_and_not_less() -> None:
    # The reference divides by 1.1289 again, although the activation already is: 0.886 for this MLP of norms 1.
    eye = Linear(2, 2, bias=False), Linear(2, 2, bias=False)
    for layer in eye:
        layer.weight.data.copy_(torch.eye(2))
    proof = prove(nn.Sequential(eye[0], GELU(), eye[1]).eval(), (2,), box=(-3.0, 3.0))
    at = torch.full((1, 2), math.sqrt(2), dtype=torch.float64)
    steepest = float(torch.linalg.matrix_norm(proof.jacobians(proof.program.output, at)[0], ord=2))
    assert 1 - 1e-6 < steepest <= gain(proof) < 1 + 1e-6


@pytest.mark.parametrize(("name", "derivative"), [("none", "1.128904145185154786"), ("tanh", "1.128993068658771766")])
def test_05_no_slope_of_gelu_is_rounded_below_the_truth(name: str, derivative: str) -> None:
    assert Up.of("1.1289") < Up.of(derivative) <= GELU_SLOPE[name] <= Up.of(derivative) * 1.000001


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_06_every_block_and_every_factor_of_the_graph_counts(depth: int) -> None:
    # x -> x/2 + 2x/2 in each block, and 8 at the end: 1.5^depth 8. The reference knows three blocks and no final factor.
    def forward(net: object, x: Tensor) -> Tensor:
        for _ in range(depth):
            x = 0.5 * x + 0.5 * F.linear(x, 2 * torch.eye(2))
        return 8 * x

    exact = 8 * 1.5**depth
    assert exact <= gain(prove(Net(forward), (2,))) <= exact * (1 + 1e-6)


def test_07_layers_are_bounded_in_the_order_in_which_they_run() -> None:
    # Attention after a factor of 5 looks at large tokens, before it at small ones. Backwards, the first would get the
    # bound of the second, which it exceeds.
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, scale=1.0)

    large = prove(Net(lambda net, x: (attend(5 * x) * 0.2).flatten(1)), (3, 1), box=(-0.6, 0.6))
    small = prove(Net(lambda net, x: (5 * attend(x * 0.2)).flatten(1)), (3, 1), box=(-0.6, 0.6))
    starts = points((3, 1), (-0.6, 0.6), 96, 3)
    assert gain(small) < slope(large, starts, (-0.6, 0.6)) <= gain(large)
    assert [step.rule for step in large.ledger.steps if step.rule in ("scale", "attention")] == [
        "scale",
        "attention",
        "scale",
    ]


def test_08_sizes_start_from_the_inputs_and_not_from_1() -> None:
    # The same attention on inputs up to 3 is steeper than its bound on inputs up to 1.
    module, wide = MultiHead(1, scale=0.5), (-3.0, 3.0)
    near, far = prove(module, (3, 1)), prove(module, (3, 1), box=wide)
    starts = points((3, 1), wide, 96, 3)
    assert gain(near) < slope(far, starts, wide, rounds=20) <= gain(far)


def test_09_a_radius_rests_on_differences_of_logits_in_l2() -> None:
    # Ten logits that are ten inputs: in RMS both move alike, gain 1. The difference of two of them moves by sqrt(2).
    module = Net(lambda net, x: F.linear(x, torch.eye(10)))
    pairs = pair_matrix(prove(module, (10,)).ledger)
    off_diagonal = pairs[~np.eye(10, dtype=bool)]
    assert (off_diagonal >= math.sqrt(2)).all()
    assert (off_diagonal <= math.sqrt(2) * (1 + 1e-9)).all()
    # In RMS, 2 inputs to 8 logits of norm 1 is sqrt(8/2) in l2.
    tall = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)))[0] * 2
    assert Spectral(units="rms").limit((8, 2)) == 2
    proof = prove(Net(lambda net, x: F.linear(x, tall)), (2,))
    assert slope(proof, torch.zeros(1, 2)) > 2 * (1 - 1e-5)
    assert gain(proof) >= float(spectral_norm(tall.double().numpy())) >= 2 * (1 - 1e-6)


def test_10_a_norm_is_rounded_up_where_a_float32_svd_rounds_down() -> None:
    below = 0
    for seed in range(12):
        w = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        with mpmath.workdps(40):
            true = mpmath.svd_r(mpmath.matrix(w.double().tolist()), compute_uv=False)[0]
            below += bool(mpmath.mpf(float(torch.linalg.svdvals(w)[0])) < true)
            assert mpmath.mpf(spectral_norm(w.double().numpy())) >= true
    assert below >= 3


def test_11_a_norm_is_no_power_iteration() -> None:
    # Singular values from 1 to 0.9: some steps of power iteration stay below the largest, and a nominal cap of 1 as well.
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(32, 32, generator=generator).double())[0] for _ in range(2))
    w = u @ torch.diag(torch.linspace(1.1, 0.9, 32, dtype=torch.float64)) @ v
    x = torch.randn(32, generator=generator).double()
    for _ in range(16):
        x = w.T @ (w @ (x / x.norm()))
    assert float((w @ (x / x.norm())).norm()) < 1.1 * (1 - 1e-3)
    assert 1.1 * (1 - 1e-12) <= spectral_norm(w.numpy()) <= 1.1 * (1 + 1e-9)


@pytest.mark.parametrize(("name", "least"), [("five-step", 1.1), ("jordan", 1.1)])
def test_12_what_an_iteration_overshoots_is_measured_on_the_weight(name: str, least: float) -> None:
    # A spectrum from 1 down to 1/100: the rule says that every singular value ends at 1.
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(s)))[0] for s in (0, 1))
    w = orthogonalised(u @ torch.diag(torch.logspace(0, -2, 64)) @ v, SETS[name].triples)
    true = float(torch.linalg.matrix_norm(w.double(), ord=2))
    assert least < true <= norm_over_cap(w, Spectral()) <= true * (1 + 1e-9)


@pytest.mark.parametrize("norm", [1.0085, 1.0276, 1.148])
def test_13_a_cap_that_was_not_held_shows_in_the_bound(norm: float) -> None:
    # The published soft cap, hard cap and bfloat16 orthogonalisation end this far above their cap of 1.
    layer = Linear(6, 6, bias=False)
    layer.weight.data.mul_(norm)
    true = float(torch.linalg.matrix_norm(layer.weight.detach().double(), ord=2))
    assert norm * (1 - 1e-5) < true <= gain(prove(layer.eval(), (6,)))
    assert norm_over_cap(layer.weight, Spectral()) >= true


@pytest.mark.parametrize(
    "normalise",
    [
        pytest.param(lambda x: F.layer_norm(x, (4,), eps=1e-5), id="layer norm"),
        pytest.param(lambda x: F.rms_norm(x, (4,), eps=1e-5), id="rms norm"),
        pytest.param(lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5), id="rms norm, written out"),
    ],
)
def test_14_a_normalisation_is_as_steep_as_one_over_the_root_of_eps(normalise: Callable[[Tensor], Tensor]) -> None:
    proof = prove(Net(lambda net, x: normalise(x)), (4,))
    at = torch.zeros(1, 4, dtype=torch.float64)
    steepest = float(torch.linalg.matrix_norm(proof.jacobians(proof.program.output, at)[0], ord=2))
    assert 316.2 < steepest <= gain(proof)


def test_15_a_head_beyond_its_cap_is_taken_as_it_is() -> None:
    # Logged as 1.065 under a constraint that says 1.
    torch.manual_seed(0)
    model = made(preset("digits-vit"), "cpu").eval()
    with torch.no_grad():
        model.head.weight.mul_(1.065)
    proof = prove(model, (1, 8, 8), box=(0.0, 1.0))
    _, step = proof.last("linear")
    true = float(torch.linalg.matrix_norm(model.head.weight.detach().double(), ord=2))
    assert 1.06 < true <= step.evidence["sigma"].to_float()
    # Every value that runs has a size in the ledger: queries, keys, values and hidden entries too.
    assert len([s for s in proof.ledger.steps if s.op == "aten.linear.default"]) == 8


def test_16_a_mean_over_processes_is_kept_and_every_block_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # The reference reduces a tensor that nobody holds, so its accuracy is that of the first process.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(0.5))  # the other's accuracy
    assert World(rank=0, size=2).mean(0.25) == 0.375
    model = made(preset("digits-vit"), "cpu").eval()
    seen = largest_entries(model, torch.rand(2, 1, 8, 8))
    assert seen.keys() == {*activations(model), "logits"}
    assert all(entry > 0 for entry in seen.values())


@pytest.mark.parametrize("tokens", [3, 9])
def test_17_what_is_no_error_stays_sound(tokens: int) -> None:
    # Length of the text, rotations of queries and keys, and masks cost nothing in the reference's norm; here they are bounded.
    torch.manual_seed(0)
    layer = CausalAttention(4, 2, Rotary(tokens, 2)).eval()
    proof = prove(nn.Sequential(layer, nn.Flatten()).eval(), (tokens, 4))
    assert 0.1 < slope(proof, points((tokens, 4), BOX, 24, 1)) <= gain(proof)


def test_every_error_has_its_test() -> None:
    found = re.findall(r"^test_(\d\d)_", "\n".join(vars(sys.modules[__name__])), re.MULTILINE)
    assert [int(number) for number in found] == list(range(1, 18))
