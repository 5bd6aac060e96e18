"""certkit verify: check a certificate or audit, and prove it again from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.data import Dataset
    from certkit.verification import Verification

EMBEDDED = "digits"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The network that was certified.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="How many rows get their logits and radii anew, drawn by --seed.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the draw.  [default: another one each time]")
@click.option(
    "--data", help="Data set of the certificate.  [default: digits, where it names that; no other is looked for]"
)
@options.together(*options.network, options.as_json)
def verify(directory: Path, **given: Any) -> None:
    """Check DIRECTORY, which certify, audit or language wrote, and say what was verified and what could not be.

    From the files alone: digests, every step of the ledgers, radii, counts; audit.json is derived again, the page and its
    twins are made again, and compared byte by byte. With --checkpoint also the evidence: the graph is exported and every
    norm measured again, and a sample of rows gets its logits and radii anew. What contradicts itself, another file or the
    network ends with exit code 2 and the file's name. Nothing is downloaded unless --data names it.
    """
    from certkit.commands.loading import compare_runtime, load_model
    from certkit.proof import load_certificate
    from certkit.verification import verify

    if (directory / "language.json").is_file():
        from certkit.commands.language import verified

        options.say(*verified(directory, given, lines), json=given["json"])
        return
    model = subject = data = None
    reason = None
    if given["checkpoint"] is not None:
        names = {"factory": given["model"], **{name: given[name] for name in ("allow_pickle", "normalisation")}}
        certificate, *_ = load_certificate(directory)
        model, subject = load_model(given["checkpoint"], **names)
        data, reason = samples_of(certificate.data, given["data"])
        if data is not None:
            compare_runtime(given["checkpoint"], model, data)
    found = verify(directory, model=model, subject=subject, data=data, samples=given["samples"], seed=given["seed"])
    options.say(found, lines(found, reason), json=given["json"])


def samples_of(record: Any, name: str | None) -> tuple[Dataset | None, str | None]:
    """The samples of a certificate, read again, or why they were not.

    A certificate may come from anyone, and the name in it is not followed to the network or into a folder: without --data
    only the set that comes along is read.
    """
    from certkit.data import load
    from certkit.errors import one_line

    if name is None and record.name != EMBEDDED:
        return None, f"the certificate names data set {one_line(record.name, 80)!r}: give it with --data"
    return load(record.name if name is None else name, record.split, limit=record.count), None


def lines(found: Verification, reason: str | None) -> list[str]:
    """The verification in a few lines."""
    told = [f"verified      {statement.what}: {statement.how}" for statement in found.verified]
    told += [f"NOT verified  {statement.what}: {statement.how}" for statement in found.not_verified]
    return told if reason is None else [*told, f"the samples were not read: {reason}"]
