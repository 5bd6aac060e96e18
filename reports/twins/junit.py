"""JUnit XML: what continuous integration shows as tests."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from certkit.errors import one_line
from certkit.records import Audit

from .outcomes import outcomes


def junit(audit: Audit) -> bytes:
    """One test case per outcome: ``fail`` is a failure, ``not evaluated`` is skipped, a ``flag`` passes and says so in
    its output. Times are 0: an audit's durations are no property of the network."""
    found = outcomes(audit)
    totals = {
        "tests": str(len(found)),
        "failures": str(sum(outcome.status == "fail" for outcome in found)),
        "errors": "0",
        "skipped": str(sum(outcome.status == "not evaluated" for outcome in found)),
        "time": "0",
    }
    root = ElementTree.Element("testsuites", {"name": "certkit", **{k: v for k, v in totals.items() if k != "skipped"}})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": f"certkit {audit.subject.sha256[:12]}", **totals, **_second(audit)}
    )
    for outcome in found:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": "certkit.audit", "name": f"{outcome.id} {_text(outcome.name)}", "time": "0"},
        )
        figure = _text(outcome.figure)
        if outcome.status == "fail":
            ElementTree.SubElement(case, "failure", {"message": figure, "type": outcome.id}).text = _text(
                outcome.advice
            )
        elif outcome.status == "not evaluated":
            ElementTree.SubElement(case, "skipped", {"message": figure or "not evaluated"})
        elif outcome.status == "flag":
            ElementTree.SubElement(case, "system-out").text = f"flagged: {figure}. {_text(outcome.advice)}"
    ElementTree.indent(root, " ")
    body: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def _second(audit: Audit) -> dict[str, str]:
    """When the audit was made, to the second, as the format wants it: without an offset; nothing if that is no time."""
    found = re.match(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}", audit.provenance.created, re.ASCII)
    return {} if found is None else {"timestamp": found[0]}


def _text(text: str) -> str:
    return one_line(text, 1000)
