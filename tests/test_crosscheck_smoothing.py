"""Randomised smoothing: the noise is the noise it claims to be, the interval covers, and a plan gives the same numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf, ncdf, npdf, quad
from scipy.stats import binom, norm
from torch import Tensor, nn

from certkit.crosscheck.noise import deviation, drawn, radius_low, share_low, thresholds
from certkit.crosscheck.smooth_attack import attack_smoothed, beaten
from certkit.crosscheck.smoothing import Sampler, levels_of, smooth
from certkit.data import Dataset
from certkit.errors import ConfigError, Refusal


class Half(nn.Module):
    """Class 1 where the first entry is above a half: the smoothed classifier is known in closed form."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-first, first], 1)


def data(first: list[float], levels: int | None = 255) -> Dataset:
    """Images of two entries, labelled by Half."""
    values = torch.tensor(first, dtype=torch.float64)
    if levels is not None:
        values = (values * levels).round() / levels
    images = torch.stack([values, torch.zeros_like(values)], 1).reshape(-1, 1, 1, 2).float()
    return Dataset.of(images, (images[:, 0, 0, 0] > 0.5).long(), name="half", classes=["low", "high"])


def test_the_tabulated_noise_is_the_rounded_normal() -> None:
    sigma, levels = 0.1, 16
    table = thresholds(sigma, levels)
    half = len(table) // 2
    mp.dps = 40
    for place in range(half - 8, half + 8):
        exact = ncdf((mpf(place - half) + mpf(1) / 2) / (mpf(sigma) * levels)) * 2**64
        assert 0 <= exact - int(table[place]) < 1
    assert (np.diff(table.astype(object)) >= 0).all()
    assert int(table[0]) == 0, "the table reaches beyond what 64 bits can see"


def test_the_integral_over_a_cell_is_its_probability() -> None:
    table = thresholds(0.25, 16)
    half = len(table) // 2
    mp.dps = 30
    cell = quad(lambda z: npdf(z), [mpf(-1) / 8, mpf(1) / 8])  # P(round(4 N) = 0)
    assert abs(mpf(int(table[half]) - int(table[half - 1])) / 2**64 - cell) < mpf(2) ** -63


def test_drawn_integers_follow_the_table() -> None:
    table = thresholds(0.25, 16)
    found = drawn(table, np.random.default_rng(0), (200_000,))
    edges = np.arange(-12, 13)
    expected = np.diff(norm.cdf((np.append(edges, 13) - 0.5) / 4)) * len(found)
    seen = np.array([(found == k).sum() for k in edges])
    assert (((seen - expected) ** 2 / expected).sum()) < 60, "chi-square of 25 cells"


def test_words_at_the_edges_of_a_cell_fall_into_it() -> None:
    table = thresholds(0.25, 16)
    half = len(table) // 2

    class Words:
        def integers(self, *_: object, **__: object) -> np.ndarray:
            return np.array(
                [0, int(table[half - 1]) - 1, int(table[half - 1]), int(table[half]) - 1, 2**64 - 1], np.uint64
            )

    lowest, before, first, last, highest = drawn(table, Words(), (5,))  # type: ignore[arg-type]
    assert (before, first, last) == (-1, 0, 0)
    assert lowest <= -30
    assert highest >= 30


def test_what_the_table_may_be_wrong_by_is_counted() -> None:
    table = thresholds(0.25, 255)
    assert deviation(table, 1_000_000) < 1e-9
    assert deviation(table, 2) >= 2 * Fraction(len(table) + 1, 2**64)


@given(draws=st.integers(1, 3000), share=st.floats(0, 1), alpha=st.floats(1e-6, 0.5))
def test_the_lower_bound_is_at_the_tail_and_not_above(draws: int, share: float, alpha: float) -> None:
    count = round(share * draws)
    low = share_low(count, draws, alpha)
    assert low <= count / draws
    if count:
        assert binom.sf(count - 1, draws, low) <= alpha * (1 + 1e-9)
        assert binom.sf(count - 1, draws, low * (1 + 1e-5)) > alpha * (1 - 1e-9)
    else:
        assert low == 0.0


def test_all_of_the_draws_leave_the_closed_form() -> None:
    # P(all n) = p^n <= alpha.
    assert share_low(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000), rel=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_the_interval_covers_as_often_as_it_says(share: float) -> None:
    # 20,000 experiments of 100 draws at alpha 0.05: misses are binomial; the limit is their mean plus five deviations.
    alpha, runs = 0.05, 20_000
    counts = np.random.default_rng(1).binomial(100, share, runs)
    lows = {count: share_low(count, 100, alpha) for count in set(counts.tolist())}
    misses = sum(lows[count] > share for count in counts.tolist())
    assert misses <= runs * alpha + 5 * (runs * alpha * (1 - alpha)) ** 0.5
    assert misses > 0, "an interval that never misses is wider than it says"


@given(sigma=st.floats(1e-3, 10), share=st.floats(0, 1, exclude_max=True))
def test_the_radius_is_rounded_down(sigma: float, share: float) -> None:
    radius = radius_low(sigma, share)
    if share <= 0.5:
        assert radius == 0.0
    else:
        mp.dps = 40
        assert ncdf(mpf(radius) / mpf(sigma)) <= mpf(share)
        assert radius == pytest.approx(sigma * norm.ppf(share), rel=1e-9)


