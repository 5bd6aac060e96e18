"""The pictures in a real browser: seen with and without the script, linked from their rows, unfolded for print."""

from __future__ import annotations

from typing import Any

import pytest

from certkit.records.pictures import MOST
from certkit.reports.pictures import FIRST
from tests.audits import example_audit
from tests.test_report_browser import CHROMIUM, browser, opened  # noqa: F401 - fixtures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_every_picture_is_decoded_and_the_first_are_seen(opened: Any, script: bool) -> None:  # noqa: F811
    reader = opened(example_audit(120), java_script_enabled=script)
    sizes = reader.page.eval_on_selector_all("#samples img", "all => all.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[8, 8]] * 3 * MOST
    assert reader.page.locator("#samples img:visible").count() == 3 * FIRST
    box = reader.page.locator("#samples img").first.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    assert box["width"] > 60
    assert reader.complaints == []
    assert [url.rsplit("/", 1)[-1] for url in reader.requests] == ["report-0.html"]


def test_a_row_leads_to_its_pictures_and_they_lead_back(opened: Any) -> None:  # noqa: F811
    audit = example_audit(120)
    page = opened(audit).page
    last = page.locator(".card").last
    assert not last.is_visible()
    index = last.get_attribute("id")[1:]
    page.locator(f"#s{index} .see").click()
    last.wait_for(state="visible")
    page.get_by_label("Find").fill("no such word")
    last.get_by_role("link", name=f"Sample {index}").click()
    page.locator(f"#s{index}").wait_for()
    assert page.locator("#s" + index).is_visible()
    assert page.locator("#sample-table .see").count() == MOST
    page.locator("#sample-table thead button").nth(3).click()
    assert page.locator("#sample-table .see").count() == MOST
