"""The figures of a comparison: accuracy against step, against learning rate, and certified beside attacked accuracy.

No figure is drawn with a name from a user's file: matplotlib draws a stand-in, and the finished text of the drawing gets
the name, escaped like everything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from certkit.comparison import Comparison, Row
from certkit.errors import one_line
from certkit.records import Eps

from .comparison_numbers import audited, course, finished, mean, radii_of, refuted, shares, tried
from .comparison_text import cut
from .figures import framed, label
from .svg import INKS, draw

NAME = 40  # columns of a name in a figure
LABELS = 292  # pixels beside a figure for the names
PANELS = 3  # radii side by side


@dataclass(frozen=True, slots=True)
class Mark:
    """How a row is told from the others: no two of 64 share ink, dashes and marker, and colour is never needed.

    ``outline`` is the marker for the legend, around (20, 7).
    """

    ink: str
    dashes: tuple[float, ...]
    marker: str
    outline: str

    @property
    def dasharray(self) -> str:
        return " ".join(f"{2 * length:g}" for length in self.dashes) or "none"


_INKED = ("certified", "attacked", "ink", "muted", "contradiction")
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.6), (1.2, 1.4), (6, 1.6, 1.2, 1.6))
_MARKERS = (
    ("o", "M16 7a4 4 0 1 0 8 0a4 4 0 1 0-8 0z"),
    ("s", "M16.5 3.5h7v7h-7z"),
    ("^", "M20 2.4l4.4 8h-8.8z"),
    ("D", "M20 2l5 5-5 5-5-5z"),
    ("v", "M20 11.6l4.4-8h-8.8z"),
    ("P", "M18.5 2.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"),
    ("<", "M15.4 7l8-4.4v8.8z"),
)


def mark(number: int) -> Mark:
    """The mark of the row with that number, from 0."""
    return Mark(_INKED[number % 5], _DASHES[number % 4], *_MARKERS[number % 7])


def span(values: Sequence[Fraction | float], room: float) -> tuple[int, int]:
    """The per cent that an axis may start and end at, so that the lowest share stands ``room`` of the axis above its start."""
    least, most = 100 * min(map(float, values), default=0.0), 100 * max(map(float, values), default=1.0)
    floor = max((f for f in _TICKS if least >= f + room * (100 - f)), default=0)
    return floor, min(top for top in _TOPS.get(floor, (100,)) if most <= top)


_TOPS = {0: (20, 40, 60, 80, 100), 25: (50, 75, 100)}  # where an axis that starts there may end; any other at 100
_TICKS = {0: 25, 25: 25, 50: 10, 70: 10, 80: 5, 90: 2, 95: 1}  # the step between ticks of an axis from there to 100


def curves(comparison: Comparison) -> str | None:
    """Validation accuracy against step, one line per row: the mean over the seeds, with a band from least to greatest."""
    found = [(i, course(row)) for i, row in enumerate(comparison.rows)]
    found = [(i, bands) for i, bands in found if bands]
    if not found:
        return None
    size = (1080.0, max(420.0, 110 + 18.0 * len(found)))
    floor, top = curves_span(comparison)
    last = max(bands[-1].at for _, bands in found)

    def paint(figure: Figure) -> None:
        axes = framed(figure, size, left=44, bottom=52, top=30, right=LABELS)
        _shares(axes, floor, top)
        axes.set_xlim(0, last or 1)
        label(axes, x="step", y="% right on held-out data")
        axes.plot([0, last or 1], [100 * comparison.target] * 2, color=INKS["muted"], linewidth=1.2, dashes=(1, 2))
        for i, bands in found:
            style, stride = mark(i), max(1, len(bands) // 6)
            at = [band.at for band in bands]
            axes.fill_between(
                at, [100 * float(band.low) for band in bands], [100 * float(band.high) for band in bands],
                color=INKS[style.ink], alpha=min(0.11, 0.8 / len(found)), linewidth=0,
            )  # fmt: skip
            axes.plot(
                at, [100 * float(band.mean) for band in bands], **_drawn(style), markersize=8,
                markevery=(i % stride, stride), clip_on=len(bands) > 1 or floor > 0,
            )  # fmt: skip
        ends = [max(100 * float(bands[-1].mean), floor) for _, bands in found]
        for (i, bands), end, place in zip(found, ends, spaced(ends, floor, top, size[1] - 82), strict=True):
            ink = INKS[mark(i).ink]
            beside = [bands[-1].at + pixels * (last or 1) / (size[0] - 44 - LABELS) for pixels in (6, 24, 30)]
            axes.plot(beside[:2], [end, place], color=ink, linewidth=1, clip_on=False)
            axes.text(beside[2], place, f"@{i}@", color=ink, va="center", ha="left")

    drawn = draw(
        "curves",
        "Validation accuracy against step",
        "One line per row at its chosen learning rate: the mean over the seeds, the band from the least seed to the "
        "greatest; the names stand at the right ends. The table below the figure holds the numbers.",
        size,
        paint,
    )
    return _named(drawn, [row.name for row in comparison.rows])


def curves_span(comparison: Comparison) -> tuple[int, int]:
    """Where the axis of the curves starts and ends: the best of every row and the target are in sight."""
    best = [max(band.mean for band in bands) for row in comparison.rows if (bands := course(row))]
    highest = [band.high for row in comparison.rows for band in course(row)]
    floor, _ = span([comparison.target, *best], room=0.3)
    return (floor, 100) if floor else (0, span([0, comparison.target, *highest], room=0)[1])


def rates(comparison: Comparison) -> str | None:
    """Validation accuracy against learning rate, one line per row; a cross at the lower edge for runs that failed."""
    found = [(i, tried(row)) for i, row in enumerate(comparison.rows)]
    places = [math.log10(one.learning_rate) for _, every in found for one in every]
    if not any(one.band for _, every in found for one in every):
        return None
    low, high = min(places), max(places)
    pad = 0.06 * (high - low) or 0.5
    floor, top = rates_span(comparison)
    failures = [(i, [one for one in every if one.failed]) for i, every in found if any(one.failed for one in every)]
    below = 24 + 17.0 * len(failures) if failures else 0.0
    size = (1080.0, 400 + below)

    def paint(figure: Figure) -> None:
        axes = framed(figure, size, left=44, bottom=52 + below, top=30, right=14)
        _shares(axes, floor, top)
        axes.set_xlim(low - pad, high + pad)
        label(axes, x="", y="% right on held-out data at the end")
        ticks = _powers(low - pad, high + pad)
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}")
        per_pixel = (top - floor) / (size[1] - 82 - below)
        for i, every in found:
            style = mark(i)
            ended = [(math.log10(one.learning_rate), one) for one in every if one.band]
            means = [100 * float(one.band.mean) for _, one in ended if one.band]
            axes.plot([x for x, _ in ended], means, **_drawn(style), markersize=9, clip_on=False, zorder=3)
            for x, one in ended:
                assert one.band
                axes.plot(
                    [x, x],
                    [100 * float(one.band.low), 100 * float(one.band.high)],
                    color=INKS[style.ink],
                    linewidth=1.2,
                )
                if one.chosen:
                    axes.plot(
                        [x], [100 * float(one.band.mean)], "o", markersize=16, markerfacecolor="none",
                        markeredgecolor=INKS[style.ink], markeredgewidth=1.4, clip_on=False, zorder=4,
                    )  # fmt: skip
        for line, (i, crosses) in enumerate(failures):
            at, y = [math.log10(one.learning_rate) for one in crosses], floor - per_pixel * (44 + 17 * line)
            ink = INKS[mark(i).ink]
            axes.plot(at, [y] * len(at), "x", color=ink, markersize=7, markeredgewidth=2, clip_on=False)
            right = max(at) > high - 0.3 * (high - low)
            axes.annotate(
                f"@{i}@", (min(at) if right else max(at), y), (-10 if right else 10, 0), textcoords="offset pixels",
                color=ink, fontsize=12, va="center", ha="right" if right else "left", annotation_clip=False,
            )  # fmt: skip
        if failures:
            axes.text(
                0, -44 / (size[1] - 82 - below), "failed", transform=axes.transAxes, color=INKS["muted"], va="center"
            )
        down = -(44 + below - 6 * bool(failures)) / (size[1] - 82 - below)
        axes.text(0.5, down, "learning rate", transform=axes.transAxes, color=INKS["muted"], ha="center", va="center")

    drawn = draw(
        "rates",
        "Validation accuracy against learning rate",
        "One line per row over the learning rates it was given, on a logarithmic axis: the mean over the seeds whose "
        "runs ended, with a stroke from the least to the greatest. The chosen rate is ringed. "
        + ("A cross below the axis is a rate at which runs failed. " if failures else "")
        + "The table below the figure holds the numbers.",
        size,
        paint,
    )
    return _named(drawn, [row.name for row in comparison.rows])


def rates_span(comparison: Comparison) -> tuple[int, int]:
    """Where the axis of the learning rates starts and ends: every run is in sight."""
    ends = [end for row in comparison.rows for one in tried(row) if one.band for end in (one.band.low, one.band.high)]
    return span(ends, room=0.08)


def bars(comparison: Comparison) -> tuple[str, ...]:
    """Certified and attacked accuracy of every row, three radii to a figure."""
    every = radii_of(comparison)
    if not any(row.proved for row in comparison.rows):
        return ()
    return tuple(
        _bars(comparison, every[i : i + PANELS], f"robust-{i // PANELS}") for i in range(0, len(every), PANELS)
    )


def _bars(comparison: Comparison, every: Sequence[Eps], name: str) -> str:
    rows = comparison.rows
    size = (1080.0, 92 + 30.0 * len(rows))

    def paint(figure: Figure) -> None:
        between, end = 28.0, 14.0
        width = (size[0] - LABELS - end + between) / len(every)
        for panel, eps in enumerate(every):
            left = LABELS + panel * width
            axes = framed(figure, size, left=left, bottom=52, top=36, right=size[0] - left - width + between)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", color=INKS["grid"], linewidth=0.9)
            axes.set_xlim(0, 100)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xticks([0, 25, 50, 75, 100])
            axes.set_yticks(range(len(rows)) if panel == 0 else [])
            axes.set_yticklabels([f"@{i}@" for i in range(len(rows))] if panel == 0 else [], color=INKS["ink"])
            label(axes, x=f"% of {audited(comparison)}", y=f"L2 eps {one_line(eps.text, 24)}")
            for i, row in enumerate(rows):
                _bar(axes, i, row, shares(row, eps))

    drawn = draw(
        name,
        "Certified and attacked accuracy",
        "For every row a circle at its certified accuracy, a square at its accuracy under attack and a bar between them "
        "for what is not known, each the mean over the seeds; strokes are single seeds. "
        + ("A row whose certificate is refuted says so beside its name. " if any(map(refuted, rows)) else "")
        + "The table below the figure holds the numbers.",
        size,
        paint,
    )
    return _named(drawn, [f"REFUTED: {row.name}" if refuted(row) else row.name for row in rows])


def _bar(axes: Axes, at: int, row: Row, found: Sequence[tuple[Fraction, Fraction]]) -> None:
    if not found:
        absent = "no certificate" if finished(row) else "no result"
        axes.text(1.5, at, absent, color=INKS["muted"], va="center", fontsize=12)
        return
    low, high = (100 * float(mean(side)) for side in zip(*found, strict=True))
    if refuted(row) or high >= low:
        ink = "contradiction" if refuted(row) else "gap"
        axes.plot([low, high], [at, at], color=INKS[ink], linewidth=11, solid_capstyle="butt", clip_on=False)
    for ink, marker, values in (("attacked", "s", [b for _, b in found]), ("certified", "o", [a for a, _ in found])):
        for value in values:
            axes.plot([100 * float(value)] * 2, [at - 0.3, at + 0.3], color=INKS[ink], linewidth=1.2, clip_on=False)
        axes.plot(
            [100 * float(mean(values))], [at], marker, color=INKS[ink], markersize=9, markeredgecolor=INKS["paper"],
            markeredgewidth=1.5, clip_on=False, zorder=5,
        )  # fmt: skip


def _shares(axes: Axes, floor: int, top: int) -> None:
    """An axis of per cent."""
    axes.set_ylim(floor, top)
    axes.set_yticks(range(floor, top + 1, _TICKS[floor] if top == 100 else (top - floor) // (5 if floor else 4)))


def _drawn(style: Mark) -> dict[str, Any]:
    """What a line needs to carry the mark."""
    line: dict[str, Any] = {"dashes": style.dashes} if style.dashes else {"linestyle": "-"}
    return {
        **line, "color": INKS[style.ink], "linewidth": 2, "marker": style.marker, "markeredgecolor": INKS["paper"],
        "markeredgewidth": 1,
    }  # fmt: skip


def _powers(low: float, high: float) -> list[float]:
    """The logarithms of 1, 2 and 5 times the powers of ten between the two; of the powers alone where those are many."""
    digits = (1, 2, 5) if high - low < 4 else (1,)
    stride = max(1, math.ceil((high - low) / 10))
    every = range(math.floor(low), math.ceil(high) + 1)
    found = [power + math.log10(digit) for power in every if power % stride == 0 for digit in digits]
    return [place for place in found if low <= place <= high] or [(low + high) / 2]


def spaced(wanted: Sequence[float], floor: float, top: float, height: float, apart: float = 18) -> list[float]:
    """The places moved apart just so far that labels ``apart`` pixels high do not touch, on an axis of that height."""
    step = apart * (top - floor) / height
    order = sorted(range(len(wanted)), key=lambda i: (-wanted[i], i))
    placed: dict[int, float] = {}
    ceiling = top + step / 2
    for i in order:
        placed[i] = ceiling = min(wanted[i], ceiling - step)
    bottom = floor - step / 2
    for i in reversed(order):
        placed[i] = bottom = max(placed[i], bottom + step)
    return [placed[i] for i in range(len(wanted))]


def _named(drawing: str, given: Sequence[str]) -> str:
    """The drawing with names for its stand-ins, all in one pass: a name that looks like a stand-in stays a name."""
    names = [escape(cut(one_line(name), NAME)) for name in given]
    return re.sub(r">@(\d+)@<", lambda found: f">{names[int(found[1])]}<", drawing)
