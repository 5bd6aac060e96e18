"""What an adversarial example counts as: distances, radii, labels, clean errors, noise and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import certkit
from certkit.attacks import attack
from certkit.attacks.backend import Proposed, Proposer
from certkit.attacks.draws import directions, generator, start
from certkit.attacks.measure import between, inside
from certkit.attacks.model import predictions
from certkit.attacks.suites import METHODS, SUITES, suite
from certkit.campaign import Campaign, distance_up
from certkit.errors import ConfigError, Refusal
from certkit.records import AttackNorm, Check, Norm, Subject
from tests.toys import Samples

SHAPE = (1, 2, 3)
SUBJECT = Subject(sha256="1" * 64, architecture="test", parameters=21)
NORMS: tuple[Norm, ...] = ("l2", "linf")
EVERY: tuple[AttackNorm, ...] = ("l2", "linf", "l1", "l0", "token")
seeds = st.integers(0, 10**6)
each_norm = pytest.mark.parametrize("norm", NORMS)


class Linear(nn.Module):
    """Three classes, one matrix: the distance to the nearest boundary is known in closed form."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


def toy(model: nn.Module, count: int = 20, wrong: int = 4, spread: float = 0.6) -> Samples:
    """Inputs near the middle of the box, labelled by the model, the first few of them falsely."""
    images = 0.5 + spread * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)) - 0.5)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % 3
    return Samples(images, labels)


def run(model: nn.Module, data: Samples, out: Path, norm: Norm = "l2", **given: Any) -> Campaign:
    return attack(model, data, subject=SUBJECT, norm=norm, out=out, **{"eps": ["0.02", "0.05", "0.3"], **given})


def proposed(examples: Tensor) -> Proposed:
    return Proposed(examples, torch.zeros(len(examples), dtype=torch.bool))


def together(rest: tuple[Any, ...]) -> int:
    """How many restarts a call of ``propose`` asks for, from what follows its first three arguments."""
    return int(rest[4]) if len(rest) > 4 else 1


def check(campaign: Campaign, name: str) -> Check:
    (found,) = [one for one in campaign.checks if one.id == name]
    return found


def boundary(model: Linear, data: Samples, norm: Norm) -> np.ndarray:
    """The distance from each sample to the nearest boundary: margin / dual norm of the difference of two rows."""
    weight, order = model.weight.detach().double(), 2 if norm == "l2" else 1
    logits = (data.images.flatten(1).double() - 0.5) @ weight.T
    found = np.full(len(data.labels), np.inf)
    for row, label in enumerate(data.labels.tolist()):
        for other in {0, 1, 2} - {label}:
            margin = float(logits[row, label] - logits[row, other])
            found[row] = min(found[row], margin / float(torch.linalg.vector_norm(weight[label] - weight[other], order)))
    return found


@pytest.fixture(params=NORMS, scope="module")
def linear(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Linear, Samples, Campaign]:
    model = Linear().eval()
    data = toy(model)
    return model, data, run(model, data, tmp_path_factory.mktemp("linear"), request.param)


# Distances


def test_a_linear_classifier_is_broken_at_its_closed_form_distance_and_never_nearer(linear: Any) -> None:
    model, data, campaign = linear
    exact = boundary(model, data, campaign.plan.threat.norm)[campaign.clean_correct]
    reached = campaign.distance[campaign.clean_correct]
    assert (reached >= exact * (1 - 1e-5)).all()  # float32 logits round the boundary by that much
    assert np.median(reached / exact) < 1.01
    assert (reached <= exact * 1.15).all()  # the quick suite's step sizes end at a few percent


def test_every_stored_example_is_in_the_box_misclassified_and_as_far_away_as_stated(linear: Any) -> None:
    model, data, campaign = linear
    for row in np.flatnonzero(campaign.distance >= 0):
        example = torch.from_numpy(campaign.adversarial[row : row + 1])
        assert 0 <= float(example.min()) <= float(example.max()) <= 1
        assert int(model(example).argmax()) == campaign.adversarial_prediction[row] != campaign.label[row]
        moved = (example.double() - data.images[row].double()).flatten()
        size = float(torch.linalg.vector_norm(moved, 2 if campaign.plan.threat.norm == "l2" else math.inf))
        assert campaign.distance[row] == pytest.approx(size, rel=1e-12)


