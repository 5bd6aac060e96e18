"""Mutants made from the source of a rule are caught; benchmarks/mutants.py makes those of all rules and counts."""

from __future__ import annotations

import ast
import functools
import inspect

import pytest

from certkit.bounds.rules import RULES, linear
from tests.attained import Attained
from tests.mutating import EXTRA, Instance, Mutant, Verdict, _changes, instances_of, judge, mutants, reached
from tests.table import CASES
from tests.test_attained import ATTAINED

TRIED = ("linear", "add", "mean")
PLACES = {"linear.linear", "linear.add", "linear.mean", *TRIED}


@functools.cache
def measured() -> tuple[Instance, ...]:
    cases = [case for rule in TRIED for case in CASES[rule][:2]]
    by_hand = [case for rule in TRIED for case in ATTAINED[rule] if isinstance(case, Attained)]
    return tuple(instances_of(cases, [*by_hand, *EXTRA]))


@functools.cache
def verdicts() -> dict[str, tuple[Mutant, Verdict]]:
    instances, found = measured(), {}
    lines = reached(instances)
    for mutant in mutants([linear]):
        if mutant.place in PLACES:
            found[mutant.name] = mutant, judge(mutant, instances, lines)
    return found


def test_every_mutant_that_claims_less_gain_or_size_is_killed() -> None:
    judged = [(m, v) for m, v in verdicts().values() if v.fields not in ((), ("error",))]
    assert sum(v.status == "killed" for _, v in judged) >= 20
    assert [m.name for m, v in judged if v.status == "survived"] == []


@pytest.mark.parametrize("rule", TRIED)
@pytest.mark.parametrize("number", ["gain x 0.9", "size x 0.5", "error x 0.5"])
def test_a_number_that_is_shrunk_as_a_whole_is_caught(rule: str, number: str) -> None:
    (verdict,) = [v for m, v in verdicts().values() if m.rule == rule and m.kind == number]
    assert verdict.status == "killed"
    assert number.split()[0] in verdict.fields


def test_an_error_that_does_not_come_in_is_caught() -> None:
    dropped = [v for m, v in verdicts().values() if m.kind == "term dropped" and m.old == "x.error + y.error"]
    assert [v.status for v in dropped] == ["killed", "killed"]


def test_the_rule_itself_is_no_mutant() -> None:
    source = inspect.getsource(linear)
    unchanged = Mutant("none", linear, "linear", "", "", range(1, source.count("\n")), ast.parse(source))
    instances = measured()[:4]
    assert judge(unchanged, instances, reached(instances)).status == "no less"
    assert judge(unchanged, instances, {}).status == "unreached"


def test_the_table_is_whole_again_after_a_mutant() -> None:
    before = dict(RULES)
    mutant = next(m for m in mutants([linear]) if m.tree is not None)
    with mutant.installed():
        assert RULES["add"] is not before["add"]
    assert before == RULES
    assert list(RULES) == list(before)


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("a + b", ["a", "b", "most_(a, b)"]),
        ("a * b", ["most_(a, b)"]),
        ("Up.of(n).sqrt()", ["unit_(Up.of(n))"]),
        ("reach.scaled(f)", ["reach"]),
        ("a - b", []),
        ("f(a)", []),
    ],
)
def test_what_is_changed(text: str, changed: list[str]) -> None:
    assert [ast.unparse(new) for _, new in _changes(ast.parse(text, mode="eval").body)] == changed
