"""The figures of a network's insides: largest entries by part, spectra as small multiples, the training run.

As everywhere, numbers and this module's own words alone reach matplotlib: parts and weights stand as their number in the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from certkit.records import Audit
from certkit.records.health import Curves, HealthView

from .figures import framed, label
from .health import drawn, line_of, size
from .svg import INKS, draw

Size = tuple[float, float]
WIDE, NARROW = 940.0, 370.0
LOWEST = 1e-12  # below, an entry is drawn as this
HIGHEST = 10.0  # times its line; a singular value beyond is drawn there
LARGEST = 1e250  # a loss beyond is drawn there: an axis needs room above
MOST_STEPS = 10**15
BETWEEN = 12.0  # pixels between two small spectra


def health_figures(audit: Audit) -> dict[str, str | None]:
    """Every figure of the three sections by name, wide and narrow; None where the record holds nothing to draw."""
    health = audit.health
    found: dict[str, str | None] = dict.fromkeys(
        f"{name}-{width}" for name in ("activations", "spectra", "training") for width in ("wide", "narrow")
    )
    if health is not None:
        for width, pixels in (("wide", WIDE), ("narrow", NARROW)):
            found[f"activations-{width}"] = activations(health, f"activations-{width}", (pixels, 330.0))
            found[f"spectra-{width}"] = spectra(health, f"spectra-{width}", pixels, 8 if pixels == WIDE else 3)
            found[f"training-{width}"] = training(health, f"training-{width}", (pixels, 400.0))
    return found


def _power(value: float) -> float:
    return math.log10(max(value, LOWEST))


def _powers(axes: Axes, low: float, high: float) -> None:
    """An axis of powers of ten, drawn on their exponents: a certified number may lie beyond float64."""
    axes.set_ylim(low, high)
    step = max(1, math.ceil((high - low) / 7))
    axes.set_yticks(range(math.ceil(low), math.floor(high) + 1, step))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{10.0**value:g}" if -4 < value < 5 else f"1e{value:g}")
    )


def activations(health: HealthView, name: str, pixels: Size) -> str | None:
    """The largest entry of each part, seen and proved, on a logarithmic axis, with the largest numbers of the formats."""
    if not health.parts:
        return None
    seen = [_power(part.measured) for part in health.parts]
    proved = [float(number.log10()) if (number := size(part.certified)) > 0 else _power(0) for part in health.parts]
    places = range(1, len(seen) + 1)
    low, high = math.floor(min(seen)), math.ceil(max(*proved, *seen))
    limits = [fit for fit in health.fits if fit.largest > 0 and math.log10(fit.largest) < high + 2]
    top = max(high, *(math.log10(fit.largest) + 0.35 for fit in limits)) if limits else float(high)

    def paint(figure: Figure) -> None:
        axes = framed(figure, pixels, left=44, bottom=52, top=30)
        for fit in limits:
            at = math.log10(fit.largest)
            axes.axhline(at, color=INKS["muted"], linewidth=1.2, dashes=(4, 3))
            axes.text(
                0.45, at, f"largest {fit.name}: {fit.largest:g}", color=INKS["muted"], fontsize=12, va="bottom",
            )  # fmt: skip
        for place, (below, above) in zip(places, zip(seen, proved, strict=True), strict=True):
            axes.plot([place, place], [below, above], color=INKS["gap"], linewidth=5)
        dots = 7.5 if len(seen) <= 24 else 5
        axes.plot(places, proved, "o", color=INKS["certified"], markersize=dots, clip_on=False)
        axes.plot(places, seen, "s", color=INKS["attacked"], markersize=dots - 1, clip_on=False)
        axes.set_xlim(0.4, len(seen) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12 if pixels[0] == WIDE else 6))
        _powers(axes, low - 0.1, top + 0.1)
        label(axes, x="part of the network, in the order in which it runs", y="largest absolute number")

    return draw(
        name,
        "Largest number inside each part",
        f"{len(seen)} parts; each square is the largest number that was seen on the samples, each disc above it the largest "
        "that is proved for every input. The table below the figure holds the numbers.",
        pixels,
        paint,
    )


def spectra(health: HealthView, name: str, width: float, columns: int) -> str | None:
    """Each weight's singular values from the largest to the smallest, as shares of its cap or proved norm, in a small field."""
    shown = [(place, health.spectra[place]) for place in drawn(health)]
    if not shown:
        return None
    rows = -(-len(shown) // columns)
    field, high = (width + BETWEEN) / columns, 74.0
    pixels = (width, rows * (high + 30))
    shares = [[min(value / line_of(one), HIGHEST) for value in one.values] for _, one in shown]
    top = max(1.1, *(values[0] for values in shares))

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, pixels[0])
        axes.set_ylim(-pixels[1], 0)
        for order, ((place, one), values) in enumerate(zip(shown, shares, strict=True)):
            left, base = order % columns * field, -(order // columns + 1) * (high + 30) + 6
            right = left + field - BETWEEN
            x = np.linspace(left, right, len(values)) if len(values) > 1 else np.array([left, right])
            y = base + high * np.array(values if len(values) > 1 else values * 2) / top
            axes.fill_between(x, y, base, color=INKS["certified"], alpha=0.22, linewidth=0)
            axes.plot(x, y, color=INKS["certified"], linewidth=1.8)
            axes.plot([left, right], [base, base], color=INKS["grid"], linewidth=0.9)
            axes.plot([left, right], [base + high / top] * 2, color=INKS["ink"], linewidth=0.9, dashes=(3, 2.5))
            axes.text(left, base + high + 6, f"{place + 1}", color=INKS["ink"], fontsize=12)
            if one.stable_rank is not None:
                rank = f"rank {one.stable_rank:.3g}/{min(one.shape)}"
                axes.text(right, base + high + 6, rank, color=INKS["muted"], fontsize=11, ha="right")

    return draw(
        name,
        "Singular values of the weights",
        f"{len(shown)} small fields, one for each weight by its number in the table. In each the values fall from the left to "
        "the right; the dashed line is the cap, or the proved norm where there is no cap. The table holds the numbers.",
        pixels,
        paint,
    )


def spiked(curves: Curves) -> list[int]:
    """The steps at which the count of loss spikes had risen."""
    counts = [0, *curves.spikes]
    return [step for step, (before, after) in zip(curves.step, pairwise(counts), strict=True) if after > before]


def training(health: HealthView, name: str, pixels: Size) -> str | None:
    """Loss and gradient norm over the steps, one above the other, with the spikes marked in both."""
    if health.training is None:
        return None
    curves = health.training.curves
    steps = [min(step, MOST_STEPS) for step in curves.step]
    spikes, last = spiked(curves), max(steps[-1], 1)

    def paint(figure: Figure) -> None:
        half = pixels[1] / 2
        upper = framed(figure, pixels, left=44, bottom=half + 22, top=30)
        lower = framed(figure, pixels, left=44, bottom=52, top=half + 28)
        _line(upper, steps, curves.loss, "certified")
        _line(upper, steps, curves.validation_loss, "attacked", dashes=(5, 2.5))
        _line(lower, steps, curves.gradient_norm, "certified")
        for axes, columns in ((upper, (curves.loss, curves.validation_loss)), (lower, (curves.gradient_norm,))):
            for step in spikes:
                axes.axvline(min(step, MOST_STEPS), color=INKS["contradiction"], linewidth=1.2, alpha=0.6)
            axes.set_xlim(0, last * 1.02)
            _scaled(axes, [_held(value) for column in columns for value in column if value is not None] or [0.0])
        upper.tick_params(labelbottom=False)
        label(upper, x="", y="loss")
        label(lower, x="step", y="gradient norm")

    return draw(
        name,
        "Loss and gradient norm over the steps of training",
        f"Above, the loss of a batch and, dashed, of the held-out samples where there are any; below, the gradient norm; "
        f"{len(spikes)} upright lines mark loss spikes. The table below the figure holds the numbers.",
        pixels,
        paint,
    )


def _line(
    axes: Axes, steps: Sequence[int], values: Sequence[float | None], ink: str, dashes: tuple[float, float] = (1, 0)
) -> None:
    points = [(step, _held(value)) for step, value in zip(steps, values, strict=True) if value is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=INKS[ink], linewidth=2, dashes=dashes)


def _held(value: float) -> float:
    return max(-LARGEST, min(value, LARGEST))


def _scaled(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where all values are above 0 and far apart, else one from 0, or from the smallest below it."""
    low, high = min(values), max(values)
    axes.yaxis.set_minor_locator(NullLocator())
    if low > 0 and high > 5 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,), numticks=6))
        axes.set_ylim(low / 1.25, high * 1.25)
    else:
        axes.set_ylim(min(0.0, low), max(high * 1.1, 1e-12))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