def exact_distance_is_at_most(norm: Norm, a: np.ndarray, b: np.ndarray, bound: float) -> bool:
    moves = [abs(Fraction(float(x)) - Fraction(float(y))) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
    return max(moves) <= Fraction(bound) if norm == "linf" else sum(m * m for m in moves) <= Fraction(bound) ** 2


@given(seed=seeds, scale=st.sampled_from([1e-30, 1e-7, 1e-3, 1.0]))
@settings(deadline=None)
def test_a_distance_is_never_below_the_true_one_and_hardly_above(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((1, 7), np.float32), (rng.random((1, 7)) * scale).astype(np.float32)
    for norm in NORMS:
        bound = float(distance_up(norm, a, b)[0])
        assert exact_distance_is_at_most(norm, a, b, bound)
        assert not exact_distance_is_at_most(norm, a, b, bound * (1 - 1e-14))


@each_norm
def test_an_input_is_at_distance_zero_from_itself_and_a_quarter_is_exact_in_linf(norm: Norm) -> None:
    x = np.full((1, 4), 0.5, np.float32)
    assert distance_up(norm, x, x)[0] == 0
    assert distance_up("linf", x, x + np.float32(0.25))[0] == 0.25


@given(seed=seeds, eps=st.sampled_from([1e-6, 8 / 255, 0.25, 0.5]), over=st.sampled_from([1 + 1e-7, 1.001, 3.0]))
@settings(deadline=None)
def test_an_example_that_overshoots_is_pulled_inside_along_its_own_way(seed: int, eps: float, over: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.random((3, *SHAPE), np.float32)
    move = rng.standard_normal(x.shape)
    for norm in NORMS:
        sizes = np.abs(move).max(axis=(1, 2, 3)) if norm == "linf" else np.sqrt((move**2).sum(axis=(1, 2, 3)))
        far = np.clip(x + move * (eps * over / sizes).reshape(-1, 1, 1, 1), 0, 1).astype(np.float32)
        near = inside(norm, x, far, eps)
        assert (distance_up(norm, x, near) <= eps).all()
        assert all(exact_distance_is_at_most(norm, a, b, eps) for a, b in zip(x, near, strict=True))
        assert ((near >= np.minimum(x, far)) & (near <= np.maximum(x, far))).all()
        kept = distance_up(norm, x, far) <= eps
        assert np.array_equal(near[kept], far[kept])


def test_an_overshooting_attack_counts_at_its_radius_instead_of_being_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eps = 0.25

    def overshoot(self: Any, spec: Any, x: Tensor, *rest: Any) -> Proposed:
        return proposed((x + torch.where(x > 0.5, -1, 1) * eps * (1 + 1e-6)).repeat(together(rest), 1, 1, 1))

    class Away(nn.Module):
        """Right at the input and wrong almost everywhere else."""

        def forward(self, x: Tensor) -> Tensor:
            moved = (x - 0.5).abs().flatten(1).amax(1)
            return torch.stack([0.2 - moved, moved - 0.2, -1 - moved], 1)

    monkeypatch.setattr(Proposer, "propose", overshoot)
    data = Samples(torch.full((6, *SHAPE), 0.5), torch.zeros(6, dtype=torch.int64))
    campaign = run(Away(), data, tmp_path, norm="linf", eps=[eps])
    assert all(name is not None for name in campaign.attack)
    assert (campaign.by_attack["Linf noise floor"] == eps).all()


def test_what_a_backend_claims_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not a number, outside the box, and the input itself: none is an example.
    answers: list[Callable[[Tensor], Tensor]] = [lambda x: x * math.nan, lambda x: x, lambda x: x / 0]
    model = Linear()
    for number, answer in enumerate(answers):
        monkeypatch.setattr(
            Proposer,
            "propose",
            lambda self, spec, x, *rest, answer=answer: proposed(answer(x).repeat(together(rest), 1, 1, 1)),
        )
        campaign = run(model, toy(model), tmp_path / str(number))
        at_the_corner = model(torch.ones(1, *SHAPE)).argmax() != torch.from_numpy(campaign.label)
        allowed = at_the_corner.numpy() & campaign.clean_correct if number == 2 else np.zeros(20, np.bool_)
        assert not (np.isfinite(campaign.distance) & ~allowed).any()


@each_norm
def test_a_point_on_the_way_stays_between_its_ends(norm: Norm) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((50, 4), np.float32), rng.random((50, 4), np.float32)
    middle = between(a, b, rng.random(50))
    assert ((middle >= np.minimum(a, b)) & (middle <= np.maximum(a, b))).all()
    assert np.array_equal(between(a, b, np.ones(50)), b)
    assert np.array_equal(between(a, b, np.zeros(50)), a)


# Who is attacked, and at which radius


def test_clean_errors_are_never_attacked_and_are_wrong_at_every_radius(linear: Any) -> None:
    _, _, campaign = linear
    assert campaign.clean_correct.tolist() == [False] * 4 + [True] * 16
    assert all(summary.attacked <= 16 for summary in campaign.summaries)
    assert [campaign.at(row) for row in range(4)] == [None] * 4
    assert campaign.robust(0.0).tolist() == campaign.clean_correct.tolist()


def test_robust_samples_only_become_fewer(linear: Any) -> None:
    _, _, campaign = linear
    radii = [0.0, *sorted(d for d in campaign.distance if d >= 0), 1.0]
    counts = [int(campaign.robust(eps).sum()) for eps in radii]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


@each_norm
def test_a_bounded_attack_finds_nothing_beyond_the_largest_radius(norm: Norm, tmp_path: Path) -> None:
    model = Linear()
    campaign = run(model, toy(model), tmp_path, norm, eps=["0.02", "0.05"])
    for name, distance in campaign.by_attack.items():
        if METHODS[name].role != "minimum":
            assert not (distance > 0.05).any()
    assert (campaign.distance > 0.05).any()  # the attack that looks for its own radius does look further


def test_a_bounded_attack_gets_only_those_not_yet_broken_and_noise_takes_none_away(linear: Any) -> None:
    _, _, campaign = linear
    floor, minimum, bounded = campaign.summaries
    smallest = campaign.plan.threat.eps[0].value
    assert floor.attacked == minimum.attacked == 16
    left = campaign.clean_correct & ~(campaign.by_attack[minimum.spec.name] <= smallest)
    assert bounded.attacked == left.sum() < 16


def test_radius_zero_counts_clean_errors_and_runs_nothing(tmp_path: Path) -> None:
    model = Linear()
    campaign = run(model, toy(model), tmp_path, eps=["0"])
    assert [summary.attacked for summary in campaign.summaries] == [0, 16, 0]
    assert campaign.robust(0.0).sum() == 16


@each_norm
@pytest.mark.parametrize("eps", ["1e-300", "1e40", "1e308"])
def test_a_radius_of_any_size_is_attacked(norm: Norm, eps: str, tmp_path: Path) -> None:
    model = Linear()
    campaign = run(model, toy(model), tmp_path, norm, eps=[eps])
    assert campaign.plan.threat.eps[0].text == eps
    assert campaign.robust(float(eps)).sum() == (16 if eps == "1e-300" else 0)


@each_norm
def test_no_attack_is_asked_for_more_than_the_box_is_wide(
    norm: Norm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Linear()
    monkeypatch.setattr(Proposer, "_under", lambda self, losses, path, method, restarts: path)
    diameter = math.sqrt(6) if norm == "l2" else 1.0
    for name in SUITES["quick"][norm]:
        kind, asked = METHODS[name].kind, []
        monkeypatch.setattr(
            f"foolbox.attacks.{kind}.run",
            lambda self, model, x, criterion, asked=asked, **given: (asked.append(given.get("epsilon")), x)[1],
        )
        for eps in ("0.5", "7"):
            run(model, toy(model), tmp_path / name / eps, norm, eps=[eps])
        assert set(asked) == ({None} if METHODS[name].role == "minimum" else {0.5, diameter})


def moat(x: Tensor) -> Tensor:
    """Broken between 0.02 and 0.03 from 0.5 in the mean, where no gradient of what lies further out leads."""
    away = (x - 0.5).flatten(1).mean(1)
    margin = torch.where(away < 0.03, away - 0.02, away - 1)
    return torch.stack([-margin, margin, margin - 1], 1)


def test_a_sample_is_searched_from_its_largest_standing_radius_down_and_left_alone_where_it_withstands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies up to a distance of its own away from each sample is broken: the engine must ask for radii as it should.
    reach, asked = np.linspace(0.013, 0.5, 20), []

    class Sphere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            margin = (x - 0.5).abs().flatten(1).amax(1) - 0.25
            return torch.stack([-margin, margin], 1)

    def told(self: Any, spec: Any, x: Tensor, labels: Tensor, samples: Any, eps: Tensor, *rest: Any) -> Proposed:
        asked.extend(zip(samples, eps.tolist(), strict=True))
        move = torch.from_numpy(reach)[torch.tensor(samples) - 100].float()
        return proposed((x + torch.where(move <= eps, move, 0.0).reshape(-1, 1, 1, 1)).float())

    monkeypatch.setattr(Proposer, "propose", told)
    images = torch.from_numpy(0.75 - reach + 1e-4).float().reshape(-1, 1, 1, 1).clamp(max=0.7499).expand(20, *SHAPE)
    data = Samples(images.contiguous(), torch.zeros(20, dtype=torch.int64))
    monkeypatch.setattr("certkit.attacks.run.after", lambda *given: ())
    campaign = run(Sphere(), data, tmp_path, "linf", suite="none", attacks=["APGD-CE"], eps=["0.1", "0.2", "0.3"])
    for row, distance in enumerate(reach):
        stops = [eps for eps in (0.3, 0.2, 0.1) if eps < distance]
        falls = [0.3] if distance <= 0.3 else []
        assert [eps for sample, eps in asked if sample == 100 + row] == pytest.approx(falls + stops[:1])
        assert (campaign.at(row) is not None) == bool(falls)


def test_an_example_inside_a_small_radius_that_a_larger_one_hides_is_caught(tmp_path: Path) -> None:
    data = Samples(torch.full((8, *SHAPE), 0.5), torch.zeros(8, dtype=torch.int64))
    campaign = run(Odd(moat), data, tmp_path, "linf", suite="none", attacks=["APGD-T"], eps=["0.026", "0.4"])
    found = check(campaign, "EV09")
    assert (found.status, campaign.validity) == ("fail", "invalid")
    standing = int(campaign.robust(0.4).sum())
    assert standing >= 4
    assert found.figure == (
        f"robust samples by eps: {standing}, {standing} (by construction: each keeps its nearest); inside smaller radii "
        f"than one it had withstood, {standing} of {standing} searches broke the sample"
    )


def test_a_tie_is_an_error_and_its_prediction_is_the_rival() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [3.0, 2.0, 2.0], [math.nan, 1.0, 5.0], [0.0, 1.0, 5.0]])
    assert predictions(logits, torch.tensor([0, 1, 0, 2, 1])).tolist() == [1, 0, 0, -1, 2]


def test_each_sample_keeps_the_nearest_of_all_attacks(linear: Any) -> None:
    _, _, campaign = linear
    nearest = np.fmin.reduce(list(campaign.by_attack.values()))
    assert np.array_equal(campaign.distance, nearest, equal_nan=True)
    for row, name in enumerate(campaign.attack):
        assert name is None or campaign.by_attack[name][row] == campaign.distance[row]


# The model


def test_the_model_is_attacked_in_evaluation_mode_and_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), Linear(), nn.Dropout(0.5))
    model[2].weight.requires_grad_(False)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, threads, random = [m.training for m in model.modules()], torch.get_num_threads(), torch.get_rng_state()
    data = toy(model.eval(), wrong=0)
    campaign = run(model, data, tmp_path / "eval")
    assert np.isfinite(campaign.distance).all()
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert np.array_equal(campaign.distance, run(model, data, tmp_path / "mixed").distance)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


