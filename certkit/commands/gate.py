"""certkit gate: exit with 1 unless an audit meets the thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.gate import Kind

_AT = "SHARE@NORM:EPS"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--min-clean", metavar="SHARE", multiple=True, help="At least this share is classified correctly.")
@click.option("--min-certified", metavar=_AT, multiple=True, help="At least this share is proved, such as 0.6@l2:0.25.")
@click.option("--min-executed", metavar=_AT, multiple=True, help="As much of the float program that is deployed.")
@click.option("--min-attacked", metavar=_AT, multiple=True, help="At least this share survives every attack.")
@click.option("--max-gap", metavar=_AT, multiple=True, help="At most this share is neither proved nor broken.")
@options.as_json
def gate(directory: Path, json: bool, **given: tuple[str, ...]) -> None:
    """Exit with 1 unless the audit in DIRECTORY meets every threshold.

    A refuted audit exits with 4 and an inconclusive one with 3, whatever was asked. The certificate is derived again from
    its ledger first; to re-measure it from the checkpoint as well, run certkit verify.
    """
    from certkit.errors import ConfigError, EvaluationInvalid, GateFailed, Refuted
    from certkit.gate import Threshold
    from certkit.gate import gate as judge

    kinds: tuple[tuple[str, Kind], ...] = (
        ("min_clean", "min-clean"),
        ("min_certified", "min-certified"),
        ("min_executed", "min-executed"),
        ("min_attacked", "min-attacked"),
        ("max_gap", "max-gap"),
    )
    thresholds = [Threshold.of(kind, text) for name, kind in kinds for text in given[name]]
    if not thresholds:
        raise ConfigError("no threshold was given; expected one such as --min-certified 0.6@l2:0.25")
    found = judge(directory, thresholds)
    lines = [f"{'met   ' if one.met else 'failed'}  {one.reason}" for one in found.thresholds]
    options.say(found, [f"verdict {found.verdict}", *lines], json=json)
    if found.verdict == "REFUTED":
        raise Refuted("the audit refutes its certificate; no threshold can pass")
    if found.verdict == "INCONCLUSIVE":
        raise EvaluationInvalid("the audit's campaign is not valid; no threshold can pass")
    if failed := [one for one in found.thresholds if not one.met]:
        raise GateFailed(failed[0].reason)
