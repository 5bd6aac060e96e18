"""How much weight a softmax can put where: measured softmax never exceeds it, and two keys reach it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certkit.bounds import softmax as softmax_module
from certkit.bounds.softmax import HOPELESS, LOUD, softmax_mass
from certkit.errors import Refusal


def softmax(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    held = np.where(allowed, scores, -np.inf)
    powers = np.exp(held - held.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def some_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    mask = rng.normal(scale=rng.choice([0.0, 1.0, 5.0]), size=shape)
    allowed = rng.random(shape) < rng.choice([0.5, 1.0])
    allowed[..., 0] |= ~allowed.any(-1)
    return mask, allowed


def worst(rng: np.random.Generator, mask: np.ndarray, score: float) -> list[np.ndarray]:
    """Scores in the cube: at random, at corners, and all for one key against the others."""
    found = [rng.uniform(-score, score, mask.shape), score * rng.choice([-1.0, 1.0], mask.shape)]
    for key in range(mask.shape[-1]):
        one = np.full(mask.shape, -score)
        one[..., key] = score
        found += [one, -one]
    return found


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
    score=st.sampled_from([0.0, 1e-9, 0.3, 2.0, 30.0, 1e5]),
)
@settings(max_examples=60, deadline=None)
def test_no_softmax_within_the_scores_has_more_mass(seed: int, shape: tuple[int, int, int], score: float) -> None:
    rng = np.random.default_rng(seed)
    mask, allowed = some_mask(rng, shape)
    column_sum, rest = softmax_mass(mask, allowed, score)
    fixed_tops = np.zeros((*shape[:2], 0))
    for scores in worst(rng, mask, score):
        weights = softmax(mask + scores, allowed)
        assert weights.sum(-2).max() <= column_sum * (1 + 1e-12)
        fixed_tops = np.concatenate([fixed_tops, 1 - weights.max(-1, keepdims=True)], -1)
    # What lies beside the top key never exceeds the rest, for the key that is the top of the mask alone.
    assert fixed_tops.min(-1).max() <= rest * (1 + 1e-12) + 1e-15
    top = np.where(allowed, mask, -np.inf).argmax(-1)
    for scores in worst(rng, mask, score):
        weights = softmax(mask + scores, allowed)
        beside = 1 - np.take_along_axis(weights, top[..., None], -1)
        assert beside.max() <= rest * (1 + 1e-12) + 1e-15
    assert column_sum <= shape[1]
    assert rest <= 1


@pytest.mark.parametrize("score", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("lead", [0.0, 1.0, 20.0])
def test_two_keys_reach_the_bound(lead: float, score: float) -> None:
    # Key 0 leads by ``lead``: with every score for it, its weight is sigmoid(lead + 2 score); against it, the rest's.
    column_sum, rest = softmax_mass(np.array([[lead, 0.0]]), np.ones((1, 2), bool), score)
    with mpmath.workdps(40):
        most = 1 / (1 + mpmath.exp(-lead - 2 * mpmath.mpf(score)))
        other = 1 / (1 + mpmath.exp(lead - 2 * mpmath.mpf(score)))
        assert most <= column_sum <= most * (1 + mpmath.mpf(10) ** -15)
        assert other <= rest <= other * (1 + mpmath.mpf(10) ** -15)


def test_a_causal_row_that_sees_one_key_puts_all_weight_there() -> None:
    allowed = np.tri(3, dtype=bool)
    column_sum, rest = softmax_mass(np.zeros((3, 3)), allowed, 0.0)
    assert 1 + 1 / 2 + 1 / 3 <= column_sum <= (1 + 1 / 2 + 1 / 3) * (1 + 1e-12)
    assert 2 / 3 <= rest <= 2 / 3 * (1 + 1e-12)


def test_a_key_that_is_left_out_gets_no_weight_however_large_its_mask() -> None:
    allowed = np.array([[True, False]])
    assert softmax_mass(np.array([[0.0, 1e308]]), allowed, 5.0) == (1.0, 0.0)


def test_all_heads_count_and_the_worst_decides() -> None:
    mask = np.array([[[0.0, 0.0]], [[9.0, 0.0]]])
    column_sum, rest = softmax_mass(mask, np.ones(mask.shape, bool), 0.0)
    assert column_sum == pytest.approx(1 / (1 + math.exp(-9)), rel=1e-12)
    assert rest == pytest.approx(0.5, rel=1e-12)


def test_beyond_hope_nothing_is_known_but_the_obvious() -> None:
    assert softmax_mass(np.zeros((3, 2)), np.ones((3, 2), bool), HOPELESS) == (3.0, 1.0)
    assert softmax_mass(np.zeros((3, 2)), np.ones((3, 2), bool), math.inf) == (3.0, 1.0)


def test_large_scores_leave_the_count_of_queries_that_look_at_a_key() -> None:
    window = np.tri(5, dtype=bool) & ~np.tri(5, k=-2, dtype=bool)
    assert softmax_mass(np.zeros((5, 5)), window, 100.0) == (2.0, 1.0)
    assert softmax_mass(np.zeros((5, 5)), np.eye(5, dtype=bool), 100.0) == (1.0, 0.0)
    assert softmax_mass(np.array([[0.0, 1e308, -1e308]]), np.ones((1, 3), bool), 9e3) == (1.0, 5e-324)


@pytest.mark.parametrize("lead", [0.0, 7.0, 300.0])
def test_weights_are_taken_as_whole_only_where_they_hardly_differ_from_it(lead: float) -> None:
    mask, allowed = np.array([[lead, 0.0, 0.0]]), np.ones((1, 3), bool)
    loud = (lead + math.log(3) + LOUD) / 2
    column_sum, _ = softmax_mass(mask, allowed, loud * (1 - 1e-9))
    assert 1 - 1e-15 < column_sum <= 1.0
    assert softmax_mass(mask, allowed, loud * (1 + 1e-9)) == (1.0, 1.0)
    _, rest = softmax_mass(mask[:, :2], allowed[:, :2], (lead + math.log(2) + LOUD) / 2 * (1 - 1e-9))
    assert 1 - 1e-15 < rest <= 1.0


def test_each_weight_of_a_row_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = softmax_module._grown, []
    monkeypatch.setattr(softmax_module, "_grown", lambda share, growth: seen.append(share) or real(share, growth))
    heads = np.stack([np.zeros((20, 20)), np.zeros((20, 20))])
    column_sum, _ = softmax_mass(heads, np.broadcast_to(np.tri(20, dtype=bool), heads.shape), 0.0)
    assert len(seen) == 20
    assert sum(1 / k for k in range(1, 21)) <= column_sum <= sum(1 / k for k in range(1, 21)) * (1 + 1e-15)


def test_weights_too_small_for_decimal_still_count() -> None:
    column_sum, rest = softmax_mass(np.array([[0.0, -1e30]]), np.ones((1, 2), bool), 100.0)
    assert column_sum >= 1
    assert rest > 0


@pytest.mark.parametrize("score", [0.0, 1e9])
def test_a_query_that_may_look_at_no_key_is_refused(score: float) -> None:
    with pytest.raises(Refusal, match=r"^attention with a query that may look at no key has no defined output$"):
        softmax_mass(np.zeros((2, 2)), np.array([[True, True], [False, False]]), score)


@pytest.mark.parametrize("exponent", [-20, 20])
def test_a_larger_score_never_has_less_mass(exponent: int) -> None:
    mask = np.array([[0.0, exponent / 4, 1.0], [2.0, 0.0, -3.0]])
    found = [softmax_mass(mask, np.ones(mask.shape, bool), s) for s in (0.0, 0.1, 1.0, 5.0, 100.0, 9999.0, 10000.0)]
    assert found == sorted(found)
    assert [rest for _, rest in found] == sorted(rest for _, rest in found)
