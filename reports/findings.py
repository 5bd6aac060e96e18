"""What the page says beyond what the record holds: standings, tallies, limits. All of it derived, none of it measured."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from certkit.files import canonical, digest
from certkit.records import Audit, Check, Sample

from .claims import Claims, rounding
from .rounding import decimals_for

Standing = Literal["contradicted", "certified", "open", "broken", "misclassified"]

MOST_ROWS = 2_000  # a browser sorts and prints these without waiting
FEWEST_ROWS = 200

BLOCK = 64  # what certkit attack uses, which has no option for it
CLEAN = "clean"  # how a contradiction names the sample itself, before any attack

_SEVERITY = {"fail": 0, "flag": 1, "not evaluated": 2, "pass": 3}
DRAWABLE = (1e-100, 1e100)
_BEYOND = f"lies beyond what a figure can show, {DRAWABLE[0]:g} to {DRAWABLE[1]:g}; the table holds the numbers."
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
    """Everything that the templates need and the record does not say in so many words.

    ``every`` sample has its row, in the order of the record; ``rows`` are those that stand on the page without a script.
    ``worse``: at some radius the attacks left less standing than is proved. ``cut``: without attention the network is
    constant. ``absent``: why a figure is missing, should it be. ``from_python``: no command has this campaign's block.
    """

    norm: str
    claims: Claims
    headline: int | None
    shares: tuple[Share, ...]
    broken: int
    every: tuple[Row, ...]
    rows: tuple[Row, ...]
    omitted: int
    decimals: dict[str, int | None]
    checks: tuple[Check, ...]
    tally: tuple[tuple[str, int], ...]
    not_shown: tuple[str, ...]
    worse: bool
    cut: bool
    absent: dict[str, str]
    threads: str
    commands: tuple[str, ...]
    from_python: bool
    audit_sha256: str

    @classmethod
    def of(cls, audit: Audit) -> Findings:
        middle = (len(audit.curve) - 1) // 2 if audit.curve else None
        every = [row(audit, sample, middle) for sample in known(audit)]
        shown = every if len(every) <= MOST_ROWS else sorted(every, key=_closeness)[:FEWEST_ROWS]
        tally: Counter[str] = Counter(check.status for check in audit.checks)
        return cls(
            norm=NORMS[audit.threat.norm],
            claims=Claims.of(audit),
            headline=middle,
            shares=shares(audit, middle),
            broken=sum(sample.distance is not None for sample in audit.samples),
            every=tuple(every),
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
            worse=any(point.attacked and point.attacked.count < point.certified.count for point in audit.curve),
            cut=cut(audit),
            absent=absent(audit),
            threads=threads(audit),
            commands=commands(audit),
            from_python=audit.campaign is not None and audit.campaign.block != BLOCK,
            audit_sha256=digest(canonical(audit).encode()),
        )


def known(audit: Audit) -> tuple[Sample, ...]:
    """The samples; one that the deployed program gets wrong unchanged, against its certificate, was broken at 0."""
    unchanged = {one.index for one in audit.contradictions if one.attack == CLEAN}
    return tuple(
        sample.model_copy(update={"distance": 0.0, "attack": CLEAN}) if sample.index in unchanged else sample
        for sample in audit.samples
    )


def correct(audit: Audit) -> list[Sample]:
    """The samples that the exact function gets right: the label strictly before every other class."""
    return [sample for sample in known(audit) if is_correct(sample)]


def is_correct(sample: Sample) -> bool:
    """A margin of 0 or less leaves open which class is on top, so such a sample counts as wrong."""
    return sample.label == sample.predicted and sample.margin > 0


def drawable(largest: float) -> bool:
    """Whether a figure can reach that far: matplotlib's own arithmetic over- and underflows outside ``DRAWABLE``."""
    return DRAWABLE[0] < largest < DRAWABLE[1]


def absent(audit: Audit) -> dict[str, str]:
    """Why each figure cannot be drawn, for those that cannot; the first reason that is true."""
    largest = max((point.eps.value for point in audit.curve), default=0.0)
    right = correct(audit)
    radii = [sample.radius for sample in right]
    hits = [sample.distance for sample in right if sample.distance is not None]
    whole = len(audit.samples) == audit.clean.total
    tests = {
        "curve": (
            (not audit.clean.total, "No sample was evaluated."),
            (not largest, "The record holds no radius above 0."),
            (not drawable(largest), f"eps {largest:.3g} {_BEYOND}"),
        ),
        "scatter": (
            (audit.campaign is None, "No attack campaign stands beside this certificate."),
            (not hits and not whole, "The record does not hold every sample, and none that was broken."),
            (not hits, "No attack succeeded on a correctly classified sample."),
            (not drawable(reach(audit)), f"A distance of {reach(audit):.3g} {_BEYOND}"),
        ),
        "histogram": (
            (not any(radii) and not whole, "The record does not hold every sample, and none with a radius above 0."),
            (not any(radii), "No correctly classified sample has a certified radius above 0."),
            (not drawable(max(radii, default=0.0)), f"A radius of {max(radii, default=0.0):.3g} {_BEYOND}"),
        ),
    }
    return {
        figure: next(reason for true, reason in rows if true)
        for figure, rows in tests.items()
        if any(true for true, _ in rows)
    }


