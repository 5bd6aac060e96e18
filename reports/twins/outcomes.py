"""An audit as a list of named outcomes, which is what test reports, scanners and attestations speak of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from certkit.records import Audit, Contradiction

Status = Literal["pass", "flag", "fail", "not evaluated"]

_VERDICT: dict[str, Status] = {
    "REFUTED": "fail",
    "NOT REFUTED": "pass",
    "INCONCLUSIVE": "not evaluated",
    "NOT EVALUATED": "not evaluated",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that was asked of the network or of its evaluation, and what came of it.

    ``id`` is stable between audits: CR01 is the certificate against the campaign, CR02 the deployed program against the
    certificate, EV.. the evaluation checks.
    """

    id: str
    name: str
    status: Status
    figure: str
    advice: str


def outcomes(audit: Audit) -> tuple[Outcome, ...]:
    """The certificate's own outcomes, then every evaluation check, each once and in the order of their ids."""
    gaps = [one for one in audit.contradictions if one.refutes == "float gap"]
    certificate = Outcome(
        id="CR01",
        name="no adversarial example inside a certified radius",
        status=_VERDICT[audit.verdict],
        figure=audit.verdict_reason,
        advice="An example inside a certified radius disproves the certificate: do not rely on any of its radii.",
    )
    program = Outcome(
        id="CR02",
        name="the deployed program keeps what exact arithmetic promises",
        status="flag" if gaps else "pass" if audit.campaign is not None else "not evaluated",
        figure=f"{len(gaps)} {'sample' if len(gaps) == 1 else 'samples'} with a float gap",
        advice="Where the program errs and the exact function does not, run it in a higher precision or claim less.",
    )
    checks = (Outcome(one.id, one.name, one.status, one.figure, one.advice) for one in audit.checks)
    return (certificate, program, *sorted(checks, key=lambda check: check.id))


def refuting(audit: Audit) -> Iterable[tuple[str, Contradiction]]:
    """Every contradiction with the id of the outcome that it belongs to."""
    for one in audit.contradictions:
        yield ("CR02" if one.refutes == "float gap" else "CR01"), one
