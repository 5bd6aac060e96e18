"""Every setting of a run reaches what it is about: rates, momenta, decay, sensitivity, caps; nothing else moves."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import nn

from certkit.config import TrainingConfig
from certkit.errors import ConfigError
from certkit.models.geometry import Declared, Entries, Rows, Spectral
from certkit.training.constraints import CONSTRAINTS, OPTIMIZERS, promise
from certkit.training.distributed import World
from certkit.training.faults import Diverged
from certkit.training.muon import SCALES
from certkit.training.stepper import UNEVEN, Stepper, possible


class Small(Declared):
    """One weight of each kind."""

    geometry: ClassVar = {
        "matrix": Spectral(),
        "other": Spectral(),
        "table": Rows(),
        "bias": Entries(),
        "score": Entries(0.5),
    }

    def __init__(self, shape: tuple[int, int] = (6, 4)) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(shape, generator=draw) / 10)
        self.other = nn.Parameter(torch.randn(4, 6, generator=draw) / 10)
        self.table = nn.Parameter(torch.randn(5, 3, generator=draw) / 10)
        self.bias = nn.Parameter(torch.zeros(4))
        self.score = nn.Parameter(torch.zeros(4))


def made(model: Small, **changes: Any) -> Stepper:
    return Stepper(model, TrainingConfig(**{"constraint": "none", **changes}), World())


def given(model: Small, value: float | None = None) -> None:
    """Gradients, the same at every call."""
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=draw) if value is None else torch.full(weight.shape, value)


def copied(model: Small) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_the_configuration_names_every_constraint_scale_and_optimiser() -> None:
    fields = TrainingConfig.model_fields
    assert get_args(fields["constraint"].annotation) == tuple(CONSTRAINTS)
    assert get_args(fields["scale"].annotation) == tuple(SCALES)
    assert get_args(fields["optimizer"].annotation) == OPTIMIZERS


# --- what reaches the optimisers


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_a_gradient_weights_decay_by_rate_times_decay_and_entries_stay(optimizer: str) -> None:
    model = Small()
    with torch.no_grad():
        model.bias.fill_(0.3)
    before = copied(model)
    stepper = made(model, optimizer=optimizer, learning_rate=0.2, weight_decay=0.5)
    for factor in (1.0, 0.5, 0.25):
        given(model, 0.0)
        stepper.step(factor)
    for name, weight in copied(model).items():
        share = 1.0 if name in ("bias", "score") else (1 - 0.1) * (1 - 0.05) * (1 - 0.025)
        assert torch.allclose(weight, before[name] * share, rtol=1e-6, atol=0), name


def test_decay_is_no_part_of_the_momentum_of_sgd() -> None:
    model = Small()
    wanted = copied(model)["matrix"]
    stepper = made(model, optimizer="sgd", learning_rate=0.2, weight_decay=0.5, momentum=0.9, nesterov=False)
    speed = torch.zeros_like(wanted)
    for _ in range(4):
        given(model)
        assert model.matrix.grad is not None
        speed = 0.9 * speed + model.matrix.grad
        wanted = wanted * 0.9 - 0.2 * speed
        stepper.step(1.0)
    assert torch.allclose(model.matrix, wanted, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_constraint_that_decays_by_itself_leaves_no_decay_to_the_optimiser(optimizer: str) -> None:
    model = Small()
    before = torch.linalg.svdvals(model.matrix.detach())
    stepper = made(model, optimizer=optimizer, constraint="spectral-weight-decay", learning_rate=0.2, weight_decay=0.5)
    given(model, 0.0)
    stepper.step(1.0)
    after = torch.linalg.svdvals(model.matrix.detach())
    assert float(after.sum()) == pytest.approx(float(before.sum() - 0.1 * before[0]), rel=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_entries_move_at_their_own_rate(optimizer: str) -> None:
    model = Small()
    rate = {"muon": 0.03, "adamw": 0.2, "sgd": 0.2}[optimizer]
    stepper = made(model, optimizer=optimizer, learning_rate=0.2, entry_learning_rate=0.03, momentum=0.0)
    given(model, 1.0)
    stepper.step(0.5)
    assert torch.allclose(model.bias, torch.full((4,), -rate / 2), rtol=1e-5)
    assert torch.allclose(model.score, torch.full((4,), -rate / 4), rtol=1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
def test_momenta_reach_every_optimiser(nesterov: bool) -> None:
    settings: dict[str, Any] = {"momentum": 0.7, "beta2": 0.8, "nesterov": nesterov}
    muon, adam = made(Small(), optimizer="muon", **settings).optimizers
    (adamw,) = made(Small(), optimizer="adamw", **settings).optimizers
    (sgd,) = made(Small(), optimizer="sgd", **settings).optimizers
    for optimizer in (muon, sgd):
        assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.7, nesterov)}
    for optimizer in (adam, adamw):
        assert {group["betas"] for group in optimizer.param_groups} == {(0.7, 0.8)}
    assert not made(Small(), optimizer="sgd", momentum=0.0).optimizers[0].param_groups[0]["nesterov"]


@pytest.mark.parametrize("name", [name for name in CONSTRAINTS if name not in ("none", "spectral-hard-cap")])
def test_a_run_starts_inside(name: str) -> None:
    model = Small()
    with torch.no_grad():
        model.matrix.mul_(50)
        model.table.mul_(50)
    stepper = made(model, constraint=name, weight_decay=1.0)
    assert min(stepper.norms()[name] for name in ("matrix", "table")) > 1.5
    stepper.start_()
    assert max(stepper.norms().values()) <= 1


# --- sensitivity


def test_sensitivity_changes_the_length_of_steps() -> None:
    model = Small()
    stepper = made(model, sensitivity=True, learning_rate=0.1)
    given(model)
    for weight, size in ((model.matrix, 1e-30), (model.other, 1e3), (model.table, 0.0)):
        assert weight.grad is not None
        weight.grad.mul_(size)
    before = copied(model)
    stepper.weigh_()
    stepper.step(1.0)
    moved = {name: float(torch.linalg.matrix_norm(weight - before[name], 2)) for name, weight in copied(model).items()
             if name in ("matrix", "other", "table")}  # fmt: skip
    assert moved["matrix"] == pytest.approx(0.1 * UNEVEN, rel=0.01)
    assert moved["other"] == pytest.approx(0.1 / UNEVEN, rel=0.01)
    assert moved["table"] == 0


def test_between_the_limits_steps_are_as_unequal_as_sensitivities() -> None:
    model = Small()
    stepper = made(model, sensitivity=True)
    given(model)
    stepper.weigh_()
    muon: Any = stepper.optimizers[0]
    assert model.matrix.grad is not None
    assert model.other.grad is not None
    ratio = float(
        torch.linalg.matrix_norm(model.other.grad, "nuc") / torch.linalg.matrix_norm(model.matrix.grad, "nuc")
    )
    assert muon.weighing(model.matrix) / muon.weighing(model.other) == pytest.approx(ratio, rel=1e-5)
    product = math.prod(muon.weighing(weight) for weight in (model.matrix, model.other, model.table))
    assert product == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, math.nan, math.inf])
def test_sensitivity_takes_any_gradient(value: float) -> None:
    model = Small()
    stepper = made(model, sensitivity=True)
    given(model, value)
    stepper.weigh_()
    muon: Any = stepper.optimizers[0]
    for weight in (model.matrix, model.other, model.table):
        assert 1 / UNEVEN <= muon.weighing(weight) <= UNEVEN
        assert (muon.weighing(weight) == 1) == (not 0 < value < math.inf)


# --- what diverges


def often(model: Small, stepper: Stepper) -> None:
    for _ in range(50):
        given(model)
        stepper.step(1.0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_step_to_something_infinite_says_which_weight(name: str, optimizer: str) -> None:
    if promise(name, optimizer) == "refused":
        return
    model = Small()
    stepper = made(model, constraint=name, optimizer=optimizer, weight_decay=1.0)
    stepper.start_()
    given(model)
    assert model.other.grad is not None
    model.other.grad[0, 0] = math.nan
    with pytest.raises(Diverged, match=r"^training: weight other is no longer finite$"):
        stepper.step(1.0)
    for fails in (stepper.norms, stepper.start_):
        with pytest.raises(Diverged, match=r"^training: weight other is no longer finite$"):
            fails()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rate", [1e37, 1e39, 1e300])
def test_a_rate_beyond_float32_diverges_and_is_no_traceback(optimizer: str, rate: float) -> None:
    model = Small()
    stepper = made(model, optimizer=optimizer, learning_rate=rate, entry_learning_rate=rate)
    message = (
        r"^training: (weight \w+ is no longer finite|a step is too long for the numbers that weights are held in)$"
    )
    with pytest.raises(Diverged, match=message):
        often(model, stepper)


def test_other_faults_of_a_step_are_not_renamed() -> None:
    model = Small()
    stepper = made(model, optimizer="sgd")
    given(model)

    def broken() -> None:
        raise RuntimeError("out of memory")

    stepper.optimizers[0].step = broken  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        stepper.step(1.0)


def test_large_weights_and_gradients_are_finite() -> None:
    model = Small()
    stepper = made(model, optimizer="sgd", learning_rate=1.0, momentum=0.0)
    given(model, 2e38)
    stepper.step(1.0)
    assert stepper.gradient_norm() == pytest.approx(2e38 * math.sqrt(24 + 24 + 15 + 4 + 4), rel=1e-6)


# --- refusals


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"scale": "match-rms-adamw", "learning_rate": 0.3}, (4, 1024),
         ("training.learning_rate 0.3 with training.scale match-rms-adamw is beyond the range of spectral-soft-cap at "
          "matrix: at most 0.197318")),
        ({"scale": "match-rms-adamw", "learning_rate": 0.1, "sensitivity": True}, (4, 1024),
         ("training.learning_rate 0.1 with training.scale match-rms-adamw is beyond the range of spectral-soft-cap at "
          "matrix: at most 0.0493297")),
        ({"scale": "original", "learning_rate": 0.2, "cap": 0.5, "constraint": "spectral-hard-cap"}, (200, 2),
         ("training.learning_rate 0.2 with training.scale original is beyond the range of spectral-hard-cap at "
          "matrix: at most 0.1")),
        ({"scale": "rms", "learning_rate": 0.5, "weight_decay": 1.0}, (64, 1),
         ("training.learning_rate 0.5 with training.scale rms is beyond the range of spectral-soft-cap at matrix: "
          "at most 0.180405")),
        ({"learning_rate": 0.4, "sensitivity": True}, (6, 4),
         "training.learning_rate 0.4 is beyond the range of spectral-soft-cap at cap 1: at most 0.31571"),
    ],
)  # fmt: skip
def test_steps_that_no_cap_undoes_are_refused_before_the_first(
    changes: dict[str, Any], shape: tuple[int, int], message: str
) -> None:
    changes = {"constraint": "spectral-soft-cap", **changes}
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        made(Small(shape), **changes)
    allowed = float(message.rsplit(" ", 1)[1])
    model = Small(shape)
    stepper = made(model, **{**changes, "learning_rate": allowed})
    stepper.start_()
    for step in range(6):
        given(model)
        if changes.get("sensitivity"):
            assert model.matrix.grad is not None
            model.matrix.grad.mul_(1e-9)
            stepper.weigh_()
        stepper.step(1 - step / 6)
        if changes["constraint"] == "spectral-soft-cap":
            assert max(stepper.norms().values()) <= 1 + 1e-6


def test_sensitivity_does_not_lengthen_decay() -> None:
    possible(TrainingConfig(sensitivity=True, learning_rate=0.3, weight_decay=1.0))
