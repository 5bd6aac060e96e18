"""certkit attack: try to refute it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options

if TYPE_CHECKING:
    from certkit.campaign import Campaign


@click.command()
@options.checkpoint
@options.together(
    options.data,
    options.split,
    options.limit,
    options.eps,
    options.norm,
    options.suite,
    options.seed,
    options.factory,
    options.allow_pickle,
    options.device,
    options.threads,
    options.out,
    options.as_json,
)
def attack(checkpoint: Path, **given: Any) -> None:
    """Run an attack campaign, or resume it.

    Writes the plan, one Parquet shard per unit of work and the campaign's checks on itself to --out/campaign. The same
    command after an interruption runs only what is missing.
    """
    campaign = run_attack(checkpoint, **given)
    options.say(campaign.summary(), lines(campaign, given["out"]), json=given["json"])


def run_attack(checkpoint: Path, **given: Any) -> Campaign:
    """The command's work, which audit does as well."""
    import certkit
    from certkit.commands.loading import load_model
    from certkit.data import load
    from certkit.machine import usable

    model, subject = load_model(checkpoint, factory=given["model"], allow_pickle=given["allow_pickle"])
    campaign: Campaign = certkit.attack(
        model,
        load(given["data"], given["split"], limit=given["limit"]),
        subject=subject,
        norm=given["norm"],
        eps=options.radii(given["eps"]),
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
        found.append(f"attacked at {eps.text:<8}{options.share(rate(robust, total))}")
    return [*found, f"wrote {out / 'campaign'}"]
