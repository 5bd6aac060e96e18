"""certkit precision: what rounding the weights can do to the logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.records.precision import Precision


@click.command()
@options.checkpoint
@click.option(
    "--format",
    "formats",
    multiple=True,
    metavar="NAME",
    help="Number format of the weights: bf16, fp8-e4m3 (one scale per tensor), fp8-e4m3-unscaled or int8 (one scale per "
    "output channel); may be given several times.  [default: bf16, fp8-e4m3, int8]",
)
@options.together(*options.samples, *options.network, options.threads, *options.result)
def precision(checkpoint: Path, **given: Any) -> None:
    """Prove how far the logits can move when the weights are rounded.

    Every parameter is rounded; activations and sums are not, so this is about the weights' precision only. Writes
    precision.json and precision.parquet (one row per sample) to --out.
    """
    from certkit.commands.loading import load_inputs
    from certkit.engine.formats import USUAL
    from certkit.engine.precision import precision as job

    inputs = load_inputs(checkpoint, given)
    found = job(
        inputs.model,
        inputs.data,
        formats=given["formats"] or USUAL,
        out=given["out"],
        subject=inputs.subject,
        threads=given["threads"],
    )
    options.say(found, lines(found, given["out"]), json=given["json"])


def lines(found: Precision, out: Path) -> list[str]:
    """The result in a few lines: the drift on the whole box rounded up, the largest seen, and who keeps the class."""
    shown = [
        f"clean accuracy     {options.share(found.clean)}",
        f"{'weights':<19}{'logit drift':<13}{'largest seen':<14}{'class kept, by drift':<23}class kept, by sample",
    ]
    for each in found.formats:
        shown.append(
            f"{each.format:<19}{_up(each.drift):<13}{each.largest_observed:<14.3g}"
            f"{options.share(each.anywhere):<23}{options.share(each.survives)}"
        )
    return [*shown, f"wrote {out / 'precision.json'} and {out / 'precision.parquet'}"]


def _up(bound: float) -> str:
    """Three digits that are not below the bound."""
    from decimal import ROUND_CEILING, Context, Decimal

    return f"{float(Context(prec=3, rounding=ROUND_CEILING).plus(Decimal(bound))):.3g}"
