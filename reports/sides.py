"""Two audits side by side: what became of every sample, and whether the difference is more than chance. No torch here.

    FIRST/audit.json + SECOND/audit.json  --compare-->  compared.json, compared.html

Samples are paired only where both audits name the same data by digest; otherwise the totals stand alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from certkit.errors import RecordError, Tampered, one_line
from certkit.files import canonical, digest, load
from certkit.records import Audit, Count, Data, Eps, Rate, Record, Sample, Sha256, Subject, Verdict

from .claims import Claims
from .health import Inside

Fate = Literal["regressed", "improved", "same"]


class Within(Record):
    """The largest numbers inside one network and in its training; None where there is no such number.

    Entries and attention logits were seen on the samples, and are certified for every input; ``held`` names the formats that
    no input exceeds. Norms over caps, spikes and gradients are those of the training run, over all that it recorded.
    """

    seen: Annotated[float, Field(ge=0)]
    certified: str
    logit_seen: Annotated[float, Field(ge=0)] | None
    logit_certified: str | None
    held: tuple[str, ...]
    norm_over_cap: Annotated[float, Field(ge=0)] | None
    spikes: Count | None
    gradient_norm: Annotated[float, Field(ge=0)] | None


class Side(Record):
    """One audit in a few figures. ``refuted``: its certified figures are claims that an example disproves.

    ``inside`` is None where nothing was measured inside the network.
    """

    audit_sha256: Sha256
    verdict: Verdict
    verdict_reason: str
    refuted: bool
    subject: Subject
    data: Data
    clean: Rate
    median_radius: Annotated[float, Field(ge=0)]
    median_distance: Annotated[float, Field(ge=0)] | None
    inside: Within | None


class Split(Record):
    """Samples that one audit certifies and the other does not, and the exact two-sided p-value of McNemar 1947.

    The p-value is the chance of a split at least as uneven if neither network were the more certifiable.
    """

    only_first: Count
    only_second: Count
    p_value: Annotated[float, Field(ge=0, le=1)]


class Point(Record):
    """Both audits at one radius. ``split`` is None where samples are not paired or a side is refuted."""

    eps: Eps
    certified: tuple[Rate, Rate]
    executed: tuple[Rate | None, Rate | None]
    attacked: tuple[Rate | None, Rate | None]
    split: Split | None


class Change(Record):
    """One sample in both audits; a radius is 0 where it is misclassified or nothing is proved."""

    index: Count
    label: Count
    predicted: tuple[Count, Count]
    radius: tuple[float, float]
    distance: tuple[float | None, float | None]
    fate: Fate


class Compared(Record):
    """What two audits say of two networks. ``unpaired`` says why samples are not compared one by one, None where they are.

    ``changes`` hold every sample whose prediction or radius differs, regressions first, the largest loss of radius on top.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.compared"] = "certkit.compared"
    norm: str
    first: Side
    second: Side
    points: tuple[Point, ...]
    unpaired: str | None
    changes: tuple[Change, ...]
    regressed: Count
    improved: Count
    same: Count


def compare(first: Audit, second: Audit) -> Compared:
    """Set two audits side by side.

    Raises RecordError where their threats have another norm or box, or no common radius, Tampered where an audit states
    other counts than its own samples give.
    """
    one, two = first.threat, second.threat
    if (one.norm, one.box) != (two.norm, two.box):
        raise RecordError(
            f"the first audit is in {one.norm} on {one.box}, the second in {two.norm} on {two.box}; their radii cannot be "
            "compared: audit both under one threat"
        )
    there = {point.eps.value: at for at, point in enumerate(second.curve)}
    common = [(at, there[point.eps.value]) for at, point in enumerate(first.curve) if point.eps.value in there]
    if not common:
        radii = " and ".join(", ".join(point.eps.text for point in audit.curve) for audit in (first, second))
        raise RecordError(f"no radius stands in both audits ({radii}); audit both with one --eps")
    for audit in (first, second):
        _same_counts(audit)
    unpaired = _unpaired(first, second)
    changes = () if unpaired else tuple(_change(a, b) for a, b in zip(first.samples, second.samples, strict=True))
    fates = [change.fate for change in changes]
    return Compared(
        norm=one.norm,
        first=_side(first),
        second=_side(second),
        points=tuple(_point(first, second, here, other, paired=unpaired is None) for here, other in common),
        unpaired=unpaired,
        changes=tuple(sorted((c for c in changes if _differs(c)), key=_order)),
        regressed=fates.count("regressed"),
        improved=fates.count("improved"),
        same=fates.count("same"),
    )


