"""From language.json to its page: as the report of an audit, one file, no network, no script, nothing raw from a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from certkit.errors import RecordError, one_line
from certkit.files import load, write_atomic
from certkit.language.records import Curve, LanguageAudit, Substitution

from .figures import framed, label
from .page import inlined, policy, source_of, templates
from .svg import INKS, draw

SIZE = (940.0, 360.0)
VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}  # a space that is marked must be seen


def render(audit: LanguageAudit) -> str:
    """The page as HTML text: a pure function of the record, byte for byte."""
    environment = templates()
    style = source_of(environment, "report.css")
    return environment.get_template("language.html.j2").render(
        audit=audit,
        figure=inlined(figure(audit.curves)),
        changed=changed,
        visible=visible,
        policy=policy(style, ""),
        style=inlined(style),
    )


def report(directory: Path) -> Path:
    """Write report.html beside the folder's language.json and return where it is. Raises RecordError without one."""
    source = directory / "language.json"
    if not source.is_file():
        raise RecordError(
            f"{one_line(directory)}: no language.json here; expected a folder that certkit language wrote"
        )
    page = directory / "report.html"
    write_atomic(page, render(load(LanguageAudit, source)).encode())
    return page


def visible(token: str) -> str:
    """A token as it is read: spaces and line ends get a sign of their own."""
    return "".join(VISIBLE.get(character, character) for character in token)


def changed(one: Substitution) -> list[tuple[str, str, bool]]:
    """Each token before and after, and whether it was replaced, from a few tokens before the first that was."""
    first = max(min(one.places, default=0) - 24, 0)
    places = set(one.places)
    rows = zip(one.before, one.after, strict=True)
    return [(visible(a), visible(b), n in places) for n, (a, b) in enumerate(rows) if n >= first]


def figure(curves: Sequence[Curve]) -> str:
    """Certified and attacked next-token accuracy of the first curve, all positions, against the radius."""
    curve = curves[0]
    points = [point for point in curve.certified if point.eps.value > 0]  # radii spread over decades
    radii = np.array([point.eps.value for point in points])

    def share(count: int, total: int) -> float:
        return 100 * count / max(total, 1)

    low = [share(point.certified.count, point.certified.total) for point in points]
    high = [share(point.robust.count, point.robust.total) for point in curve.attacked if point.eps.value > 0]

    def paint(drawn: Figure) -> None:
        axes = framed(drawn, SIZE, left=38, bottom=52, top=30)
        for values, ink, marker in ((high, "attacked", "s"), (low, "certified", "o")):
            axes.plot(radii, values, color=INKS[ink], linewidth=2.0)
            axes.plot(
                radii, values, marker, color=INKS[ink], markersize=7.5, markeredgecolor=INKS["paper"],
                markeredgewidth=1.5, clip_on=False, zorder=5,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(radii, [point.eps.text for point in points])
        axes.set_xlim(float(radii.min()) / 1.1, float(radii.max()) * 1.1)
        axes.set_ylim(0, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
        label(axes, x="eps, l2 move of every token's embedding", y="% of all positions")

    return draw(
        "curve",
        "Next-token accuracy against eps",
        "The lower line is certified accuracy, the upper one accuracy under attack. The table below holds the numbers.",
        SIZE,
        paint,
    )
