"""What float32 rounds away never takes a weight above its cap: wide matrices, long tables, huge and tiny numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from certkit.bounds.spectral import spectral_norm
from certkit.models.geometry import Geometry, Rows, Spectral, norm_over_cap
from certkit.training.constraints import CONSTRAINTS, OPTIMIZERS, SAFETY, Step, constrain_, promise, safety, start_
from certkit.training.faults import Diverged
from certkit.training.muon import Muon
from certkit.training.newton_schulz import SETS, orthogonalised

BOUNDED = [name for name in CONSTRAINTS if all(promise(name, optimizer) == "provable" for optimizer in OPTIMIZERS)]


def normal(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven() -> torch.Tensor:
    """Rank 1, a few long rows and then many whose squares a sum in float32 stops seeing: a table's gradient."""
    matrix = torch.full((24576, 192), 0.0038)
    matrix[:12] = 0.99
    return matrix


def test_torchs_own_norm_is_too_small_for_long_tables_and_ours_is_not() -> None:
    raw = uneven()
    true = float(torch.linalg.vector_norm(raw, dtype=torch.float64))
    assert float(torch.linalg.vector_norm(raw.flatten())) < true * 0.99
    assert (
        spectral_norm(orthogonalised(raw, ()).mT.double().numpy()) <= 1
    )  # without coefficients the norm is all it divides by


@pytest.mark.parametrize("name", ["six-step", "polar-express-8"])
def test_a_direction_of_a_long_table_stays_below_the_maximum(name: str) -> None:
    found = orthogonalised(uneven(), SETS[name].triples)
    assert float(torch.linalg.vector_norm(found, dtype=torch.float64)) <= SETS[name].maximum  # of rank 1


def test_rounding_alone_takes_a_wide_matrix_further_than_a_millionth_and_never_further_than_its_safety() -> None:
    # A Hadamard matrix of constant row sums, its entries next to the middle of two numbers of float32: every positive
    # one is rounded up, every negative one towards zero, and all errors add up along the vector of ones.
    signs = np.ones((1, 1))
    for _ in range(6):
        signs = np.kron(signs, 2 * np.eye(4) - 1) * -1
    width = len(signs)
    exact = signs * 2.0**-6 * (1 + 2.0**-24 * (1 + 1e-6 * signs))
    assert np.array_equal(signs @ signs[0], width * np.eye(width)[0])
    assert np.all(signs.sum(1) == 64)
    norm = 1 + 2.0**-24 * (1 + 1e-6 * 64)
    grown = float(exact.astype(np.float32).astype(np.float64).sum() / width) / norm
    assert 1 + 3 * SAFETY < grown <= 1 + safety(exact.shape) / 3
    assert safety(exact.shape) == 4 * 2.0**-24 * 64
    assert safety((7, 3, 10_000)) == SAFETY


@pytest.mark.parametrize("name", ["weight-decay", "spectral-soft-cap", "stiefel", "svd-clip"])
@pytest.mark.parametrize("lr", [1e-6, 0.1])
def test_a_cap_holds_for_wide_matrices(name: str, lr: float) -> None:
    weight = torch.nn.Parameter(normal((384, 512)))
    start_(name, weight, Spectral())
    decay = 1.0 if name == "weight-decay" else 0.0
    muon = Muon([(weight, Spectral())], lr=lr, weight_decay=decay)
    for _ in range(4):
        weight.grad = -weight.detach()
        muon.step()
        constrain_(CONSTRAINTS[name], [(weight, Spectral(), Step(muon.moved(weight), lr * decay))])
        assert 0.99 < norm_over_cap(weight, Spectral()) <= 1


@pytest.mark.parametrize("kind", [Spectral(0.01), Rows(0.01)])
@pytest.mark.parametrize("name", BOUNDED)
def test_a_cap_holds_after_a_step_near_the_end_of_float32(name: str, kind: Geometry) -> None:
    weight = torch.nn.Parameter(torch.zeros(40, 60))
    weight.grad = normal((40, 60)).clamp(-1, 1) * 2e38
    torch.optim.SGD([weight], lr=1.0).step()
    constrain_(CONSTRAINTS[name], [(weight, kind, Step())])
    assert 1 - 1e-5 < norm_over_cap(weight, kind) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_not_decomposed(value: float) -> None:
    weight = torch.full((3, 4), value)
    for name in ("svd-clip", "spectral-normalize-proved"):
        with pytest.raises(Diverged, match=r"^training: a weight is no longer finite$"):
            constrain_(CONSTRAINTS[name], [(weight, Spectral(), Step())])
    with pytest.raises(Diverged, match=r"^training: a weight is no longer finite$"):
        start_("stiefel", weight, Spectral())
