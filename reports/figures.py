"""The three figures: robust accuracy against eps, certified radius against smallest attack, the radii's histogram.

A figure draws numbers and its own words only: no text of a record reaches matplotlib. Where a record holds nothing that
can be drawn the figure is None, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from certkit.records import Audit, Rate

from .findings import absent, correct, reach
from .svg import INKS, draw

BINS = 24


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of the histogram: how many radii lie in [low, high), the last bar including its end."""

    low: float
    high: float
    count: int


def _bare(axes: Axes) -> None:
    """Only what carries data: a baseline, hairlines, quiet labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INKS["muted"])
    axes.grid(axis="y", color=INKS["grid"], linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", colors=INKS["muted"], labelcolor=INKS["muted"], length=0, pad=7)
    axes.tick_params(axis="x", length=4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def framed(
    figure: Figure, size: tuple[float, float], left: float, bottom: float, top: float, right: float = 14
) -> Axes:
    """Axes at fixed pixels, so that no text measurement decides the layout."""
    width, height = size
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    _bare(axes)
    return axes


def label(axes: Axes, *, x: str, y: str) -> None:
    """What the axes measure: ``x`` below, ``y`` above, where it needs no turning of the head."""
    axes.set_xlabel(x, color=INKS["muted"], labelpad=8)
    axes.set_title(y, color=INKS["muted"], loc="left", fontsize=13, pad=10)


def stairs(audit: Audit, treads: int) -> tuple[list[float], list[float], list[float]]:
    """Radii, certified share and attacked share, as stairs that never claim more than the record.

    On each tread certified accuracy is that of its right end and attacked that of its left one, so that drawing with
    few treads can only widen the gap. With every sample at hand there are ``treads`` of them and both shares are known
    at every end; without, or where the samples do not give the counts of the record, the ends are the radii asked for.
    """
    largest = max(point.eps.value for point in audit.curve)
    total = audit.clean.total
    right = correct(audit)
    proved = np.sort([sample.radius for sample in right])
    hits = np.sort([sample.distance for sample in right if sample.distance is not None])

    def standing(ends: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many are certified at each end (a radius of r certifies at r) and unbroken (a distance of r breaks at r)."""
        return (
            len(right) - np.searchsorted(proved, ends, side="left"),
            len(right) - np.searchsorted(hits, ends, side="right"),
        )

    asked = np.array([point.eps.value for point in audit.curve])
    counted = [(point.certified.count, (point.attacked or audit.clean).count) for point in audit.curve]
    if len(audit.samples) != total or list(zip(*map(np.ndarray.tolist, standing(asked)), strict=True)) != counted:
        points = sorted(audit.curve, key=lambda point: point.eps.value)
        radii = [0.0, *(point.eps.value for point in points)]
        below = [_share(point.certified) for point in points]
        above = [_share(point.attacked or audit.clean) for point in points]
        above = [max(_share(audit.clean), above[0]), *above[:-1]]
        return radii, [*below, below[-1]], [*above, above[-1]]
    ends = np.linspace(0.0, largest, treads + 1)
    certified, attacked = (counts / total for counts in standing(ends))
    return ends.tolist(), [*certified[1:].tolist(), float(certified[-1])], attacked.tolist()


def _share(rate: Rate) -> float:
    return rate.count / rate.total if rate.total else 0.0


