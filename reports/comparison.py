"""The comparison of several ways to train: a table for the terminal, Markdown, and one page with figures. No torch here.

What is proved is never overstated: certified accuracy is rounded down, norms are rounded up. So is, upwards, all that
would flatter when it came out small: accuracy under attack, spread, gap. Names come from a user's file. They are shown
on one line and escaped, and no figure is drawn with them: matplotlib draws a stand-in, and the finished text of the
drawing gets the name, escaped like everything else.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from certkit.comparison import Comparison, Row, Trial, spread
from certkit.errors import one_line
from certkit.files import write_atomic
from certkit.records import Eps, Rate, radii

from .figures import _axes, _label
from .page import _environment, _source, policy
from .rounding import percent, significant
from .svg import INKS, draw

WIDTH = 120  # columns of a terminal
NARROWEST = 14  # columns that a name gets, however many radii there are
NONE = "-"
NAME = 40  # columns of a name in a figure
LABELS = 292  # pixels beside a figure for the names
POINTS = 200  # of one curve; a page shows no more of them apart
PANELS = 3  # radii side by side


# Numbers


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it is read, every number rounded; ``note`` numbers the reason why a certificate is missing."""

    name: str
    method: str
    learning_rate: str
    test: str
    steps: str
    gap: str
    spikes: str
    failed: str
    norm: str
    promise: str
    robust: tuple[tuple[str, str], ...]
    note: int | None


def lines(comparison: Comparison) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """The rows as they are read, and the reasons that their notes count from 1."""
    notes: dict[str, int] = {}
    found = []
    for row in comparison.rows:
        ended = finished(row)
        reason = _unproved(comparison, row)
        found.append(
            Line(
                name=one_line(row.name),
                method=f"{row.optimizer}, {row.constraint}" if row.constraint != "none" else row.optimizer,
                learning_rate=f"{row.learning_rate:g}" if ended else NONE,
                test=_test(row, ended),
                steps=_steps(row),
                gap=_gap(ended),
                spikes=str(sum(trial.spikes for trial in ended)) if ended else NONE,
                failed=f"{row.failed}/{len(row.trials)}",
                norm=_norm(ended),
                promise=row.promise,
                robust=tuple(robust(row, eps) for eps in radii_of(comparison)),
                note=None if reason is None else notes.setdefault(reason, len(notes) + 1),
            )
        )
    return tuple(found), tuple(notes)


def radii_of(comparison: Comparison) -> tuple[Eps, ...]:
    """The radii as the certificates have them: ascending, each once."""
    return radii(comparison.eps) if comparison.eps else ()


def finished(row: Row) -> tuple[Trial, ...]:
    """The trials at the chosen learning rate that came to an end."""
    return tuple(trial for trial in row.best if trial.fault is None)


def shares(row: Row, eps: Eps) -> tuple[tuple[Fraction, Fraction], ...]:
    """Certified and attacked share at a radius, one pair per seed that has them."""
    points = [point for proved in row.proved for point in proved if Eps.of(point.eps).value == eps.value]
    return tuple((_share(point.certified), _share(point.attacked)) for point in points)


def robust(row: Row, eps: Eps) -> tuple[str, str]:
    """Certified accuracy rounded down and accuracy under attack rounded up, each the mean over the seeds."""
    found = shares(row, eps)
    if not found:
        return NONE, NONE
    part = "" if len(found) == len(row.best) else f" ({len(found)}/{len(row.best)})"
    certified, attacked = (_mean(side) for side in zip(*found, strict=True))
    return percent(certified, "down") + part, percent(attacked, "up") + part


def refuted(row: Row) -> bool:
    """Whether some attack broke samples that were certified at the same radius."""
    return any(point.attacked.count < point.certified.count for proved in row.proved for point in proved)


