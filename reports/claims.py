"""The two claims of a certificate as the page speaks of them: of the exact function, and of the program that rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from certkit.records import Audit, CertifiedAt

from .rounding import exact


@dataclass(frozen=True, slots=True)
class Claims:
    """Which claim is made and which is refuted, and where the record holds each figure of the table of claims.

    ``refuted``: the one about exact arithmetic. ``execution_refuted``: the one about the float execution, which falls alone
    or with the other. ``executed`` and ``boxed`` give, for each point of the curve, the place of the same radius in
    ``execution.certified`` and in ``without_local.certified``; None where the record holds none.
    """

    refuted: bool
    claimed: bool
    execution_refuted: bool
    executed: tuple[int | None, ...]
    boxed: tuple[int | None, ...]

    @classmethod
    def of(cls, audit: Audit) -> Claims:
        claimed = audit.execution.pair_error is not None
        refuted = exact_refuted(audit)
        fallen = audit.verdict == "REFUTED" and any(c.refutes == "float execution" for c in audit.contradictions)
        return cls(
            refuted=refuted,
            claimed=claimed,
            # what is proved of the program was derived from the same ledger of rules, so it falls with the exact claim
            execution_refuted=claimed and (fallen or refuted),
            executed=_places(audit, audit.execution.certified if claimed else ()),
            boxed=_places(audit, audit.without_local.certified),
        )


def exact_refuted(audit: Audit) -> bool:
    """Whether the claim about exact arithmetic is refuted: also where a refuted audit does not say by what."""
    kinds = {one.refutes for one in audit.contradictions}
    stated = (
        () if audit.crosscheck is None else audit.crosscheck.too_steep
    )  # exactly; the rows are rounded, and in l2 only
    too_steep = stated or any(row.attained is not None and _above(row.attained, row.gain) for row in audit.ledger)
    too_large = audit.health is not None and audit.health.too_large
    return audit.verdict == "REFUTED" and (
        "exact arithmetic" in kinds or "float execution" not in kinds or bool(too_steep or too_large)
    )


def _above(attained: str, gain: str) -> bool:
    """Whether a slope was attained that the gain forbids; a text that is no number says nothing."""
    try:
        return exact(attained) > exact(gain)
    except ValueError:
        return False


def rounding(audit: Audit) -> str:
    """What may not be concluded about rounding, in one sentence."""
    arithmetic, claims = audit.execution.arithmetic, Claims.of(audit)
    if not claims.claimed:
        return "Nothing is proved of rounding: the claim is for exact arithmetic, and the deployed program rounds."
    if claims.execution_refuted:
        return f"Nothing of rounding: what was claimed of the {arithmetic} execution is refuted."
    return (
        f"Nothing about a program that runs otherwise than the claim about its {arithmetic} execution assumes: another "
        "precision, machine or batch rounds differently."
    )


def _places(audit: Audit, held: Sequence[CertifiedAt]) -> tuple[int | None, ...]:
    at = {one.eps.value: place for place, one in enumerate(held)}
    return tuple(at.get(point.eps.value) for point in audit.curve)
