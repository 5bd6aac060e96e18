"""A cross-check beside the certificate that it belongs to. No torch here."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.ledger import Ledger
from certkit.certified import Certified
from certkit.crosscheck.agreement import SLACK, against, agreement, verified_radii
from certkit.errors import RecordError
from certkit.files import load
from certkit.records import Certificate
from certkit.records.crosscheck import CrossCheck, CrossView, Method

NAME = "crosscheck.json"


def load_crosscheck(directory: Path, certificate: Certificate, table: Certified) -> CrossCheck | None:
    """The cross-check in a certificate's folder, None where there is none.

    Raises RecordError for one that is malformed, or that speaks of another network, graph, threat or other samples.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    found = load(CrossCheck, path)
    pairs = {
        "checkpoint": (found.subject.sha256, certificate.subject.sha256),
        "graph": (found.program_sha256, certificate.program_sha256),
        "samples": (found.data.sha256, certificate.data.sha256),
        "norm": (found.threat.norm, certificate.threat.norm),
        "box": (found.threat.box, certificate.threat.box),
        "rows": (found.lirpa.indices, tuple(table.index[: found.samples].tolist())),
    }
    if differ := [what for what, (here, there) in pairs.items() if here != there]:
        raise RecordError(f"{NAME}: is of another {differ[0]} than certificate.json; run certkit crosscheck again")
    return found


def too_steep(found: CrossCheck, ledger: Ledger) -> tuple[str, ...]:
    """The operators at which a slope was attained that the ledger's gain forbids: each disproves the ledger."""
    gains = {step.node: step.bound.within(step.bound.axes).gain.value for step in ledger.steps}
    return tuple(one.node for one in found.slopes if one.node in gains and Decimal(one.slope) > gains[one.node])


def view(found: CrossCheck, certificate: Certificate, table: Certified, distance: NDArray[np.float64]) -> CrossView:
    """What the report shows of it: counts beside certkit's own, and every rung of every sample.

    ``distance`` (N,) is that of the nearest attack on each sample of the certificate, inf where none succeeded.
    """
    rows = slice(0, found.samples)
    radius = np.where(table.correct, table.radius, 0.0)[rows]
    trusted = [method for method in found.lirpa.methods if method.trusted]
    best = trusted[-1] if trusted else None  # methods come from the loosest to the tightest
    smoothing = found.smoothing
    smoothed = reached = None
    if smoothing is not None:
        right = [one.predicted == one.label for one in smoothing.samples]
        smoothed = np.where(right, [one.radius for one in smoothing.samples], 0.0)
        if smoothing.attacks is not None:
            reached = np.array([np.nan if one.distance is None else one.distance for one in smoothing.attacks])
    nearest = distance[rows]
    return CrossView(
        version=found.lirpa.version,
        message=found.lirpa.message,
        methods=tuple(method.model_copy(update={"bounds": (), "radii": None}) for method in found.lirpa.methods),
        against=tuple(
            against(bounded.eps, method.name, radius >= bounded.eps.value, _verified(method, place))
            for method in trusted
            for place, bounded in enumerate(method.bounds)
        ),
        agreement=agreement(
            found.lirpa.indices,
            certkit=radius,
            lirpa=None if best is None else verified_radii(best),
            attack=np.where(np.isfinite(nearest), nearest, np.nan),
            smoothing=smoothed,
            smoothing_attack=reached,
            method=None if best is None else best.name,
            slack=SLACK,
        ),
        smoothing=None if smoothing is None else smoothing.model_copy(update={"samples": (), "attacks": None}),
        costs=found.provenance.costs,
    )


def _verified(method: Method, place: int) -> NDArray[np.bool_]:
    return np.array([margin is not None and margin > 0 for margin in method.bounds[place].margins])
