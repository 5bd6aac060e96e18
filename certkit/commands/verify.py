"""certkit verify: check a certificate or audit, and prove it again from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.data import Dataset
    from certkit.verification import Verification


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
@click.option("--data", help="Data set of the certificate.  [default: the one that it names]")
@options.together(*options.network, options.as_json)
def verify(directory: Path, **given: Any) -> None:
    """Check DIRECTORY, which certify or audit wrote, and say what was verified and what could not be.

    From the files alone: digests, every step of the ledgers, radii, counts. With --checkpoint also the evidence: the graph
    is exported and every norm measured again, and a sample of rows gets its logits and radii anew. Anything that
    contradicts itself or the network ends with exit code 2.
    """
    from certkit.commands.loading import compare_runtime, load_model
    from certkit.proof import load_certificate
    from certkit.verification import verify

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
    """The samples of a certificate, read again; where it names a data set that is not found by that name, why not."""
    from certkit.data import load
    from certkit.errors import DataError

    try:
        return load(record.name if name is None else name, record.split, limit=record.count), None
    except DataError as error:
        if name is not None:
            raise
        return None, str(error)


def lines(found: Verification, reason: str | None) -> list[str]:
    """The verification in a few lines."""
    told = [f"verified      {statement.what}: {statement.how}" for statement in found.verified]
    told += [f"NOT verified  {statement.what}: {statement.how}" for statement in found.not_verified]
    return told if reason is None else [*told, f"the samples were not read: {reason}"]