def _unproved(comparison: Comparison, row: Row) -> str | None:
    """Why certificates are missing, in the certificate's own words where it has any."""
    if not comparison.eps or (row.unproved is None and len(row.proved) == len(row.best)):
        return None
    if row.unproved is not None:
        return f"no certificate: {one_line(row.unproved)}"
    return "runs that failed have no certificate" if row.proved else "no run at any learning rate has a result"


def _share(rate: Rate) -> Fraction:
    return Fraction(rate.count, rate.total) if rate.total else Fraction(0)


def _mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def _counted(share: float) -> Fraction:
    """The share of a count, which was rounded to a float when it was recorded: 0.95 is 19/20, not a little less."""
    return Fraction(share).limit_denominator(10**6)


def _test(row: Row, ended: Sequence[Trial]) -> str:
    rates = [_share(trial.test) for trial in ended if trial.test is not None]
    if not rates:
        return NONE
    _, deviation = spread([float(rate) for rate in rates])
    shown = percent(_mean(rates), "down")
    if len(rates) > 1:  # one seed says nothing of how far another would fall
        shown += f" ± {percent(deviation, 'up')}"
    return shown if len(rates) == len(row.best) else f"{shown} ({len(rates)}/{len(row.best)})"


def _steps(row: Row) -> str:
    reached = [trial.reached for trial in row.best if trial.reached is not None]
    if not reached:
        return "never" if finished(row) else NONE
    middle = str(math.ceil(median(reached)))
    return middle if len(reached) == len(row.best) else f"{middle} ({len(reached)}/{len(row.best)})"


def _gap(ended: Sequence[Trial]) -> str:
    """Training minus validation accuracy in points."""
    gaps = [_share(trial.training) - _counted(trial.validation) for trial in ended if trial.training is not None]
    return f"{math.ceil(_mean(gaps) * 1000) / 10:.1f}" if gaps else NONE


def _norm(ended: Sequence[Trial]) -> str:
    largest = max((trial.norm_over_cap for trial in ended if trial.norm_over_cap is not None), default=None)
    if largest is None:
        return NONE
    # Just above 1 the digits tell float rounding from a weight that left its cap.
    return significant(largest, "up", 8 if 1 < largest < 1.01 else 4)


# The table as text


