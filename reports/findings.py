"""What the page says beyond what the record holds: standings, tallies, limits. All of it derived, none of it measured."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from certkit.records import Audit, Check, Sample, canonical, digest

from .rounding import decimals_for

Standing = Literal["contradicted", "certified", "open", "broken", "misclassified"]

MOST_ROWS = 2_000  # a browser sorts and prints these without waiting
FEWEST_ROWS = 200

_SEVERITY = {"fail": 0, "flag": 1, "not evaluated": 2, "pass": 3}
NORMS = {"l2": "L2", "linf": "L∞"}


@dataclass(frozen=True, slots=True)
class Row:
    """One sample as the table shows it. ``gap`` is what lies between proof and attack, None when nothing was found."""

    sample: Sample
    label: str
    predicted: str
    gap: float | None
    standing: Standing


@dataclass(frozen=True, slots=True)
class Share:
    """One part of the bar that says where all samples stand at the headline radius; in per mille of the whole."""

    standing: Standing
    count: int
    start: float
    width: float


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the templates need and the record does not say in so many words."""

    norm: str
    headline: int | None
    shares: tuple[Share, ...]
    broken: int
    rows: tuple[Row, ...]
    omitted: int
    decimals: dict[str, int | None]
    checks: tuple[Check, ...]
    tally: tuple[tuple[str, int], ...]
    not_shown: tuple[str, ...]
    commands: tuple[str, ...]
    audit_sha256: str

    @classmethod
    def of(cls, audit: Audit) -> Findings:
        middle = (len(audit.curve) - 1) // 2 if audit.curve else None
        every = [row(audit, sample, middle) for sample in audit.samples]
        shown = every if len(every) <= MOST_ROWS else sorted(every, key=_closeness)[:FEWEST_ROWS]
        tally: Counter[str] = Counter(check.status for check in audit.checks)
        return cls(
            norm=NORMS[audit.threat.norm],
            headline=middle,
            shares=shares(audit, middle),
            broken=sum(sample.distance is not None for sample in audit.samples),
            rows=tuple(shown),
            omitted=len(every) - len(shown),
            decimals={
                "margin": decimals_for(max((abs(sample.margin) for sample in audit.samples), default=0.0)),
                "radius": decimals_for(
                    max(
                        [sample.radius for sample in audit.samples]
                        + [sample.distance or 0.0 for sample in audit.samples],
                        default=0.0,
                    )
                ),
            },
            checks=tuple(sorted(audit.checks, key=lambda check: (_SEVERITY[check.status], check.id))),
            tally=tuple((status, tally[status]) for status in _SEVERITY if tally[status]),
            not_shown=not_shown(audit),
            commands=commands(audit),
            audit_sha256=digest(canonical(audit).encode()),
        )


def row(audit: Audit, sample: Sample, middle: int | None) -> Row:
    """The sample with its classes named, its gap, and where it stands at the headline radius."""
    return Row(
        sample=sample,
        label=class_name(audit, sample.label),
        predicted=class_name(audit, sample.predicted),
        gap=None if sample.distance is None else sample.distance - sample.radius,
        standing=standing(audit, sample, middle),
    )


def class_name(audit: Audit, index: int) -> str:
    """``7`` when the class is called 7, ``7 ship`` when it has a name of its own, the bare index when it has none."""
    name = audit.data.classes[index] if index < len(audit.data.classes) else ""
    return str(index) if name in {"", str(index)} else f"{index} {name}"


def standing(audit: Audit, sample: Sample, middle: int | None) -> Standing:
    """A contradiction wherever it lies; otherwise what is known of the sample at the headline radius."""
    if sample.distance is not None and sample.distance < sample.radius:
        return "contradicted"
    if sample.label != sample.predicted:
        return "misclassified"
    eps = audit.curve[middle].eps.value if middle is not None else 0.0
    if sample.radius >= eps:
        return "certified"
    if sample.distance is not None and sample.distance <= eps:
        return "broken"
    return "open"


def _closeness(shown: Row) -> tuple[float, int]:
    return (float("inf") if shown.gap is None else shown.gap, shown.sample.index)


def shares(audit: Audit, middle: int | None) -> tuple[Share, ...]:
    """The parts of the whole at the headline radius; none when they contradict one another or there is no whole."""
    total = audit.clean.total
    if middle is None or not total:
        return ()
    point = audit.curve[middle]
    attacked = point.attacked.count if point.attacked else audit.clean.count
    parts: list[tuple[Standing, int]] = [
        ("certified", point.certified.count),
        ("open", attacked - point.certified.count),
        ("broken", audit.clean.count - attacked),
        ("misclassified", total - audit.clean.count),
    ]
    if any(count < 0 for _, count in parts):
        return ()
    found, start = [], 0.0
    for name, count in parts:
        width = 1000 * count / total
        found.append(Share(name, count, round(start, 2), round(width, 2)))
        start += width
    return tuple(found)


def not_shown(audit: Audit) -> tuple[str, ...]:
    """What a reader may not conclude, in sentences that follow from the record alone."""
    norm = NORMS[audit.threat.norm]
    largest = max(audit.threat.eps, key=lambda eps: eps.value)
    sentences = [
        f"Nothing about changes beyond {norm} distance {largest.text}, or of another kind: blur, rotation, weather, wear.",
        "Between a certified radius and the smallest attack found nothing is known. An attack that finds nothing proves nothing.",
        f"The intervals speak of other inputs only if these {audit.data.count} samples were drawn from them independently.",
        "No conformity with a standard or a law. This is evidence for those who judge that.",
    ]
    if audit.claim == "exact arithmetic":
        sentences.insert(
            1, "Nothing is proved of rounding: the claim is for exact arithmetic, and the deployed program rounds."
        )
    if audit.campaign is None:
        sentences.insert(0, "No attack was run, so nothing has tried to refute the certificate.")
    return tuple(sentences)


def commands(audit: Audit) -> tuple[str, ...]:
    """The commands that make this audit again, quoted for a shell; CHECKPOINT and DIR are the reader's own."""
    eps = ",".join(eps.text for eps in audit.threat.eps)
    job, suite, device = "certify", "", audit.environment.device
    if audit.campaign:
        job, device = "audit", audit.campaign.device
        suite = f" --suite {shlex.quote(audit.campaign.suite)} --seed {audit.campaign.seed}"
    again = (
        f"certkit {job} CHECKPOINT --data {shlex.quote(audit.data.name)} --split {shlex.quote(audit.data.split)}"
        f" --limit {audit.data.count} --norm {audit.threat.norm} --eps {shlex.quote(eps)}{suite}"
        f" --device {shlex.quote(device)} --threads {audit.environment.threads} --out DIR"
    )
    return (
        "sha256sum CHECKPOINT/model.safetensors",
        again,
        "python -m certkit.bounds.ledger DIR/certificate.json",
    )
