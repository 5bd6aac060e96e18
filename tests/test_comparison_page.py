"""The comparison's table and page: numbers rounded the honest way, names that stay text, the same bytes every time."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from certkit.comparison import Comparison, CurvePoint, Proven, Row, Trial
from certkit.errors import one_line
from certkit.records import Environment, Provenance, Rate, Verdict
from certkit.reports import comparison as page
from certkit.reports import comparison_figures as figures
from certkit.reports.comparison_numbers import POINTS, Line, course, lines
from certkit.reports.comparison_text import columns, markdown
from certkit.training.stepper import UNEVEN
from tests.hostile import PAYLOADS
from tests.pages import Page

SEEDS = (0, 1, 2)
NO_RULE = "norm: no rule for aten.layer_norm.default; expected an operator that certkit can bound"


def rate(count: int, total: int) -> Rate:
    return Rate(count=count, total=total, low=0.0, high=1.0)


def trial(learning_rate: float, seed: int, end: float, *, speed: float = 60.0, norm: float = 0.9999991) -> Trial:
    """A run that approaches ``end`` of 144 held-out samples exponentially, measured every 50 of 800 steps."""

    def at(step: int) -> float:
        wave = 0.006 * math.sin(step / 37 + seed * 2)
        return round(144 * min(1.0, max(0.1, end * (1 - 0.9 * math.exp(-step / speed)) + wave))) / 144

    curve = tuple(CurvePoint(step=s, loss=2.3 * (1.02 - at(s)), validation=at(s)) for s in range(0, 801, 50))
    return Trial(
        learning_rate=learning_rate,
        seed=seed,
        validation=at(800),
        test=rate(round(360 * (end - 0.004 * seed)), 360),
        training=rate(round(1293 * min(1.0, end + 0.015)), 1293),
        reached=next((p.step for p in curve if p.validation is not None and p.validation >= 0.95), None),
        spikes=seed,
        norm_over_cap=norm,
        largest_entry=3.0,
        curve=curve,
    )


def failed(learning_rate: float, seed: int) -> Trial:
    return Trial(learning_rate=learning_rate, seed=seed, fault="training: the loss is nan at step 41")


def proven(eps: str, certified: Rate, attacked: Rate, verdict: Verdict = "NOT REFUTED") -> Proven:
    return Proven(eps=eps, certified=certified, attacked=attacked, verdict=verdict)


def row(name: str, ends: dict[float, float], *, proved: tuple[int, int] | None = None, **changes: Any) -> Row:
    """A row whose runs end at an accuracy per learning rate, 0 for those that fail, with a verdict for each seed."""
    verdicts: tuple[Verdict, ...] = changes.pop("verdicts", ("NOT REFUTED",) * 3)
    speed, norm = changes.pop("speed", 60.0), changes.pop("norm", 0.9999991)
    trials = tuple(
        trial(lr, seed, end, speed=speed, norm=norm) if end else failed(lr, seed)
        for lr, end in ends.items()
        for seed in SEEDS
    )
    given: dict[str, Any] = {
        "name": name,
        "optimizer": "muon",
        "constraint": "stiefel",
        "promise": "provable",
        "architecture": "transformer, 2 blocks of width 64, 4 heads",
        "trials": trials,
        "learning_rate": max(ends, key=lambda lr: ends[lr]),
        "proved": () if proved is None else tuple(
            tuple(
                proven(eps, rate(max(0, proved[0] // part - seed), 360), rate(proved[1] - 9 * part + seed, 360), verdict)
                for eps, part in (("0.1", 1), ("0.5", 2))
            )
            for seed, verdict in zip(SEEDS, verdicts, strict=True)
        ),
    }  # fmt: skip
    return Row(**(given | changes))


def comparison(*rows: Row, **changes: Any) -> Comparison:
    given: dict[str, Any] = {
        "name": "compare-digits", "data": "digits", "target": 0.95, "steps": 800, "seeds": SEEDS, "eps": ("0.1", "0.5"),
        "limit": 360, "rows": rows,
        "environment": Environment(
            certkit="0.1.0", python="3.11.7", torch="2.13.0", numpy="2.3.5", platform="linux x86_64", device="cpu", threads=1
        ),
        "provenance": Provenance(created="2026-11-24T05:49:54+00:00", seconds=912.25),
    }  # fmt: skip
    return Comparison(**(given | changes))


def realistic() -> Comparison:
    """What the preset gives, with a row that always diverged."""
    free: dict[str, Any] = {"constraint": "none", "promise": "none"}
    return comparison(
        row("Lipschitz + Muon", {0.02: 0.95, 0.05: 0.972, 0.1: 0.97, 0.2: 0.955}, proved=(318, 345)),
        row("Muon", {0.02: 0.965, 0.05: 0.983, 0.1: 0.98, 0.2: 0.96}, proved=(12, 330), speed=40.0, norm=14.2345, **free),
        row("gradient descent", {0.1: 0.93, 0.3: 0.955, 1: 0.94, 3: 0}, proved=(4, 320), optimizer="sgd", speed=150.0, norm=6.1, **free),
        row("AdamW", {0.001: 0.96, 0.003: 0.975, 0.01: 0.97, 0.03: 0.91}, proved=(0, 322), optimizer="adamw", speed=70.0, norm=22.8, **free),
        row("AdamW + weight decay + dropout", {0.001: 0.962, 0.003: 0.978, 0.01: 0.965}, proved=(1, 326), optimizer="adamw", constraint="weight-decay", promise="approximate", speed=90.0, norm=9.7),
        row("LayerNorm transformer", {0.001: 0.97, 0.003: 0.98, 0.01: 0.9, 0.03: 0}, optimizer="adamw", unproved=NO_RULE, norm=31.0, **free),
        row("Lipschitz + Muon, steps by sensitivity", {0.02: 0.94, 0.05: 0.96, 0.1: 0.958}, proved=(290, 338), speed=110.0),
        row("Muon in float8", {0.05: 0, 0.1: 0}, **free),
    )  # fmt: skip


def of_text() -> Comparison:
    """What a preset on text gives: no radii, a mean loss per token."""
    free: dict[str, Any] = {
        "constraint": "none",
        "promise": "none",
        "architecture": "gpt, 2 blocks of width 64, 4 heads",
    }
    rows = (
        row("Lipschitz + Muon", {0.05: 0.44, 0.1: 0.46, 0.2: 0.45}, constraint="spectral-soft-cap", architecture=free["architecture"]),
        row("Muon", {0.05: 0.47, 0.1: 0.49, 0.2: 0.48}, norm=7.2, speed=40.0, **free),
        row("AdamW", {0.001: 0.41, 0.003: 0.45, 0.03: 0}, norm=9.1, optimizer="adamw", speed=80.0, **free),
        row("gradient descent", {0.1: 0, 0.3: 0}, optimizer="sgd", **free),
    )  # fmt: skip
    heard = [
        one.model_copy(update={"trials": tuple(
            t if t.fault else t.model_copy(update={"test_loss": 3.4 - 3.5 * t.validation + 0.01 * t.seed, "reached": 150}) for t in one.trials
        )})
        for one in rows
    ]  # fmt: skip
    return comparison(*heard, name="compare-shakespeare", data="tinyshakespeare", target=0.4, eps=(), limit=1000)


HOSTILE = ("$x_1$ | $\\frac{1}{0}$", "../../etc", "@0@ & <b>", "文字化け" * 20, *PAYLOADS.values())


def hostile() -> Comparison:
    rows = [row(name, {0.1: 0.9, 0.2: 0}, proved=(300, 340), unproved=name, architecture=name) for name in HOSTILE]
    rows = [one.model_copy(update={"trials": tuple(t.model_copy(update={"fault": t.fault and one.name}) for t in one.trials)}) for one in rows]  # fmt: skip
    return comparison(*rows, name=" ".join(HOSTILE), data=HOSTILE[0])


def only(one: Row, **changes: Any) -> Line:
    (line,), _ = lines(comparison(one, **changes))
    return line


# Numbers


def test_certified_accuracy_is_rounded_down_and_attacked_up() -> None:
    proved = tuple((proven("0.1", rate(count, 360), rate(count + 30, 360)),) for count in (300, 301, 301))
    line = only(row("a", {0.1: 0.9}).model_copy(update={"proved": proved}), eps=("0.1",))
    exact = Fraction(902, 1080) * 100
    assert line.robust == (("83.5", "91.9"),)
    assert Fraction(line.robust[0][0]) <= exact
    assert Fraction(line.robust[0][1]) >= exact + Fraction(30, 360) * 100
    assert line.note is None


def test_shares_that_need_no_rounding_are_shown_as_they_are() -> None:
    proved = ((proven("1/10", rate(90, 100), rate(91, 100)),),) * 3
    assert only(row("a", {0.1: 0.9}).model_copy(update={"proved": proved}), eps=("1/10",)).robust == (("90.0", "91.0"),)


def test_a_norm_is_rounded_up_and_just_above_its_cap_shown_with_all_its_digits() -> None:
    assert only(row("a", {0.1: 0.9}, norm=0.99999912)).norm == "1.000"
    assert only(row("a", {0.1: 0.9}, norm=1.00000041)).norm == "1.0000005"
    assert only(row("a", {0.1: 0.9}, norm=14.2341)).norm == "14.24"


def trials(*given: Trial) -> Row:
    return row("a", {0.1: 0.9}).model_copy(update={"trials": given})


def test_test_accuracy_is_the_mean_rounded_down_with_the_spread_rounded_up() -> None:
    runs = [trial(0.1, seed, 0.9).model_copy(update={"test": rate(900 + 3 * seed, 1000)}) for seed in SEEDS]
    assert only(trials(*runs)).test == "90.3 ± 0.3"
    assert only(trials(runs[0])).test == "90.0", "one seed has no spread"
    assert only(trials(*runs[:2], failed(0.1, 2))).test == "90.1 ± 0.2 (2/3)"


def test_steps_to_the_target_are_the_median_of_the_seeds_that_reached_it() -> None:
    def reached(*steps: int | None) -> str:
        return only(trials(*(trial(0.1, i, 0.9).model_copy(update={"reached": s}) for i, s in enumerate(steps)))).steps

    assert reached(300, 100, 150) == "150"
    assert reached(100, None, 151) == "126 (2/3)"
    assert reached(None, None, None) == "never"


def test_the_gap_is_in_points_and_an_exact_one_stays_exact() -> None:
    runs = [trial(0.1, s, 0.9).model_copy(update={"training": rate(100, 100), "validation": 0.98}) for s in SEEDS]
    assert only(trials(*runs)).gap == "2.0"
    assert only(trials(*(t.model_copy(update={"training": rate(97, 100)}) for t in runs))).gap == "-1.0"


def test_a_curve_at_the_target_is_shown_at_the_target() -> None:
    found = trials(*(trial(0.1, s, 0.9).model_copy(update={"validation": 0.95}) for s in SEEDS))
    assert re.search(
        r'<data value="0.95">95.0</data> <span class="interval">\[95.0, 95.0\]', page.render(comparison(found))
    )


def test_a_row_that_never_ended_has_no_numbers_and_says_why() -> None:
    line = only(row("a", {0.1: 0, 0.2: 0}))
    assert (line.learning_rate, line.test, line.steps, line.gap, line.norm, line.spikes) == ("-",) * 6
    assert line.failed == "6/6"
    text = page.table(comparison(row("a", {0.1: 0, 0.2: 0})))
    assert "-[1]" in text
    assert "[1] no run at any learning rate has a result" in text


def test_a_refusal_is_a_footnote_in_the_certificates_own_words_said_once() -> None:
    text = page.table(comparison(*(row(name, {0.1: 0.9}, unproved=NO_RULE) for name in "ab")))
    assert text.count("-[1]") == 4
    assert " ".join(text.split()).count(NO_RULE) == 1
    assert "[2]" not in text


def test_a_mean_over_some_of_the_seeds_says_of_how_many() -> None:
    one = row("a", {0.1: 0.9}, proved=(300, 340))
    line = only(one.model_copy(update={"proved": one.proved[:2]}))
    assert line.robust[0] == ("83.1 (2/3)", "92.1 (2/3)")
    assert line.note == 1


def test_a_refuted_row_has_no_certified_accuracy_and_says_so_before_everything() -> None:
    broken = row("broken", {0.1: 0.9}, proved=(300, 340), verdicts=("NOT REFUTED", "REFUTED", "NOT REFUTED"))
    found = comparison(row("whole", {0.1: 0.9}, proved=(310, 340)), broken)
    said = (
        "REFUTED: broken: attacks found adversarial examples inside the certified radii of 1 of 3 networks: the "
        "certificate is wrong. Nothing certified of this row counts as proved"
    )
    whole, line = lines(found)[0]
    assert [certified for certified, _ in line.robust] == ["REFUTED", "REFUTED"]
    assert whole.refutation is None
    printed = page.table(found)
    assert " ".join(printed.split()).startswith(said)
    assert len(re.findall("^broken .* REFUTED +92.3 +REFUTED +89.8$", printed, re.MULTILINE)) == 1
    assert " ".join(markdown(found).split()).startswith(f"# compare-digits **{said}")
    assert "| REFUTED | 92.3 | REFUTED | 89.8 |" in markdown(found)
    html = page.render(found)
    assert said in " ".join(Page(html).text.split())
    assert html.index("inside the certified radii") < html.index("<table")
    assert html.count('<td class="n fail">REFUTED</td>') == 2
    assert "300/360, 299/360, 298/360 claimed" in html
    assert html.count(">REFUTED: broken</text>") == 1, "the figure of certified accuracy"
    assert ">REFUTED: whole</text>" not in html


def test_every_refuted_network_is_counted() -> None:
    line = only(row("a", {0.1: 0.9}, proved=(300, 340), verdicts=("REFUTED", "REFUTED", "INCONCLUSIVE")))
    assert line.refutation
    assert "of 2 of 3 networks: the certificates are wrong" in line.refutation
    assert line.doubt == 1


def test_no_row_is_refuted_but_by_its_verdict() -> None:
    """A float gap leaves fewer right than are certified and refutes nothing of the exact function."""
    gap = row("a", {0.1: 0.9}).model_copy(update={"proved": ((proven("0.1", rate(90, 100), rate(80, 100)),),) * 3})
    found = comparison(gap)
    for shown in (page.table(found), markdown(found), Page(page.render(found)).text):
        assert "REFUTED" not in shown
    assert only(gap, eps=("0.1",)).robust == (("90.0", "80.0"),)


def test_attacks_that_failed_their_own_checks_get_a_footnote() -> None:
    verdicts = ("INCONCLUSIVE", "NOT REFUTED", "INCONCLUSIVE")
    found = comparison(
        row("a", {0.1: 0.9}, proved=(300, 340), verdicts=verdicts),
        row("b", {0.1: 0.9}, proved=(300, 340), verdicts=("NOT EVALUATED",) * 3),
        row("c", {0.1: 0.9}, proved=(300, 340)),
    )
    said = "INCONCLUSIVE: attacks on 2 of 3 networks failed their own checks, so that they refuted nothing says little"
    printed = page.table(found)
    assert re.search(r"^a .* 83\.0 +92\.3\[1\] +41\.3 +89\.8\[1\]$", printed, re.MULTILINE)
    assert f"[1] {said}" in " ".join(printed.split())
    assert "[2] NOT EVALUATED: no attack tried to refute the certificate of 3 of 3 networks" in printed
    assert [line.doubt for line in lines(found)[0]] == [1, 2, None]
    assert f"\\[1\\] {said}" in markdown(found)
    html = page.render(found)
    assert html.count('<td class="n broken">92.3<sup>1</sup></td>') == 1
    assert f"<sup>1</sup> {said}." in html
    assert "REFUTED:" not in Page(html).text


def test_the_samples_that_were_audited_are_counted_not_those_asked_for() -> None:
    def told(*rows: Row) -> tuple[str, ...]:
        found = comparison(*rows, limit=7777)
        return tuple(
            " ".join(text.split()) for text in (page.table(found), markdown(found), Page(page.render(found)).text)
        )

    for text in told(row("a", {0.1: 0.9}, proved=(300, 340))):
        assert "hare of 360 test samples that is right" in text
        assert "7777" not in text
    for text in told(row("a", {0.1: 0.9}, unproved=NO_RULE)):
        assert "hare of the test samples that is right" in text
        assert "7777" not in text


# The table as text


def test_the_table_of_two_radii_fits_120_columns_and_stands_in_line() -> None:
    text = page.table(realistic()).splitlines()
    assert max(map(len, text)) <= 120
    rule = text[2]
    ends = [found.end() for found in re.finditer("-+", rule)]
    body = text[3 : text.index("")]
    assert len(body) >= 8
    for line in body:
        assert all(line[end : end + 1] in {"", " "} for end in ends), line
    assert re.search(r"^Lipschitz \+ Muon +0\.05 +96\.7 ± 0\.4 +250 +1\.7 +3 +0/12 +1\.000 +provable +88\.0 +93\.7 ", "\n".join(text), re.MULTILINE)  # fmt: skip
    assert re.search(r"^LayerNorm transformer .* -\[1\] +- +-\[1\] +-$", "\n".join(text), re.MULTILINE)


def test_hostile_names_reach_no_terminal_raw_and_break_no_line() -> None:
    text = page.table(hostile())
    assert all(c == "\n" or c.isprintable() for c in text)
    assert max(columns(line) for line in text.splitlines()) <= 120


def test_without_radii_nothing_is_said_of_certificates() -> None:
    found = comparison(row("a", {0.1: 0.9}), eps=())
    assert "cert" not in page.table(found).replace("certkit", "")
    assert "What is proved of them" not in page.render(found)


def test_a_comparison_of_text_shows_the_mean_test_loss_rounded_up() -> None:
    losses = (1.2341, 1.2342, 1.2344)
    runs = [trial(0.1, s, 0.5).model_copy(update={"test_loss": loss}) for s, loss in zip(SEEDS, losses, strict=True)]
    assert only(trials(*runs), eps=()).loss == "1.235 ± 0.001"
    assert only(trials(runs[0]), eps=()).loss == "1.235"
    assert only(trials(*(t.model_copy(update={"test_loss": 1.2}) for t in runs)), eps=()).loss == "1.200 ± 0.000"
    assert only(trials(*runs[:2], failed(0.1, 2)), eps=()).loss == "1.235 ± 0.001 (2/3)"
    assert only(trials(failed(0.1, 0)), eps=()).loss == "-"
    found = of_text()
    printed = page.table(found)
    assert max(map(len, printed.splitlines())) <= 120
    assert re.search(r" test\nrow .* promise +loss\n", printed)
    text = " ".join(Page(page.render(found)).text.split())
    for line in lines(found)[0][:3]:
        assert line.loss != "-"
        assert all(line.loss in shown for shown in (printed, markdown(found), text))
    assert "nats per token" in printed
    assert "nats per token" in text
    assert "samples" not in text


def test_markdown_keeps_one_cell_per_column_whatever_a_row_is_called() -> None:
    text = markdown(hostile())
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert len(cells) == len(HOSTILE) + 2
    assert set(cells) == {14}
    assert "<" not in text
    assert re.search(r"^\| \\\$x\\_1\\\$ \\\| ", text, re.MULTILINE)
    assert not re.search(r"(?<!\\)[$`]", text)


# The page


def test_the_page_holds_the_numbers_of_the_table() -> None:
    found = realistic()
    text = " ".join(Page(page.render(found)).text.split())
    for line in lines(found)[0]:
        for shown in (line.name, line.test, line.steps, line.norm, *(cell for pair in line.robust for cell in pair)):
            assert shown.replace("-", "–") in text.replace("-", "–")
    assert "300/360" not in text
    assert "318/360, 317/360, 316/360" in text, "the counts of the seeds"
    assert "No rule for" in text or "no rule for aten.layer_norm.default" in text
    assert "training: the loss is nan at step 41" in text


def test_the_page_is_honest_about_what_it_shows() -> None:
    text = " ".join(Page(page.render(realistic())).text.split())
    assert "The test split chose nothing." in text
    assert "not a significance test" in text
    assert "Muon itself measures no sensitivity" in text
    assert f"held within a factor of {UNEVEN:g}" in text
    assert "exact arithmetic, by certkit's global Lipschitz bound" in text
    assert not re.search(r"\bsafe\b", text)


def test_what_the_page_is_made_of_does_not_depend_on_names() -> None:
    plain = hostile()
    plain = plain.model_copy(
        update={"rows": tuple(r.model_copy(update={"name": f"row {i}", "unproved": NO_RULE}) for i, r in enumerate(plain.rows))}
    )  # fmt: skip
    html = page.render(hostile())
    found = Page(html)
    assert found.shape() == Page(page.render(plain)).shape()
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert "style" not in {name for _, attributes in found.elements for name in attributes}
    assert "script" not in {tag for tag, _ in found.elements}
    assert not re.search(
        r"https?:|\bsrc=|@import|url\((?!#)|<link|<iframe|<img", Page(html).text and re.sub(r">[^<]*<", "><", html)
    )
    assert all(c == "\n" or c.isprintable() for c in html)
    for name in HOSTILE:
        assert one_line(name) in found.text


def test_matplotlib_never_sees_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    kept = figures.draw
    monkeypatch.setattr(figures, "draw", lambda *given: drawn.append(kept(*given)) or drawn[-1])
    found = hostile()
    text = page.render(found)
    assert len(drawn) == 3
    assert not any("x_1" in svg or "etc" in svg or "script" in svg for svg in drawn)
    assert ">$x_1$ | $\\frac{1}{0}$</text>" in text, "the formula stands there as it was typed"
    assert ">@0@ &amp; &lt;b&gt;</text>" in text, "a name that looks like a stand-in stays a name"


def test_rows_are_told_apart_without_colour() -> None:
    marks = [figures.mark(i) for i in range(64)]
    assert len(set(marks)) == 64
    assert len({(mark.dashes, mark.marker) for mark in marks[:28]}) == 28


def test_labels_do_not_touch_and_stay_near_their_lines() -> None:
    assert figures.spaced([50.0, 20.0], 0, 100, 400) == [50.0, 20.0]
    placed = figures.spaced([100.0, 99.9, 99.8, 0.0, 0.1], 0, 100, 400)
    ordered = sorted(placed)
    assert all(b - a >= 4.5 - 1e-9 for a, b in pairwise(ordered))
    assert 0 <= ordered[0] <= ordered[-1] <= 100


def test_an_axis_starts_low_enough_for_what_it_shows_and_ends_above_it() -> None:
    assert figures.span([0.99, 0.97], room=0.3) == (95, 100)
    assert figures.span([0.99, 0.1], room=0.3) == (0, 100)
    assert figures.span([0.31, 0.05], room=0.3) == (0, 40)
    assert figures.span([0.49, 0.41], room=0.08) == (25, 50)
    assert figures.span([], room=0.3) == (0, 100)
    assert figures.curves_span(realistic()) == (90, 100), "the target is in sight"


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    curve = tuple(CurvePoint(step=s, loss=1.0, validation=0.5) for s in range(0, 50_001, 50))
    found = course(trials(*(trial(0.1, s, 0.9).model_copy(update={"curve": curve}) for s in SEEDS)))
    assert len(found) <= POINTS + 1
    assert found[-1].at == 50_000
    assert found[0].at == 0


@pytest.mark.parametrize(
    "found",
    [
        comparison(row("nothing", {0.1: 0})),
        comparison(*(row(f"row {i}", {0.1: 0.9}, proved=(300, 340)) for i in range(64)), eps=("0.1",)),
        comparison(row("one", {1e-300: 0.9, 1e300: 0.8}), seeds=(0,)),
        of_text(),
        comparison(row("wide", {0.1: 0.5}), eps=("0.1", "1/10", "36/255", "0.5", "1", "2")),
    ],
    ids=["nothing ended", "64 rows", "one seed, far apart", "text", "six radii"],
)
def test_every_comparison_has_a_page_and_a_table(found: Comparison) -> None:
    html = page.render(found)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-labelledby="([^"]+)"', html)
    assert {name for names in named for name in names.split()} <= set(ids)
    for head in re.findall(r"<th\b[^>]*>", html):
        assert 'scope="' in head
    assert all("<caption>" in one for one in re.findall(r"<table.*?</table>", html, re.DOTALL))
    assert page.table(found)


# Bytes and files


def test_the_same_record_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    found = realistic()
    (tmp_path / "c.json").write_text(found.model_dump_json())
    (tmp_path / "matplotlibrc").write_text("font.size: 31\nsvg.fonttype: path\n")
    code = (
        "import sys; from pathlib import Path; from certkit.comparison import Comparison;"
        "from certkit.reports.comparison import write;"
        "write(Comparison.model_validate_json(Path('c.json').read_text()), Path('out'));"
        "assert not {'torch', 'foolbox', 'scipy', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "out/comparison.html").read_text(encoding="utf-8") == page.render(found)
    assert (tmp_path / "out/comparison.md").read_text(encoding="utf-8") == markdown(found)


def test_both_files_are_written_and_named(tmp_path: Path) -> None:
    paths = page.write(realistic(), tmp_path / "deep")
    assert paths == [tmp_path / "deep" / "comparison.md", tmp_path / "deep" / "comparison.html"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["comparison.html", "comparison.md"]


def test_the_template_vouches_for_nothing() -> None:
    text = (files("certkit.templates") / "comparison.html.j2").read_text()
    assert not re.search(r"\|\s*safe\b|Markup|autoescape|xmlattr|{%-?\s*raw", text)


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install certkit[dev]"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def look(browser: Any, tmp_path: Path, found: Comparison, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page opened from a file, with what it asked for and complained about."""
    path = page.write(found, tmp_path)[1]
    opened = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}).new_page()
    requests: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(path.as_uri())
    return opened, requests, complaints