def reach(audit: Audit) -> float:
    """The largest eps, radius or distance: how far the figure of radii against attacks must go."""
    found = [point.eps.value for point in audit.curve]
    for sample in correct(audit):
        found += [sample.radius, sample.distance or 0.0]
    return max(found, default=0.0)


def cut(audit: Audit) -> bool:
    """Whether the network without attention is constant: near chance, and proved to stay itself at every radius.

    Chance is 1 / classes. Accuracy alone would not do: a network with a way around its attention may fall as low.
    """
    removed = [one for one in audit.attention.ablations if one.name == "removed"] if audit.attention else []
    return any(
        one.clean.count * len(audit.data.classes) <= 2 * one.clean.total
        and one.clean.count < audit.clean.count
        and all(point.certified.count == one.clean.count for point in one.certified)
        for one in removed
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
    if not is_correct(sample):
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
    """The parts of the whole at the headline radius: each sample once; by the counts where not every sample is at hand.

    None when there is no whole, or when only counts are at hand and they contradict one another.
    """
    total = audit.clean.total
    if middle is None or not total:
        return ()
    point = audit.curve[middle]
    attacked = point.attacked.count if point.attacked else audit.clean.count
    parts: list[tuple[Standing, int]] = [
        ("contradicted", 0),
        ("certified", point.certified.count),
        ("open", attacked - point.certified.count),
        ("broken", audit.clean.count - attacked),
        ("misclassified", total - audit.clean.count),
    ]
    if len(audit.samples) == total:
        tally = Counter(standing(audit, sample, middle) for sample in known(audit))
        parts = [(name, tally[name]) for name, _ in parts]
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
    sentences.insert(1, rounding(audit))
    if audit.attention and not audit.attention.looks_at_content:
        sentences.append(
            "That attention selects by content: with its weights frozen at their mean the network does as well."
        )
    if audit.campaign is None:
        sentences.insert(0, "No attack was run, so nothing has tried to refute the certificate.")
    return tuple(sentences)


def threads(audit: Audit) -> str:
    """How many threads it takes to get the same bytes, as a reader says it."""
    mine = audit.environment.threads
    if audit.campaign and audit.campaign.threads != mine:
        return f"{_threads(mine)} to certify, {_threads(audit.campaign.threads)} to attack"
    return _threads(mine)


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def commands(audit: Audit) -> tuple[str, ...]:
    """The commands that make this audit again and check it, quoted for a shell; CHECKPOINT and DIR are the reader's own."""
    eps = ",".join(eps.text for eps in audit.threat.eps)
    campaign, here = audit.campaign, audit.environment

    def command(job: str, device: str, count: int, *, attacks: bool) -> str:
        suite = f" --suite {shlex.quote(campaign.suite)} --seed {campaign.seed}" if campaign and attacks else ""
        return (
            f"certkit {job} CHECKPOINT --data {shlex.quote(audit.data.name)} --split {shlex.quote(audit.data.split)}"
            f" --limit {audit.data.count} --norm {audit.threat.norm} --eps {shlex.quote(eps)}{suite}"
            f" --device {shlex.quote(device)} --threads {count} --out DIR"
        )

    pictured = f" --data {shlex.quote(audit.data.name)}" if audit.pictures.shown else ""
    if campaign is None:
        again = [command("certify", here.device, here.threads, attacks=False), "certkit report DIR"]
    elif campaign.threads == here.threads:
        again = [command("audit", campaign.device, here.threads, attacks=True)]
    else:
        again = [
            command("certify", here.device, here.threads, attacks=False),
            command("attack", campaign.device, campaign.threads, attacks=True),
            f"certkit report DIR --checkpoint CHECKPOINT{pictured}",
        ]
    return (
        "sha256sum CHECKPOINT/model.safetensors",
        *again,
        "python -m certkit.bounds.ledger DIR/certificate.json",
        f"certkit verify DIR --checkpoint CHECKPOINT --data {shlex.quote(audit.data.name)}",
    )
