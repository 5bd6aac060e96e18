"""SARIF 2.1.0: what code scanning services show beside the source. OASIS Static Analysis Results Interchange Format."""

from __future__ import annotations

from typing import Any

from certkit.errors import one_line
from certkit.files import digest
from certkit.records import Audit

from .outcomes import Outcome, Status, outcomes, refuting
from .text import as_json

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KIND: dict[Status, str] = {"pass": "pass", "flag": "fail", "fail": "fail", "not evaluated": "open"}
_LEVEL: dict[Status, str] = {"pass": "none", "flag": "warning", "fail": "error", "not evaluated": "none"}


def sarif(audit: Audit) -> bytes:
    """One rule and one result per outcome, and one result more for each contradiction.

    Every result points at audit.json, as services show nothing without a place. Fingerprints are made of the rule, the
    checkpoint and the sample, so that a result keeps its identity from one audit to the next.
    """
    found = outcomes(audit)
    positions = {outcome.id: at for at, outcome in enumerate(found)}
    results = [
        _result(audit, outcome.id, positions, _KIND[outcome.status], _LEVEL[outcome.status], outcome.figure)
        for outcome in found
    ]
    for rule, one in refuting(audit):
        gap = one.refutes == "float gap"
        what = "exact arithmetic" if one.refutes == "exact arithmetic" else "the float execution"
        message = (
            f"sample {one.index}: the program errs at distance {one.distance!r}, inside the certified radius "
            f"{one.radius!r} ({one.attack}); this {'is a float gap' if gap else f'refutes the claim about {what}'}"
        )
        level = "warning" if gap else "error"
        results.append(_result(audit, rule, positions, "fail", level, message, sample=one.index))
    return as_json(
        {
            "$schema": SCHEMA,
            "version": "2.1.0",
            "runs": [
                {
                    "tool": {
                        "driver": {
                            "name": "certkit",
                            "semanticVersion": audit.environment.certkit,
                            "rules": [_rule(outcome) for outcome in found],
                        }
                    },
                    "artifacts": [{"location": {"uri": "audit.json"}, "roles": ["resultFile"]}],
                    "results": results,
                    "properties": {"verdict": audit.verdict, "checkpoint_sha256": audit.subject.sha256},
                }
            ],
        }
    )


def _rule(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "shortDescription": {"text": one_line(outcome.name, 1000)},
        "help": {"text": one_line(outcome.advice or outcome.name, 1000)},
    }


def _result(
    audit: Audit,
    rule: str,
    positions: dict[str, int],
    kind: str,
    level: str,
    message: str,
    *,
    sample: int | None = None,
) -> dict[str, Any]:
    identity = digest(f"{rule} {audit.subject.sha256} {'' if sample is None else sample}".encode())
    return {
        "ruleId": rule,
        "ruleIndex": positions[rule],
        "kind": kind,
        "level": level,
        "message": {"text": one_line(message, 1000) or rule},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": "audit.json", "index": 0}, "region": {"startLine": 1}}}
        ],
        "partialFingerprints": {"certkit/v1": identity},
    }
