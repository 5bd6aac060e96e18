"""The comparison of several ways to train, written as Markdown and as one page with figures. No torch here."""

from __future__ import annotations

from pathlib import Path

from certkit.comparison import Comparison
from certkit.files import write_atomic
from certkit.records import Eps

from .comparison_figures import bars, curves, curves_span, mark, rates, rates_span
from .comparison_numbers import NONE, POINTS, audited, course, finished, lines, radii_of, refuted, robust, tried
from .comparison_text import markdown, summary, table
from .page import inlined, policy, source_of, templates

__all__ = ["render", "table", "write"]


def render(comparison: Comparison) -> str:
    """The page as HTML text: a pure function of the record, byte for byte. Only the drawings and the style stand on it raw."""
    environment = templates()
    style = source_of(environment, "report.css")
    found, notes = lines(comparison)
    courses = [course(row) for row in comparison.rows]
    drawn = {"curves": curves(comparison), "rates": rates(comparison)}
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        lines=found,
        notes=notes,
        summary=summary(comparison),
        radii=radii_of(comparison),
        audited=audited(comparison),
        marks=[mark(i) for i in range(len(found))],
        steps=sorted({band.at for bands in courses for band in bands}),
        courses=[{band.at: band for band in bands} for bands in courses],
        thinned=any(len(trial.curve) > POINTS for row in comparison.rows for trial in finished(row)),
        floors={"curves": curves_span(comparison)[0], "rates": rates_span(comparison)[0]},
        tried=[tried(row) for row in comparison.rows],
        counts=_counts(comparison),
        failures=[(row.name, trial) for row in comparison.rows for trial in row.trials if trial.fault is not None],
        refuted=[line for line in found if line.refutation],
        figures={name: None if svg is None else inlined(svg) for name, svg in drawn.items()},
        bars=[inlined(svg) for svg in bars(comparison)],
        policy=policy(style, ""),
        style=inlined(style),
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
            if points and refuted(row):
                certified += " claimed"
            means = robust(row, eps)
            found.append((row.name, eps, means[0], certified, means[1], attacked))
    return found


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write comparison.md and comparison.html into a folder, each whole or not at all, and return where they are."""
    paths = {out / "comparison.md": markdown(comparison), out / "comparison.html": render(comparison)}
    for path, text in paths.items():
        write_atomic(path, text.encode())
    return list(paths)
