"""certkit audit: certify, attack and report in one go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.errors import EvaluationInvalid, Refuted

if TYPE_CHECKING:
    from torch import nn

    from certkit.records import Audit


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
def audit(checkpoint: Path, **given: Any) -> None:
    """Certify CHECKPOINT, attack it, set the two side by side and write report.html.

    Exits with 4 when an adversarial example lies inside a certified radius, and with 3 when the campaign fails its own
    checks. An interrupted audit resumes its campaign.
    """
    from certkit.commands.attack import run_attack
    from certkit.commands.certify import run_certify
    from certkit.commands.loading import load_model

    run_certify(checkpoint, **given)
    run_attack(checkpoint, **given)
    model, _ = load_model(checkpoint, factory=given["model"], allow_pickle=given["allow_pickle"])
    finish(given["out"], model, json=given["json"])


def finish(directory: Path, model: nn.Module | None, *, json: bool) -> None:
    """Reconcile, render, say what came of it, and raise what the exit code must tell."""
    import certkit

    found = certkit.audit(directory, model=model)
    page = certkit.report(directory)
    options.say(found, [*lines(found), f"report  {page}"], json=json)
    if found.verdict == "REFUTED":
        raise Refuted(f"{found.verdict_reason}; the examples are in {directory / 'refutations'}")
    if found.verdict == "INCONCLUSIVE":
        raise EvaluationInvalid(found.verdict_reason)


def lines(audit: Audit) -> list[str]:
    """The audit in a few lines: verdict first, then accuracy at each eps."""
    found = [f"{audit.verdict}: {audit.verdict_reason}", f"clean accuracy  {options.share(audit.clean)}"]
    found.append(f"{'eps (' + audit.threat.norm + ')':<12}{'certified':<22}{'under attack':<22}")
    for point in audit.curve:
        attacked = "not evaluated" if point.attacked is None else options.share(point.attacked)
        found.append(f"{point.eps.text:<12}{options.share(point.certified):<22}{attacked:<22}")
    if audit.attention is not None and audit.attention.decorative:
        found.append("attention is decorative here: uniform weights or no branch cost less than a point")
    return found