class Odd(nn.Module):
    """A model that does what its function does."""

    def __init__(self, does: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(x)


def crash(x: Tensor) -> Tensor:
    raise KeyError("no such\nlayer")


FAILING: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "crashes": (crash, r"the model failed on a batch of shape (1, 1, 2, 3): KeyError: 'no such\nlayer'"),
    "returns a tuple": (lambda x: (x,), "the model returned a tuple; expected a tensor of logits (N, classes)"),
    "returns a vector": (
        lambda x: x.flatten(1).sum(1),
        "the model returned shape (1,) for 1 samples; expected logits (N, classes)",
    ),
    "returns classes": (
        lambda x: x.flatten(1).long(),
        "the model returned torch.int64; expected logits in a floating-point type",
    ),
    "is NaN": (
        lambda x: x.flatten(1) * math.nan,
        "the model gives NaN logits on sample 100 without any attack; it cannot be attacked",
    ),
    "detaches": (
        lambda x: x.flatten(1).detach(),
        (
            "no gradient of the logits reaches the input (element 0 of tensors does not require grad and does not have "
            "a grad_fn); gradient attacks would show nothing, so remove detach, rounding or numpy from the model's "
            "forward"
        ),
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_model_that_gives_no_logits_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    does, message = FAILING[name]
    data = Samples(torch.full((3, *SHAPE), 0.5), torch.tensor([0, 1, 2]))
    with pytest.raises(Refusal) as caught:
        run(Odd(does), data, tmp_path)
    assert str(caught.value) == message


# Checks


WITHOUT_A_CERTIFICATE = [f"EV{number:02}" for number in range(1, 26) if number not in (22, 23)]


def test_a_model_in_order_passes_its_checks(linear: Any) -> None:
    _, _, campaign = linear
    status = {one.id: one.status for one in campaign.checks}
    assert list(status) == WITHOUT_A_CERTIFICATE
    assert status.pop("EV24") == "flag"  # 20 samples are few
    assert status.pop("EV19") == "flag"  # the quick suite has no black box
    nothing_left = [status.pop(name) for name in ("EV11", "EV12", "EV13")]
    assert nothing_left == ["not evaluated"] * 3
    assert set(status.values()) == {"pass"}
    assert campaign.validity == "limited"


def noisy(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :3] + torch.rand(len(x), 3)


def saturated(x: Tensor) -> Tensor:
    return torch.where(x.flatten(1)[:, :3] > 0.5, 1e3, -1e3) + 0 * x.flatten(1)[:, :3]


CAUGHT: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "a randomised model": (noisy, "EV04", "fail"),
    "probabilities": (lambda x: x.flatten(1)[:, :3].softmax(1), "EV05", "flag"),
    "masked gradients": (saturated, "EV06", "fail"),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_check_catches(name: str, tmp_path: Path) -> None:
    does, number, status = CAUGHT[name]
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.4
    images[:, 0, 0, 0] = 0.9
    campaign = run(Odd(does), Samples(images, torch.zeros(8, dtype=torch.int64)), tmp_path)
    assert check(campaign, number).status == status


class Rounded(nn.Module):
    """A defence by masked gradients: the linear classifier sees its input on a coarse grid, and the gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x * 8).round() / 8 + 0 * x)
        return logits


class Shaken(nn.Module):
    """A defence by randomness: the linear classifier sees its input with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x + 0.05 * torch.randn_like(x))
        return logits


@pytest.mark.parametrize(
    ("defence", "caught"),
    [
        (Rounded, {"EV06": "fail", "EV10": "flag", "EV13": "flag", "EV14": "flag", "EV16": "flag", "EV18": "fail"}),
        (Shaken, {"EV04": "fail"}),
    ],
)
def test_a_defence_that_only_hides_is_caught_by_these_checks(
    defence: Callable[[], nn.Module], caught: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    campaign = run(defence().eval(), toy(Linear()), tmp_path, norm="linf", eps=["0.05", "0.1"])
    status = {one.id: one.status for one in campaign.checks}
    assert {number: status[number] for number in caught} == caught
    assert campaign.validity == "invalid"


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("L2FastGradientAttack", "nothing to run for longer"),
        ("L2BasicIterativeAttack", "L2BasicIterativeAttack with 20 steps breaks "),
    ],
)
def test_convergence_is_asked_of_twice_the_steps_that_were_taken(name: str, figure: str, tmp_path: Path) -> None:
    model = Linear()
    campaign = run(model, toy(model), tmp_path, suite="none", attacks=[name], eps=["0.01"])
    assert check(campaign, "EV11").figure.startswith(figure)


