"""Where standards and frameworks ask for evidence of this kind, and which of it this audit holds. Never a conformity.

Every row follows from the record: what was not done is shown as not covered. Titles and numbers are those of the named
editions; a later edition may number them differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from certkit.records import Audit

Covered = Literal["evidence provided", "partly", "not covered"]


@dataclass(frozen=True, slots=True)
class Mapping:
    """One clause, and what this audit contributes to it."""

    source: str
    clause: str
    covered: Covered
    evidence: str


def _domain(audit: Audit) -> tuple[Covered, str]:
    low, high = audit.threat.box
    return (
        "evidence provided",
        f"{audit.data.count} samples by digest, the box [{low:g}, {high:g}], {audit.threat.norm} balls around each sample",
    )


def _stability(audit: Audit) -> tuple[Covered, str]:
    return "evidence provided", "per sample, the radius within which the predicted class is proved not to change"


def _verifier(audit: Audit) -> tuple[Covered, str]:
    execution = audit.execution
    also = f", and {execution.arithmetic} as executed" if execution.pair_error is not None else ""
    return "evidence provided", f"incomplete, deterministic, glass-box; arithmetic of the claim: {audit.claim}{also}"


def _empirical(audit: Audit) -> tuple[Covered, str]:
    if audit.campaign is None:
        return "not covered", "no attack campaign was run"
    return (
        "evidence provided",
        f"a planned campaign of {len(audit.campaign.attacks)} attacks, plan hashed before it ran",
    )


def _statistics(audit: Audit) -> tuple[Covered, str]:
    return (
        "partly",
        "95 % Clopper-Pearson intervals on every share; true of other inputs only if the sample is independent",
    )


def _checks(audit: Audit) -> tuple[Covered, str]:
    if not audit.checks:
        return "not covered", "no evaluation check ran"
    return "evidence provided", f"{len(audit.checks)} checks of the evaluation itself, each with its figure"


def _evasion(audit: Audit) -> tuple[Covered, str]:
    if audit.campaign is None:
        return "partly", "certified radii only; no attack was run"
    return "evidence provided", f"certified and attacked accuracy in {audit.threat.norm}, at {len(audit.curve)} radii"


def _tools(audit: Audit) -> tuple[Covered, str]:
    return "evidence provided", "samples, metrics, tools and versions, by digest, in the provenance section"


def _limits(audit: Audit) -> tuple[Covered, str]:
    return (
        "partly",
        f"{len(audit.limits)} stated limits of this audit; conditions of deployment are for the reader to compare",
    )


def _nothing(audit: Audit) -> tuple[Covered, str]:
    return "not covered", "not evaluated by this audit"


def _supply(audit: Audit) -> tuple[Covered, str]:
    return "partly", "the checkpoint's digest; where it came from is not examined"


ROWS: tuple[tuple[str, str, Callable[[Audit], tuple[Covered, str]]], ...] = (
    ("ISO/IEC 24029-2:2023", "5.2 Notion of domain", _domain),
    ("ISO/IEC 24029-2:2023", "5.3 Stability: property and criterion", _stability),
    ("ISO/IEC 24029-2:2023", "6.2.1 Types of verifier, real or computer arithmetic", _verifier),
    ("ISO/IEC TR 24029-1:2021", "6.2.3 Maximum stable space for perturbation resistance", _stability),
    ("ISO/IEC TR 24029-1:2021", "5 Statistical methods", _statistics),
    ("ISO/IEC TR 24029-1:2021", "7 Empirical methods", _empirical),
    ("NIST AI RMF 1.0", "MEASURE 2.1 Test sets, metrics and tools are documented", _tools),
    ("NIST AI RMF 1.0", "MEASURE 2.5 Valid and reliable; limits of generalisation", _limits),
    ("NIST AI RMF 1.0", "MEASURE 2.7 Security and resilience are evaluated", _evasion),
    ("NIST AI RMF 1.0", "MEASURE 2.13 The measuring itself is evaluated", _checks),
    ("NIST AI 100-2 E2025", "NISTAML.022 Evasion", _evasion),
    ("EU AI Act, (EU) 2024/1689", "Article 15(5) adversarial examples and model evasion", _evasion),
    ("EU AI Act, (EU) 2024/1689", "Article 15(5) data poisoning, model poisoning, confidentiality", _nothing),
    ("MITRE ATLAS, 2026-05 data", "AML.T0043 Craft Adversarial Data; AML.T0042 Verify Attack", _empirical),
    ("MITRE ATLAS, 2026-05 data", "AML.M0008 Validate AI Model", _evasion),
    ("OWASP ML Top 10 2023, draft", "ML01 Input Manipulation Attack", _evasion),
    ("OWASP ML Top 10 2023, draft", "ML06 AI Supply Chain Attacks", _supply),
    ("OWASP ML Top 10 2023, draft", "ML02 to ML05 and ML07 to ML10", _nothing),
)


def mappings(audit: Audit) -> tuple[Mapping, ...]:
    """Every clause of the table with what this audit contributes."""
    return tuple(Mapping(source, clause, *of(audit)) for source, clause, of in ROWS)
