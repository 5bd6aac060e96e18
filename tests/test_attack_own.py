"""certkit's own attacks, and Foolbox's by name: published behaviour, closed forms, and what each of them is given."""

from __future__ import annotations

import importlib.util
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import certkit
from certkit.attacks import attack, backend
from certkit.attacks.apgd import checkpoints
from certkit.attacks.backend import STARTED, Proposed, Proposer
from certkit.attacks.geometry import diameter, project, size, steepest, to_plane
from certkit.attacks.library import ALIASES, CLASSES
from certkit.attacks.losses import dlr_targeted, margin
from certkit.attacks.model import Classifier, TimeUp
from certkit.attacks.path import Path as Way
from certkit.attacks.path import Spent
from certkit.attacks.square import share_at
from certkit.attacks.suites import METHODS, named, spec_of
from certkit.campaign import Campaign, eligible, paired
from certkit.data import Dataset
from certkit.errors import ConfigError, RecordError, Refusal
from certkit.records import Adversary, AttackNorm, Budget, Data, Eps, Subject

SUBJECT = Subject(sha256="1" * 64, architecture="test", parameters=21)
NORMS: tuple[AttackNorm, ...] = ("l2", "linf", "l1", "l0", "token")
SHAPE = (2, 3)
BOX = (0.0, 1.0)
seeds = st.integers(0, 10**6)
each_norm = pytest.mark.parametrize("norm", NORMS)
each_smooth = pytest.mark.parametrize("norm", ["l2", "linf", "l1", "token"])


@dataclass(frozen=True)
class Samples:
    images: Tensor
    labels: Tensor
    box: tuple[float, float] = BOX

    @property
    def indices(self) -> Tensor:
        return torch.arange(len(self.images))

    @property
    def record(self) -> Data:
        return Data(name="toy", split="test", count=len(self.images), sha256="0" * 64, classes=tuple("abcde"))