def read(directory: Path) -> Audit:
    """The audit of a folder. Raises RecordError where there is none."""
    source = Path(directory) / "audit.json"
    if not source.is_file():
        raise RecordError(f"{one_line(directory)}: no audit.json here; expected a folder that certkit audit wrote")
    return load(Audit, source)


def _side(audit: Audit) -> Side:
    return Side(
        audit_sha256=digest(canonical(audit).encode()),
        refuted=Claims.of(audit).refuted,
        inside=_within(audit),
        **{
            name: getattr(audit, name)
            for name in ("verdict", "verdict_reason", "subject", "data", "clean", "median_radius", "median_distance")
        },
    )


def _within(audit: Audit) -> Within | None:
    places = Inside.of(audit)
    if places is None or audit.health is None:
        return None
    health, run = audit.health, audit.health.training
    return Within(
        seen=health.parts[places.measured].measured,
        certified=health.parts[places.certified].certified,
        logit_seen=None if places.scored is None else health.scores[places.scored].measured,
        logit_certified=None if places.bounded is None else health.scores[places.bounded].certified,
        held=tuple(fit.name for fit in health.fits if fit.fits),
        norm_over_cap=None if run is None else run.steps.largest_norm_over_cap,
        spikes=None if run is None else run.steps.spikes,
        gradient_norm=None if run is None else run.steps.largest_gradient_norm,
    )


def _unpaired(first: Audit, second: Audit) -> str | None:
    if first.data.sha256 != second.data.sha256:
        return "the two audits are of other samples (their digests differ), so only the totals are compared"
    same = [(a.index, a.label) for a in first.samples] == [(b.index, b.label) for b in second.samples]
    if not same or len(first.samples) != first.clean.total:
        return "the two audits do not record the same samples one by one, so only the totals are compared"
    return None


def _same_counts(audit: Audit) -> None:
    """What an audit states at a radius must be what its samples give, where it records them all."""
    if len(audit.samples) != audit.clean.total:
        return
    for point in audit.curve:
        held = sum(_certified(sample, point.eps.value) for sample in audit.samples)
        if point.eps.value > 0 and held != point.certified.count:
            raise Tampered(
                f"audit.json: states {point.certified.count} certified at {one_line(point.eps.text, 40)}, its samples give "
                f"{held}; run certkit report again"
            )


def _certified(sample: Sample, eps: float) -> bool:
    return sample.label == sample.predicted and sample.radius >= eps


def _point(first: Audit, second: Audit, here: int, other: int, *, paired: bool) -> Point:
    points = (first.curve[here], second.curve[other])
    claims = (Claims.of(first), Claims.of(second))
    places = (claims[0].executed[here], claims[1].executed[other])
    eps = points[0].eps.value
    testable = paired and eps > 0 and not any(claim.refuted for claim in claims)
    return Point(
        eps=points[0].eps,
        certified=(points[0].certified, points[1].certified),
        executed=(
            None if places[0] is None else first.execution.certified[places[0]].certified,
            None if places[1] is None else second.execution.certified[places[1]].certified,
        ),
        attacked=(points[0].attacked, points[1].attacked),
        split=_split(first, second, eps) if testable else None,
    )


def _split(first: Audit, second: Audit, eps: float) -> Split:
    from scipy.stats import binomtest

    held = [(_certified(a, eps), _certified(b, eps)) for a, b in zip(first.samples, second.samples, strict=True)]
    only_first, only_second = held.count((True, False)), held.count((False, True))
    total = only_first + only_second
    p_value = min(1.0, float(binomtest(only_first, total).pvalue)) if total else 1.0
    return Split(only_first=only_first, only_second=only_second, p_value=p_value)


def _change(a: Sample, b: Sample) -> Change:
    right = (a.label == a.predicted, b.label == b.predicted)
    lost = (right[0] and not right[1]) or (right == (True, True) and b.radius < a.radius)
    won = (right[1] and not right[0]) or (right == (True, True) and b.radius > a.radius)
    return Change(
        index=a.index,
        label=a.label,
        predicted=(a.predicted, b.predicted),
        radius=(a.radius, b.radius),
        distance=(a.distance, b.distance),
        fate="regressed" if lost else "improved" if won else "same",
    )


def _differs(change: Change) -> bool:
    return change.fate != "same" or change.predicted[0] != change.predicted[1]


def _order(change: Change) -> tuple[int, bool, float, int]:
    """Regressions, then the rest; a lost class before a lost radius, the largest loss first."""
    rank = {"regressed": 0, "same": 1, "improved": 2}[change.fate]
    return rank, change.predicted[0] == change.predicted[1], change.radius[1] - change.radius[0], change.index
