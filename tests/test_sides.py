"""Two audits side by side: nothing is paired that is not the same, and the numbers are those of the audits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from certkit.commands.compare import compare as command
from certkit.errors import RecordError, Tampered, one_line
from certkit.files import save
from certkit.records import Audit, Eps
from certkit.reports.sides import Compared, compare
from certkit.reports.sides_page import MOST, compared, lines, render
from tests.audits import curve, example_audit, rate
from tests.audits import point as point_of
from tests.hostile import PAYLOADS, poisoned
from tests.pages import Page


def scaled(audit: Audit, factor: float, every: int = 1) -> Audit:
    """The audit of another network, of which every so many radii are so many times as large."""
    rows = tuple(
        row.model_copy(update={"radius": row.radius * (1.0 if at % every else factor)})
        for at, row in enumerate(audit.samples)
    )
    subject = audit.subject.model_copy(update={"sha256": "2" * 64})
    return audit.model_copy(update={"samples": rows, "curve": curve(rows), "subject": subject})


def other_data(audit: Audit) -> Audit:
    return audit.model_copy(update={"data": audit.data.model_copy(update={"sha256": "3" * 64})})


def test_an_audit_beside_itself_has_not_changed() -> None:
    audit = example_audit(60)
    found = compare(audit, audit)
    assert (found.regressed, found.improved, found.same, found.changes) == (0, 0, 60, ())
    for point in found.points:
        assert point.split is not None
        assert (point.split.only_first, point.split.only_second, point.split.p_value) == (0, 0, 1.0)
    assert "No sample changed." in render(audit, audit)


@given(st.sampled_from([0.5, 0.8, 0.99, 1.01, 1.5]), st.integers(1, 5))
def test_swapped_the_sides_are_swapped_and_the_test_is_the_same(factor: float, every: int) -> None:
    audit = example_audit(60)
    one, two = compare(audit, scaled(audit, factor, every)), compare(scaled(audit, factor, every), audit)
    assert (one.regressed, one.improved, one.same) == (two.improved, two.regressed, two.same)
    for here, there in zip(one.points, two.points, strict=True):
        assert here.split is not None
        assert there.split is not None
        assert (here.split.only_first, here.split.only_second) == (there.split.only_second, there.split.only_first)
        assert here.split.p_value == there.split.p_value
        a, b = here.certified
        assert a.count - b.count == here.split.only_first - here.split.only_second


@pytest.mark.parametrize(("lost", "p_value"), [(1, 1.0), (2, 0.5), (5, 0.0625), (10, 2 * 0.5**10)])
def test_the_test_is_the_exact_one(lost: int, p_value: float) -> None:
    audit = example_audit(60)
    held = [row.index for row in audit.samples if row.radius >= 0.25][:lost]
    rows = tuple(row.model_copy(update={"radius": 0.2 if row.index in held else row.radius}) for row in audit.samples)
    found = compare(audit, audit.model_copy(update={"samples": rows, "curve": curve(rows)}))
    assert found.points[1].split is not None
    assert (found.points[1].split.only_first, found.points[1].split.only_second) == (lost, 0)
    assert found.points[1].split.p_value == pytest.approx(p_value, rel=1e-12)


def test_regressions_come_first_a_lost_class_before_a_lost_radius() -> None:
    audit = example_audit(60)
    victim = next(row for row in audit.samples if row.radius > 0)
    other = scaled(audit, 1.1, 2)
    rows = list(other.samples)
    rows[victim.index] = victim.model_copy(update={"predicted": (victim.label + 1) % 10, "radius": 0.0})
    worst = max((row for row in audit.samples if row.index != victim.index), key=lambda row: row.radius)
    rows[worst.index] = worst.model_copy(update={"radius": worst.radius / 4})
    found = compare(audit, other.model_copy(update={"samples": tuple(rows), "curve": curve(tuple(rows))}))
    assert [(c.index, c.fate) for c in found.changes[:2]] == [(victim.index, "regressed"), (worst.index, "regressed")]
    assert found.regressed == 2
    assert {change.fate for change in found.changes[2:]} == {"improved"}
    assert f"  sample {victim.index}: certified radius" in lines(found)[-2]
    assert lines(found)[-2].endswith(", now misclassified")


def test_other_samples_are_not_paired() -> None:
    audit = example_audit(60)
    found = compare(audit, other_data(audit))
    assert (
        found.unpaired == "the two audits are of other samples (their digests differ), so only the totals are compared"
    )
    assert (found.changes, found.same) == ((), 0)
    assert {point.split for point in found.points} == {None}
    page = Page(render(audit, other_data(audit)))
    assert "only the totals are compared" in page.text
    assert ("section", {"id": "changes", "aria-labelledby": "changes-title"}) not in page.elements


def test_what_is_refuted_is_neither_tested_nor_called_certified() -> None:
    good, refuted = example_audit(60), example_audit(60, "REFUTED")
    found = compare(good, refuted)
    assert {point.split for point in found.points} == {None}
    assert "its certified figures are claims, and refuted" in lines(found)[1]
    assert "second, certified: claimed, and refuted" in Page(render(good, refuted)).text


def test_an_audit_that_states_other_counts_than_its_samples_give_is_refused() -> None:
    audit = example_audit(60)
    forged = scaled(audit, 0.1).model_copy(update={"curve": audit.curve})
    held = sum(row.label == row.predicted and row.radius >= 0.1 for row in forged.samples)
    stated = audit.curve[0].certified.count
    assert held < stated
    for pair in ((audit, forged), (forged, audit)):
        with pytest.raises(Tampered) as caught:
            compare(*pair)
        assert str(caught.value) == (
            f"audit.json: states {stated} certified at 0.1, its samples give {held}; run certkit report again"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"norm": "linf"},
            (
                "the first audit is in l2 on (0.0, 1.0), the second in linf on (0.0, 1.0); their radii cannot be compared: "
                "audit both under one threat"
            ),
        ),
        (
            {"box": (-1.0, 1.0)},
            (
                "the first audit is in l2 on (0.0, 1.0), the second in l2 on (-1.0, 1.0); their radii cannot be compared: "
                "audit both under one threat"
            ),
        ),
    ],
)
def test_other_threats_are_refused(change: dict[str, Any], message: str) -> None:
    audit = example_audit(12)
    with pytest.raises(RecordError) as caught:
        compare(audit, audit.model_copy(update={"threat": audit.threat.model_copy(update=change)}))
    assert str(caught.value) == message


def test_only_radii_of_both_are_compared_and_none_in_common_is_refused() -> None:
    audit = example_audit(12)
    some = audit.model_copy(update={"curve": audit.curve[1:3]})
    assert [point.eps.text for point in compare(audit, some).points] == ["0.25", "0.5"]
    none = audit.model_copy(update={"curve": tuple(p.model_copy(update={"eps": Eps.of("7")}) for p in audit.curve[:1])})
    with pytest.raises(RecordError) as caught:
        compare(audit, none)
    assert str(caught.value) == (
        "no radius stands in both audits (0.1, 0.25, 0.5, 1.0 and 7); audit both with one --eps"
    )


def test_the_page_shows_the_worst_and_counts_the_rest() -> None:
    audit = example_audit(MOST + 60)
    page = render(audit, scaled(audit, 0.9))
    found = compare(audit, scaled(audit, 0.9))
    assert page.count('<tr id="s') == MOST < len(found.changes)
    assert "compared.json holds them all" in page


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_no_string_of_a_record_becomes_markup_or_reaches_a_terminal_raw(payload: str) -> None:
    audit, _ = poisoned(payload)
    page = Page(render(audit, scaled(audit, 0.5)))
    clean = Page(render(example_audit(4, "REFUTED"), scaled(example_audit(4, "REFUTED"), 0.5)))
    assert page.shape() <= clean.shape()
    assert one_line(payload) in page.text
    assert not [line for line in lines(compare(audit, audit)) if not line.isprintable()]


def test_the_page_fetches_nothing_and_its_tables_can_be_read_aloud() -> None:
    audit = example_audit(60)
    page = render(audit, scaled(audit, 0.9))
    assert not re.search(r"https?:|\bsrc=|@import|url\((?!#)|<link|<iframe|<img|<script", page)
    for table in re.findall(r"<table.*?</table>", page, re.DOTALL):
        assert "<caption>" in table
        assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", table))
    assert render(audit, scaled(audit, 0.9)) == page


def test_the_command_says_writes_and_speaks_json(tmp_path: Path) -> None:
    audit = example_audit(60)
    save(audit, tmp_path / "a" / "audit.json")
    save(scaled(audit, 0.9), tmp_path / "b" / "audit.json")
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]
    said = CliRunner().invoke(command, words)
    assert said.exit_code == 0
    assert said.stdout.splitlines()[0].startswith("first   NOT REFUTED  vit-digits ")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["compared.html", "compared.json"]
    found = Compared.model_validate_json((tmp_path / "c" / "compared.json").read_text())
    assert found == compared(tmp_path / "a", tmp_path / "b")
    assert json.loads(CliRunner().invoke(command, [*words, "--json"]).stdout) == json.loads(found.model_dump_json())


def test_a_folder_without_an_audit_is_refused_and_nothing_written(tmp_path: Path) -> None:
    save(example_audit(12), tmp_path / "a" / "audit.json")
    with pytest.raises(RecordError) as caught:
        compared(tmp_path / "a", tmp_path / "b", out=tmp_path / "c")
    assert str(caught.value) == f"{tmp_path / 'b'}: no audit.json here; expected a folder that certkit audit wrote"
    assert not (tmp_path / "c").exists()


def test_a_side_without_samples_has_shares_of_nothing() -> None:
    empty = example_audit(12).model_copy(update={"clean": rate(0, 0), "samples": (), "curve": (point_of(0, 0, 0),)})
    found = compare(empty, empty)
    assert found.same == 0
    assert "clean 0/0" in lines(found)[0]