class Linear(nn.Module):
    """Five classes, one matrix: the distance to every boundary is known in closed form."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


def toy(model: nn.Module, count: int = 12) -> Samples:
    images = 0.5 + 0.2 * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5)) - 0.5)
    with torch.no_grad():
        return Samples(images, model(images).argmax(1))


def run(out: Path, model: nn.Module, data: Samples, **given: Any) -> Campaign:
    options = {"norm": "l2", "eps": ["0.02", "0.1"], "suite": "none", **given}
    return attack(model, data, subject=SUBJECT, out=out, **options)


def adversary(norm: AttackNorm, **given: Any) -> Adversary:
    whole = {
        "eps": (Eps.of("0.1"),),
        "box": BOX,
        "goal": "untargeted",
        "source": None,
        "target": None,
        "knowledge": "white-box",
        "budget": Budget(steps=None, queries=None, seconds=None),
    }
    return Adversary(norm=norm, **{**whole, **given})


# Published schedules and losses, by hand


def test_the_step_size_is_looked_at_when_the_paper_says() -> None:
    # Croce and Hein 2020: p = 0, 0.22, then p + max(p - previous - 0.03, 0.06).
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


def test_the_windows_shrink_when_the_paper_says() -> None:
    # Andriushchenko et al. 2020: 0.8, halved at these iterations of 10,000.
    points = (0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
    assert [share_at(point, 10_000) for point in points] == [0.8 / 2**power for power in range(10)]
    assert share_at(2, 1000) == 0.4


def test_the_ratio_of_logit_differences_by_hand() -> None:
    logits, label, target = torch.tensor([[3.0, 1.0, 0.0, -1.0, 2.0]]), torch.tensor([0]), torch.tensor([1])
    assert dlr_targeted(logits, label, target).item() == pytest.approx((1 - 3) / (3 - (1 + 0) / 2))
    assert dlr_targeted(7 * logits - 3, label, target).item() == pytest.approx(-0.8)
    assert dlr_targeted(logits[:, :3], label, target).item() == -2  # too few classes for the divisor: the margin
    assert margin(logits, label).item() == -1


# Balls and planes


def batch(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(4, *SHAPE, generator=source, dtype=torch.float64)
    return x, x + spread * torch.randn(4, *SHAPE, generator=source, dtype=torch.float64)


@each_norm
@given(seed=seeds, eps=st.sampled_from([0.01, 0.3, 2.0]))
@settings(deadline=None, max_examples=30)
def test_a_projection_lies_in_the_ball_and_in_the_box_and_stays_there(norm: AttackNorm, seed: int, eps: float) -> None:
    x, point = batch(seed)
    radius = torch.full((4,), max(eps, 1.0) if norm == "l0" else eps, dtype=torch.float64)
    near = project(norm, x, point, radius, BOX)
    assert bool((size(norm, near - x) <= radius * (1 + 1e-9)).all())
    assert bool(((near >= 0) & (near <= 1)).all())
    assert torch.allclose(project(norm, x, near, radius, BOX), near, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@given(seed=seeds)
@settings(deadline=None, max_examples=30)
def test_no_point_of_ball_and_box_is_nearer_than_the_projection(norm: AttackNorm, seed: int) -> None:
    # The projection p of y onto a convex set is the one point with <y - p, z - p> <= 0 for every z of the set.
    x, point = batch(seed)
    radius = torch.full((4,), 0.4, dtype=torch.float64)
    near = project(norm, x, point, radius, BOX)
    _, other = batch(seed + 1, 3.0)
    inside = project(norm, x, other, radius, BOX)
    assert float(((point - near) * (inside - near)).flatten(1).sum(dim=1).max()) <= 1e-6


def dual(norm: AttackNorm, slope: Tensor) -> Tensor:
    flat = slope.flatten(1)
    if norm == "token":
        return torch.linalg.vector_norm(slope, dim=-1).sum(dim=-1)
    return torch.linalg.vector_norm(flat, {"l2": 2, "linf": 1, "l1": math.inf}[norm], dim=1)


@each_smooth
@given(seed=seeds)
@settings(deadline=None, max_examples=30)
def test_the_nearest_point_of_a_plane_is_as_far_as_the_dual_norm_says(norm: AttackNorm, seed: int) -> None:
    x, point = batch(seed)
    middle, slope = torch.full_like(x, 0.5), point - x
    value = torch.full((4,), 0.05, dtype=torch.float64) * dual(norm, slope)  # at distance 0.05, so the box is far away
    there = to_plane(norm, middle, slope, value, BOX)
    assert torch.allclose(((there - middle) * slope).flatten(1).sum(dim=1), -value, atol=1e-7)
    assert torch.allclose(size(norm, there - middle), torch.full_like(value, 0.05), rtol=1e-6)


@each_smooth
def test_a_step_has_size_one_and_no_step_of_that_size_rises_faster(norm: AttackNorm) -> None:
    _, slope = batch(3)
    step = steepest(norm, slope)
    assert torch.allclose(size(norm, step), torch.ones(4, dtype=torch.float64))
    assert torch.allclose((step * slope).flatten(1).sum(dim=1), dual(norm, slope))


# Closed forms: a linear classifier


def exact(model: Linear, data: Samples, norm: AttackNorm) -> np.ndarray:
    """The distance from each sample to its nearest boundary, the box left out; in l0 the box decides and is counted."""
    weight = model.weight.detach().double()
    logits = (data.images.flatten(1).double() - 0.5) @ weight.T
    found = np.full(len(data.labels), np.inf)
    for row, label in enumerate(data.labels.tolist()):
        for other in set(range(5)) - {label}:
            slope = weight[label] - weight[other]
            gap = float(logits[row, label] - logits[row, other])
            if norm == "l0":
                x = data.images[row].flatten().double()
                gains = torch.where(slope > 0, slope * x, -slope * (1 - x)).sort(descending=True).values.cumsum(0)
                reached = gains.gt(gap).nonzero()
                distance = float(reached[0]) + 1 if len(reached) else math.inf
            else:
                distance = gap / float(dual(norm, slope.reshape(1, *SHAPE)))
            found[row] = min(found[row], distance)
    return found


MINIMAL = {
    "l2": "FAB-T:steps=30,restarts=4",
    "linf": "FAB-T:steps=30,restarts=4",
    "l1": "FAB-T:steps=30,restarts=4",
    "token": "FAB-T:steps=30,restarts=4",
    "l0": "sigma-zero:steps=150,restarts=2",
}


@each_norm
def test_a_minimal_attack_reaches_the_closed_form_distance_and_never_less(norm: AttackNorm, tmp_path: Path) -> None:
    model = Linear().eval()
    data = toy(model)
    eps = ["1", "2"] if norm == "l0" else ["0.02", "0.1"]
    campaign = run(tmp_path, model, data, norm=norm, eps=eps, attacks=[MINIMAL[norm]])
    known = exact(model, data, norm)
    assert (campaign.distance >= known * (1 - 1e-5)).all()
    assert (campaign.distance <= known * (1 if norm == "l0" else 1.01)).mean() >= 0.9


@each_smooth
@pytest.mark.parametrize("name", ["APGD-CE", "APGD-T"])
def test_a_bounded_attack_breaks_at_a_radius_just_beyond_the_boundary(
    norm: AttackNorm, name: str, tmp_path: Path
) -> None:
    model = Linear().eval()
    data = toy(model)
    known = np.sort(exact(model, data, norm))
    for share in (0.97, 1.03):
        eps = float(known[5]) * share  # six of twelve samples have a boundary within 1.03 of it, five within 0.97
        inside = int((known <= eps).sum())
        campaign = run(
            tmp_path / str(share), model, data, norm=norm, eps=[eps], attacks=[f"{name}:steps=50,restarts=4"]
        )
        broken = int((campaign.distance <= eps).sum())
        assert broken <= inside
        assert broken >= (
            inside if name == "APGD-T" else inside // 2
        )  # which follows the likeliest class, not the nearest


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_square_needs_no_gradient(norm: AttackNorm, tmp_path: Path) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Linear()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner((x * 64).round() / 64).detach()
            return logits

    model = Steps().eval()
    data = Samples(toy(model.inner).images, model(toy(model.inner).images).argmax(1))
    with pytest.raises(Refusal, match="no gradient of the logits reaches the input"):
        run(tmp_path, model, data, norm=norm, attacks=["Square"])
    campaign = run(tmp_path, model, data, norm=norm, attacks=["Square:queries=200"], eps=["0.3"], knowledge="score")
    assert campaign.robust(0.3).sum() <= 2
    assert {check.id: check.status for check in campaign.checks}["EV07"] == "not evaluated"


# What an attack is given


def test_an_example_that_was_passed_and_lost_is_kept_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Linear().eval()
    data = toy(model)

    def there_and_back(self: Any, model: Any, x: Tensor, criterion: Any, *, epsilon: float, **rest: Any) -> Tensor:
        for corner in (0.0, 1.0):
            model(torch.full_like(x, corner) + 0 * x)
        return x

    monkeypatch.setattr(foolbox.attacks.L2PGD, "run", there_and_back)
    campaign = run(tmp_path, model, data, attacks=["L2-PGD"], eps=["5"])
    assert campaign.silent["L2-PGD"] == int(np.isfinite(campaign.distance).sum()) > 0
    (check,) = [check for check in campaign.checks if check.id == "EV15"]
    assert check.figure == f"passed but not returned, and kept by the campaign: L2-PGD {campaign.silent['L2-PGD']}"


@given(queries=st.integers(1, 30))
@settings(deadline=None, max_examples=10)
def test_a_sample_gets_no_more_queries_than_the_budget_has(queries: int) -> None:
    model, data = Linear().eval(), toy(Linear())
    seen = 0

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal seen
            seen += len(x)
            return model(x)

    limit = Budget(steps=None, queries=queries, seconds=None)
    proposer = Proposer(Classifier(Counted(), torch.device("cpu")), adversary("l2", budget=limit), 0)
    proposer.propose(spec_of("APGD-CE", {"steps": 100}), data.images, data.labels, list(range(12)), 1e-3, 0)
    assert seen <= queries * 12


def test_the_next_query_after_the_last_ends_the_search() -> None:
    data = toy(Linear())
    way = Way(Classifier(Linear(), torch.device("cpu")), data.images, data.labels, "l2", None, BOX, queries=1)
    way(data.images)
    with pytest.raises(Spent):
        way(data.images)


def test_steps_beyond_the_budget_are_taken_off_the_plan(tmp_path: Path) -> None:
    model = Linear().eval()
    campaign = run(tmp_path, model, toy(model), attacks=["APGD-CE:steps=50", "DDN:steps=5"], steps=9)
    assert [spec.settings["steps"] for spec in campaign.plan.attacks] == [9, 5]


@pytest.mark.parametrize(("name", "norm"), [("NewtonFoolAttack", "l2"), ("APGD-CE", "l2"), ("sigma-zero", "l0")])
def test_an_attack_of_which_no_steps_were_said_takes_no_more_than_the_budget_has(
    name: str, norm: AttackNorm, tmp_path: Path
) -> None:
    model = Linear().eval()
    (spec,) = run(tmp_path, model, toy(model), norm=norm, eps=["1"], attacks=[name], steps=3).plan.attacks
    assert spec.settings == {"steps": 3}


def test_a_unit_that_takes_too_long_is_stopped_and_makes_the_campaign_inconclusive(tmp_path: Path) -> None:
    model = Linear().eval()
    campaign = run(
        tmp_path, model, toy(model), attacks=["DDN:steps=5", "APGD-CE:steps=100000"], eps=["1e-6"], seconds=0.3
    )
    assert (campaign.units_planned, campaign.units_executed) == (3, 2)
    (check,) = [check for check in campaign.checks if check.id == "EV11"]
    assert check.status == "fail"
    assert check.figure.startswith("1 of 3 units of work were stopped by a limit")
    assert campaign.validity == "invalid"
    again = run(tmp_path, model, toy(model), attacks=["DDN:steps=5", "APGD-CE:steps=100000"], eps=["1e-6"], seconds=0.3)
    assert again.checks == campaign.checks


LIMITS: dict[str, tuple[Exception, str]] = {
    "time": (TimeUp(), "seconds"),
    "memory": (torch.OutOfMemoryError("out"), "memory"),
    "memory of a CPU": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", ["DDN:steps=1000", "APGD-T:steps=1000"])
def test_what_a_search_found_before_a_limit_stopped_it_stands(name: str, limit: str) -> None:
    error, word = LIMITS[limit]
    model, data = Linear().eval(), toy(Linear())

    class Ends(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 40:
                raise error
            return model(x)

    class Watched(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    proposer = Proposer(Watched(Ends(), torch.device("cpu")), adversary("l2"), 0)
    eps = None if name.startswith("DDN") else 0.01
    found = proposer.propose(named(name), data.images, data.labels, list(range(12)), eps, 0)
    assert found.stopped == word
    with torch.no_grad():
        assert (model(found.examples).argmax(1) != data.labels).any()


def test_a_walk_from_a_start_keeps_what_it_found_when_its_queries_are_spent() -> None:
    model, data = Linear().eval(), toy(Linear())

    def sizes(queries: int | None) -> Tensor:
        threat = adversary("l2", budget=Budget(steps=None, queries=queries, seconds=None))
        proposer = Proposer(Classifier(model, torch.device("cpu")), threat, 0)
        found = proposer.propose(named("HopSkipJumpAttack:steps=3"), data.images, data.labels, list(range(12)), None, 0)
        return (found.examples - data.images).flatten(1).norm(dim=1)

    soon, late, whole = sizes(100), sizes(300), sizes(None)
    assert (late <= soon).all()
    assert (late < soon).any()
    assert (whole < late).any()


def test_the_surrogate_of_a_transfer_attack_is_stopped_in_time(tmp_path: Path) -> None:
    model = Linear().eval()

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.02)
            return model(x)

    campaign = run(
        tmp_path,
        model,
        toy(model),
        surrogate=Slow(),
        knowledge="transfer",
        attacks=["transfer:steps=100"],
        seconds=0.2,
    )
    assert (campaign.units_planned, campaign.units_executed) == (2, 1)


@pytest.mark.parametrize("target", range(5))
def test_a_transfer_attack_aims_where_the_threat_does(target: int, tmp_path: Path) -> None:
    model = Linear().eval()
    given = {"eps": ["0.5"], "target": target, "suite": "none"}
    white = run(tmp_path / "white", model, toy(model, 40), attacks=["APGD-CE:steps=40"], **given)
    blind = run(
        tmp_path / "blind",
        model,
        toy(model, 40),
        attacks=["transfer:steps=40"],
        surrogate=Linear().eval(),
        knowledge="transfer",
        **given,
    )
    assert blind.success("transfer", 0.5).count >= 0.9 * white.success("APGD-CE", 0.5).count > 0


@pytest.mark.parametrize(("source", "goal"), [(None, "targeted"), (0, "pair")])
def test_only_the_target_counts_and_only_those_it_is_for_are_attacked(
    source: int | None, goal: str, tmp_path: Path
) -> None:
    model = Linear().eval()
    data = toy(model, 40)
    source = None if source is None else int(data.labels.mode().values)
    target = next(one for one in range(5) if one != source)
    given = {"attacks": ["DDN:steps=50,bisection=4", "APGD-T:steps=20", "Square:queries=50"], "eps": ["0.3"]}
    campaign = run(tmp_path, model, data, target=target, source=source, **given)
    assert campaign.plan.threat.goal == goal
    asked = eligible(campaign.plan.threat, campaign.label, campaign.prediction)
    assert (campaign.label[asked] != target).all()
    assert source is None or (campaign.label[asked] == source).all()
    assert campaign.summaries[0].attacked == asked.sum()
    assert set(campaign.adversarial_prediction[np.isfinite(campaign.distance)]) == {target}
    assert not np.isfinite(campaign.distance[~asked]).any()
    assert campaign.success("DDN", 10.0).total == asked.sum()


def test_a_transfer_attack_takes_its_examples_from_the_surrogate(tmp_path: Path) -> None:
    model, surrogate = Linear().eval(), Linear().eval()
    with torch.no_grad():
        surrogate.weight += 0.05 * torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    campaign = run(tmp_path, model, toy(model), surrogate=surrogate, knowledge="transfer", eps=["0.3"])
    assert [spec.name for spec in campaign.plan.attacks] == ["transfer"]
    assert campaign.plan.surrogate is not None
    assert campaign.success("transfer", 0.3).count >= 8
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "none", model, toy(model), attacks=["transfer"])
    assert str(caught.value) == "attack 'transfer' needs a surrogate: another network to take its examples from"


def test_the_guided_attack_only_adds_and_goes_where_the_gap_is_largest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    images = torch.rand(24, 1, 4, 4)
    with torch.no_grad():
        model[3].bias -= model(images).mean(0)
        labels = model(images).argmax(1)
    data = Dataset.of(images, labels, name="toy")
    certkit.certify(model, data, eps=["0.1"], norm="l2", out=tmp_path / "proof")
    given: dict[str, Any] = {
        "norm": "l2",
        "eps": ["0.1", "3"],
        "suite": "none",
        "block": 8,
        "attacks": ["DDN:steps=2,bisection=0"],
    }
    plain = attack(model, data, out=tmp_path / "plain", **given)
    guided = attack(model, data, out=tmp_path / "guided", certificate=tmp_path / "proof", **given)
    assert np.array_equal(plain.by_attack["DDN"], guided.by_attack["DDN"], equal_nan=True)
    assert [summary.attacked for summary in guided.summaries] == [24, 6]
    radius = np.array(guided.plan.guide.radius)  # type: ignore[union-attr]
    gap = np.where(np.isfinite(plain.distance), plain.distance, np.inf) - radius
    chosen = guided.by_attack["certificate-guided"]
    for start in range(0, 24, 8):
        block = slice(start, start + 8)
        found = np.isfinite(chosen[block])
        assert gap[block][found].min(initial=np.inf) >= np.sort(gap[block])[-2] - 1e-12
    better = np.isfinite(chosen)
    assert better.any()
    assert (guided.distance[better] >= radius[better]).all()
    assert (guided.distance[better] <= plain.distance[better]).all()
    with pytest.raises(ConfigError, match=r"the certificate there is for another norm$"):
        attack(
            model,
            data,
            out=tmp_path / "linf",
            certificate=tmp_path / "proof",
            **{**given, "norm": "linf", "attacks": []},
        )


def test_two_networks_are_compared_sample_by_sample(tmp_path: Path) -> None:
    model, other = Linear().eval(), Linear().eval()
    with torch.no_grad():
        other.weight *= 1.0
    data = toy(model)
    first = run(tmp_path / "a", model, data, attacks=["DDN:steps=30,bisection=6"])
    second = run(tmp_path / "b", other, data, attacks=["DDN:steps=30,bisection=6"])
    assert paired(first, second, 0.1) == paired(second, first, 0.1)
    assert paired(first, second, 0.1).p_value == 1.0
    weaker = replace(second, distance=np.full(12, 0.01))
    compared = paired(first, weaker, 0.02)
    held = int(first.robust(0.02).sum())
    assert (compared.only_first, compared.only_second) == (held, 0)
    assert compared.p_value == pytest.approx(min(1.0, 2 * 0.5**held))  # every discordant pair one way: 2 / 2^n
    third = run(tmp_path / "c", model, data, attacks=["DDN:steps=31"])
    with pytest.raises(
        RecordError, match=r"^the two campaigns differ in attacks; compare two that differ in the network$"
    ):
        paired(first, third, 0.1)


# Every attack of the library by its name


def classes() -> dict[str, Any]:
    found = {name: getattr(foolbox.attacks, name) for name in dir(foolbox.attacks)}
    base = foolbox.attacks.base.Attack
    return {n: c for n, c in found.items() if inspect.isclass(c) and issubclass(c, base) and c is not base}


def test_the_table_of_the_library_is_the_library() -> None:
    library = classes()
    assert {name for name, kind in library.items() if name == kind.__name__} == CLASSES.keys()
    assert {name: kind.__name__ for name, kind in library.items() if name != kind.__name__} == ALIASES
    fixed = foolbox.attacks.base.FixedEpsilonAttack
    assert {name for name in CLASSES if issubclass(library[name], fixed)} == {
        name for name, entry in CLASSES.items() if entry.role == "bounded"
    }


BRIEF: dict[str, dict[str, Any]] = {
    "BoundaryAttack": {"steps": 5},
    "EADAttack": {"steps": 5, "binary_search_steps": 1},
    "GaussianBlurAttack": {"steps": 5, "channel_axis": 1},
    "GenAttack": {"steps": 3},
    "HopSkipJumpAttack": {"steps": 1, "initial_gradient_eval_steps": 5, "max_gradient_eval_steps": 5},
    "L2CarliniWagnerAttack": {"steps": 5, "binary_search_steps": 1},
    "LinearSearchBlendedUniformNoiseAttack": {"steps": 5, "directions": 5},
    "LinearSearchContrastReductionAttack": {"steps": 5},
    "SaltAndPepperNoiseAttack": {"steps": 5},
    "VirtualAdversarialAttack": {"steps": 2},
}


class Halves(nn.Module):
    """Sees of every entry only whether it is at least a half; gradients pass as if it saw all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((x >= 0.5).float() + x - x.detach())
        return logits


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {n for n in CLASSES if "BrendelBethge" in n}))
def test_every_attack_of_the_library_runs_by_its_name(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    images = torch.rand(4, 1, 4, 4)
    with torch.no_grad():
        net[1].bias -= net(images).mean(0)
        labels = net(images).argmax(1)
    if name == "BinarizationRefinementAttack":  # it is for models that do this, and says so of any other
        net = Halves(net).eval()
        with torch.no_grad():
            labels = net(images).argmax(1)
    entry = CLASSES[name]
    proposer = Proposer(Classifier(net, torch.device("cpu")), adversary(entry.norm or "l2"), 0)
    spec = spec_of(name, BRIEF.get(name, {}))
    backend.refuse_unusable((spec,))
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index, union-attr]
    eps = 0.5 if entry.role == "bounded" else None
    first, second = (proposer.propose(spec, images, labels, [0, 1, 2, 3], eps, 0) for _ in range(2))
    assert isinstance(first, Proposed)
    assert first.examples.shape == images.shape
    assert torch.equal(first.examples, second.examples)  # whatever it draws from is seeded
    assert (np.random.get_state()[1] == numpy_state).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba, which Brendel-Bethge needs, is missing")