def test_a_model_handed_over_in_training_mode_is_flagged(tmp_path: Path) -> None:
    model = Linear().train()
    found = check(run(model, toy(model), tmp_path), "EV03")
    assert (found.status, found.figure) == (
        "flag",
        "1 of 1 modules came in training mode and were put into evaluation mode",
    )


def test_noise_that_beats_the_gradients_is_flagged(tmp_path: Path) -> None:
    # Every gradient points to the lower left, where nothing changes; the upper right, where it does, is one draw away.
    def trap(x: Tensor) -> Tensor:
        broken = (x.flatten(1).amax(1) > 0.5399).float()
        return torch.stack([1 - 2 * broken, broken - 1e-3 * x.flatten(1).sum(1), broken - 2], 1)

    data = Samples(torch.full((6, *SHAPE), 0.5), torch.zeros(6, dtype=torch.int64))
    campaign = run(Odd(trap), data, tmp_path, norm="linf", eps=["0.04"])
    found = check(campaign, "EV14")
    assert (found.status, found.figure) == (
        "flag",
        "broken by noise/by gradients, by eps: 6/0; by noise alone at most 6",
    )


# Suites and draws


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("norm", EVERY)
def test_every_suite_starts_with_the_noise_floor_and_names_attacks_of_its_norm(name: str, norm: AttackNorm) -> None:
    specs = suite(name, norm)
    assert METHODS[specs[0].name].role == "floor"
    assert all(norm in METHODS[spec.name].norms for spec in specs)
    assert {spec.library for spec in specs} <= {"foolbox 3.3.4", f"certkit {certkit.__version__}"}
    assert any(METHODS[spec.name].role == "minimum" for spec in specs)


