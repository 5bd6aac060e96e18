"""The page in a real browser: it asks for nothing, says nothing on the console, and works as it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from certkit.comparison import Comparison
from certkit.errors import one_line
from certkit.files import canonical
from certkit.language.records import LanguageAudit
from certkit.records import Audit, Verdict
from certkit.reports import comparison, language, render, sides_page
from certkit.reports.findings import FEWEST_ROWS, MOST_ROWS
from certkit.reports.page import LONGEST, SECTIONS
from tests.audits import example_audit, with_float_gaps
from tests.hostile import PAYLOADS, at, made, poisoned

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install certkit[dev]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


class Reader:
    """A page opened from a file, with everything that it asked for or complained about."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def column(self, number: int) -> list[str]:
        """The texts of a column of the sample table, in the rows that can be seen."""
        found: list[str] = self.page.locator(
            f"#sample-table tbody tr:not([hidden]) > :nth-child({number})"
        ).all_inner_texts()
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    readers: list[Reader] = []

    def open_(audit: Audit, **options: Any) -> Reader:
        path = tmp_path / f"report-{len(readers)}.html"
        path.write_text(render(audit), encoding="utf-8")
        readers.append(Reader(browser, path, **options))
        return readers[-1]

    yield open_
    for reader in readers:
        reader.context.close()


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_the_page_asks_for_nothing_but_itself_and_complains_about_nothing(opened: Any, verdict: Verdict) -> None:
    reader = opened(example_audit(60, verdict))
    reader.page.mouse.wheel(0, 20_000)
    reader.page.wait_for_timeout(100)
    assert [url.rsplit("/", 1)[-1] for url in reader.requests] == ["report-0.html"]
    assert reader.complaints == []


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_the_numbers_shown_are_those_of_the_audit(opened: Any, verdict: Verdict) -> None:
    audit = example_audit(60, verdict)
    plain = json.loads(canonical(audit))
    reader = opened(audit)
    shown = reader.page.eval_on_selector_all(
        "data[data-path]", "all => all.map(d => [d.dataset.path, Number(d.value)])"
    )
    for path, value in shown:
        assert float(at(plain, [int(key) if key.isdigit() else key for key in path.split(".")])) == value, path
    paths = {path for path, _ in shown}
    assert {f"curve.{i}.certified.{key}" for i in range(4) for key in ("count", "total", "low", "high")} <= paths
    assert {"clean.count", "median_radius", "lipschitz"} <= paths
    assert ("curve.0.attacked.count" in paths) == ("median_distance" in paths) == (audit.campaign is not None)
    rows = reader.page.eval_on_selector_all(
        "#sample-table tbody tr", "all => all.map(row => [...row.querySelectorAll('data')].map(d => Number(d.value)))"
    )
    assert rows == [
        [s.index, s.margin, s.radius, *([] if s.distance is None else [s.distance, s.distance - s.radius])]
        for s in audit.samples
    ]


def test_the_headline_reads_as_the_audit_says(opened: Any) -> None:
    audit = example_audit(60)
    point = audit.curve[1]
    text = opened(audit).page.locator(".figures").inner_text()
    assert f"Certified at L2 {point.eps.text}" in text
    assert f"{point.certified.count}/{point.certified.total}" in text
    assert f"{point.attacked.count}/{point.attacked.total}" in text


def test_a_column_sorts_both_ways_by_mouse_and_by_keyboard_with_missing_values_last(opened: Any) -> None:
    audit = example_audit(60)
    reader = opened(audit)
    head = reader.page.locator("#sample-table thead th").nth(5)
    found = sorted((s.distance, s.index) for s in audit.samples if s.distance is not None)
    assert 0 < len(found) < 60
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [int(text) for text in reader.column(1)][: len(found)] == [index for _, index in found]
    head.locator("button").focus()
    reader.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [int(text) for text in reader.column(1)][: len(found)] == [index for _, index in reversed(found)]
    assert reader.page.locator("#sample-table th[aria-sort]").count() == 1


def test_the_filter_keeps_the_rows_that_hold_every_word_and_have_the_standing(opened: Any) -> None:
    audit = example_audit(60)
    reader = opened(audit)
    reader.page.get_by_label("Find").fill("ddn")
    ddn = [s.index for s in audit.samples if s.attack == "DDN"]
    assert [int(text) for text in reader.column(1)] == ddn
    assert reader.page.locator("#shown").inner_text() == f"{len(ddn)} of 60 found"
    reader.page.get_by_label("Standing").select_option("certified")
    assert [int(text) for text in reader.column(1)] == [i for i in ddn if audit.samples[i].radius >= 0.25]
    reader.page.get_by_label("Find").fill("no such word")
    assert reader.column(1) == []
    reader.page.get_by_label("Find").fill("")
    reader.page.get_by_label("Standing").select_option("any")
    assert len(reader.column(1)) == 60


