"""A cross-check beside the certificate that it belongs to. No torch here."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.ledger import Ledger
from certkit.certified import Certified
from certkit.crosscheck.agreement import SLACK, against, agreement, verified_radii
from certkit.errors import RecordError, one_line
from certkit.files import load
from certkit.records import Certificate, Rate
from certkit.records.crosscheck import CrossCheck, CrossView, Method, MethodName

NAME = "crosscheck.json"
TIGHTNESS = get_args(MethodName)  # from the loosest to the tightest, whatever the order they were asked in


def load_crosscheck(directory: Path, certificate: Certificate, table: Certified, ledger: Ledger) -> CrossCheck | None:
    """The cross-check in a certificate's folder, None where there is none.

    Raises RecordError for one that is malformed, that speaks of another network, graph, threat or other samples, or that
    contradicts itself. Its figures are as stated: only ``certkit crosscheck`` comes to them again.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    found = load(CrossCheck, path)
    rows = tuple(table.index[: found.samples].tolist())
    pairs: dict[str, tuple[object, object]] = {
        "checkpoint": (found.subject.sha256, certificate.subject.sha256),
        "graph": (found.program_sha256, certificate.program_sha256),
        "samples": (found.data.sha256, certificate.data.sha256),
        "norm": (found.threat.norm, certificate.threat.norm),
        "box": (found.threat.box, certificate.threat.box),
        "rows": ((found.samples, found.lirpa.indices), (len(rows), rows)),
        "norm for auto_LiRPA": (found.lirpa.norm, certificate.threat.norm),
        "box for auto_LiRPA": (found.lirpa.box, certificate.threat.box),
    }
    if found.smoothing is not None:
        labels = tuple(table.label[: found.samples].tolist())
        pairs["checkpoint for smoothing"] = (found.smoothing.plan.subject.sha256, certificate.subject.sha256)
        pairs["rows for smoothing"] = (
            tuple((one.index, one.label) for one in found.smoothing.samples),
            tuple(zip(rows, labels, strict=True)),
        )
        if found.smoothing.attacks is not None:
            pairs["rows for the attack on smoothing"] = (tuple(one.index for one in found.smoothing.attacks), rows)
    if differ := [what for what, (here, there) in pairs.items() if here != there]:
        raise RecordError(f"{NAME}: is of another {differ[0]} than certificate.json; run certkit crosscheck again")
    known, named = {step.node for step in ledger.steps}, Counter(one.node for one in found.slopes)
    if strange := [node for node, times in named.items() if node not in known or times > 1]:
        raise RecordError(
            f"{NAME}: slopes: {one_line(strange[0], 80)!r} is no operator of the ledger, or stands twice; "
            "run certkit crosscheck again"
        )
    _agrees(found)
    return found


def _agrees(found: CrossCheck) -> None:
    """Raises RecordError for a count that is not that of the samples beside it."""
    counts: dict[str, tuple[tuple[int, int], int]] = {}
    for method in found.lirpa.methods:
        for place, bounded in enumerate(method.bounds):
            counts[f"{method.name} at {bounded.eps.text}"] = (
                _pair(bounded.verified),
                int(_verified(method, place).sum()),
            )
    if (smoothing := found.smoothing) is not None:
        right = [one for one in smoothing.samples if one.predicted == one.label]
        silent = sum(one.predicted is None for one in smoothing.samples)
        counts["smoothing: accurate"] = _pair(smoothing.accurate), len(right)
        counts["smoothing: abstained"] = (smoothing.abstained, found.samples), silent
        for point in smoothing.certified:
            above = sum(one.radius > point.eps.value for one in right)
            counts[f"smoothing at {point.eps.text}"] = _pair(point.certified), above
    if wrong := [what for what, (stated, count) in counts.items() if stated != (count, found.samples)]:
        raise RecordError(f"{NAME}: {wrong[0]}: its count is not that of its samples; run certkit crosscheck again")


def _pair(share: Rate) -> tuple[int, int]:
    return share.count, share.total


def too_steep(found: CrossCheck, ledger: Ledger) -> tuple[str, ...]:
    """The operators at which a slope was attained that the ledger's gain forbids: each disproves the ledger."""
    gains = {step.node: step.bound.within(step.bound.axes).gain.value for step in ledger.steps}
    return tuple(one.node for one in found.slopes if Decimal(one.slope) > gains[one.node])


def view(found: CrossCheck, ledger: Ledger, table: Certified, distance: NDArray[np.float64]) -> CrossView:
    """What the report shows of it: counts beside certkit's own, and every rung of every sample.

    ``distance`` (N,) is that of the nearest error on each sample of the certificate, inf where none was found. The ladder
    shows the tightest method that nothing spoke against; every such method is held against the attack.
    """
    rows = slice(0, found.samples)
    radius = np.where(table.correct, table.radius, 0.0)[rows]
    trusted = [method for method in found.lirpa.methods if method.trusted]
    best = max(trusted, key=lambda method: TIGHTNESS.index(method.name), default=None)
    smoothing = found.smoothing
    smoothed = reached = None
    if smoothing is not None:
        right = [one.predicted == one.label for one in smoothing.samples]
        smoothed = np.where(right, [one.radius for one in smoothing.samples], 0.0)
        if smoothing.attacks is not None:
            reached = np.array([np.nan if one.distance is None else one.distance for one in smoothing.attacks])
    nearest = np.where(np.isfinite(distance[rows]), distance[rows], np.nan)
    ladder = agreement(
        found.lirpa.indices,
        certkit=radius,
        lirpa=None if best is None else verified_radii(best),
        attack=nearest,
        smoothing=smoothed,
        smoothing_attack=reached,
        method=None if best is None else best.name,
        slack=SLACK,
    )
    others = [
        agreement(found.lirpa.indices, lirpa=verified_radii(method), attack=nearest, method=method.name, slack=SLACK)
        for method in trusted
        if method is not best
    ]
    return CrossView(
        version=found.lirpa.version,
        message=found.lirpa.message,
        methods=tuple(method.model_copy(update={"bounds": (), "radii": None}) for method in found.lirpa.methods),
        against=tuple(
            against(bounded.eps, method.name, radius >= bounded.eps.value, _verified(method, place))
            for method in trusted
            for place, bounded in enumerate(method.bounds)
        ),
        too_steep=too_steep(found, ledger),
        agreement=ladder.model_copy(
            update={"contradictions": sum((one.contradictions for one in others), ladder.contradictions)}
        ),
        smoothing=None if smoothing is None else smoothing.model_copy(update={"samples": (), "attacks": None}),
        costs=found.provenance.costs,
    )


def _verified(method: Method, place: int) -> NDArray[np.bool_]:
    return np.array([margin is not None and margin > 0 for margin in method.bounds[place].margins], np.bool_)
