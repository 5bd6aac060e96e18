"""Published failures of certifiers, one test each: none of them may happen here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit import certified
from certkit.bounds.number import Up
from certkit.certified import certify_rows, radii
from certkit.data import Dataset
from certkit.engine.certify import certify, pair_matrix
from certkit.errors import CertkitError, ConfigError, NoRule, Refusal
from certkit.records import Certificate, Eps
from tests.modules import MultiHead, Net, points, prove, slopes

L2 = frozenset({1})


def linear(rows: Sequence[Sequence[float]], bias: Sequence[float] | None = None) -> Net:
    w, b = torch.tensor(rows), None if bias is None else torch.tensor(bias)
    return Net(lambda net, x: F.linear(x, w, b))


def certificate_of(
    module: nn.Module, images: Tensor, labels: Sequence[int], out: Path, eps: Sequence[Any], classes: int = 2
) -> tuple[Certificate, certified.Certified]:
    names = [str(i) for i in range(classes)]
    data = Dataset.of(images, torch.tensor(labels), name="made", classes=names)
    found = certify(module, data, eps=eps, out=out, threads=1)
    return found, certified.read(out / "certified.parquet")


def test_gloro_9_a_tie_is_not_certified(tmp_path: Path) -> None:
    # GloRo replaces every logit that equals the top by minus infinity: a tie is then certified robust.
    found, table = certificate_of(linear([[1.0], [1.0]]), torch.tensor([[0.5], [0.0]]), [0, 1], tmp_path, [0, 0.1])
    assert [at.certified.count for at in found.certified] == [0, 0]
    assert found.clean.count == 0
    assert table.radius.tolist() == [0.0, 0.0]


def test_gloro_8_a_small_weight_is_not_underestimated() -> None:
    # x / (|x| + 1e-9) turns a weight of 1e-5 into 9.434563e-06.
    weight = torch.tensor([[1e-5]])
    gain = prove(Net(lambda net, x: F.linear(x, weight)), (1,)).ledger.steps[-1].bound.within(L2).gain
    assert Up.of(float(weight)) <= gain <= Up.of("1.0001E-5")


def test_certvit_four_times_the_identity_is_four() -> None:
    # sqrt(|sum(Wx)| / |sum(x)|) gives 2.
    gain = prove(linear((4 * np.eye(3)).tolist()), (3,)).ledger.steps[-1].bound.within(L2).gain
    assert Up.of(4) <= gain <= Up.of("4.000000001")


def test_gloro_an_unknown_layer_is_refused_and_not_taken_for_1() -> None:
    with pytest.raises(NoRule, match=r"no rule for aten\.tan\.default"):
        prove(Net(lambda net, x: torch.tan(x)), (2,))


@pytest.mark.parametrize(
    ("approximate", "at", "slope"),
    [("none", math.sqrt(2), 1.1289041451851548), ("tanh", 1.41850400879, 1.1289930686587718)],
)
def test_muon_code_the_slope_of_gelu_is_not_1_1289(approximate: str, at: float, slope: float) -> None:
    proof = prove(Net(lambda net, x: F.gelu(x, approximate=approximate)), (1,), box=(-3.0, 3.0))
    gain = proof.ledger.steps[-1].bound.within(L2).gain
    assert gain >= Up.of(slope)
    steepest = slopes(
        proof.jacobians(proof.program.output, torch.tensor([[at]], dtype=torch.float64)), (1, 1), L2, "l2"
    )
    assert 1.1289 < float(steepest[0]) <= gain.to_float()


def test_muon_code_layer_norm_is_not_taken_for_1() -> None:
    # At a token of equal entries its slope is 1/sqrt(eps), 316.2 at eps 1e-5; the reference code says 1.
    proof = prove(nn.LayerNorm(4).eval(), (4,))
    node, step = proof.last("layer-norm")
    steepest = torch.linalg.matrix_norm(proof.jacobians(node, torch.zeros(1, 4, dtype=torch.float64))[0], ord=2)
    assert 316.2 < float(steepest) <= step.bound.within(step.bound.axes).gain.to_float() < 316.3


def test_certvit_a_normalisation_in_front_of_a_branch_is_not_left_out() -> None:
    # CertViT multiplies the constants of attention and MLP and skips the layer norm before them, 316 at its worst.
    norm = nn.LayerNorm(4).eval()
    proof = prove(Net(lambda net, x: x + F.linear(norm(x), torch.eye(4))), (4,))
    at = torch.zeros(1, 4, dtype=torch.float64)
    steepest = torch.linalg.matrix_norm(proof.jacobians(proof.program.output, at)[0], ord=2)
    gain = proof.ledger.steps[-1].bound.within(L2).gain.to_float()
    assert 317 < float(steepest) <= gain < 318


def test_certvit_attention_has_a_number_and_not_nan() -> None:
    proof = prove(MultiHead(2), (3, 4))
    gain = proof.ledger.steps[-1].bound.within(frozenset({1})).gain.to_float()
    assert 1 <= gain < 100


def test_sll_2_a_head_with_unit_rows_is_not_1_lipschitz_by_pairs(tmp_path: Path) -> None:
    # Rows of length 1 that point apart: the difference of the two logits moves by almost 2, whatever |W| is said to be.
    found, _ = certificate_of(linear([[1.0, 0.0], [-0.8, 0.6]]), torch.tensor([[0.5, 0.1]]), [0], tmp_path, [0.1])
    moved = math.hypot(1.8, 0.6)
    assert moved <= found.pair_gain[0][1] <= moved * (1 + 1e-6)


def test_gram_iteration_an_orthogonal_768x768_is_1_to_a_billionth() -> None:
    q, _ = torch.linalg.qr(torch.randn(768, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    module = Net(lambda net, x: F.linear(x, net.q), q=q)
    module.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    gain = prove(module, (768,)).ledger.steps[-1].bound.within(L2).gain
    assert Up.of(1 - 1e-13) <= gain <= Up.of(1 + 1e-9)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_muon_code_no_jacobian_of_attention_exceeds_its_bound(heads: int) -> None:
    shape, box = (5, 12), (-1.5, 1.5)
    proof = prove(MultiHead(heads, scale=0.7), shape, box=box)
    generator = torch.Generator().manual_seed(heads)
    centre = torch.randn(24, 2, 12, generator=generator, dtype=torch.float64).clamp(*box)
    side = torch.randint(0, 2, (24, 5, 1), generator=generator).expand(-1, -1, 12)
    xs = torch.cat([points(shape, box, 48, 0), torch.take_along_dim(centre, side, 1)])
    found = slopes(proof.jacobians(proof.program.output, xs), (1, 60), L2, "l2")
    gain = proof.ledger.steps[-1].bound.within(L2).gain.to_float()
    assert 1 < float(found.max()) <= gain


class Small(nn.Module):
    """Attention and a sorting layer, in a chosen precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.value, self.head = nn.Linear(3, 4).to(dtype), nn.Linear(4, 3).to(dtype)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.value(x)
        y = h + F.scaled_dot_product_attention(h, h, h, scale=0.1)
        out: Tensor = self.head(y.abs().mean(1)) * 8
        return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_deel_15_no_attack_succeeds_inside_a_certified_radius(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Small(dtype)
    images = points((4, 3), (0.0, 1.0), 24, 0).float()
    with torch.no_grad():
        labels = model(images.to(dtype)).argmax(1)
    found, table = certificate_of(model, images, labels.tolist(), tmp_path, [0.01], classes=3)
    radius = torch.tensor(table.radius)
    assert int((radius > 1e-3).sum()) >= 10
    assert found.agreement.samples == 24
    x0, edge = images.double(), radius.view(-1, 1, 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = x0 + edge * 0.2 * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        for _ in range(25):
            x = x.to(dtype).detach().requires_grad_(True)
            F.cross_entropy(model(x), labels, reduction="sum").backward()
            assert x.grad is not None
            step = x.grad.double()
            moved = x.detach().double() + edge / 4 * step / step.flatten(1).norm(dim=1).clamp(min=1e-300).view(-1, 1, 1)
            moved = moved.clamp(0.0, 1.0) - x0
            length = moved.flatten(1).norm(dim=1).view(-1, 1, 1)
            x = x0 + moved * (edge * (1 - 1e-6) / length.clamp(min=1e-300)).clamp(max=1.0)
            with torch.no_grad():
                assert torch.equal(model(x.to(dtype)).argmax(1)[radius > 0], labels[radius > 0])


def test_deel_15_the_radius_of_a_linear_classifier_is_its_distance_to_the_boundary(tmp_path: Path) -> None:
    # Logits (x, y): the boundary is x = y, at |x - y| / sqrt(2). Just beyond it the class changes.
    found, table = certificate_of(
        linear([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.75, 0.25]]), [0], tmp_path, [0.3, 0.4]
    )
    true = 0.5 / math.sqrt(2)
    assert true * (1 - 1e-9) <= table.radius[0] <= true
    assert [at.certified.count for at in found.certified] == [1, 0]


def test_murray_a_bias_that_swallows_the_margin_leaves_nothing_certified(tmp_path: Path) -> None:
    # Both logits carry 1e17, where a float64 step is 16: the exact function has margins, this centre cannot know them.
    found, table = certificate_of(
        linear([[1.0], [-1.0]], [1e17, 1e17]), torch.tensor([[1.0], [0.5]]), [0, 0], tmp_path, [0]
    )
    assert found.pair_error > 16
    assert found.certified[0].certified.count == found.clean.count == 0
    assert not table.radius.any()


def test_murray_a_bias_of_a_million_is_more_than_float32_can_carry() -> None:
    module = linear([[0.01], [-0.01]], [1e6, 1e6])
    logits = np.array([[1e6 + 0.01, 1e6 - 0.01]])
    for arithmetic, holds in (("float64", True), ("float32", False)):
        ledger = prove(module, (1,), arithmetic=arithmetic).ledger
        gain, error = pair_matrix(ledger), ledger.pairs.error.to_float()
        table = certify_rows(np.zeros(1, np.int64), np.zeros(1, np.int64), logits, gain, error)
        assert bool(table.radius[0] > 0.1) is holds


def test_a_bias_that_is_taken_back_is_charged_for() -> None:
    # (x + 1e17) - 1e17 is x, and float64 gives a multiple of 16.
    proof = prove(Net(lambda net, x: (x + 1e17) - 1e17), (2,))
    assert proof.ledger.pairs.error >= Up.of(16)
    at = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    assert float((proof.value(proof.program.output, at) - at).abs().max()) <= proof.ledger.pairs.error.to_float() / 2


def test_eps_0_certifies_what_is_classified_beyond_rounding_and_no_more(tmp_path: Path) -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found, _ = certificate_of(linear([[1.0, 0.0], [0.0, 1.0]]), images, [0, 0, 0], tmp_path, [0])
    assert found.certified[0].certified.count == found.clean.count == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(bad: float, tmp_path: Path) -> None:
    module = Net(lambda net, x: F.linear(x, net.w), w=torch.tensor([[1.0], [bad]]))
    with pytest.raises(Refusal, match=r"^weight 'w' holds NaN or infinity; a network with such a weight has no bound$"):
        certificate_of(module, torch.tensor([[0.5]]), [0], tmp_path, [0.1])
    assert not any(tmp_path.iterdir())


def test_a_gain_beyond_float64_is_a_true_statement_without_a_radius() -> None:
    module = Net(lambda net, x: x * 1e200 * 1e200)
    with pytest.raises(Refusal, match=r"beyond 1\.8e308: a true statement, but no radius follows"):
        pair_matrix(prove(module, (2,)).ledger)


def test_logits_and_classes_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        certificate_of(linear([[1.0], [2.0], [3.0]]), torch.tensor([[0.5]]), [0], tmp_path, [0.1])
    assert str(caught.value) == "the model gives (3,) numbers per sample; expected one logit for each of 2 classes"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("classes", [0, 1])
def test_without_two_classes_nothing_is_certified(classes: int, tmp_path: Path) -> None:
    with pytest.raises(CertkitError) as caught:
        certificate_of(linear([[1.0]]), torch.tensor([[0.5]]), [0], tmp_path, [0.1], classes=classes)
    assert (
        str(caught.value)
        == (
            "data set 'made': the label of sample 0 is 0, outside 0 to -1; 1 of 1 samples have no class",
            "the data set names one class only; there is nothing that a prediction could change to",
        )[classes]
    )
    assert not any(tmp_path.iterdir())


def test_no_eps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no eps was given; expected at least one radius such as 0\.25 or 36/255$"):
        certificate_of(linear([[1.0], [2.0]]), torch.tensor([[0.5]]), [0], tmp_path, [])


def test_36_over_255_is_certified_at_no_less_than_the_fraction(tmp_path: Path) -> None:
    # 36/255 is no float64. A radius that reaches the float below it, and not the fraction, must not count.
    exact = Fraction(36, 255)
    eps = [Eps.of(given) for given in ("36/255", exact, " 36/255 ")]
    assert {e.value for e in eps} == {eps[0].value}
    assert Fraction(math.nextafter(eps[0].value, 0.0)) < exact <= Fraction(eps[0].value)
    gain, error = np.array([[0.0, 1.0], [1.0, 0.0]]), 0.0
    just_below = np.array([[math.nextafter(eps[0].value, 0.0), 0.0]])
    assert radii(just_below, gain, error)[0] < eps[0].value
    module, images = linear([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.7, 0.5]])
    counts = [
        certificate_of(module, images, [0, 0, 0], tmp_path / str(n), [given])[0].certified[0].certified.count
        for n, given in enumerate(("36/255", exact))
    ]
    assert counts == [2, 2]
