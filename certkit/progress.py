"""A progress bar with an ETA on terminals; nothing at all in logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """``advance(note)`` counts one unit of work; the note stands beside the bar."""

    advance: Callable[[str], None]


@contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar over ``total`` units on stderr, ``done`` of them before, shown only when stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Bar(lambda note: None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, completed=done, note="")
        yield Bar(lambda note: progress.update(task, advance=1, note=note))
