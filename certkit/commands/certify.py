"""certkit certify: prove how far each sample may move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.errors import CertkitError

if TYPE_CHECKING:
    from certkit.commands.loading import Inputs
    from certkit.records import Certificate


@click.command()
@options.checkpoint
@options.together(
    *options.samples,
    *options.threat,
    *options.network,
    *options.machine,
    *options.result,
)
def certify(checkpoint: Path, **given: Any) -> None:
    """Prove how far each sample may move before its predicted class can change.

    Writes certificate.json (with the layerwise ledger) and certified.parquet (a radius per sample) to --out, and for the
    report health.json: the largest numbers inside, the spectra of the weights, the training run. Certificates are always
    computed on the CPU in float64; --device is where the model is run beside its exported graph.
    """
    from certkit.commands.loading import load_inputs

    inputs = load_inputs(checkpoint, given)
    certificate = run_certify(inputs, **given)
    run_health(checkpoint, inputs, **given)
    options.say(certificate, lines(certificate, given["out"]), json=given["json"])


def run_certify(inputs: Inputs, **given: Any) -> Certificate:
    """The command's work, which audit does as well.

    The audit and the report of an older certificate go first: they must not stand beside a new one that they do not tell of.
    """
    import certkit
    from certkit.machine import usable
    from certkit.records import radii

    model = inputs.model.to(usable(given["device"]))
    eps = [radius.text for radius in radii(options.radii(given["eps"]))]
    out: Path = given["out"]
    if (out / "certificate.json").is_file():
        for name in ("audit.json", "report.html", "health.json"):
            (out / name).unlink(missing_ok=True)
    certificate = certkit.certify(
        model, inputs.data, eps=eps, norm=given["norm"], out=out, subject=inputs.subject, threads=given["threads"]
    )
    model.cpu()
    return certificate


def run_health(checkpoint: Path, inputs: Inputs, **given: Any) -> None:
    """Measure what the report shows of the network's insides, for the certificate that stands in --out."""
    from certkit.health.measure import measure

    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    measure(
        inputs.model,
        inputs.data,
        out=given["out"],
        checkpoint=folder,
        cap=_cap(folder) if given["model"] is None else None,
        subject=inputs.subject,
        threads=given["threads"],
    )


def _cap(folder: Path) -> float | None:
    """What training multiplied every declared cap by, as config.json says; None where it says so of no cap."""
    from certkit.checkpoint import CONFIG, settings
    from certkit.config import validate

    try:
        run = validate(settings(folder / CONFIG), CONFIG)
    except CertkitError:  # of another architecture, whose loading has said what is to be said of it
        return None
    return None if run.training.constraint == "none" else run.training.cap


def lines(certificate: Certificate, out: Path) -> list[str]:
    """The certificate in a few lines: what is proved of the function, and of the program that runs."""
    execution, alone = certificate.execution, certificate.without_local
    found = [
        f"clean accuracy  {options.share(certificate.clean)}",
        f"{'eps (' + certificate.threat.norm + ')':<12}{'exact arithmetic':<22}{execution.arithmetic} execution",
    ]
    executed = {point.eps.value: options.share(point.certified) for point in execution.certified}
    for point in certificate.certified:
        program = executed.get(point.eps.value, "no claim")
        found.append(f"{point.eps.text:<12}{options.share(point.certified):<22}{program}")
    if execution.reasons:
        more = len(execution.reasons) - 1
        found.append(f"no claim about the execution: {execution.reasons[0]}{f' (and {more} more)' if more else ''}")
    found.append(
        f"median radius   {certificate.median_radius:.4g}, of the whole box alone {alone.median_radius:.4g}; "
        f"{alone.improved} samples have a larger one on their own ball"
    )
    return [
        *found,
        *options.worth(certificate.attention),
        f"wrote {out / 'certificate.json'} and {out / 'certified.parquet'}",
    ]
