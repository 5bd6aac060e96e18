"""certkit audit: certify, attack and report in one go."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.commands.attack import workers
from certkit.errors import ConfigError, EvaluationInvalid, Refuted

if TYPE_CHECKING:
    from torch import nn

    from certkit.commands.loading import Inputs
    from certkit.data import Dataset
    from certkit.records import Audit, Subject


@click.command()
@options.checkpoint
@click.option(
    "--crosscheck", is_flag=True, help="Ask independent methods as well; certkit crosscheck --help tells of them."
)
@options.together(
    *options.samples,
    *options.threat,
    *options.campaign,
    workers,
    *options.network,
    *options.machine,
    *options.result,
)
def audit(checkpoint: Path, crosscheck: bool, **given: Any) -> None:
    """Certify CHECKPOINT, attack it, set the two side by side and write report.html.

    Exits with 4 when an adversarial example lies inside a certified radius, or a number inside or a slope was attained that
    the proof forbids, and with 3 when the campaign fails its own checks. An interrupted audit resumes its campaign.
    """
    from certkit.commands.attack import run_attack
    from certkit.commands.certify import run_certify, run_health
    from certkit.commands.loading import load_inputs

    inputs = load_inputs(checkpoint, given)
    resumable(inputs, given)
    run_certify(inputs, **given)
    run_health(checkpoint, inputs, **given)
    run_attack(inputs, **given)
    if crosscheck:
        from certkit.commands.crosscheck import run_crosscheck

        run_crosscheck(inputs, **given)
    finish(given["out"], inputs.model, inputs.subject, data=inputs.data, json=given["json"])


def resumable(inputs: Inputs, given: dict[str, Any]) -> None:
    """Raises ConfigError when --out holds another campaign than the one asked for, before anything there is replaced."""
    from certkit.files import load
    from certkit.machine import usable
    from certkit.records import Plan

    planned = importlib.import_module("certkit.attacks.run").planned  # by name, as certkit itself: attacks stands above
    names = ("norm", "suite", "seed", "threads")
    eps, device = options.radii(given["eps"]), usable(given["device"])
    plan = planned(inputs.subject, inputs.data, eps=eps, device=device, **{name: given[name] for name in names})
    path = given["out"] / "campaign" / "plan.json"
    if not path.is_file():
        return
    held, asked = ({**dict(one.threat), **dict(one)} for one in (load(Plan, path), plan))
    told = asked.keys() - {"threat", "roles"}  # the one is its parts, the other follows from the attacks
    if differ := [name for name in asked if name in told and held[name] != asked[name]]:
        raise ConfigError(
            f"{path.parent}: holds another campaign (they differ in {', '.join(differ)}); choose another --out; "
            "nothing was changed"
        )


def finish(
    directory: Path,
    model: nn.Module | None,
    subject: Subject | None,
    *,
    data: Dataset | None = None,
    json: bool,
    also: Callable[[], Sequence[Path]] = tuple,
) -> None:
    """Reconcile, render, say what came of it, and raise what the exit code must tell, whether or not it could be said.

    ``also`` writes what else was asked for beside the page and names it.
    """
    import certkit

    found = certkit.audit(directory, model=model, subject=subject, data=data)
    page = certkit.report(directory)
    written = [page, *also()]
    try:
        options.say(found, [*lines(found), *(f"report  {path}" for path in written)], json=json)
    finally:
        if found.verdict == "REFUTED":
            saved = any(one.example is not None for one in found.contradictions)
            where = f"; the examples are in {directory / 'refutations'}" if saved else ""
            raise Refuted(f"{found.verdict_reason}{where}")
        if found.verdict == "INCONCLUSIVE":
            raise EvaluationInvalid(found.verdict_reason)


def lines(audit: Audit) -> list[str]:
    """The audit in a few lines: verdict first, then accuracy at each eps."""
    found = [f"{audit.verdict}: {audit.verdict_reason}", f"clean accuracy  {options.share(audit.clean)}"]
    found.append(f"{'eps (' + audit.threat.norm + ')':<12}{'certified':<22}{'under attack':<22}")
    for point in audit.curve:
        attacked = "not evaluated" if point.attacked is None else options.share(point.attacked, up=True)
        found.append(f"{point.eps.text:<12}{options.share(point.certified):<22}{attacked:<22}")
    return [*found, *options.worth(audit.attention)]