def curve(audit: Audit, name: str, size: tuple[float, float]) -> str | None:
    """Robust accuracy against eps: proved below, attacked above, and what is not known between them."""
    largest = max((point.eps.value for point in audit.curve), default=0.0)
    if "curve" in absent(audit):
        return None
    evaluated = all(point.attacked for point in audit.curve)
    radii, certified, attacked = stairs(audit, treads=int(size[0] / 3.5))

    def paint(figure: Figure) -> None:
        axes = framed(figure, size, left=38, bottom=52, top=30)
        low, high = np.array(certified) * 100, np.array(attacked) * 100
        if evaluated:
            for where, ink, opacity in ((high >= low, "gap", 1.0), (high < low, "contradiction", 0.35)):
                axes.fill_between(
                    radii, low, high, where=where, step="post", color=INKS[ink], alpha=opacity, linewidth=0
                )
            axes.step(radii, high, where="post", color=INKS["attacked"], linewidth=2, dashes=(5, 2.5))
        axes.step(radii, low, where="post", color=INKS["certified"], linewidth=2.2)
        for point in audit.curve:
            for ink, marker, rate in (("attacked", "s", point.attacked), ("certified", "o", point.certified)):
                if rate is None:
                    continue
                x = point.eps.value
                axes.plot([x, x], [rate.low * 100, rate.high * 100], color=INKS[ink], linewidth=1.2)
                axes.plot(
                    [x], [_share(rate) * 100], marker, color=INKS[ink], markersize=7.5,
                    markeredgecolor=INKS["paper"], markeredgewidth=1.5, clip_on=False, zorder=5,
                )  # fmt: skip
        axes.set_xlim(0, largest * 1.02)
        axes.set_ylim(0, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
        label(axes, x="eps, input units", y="% of all samples")

    return draw(
        name,
        "Robust accuracy against eps",
        "The lower line is certified accuracy"
        + (
            ", the upper one accuracy under attack, the gap between them is shaded"
            if evaluated
            else "; no attack was run"
        )
        + ". The table below the figure holds the numbers.",
        size,
        paint,
    )


def scatter(audit: Audit, name: str, size: tuple[float, float]) -> str | None:
    """Certified radius against smallest attack, one dot per correct sample; below the diagonal is a contradiction."""
    if "scatter" in absent(audit):
        return None
    right = correct(audit)
    hits = [(sample.radius, sample.distance) for sample in right if sample.distance is not None]
    below = [(radius, distance) for radius, distance in hits if distance < radius]
    untouched = [sample.radius for sample in right if sample.distance is None]
    top = reach(audit)

    def paint(figure: Figure) -> None:
        axes = framed(figure, size, left=40, bottom=52, top=30)
        end = top * 1.05
        axes.fill_between([0, end], [0, end], 0, color=INKS["contradiction"], alpha=0.09, linewidth=0)
        axes.plot([0, end], [0, end], color=INKS["muted"], linewidth=1.2)
        axes.plot([r for r, _ in hits], [d for _, d in hits], "o", color=INKS["attacked"], alpha=0.6, markersize=5)
        for hit in below:
            axes.plot(*hit, "D", color=INKS["contradiction"], markersize=9, zorder=6)
        for radius in untouched:
            axes.plot([radius, radius], [top * 1.015, end], color=INKS["certified"], linewidth=1.4)
        words = "dots here are contradictions" if below else "a dot here would be a contradiction"
        axes.text(end * 0.97, end * 0.04, words, color=INKS["muted"], ha="right", fontsize=12)
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        label(axes, x="certified radius", y="smallest attack found")

    return draw(
        name,
        "Certified radius against smallest attack",
        f"{len(hits)} samples that were broken, each at its certified radius and its smallest attack. "
        f"{len(below)} of them lie below the diagonal, where an error contradicts a certificate. "
        f"{len(untouched)} samples that no attack broke are marked at the upper edge.",
        size,
        paint,
    )


def bins(audit: Audit) -> tuple[Bin, ...]:
    """The certified radii of the correct samples in equal bins from 0 to the largest."""
    if "histogram" in absent(audit):
        return ()
    radii = [sample.radius for sample in correct(audit)]
    counts, edges = np.histogram(radii, bins=BINS, range=(0.0, max(radii)))
    return tuple(
        Bin(low, high, int(count)) for (low, high), count in zip(pairwise(edges.tolist()), counts, strict=True)
    )


def histogram(audit: Audit, found: Sequence[Bin], name: str, size: tuple[float, float]) -> str | None:
    """How many correct samples have which certified radius, with the median of all samples marked."""
    if not found:
        return None

    def paint(figure: Figure) -> None:
        axes = framed(figure, size, left=40, bottom=52, top=30)
        width = found[0].high - found[0].low
        axes.bar(
            [bar.low + width / 2 for bar in found], [bar.count for bar in found],
            width=width * 0.86, color=INKS["certified"], alpha=0.85,
        )  # fmt: skip
        highest = max(bar.count for bar in found)
        if audit.median_radius <= found[-1].high:
            axes.plot([audit.median_radius] * 2, [0, highest * 1.13], color=INKS["ink"], linewidth=1.4, dashes=(3, 2))
            side = -1 if audit.median_radius > found[-1].high * 0.6 else 1
            axes.annotate(
                "median", (audit.median_radius, highest * 1.1), (6 * side, 0), textcoords="offset pixels",
                color=INKS["ink"], fontsize=12, va="center", ha="left" if side > 0 else "right",
            )  # fmt: skip
        axes.set_xlim(0, found[-1].high * 1.02)
        axes.set_ylim(0, highest * 1.14)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        label(axes, x="certified radius", y="correct samples")

    return draw(
        name,
        "Certified radii of the correctly classified samples",
        f"{sum(bar.count for bar in found)} radii from 0 to {found[-1].high:.4g} in {len(found)} bins; the dashed line "
        "is the median over all samples.",
        size,
        paint,
    )
