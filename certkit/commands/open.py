"""certkit open: the report of a folder in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from certkit.commands import options


@click.command("open")
@click.argument("directory", type=click.Path(path_type=Path))
@options.as_json
def open_(directory: Path, json: bool) -> None:
    """Open DIRECTORY/report.html in the browser of this machine; where there is none, say where the page is."""
    from certkit.errors import RecordError, one_line

    page = directory / "report.html"
    if not page.is_file():
        raise RecordError(f"{one_line(directory)}: no report.html here; run certkit report {one_line(directory)} first")
    options.say({"page": str(page)}, [str(page)], json=json)
    click.launch(page.resolve().as_uri())