@pytest.mark.parametrize("make", [realistic, hostile])
@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_asks_for_nothing_complains_of_nothing_and_fits(
    browser: Any, tmp_path: Path, make: Any, width: int
) -> None:
    opened, requests, complaints = look(browser, tmp_path, make(), viewport={"width": width, "height": 900})
    for closed in opened.locator("summary").all():
        closed.click()
    assert [url.rsplit("/", 1)[-1] for url in requests] == ["comparison.html"]
    assert complaints == []
    assert opened.evaluate("window.pwned") is None
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert opened.locator("svg.chart:visible").count() == 3
    opened.context.close()


def test_dark_and_light_look_different_and_the_figures_follow(browser: Any, tmp_path: Path) -> None:
    looks = []
    for scheme in ("light", "dark"):
        opened, _, _ = look(browser, tmp_path, realistic(), color_scheme=scheme, java_script_enabled=False)
        looks.append(opened.locator("svg.chart").first.screenshot())
        opened.context.close()
    assert looks[0] != looks[1]


def test_printed_the_page_shows_what_was_folded(browser: Any, tmp_path: Path) -> None:
    opened, _, _ = look(browser, tmp_path, realistic(), java_script_enabled=False)
    opened.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    opened.context.close()
    text = " ".join(page.extract_text() for page in PdfReader(tmp_path / "page.pdf").pages)
    assert "Runs without a result" in " ".join(text.split())
