"""certkit crosscheck: what independent methods say of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from certkit.commands import options, output
from certkit.crosscheck import defaults
from certkit.records.crosscheck import MethodName

if TYPE_CHECKING:
    from certkit.commands.loading import Inputs
    from certkit.records.crosscheck import CrossCheck

ASKED = ("samples", "methods", "sigma", "draws", "alpha")  # of the command itself; audit leaves them as they are


@click.command()
@options.checkpoint
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=defaults.SAMPLES,
    show_default=True,
    help="Ask about the first so many.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(get_args(MethodName)),
    multiple=True,
    default=defaults.METHODS,
    show_default=True,
    help="Method of auto_LiRPA; may be given several times.",
)
@click.option(
    "--smoothing", "sigma", type=float, metavar="SIGMA", help="Certify the smoothed classifier as well, in l2."
)
@click.option(
    "--draws", type=click.IntRange(min=1), default=defaults.DRAWS, show_default=True, help="Noisy copies per sample."
)
@click.option(
    "--alpha", type=float, default=defaults.ALPHA, show_default=True, help="Chance that a smoothed radius is wrong."
)
@options.together(*options.samples, *options.threat, options.seed, *options.network, options.threads, *options.result)
def crosscheck(checkpoint: Path, **given: Any) -> None:
    """Set independent methods beside the certificate of CHECKPOINT.

    Slopes that are really attained, auto_LiRPA's bounds (float64, not rounded outward) and, on request, randomised smoothing.
    Writes crosscheck.json to --out; in the folder of an audit, certkit report shows it there.
    """
    from certkit.commands.loading import load_inputs

    found = run_crosscheck(load_inputs(checkpoint, given), **given)
    options.say(found, lines(found, given["out"]), json=given["json"])


def run_crosscheck(inputs: Inputs, **given: Any) -> CrossCheck:
    """The command's work, which audit does as well."""
    from certkit.crosscheck.run import crosscheck as job

    return job(
        inputs.model,
        inputs.data,
        eps=options.radii(given["eps"]),
        norm=given["norm"],
        out=given["out"],
        seed=given["seed"],
        subject=inputs.subject,
        threads=given["threads"],
        progress=lambda stage: output.note(f"cross-check: {stage}"),
        **{name: given[name] for name in ASKED if name in given},
    )


def lines(found: CrossCheck, out: Path) -> list[str]:
    """What each method verified, in a few lines."""
    shown = [f"auto_LiRPA {found.lirpa.version or 'absent'}, {found.lirpa.claim}, on {found.samples} samples"]
    if found.lirpa.message is not None:
        shown.append(found.lirpa.message)
    for method in found.lirpa.methods:
        for bounded in method.bounds:
            shown.append(f"{method.name:<12}verified at {bounded.eps.text:<7}{options.share(bounded.verified)}")
        if method.message is not None:
            shown.append(f"{method.name:<12}{method.message}")
        if method.faults:
            shown.append(f"{method.name:<12}{len(method.faults)} of its bounds exclude outputs that were attained")
    if found.smoothing is not None:
        for point in found.smoothing.certified:
            shown.append(f"smoothed    certified at {point.eps.text:<7}{options.share(point.certified)}")
    return [*shown, f"wrote {out / 'crosscheck.json'}"]
