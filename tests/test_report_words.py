"""The page says what follows from the record and nothing more: its sentences, standings and commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certkit.records import Audit, Sample, Verdict
from certkit.reports import render
from certkit.reports.findings import FEWEST_ROWS, MOST_ROWS, Findings, commands
from certkit.reports.page import SECTIONS
from certkit.reports.tree import Part, Run, tree
from tests.audits import audit_with, example_audit, page_of, point, rate, with_float_gaps
from tests.pages import Page

EVERY_VERDICT = pytest.mark.parametrize("verdict", get_args(Verdict))


# What the page says


@EVERY_VERDICT
def test_the_verdict_comes_first_in_word_shape_and_colour(verdict: Verdict) -> None:
    html = page_of(verdict)
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", html, re.DOTALL)
    assert heading
    assert heading[1] == (f'<svg><use href="#g-{verdict.replace(" ", "-")}"/></svg><span>{verdict}</span>')
    assert f'<div class="verdict {verdict.replace(" ", "-")}">' in html
    assert html.index("<h1") < html.index("<h2")


@EVERY_VERDICT
def test_every_section_is_there_under_its_anchor(verdict: Verdict) -> None:
    audit = example_audit(40, verdict)
    found = re.findall(r'<section id="([\w-]+)"', render(audit))
    assert found == [part.id for part in SECTIONS if part.id != "contradictions" or audit.contradictions]


def test_the_page_never_says_safe() -> None:
    for verdict in get_args(Verdict):
        assert not re.search(r"\bsafe\b", Page(page_of(verdict)).text, re.IGNORECASE)


def test_a_share_is_never_shown_without_its_count_and_interval() -> None:
    audit = audit_with(clean=rate(354, 360), curve=(point(354, 354),))
    text = Page(render(audit)).text
    assert "354/360 = 98.3 % [96.4, 99.4]" in text, "proved: at least"
    assert "354/360 = 98.4 % [96.4, 99.4]" in text, "under attack: at most"


@pytest.mark.parametrize("verdict", ["REFUTED", "NOT REFUTED"])
def test_what_is_proved_or_right_is_rounded_down_and_what_attacks_left_is_rounded_up(verdict: Verdict) -> None:
    audit = example_audit(60, verdict)
    shown = re.findall(
        r'data-path="([\w.]+)\.total">\d+</data></span> = '
        r'<b class="share"><data value="([^"]+)">([\d.]+)</data>',
        render(audit),
    )
    assert len(shown) == 3 * len(audit.curve)
    for path, value, text in shown:
        held: Any = audit
        for key in path.split("."):
            held = held[int(key)] if key.isdigit() else getattr(held, key)
        assert float(value) == held.count / held.total
        exact = Fraction(100 * held.count, held.total)
        assert (
            (0 <= Fraction(text) - exact < Fraction(1, 10))
            if "attacked" in path
            else (0 <= exact - Fraction(text) < Fraction(1, 10))
        )


def test_a_contradiction_is_named_with_its_file_and_the_way_to_replay_it() -> None:
    audit = example_audit(verdict="REFUTED")
    text = Page(render(audit)).text
    assert audit.contradictions[0].example.name in text
    assert audit.contradictions[0].example.sha256 in text
    assert "To replay one: compare the file with its digest, load it, measure its L2 distance" in text
    assert "read none of its figures on this page as proved" in text
    assert "Claimed at L2 0.25" in text
    assert "proved to stay so" not in text


def test_decorative_attention_is_said_to_be_decorative() -> None:
    assert "Attention is decorative here" in render(example_audit(40, decorative=True))
    assert "decorative" not in Page(page_of("NOT REFUTED")).text


CUT = "Removing the branch cuts the whole path: this network has no connection around its attention."


@pytest.mark.parametrize("looks", [True, False])
def test_what_is_said_to_carry_weight_is_attention_only_where_it_looks_at_the_content(looks: bool) -> None:
    audit = example_audit(40)
    assert audit.attention
    text = Page(
        render(audit.model_copy(update={"attention": audit.attention.model_copy(update={"looks_at_content": looks})}))
    ).text
    assert ("Attention carries weight here" in text) == looks
    assert ("Mixing of positions carries weight here" in text) == (not looks)
    frozen = "That attention selects by content: with its weights frozen at their mean the network does as well."
    assert (frozen in text) == (not looks)
    assert CUT not in text


@pytest.mark.parametrize(
    ("clean", "certified", "cut"), [(35, 35, True), (72, 72, True), (73, 73, False), (35, 34, False)]
)
def test_attention_is_the_whole_path_where_the_network_without_it_is_constant(
    clean: int, certified: int, cut: bool
) -> None:
    audit = example_audit()
    assert audit.attention
    ablations = tuple(
        one.model_copy(
            update={
                "clean": rate(clean, 360),
                "certified": tuple(at.model_copy(update={"certified": rate(certified, 360)}) for at in one.certified),
            }
        )
        if one.name == "removed"
        else one
        for one in audit.attention.ablations
    )
    changed = audit.attention.model_copy(update={"ablations": ablations})
    assert (CUT in render(audit.model_copy(update={"attention": changed}))) == cut


# The second claim: of the float execution


NO_CLAIM = {
    "pair_error": None,
    "certified": (),
    "median_radius": 0.0,
    "reasons": ("norm: not gone through", "b", "c", "d"),
}


def unclaimed(audit: Audit) -> Audit:
    return audit.model_copy(update={"execution": audit.execution.model_copy(update=NO_CLAIM)})


def refuting_the_execution(audit: Audit) -> Audit:
    (one,) = audit.contradictions
    return audit.model_copy(update={"contradictions": (one.model_copy(update={"refutes": "float execution"}),)})


def test_the_claim_about_the_execution_stands_beside_the_exact_one_with_its_assumptions() -> None:
    audit = example_audit(60)
    page = Page(render(audit))
    text = " ".join(page.text.split())
    for place, at in enumerate(audit.execution.certified):
        assert (str(at.certified.count), str(at.certified.count)) in page.data[
            f"execution.certified.{place}.certified.count"
        ]
    assert "Float32 execution, at least" in text
    assert "The claim about the float32 execution assumes the program runs in float32 on a CPU" in text
    assert "Nothing is proved of rounding" not in text
    assert "Nothing about a program that runs otherwise than the claim about its float32 execution assumes" in text
    assert "no claim" not in text


def test_where_nothing_is_claimed_of_the_execution_the_page_says_so_and_why() -> None:
    page = Page(render(unclaimed(example_audit(60))))
    text = " ".join(page.text.split())
    assert not [path for path in page.data if path.startswith("execution.")]
    assert (
        "Nothing is claimed of the float32 execution of this network: norm: not gone through; b; c; and 1 more" in text
    )
    assert "Why nothing is claimed of the float32 execution norm: not gone through b c d" in text
    assert "Nothing is proved of rounding: the claim is for exact arithmetic, and the deployed program rounds." in text


def test_a_refuted_execution_leaves_the_exact_claim_standing() -> None:
    text = " ".join(Page(render(refuting_the_execution(example_audit(60, "REFUTED")))).text.split())
    assert "Read no figure of the float32 execution as proved; those of exact arithmetic stand." in text
    assert "Float32 execution, refuted" in text
    assert "Certified, at least" in text
    assert "Claimed, and refuted" not in text
    assert "read none of its figures on this page as proved" not in text
    assert "Nothing of rounding: what was claimed of the float32 execution is refuted." in text


def test_a_slope_above_its_gain_refutes_the_exact_claim_whatever_else_is_refuted() -> None:
    audit = refuting_the_execution(example_audit(60, "REFUTED"))
    steep = audit.ledger[1].model_copy(update={"attained": "1.5", "gain": "1.25"})
    text = " ".join(Page(render(audit.model_copy(update={"ledger": (steep,)}))).text.split())
    assert "read none of its figures on this page as proved" in text
    assert "Claimed, and refuted" in text


def test_with_the_exact_claim_the_one_about_the_execution_falls() -> None:
    text = " ".join(Page(page_of("REFUTED")).text.split())
    assert "Claimed, and refuted" in text
    assert "Float32 execution, refuted" in text


def test_what_the_whole_box_proves_alone_stands_beside_what_the_samples_own_balls_add() -> None:
    audit = example_audit(60)
    page = Page(render(audit))
    assert str(audit.without_local.median_radius) in {value for value, _ in page.data["without_local.median_radius"]}
    assert f"{audit.without_local.improved} of 60 samples have a larger radius by their own ball." in page.text


# The ledger by module


modules = st.lists(st.lists(st.sampled_from(["a", "b", "0"]), max_size=9).map(".".join), max_size=12)


def unfolded(parts: tuple[Part | Run, ...]) -> list[int]:
    return [at for part in parts for at in (part.steps if isinstance(part, Run) else unfolded(part.inside))]


def within(parts: tuple[Part | Run, ...], above: str = "") -> Iterator[tuple[str, int]]:
    for part in parts:
        if isinstance(part, Run):
            assert part.within == above
            yield from ((above, at) for at in part.steps)
        else:
            assert part.path == f"{above}.{part.name}".lstrip(".")
            assert [part.first, part.last] == [unfolded(part.inside)[0], unfolded(part.inside)[-1]]
            yield from within(part.inside, part.path)


@given(modules)
@example(["." * 3000, ".".join("a" * 3000)])
def test_the_tree_holds_every_step_once_in_order_under_its_own_module(names: list[str]) -> None:
    row = example_audit(8).ledger[0]
    ledger = [row.model_copy(update={"module": name}) for name in names]
    parts = tree(ledger)
    assert unfolded(parts) == list(range(len(names)))
    for path, at in within(parts):
        assert f"{names[at].strip('.')}.".startswith(f"{path}." if path else "")


def test_a_module_stands_with_the_bounds_at_its_end() -> None:
    audit = example_audit(8)
    html = render(audit)
    assert len(re.findall(r'<tr id="op-\d+">', html)) == len(audit.ledger)
    summary = re.search(
        r"<summary><span class=\"module\"><code>blocks</code>.*?</summary>", html.replace(".<wbr>", ".")
    )
    assert summary
    last = max(at for at, row in enumerate(audit.ledger) if row.module.startswith("blocks."))
    assert f'<data value="{audit.ledger[last].gain}" data-path="ledger.{last}.gain">' in summary[0]


# Where the deployed program errs and the exact function does not


LIES_BETWEEN = "The true robust accuracy lies between the two lines"
WORSE = "At some radii the deployed program does worse than the proof about exact arithmetic: float gaps"


@EVERY_VERDICT
def test_the_truth_is_said_to_lie_between_the_lines_only_where_it_does(verdict: Verdict) -> None:
    text = Page(page_of(verdict)).text
    assert (LIES_BETWEEN in text) == (verdict in {"NOT REFUTED", "INCONCLUSIVE"})
    assert WORSE not in text


def test_a_program_that_does_worse_than_the_proof_is_said_to_and_no_gap_is_negative() -> None:
    whole = example_audit(60)
    proved = tuple(sample.index for sample in whole.samples if sample.radius >= 0.25)
    audit = with_float_gaps(whole, proved)
    assert any(point.attacked and point.attacked.count < point.certified.count for point in audit.curve)
    text = " ".join(Page(render(audit)).text.split())
    assert WORSE in text
    assert LIES_BETWEEN not in text
    table = text[text.index("Robust accuracy at each eps") :]
    assert f"none: {audit.curve[1].certified.count - audit.curve[1].attacked.count} below the proof" in table
    assert not re.search(r"-\d+/", text)
    found = Findings.of(audit)
    assert sum(part.count for part in found.shares) == 60
    assert {row.sample.index for row in found.rows if row.standing == "contradicted"} == set(proved)
    assert {part.standing: part.count for part in found.shares}["contradicted"] == len(proved)


def test_one_float_gap_is_excepted_from_what_lies_between_the_lines() -> None:
    every = example_audit(60)
    whole = every.model_copy(update={"curve": every.curve[1:]})
    audit = with_float_gaps(whole, (min((s for s in whole.samples if s.radius > 0), key=lambda s: s.radius).index,))
    assert all(p.attacked and p.attacked.count >= p.certified.count for p in audit.curve)
    text = " ".join(Page(render(audit)).text.split())
    assert "But for the samples with a float gap, the true robust accuracy lies between the two lines" in text
    assert WORSE not in text


def test_a_sample_that_the_program_gets_wrong_unchanged_is_described_as_such() -> None:
    whole = example_audit(40)
    victim = max(whole.samples, key=lambda sample: sample.radius)
    audit = with_float_gaps(whole, (victim.index,))
    text = " ".join(Page(render(audit)).text.split())
    assert "On 1 sample the deployed program errs inside the certified radius." in text
    assert (
        "1 of them needs no attack (clean, distance 0): the deployed program misclassifies the sample itself." in text
    )
    assert "the sample itself" in text
    assert "To replay one" not in text
    (row,) = [row for row in Findings.of(audit).rows if row.sample.index == victim.index]
    assert (row.sample.distance, row.sample.attack, row.gap) == (0.0, "clean", -victim.radius)


def test_what_was_not_evaluated_is_said_to_be_so_and_no_number_stands_in_for_it() -> None:
    page = Page(render(example_audit(40, "NOT EVALUATED")))
    assert "nothing has tried to refute it" in page.text
    assert "No evaluation check ran." in page.text
    assert not [path for path in page.data if ".attacked" in path or path == "median_distance"]


def test_an_unfinished_campaign_says_how_much_of_its_plan_ran() -> None:
    assert "Of 5 planned units 3 ran." in Page(render(example_audit(40, "INCONCLUSIVE"))).text


def test_beyond_the_most_rows_the_smallest_gaps_are_shown_and_the_rest_is_counted() -> None:
    audit = example_audit(MOST_ROWS + 1)
    found = Findings.of(audit)
    gaps = sorted(s.distance - s.radius for s in audit.samples if s.distance is not None)
    assert [row.gap for row in found.rows] == gaps[:FEWEST_ROWS]
    assert found.omitted == MOST_ROWS + 1 - FEWEST_ROWS
    assert f"The {FEWEST_ROWS} samples with the smallest gap between proof and attack" in render(audit)


def test_up_to_the_most_rows_every_sample_has_its_row() -> None:
    assert render(example_audit(MOST_ROWS)).count('<tr id="s') == MOST_ROWS


@pytest.mark.parametrize(
    ("sample", "standing"),
    [
        (Sample(index=0, label=1, predicted=1, margin=1, radius=0.25, distance=None, attack=None), "certified"),
        (Sample(index=0, label=1, predicted=1, margin=1, radius=0.2, distance=0.25, attack="DDN"), "broken"),
        (Sample(index=0, label=1, predicted=1, margin=1, radius=0.2, distance=0.3, attack="DDN"), "open"),
        (Sample(index=0, label=1, predicted=1, margin=1, radius=0.2, distance=None, attack=None), "open"),
        (Sample(index=0, label=1, predicted=2, margin=-1, radius=0.0, distance=None, attack=None), "misclassified"),
        (Sample(index=0, label=1, predicted=1, margin=1, radius=0.9, distance=0.8, attack="DDN"), "contradicted"),
        (Sample(index=0, label=1, predicted=1, margin=0, radius=0.0, distance=None, attack=None), "misclassified"),
    ],
)
def test_a_sample_stands_where_its_radius_and_its_smallest_attack_put_it(sample: Sample, standing: str) -> None:
    (row,) = Findings.of(audit_with(samples=(sample,))).rows
    assert row.standing == standing


def test_the_commands_to_reproduce_quote_what_a_shell_would_run() -> None:
    audit = audit_with(data=example_audit(8).data.model_copy(update={"name": "x; rm -rf ~"}))
    assert commands(audit)[1] == (
        "certkit audit CHECKPOINT --data 'x; rm -rf ~' --split test --limit 8 --norm l2 --eps 0.1,0.25,0.5,1.0"
        " --suite standard --seed 0 --device cpu --threads 2 --out DIR"
    )
    assert commands(audit)[-1] == "certkit verify DIR --checkpoint CHECKPOINT --data 'x; rm -rf ~'"


def test_where_certificate_and_campaign_took_other_threads_there_is_a_command_for_each() -> None:
    audit = audit_with(environment=example_audit(8).environment.model_copy(update={"threads": 1}))
    rest = "CHECKPOINT --data digits --split test --limit 8 --norm l2 --eps 0.1,0.25,0.5,1.0"
    assert commands(audit)[1:4] == (
        f"certkit certify {rest} --device cpu --threads 1 --out DIR",
        f"certkit attack {rest} --suite standard --seed 0 --device cpu --threads 2 --out DIR",
        "certkit report DIR --checkpoint CHECKPOINT --data digits",
    )
    assert "threads (1 thread to certify, 2 threads to attack)" in Page(render(audit)).text


@pytest.mark.parametrize("block", [64, 90])
def test_a_campaign_that_no_command_makes_is_said_to_be_from_python(block: int) -> None:
    run = example_audit(8).campaign
    assert run
    text = Page(render(audit_with(campaign=run.model_copy(update={"block": block})))).text
    assert ("This campaign was made from Python, in blocks of 90 samples" in text) == (block == 90)
    assert "--data takes the data set's name or folder; here it was recorded as digits." in text


def test_a_record_with_nothing_to_draw_makes_a_page_that_says_so() -> None:
    html = render(audit_with(curve=(), samples=(), ledger=(), checks=(), attention=None, assumptions=(), limits=()))
    for sentence in (
        "The record holds no radius above 0.",
        "The record does not hold every sample, and none that was broken.",
        "The record does not hold every sample, and none with a radius above 0.",
        "The record holds no ledger.",
        "No attention was taken out of this network to see what it is worth.",
        "No evaluation check ran.",
    ):
        assert sentence in html


NO_SUCCESS = "No attack succeeded on a correctly classified sample."
NO_RADIUS = "No correctly classified sample has a certified radius above 0."


@pytest.mark.parametrize(
    ("radius", "distance", "said"),
    [
        (0.0, None, {NO_SUCCESS, NO_RADIUS}),
        (0.0, 0.5, {NO_RADIUS}),
        (0.25, None, {NO_SUCCESS}),
        (0.25, 0.5, set()),
        (1.7e308, 1.7e308, {
            "A distance of 1.7e+308 lies beyond what a figure can show, 1e-100 to 1e+100; the table holds the numbers.",
            "A radius of 1.7e+308 lies beyond what a figure can show, 1e-100 to 1e+100; the table holds the numbers.",
        }),
    ],
)  # fmt: skip
def test_why_a_figure_is_missing_is_said_only_when_it_is_so(
    radius: float, distance: float | None, said: set[str]
) -> None:
    attack = None if distance is None else "DDN"
    rows = tuple(
        Sample(index=i, label=1, predicted=1, margin=1, radius=radius, distance=distance, attack=attack)
        for i in range(8)
    )
    page = Page(render(audit_with(samples=rows, median_distance=distance))).text
    assert {sentence for sentence in (NO_SUCCESS, NO_RADIUS) if sentence in page} == said & {NO_SUCCESS, NO_RADIUS}
    assert all(sentence in page for sentence in said)
    assert ("no attack succeeded" in page) == (distance is None)
    assert ("beyond what a figure can show" in page) == (radius > 1)


@pytest.mark.parametrize("radius", [0.0, 5e-324, 1e-200, 1.7e308])
def test_numbers_at_the_edge_of_float64_make_a_page(radius: float) -> None:
    rows = tuple(
        sample.model_copy(update={"radius": radius, "distance": radius}) for sample in example_audit(8).samples
    )
    assert repr(radius) in render(audit_with(samples=rows, median_radius=radius, median_distance=radius))


@pytest.mark.parametrize(
    "text", ["1E+400", "9.99999E+999999999999999999", "NaN", "-Infinity", "", "not a number", "1e-9999"]
)
def test_a_ledger_may_hold_any_text_for_a_number(text: str) -> None:
    step = example_audit(8).ledger[0].model_copy(update={"gain": text, "size": text, "error": text})
    assert f'<data value="{text}" data-path="ledger.0.gain">' in render(audit_with(ledger=(step,)))
