"""Ten thousand attempts of a search, guided by gradients, to break the rules' bounds; benchmarks/violations.py makes a million."""

from __future__ import annotations

import pytest

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.rules import RULES
from tests.modules import Case
from tests.searching import Found, plan, search
from tests.table import CASES

PAIRS = 96
FIRST = [(rule, cases[0]) for rule, cases in CASES.items()]


@pytest.mark.parametrize(("rule", "case"), [pytest.param(rule, case, id=rule) for rule, case in FIRST])
def test_no_search_breaks_a_bound(rule: str, case: Case) -> None:
    found = Found()
    for norm in ("l2", "linf"):
        found.add(search(case, 0, norm, PAIRS, steps=4))
    assert found.violations == []
    assert found.trials == 2 * PAIRS
    assert found.comparisons >= 10 * found.trials


def test_the_searches_of_this_file_are_ten_thousand_trials() -> None:
    assert 2 * PAIRS * len(FIRST) >= 10**4


def test_a_plan_goes_through_all_cases_in_both_norms_before_it_draws_new_weights() -> None:
    two = FIRST[:2]
    seen = [(rule, seed, norm) for rule, _, seed, norm in plan(two, 6 * 32, 32)]
    (a, b), norms = (rule for rule, _ in two), ("l2", "linf")
    assert seen == [*((r, 0, n) for r in (a, b) for n in norms), *((a, 1, n) for n in norms)]


@pytest.mark.parametrize(
    ("rule", "name", "factor"),
    [("linear", "gain", 0.98), ("scale", "gain", 0.98), ("abs", "size", 0.98), ("add", "error", 0.1)],
)
def test_the_search_finds_a_bound_that_is_broken(
    rule: str, name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RULES[rule]

    def less(inputs: object, facts: object) -> Bound:
        found = original(inputs, facts)  # type: ignore[arg-type]
        norms = {
            axes: Reach(**{f: getattr(reach, f) * (factor if f == name else 1) for f in ("size", "gain", "error")})
            for axes, reach in found.norms.items()
        }
        return Bound(found.shape, norms)

    monkeypatch.setitem(RULES, rule, less)  # type: ignore[arg-type]
    found = Found()
    for norm in ("l2", "linf"):
        found.add(search(CASES[rule][0], 0, norm, PAIRS, steps=4))
    assert {v.field for v in found.violations} == {name}
    assert min(v.ratio for v in found.violations) > 1
