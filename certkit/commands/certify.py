"""certkit certify: prove how far each sample may move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.records import Certificate


@click.command()
@options.checkpoint
@options.together(
    options.data,
    options.split,
    options.limit,
    options.eps,
    options.norm,
    options.factory,
    options.allow_pickle,
    options.device,
    options.threads,
    options.out,
    options.as_json,
)
def certify(checkpoint: Path, **given: Any) -> None:
    """Prove how far each sample may move before its predicted class can change.

    Writes certificate.json (with the layerwise ledger) and certified.parquet (a radius per sample) to --out. Certificates
    are always computed on the CPU in float64; --device is where the model is run beside its exported graph.
    """
    certificate = run_certify(checkpoint, **given)
    options.say(certificate, lines(certificate, given["out"]), json=given["json"])


def run_certify(checkpoint: Path, **given: Any) -> Certificate:
    """The command's work, which audit does as well."""
    import certkit
    from certkit.commands.loading import load_model
    from certkit.data import load
    from certkit.machine import usable

    model, subject = load_model(checkpoint, factory=given["model"], allow_pickle=given["allow_pickle"])
    model.to(usable(given["device"]))
    return certkit.certify(
        model,
        load(given["data"], given["split"], limit=given["limit"]),
        eps=options.radii(given["eps"]),
        norm=given["norm"],
        out=given["out"],
        subject=subject,
        threads=given["threads"],
    )


def lines(certificate: Certificate, out: Path) -> list[str]:
    """The certificate in a few lines."""
    found = [f"clean accuracy      {options.share(certificate.clean)}"]
    for point in certificate.certified:
        found.append(f"certified at {point.eps.text:<7}{options.share(point.certified)}")
    if certificate.attention is not None and certificate.attention.decorative:
        found.append("attention is decorative here: uniform weights or no branch cost less than a point")
    return [*found, f"wrote {out / 'certificate.json'} and {out / 'certified.parquet'}"]