def test_no_radius_exceeds_that_of_the_smoothed_classifier_itself() -> None:
    # Half smoothed is Phi((x - 1/2) / sigma): its true radius is |x - 1/2|, to the rounding of the grid's cell.
    samples = data([0.1, 0.3, 0.45, 0.6, 0.8, 1.0])
    result = smooth(Half().eval(), samples, sigma=0.25, eps=["0.1"], draws=2000, alpha=0.001)
    assert result.claim == "probabilistic, sound for inputs on the grid"
    true = np.abs(samples.images[:, 0, 0, 0].numpy() - 0.5)
    radii = np.array([one.radius for one in result.samples])
    assert (radii <= true + 0.5 / 255).all()
    assert (radii[true > 0.2] > 0.6 * true[true > 0.2]).all()
    assert result.certified[0].certified.count == int((radii > 0.1).sum())


def test_a_sample_on_the_boundary_is_abstained_from() -> None:
    result = smooth(Half().eval(), data([0.5 + 1e-3] * 4, levels=None), sigma=1.0, eps=["0"], draws=100)
    assert [one.predicted for one in result.samples] == [None] * 4
    assert (result.abstained, result.accurate.count, result.certified[0].certified.count) == (4, 0, 0)
    assert result.claim == "probabilistic, not sound in floating point"


def test_each_sample_has_its_own_noise_whoever_stands_beside_it() -> None:
    whole = smooth(Half().eval(), data([0.1, 0.4, 0.6]), sigma=0.25, eps=["0"], draws=200)
    samples = data([0.1, 0.4, 0.6])
    last = Dataset(samples.record, samples.images[2:], samples.labels[2:], samples.indices[2:])
    assert smooth(Half().eval(), last, sigma=0.25, eps=["0"], draws=200).samples == whole.samples[2:]
    other = smooth(Half().eval(), samples, sigma=0.25, eps=["0"], draws=200, seed=1)
    assert other.samples != whole.samples


def test_it_resumes_to_the_same_numbers_and_draws_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"sigma": 0.25, "eps": ["0.1"], "draws": 200, "block": 2, "out": tmp_path}
    whole = smooth(Half().eval(), data([0.1, 0.4, 0.6]), **given)  # type: ignore[arg-type]
    blocks = sorted((tmp_path / "smoothing").glob("block-*.json"))
    assert [block.name for block in blocks] == ["block-00000.json", "block-00001.json"]
    before = [block.read_bytes() for block in blocks]
    blocks[1].write_text("{")
    certified: list[int] = []
    own = Sampler.certify

    def counted(self: Sampler, index: int, label: int, image: Tensor) -> object:
        certified.append(index)
        return own(self, index, label, image)

    monkeypatch.setattr(Sampler, "certify", counted)
    assert smooth(Half().eval(), data([0.1, 0.4, 0.6]), **given) == whole  # type: ignore[arg-type]
    assert certified == [2]
    assert [block.read_bytes() for block in blocks] == before


def test_a_folder_with_another_plan_is_refused(tmp_path: Path) -> None:
    smooth(Half().eval(), data([0.1]), sigma=0.25, eps=["0"], draws=10, out=tmp_path)
    with pytest.raises(
        ConfigError, match=r"holds another smoothing \(they differ in sigma, seed\); choose another --out$"
    ):
        smooth(Half().eval(), data([0.1]), sigma=0.5, eps=["0"], draws=10, seed=3, out=tmp_path)


@pytest.mark.parametrize(("levels", "found"), [(16, 16), (255, 255), (None, None)])
def test_the_grid_of_inputs_is_found(levels: int | None, found: int | None) -> None:
    assert levels_of(data([0.1, 0.37, 0.9003], levels).images) == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigma": 0.0}, "sigma must be above 0 and below 1000, got 0.0"),
        ({"alpha": 1.0}, "alpha must lie between 0 and 1, got 1.0"),
        ({"draws": 0}, "draws must be 1 or more, got 0"),
        ({"alpha": 1e-18}, "alpha 1e-18 is too small for 10 draws of 64 bits; expected a larger alpha"),
    ],
)
def test_numbers_that_cannot_be_meant(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        smooth(Half().eval(), data([0.1]), **{"sigma": 0.25, "eps": ["0"], "draws": 10, **changed})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_training_mode_is_refused() -> None:
    with pytest.raises(Refusal, match=r"^the model is in training mode; call model.eval\(\) before smoothing$"):
        smooth(Half().train(), data([0.1]), sigma=0.25, eps=["0"])


def test_the_attack_on_the_smoothed_classifier_stays_above_the_radius_and_finds_the_boundary() -> None:
    samples = data([0.2, 0.4, 0.7, 0.9])
    result = smooth(Half().eval(), samples, sigma=0.25, eps=["0"], draws=1000)
    attacked = attack_smoothed(Half().eval(), samples, result)
    assert attacked.attacks is not None
    true = np.abs(samples.images[:, 0, 0, 0].numpy() - 0.5)
    for one, sample, edge in zip(attacked.attacks, result.samples, true, strict=True):
        assert one.distance is not None
        assert sample.radius <= edge + 0.5 / 255 < one.distance + 1 / 255
        assert one.distance < 3.1 * max(sample.radius, 0.125)


@pytest.mark.parametrize(
    ("counts", "seen"), [([400, 600], True), ([495, 505], False), ([600, 400], False), ([0, 0], False)]
)
def test_a_class_must_be_seen_to_win(counts: list[int], seen: bool) -> None:
    assert beaten(np.array(counts), 0, 0.001) == seen


def test_chance_among_many_classes_is_no_win() -> None:
    # All classes alike, so that the label is as good as any: whichever class comes first must not win more than in alpha.
    alpha, runs = 0.05, 2000
    drawn = np.random.default_rng(0).multinomial(200, [0.05] * 20, runs)
    wins = sum(beaten(counts, 0, alpha) for counts in drawn)
    assert wins <= runs * alpha + 5 * (runs * alpha * (1 - alpha)) ** 0.5
