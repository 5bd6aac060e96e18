"""Thresholds that an audit must meet: what a pipeline asks before it ships a network.

    0.6@l2:0.25     a share of the samples, at a radius, in the audit's norm

Before a figure is believed the whole audit is derived again from its certificate and its campaign, and must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from certkit.errors import ConfigError, RecordError, one_line
from certkit.folder import Findings, follows, stated
from certkit.records import Audit, Rate, Record, Verdict, rounded_up

Kind = Literal["min-certified", "min-executed", "min-attacked", "max-gap", "min-clean"]

_AT_RADIUS = re.compile(r"(?P<share>[^@]+)@(?P<norm>[a-z0-9-]+):(?P<eps>.+)")
MEANING: dict[Kind, str] = {
    "min-clean": "correct and beyond its own error",
    "min-certified": "correct and proved to stay so",
    "min-executed": "correct and proved to stay so as executed",
    "min-attacked": "correct after every attack",
    "max-gap": "neither proved nor broken",
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """What is asked: a share, exactly as written, and (but for the clean accuracy) the radius it is asked at."""

    kind: Kind
    share: Fraction
    norm: str | None = None
    eps: str | None = None

    @classmethod
    def of(cls, kind: Kind, text: str) -> Threshold:
        """``0.95`` for min-clean, ``0.6@l2:0.25`` for the others. Raises ConfigError for anything else."""
        shown = one_line(text, 60)
        example = "0.95" if kind == "min-clean" else "0.6@l2:0.25"
        at = None if kind == "min-clean" else _AT_RADIUS.fullmatch(text.strip())
        if kind != "min-clean" and at is None:
            raise ConfigError(f"--{kind} {shown!r} is no threshold; expected SHARE@NORM:EPS such as {example}")
        try:
            share = Fraction(text.strip() if at is None else at["share"])
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"--{kind} {shown!r} is no threshold; expected a share such as {example}") from None
        if not 0 <= share <= 1:
            raise ConfigError(f"--{kind} {shown!r}: a share lies between 0 and 1; expected one such as {example}")
        if at is None:
            return cls(kind, share)
        rounded_up(at["eps"])  # refuses what is no radius
        return cls(kind, share, at["norm"], at["eps"])

    def __str__(self) -> str:
        where = "" if self.eps is None else f"@{self.norm}:{self.eps}"
        return f"--{self.kind} {float(self.share):g}{where}"


class Judged(Record):
    """One threshold and whether it is met. ``figure`` is the share as counts, None where nothing was evaluated."""

    threshold: str
    met: bool
    figure: str | None
    reason: str


class Gate(Record):
    """What came of a gate: ``passed`` when every threshold is met and the verdict does not forbid it."""

    passed: bool
    verdict: Verdict
    thresholds: tuple[Judged, ...]


def gate(directory: Path, thresholds: Sequence[Threshold]) -> Gate:
    """Judge the audit in a folder against thresholds.

    A refuted or inconclusive audit never passes. Raises ConfigError for a radius or a norm that was not audited,
    Tampered where audit.json is not what certificate and campaign give, RecordError where there is none.
    """
    directory = Path(directory)
    audit = stated(directory)
    if audit is None:
        raise RecordError(f"{one_line(directory)}: no audit.json here; run certkit audit or certkit report first")
    follows(directory, audit, Findings())
    judged = tuple(_judge(audit, threshold) for threshold in thresholds)
    passed = audit.verdict in ("NOT REFUTED", "NOT EVALUATED") and all(one.met for one in judged)
    return Gate(passed=passed, verdict=audit.verdict, thresholds=judged)


def _judge(audit: Audit, threshold: Threshold) -> Judged:
    if threshold.eps is None:
        return _against(threshold, audit.clean, audit.clean.count)
    if threshold.norm != audit.threat.norm:
        raise ConfigError(f"{threshold}: the audit is in {audit.threat.norm}; ask in that norm, or audit in the other")
    value = rounded_up(threshold.eps)
    found = [point for point in audit.curve if point.eps.value == value]
    if not found:
        radii = ", ".join(point.eps.text for point in audit.curve)
        raise ConfigError(f"{threshold}: not audited at {threshold.eps}; audited are {radii}")
    (point,) = found
    if threshold.kind == "min-certified":
        return _against(threshold, point.certified, point.certified.count)
    if threshold.kind == "min-executed":
        held = [one.certified for one in audit.execution.certified if one.eps.value == value]
        if held:
            return _against(threshold, held[0], held[0].count)
        reason = f"{threshold}: nothing is claimed of the {audit.execution.arithmetic} execution"
        return Judged(threshold=str(threshold), met=False, figure=None, reason=reason)
    if point.attacked is None:
        reason = f"{threshold}: no campaign stands beside the certificate, so nothing was attacked"
        return Judged(threshold=str(threshold), met=False, figure=None, reason=reason)
    count = point.attacked.count - (point.certified.count if threshold.kind == "max-gap" else 0)
    return _against(threshold, point.attacked, count)


def _against(threshold: Threshold, rate: Rate, count: int) -> Judged:
    """Counts against the share, exactly; a gap below 0 (a contradiction) counts as its size."""
    share = Fraction(abs(count), rate.total) if rate.total else Fraction(0)
    met = share <= threshold.share if threshold.kind == "max-gap" else share >= threshold.share
    figure = f"{abs(count)}/{rate.total}"
    reason = f"{threshold}: {figure} = {float(100 * share):.2f} % of the samples are {MEANING[threshold.kind]}"
    return Judged(threshold=str(threshold), met=met and rate.total > 0, figure=figure, reason=reason)
