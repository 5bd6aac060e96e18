"""The pictures of samples as the page shows them: what each one is called, and how far certificate and attack reach."""

from __future__ import annotations

from dataclasses import dataclass

from certkit.records import Audit, Picture
from certkit.records.pictures import MOST

from .columns import column
from .findings import Findings, Row, class_name

FIRST = 6  # cards that are not folded
FINE = 96  # pixels from which a picture is not shown enlarged, so that its pixels need not stay square
WIDTH = 1000  # of a ladder, in the units of its drawing


@dataclass(frozen=True, slots=True)
class Card:
    """One sample with its pictures. ``told`` are their texts for who does not see them: input, adversarial example, difference.

    ``certified`` and ``attacked`` are places on a ladder that all cards share, None where no number can be placed.
    ``linked``: the row of the sample stands on the page without a script.
    """

    picture: Picture
    row: Row
    becomes: str
    factor: str
    told: tuple[str, str, str]
    certified: int | None
    attacked: int | None
    linked: bool


@dataclass(frozen=True, slots=True)
class Gallery:
    """All cards: the ``first``, from the nearest example to the farthest, and the ``folded``, the smallest gap first.

    ``inside``: an example lies inside its certified radius. ``rungs`` are the places of the radii asked for on every ladder.
    """

    first: tuple[Card, ...]
    folded: tuple[Card, ...]
    inside: bool
    rungs: tuple[int, ...]
    sentence: str
    width: int
    height: int
    fine: bool

    @classmethod
    def of(cls, audit: Audit, found: Findings) -> Gallery:
        held, rows = audit.pictures, {row.sample.index: row for row in found.every}
        known = [(one, rows[one.index]) for one in held.shown]
        reach = max([0.0, *(row.sample.distance or 0.0 for _, row in known), *(row.sample.radius for _, row in known)])
        here = {row.sample.index for row in found.rows}
        cards = tuple(_card(audit, found, one, row, reach, row.sample.index in here) for one, row in known)
        first = _first(cards)
        _, height, width = held.shown[0].shape if held.shown else (1, 1, 1)
        return cls(
            first=first,
            folded=tuple(one for one in cards if one not in first),
            inside=any(one.row.standing == "contradicted" for one in cards),
            rungs=tuple(place for eps in audit.threat.eps if (place := _place(eps.value, reach)) is not None),
            sentence=_sentence(audit),
            width=width,
            height=height,
            fine=max(width, height) > FINE,
        )


def _card(audit: Audit, found: Findings, picture: Picture, row: Row, reach: float, linked: bool) -> Card:
    sample, factor = row.sample, f"{picture.factor:g}"
    becomes = class_name(audit, picture.becomes)
    moved = column(sample.distance or 0.0, "up", found.decimals["radius"])
    return Card(
        picture=picture,
        row=row,
        becomes=becomes,
        factor=factor,
        told=(
            f"sample {sample.index}, labelled {row.label}",
            f"adversarial example, predicted {becomes}, moved by {moved}",
            f"difference, shown {factor} times as strong, grey where nothing changed",
        ),
        certified=_place(sample.radius, reach),
        attacked=_place(sample.distance or 0.0, reach),
        linked=linked,
    )


def _first(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    """Contradictions as far as there is room, and then of the other cards some, spread evenly from near to far."""
    inside = [one for one in cards if one.row.standing == "contradicted"][:FIRST]
    others = sorted((one for one in cards if one.row.standing != "contradicted"), key=_distance)
    room = min(FIRST - len(inside), len(others))
    spread = [others[step * (len(others) - 1) // max(room - 1, 1)] for step in range(room)]
    return tuple(sorted([*inside, *spread], key=_distance))


def _distance(card: Card) -> float:
    return card.row.sample.distance or 0.0


def _place(value: float, reach: float) -> int | None:
    return round(WIDTH * (value / reach)) if 0 <= value <= reach and reach > 0 else None


def _sentence(audit: Audit) -> str:
    """Which samples are shown, of which."""
    shown, broken = len(audit.pictures.shown), audit.pictures.broken
    if shown == broken:
        whose = f"all {shown} samples" if shown > 1 else "the one sample"
        return f"Pictures of {whose} that an attack changed."
    whose = (
        f"the {shown} samples with the smallest gap between proof and attack"
        if shown > 1
        else "the sample with the smallest gap between proof and attack"
    )
    room = "" if shown == MOST else "; for more the page has no room"
    return f"Pictures of {whose}, of {broken} that an attack changed{room}."
