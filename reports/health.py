"""What the page says of a network's insides beyond what the record holds as it is: which numbers stand out, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from certkit.records import Audit
from certkit.records.health import HealthView, Largest, Spectrum

from .rounding import exact

UNMEASURED = "Nothing was measured inside this network: certkit certify and certkit audit do, and write health.json."
PANELS = 60  # small spectra in one figure; the table has all


@dataclass(frozen=True, slots=True)
class Inside:
    """Places in ``audit.health``: of the largest entries and logits, of the weight nearest its cap, and what is drawn.

    ``measured`` and ``certified`` are places among ``parts``, ``scored`` and ``bounded`` among ``scores``. ``full`` is the
    place among ``spectra`` of the largest proved norm per cap. ``drawn`` are the places of the spectra of the figure.
    """

    measured: int
    certified: int
    scored: int | None
    bounded: int | None
    full: int | None
    capped: int
    skipped: int
    drawn: tuple[int, ...]

    @classmethod
    def of(cls, audit: Audit) -> Inside | None:
        """None where nothing was measured."""
        health = audit.health
        if health is None or not health.parts:
            return None
        capped = [place for place, one in enumerate(health.spectra) if one.cap]
        return cls(
            measured=largest(health.parts)[0],
            certified=largest(health.parts)[1],
            scored=largest(health.scores)[0] if health.scores else None,
            bounded=largest(health.scores)[1] if health.scores else None,
            full=max(capped, key=lambda place: over_cap(health.spectra[place]) or 0.0, default=None),
            capped=len(capped),
            skipped=sum(one.skipped is not None for one in health.spectra),
            drawn=drawn(health),
        )


def largest(parts: Sequence[Largest]) -> tuple[int, int]:
    """The places of the largest measured and of the largest certified entry."""
    places = range(len(parts))
    return max(places, key=lambda at: parts[at].measured), max(places, key=lambda at: size(parts[at].certified))


def size(text: str) -> Decimal:
    """A certified size as a number; 0 for a text that is none, for a record may hold anything."""
    try:
        return exact(text)
    except ValueError:
        return Decimal(0)


def over_cap(one: Spectrum) -> float | None:
    """The proved norm as a share of the cap, None without one."""
    return one.proved / one.cap if one.cap else None


def line_of(one: Spectrum) -> float:
    """What a spectrum is drawn against: its cap, or the proved norm without one."""
    return one.cap if one.cap is not None else one.proved


def drawn(health: HealthView) -> tuple[int, ...]:
    """The first spectra that have values, and a line above 0 to be drawn against."""
    held = [place for place, one in enumerate(health.spectra) if one.values and line_of(one) > 0]
    return tuple(held[:PANELS])
