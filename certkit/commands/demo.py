"""certkit demo: the whole job once, on data that comes along."""

from __future__ import annotations

from pathlib import Path

import click

from certkit.commands import options, output

EPS = "0.1,0.25,0.5,0.75"


@click.command()
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder to write to.",
)
@options.together(options.threads, options.as_json)
def demo(out: Path, threads: int | None, json: bool) -> None:
    """Train a small Lipschitz vision transformer on digits, certify it, attack it, and write the report.

    Takes under three minutes on two cores and needs no network.
    """
    import certkit
    from certkit import config
    from certkit.commands.audit import audit

    checkpoint = out / "checkpoint"
    output.note("training the preset digits-vit")
    trained = certkit.train(config.preset("digits-vit"), out=checkpoint, threads=threads)
    output.note(f"trained in {trained.provenance.seconds:.0f} s; certifying, attacking and cross-checking")
    words = [str(checkpoint), "--eps", EPS, "--crosscheck", "--out", str(out / "audit")]
    words += ["--threads", str(threads)] if threads else []
    words += ["--json"] if json else []
    audit.main(words, standalone_mode=False)
