"""The page of a large audit: how long it takes to make, how large it is, and when a browser first shows something.

    python -m benchmarks.report > benchmarks/results/report.json

The audit is synthetic: as many samples as asked for, eight radii, six attacks, a ledger of 24 steps, and pictures of noise of
3 x 32 x 32, which no file makes smaller, up to their limit. First paint is the
median of five loads of the file by the Chromium of the system, without a cache, as the browser itself reports it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import printed
from certkit.files import canonical
from certkit.records import Audit, CertifiedAt, Eps
from certkit.reports import render
from tests.audits import example_audit, pictures, rate

EPS = ("0.05", "0.1", "0.15", "0.25", "36/255", "0.5", "0.75", "1.0")
ATTACKS = 6
LOADS = 5
SHAPE = (3, 32, 32)


def synthetic(samples: int) -> Audit:
    """An audit of so many samples at eight radii under six attacks, with as many pictures as there is room for."""
    audit = example_audit(samples)
    right = [row for row in audit.samples if row.label == row.predicted]
    point = audit.curve[0]
    curve = tuple(
        point.model_copy(
            update={
                "eps": eps,
                "certified": rate(sum(row.radius >= eps.value for row in right), samples),
                "attacked": rate(sum(row.distance is None or row.distance > eps.value for row in right), samples),
            }
        )
        for eps in sorted(map(Eps.of, EPS), key=lambda eps: eps.value)
    )
    certified = tuple(CertifiedAt(eps=at.eps, certified=at.certified) for at in curve)
    assert audit.campaign
    attacks = (audit.campaign.attacks * 2)[:ATTACKS]
    return audit.model_copy(
        update={
            "curve": curve,
            "input_shape": SHAPE,
            "pictures": pictures(audit.samples, SHAPE),
            "threat": audit.threat.model_copy(update={"eps": tuple(at.eps for at in curve)}),
            "execution": audit.execution.model_copy(update={"certified": certified}),
            "without_local": audit.without_local.model_copy(update={"certified": certified}),
            "campaign": audit.campaign.model_copy(update={"attacks": attacks}),
        }
    )


def painted(page: Path) -> dict[str, Any]:
    """Milliseconds from navigation to first contentful paint, and to sorting all samples by a click."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        return {"browser": None}
    paints, sorts = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(LOADS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            opened = context.new_page()
            opened.goto(page.as_uri())
            while not opened.evaluate("performance.getEntriesByName('first-contentful-paint').length"):
                opened.wait_for_timeout(20)
            paints.append(opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            sorts.append(
                opened.evaluate(
                    "() => { const from = performance.now();"
                    " document.querySelectorAll('#sample-table thead button')[4].click(); return performance.now() - from; }"
                )
            )
            context.close()
        version = browser.version
        browser.close()
    return {
        "browser": f"Chromium {version}",
        "first_contentful_paint_ms": round(statistics.median(paints), 1),
        "sort_all_ms": round(statistics.median(sorts), 1),
    }


def measured(samples: int, folder: Path) -> dict[str, Any]:
    audit = synthetic(samples)
    started = time.perf_counter()
    text = render(audit)
    seconds = time.perf_counter() - started
    page = folder / f"{samples}.html"
    page.write_text(text, encoding="utf-8")
    return {
        "samples": samples,
        "radii": len(audit.curve),
        "attacks": ATTACKS,
        "pictured": len(audit.pictures.shown),
        "audit_json_bytes": len(canonical(audit).encode()),
        "page_bytes": page.stat().st_size,
        "render_seconds": round(seconds, 2),
        **painted(page),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1_000, 10_000])
    sizes = parser.parse_args().samples
    render(synthetic(10))  # the first figure loads matplotlib's fonts
    with tempfile.TemporaryDirectory() as folder:
        pages = [measured(count, Path(folder)) for count in sizes]
    printed("benchmarks.report", {"pages": pages}, threads=1)


if __name__ == "__main__":
    main()
