"""An audit as a list of named outcomes, which is what test reports, scanners and attestations speak of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from certkit.records import Audit, Contradiction

from ..claims import Claims

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
    claims = Claims.of(audit)
    gaps, errs = (sum(one.refutes == what for one in audit.contradictions) for what in ("float gap", "float execution"))
    certificate = Outcome(
        id="CR01",
        name="no adversarial example inside a certified radius",
        status=_of_the_exact(audit, claims),
        figure=audit.verdict_reason,
        advice="An example inside a certified radius disproves the certificate: do not rely on any of its radii.",
    )
    arithmetic = audit.execution.arithmetic
    claim = (
        f"the claim about the {arithmetic} execution is refuted"
        if claims.execution_refuted
        else f"the {arithmetic} execution is claimed apart"
        if claims.claimed
        else f"nothing is claimed of the {arithmetic} execution: {'; '.join(audit.execution.reasons)}"
    )
    program = Outcome(
        id="CR02",
        name="the deployed program keeps what is claimed of it, and what exact arithmetic promises",
        status="fail" if claims.execution_refuted else "flag" if gaps else _unless_attacked(audit),
        figure=f"{errs} refute the claim about the execution, {gaps} are float gaps; {claim}",
        advice="Where the program errs and the exact function does not, run it in a higher precision or claim less.",
    )
    checks = (Outcome(one.id, one.name, one.status, one.figure, one.advice) for one in audit.checks)
    return (certificate, program, *sorted(checks, key=lambda check: check.id))


def _of_the_exact(audit: Audit, claims: Claims) -> Status:
    """The verdict, but for an audit that only what is claimed of the execution was refuted in: there the exact claim stands
    against the campaign, and as firmly as the campaign's other checks let it."""
    if audit.verdict != "REFUTED" or claims.refuted:
        return _VERDICT[audit.verdict]
    return "not evaluated" if any(one.status == "fail" and one.id != "EV22" for one in audit.checks) else "pass"


def _unless_attacked(audit: Audit) -> Status:
    return "pass" if audit.campaign is not None else "not evaluated"


def refuting(audit: Audit) -> Iterable[tuple[str, Contradiction]]:
    """Every contradiction with the id of the outcome that it belongs to."""
    for one in audit.contradictions:
        yield ("CR01" if one.refutes == "exact arithmetic" else "CR02"), one
