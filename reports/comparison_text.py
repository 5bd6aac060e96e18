"""The comparison as a table for the terminal and as Markdown. No torch here.

Names come from a user's file: they are shown on one line, escaped for Markdown, and measured in columns of a terminal.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

from certkit.comparison import Comparison
from certkit.errors import one_line

from .comparison_numbers import Line, audited, lines, radii_of

WIDTH = 120  # columns of a terminal
NARROWEST = 14  # columns that a name gets, however many radii there are


def table(comparison: Comparison) -> str:
    """The rows for a terminal, in at most 120 columns for two radii; long names go on in a second line.

    What was refuted stands above them.
    """
    found, notes = lines(comparison)
    heads = [tuple(head.split("\n")) for head in _heads(comparison)]
    cells = [_cells(line) for line in found]
    widths = [max(map(columns, (*head, *(row[i] for row in cells)))) for i, head in enumerate(heads)]
    room = max(NARROWEST, WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    widths[0] = min(widths[0], room)
    printed = [*zip(*heads, strict=True), ("-" * width for width in widths)]
    for row in cells:
        first, *more = _wrapped(row[0], widths[0])
        printed.append((first, *row[1:]))
        printed.extend((f"  {part}", *("" for _ in row[1:])) for part in more)
    text = ["  ".join(_padded(cell, widths[i], left=i == 0) for i, cell in enumerate(row)).rstrip() for row in printed]
    above = [part for line in found if line.refutation for part in _filled(_flag(line), WIDTH)]
    below = [*_explained(comparison), *(f"[{i}] {note}" for i, note in enumerate(notes, start=1))]
    return "\n".join(
        [*above, *([""] if above else []), *text, "", *(part for note in below for part in _filled(note, WIDTH))]
    )


def markdown(comparison: Comparison) -> str:
    """The same rows as a Markdown table, with what they mean below it."""
    found, notes = lines(comparison)
    rows = [[head.replace("\n", " ").strip() for head in _heads(comparison)]]
    rows.append(["---", *("--:" for _ in rows[0][1:])])
    rows.extend([_escaped(cell) for cell in _cells(line)] for line in found)
    text = [f"# {_escaped(one_line(comparison.name))}", ""]
    for line in found:
        if line.refutation:
            text += [f"**{_escaped(_flag(line))}**", ""]
    text += [_escaped(summary(comparison)), ""]
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
        f"{', '.join(map(str, seeds))}. Each row is shown at the learning rate with the highest mean accuracy on data "
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
        *(at or ["test\nloss"]),
    ]


def _cells(line: Line) -> list[str]:
    proved = [
        cell
        for certified, attacked in line.robust
        for cell in (certified + _reference(line.note), attacked + _reference(line.doubt))
    ]
    return [
        line.name, line.learning_rate, line.test, line.steps, line.gap, line.spikes, line.failed, line.norm,
        line.promise, *(proved or [line.loss]),
    ]  # fmt: skip


def _reference(note: int | None) -> str:
    return "" if note is None else f"[{note}]"


def _flag(line: Line) -> str:
    return f"REFUTED: {line.name}: {line.refutation}"


def _explained(comparison: Comparison) -> tuple[str, str]:
    """What the columns mean, one sentence or two each."""
    always = (
        "test: mean over the seeds, ± one standard deviation of these seeds; this is no significance test. steps: median "
        "over the seeds that reached the target. gap: training minus validation accuracy, in points. norm / cap: the "
        "largest proved norm of a weight, as a share of its cap; promise: whether the constraint is proved to hold it."
    )
    last = (
        f"cert.: share of {audited(comparison)} that is right and certified at that l2 eps, mean over the "
        "seeds, rounded down; of the function in exact arithmetic, by certkit's global bound. att.: share that the "
        "program, in float arithmetic, still gets right after the attacks, rounded up."
        if comparison.eps
        else "test loss: cross-entropy in nats per token of the test text (per image where images are learned), mean over "
        "the seeds ± one standard deviation of these, both rounded up."
    )
    return always, last


def _escaped(text: str) -> str:
    """Text that Markdown takes for text: no cell ends, no element or formula begins."""
    return re.sub(r"([\\`*_\[\]|$~])", r"\\\1", escape(text, quote=False))


def columns(text: str) -> int:
    """Columns that a terminal gives the text."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, *, left: bool) -> str:
    space = " " * (width - columns(text))
    return text + space if left else space + text


def cut(text: str, width: int) -> str:
    """The text in that many columns, ending in … where some of it is missing."""
    if columns(text) <= width:
        return text
    while columns(text) >= width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _filled(text: str, width: int) -> list[str]:
    """The text in lines of at most that many columns, broken at spaces where it has any."""
    found = [""]
    for word in text.split(" "):
        if found[-1] and columns(f"{found[-1]} {word}") <= width:
            found[-1] += f" {word}"
            continue
        found.append("")
        for character in word:
            if columns(found[-1] + character) > width:
                found.append("")
            found[-1] += character
    return [line for line in found if line]


def _wrapped(name: str, width: int) -> list[str]:
    """The name in one line or two, the second to be indented by two columns."""
    if columns(name) <= width:
        return [name]
    first = _filled(name, width)[0]
    return [first, cut(name[name.index(first) + len(first) :].strip(), width - 2)]