def table(comparison: Comparison) -> str:
    """The rows for a terminal, in at most 120 columns for two radii; long names go on in a second line."""
    found, notes = lines(comparison)
    heads = [tuple(head.split("\n")) for head in _heads(comparison)]
    cells = [_cells(line) for line in found]
    widths = [max(map(_width, (*head, *(row[i] for row in cells)))) for i, head in enumerate(heads)]
    room = max(NARROWEST, WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    widths[0] = min(widths[0], room)
    printed = [*zip(*heads, strict=True), ("-" * width for width in widths)]
    for row in cells:
        first, *more = _wrapped(row[0], widths[0])
        printed.append((first, *row[1:]))
        printed.extend((f"  {part}", *("" for _ in row[1:])) for part in more)
    text = ["  ".join(_padded(cell, widths[i], left=i == 0) for i, cell in enumerate(row)).rstrip() for row in printed]
    below = [*_explained(comparison), *(f"[{i}] {note}" for i, note in enumerate(notes, start=1))]
    return "\n".join([*text, "", *(part for note in below for part in _filled(note, WIDTH))])


def markdown(comparison: Comparison) -> str:
    """The same rows as a Markdown table, with what they mean below it."""
    found, notes = lines(comparison)
    rows = [[head.replace("\n", " ").strip() for head in _heads(comparison)]]
    rows.append(["---", *("--:" for _ in rows[0][1:])])
    rows.extend([_escaped(cell) for cell in _cells(line)] for line in found)
    text = [f"# {_escaped(one_line(comparison.name))}", "", _escaped(summary(comparison)), ""]
    text += [f"| {' | '.join(row)} |" for row in rows]
    for note in _explained(comparison):
        text += ["", _escaped(note)]
    for i, note in enumerate(notes, start=1):
        text += ["", f"\\[{i}\\] {_escaped(note)}"]
    return "\n".join(text) + "\n"


def summary(comparison: Comparison) -> str:
    """What was compared, and what chose the learning rates."""
    seeds, runs = comparison.seeds, sum(len(row.trials) for row in comparison.rows)
    return (
        f"{_several(len(comparison.rows), 'way')} to train on {one_line(comparison.data)}, {comparison.steps} steps a run, "
        f"{_several(runs, 'run')}: every learning rate of a row with seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}. Each row is shown at the learning rate with the highest mean accuracy on samples "
        "held out of the training split, a failed run counting 0. The test split chose nothing."
    )


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _heads(comparison: Comparison) -> list[str]:
    """The columns' heads, each in two lines."""
    target = f"{100 * comparison.target:g}%"
    at = [f"{what}\n{one_line(eps.text, 8)}" for eps in radii_of(comparison) for what in ("cert.", "att.")]
    return [
        "\nrow",
        "learning\nrate",
        "test\n%",
        f"steps\nto {target}",
        "\ngap",
        "loss\nspikes",
        "runs\nfailed",
        "norm\n/ cap",
        "\npromise",
        *at,
    ]


def _cells(line: Line) -> list[str]:
    mark = "" if line.note is None else f"[{line.note}]"
    proved = [cell for certified, attacked in line.robust for cell in (certified + mark, attacked)]
    return [
        line.name, line.learning_rate, line.test, line.steps, line.gap, line.spikes, line.failed, line.norm,
        line.promise, *proved,
    ]  # fmt: skip


def _explained(comparison: Comparison) -> list[str]:
    """What the columns mean, one sentence or two each."""
    columns = (
        "test: mean over the seeds, ± one standard deviation of these seeds; this is no significance test. steps: median "
        "over the seeds that reached the target. gap: training minus validation accuracy, in points. norm / cap: the "
        "largest proved norm of a weight, as a share of its cap; promise: whether the constraint is proved to hold it."
    )
    found = [columns]
    if comparison.eps:
        found.append(
            f"cert.: share of {comparison.limit} test samples that is right and certified at that l2 eps, mean over the "
            "seeds, rounded down; of the function in exact arithmetic, by certkit's global bound. att.: share that the "
            "attacks left right, rounded up."
        )
    for row in comparison.rows:
        if refuted(row):
            found.append(f"{one_line(row.name)}: {REFUTED}")
    return found


REFUTED = (
    "attacks broke samples inside a certified radius. Its certified accuracy is a claim here; the audit in the row's "
    "folder says whether the certificate is refuted or float arithmetic strays from the exact function."
)


def _escaped(text: str) -> str:
    """Text that Markdown takes for text: no cell ends, no element or formula begins."""
    return re.sub(r"([\\`*_\[\]|$~])", r"\\\1", escape(text, quote=False))


def _width(text: str) -> int:
    """Columns that a terminal gives the text."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - _width(text))
    return text + space if left else space + text


def _cut(text: str, width: int) -> str:
    """The text in that many columns, ending in … where some of it is missing."""
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _filled(text: str, width: int) -> list[str]:
    """The text in lines of at most that many columns, broken at spaces where it has any."""
    found = [""]
    for word in text.split(" "):
        if found[-1] and _width(f"{found[-1]} {word}") <= width:
            found[-1] += f" {word}"
            continue
        found.append("")
        for character in word:
            if _width(found[-1] + character) > width:
                found.append("")
            found[-1] += character
    return [line for line in found if line]


def _wrapped(name: str, width: int) -> list[str]:
    """The name in one line or two, the second to be indented by two columns."""
    if _width(name) <= width:
        return [name]
    first = _filled(name, width)[0]
    return [first, _cut(name[name.index(first) + len(first) :].strip(), width - 2)]


# The figures


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


@dataclass(frozen=True, slots=True)
class Band:
    """Mean, least and greatest of a share over the seeds at one place."""

    at: float
    mean: Fraction
    low: Fraction
    high: Fraction

    @classmethod
    def of(cls, at: float, values: Sequence[Fraction]) -> Band:
        return cls(at, _mean(values), min(values), max(values))


def course(row: Row) -> tuple[Band, ...]:
    """Validation accuracy against step at the chosen learning rate, at no more than 200 of the measured steps."""
    held: dict[int, list[Fraction]] = {}
    for trial in finished(row):
        for point in trial.curve:
            if point.validation is not None:
                held.setdefault(point.step, []).append(_counted(point.validation))
    every = sorted(held)
    kept = every[:: -(-len(every) // POINTS) or 1]
    if every and kept[-1] != every[-1]:
        kept.append(every[-1])
    return tuple(Band.of(step, held[step]) for step in kept)


@dataclass(frozen=True, slots=True)
class Tried:
    """One learning rate of a row: validation accuracy of the runs that ended, and how many did not."""

    learning_rate: float
    band: Band | None
    failed: int
    runs: int
    chosen: bool


def tried(row: Row) -> tuple[Tried, ...]:
    """The learning rates of a row in ascending order."""
    found = []
    for rate in sorted({trial.learning_rate for trial in row.trials}):
        runs = [trial for trial in row.trials if trial.learning_rate == rate]
        ended = [_counted(trial.validation) for trial in runs if trial.fault is None]
        band = Band.of(rate, ended) if ended else None
        found.append(Tried(rate, band, len(runs) - len(ended), len(runs), bool(ended) and rate == row.learning_rate))
    return tuple(found)


def span(values: Sequence[Fraction | float], room: float) -> tuple[int, int]:
    """The per cent that an axis may start and end at, so that the lowest share stands ``room`` of the axis above its start."""
    least, most = 100 * min(map(float, values), default=0.0), 100 * max(map(float, values), default=1.0)
    floor = max((f for f in _TICKS if least >= f + room * (100 - f)), default=0)
    return floor, 100 if floor else min(top for top in _TOPS if most <= top)


_TOPS = (20, 40, 60, 80, 100)  # where an axis from 0 may end
_TICKS = {0: 25, 25: 25, 50: 10, 70: 10, 80: 5, 90: 2, 95: 1}  # the step between ticks on an axis that starts there


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
        axes = _axes(figure, size, left=44, bottom=52, top=30, right=LABELS)
        _shares(axes, floor, top)
        axes.set_xlim(0, last or 1)
        _label(axes, x="step", y="% of the held-out samples right")
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
    return _named(drawn, comparison)


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
        axes = _axes(figure, size, left=44, bottom=52 + below, top=30, right=14)
        _shares(axes, floor, top)
        axes.set_xlim(low - pad, high + pad)
        _label(axes, x="", y="% of the held-out samples right at the end")
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
    return _named(drawn, comparison)


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
            axes = _axes(figure, size, left=left, bottom=52, top=36, right=size[0] - left - width + between)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", color=INKS["grid"], linewidth=0.9)
            axes.set_xlim(0, 100)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xticks([0, 25, 50, 75, 100])
            axes.set_yticks(range(len(rows)) if panel == 0 else [])
            axes.set_yticklabels([f"@{i}@" for i in range(len(rows))] if panel == 0 else [], color=INKS["ink"])
            _label(axes, x=f"% of {comparison.limit} test samples", y=f"L2 eps {one_line(eps.text, 24)}")
            for i, row in enumerate(rows):
                _bar(axes, i, shares(row, eps), "no certificate" if finished(row) else "no result")

    drawn = draw(
        name,
        "Certified and attacked accuracy",
        "For every row a circle at its certified accuracy, a square at its accuracy under attack and a bar between them "
        "for what is not known, each the mean over the seeds; strokes are single seeds. The table below the figure holds "
        "the numbers.",
        size,
        paint,
    )
    return _named(drawn, comparison)


def _bar(axes: Axes, at: int, found: Sequence[tuple[Fraction, Fraction]], absent: str) -> None:
    if not found:
        axes.text(1.5, at, absent, color=INKS["muted"], va="center", fontsize=12)
        return
    low, high = (100 * float(_mean(side)) for side in zip(*found, strict=True))
    ink = "gap" if high >= low else "contradiction"
    axes.plot([low, high], [at, at], color=INKS[ink], linewidth=11, solid_capstyle="butt", clip_on=False)
    for ink, marker, values in (("attacked", "s", [b for _, b in found]), ("certified", "o", [a for a, _ in found])):
        for value in values:
            axes.plot([100 * float(value)] * 2, [at - 0.3, at + 0.3], color=INKS[ink], linewidth=1.2, clip_on=False)
        axes.plot(
            [100 * float(_mean(values))], [at], marker, color=INKS[ink], markersize=9, markeredgecolor=INKS["paper"],
            markeredgewidth=1.5, clip_on=False, zorder=5,
        )  # fmt: skip


def _shares(axes: Axes, floor: int, top: int) -> None:
    """An axis of per cent."""
    axes.set_ylim(floor, top)
    axes.set_yticks(range(floor, top + 1, _TICKS[floor] if floor else top // 4))


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


def _named(drawing: str, comparison: Comparison) -> str:
    """The drawing with names for its stand-ins, all in one pass: a name that looks like a stand-in stays a name."""
    names = [escape(_cut(one_line(row.name), NAME)) for row in comparison.rows]
    return re.sub(r">@(\d+)@<", lambda found: f">{names[int(found[1])]}<", drawing)


# The page


def render(comparison: Comparison) -> str:
    """The page as HTML text: a pure function of the record, byte for byte. Markup comes from drawings and the style alone."""
    environment = _environment()
    style = _source(environment, "report.css")
    found, notes = lines(comparison)
    courses = [course(row) for row in comparison.rows]
    drawn = {"curves": curves(comparison), "rates": rates(comparison)}
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        lines=found,
        notes=notes,
        summary=summary(comparison),
        radii=radii_of(comparison),
        marks=[mark(i) for i in range(len(found))],
        steps=sorted({band.at for bands in courses for band in bands}),
        courses=[{band.at: band for band in bands} for bands in courses],
        thinned=any(len(trial.curve) > POINTS for row in comparison.rows for trial in finished(row)),
        floors={"curves": curves_span(comparison)[0], "rates": rates_span(comparison)[0]},
        tried=[tried(row) for row in comparison.rows],
        counts=_counts(comparison),
        failures=[(row.name, trial) for row in comparison.rows for trial in row.trials if trial.fault is not None],
        refuted=[row.name for row in comparison.rows if refuted(row)],
        refuted_says=REFUTED,
        figures={name: None if svg is None else Markup(svg) for name, svg in drawn.items()},
        bars=[Markup(svg) for svg in bars(comparison)],
        policy=policy(style, ""),
        style=Markup(style),
    )


def _counts(comparison: Comparison) -> list[tuple[str, Eps, str, str, str, str]]:
    """For each row and radius: name, radius, both means, and the counts of the seeds that they are of."""
    found = []
    for row in comparison.rows:
        for eps in radii_of(comparison):
            points = [p for proved in row.proved for p in proved if Eps.of(p.eps).value == eps.value]
            certified, attacked = (
                ", ".join(f"{rate.count}/{rate.total}" for rate in side) or NONE
                for side in ([p.certified for p in points], [p.attacked for p in points])
            )
            means = robust(row, eps)
            found.append((row.name, eps, means[0], certified, means[1], attacked))
    return found


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write comparison.md and comparison.html into a folder, each whole or not at all, and return where they are."""
    paths = {out / "comparison.md": markdown(comparison), out / "comparison.html": render(comparison)}
    for path, text in paths.items():
        write_atomic(path, text.encode())
    return list(paths)