ROWS = 'all => all.map(row => row.outerHTML.replace(/ value="[^"]*"/g, \'\'))'


@pytest.mark.parametrize("verdict", ["NOT REFUTED", "NOT EVALUATED"])
def test_the_script_writes_the_rows_that_stand_there_without_it(opened: Any, verdict: Verdict) -> None:
    page = opened(example_audit(60, verdict)).page
    written = page.eval_on_selector_all("#sample-table tbody tr", ROWS)
    page.locator("#sample-table thead button").first.click()  # by index: every row is made anew, in the same order
    assert page.eval_on_selector_all("#sample-table tbody tr", ROWS) == written


def test_of_many_samples_all_are_found_sorted_and_shown_step_by_step(opened: Any) -> None:
    audit = example_audit(MOST_ROWS + 100)
    reader = opened(audit)
    assert len(reader.column(1)) == FEWEST_ROWS
    heads = reader.page.locator("#sample-table thead button")
    heads.nth(4).click()
    heads.nth(4).click()
    by_radius = sorted(audit.samples, key=lambda sample: -sample.radius)
    assert [int(text) for text in reader.column(1)] == [sample.index for sample in by_radius[:FEWEST_ROWS]]
    reader.page.get_by_role("button", name="Show more samples").click()
    assert [int(text) for text in reader.column(1)] == [sample.index for sample in by_radius[: 2 * FEWEST_ROWS]]
    kept = [sample.index for sample in by_radius if sample.attack == "DDN"]
    reader.page.get_by_label("Find").fill("ddn")
    assert [int(text) for text in reader.column(1)] == kept[:FEWEST_ROWS]
    assert reader.page.locator("#shown").inner_text() == f"{len(kept)} of {MOST_ROWS + 100} found, {FEWEST_ROWS} shown"


def test_a_link_to_any_sample_shows_it(opened: Any) -> None:
    audit = example_audit(MOST_ROWS + 100)
    reader = opened(audit)
    hidden = next(s.index for s in audit.samples if not reader.page.locator(f"#s{s.index}").count())
    reader.page.evaluate(f"location.hash = 's{hidden}'")
    reader.page.locator(f"#s{hidden}").wait_for()
    assert reader.column(1)[0] == str(hidden)


def test_a_link_that_is_no_name_does_not_stop_the_script(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render(example_audit(8)), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri() + "#100%")
    assert page.locator("#copy").is_visible()
    page.close()


def test_the_ledger_folds_by_keyboard_and_a_link_into_it_opens_it(opened: Any) -> None:
    reader = opened(example_audit(12))
    page = reader.page
    last = page.locator("#ledger tr").last
    assert not last.is_visible()
    page.evaluate(f"location.hash = '{last.get_attribute('id')}'")
    last.wait_for(state="visible")
    first = page.locator("#ledger summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#ledger details").first.get_attribute("open") is not None
    page.get_by_role("button", name="Open all modules").click()
    assert page.locator("#ledger details:not([open])").count() == 0
    page.get_by_role("button", name="Close all modules").click()
    assert page.locator("#ledger details[open]").count() == 0
    assert reader.complaints == []