@pytest.mark.parametrize(("name", "norm"), [("L2BrendelBethgeAttack", "l2"), ("LinfinityBrendelBethgeAttack", "linf")])
def test_brendel_bethge_runs_by_its_name_and_comes_near_the_boundary(
    name: str, norm: AttackNorm, tmp_path: Path
) -> None:
    model = Linear().eval()
    data = toy(model)
    campaign = run(tmp_path, model, data, norm=norm, eps=["0.3"], attacks=[f"{name}:steps=30"])
    logits = model(data.images).detach()
    gaps = logits[torch.arange(12), data.labels].unsqueeze(1) - logits
    slopes = model.weight.detach()[data.labels].unsqueeze(1) - model.weight.detach()
    away = gaps / torch.linalg.vector_norm(slopes, 2 if norm == "l2" else 1, dim=2)
    nearest = away.scatter(1, data.labels.unsqueeze(1), torch.inf).amin(dim=1).numpy()
    assert (campaign.distance >= nearest * (1 - 1e-4)).all()
    assert np.median(campaign.distance / nearest) < 1.1


def test_what_the_library_returns_as_no_number_gives_way_to_what_it_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = Linear().eval(), toy(Linear())

    def lost(self: Any, seen: Any, x: Tensor, criterion: Any, **given: Any) -> Tensor:
        seen(x.flip(0))
        return x * math.nan

    monkeypatch.setattr("foolbox.attacks.DDNAttack.run", lost)
    proposer = Proposer(Classifier(model, torch.device("cpu")), adversary("l2"), 0)
    found = proposer.propose(named("DDN"), data.images, data.labels, list(range(12)), None, 0)
    passed = model(data.images.flip(0)).argmax(1) != data.labels
    assert passed.any()
    assert torch.equal(found.silent, passed)
    assert torch.equal(found.examples[passed], data.images.flip(0)[passed])


