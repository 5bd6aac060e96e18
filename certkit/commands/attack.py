"""certkit attack: try to refute it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.campaign import Campaign
    from certkit.commands.loading import Inputs


@click.command()
@options.checkpoint
@options.together(
    *options.samples,
    *options.threat,
    *options.campaign,
    *options.network,
    *options.machine,
    *options.result,
)
def attack(checkpoint: Path, **given: Any) -> None:
    """Run an attack campaign, or resume it.

    Writes the plan, one Parquet shard per unit of work and the campaign's checks on itself to --out/campaign. The same
    command after an interruption runs only what is missing.
    """
    from certkit.commands.loading import load_inputs

    campaign = run_attack(load_inputs(checkpoint, given), **given)
    options.say(campaign.summary(), lines(campaign, given["out"]), json=given["json"])


def run_attack(inputs: Inputs, **given: Any) -> Campaign:
    """The command's work, which audit does as well."""
    import certkit
    from certkit.machine import usable
    from certkit.records import radii

    campaign: Campaign = certkit.attack(
        inputs.model,
        inputs.data,
        subject=inputs.subject,
        norm=given["norm"],
        eps=[radius.text for radius in radii(options.radii(given["eps"]))],
        suite=given["suite"],
        out=given["out"],
        seed=given["seed"],
        threads=given["threads"],
        device=usable(given["device"]),
    )
    return campaign


def lines(campaign: Campaign, out: Path) -> list[str]:
    """The campaign in a few lines."""
    from certkit.statistics import rate

    total = len(campaign.index)
    found = [f"clean accuracy      {options.share(rate(int(campaign.clean_correct.sum()), total))}"]
    for eps in campaign.plan.threat.eps:
        robust = int(campaign.robust(eps.value).sum())
        found.append(f"attacked at {eps.text:<8}{options.share(rate(robust, total), up=True)}")
    return [*found, f"wrote {out / 'campaign'}"]
