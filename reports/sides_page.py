"""Two audits side by side, as one page and as lines for a terminal. No torch here."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from matplotlib.figure import Figure

from certkit.errors import one_line
from certkit.files import canonical, write_atomic
from certkit.records import Audit, Rate

from .figures import framed, label, stairs
from .findings import NORMS, absent
from .health import UNMEASURED
from .page import inlined, policy, source_of, templates
from .rounding import percent, significant
from .sides import Compared, Side, Within, compare, read
from .svg import INKS, draw

MOST = 200  # changed samples on the page; the JSON beside it holds them all


def compared(first: Path, second: Path, *, out: Path | None = None) -> Compared:
    """Compare the audits of two folders; with ``out``, write compared.json and compared.html there, both or neither.

    Raises RecordError where a folder holds no audit or the two cannot be compared.
    """
    audits = read(first), read(second)
    found = compare(*audits)
    if out is not None:
        page = render(*audits)
        write_atomic(out / "compared.json", canonical(found).encode())
        write_atomic(out / "compared.html", page.encode())
    return found


def render(first: Audit, second: Audit) -> str:
    """The page as HTML text: a pure function of the two audits, byte for byte."""
    environment, found = templates(), compare(first, second)
    style = source_of(environment, "report.css")
    drawn = _curves(first, second)
    return environment.get_template("sides.html.j2").render(
        found=found,
        sides=(found.first, found.second),
        names=("First", "Second"),
        norm=NORMS.get(found.norm, found.norm),
        figure=None if drawn is None else inlined(drawn),
        rows=found.changes[:MOST],
        classes=first.data.classes,
        unmeasured=UNMEASURED,
        policy=policy(style, ""),
        style=inlined(style),
    )


def lines(found: Compared) -> list[str]:
    """The comparison in a few lines: verdicts, then each radius, then what became of the samples."""
    said = [_side("first ", found.first), _side("second", found.second)]
    said.append(
        f"{'eps (' + found.norm + ')':<12}{'certified, first':<24}{'second':<24}{'only first / only second':<26}p"
    )
    for point in found.points:
        split = point.split
        counts = "not paired" if split is None else f"{split.only_first} / {split.only_second}"
        p_value = "" if split is None else significant(split.p_value, "up", 2)
        first, second = (_share(rate) for rate in point.certified)
        said.append(f"{one_line(point.eps.text, 10):<12}{first:<24}{second:<24}{counts:<26}{p_value}".rstrip())
    said += [*_inside("first ", found.first.inside), *_inside("second", found.second.inside)]
    if found.unpaired:
        return [*said, found.unpaired]
    said.append(f"{found.regressed} samples regressed, {found.improved} improved, {found.same} as before")
    for change in found.changes[:5]:
        if change.fate == "regressed":
            radii = " -> ".join(significant(radius, "down", 4) for radius in change.radius)
            lost = "" if change.predicted[0] == change.predicted[1] else ", now misclassified"
            said.append(f"  sample {change.index}: certified radius {radii}{lost}")
    return said


def _side(name: str, side: Side) -> str:
    claimed = " (its certified figures are claims, and refuted)" if side.refuted else ""
    subject = f"{one_line(side.subject.architecture, 60)} {side.subject.sha256[:12]}"
    return f"{name}  {side.verdict}{claimed}  {subject}, clean {_share(side.clean)}"


def _inside(name: str, inside: Within | None) -> list[str]:
    """The largest numbers of one network and of its training, none where nothing was measured."""
    if inside is None:
        return []
    line = f"{name}  largest number inside {significant(inside.seen, 'down', 4)} seen, at most {_outward(inside.certified)}"
    if inside.norm_over_cap is not None:
        line += f"; norm over cap {significant(inside.norm_over_cap, 'up', 4)}"
    return [line if inside.spikes is None else f"{line}; loss spikes {inside.spikes}"]


def _outward(bound: str) -> str:
    """An upper bound as people read it; a text that is no number is shown as it stands."""
    try:
        return significant(bound, "up", 4)
    except (ValueError, ArithmeticError):
        return one_line(bound, 40)


def _share(rate: Rate) -> str:
    if not rate.total:
        return "0/0"
    return f"{rate.count}/{rate.total} = {percent(Fraction(rate.count, rate.total), 'down')} %"


def _curves(first: Audit, second: Audit) -> str | None:
    """Certified accuracy of both against eps; None where either cannot be drawn."""
    if "curve" in absent(first) or "curve" in absent(second):
        return None
    size = (940.0, 340.0)
    end = max(point.eps.value for audit in (first, second) for point in audit.curve)

    def paint(figure: Figure) -> None:
        axes = framed(figure, size, left=38, bottom=52, top=30)
        for audit, ink, dashes in ((first, "muted", (5, 2.5)), (second, "certified", (1, 0))):
            radii, certified, _ = stairs(audit, treads=int(size[0] / 3.5))
            shares = [100 * share for share in certified]
            axes.step(radii, shares, where="post", color=INKS[ink], linewidth=2.2, dashes=dashes)
        axes.set_xlim(0, end * 1.02)
        axes.set_ylim(0, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
        label(axes, x="eps, input units", y="% of all samples")

    return draw(
        "sides",
        "Certified accuracy of both audits against eps",
        "The dashed line is the first audit, the solid one the second. The table below the figure holds the numbers.",
        size,
        paint,
    )
