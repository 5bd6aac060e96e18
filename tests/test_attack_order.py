"""Whom an attack gets at which radius, what each restart begins with, and what the probes of a campaign can still find."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certkit.attacks import apgd, attack, backend
from certkit.attacks.backend import Proposed, Proposer
from certkit.attacks.draws import seed_of
from certkit.attacks.model import Classifier
from certkit.attacks.suites import named
from certkit.campaign import Campaign
from certkit.records import Adversary, Budget, Check, Norm, Subject, radii
from tests.toys import Samples

SHAPE = (1, 2, 3)
CLASSES = ("a", "b", "c", "d")
SUBJECT = Subject(sha256="1" * 64, architecture="test", parameters=18)


class Does(nn.Module):
    """A model that does what its function does."""

    def __init__(self, does: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


WEIGHT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def linear(x: Tensor) -> Tensor:
    return (x.flatten(1) - 0.5) @ WEIGHT.T


def toy(count: int = 12) -> Samples:
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(5))
    return Samples(images, linear(images).argmax(1), classes=CLASSES)


def run(does: Callable[[Tensor], Tensor], data: Samples, out: Path, norm: Norm = "linf", **given: Any) -> Campaign:
    return attack(Does(does), data, subject=SUBJECT, norm=norm, out=out, **{"suite": "none", **given})


def check(campaign: Campaign, name: str) -> Check:
    (found,) = [one for one in campaign.checks if one.id == name]
    return found


def proposer(model: nn.Module, norm: Norm = "l2", queries: int | None = None) -> Proposer:
    threat = Adversary(
        norm=norm,
        eps=radii(["0.3"]),
        box=(0.0, 1.0),
        goal="untargeted",
        source=None,
        target=None,
        knowledge="white-box",
        budget=Budget(steps=None, queries=queries, seconds=None),
    )
    return Proposer(Classifier(model, torch.device("cpu")), threat, 7)


# Starts


@pytest.mark.parametrize("name", ["APGD-CE", "APGD-T", "L2-PGD"])
def test_restarts_in_one_batch_begin_where_each_begins_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def noted(norm: Norm, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
        begun.append(source.initial_seed())
        return torch.zeros(shape)

    monkeypatch.setattr(apgd, "start", noted)
    monkeypatch.setattr(backend, "start", noted)
    data, spec = toy(2), named(f"{name}:steps=1")
    proposer(Does(linear)).propose(spec, data.images, data.labels, [100, 101], 0.3, 5, 3)
    together = begun.copy()
    begun.clear()
    for restart in range(5, 8):
        proposer(Does(linear)).propose(spec, data.images, data.labels, [100, 101], 0.3, restart)
    assert together == begun == [seed_of(7, sample, name, restart) for restart in range(5, 8) for sample in (100, 101)]


# Radii


def test_noise_is_tried_at_every_radius_on_whom_it_has_not_broken_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise breaks every sample at a radius of its own or not at all, and never beyond: as no gradient could tell.
    breaks, asked = np.array([0.1, 0.2, 0.3, np.inf]), list[tuple[int, float]]()

    def told(self: Any, spec: Any, x: Tensor, labels: Tensor, samples: list[int], eps: Tensor, *rest: Any) -> Proposed:
        if spec.name == "Linf noise floor":
            asked.extend(zip(samples, eps.tolist(), strict=True))
            hit = torch.from_numpy(breaks)[torch.tensor(samples) - 100].isclose(eps)
            x = x + torch.where(hit, eps, 0.0).reshape(-1, 1, 1, 1).float()
        return Proposed(x, torch.zeros(len(x), dtype=torch.bool))

    def shell(x: Tensor) -> Tensor:
        moved = x.flatten(1).mean(1) - 0.5
        return torch.stack([0.05 - moved, moved - 0.05], 1)

    monkeypatch.setattr(Proposer, "propose", told)
    monkeypatch.setattr("certkit.attacks.run.after", lambda *given: ())
    data = Samples(torch.full((4, *SHAPE), 0.5), torch.zeros(4, dtype=torch.int64), classes=CLASSES)
    campaign = run(shell, data, tmp_path, attacks=["Linf noise floor", "APGD-CE"], eps=["0.1", "0.2", "0.3"])
    for row, radius in enumerate(breaks):
        tried = [eps for eps in (0.1, 0.2, 0.3) if eps <= radius]
        assert [eps for sample, eps in asked if sample == 100 + row] == pytest.approx(tried)
        assert (campaign.at(row) or math.inf) == pytest.approx(radius)


# Probes


def two_ways(x: Tensor) -> Tensor:
    """Broken towards the strongest rival between 0.02 and 0.03 from 0.5 in the mean; all others lead the other way."""
    away = (x - 0.5).flatten(1).mean(1)
    margin = torch.where(away < 0.03, away - 0.02, away - 1)
    return torch.stack([-margin, margin, -1 - 5 * away, -2 - 5 * away], 1)


def test_what_a_large_radius_hides_is_looked_for_towards_the_strongest_rival_first(tmp_path: Path) -> None:
    data = Samples(torch.full((8, *SHAPE), 0.5), torch.zeros(8, dtype=torch.int64), classes=CLASSES)
    campaign = run(two_ways, data, tmp_path, attacks=["APGD-T"], eps=["0.026", "0.4"])
    assert campaign.robust(0.026).any()
    assert check(campaign, "EV09").status == "fail"


def test_no_probe_passes_on_nothing(tmp_path: Path) -> None:
    broken = run(linear, toy(), tmp_path / "broken", attacks=["APGD-T"], eps=["1"])
    assert not broken.robust(1.0).any()
    assert {name: check(broken, name).status for name in ("EV09", "EV11", "EV12")} == dict.fromkeys(
        ("EV09", "EV11", "EV12"), "not evaluated"
    )
    still = run(linear, toy(), tmp_path / "still", attacks=["FMN-Linf"], eps=["0.001", "0.002"])
    assert still.robust(0.002).all()
    assert check(still, "EV11").status == "pass"
    assert check(still, "EV12").figure == "nothing to start again"  # it begins at the sample, whatever the restart
    assert check(still, "EV09").status == "not evaluated"  # it searches inside no radius


# Attacks on decisions


def test_a_walk_that_met_nothing_is_no_attack_on_decisions(tmp_path: Path) -> None:
    attacks = ["APGD-T", "HopSkipJump:steps=1,initial_gradient_eval_steps=5,max_gradient_eval_steps=5"]
    whole = run(linear, toy(), tmp_path / "whole", attacks=attacks, eps=["0.1"])
    spent = run(
        lambda x: linear(x) * 1e-3 + torch.tensor([9.0, 0, 0, 0]),
        toy(),
        tmp_path / "spent",
        attacks=attacks,
        eps=["0.1"],
    )
    lacks = "an attack on decisions alone"
    assert lacks not in check(whole, "EV19").figure
    assert lacks in check(spent, "EV19").figure


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_randomised_model_is_caught_by_the_suite_that_walks_on_its_decisions(norm: Norm, tmp_path: Path) -> None:
    torch.manual_seed(0)
    campaign = run(
        lambda x: linear(x + 0.05 * torch.randn_like(x)),
        toy(),
        tmp_path,
        norm,
        attacks=["APGD-CE:steps=5", "HopSkipJump:steps=8,initial_gradient_eval_steps=20,max_gradient_eval_steps=60"],
        eps=["0.1"],
    )
    assert check(campaign, "EV04").status == "fail"
    assert campaign.validity == "invalid"


@pytest.mark.parametrize("queries", [3, 20, 60])
def test_the_way_to_a_starting_point_is_paid_from_the_same_budget(queries: int) -> None:
    # All samples have one label: none is a start for another, and noise is blended in until one is found.
    seen = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x)
        away = (x.flatten(1)[:, 0] - 0.5).abs()
        return torch.stack([0.4 - away, away - 0.4], 1)

    images = torch.full((5, *SHAPE), 0.5)
    spec = named("HopSkipJump:steps=3,initial_gradient_eval_steps=5,max_gradient_eval_steps=5")
    labels = torch.zeros(5, dtype=torch.int64)
    proposer(Does(counted), queries=queries).propose(spec, images, labels, list(range(5)), None, 0)
    assert seen <= (queries + 3) * 5  # three more look at the samples, at the starts, and at what came back
