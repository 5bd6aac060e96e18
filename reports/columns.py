"""All samples of an audit in one compact block: what the page's script sorts and filters, and gives back as JSON.

Numbers stand as the eight bytes of their float64, so that each is the record's own; the texts that the table shows are
rounded here, once, and not a second time by the script.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from certkit.errors import one_line
from certkit.records import Audit

from .findings import Findings, Row
from .rounding import Direction, fixed, significant

LONGEST = 2_000


def block(audit: Audit, found: Findings) -> dict[str, Any]:
    """The columns of ``audit.samples`` in their order, then what the table shows in each row.

    Integers are lists, float64 are base64 of little-endian bytes, NaN where no attack succeeded; an attack is its place in
    ``attacks``, -1 for none. ``unchanged`` are the places of samples that the program gets wrong before any attack, which
    the table shows as broken at 0.
    """
    samples = audit.samples
    attacks = sorted({one.attack for one in samples if one.attack is not None})
    place = {name: at for at, name in enumerate(attacks)}
    return {
        "index": [one.index for one in samples],
        "label": [one.label for one in samples],
        "predicted": [one.predicted for one in samples],
        "margin": packed(one.margin for one in samples),
        "radius": packed(one.radius for one in samples),
        "distance": packed(math.nan if one.distance is None else one.distance for one in samples),
        "attack": [-1 if one.attack is None else place[one.attack] for one in samples],
        "attacks": attacks,
        "unchanged": [
            at
            for at, (row, one) in enumerate(zip(found.every, samples, strict=True))
            if row.sample.distance != one.distance
        ],
        "shown": _shown(audit, found, attacks),
    }


def packed(values: Iterable[float]) -> str:
    """Float64 numbers as base64 of their little-endian bytes."""
    held = list(values)
    return base64.b64encode(struct.pack(f"<{len(held)}d", *held)).decode()


def column(value: float, direction: Direction, decimals: int | None) -> str:
    """A number of a column: with the column's decimals, or on its own where they would grow too many."""
    return significant(value, direction) if decimals is None else fixed(value, direction, decimals)


def missing(audit: Audit, row: Row) -> str:
    """What stands in place of a distance."""
    return "none found" if audit.campaign and row.sample.label == row.sample.predicted else "–"


def _shown(audit: Audit, found: Findings, attacks: Sequence[str]) -> dict[str, Any]:
    rows, decimals = found.every, found.decimals
    standings = sorted({row.standing for row in rows})
    names = {row.sample.label: row.label for row in rows} | {row.sample.predicted: row.predicted for row in rows}
    return {
        "margin": [column(row.sample.margin, "down", decimals["margin"]) for row in rows],
        "radius": [column(row.sample.radius, "down", decimals["radius"]) for row in rows],
        "distance": [
            missing(audit, row)
            if row.sample.distance is None
            else column(row.sample.distance, "up", decimals["radius"])
            for row in rows
        ],
        "gap": ["–" if row.gap is None else column(row.gap, "up", decimals["radius"]) for row in rows],
        "standing": [standings.index(row.standing) for row in rows],
        "standings": standings,
        "classes": {str(label): one_line(name, LONGEST) for label, name in names.items()},
        "attacks": [one_line(name, LONGEST) for name in attacks],
    }
