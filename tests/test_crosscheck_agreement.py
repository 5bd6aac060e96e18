"""The laws of agreement, each with the case that breaks it, and the pairs that nothing orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from certkit.crosscheck.agreement import against, agreement, verified_radii
from certkit.records import Eps
from certkit.records.crosscheck import Bounded, Fault, Lirpa, Method
from certkit.statistics import rate

NONE = float("nan")


def column(*values: float) -> np.ndarray:
    return np.array(values)


def method(*margins: tuple[float | None, ...], radii: tuple[float, ...] | None = None, faults: int = 0) -> Method:
    bounds = tuple(
        Bounded(eps=Eps.of(f"0.{i + 1}"), margins=row, verified=rate(0, len(row))) for i, row in enumerate(margins)
    )
    fault = Fault(index=0, eps=Eps.of("0.1"), against=1, bound=1.0, attained=0.5)
    return Method(name="CROWN", message=None, bounds=bounds, radii=radii, faults=(fault,) * faults)


def test_each_law_is_broken_by_name() -> None:
    view = agreement(
        [7, 8, 9],
        certkit=column(0.3, 0.1, 0.1),
        lirpa=column(0.1, 0.3, 0.1),
        attack=column(0.2, 0.2, 0.2),
        smoothing=column(0.1, 0.1, 0.6),
        smoothing_attack=column(0.5, 0.5, 0.5),
        method="CROWN",
    )
    assert [(c.index, c.pair, c.method, c.radius, c.distance) for c in view.contradictions] == [
        (7, "certkit above attack", "certkit", 0.3, 0.2),
        (8, "auto_LiRPA above attack", "CROWN", 0.3, 0.2),
        (9, "smoothing above its own attack", "smoothing", 0.6, 0.5),
    ]


def test_nothing_orders_certkit_against_lirpa_or_smoothing_against_the_base_model() -> None:
    view = agreement(
        [0, 1, 2],
        certkit=column(0.1, 0.9, 0.5),
        lirpa=column(0.9, 0.1, 0.5),
        smoothing=column(5.0, 5.0, 5.0),
        attack=column(1.0, 1.0, 1.0),
    )
    assert view.contradictions == ()
    assert [sample.larger for sample in view.samples] == ["auto_LiRPA", "certkit", "equal"]


def test_a_distance_equal_to_a_radius_contradicts_nothing_and_the_slack_is_lirpas_alone() -> None:
    near = 0.2 * (1 - 1e-10)
    assert agreement([0], certkit=column(0.2), lirpa=column(0.2), attack=column(0.2)).contradictions == ()
    found = agreement([0], certkit=column(0.2), lirpa=column(0.2), attack=column(near)).contradictions
    assert [(c.pair, c.slack) for c in found] == [("certkit above attack", 0.0)]


def test_a_rung_that_a_sample_lacks_orders_nothing() -> None:
    view = agreement([0, 1], certkit=column(0.5, NONE), attack=column(NONE, 0.1))
    assert view.contradictions == ()
    assert [(s.certkit, s.attack, s.lirpa, s.larger) for s in view.samples] == [
        (0.5, None, None, None),
        (None, 0.1, None, None),
    ]
    assert [(r.name, r.samples, r.median) for r in view.rungs] == [
        ("certkit", 1, 0.5),
        ("auto_LiRPA", 0, None),
        ("attack", 1, 0.1),
        ("smoothing", 0, None),
        ("smoothing attack", 0, None),
    ]


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=6))
def test_a_contradiction_is_exactly_a_distance_below_a_radius(rows: list[tuple[float, float]]) -> None:
    radius, distance = (np.array([row[i] for row in rows], float) for i in (0, 1))
    view = agreement(range(len(rows)), certkit=radius, attack=distance)
    assert [c.index for c in view.contradictions] == [i for i, (r, d) in enumerate(rows) if d < r]


def test_a_column_of_another_length_is_no_column() -> None:
    with pytest.raises(ValueError, match=r"^attack holds \(2,\) values; expected one for each of 1 samples$"):
        agreement([0], attack=column(1.0, 2.0))


def test_the_radius_of_a_method_is_the_largest_it_verified() -> None:
    assert verified_radii(method((0.5, 0.1, -1.0), (0.2, 0.0, None))).tolist() == [0.2, 0.1, 0.0]
    assert verified_radii(method((0.5, 0.1), radii=(0.05, 0.15))).tolist() == [0.1, 0.15]


def test_a_method_with_a_fault_or_without_bounds_has_no_radius() -> None:
    assert np.isnan(verified_radii(method((0.5, 0.1), faults=1))).all()
    assert verified_radii(method()).tolist() == []


def test_one_margin_per_sample_is_enforced() -> None:
    common = {"version": "0.3", "message": None, "norm": "l2", "box": (0.0, 1.0), "difference": 0.0, "allowed": 1e-12}
    with pytest.raises(ValidationError, match="CROWN does not hold one value for each of 3 samples"):
        Lirpa(**common, slack=1e-9, indices=(0, 1, 2), methods=(method((0.5, 0.1)),), costs=())  # type: ignore[arg-type]


def test_the_table_counts_who_certifies_what() -> None:
    ours, theirs = np.array([True, True, False, False]), np.array([True, False, True, False])
    row = against(Eps.of("0.1"), "CROWN", ours, theirs)
    assert (row.certkit.count, row.lirpa.count, row.both, row.certkit_only, row.lirpa_only) == (2, 2, 1, 1, 1)
    with pytest.raises(ValueError, match="certkit and CROWN hold"):
        against(Eps.of("0.1"), "CROWN", ours, theirs[:2])