def test_an_unknown_suite_or_norm_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        suite("qick", "l2")
    assert str(caught.value) == (
        "suite 'qick' is unknown; expected one of quick, standard, full, none; did you mean 'quick'?"
    )
    with pytest.raises(ConfigError) as caught:
        suite("quick", "l7")
    assert str(caught.value).startswith("norm 'l7' is unknown; expected one of l2, linf, l1, l0, token")


@each_norm
def test_starts_lie_in_the_unit_ball_and_fill_it(norm: Norm) -> None:
    points = torch.stack([start(norm, SHAPE, generator(0, sample, "x", 0)).flatten() for sample in range(400)])
    sizes = torch.linalg.vector_norm(points, 2 if norm == "l2" else math.inf, dim=1)
    assert float(sizes.max()) <= 1
    # A uniform point of a ball in 6 dimensions lies inside radius r with probability r^6.
    assert float((sizes < 0.5 ** (1 / 6)).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert points.mean(0).abs().max() < 0.15


def test_linf_noise_has_the_size_it_should_have() -> None:
    noise = directions("linf", SHAPE, 50, generator(0, 1, "x", 0)).flatten(1)
    assert torch.equal(noise.max(dim=1).values, torch.ones(50))
    assert torch.equal(noise.abs().max(dim=1).values, torch.ones(50))


def test_a_draw_depends_on_every_part_of_its_name_and_on_nothing_else() -> None:
    names = [(0, 1, "a", 0), (1, 0, "a", 0), (0, 1, "b", 0), (0, 1, "a", 1), (0, 11, "a", 0)]
    draws = [start("l2", SHAPE, generator(*name)) for name in names]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(names)
    assert torch.equal(start("l2", SHAPE, generator(*names[0])), draws[0])
