"""certkit report: the HTML audit report of a folder."""

from __future__ import annotations

from pathlib import Path

import click

from certkit.commands import options


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Needed only when an adversarial example inside a certified radius must be evaluated again.",
)
@options.together(options.factory, options.allow_pickle, options.as_json)
def report(directory: Path, checkpoint: Path | None, model: str | None, allow_pickle: bool, json: bool) -> None:
    """Reconcile the certificate and the campaign in DIRECTORY and write audit.json and report.html there."""
    from certkit.commands.audit import finish

    module = subject = None
    if checkpoint is not None:
        from certkit.commands.loading import load_model

        module, subject = load_model(checkpoint, factory=model, allow_pickle=allow_pickle)
    finish(directory, module, subject, json=json)
