"""Training: the constraint holds after every step, Muon steps as far as it says, and the whole job works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import certkit
from certkit import checkpoint
from certkit.bounds.spectral import spectral_norm
from certkit.config import override, preset
from certkit.data import load
from certkit.errors import CertkitError, ConfigError
from certkit.models import build, create
from certkit.models.geometry import Entries, Spectral, weights
from certkit.training.constraints import CONSTRAINTS, Constraint, constrain_
from certkit.training.muon import Muon
from certkit.training.newton_schulz import orthogonalised, polar

shapes = st.sampled_from([(1, 1), (1, 7), (6, 6), (3, 12), (12, 3), (2, 5, 5)])
seeds = st.integers(0, 2**32 - 1)


def matrices(weight: torch.Tensor) -> list[np.ndarray]:
    return list(weight.detach().double().reshape(-1, *weight.shape[-2:]).numpy())


@given(shape=shapes, seed=seeds, scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]))
def test_an_orthogonalised_matrix_never_exceeds_1(shape: tuple[int, ...], seed: int, scale: float) -> None:
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    assert all(spectral_norm(m) <= 1 for m in matrices(orthogonalised(raw)))


@given(shape=shapes, seed=seeds)
def test_the_polar_factor_has_singular_values_1(shape: tuple[int, ...], seed: int) -> None:
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = torch.linalg.svdvals(polar(raw)) if min(shape[-2:]) else torch.empty(0)
    # 30 cubic steps bring a singular value of 1e-4 of the largest to 1; a smaller one may stay below, never above
    assert float(values.max()) <= 1 + 1e-12
    ratios = torch.linalg.svdvals(raw)
    well = ratios.amin(-1) / ratios.amax(-1) > 1e-3
    assert bool((values.amin(-1)[well] > 1 - 1e-5).all())


@pytest.mark.parametrize("name", [name for name, constraint in CONSTRAINTS.items() if constraint.provable])
@settings(max_examples=15)
@given(shape=shapes, seed=seeds, rate=st.sampled_from([0.001, 0.05, 0.5]), cap=st.sampled_from([0.5, 1.0, 3.0]))
def test_a_provable_cap_holds_after_every_step(
    name: str, shape: tuple[int, ...], seed: int, rate: float, cap: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    constrain_(weight.data, cap, CONSTRAINTS[name])
    muon = Muon([weight], lr=rate * cap, momentum=0.9)
    for _ in range(200):
        weight.grad = torch.randn(shape, generator=generator) * 10 ** float(
            torch.randint(-6, 6, (), generator=generator)
        )
        muon.step()
        constrain_(weight.data, cap, CONSTRAINTS[name])
        assert all(spectral_norm(m) <= cap * (1 + 1e-6) for m in matrices(weight))


def test_a_muon_step_moves_by_the_learning_rate() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    weight.grad = torch.randn(6, 4)
    Muon([weight], lr=0.1).step()
    assert 0.099 < spectral_norm(weight.detach().double().numpy()) <= 0.1


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"Muon steps matrices; a weight of shape \(3,\) is none"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)


def test_every_weight_of_a_preset_declares_its_geometry_and_none_is_a_normalisation() -> None:
    model = create(preset("digits-vit").model)
    kinds = {name: kind for name, _, kind in weights(model)}
    assert all(isinstance(kind, Spectral) for name, kind in kinds.items() if name.endswith("weight"))
    assert all(isinstance(kind, Entries) for name, kind in kinds.items() if not name.endswith("weight"))
    assert not [part for part in model.modules() if "Norm" in type(part).__name__]


def test_a_weight_without_a_geometry_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"0\.weight: no geometry is declared by Linear"):
        list(weights(torch.nn.Sequential(torch.nn.Linear(2, 2))))


def test_training_writes_a_checkpoint_that_reads_back_and_repeats_to_the_byte(tmp_path: Path) -> None:
    run = override(preset("digits-vit"), ["training.steps=12", "training.refresh=6"])
    first = certkit.train(run, out=tmp_path / "a", threads=1)
    certkit.train(run, out=tmp_path / "b", threads=1)
    assert first.largest_norm_over_cap <= 1 + 1e-6
    assert first.provable
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    found = checkpoint.read(tmp_path / "a")
    assert found.config is not None
    model, name = build(found.config)
    checkpoint.load_into(model, found)
    assert name == first.subject.architecture
    assert found.sha256 == first.subject.sha256
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_model_for_other_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = override(preset("digits-vit"), ["model.classes=11"])
    with pytest.raises(ConfigError, match=r"data set 'digits' has 10 classes, the model 11; set model.classes"):
        certkit.train(run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_promise_that_is_not_kept_is_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = Constraint(lambda weight, cap: polar(weight) * (cap * 1.01), provable=True, reason="a lie")
    monkeypatch.setitem(CONSTRAINTS, "stiefel", loose)
    run = override(preset("digits-vit"), ["training.steps=2"])
    with pytest.raises(CertkitError) as caught:
        certkit.train(run, out=tmp_path / "out")
    assert re.fullmatch(
        r"training: a matrix has 1\.0(0999\d+|1\d+) times its cap at step 0, beyond 1 \+ 1e-06; nothing was written",
        str(caught.value),
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_preset_trains_to_97_percent_clean_and_70_percent_certified_at_a_quarter(tmp_path: Path) -> None:
    """Certified without normalisation layers, every matrix inside its cap, on samples that training never saw."""
    trained = certkit.train(preset("digits-vit"), out=tmp_path, threads=1)
    assert trained.provable
    assert trained.largest_norm_over_cap <= 1 + 1e-6
    found = checkpoint.read(tmp_path)
    assert found.config is not None
    model, _ = build(found.config)
    checkpoint.load_into(model, found)
    assert not [part for part in model.modules() if "Norm" in type(part).__name__]
    certificate = certkit.certify(
        model.eval(), load("digits", "test"), eps=["0.25"], norm="l2", out=tmp_path, threads=1
    )
    (point,) = certificate.certified
    assert 100 * certificate.clean.count >= 97 * certificate.clean.total
    assert 100 * point.certified.count >= 70 * point.certified.total