def test_the_audit_can_be_copied_as_json_without_any_clipboard(opened: Any) -> None:
    for audit in (example_audit(60), with_float_gaps(example_audit(60), (3,))):
        page = opened(audit).page
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()) }")
        page.get_by_role("button", name="Copy the audit as JSON").click()
        assert json.loads(page.get_by_label("The audit as JSON").input_value()) == json.loads(canonical(audit))


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_no_rule_of_accessibility_is_broken(opened: Any, verdict: Verdict, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # axe runs through the inspector, which the page's policy does not bind
    found = axe.run(opened(example_audit(40, verdict), viewport={"width": width, "height": 900}).page)
    assert len(found.response["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found.response["violations"]] == []


def test_without_script_the_page_is_whole_and_offers_nothing_that_needs_it(opened: Any) -> None:
    audit = example_audit(60)
    reader = opened(audit, java_script_enabled=False)
    assert reader.page.locator("#sample-table tbody tr").count() == 60
    assert reader.page.locator("button:visible, input:visible, select:visible").count() == 0
    for part in SECTIONS:
        if part.id != "contradictions":
            assert reader.page.locator(f"#{part.id}").inner_text().strip()
    assert reader.page.locator("svg.chart:visible").count() == 3
    assert reader.complaints == []


def printed(pdf: Path) -> str:
    """The text of a PDF, its white space made single. Skips the test where nothing here can read one."""
    pypdf = pytest.importorskip(
        "pypdf", reason="the PDF was made; pypdf is not installed to read it: pip install certkit[dev]"
    )
    return " ".join(" ".join(page.extract_text() for page in pypdf.PdfReader(pdf).pages).split())


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_printed_the_page_shows_every_section_and_what_was_folded(opened: Any, tmp_path: Path, script: bool) -> None:
    reader = opened(example_audit(60), java_script_enabled=script)
    folded = reader.page.locator("#radii details table")
    assert not folded.is_visible()
    pdf = reader.page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    assert pdf.startswith(b"%PDF")
    text = printed(tmp_path / "page.pdf")
    for part in SECTIONS[2:]:
        assert part.title in text, part.title
    assert "NOT REFUTED" in text
    assert "Correct samples per interval of certified radius" in text


def test_dark_and_light_look_different_and_the_figures_follow(opened: Any) -> None:
    looks = []
    for scheme in ("light", "dark"):
        page = opened(example_audit(60), color_scheme=scheme).page
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        line = page.evaluate("getComputedStyle(document.querySelector('.chart .stroke-certified')).stroke")
        looks.append((ground, line, page.screenshot()))
    for light, dark in zip(*looks, strict=True):
        assert light != dark


@pytest.mark.parametrize("width", [320, 400, 768, 1280])
def test_nothing_sticks_out_of_the_page(opened: Any, width: int) -> None:
    reader = opened(example_audit(60, "REFUTED"), viewport={"width": width, "height": 900})
    assert reader.page.evaluate("document.documentElement.scrollWidth") == width
    assert reader.page.locator("h1").inner_text() == "REFUTED"


@pytest.mark.parametrize("names", [("closing",), ("attribute",), tuple(PAYLOADS)], ids="+".join)
def test_nothing_in_a_record_can_run(opened: Any, names: tuple[str, ...]) -> None:
    reader = opened(poisoned(" ".join(PAYLOADS[name] for name in names))[0])
    reader.page.mouse.move(600, 300)
    reader.page.get_by_label("Find").fill("x")
    reader.page.locator("#sample-table thead button").first.click()
    assert reader.page.evaluate("window.pwned") is None
    assert len(reader.requests) == 1
    assert reader.complaints == []


HOSTILE: dict[str, Callable[[str], str]] = {
    "report.html": lambda text: render(made(Audit, text)),
    "report.html, the other parts": lambda text: render(made(Audit, text, full=False)),
    "compared.html": lambda text: sides_page.render(made(Audit, text), made(Audit, text)),
    "language.html": lambda text: language.render(made(LanguageAudit, text)),
    "comparison.html": lambda text: comparison.render(made(Comparison, text)),
}


TOUCHED = """() => {
    for (const one of document.querySelectorAll('details')) one.open = true;
    for (const one of document.querySelectorAll('button, a')) one.click();
    for (const one of document.querySelectorAll('*')) {
        for (const kind of ['mouseover', 'focus', 'load', 'error']) one.dispatchEvent(new Event(kind));
    }
}"""
SHOWN = """() => {
    const all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (all.nextNode()) if (!all.currentNode.parentElement.closest('script, style')) found.push(all.currentNode.data);
    return found.join('');
}"""


@pytest.mark.parametrize("page", HOSTILE)
def test_nothing_in_any_record_runs_is_fetched_or_hides(browser: Any, tmp_path: Path, page: str) -> None:
    path = tmp_path / "page.html"
    for text in (*(PAYLOADS[name] for name in ("closing", "attribute", "frame")), " ".join(PAYLOADS.values())):
        path.write_text(HOSTILE[page](text), encoding="utf-8")
        reader = Reader(browser, path)
        reader.page.evaluate(TOUCHED)
        reader.page.mouse.move(600, 300)
        reader.page.mouse.wheel(0, 20_000)
        reader.page.emulate_media(media="print")
        assert reader.page.evaluate("window.pwned") is None
        asked = [url for url in reader.requests if not url.startswith("data:image/png;base64,")]
        assert {url.split("#")[0] for url in asked} == {path.as_uri()}
        assert reader.complaints == []
        assert one_line(text, LONGEST) in reader.page.evaluate(SHOWN)
        raw = reader.page.evaluate("document.documentElement.outerHTML")
        assert not [c for c in raw if not c.isprintable() and c not in "\n\t\u202f"]
        reader.context.close()
