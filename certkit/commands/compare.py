"""certkit compare: two audits side by side."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from certkit.commands import options


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for compared.html and compared.json.",
)
@options.as_json
def compare(first: Path, second: Path, out: Path | None, json: bool) -> None:
    """Set the audits in folders FIRST and SECOND side by side: verdicts, accuracy, and the samples that regressed.

    With the same samples in both, each radius gets McNemar's exact test; with other samples only totals are compared.
    """
    sides = importlib.import_module("certkit.reports.sides_page")  # by name: reports stands above
    found = sides.compared(first, second, out=out)
    written = [] if out is None else [f"compared  {out / name}" for name in ("compared.html", "compared.json")]
    options.say(found, [*sides.lines(found), *written], json=json)