def test_an_attack_that_needs_numba_says_so_and_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        backend.refuse_unusable((spec_of("L2BrendelBethgeAttack", {}),))
    assert str(caught.value) == (
        "attack 'L2BrendelBethgeAttack' needs numba, which Foolbox does not bring: pip install numba"
    )


def test_a_row_without_a_starting_point_does_not_take_the_others_with_it() -> None:
    class Half(nn.Module):
        """The second sample is the label's everywhere."""

        def forward(self, x: Tensor) -> Tensor:
            moved = x.flatten(1).sum(1)
            sure = torch.arange(len(x)) % 2 == 1 if len(x) == 2 else torch.zeros(len(x), dtype=torch.bool)
            return torch.stack([torch.where(sure, 10.0, 3.0), moved], dim=1)

    x, labels = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    proposer = Proposer(Classifier(Half(), torch.device("cpu")), adversary("l2"), 0)
    assert "HopSkipJumpAttack" in STARTED
    found = proposer.propose(named("HopSkipJumpAttack:steps=1"), x, labels, [0, 1], None, 0)
    assert float(found.examples[0].sum()) >= 3.0
    assert torch.equal(found.examples[1], x[1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another norm": ({"attacks": ["LinfPGD"]}, "attack 'LinfPGD' is for linf; the threat is in l2"),
    "unknown attack": ({"attacks": ["DDNN"]}, "or a class of Foolbox; did you mean 'DDN'?"),
    "unknown setting": (
        {"attacks": ["DDN:step=3"]},
        "attack 'DDN' has no setting 'step'; expected bisection, gamma, init_epsilon, losses, restarts, steps",
    ),
    "a setting of others": (
        {"attacks": ["Square:steps=5"]},
        "attack 'Square' has no setting 'steps'; expected bisection, losses, queries, restarts",
    ),
    "no restarts": (
        {"attacks": ["DDN:restarts=0"]},
        "attack 'DDN': restarts 0 cannot be used; expected a whole number of at least 1",
    ),
    "words for a number": (
        {"attacks": ["APGD-T:steps=many"]},
        "attack 'APGD-T': steps many cannot be used; expected a whole number of at least 1",
    ),
    "steps that are no number": (
        {"attacks": ["APGD-T:steps=nan"], "steps": 5},
        "attack 'APGD-T': steps nan cannot be used; expected a whole number of at least 1",
    ),
    "half a halving": (
        {"attacks": ["DDN:bisection=0.5"]},
        "attack 'DDN': bisection 0.5 cannot be used; expected a whole number of at least 0",
    ),
    "true for a number": (
        {"attacks": ["Square:queries=true"]},
        "attack 'Square': queries True cannot be used; expected a whole number of at least 1",
    ),
    "unknown loss": (
        {"attacks": ["DDN:losses=rival 0"]},
        "attack 'DDN': loss 'rival 0' is unknown; expected library, margin or rival 1",
    ),
    "a setting that the library refuses": (
        {"attacks": ["HopSkipJumpAttack:constraint=l7"]},
        "attack 'HopSkipJumpAttack' cannot be made with these settings (AssertionError)",
    ),
    "no setting": ({"attacks": ["DDN:3"]}, "attack 'DDN:3': '3' is no setting; expected steps=100"),
    "no default": (
        {"attacks": ["VirtualAdversarialAttack"]},
        "attack 'VirtualAdversarialAttack' has no default for steps; write VirtualAdversarialAttack:steps=10",
    ),
    "too much knowledge": (
        {"attacks": ["DDN"], "knowledge": "decision"},
        "attack 'DDN' is white-box; the threat allows decision knowledge only",
    ),
    "nothing to run": ({}, "suite 'none' holds no attack with white-box knowledge under l2; name one with attacks"),
    "twice": (
        {"attacks": ["DDN", "DDN"]},
        "attack 'DDN' stands twice; expected each once (raise its restarts instead)",
    ),
    "a source alone": ({"source": 1}, "source 1 comes without a target; expected both for a pair of classes"),
    "a pair of one": ({"source": 1, "target": 1}, "source and target are both 1; expected two classes"),
    "no such class": ({"target": 5, "attacks": ["DDN"]}, "target 5 is none of the model's 5 classes; expected 0 to 4"),
    "no time": ({"seconds": 0}, "seconds 0 cannot be used; expected a time above 0"),
    "tokens of vectors": (
        {"norm": "token", "flat": True},
        "norm token is for samples of shape (tokens, features); these have shape (6,)",
    ),
    "unknown knowledge": (
        {"knowledge": "all"},
        "knowledge 'all' is unknown; expected one of white-box, score, decision, transfer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_threat_that_cannot_be_meant_is_refused_and_writes_nothing(name: str, tmp_path: Path) -> None:
    options, message = REFUSED[name]
    model = Linear().eval()
    data = toy(model)
    if options.get("flat"):
        data = Samples(data.images.flatten(1), data.labels)
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, model, data, **{key: value for key, value in options.items() if key != "flat"})
    assert str(caught.value).endswith(message)
    assert not list(tmp_path.iterdir())


def test_every_method_of_the_table_has_what_proposes_its_examples() -> None:
    table: dict[str, Callable[..., Any]] = {**backend.CERTKIT}
    for method in METHODS.values():
        assert method.kind in (table if method.source == "certkit" else CLASSES)
    assert diameter("l1", (2, 3), BOX) == 6
