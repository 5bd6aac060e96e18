"""certkit report: the HTML audit report of a folder, and its twins."""

from __future__ import annotations

import importlib
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from certkit.commands import options


def twins() -> Any:
    """The module that writes the twins, by name, as reports stands above; it draws figures, so it is asked for when needed."""
    return importlib.import_module("certkit.reports.twins")


class Twins(click.Choice[str]):
    """The twins that reports has, or all of them."""

    case_sensitive = True

    def __init__(self) -> None:
        """Nothing is read yet."""

    @cached_property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("all", *twins().TWINS)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Needed only when an adversarial example inside a certified radius must be evaluated again.",
)
@click.option(
    "--format",
    "formats",
    type=Twins(),
    multiple=True,
    help="Write a twin of the report as well, for other programs; may be given several times.",
)
@click.option("--data", help="Data set of the certificate, to draw the pictures of samples anew.")
@options.together(*options.network, options.as_json)
def report(
    directory: Path,
    checkpoint: Path | None,
    data: str | None,
    formats: tuple[str, ...],
    model: str | None,
    allow_pickle: bool,
    normalisation: str | None,
    json: bool,
) -> None:
    """Reconcile the certificate and the campaign in DIRECTORY and write audit.json and report.html there."""
    from certkit.commands.audit import finish

    module = subject = None
    if checkpoint is not None:
        from certkit.commands.loading import load_model

        module, subject = load_model(checkpoint, factory=model, allow_pickle=allow_pickle, normalisation=normalisation)

    samples = None
    if data is not None:
        from certkit.data import load
        from certkit.files import load as read
        from certkit.records import Certificate

        record = read(Certificate, directory / "certificate.json").data
        samples = load(data, record.split, limit=record.count)

    def also() -> list[Path]:
        return [*twins().write(directory, twins().TWINS if "all" in formats else formats)] if formats else []

    finish(directory, module, subject, data=samples, json=json, also=also)
