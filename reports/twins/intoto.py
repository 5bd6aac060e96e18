"""An in-toto statement with the test-result predicate: what a supply chain can sign and check."""

from __future__ import annotations

from certkit.files import canonical, digest
from certkit.records import Audit

from .outcomes import outcomes
from .text import as_json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"


def intoto(audit: Audit) -> bytes:
    """The outcomes as passed, warned and failed tests of the checkpoint; unsigned, so it proves nothing about who says it.

    The result is FAILED for a refuted certificate or a failed check, PASSED only if the certificate stands against a
    valid campaign and nothing is flagged, else WARNED: what was not evaluated has not passed.
    """
    found = outcomes(audit)
    names = {
        status: [outcome.id for outcome in found if outcome.status == status]
        for status in ("pass", "flag", "fail", "not evaluated")
    }
    warned = names["flag"] + names["not evaluated"]
    plan = audit.campaign.plan_sha256 if audit.campaign is not None else None
    configuration = [{"name": "audit.json", "digest": {"sha256": digest(canonical(audit).encode())}}]
    if plan is not None:
        configuration.append({"name": "campaign/plan.json", "digest": {"sha256": plan}})
    return as_json(
        {
            "_type": STATEMENT,
            "subject": [{"name": "checkpoint", "digest": {"sha256": audit.subject.sha256}}],
            "predicateType": PREDICATE,
            "predicate": {
                "result": "FAILED" if names["fail"] else "WARNED" if warned else "PASSED",
                "configuration": configuration,
                "passedTests": names["pass"],
                "warnedTests": sorted(warned),
                "failedTests": names["fail"],
            },
        }
    )
