"""The page is a pure, safe and honest rendering of the audit: checked on its text, without a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
import struct
import subprocess
import sys
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from certkit.cli import main
from certkit.errors import RecordError, one_line
from certkit.files import canonical, save
from certkit.records import Audit, Eps, Sample, Verdict
from certkit.records.pictures import BUDGET
from certkit.reports import render, report
from certkit.reports.figures import curve, stairs
from certkit.reports.findings import Findings
from certkit.reports.page import SECTIONS
from certkit.reports.pictures import Gallery
from certkit.reports.standards import mappings
from tests.audits import audit_with, example_audit, page_of, point, rate, with_float_gaps
from tests.hostile import PAYLOADS, at, poisoned
from tests.pages import Page

EVERY_VERDICT = pytest.mark.parametrize("verdict", get_args(Verdict))


# Numbers


@EVERY_VERDICT
def test_every_number_shown_is_the_records_own(verdict: Verdict) -> None:
    audit = example_audit(60, verdict)
    plain = json.loads(canonical(audit))
    shown = {path: found for path, found in Page(render(audit)).data.items() if path}
    for path, found in shown.items():
        value = at(plain, [int(key) if key.isdigit() else key for key in path.split(".")])
        assert {given for given, _ in found} == {str(value)}, path
    assert {
        "clean.count",
        "clean.low",
        "median_radius",
        "lipschitz",
        "curve.1.certified.high",
        "ledger.3.gain",
    } <= shown.keys()


def test_radii_are_shown_rounded_down_and_distances_up() -> None:
    audit = example_audit(60)
    rows = re.findall(r'<tr id="s(\d+)">(.*?)</tr>', render(audit))
    assert len(rows) == 60
    for index, row in rows:
        sample = audit.samples[int(index)]
        (_, margin, radius, *rest) = [
            (Decimal(v), Decimal(t)) for v, t in re.findall(r'<data value="([^"]+)">([^<]+)<', row)
        ]
        assert margin[1] <= margin[0] == Decimal(repr(sample.margin))
        assert radius[1] <= radius[0] == Decimal(repr(sample.radius))
        assert all(text >= value for value, text in rest)
        assert len(rest) == (0 if sample.distance is None else 2)


def test_the_drawn_curves_never_claim_more_than_the_samples_give() -> None:
    audit = example_audit(200)
    ends, certified, attacked = stairs(audit, treads=17)
    correct = [sample for sample in audit.samples if sample.label == sample.predicted]
    for step in range(17):
        for part in (0.0, 0.5, 0.999):
            r = ends[step] + part * (ends[step + 1] - ends[step])
            assert certified[step] <= sum(s.radius >= r for s in correct) / 200
            assert attacked[step] >= sum(s.distance is None or s.distance > r for s in correct) / 200


def test_a_sample_is_drawn_certified_up_to_its_radius_and_no_further() -> None:
    row = Sample(index=0, label=1, predicted=1, margin=1, radius=0.125, distance=0.25, attack="DDN")
    audit = audit_with(
        samples=(row,), clean=rate(1, 1), curve=(point(0, 0, 1).model_copy(update={"eps": Eps.of("0.5")}),)
    )
    ends, certified, attacked = stairs(audit, treads=8)
    assert ends == [0.0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5]
    assert certified == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert attacked == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    at_radius = audit_with(samples=(row,), clean=rate(1, 1), curve=(point(0, 0, 1), point(1, 1, 1))[1:])
    at_radius = at_radius.model_copy(
        update={"curve": (at_radius.curve[0].model_copy(update={"eps": Eps.of("0.125")}),)}
    )
    (found,) = Findings.of(at_radius).rows
    assert found.standing == "certified"
    assert stairs(at_radius, treads=2)[1] == [1, 1, 1]


def test_without_every_sample_the_curves_are_stairs_between_the_radii_asked_for() -> None:
    audit = example_audit(200)
    ends, certified, attacked = stairs(audit.model_copy(update={"samples": audit.samples[:50]}), treads=17)
    assert ends == [0.0, 0.1, 0.25, 0.5, 1.0]
    assert certified[:4] == [point.certified.count / 200 for point in audit.curve]
    assert attacked[:4] == [audit.clean.count / 200, *(point.attacked.count / 200 for point in audit.curve[:3])]


# Safety


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_no_string_of_a_record_becomes_markup(payload: str) -> None:
    audit, fields = poisoned(payload)
    assert fields > 40
    html = render(audit)
    clean = Page(render(example_audit(4, "REFUTED"))).shape() | {("wbr", ())}
    page = Page(html)
    assert page.shape() <= clean
    assert one_line(payload) in page.text
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    links = [value for _, attributes in page.elements for name, value in attributes.items() if name == "href"]
    assert all(link is not None and link.startswith("#") for link in links)
    sources = [value for _, attributes in page.elements for name, value in attributes.items() if name == "src"]
    assert sources == [f"data:image/png;base64,{png}" for png in shown_pngs(audit)]
    assert all(c == "\n" or c.isprintable() for c in html), "control or direction characters stand in the page"


def shown_pngs(audit: Audit) -> list[str]:
    """Every PNG of an audit, in the order in which the page shows them."""
    gallery = Gallery.of(audit, Findings.of(audit))
    cards = [card.picture for card in (*gallery.first, *gallery.folded)]
    return [png for one in cards for png in (one.input, one.adversarial, one.difference)]


def embedded(page: str) -> dict[str, Any]:
    """The audit that a page holds: the record, its pictures and the columns of its samples, read as the script reads them."""
    record, block = (
        json.loads(re.search(rf'<script type="application/json" id="{name}">([^<]*)</script>', page)[1])  # type: ignore[index]
        for name in ("audit", "all-samples")
    )
    floats = (
        [None if math.isnan(x) else x for (x,) in struct.iter_unpack("<d", base64.b64decode(block[name]))]
        for name in ("margin", "radius", "distance")
    )
    attacks = [None if at < 0 else block["attacks"][at] for at in block["attack"]]
    keys = ("index", "label", "predicted", "margin", "radius", "distance", "attack")
    for one in record["pictures"]["shown"]:
        card = re.search(rf'<figure class="card" id="p{one["index"]}">.*?</figure>', page, re.DOTALL)
        assert card
        pngs = re.findall(r'<img src="data:image/png;base64,([^"]*)"', card[0])
        one.update(zip(("input", "adversarial", "difference"), pngs, strict=True))
    columns = (block["index"], block["label"], block["predicted"], *floats, attacks)
    return record | {"samples": [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_the_embedded_record_reads_back_as_the_audit(payload: str) -> None:
    audit, _ = poisoned(payload)
    assert Audit.model_validate(embedded(render(audit))) == audit


@EVERY_VERDICT
def test_every_number_of_every_sample_stands_in_the_page_bit_for_bit(verdict: Verdict) -> None:
    audit = example_audit(60, verdict)
    assert embedded(render(audit)) == json.loads(canonical(audit))


def test_a_sample_that_the_program_gets_wrong_unchanged_is_embedded_as_recorded() -> None:
    audit = with_float_gaps(example_audit(40), (3, 7))
    assert Audit.model_validate(embedded(render(audit))) == audit


def test_the_policy_names_exactly_the_style_and_the_script_of_the_page() -> None:
    html = render(example_audit(4))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    ]
    assert policy[1].replace("&#39;", "'") == (
        f"default-src 'none'; style-src '{digests[0]}'; script-src '{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


@EVERY_VERDICT
def test_the_page_fetches_nothing_and_styles_nothing_in_attributes(verdict: Verdict) -> None:
    html = page_of(verdict)
    assert not re.search(r"https?:|\bsrc=(?!\"data:image/png;base64,)|@import|url\((?!#)|<link|<iframe", html)
    assert not [tag for tag, attributes in Page(html).elements if "style" in attributes]


TEMPLATES = sorted(path.name for path in files("certkit.templates").iterdir() if path.name.endswith(".j2"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_vouches_for_nothing_and_quotes_every_attribute(name: str) -> None:
    text = (files("certkit.templates") / name).read_text()
    assert not re.search(r"\|\s*safe\b|Markup|autoescape|xmlattr|{%-?\s*raw", text)
    markup = re.sub(r"{#.*?#}|{%.*?%}", "", text, flags=re.DOTALL)
    for tag in re.findall(r"<[a-zA-Z][^<>]*>", re.sub(r"{{.*?}}", "x", markup, flags=re.DOTALL)):
        assert not re.search(r"=(?![\"'])", re.sub(r'"[^"]*"', '""', tag)), tag


def test_every_section_has_its_template_and_every_template_its_use() -> None:
    assert {part.template for part in SECTIONS} | {
        "report.html.j2",
        "show.html.j2",
        "comparison.html.j2",
        "language.html.j2",
        "sides.html.j2",
    } == set(TEMPLATES)


def test_markup_is_vouched_for_in_one_module_only() -> None:
    modules = {path.name: path.read_text() for path in files("certkit.reports").iterdir() if path.name.endswith(".py")}
    assert [name for name, text in modules.items() if "Markup" in text] == ["page.py"]
    assert {name for name, text in modules.items() if "inlined" in text} == {
        "page.py",
        "comparison.py",
        "language.py",
        "sides_page.py",
    }


@EVERY_VERDICT
def test_tables_and_figures_can_be_read_aloud(verdict: Verdict) -> None:
    html = page_of(verdict)
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert tables
    for table in tables:
        assert "<caption>" in table
        assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", table))
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-labelledby="([^"]+)"', html)
    assert {name for names in named for name in names.split()} <= set(ids)
    assert {link[1:] for link in re.findall(r'href="(#[^"]*)"', html)} <= set(ids)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_text_colour_meets_wcag_aa_on_every_ground(theme: int) -> None:
    css = (files("certkit.templates") / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colours = {
        name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
        for name, value in re.findall(r"--([\w-]+): (#\w+);", block)
    }
    for text in ("ink", "muted", "certified", "attacked", "pass", "flag", "fail", "accent"):
        for ground in ("paper", "wash"):
            high, low = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


# Bytes


def test_the_same_audit_gives_the_same_bytes_in_another_process_with_other_settings(tmp_path: Path) -> None:
    audit = example_audit(60, "REFUTED")
    save(audit, tmp_path / "audit.json")
    (tmp_path / "matplotlibrc").write_text("font.size: 31\nsvg.fonttype: path\naxes.facecolor: red\n")
    code = "from pathlib import Path; from certkit.reports import report; report(Path('.'))"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "MATPLOTLIBRC": str(tmp_path),
        "LC_ALL": "C",
        "TZ": "Asia/Tokyo",
    }
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(audit)


def test_making_a_report_loads_no_torch(tmp_path: Path) -> None:
    save(example_audit(8), tmp_path / "audit.json")
    code = (
        "import sys; from pathlib import Path; from certkit.reports import report; report(Path('.'));"
        "assert not {'torch', 'foolbox', 'scipy', 'pyarrow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(("samples", "megabytes"), [(2_000, 1.7), (10_000, 3.0)])
def test_a_page_of_many_samples_stays_small(samples: int, megabytes: float) -> None:
    audit = example_audit(samples)
    room = BUDGET - sum(one.length for one in audit.pictures.shown)  # what larger pictures would take
    assert len(render(audit).encode()) + (room if samples == 10_000 else 0) < 1e6 * megabytes


def test_a_figure_of_many_samples_is_no_larger_than_one_of_few() -> None:
    few, many = (curve(example_audit(n), "curve", (940, 360)) for n in (200, 2_000))
    assert few is not None
    assert many is not None
    assert len(many) < 1.5 * len(few)


# Files


def test_the_report_is_written_beside_the_audit_or_where_it_is_asked_for(tmp_path: Path) -> None:
    audit = example_audit(8)
    save(audit, tmp_path / "audit.json")
    assert report(tmp_path) == tmp_path / "report.html"
    assert report(tmp_path, out=tmp_path / "deep" / "page.html") == tmp_path / "deep" / "page.html"
    assert (tmp_path / "report.html").read_text() == (tmp_path / "deep" / "page.html").read_text() == render(audit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "deep", "report.html"]


def test_a_folder_without_an_audit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        report(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no audit.json here; expected a folder that certkit audit wrote"


def test_a_malformed_audit_is_refused_and_the_old_page_stays(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("the page before")
    broken = json.loads(canonical(example_audit(8))) | {"verdict": "SAFE"}
    (tmp_path / "audit.json").write_text(json.dumps(broken))
    with pytest.raises(RecordError, match=r"audit\.json: verdict: Input should be 'REFUTED', 'NOT REFUTED'"):
        report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "the page before"


def test_open_says_where_the_page_is_and_asks_the_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr("click.launch", lambda url: asked.append(url) or 0)
    missing = CliRunner().invoke(main, ["open", str(tmp_path)])
    assert (missing.exit_code, asked) == (2, [])
    assert missing.stderr.endswith(f"no report.html here; run certkit report {tmp_path} first\n")
    (tmp_path / "report.html").write_text("<p>page")
    found = CliRunner().invoke(main, ["open", str(tmp_path)])
    assert (found.exit_code, found.stdout.strip()) == (0, str(tmp_path / "report.html"))
    assert asked == [(tmp_path / "report.html").as_uri()]


# Standards


@EVERY_VERDICT
def test_no_clause_is_covered_by_what_was_not_done(verdict: Verdict) -> None:
    audit = example_audit(12, verdict)
    found = {one.clause: one for one in mappings(audit)}
    attacked = audit.campaign is not None
    assert found["7 Empirical methods"].covered == ("evidence provided" if attacked else "not covered")
    assert found["NISTAML.022 Evasion"].covered == ("evidence provided" if attacked else "partly")
    assert found["ML02 to ML05 and ML07 to ML10"].covered == "not covered"
    assert not re.search(
        r"compl(y|ies|iant)|conform(s|ant)\b|certified to", " ".join(one.evidence for one in found.values())
    )
    page = html.unescape(render(audit))
    assert [one.evidence for one in found.values() if one.evidence not in page] == []
