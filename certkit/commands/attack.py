"""certkit attack: try to refute it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.errors import EvaluationInvalid

if TYPE_CHECKING:
    from certkit.campaign import Campaign
    from certkit.commands.loading import Inputs

norm = click.option(
    "--norm",
    type=click.Choice(["l2", "linf", "l1", "l0", "token"]),
    default="l2",
    show_default=True,
    help="Norm of the threat; token is l2 over the last axis, l0 counts changed entries.",
)
attacks = click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="One more attack, by certkit's name or Foolbox's, such as L2CarliniWagnerAttack:steps=100. Repeatable.",
)
knowledge = click.option(
    "--knowledge",
    type=click.Choice(["white-box", "score", "decision", "transfer"]),
    default="white-box",
    show_default=True,
    help="What the attacker knows of the network.",
)
target = click.option("--target", type=click.IntRange(min=0), help="Aim at this class only.")
source = click.option("--source", type=click.IntRange(min=0), help="With --target: attack samples of this class only.")
steps = click.option("--steps", type=click.IntRange(min=1), help="At most so many steps of each attack.")
queries = click.option("--queries", type=click.IntRange(min=1), help="At most so many queries per sample and search.")
seconds = click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop a unit of work after so long; the campaign is then inconclusive.",
)
surrogate = click.option(
    "--surrogate", type=click.Path(path_type=Path), help="Checkpoint whose adversarial examples are tried here as well."
)
certificate = click.option(
    "--certificate",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with a certificate: adds an attack where it and the other attacks are furthest apart.",
)
workers = click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes; they change no byte."
)
executor = click.option(
    "--executor",
    type=click.Choice(["process", "submitit", "ray"]),
    default="process",
    show_default=True,
    help="Where the workers run.",
)
MORE = ("knowledge", "target", "source", "steps", "queries", "seconds", "workers", "executor", "attacks", "certificate")


@click.command()
@options.checkpoint
@options.together(
    *options.samples,
    options.eps,
    norm,
    *options.campaign,
    attacks,
    knowledge,
    target,
    source,
    steps,
    queries,
    seconds,
    surrogate,
    certificate,
    workers,
    executor,
    *options.network,
    *options.machine,
    *options.result,
)
def attack(checkpoint: Path, **given: Any) -> None:
    """Run an attack campaign, or resume it.

    Writes the plan, one Parquet shard per unit of work and the campaign's checks on itself to --out/campaign. The same
    command after an interruption runs only what is missing. Exits with 3 when the campaign fails its own checks.
    """
    from certkit.commands.loading import load_inputs

    campaign = run_attack(load_inputs(checkpoint, given), **given)
    options.say(campaign.summary(), lines(campaign, given["out"]), json=given["json"])
    if campaign.validity == "invalid":
        failed = ", ".join(check.id for check in campaign.checks if check.status == "fail")
        raise EvaluationInvalid(f"the campaign failed its own checks ({failed}), so its silence means little")


def run_attack(inputs: Inputs, **given: Any) -> Campaign:
    """The command's work, which audit does as well."""
    import certkit
    from certkit.commands.loading import load_model
    from certkit.machine import usable
    from certkit.records import radii

    more = {name: given[name] for name in MORE if name in given}
    if given.get("surrogate") is not None:
        more["surrogate"], _ = load_model(given["surrogate"], allow_pickle=given["allow_pickle"])
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
        **more,
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
    loud = [f"{check.id} {check.name}: {check.status}" for check in campaign.checks if check.status in ("fail", "flag")]
    if campaign.units_executed < campaign.units_planned:
        stopped = campaign.units_planned - campaign.units_executed
        found.append(f"INCONCLUSIVE: {stopped} of {campaign.units_planned} units of work were stopped by a limit")
    found.append(f"checks              {campaign.validity}{': ' if loud else ''}{'; '.join(loud)}")
    return [*found, f"wrote {out / 'campaign'}"]
