"""Where independent methods agree: pure functions on arrays, and no method's word is final here but arithmetic's.

Three laws, each within one classifier: certkit's radius is at most the distance of the nearest attack; auto_LiRPA's is, up
to a stated slack, as its arithmetic is not rounded outward; the smoothed classifier's is at most the distance of the nearest
attack *on the smoothed classifier*, which may fail with its alpha. Nothing orders certkit against auto_LiRPA, and smoothing
never meets the base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from certkit.records import Eps
from certkit.records.crosscheck import Against, AgreementView, Contradiction, Ladder, Method, MethodName, Pair, Rung
from certkit.statistics import rate

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

SLACK = 1e-9  # of auto_LiRPA's radius


def agreement(
    indices: Sequence[int],
    *,
    certkit: Floats | None = None,
    lirpa: Floats | None = None,
    attack: Floats | None = None,
    smoothing: Floats | None = None,
    smoothing_attack: Floats | None = None,
    method: str | None = None,
    slack: float = SLACK,
) -> AgreementView:
    """Every rung of every sample and all contradictions, from radii and distances in one norm, one per index.

    NaN is a rung that a sample lacks, None one that nobody measured. A radius contradicts a distance that is below it,
    auto_LiRPA's when it is below by more than ``slack`` of it: a certified ball does not hold its own boundary.
    """
    count = len(indices)
    rungs = {
        "certkit": certkit,
        "auto_LiRPA": lirpa,
        "attack": attack,
        "smoothing": smoothing,
        "smoothing attack": smoothing_attack,
    }
    values = {name: np.full(count, np.nan) if given is None else given for name, given in rungs.items()}
    for name, given in values.items():
        if given.shape != (count,):
            raise ValueError(f"{name} holds {given.shape} values; expected one for each of {count} samples")
    laws: tuple[tuple[Pair, str, str, str, float], ...] = (
        ("certkit above attack", "certkit", "certkit", "attack", 0.0),
        ("auto_LiRPA above attack", method or "auto_LiRPA", "auto_LiRPA", "attack", slack),
        ("smoothing above its own attack", "smoothing", "smoothing", "smoothing attack", 0.0),
    )
    found = [
        Contradiction(
            index=indices[int(row)],
            pair=pair,
            method=name,
            radius=float(values[low][row]),
            distance=float(values[high][row]),
            slack=allowed,
        )
        for pair, name, low, high, allowed in laws
        for row in np.flatnonzero(values[high] < values[low] * (1 - allowed))
    ]
    columns = {name: [_known(v) for v in given] for name, given in values.items()}
    return AgreementView(
        method=method,
        slack=slack,
        samples=tuple(
            Ladder(
                index=int(index),
                certkit=columns["certkit"][row],
                lirpa=columns["auto_LiRPA"][row],
                attack=columns["attack"][row],
                larger=_larger(columns["certkit"][row], columns["auto_LiRPA"][row]),
                smoothing=columns["smoothing"][row],
                smoothing_attack=columns["smoothing attack"][row],
            )
            for row, index in enumerate(indices)
        ),
        rungs=tuple(_rung(name, given) for name, given in values.items()),
        contradictions=tuple(found),
    )


def verified_radii(method: Method) -> Floats:
    """Per sample the largest radius at which the method verified it: its own radii, or the largest eps; 0 for none.

    NaN throughout where its bounds were seen to be wrong, or where it gave none: that is no radius at all.
    """
    count = len(method.radii) if method.radii is not None else len(method.bounds[0].margins) if method.bounds else 0
    if not method.trusted:
        return np.full(count, np.nan)
    best = np.zeros(count) if method.radii is None else np.array(method.radii)
    for bounded in method.bounds:
        verified = np.array([margin is not None and margin > 0 for margin in bounded.margins])
        best = np.where(verified, np.maximum(best, bounded.eps.value), best)
    return best


def against(eps: Eps, method: MethodName, certkit: Flags, lirpa: Flags) -> Against:
    """How many samples certkit certifies at eps, how many the method verifies, and where only one of them does."""
    if certkit.shape != lirpa.shape:
        raise ValueError(f"certkit and {method} hold {certkit.shape} and {lirpa.shape} samples; expected the same")
    total = len(certkit)
    return Against(
        eps=eps,
        method=method,
        certkit=rate(int(certkit.sum()), total),
        lirpa=rate(int(lirpa.sum()), total),
        both=int((certkit & lirpa).sum()),
        certkit_only=int((certkit & ~lirpa).sum()),
        lirpa_only=int((~certkit & lirpa).sum()),
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _larger(certkit: float | None, lirpa: float | None) -> Literal["certkit", "auto_LiRPA", "equal"] | None:
    if certkit is None or lirpa is None:
        return None
    return "equal" if certkit == lirpa else "certkit" if certkit > lirpa else "auto_LiRPA"


def _rung(name: str, values: Floats) -> Rung:
    known = values[np.isfinite(values)]
    return Rung.model_validate(
        {"name": name, "samples": len(known), "median": float(np.median(known)) if len(known) else None}
    )
