"""The evaluation checks that a campaign can make of itself while it runs; each is evidence, none is a stamp.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv 1902.06705) and Pintor et al. 2022, "Indicators
of Attack Failure" (arXiv 2106.09947). A check that this campaign does not make is absent, never a silent pass.
Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from certkit.campaign import Campaign, Floats, Images, distance_up
from certkit.errors import Refusal, one_line
from certkit.records import Check
from certkit.statistics import rate

from .model import Classifier, rivals
from .suites import method_of

if TYPE_CHECKING:
    from .engine import Block, Engine
    from .work import Samples

Status = Literal["pass", "flag", "fail", "not evaluated"]

FORWARDS = 5
SAME = 1e-4  # of the largest logit
FEW = 500


@dataclass(frozen=True, slots=True)
class Before:
    """What the first block showed of the model before anything was attacked."""

    checks: tuple[Check, ...]


def before(classifier: Classifier, block: Block) -> Before:
    """Checks of the model itself. Raises Refusal when no gradient reaches the input: every attack here follows one."""
    x = torch.from_numpy(block.images).to(classifier.device)
    labels = torch.from_numpy(block.labels).to(classifier.device)
    with torch.no_grad():
        runs = torch.stack([classifier(x) for _ in range(FORWARDS)]).double()
    try:
        _gradient(classifier, x, labels, torch.nn.functional.cross_entropy)
    except RuntimeError as error:
        raise Refusal(
            f"no gradient of the logits reaches the input ({one_line(error, 120)}); gradient attacks would show "
            "nothing, so remove detach, rounding or numpy from the model's forward"
        ) from None
    return Before((_evaluation_mode(classifier), _determinism(classifier, runs), _logits(runs[0]), _graph()))


def after(engine: Engine, facts: Before, campaign: Campaign, samples: Samples) -> tuple[Check, ...]:
    """Every check of a finished campaign, by number."""
    classifier, images = engine.classifier, samples.images
    found = (
        _clean_accuracy(campaign),
        *facts.checks,
        _zero_gradients(classifier, campaign, images),
        _monotone(campaign),
        _noise_floor(campaign),
        _box_and_norm(campaign, images),
        _size(campaign),
    )
    return tuple(sorted(found, key=lambda check: check.id))


def _clean_accuracy(campaign: Campaign) -> Check:
    clean = rate(int(campaign.clean_correct.sum()), len(campaign.index))
    figure = f"{clean.count} of {clean.total} right without attack (95 % interval {clean.low:.4f} to {clean.high:.4f})"
    return Check(
        id="EV02",
        name="clean accuracy on the same samples",
        status="pass",
        figure=figure,
        advice="read every robust accuracy against this one",
    )


def _evaluation_mode(classifier: Classifier) -> Check:
    count = sum(1 for _ in classifier.module.modules())
    still = [name or "the model" for name, module in classifier.module.named_modules() if module.training]
    status: Status = "fail" if still else "flag" if classifier.arrived_training else "pass"
    figure = f"{count} modules in evaluation mode"
    if still:
        figure = f"{len(still)} of {count} modules stay in training mode (first: {one_line(still[0], 80)})"
    elif classifier.arrived_training:
        figure = (
            f"{classifier.arrived_training} of {count} modules came in training mode and were put into evaluation mode"
        )
    return Check(
        id="EV03",
        name="evaluation mode",
        status=status,
        figure=figure,
        advice="call model.eval(): dropout and batch statistics make an attack aim at another model than is deployed",
    )


def _determinism(classifier: Classifier, runs: Tensor) -> Check:
    scale = max(float(runs.abs().max()), 1e-30)
    difference = float((runs - runs[0]).abs().max()) / scale
    reduced = classifier.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(classifier.device.type)
    reduced |= classifier.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    status: Status = "fail" if not difference <= SAME else "flag" if difference > 0 or reduced else "pass"
    figure = f"{FORWARDS} forwards differ by {difference:.3g} of the largest logit (limit {SAME:g})"
    return Check(
        id="EV04",
        name="the same input gives the same logits",
        status=status,
        figure=figure + ("; reduced precision is on" if reduced else ""),
        advice="attack a randomised model through the expectation over its randomness; switch autocast and TF32 off",
    )


def _logits(logits_BK: Tensor) -> Check:
    inside = (logits_BK >= 0).all() & (logits_BK <= 1).all()
    probabilities = bool(inside & ((logits_BK.sum(dim=1) - 1).abs() <= 1e-3).all())
    return Check(
        id="EV05",
        name="the output is logits",
        status="flag" if probabilities else "pass",
        figure="every row is a probability distribution" if probabilities else "rows are not probabilities",
        advice="hand over the model without its softmax: its gradients vanish where it is confident",
    )


def _graph() -> Check:
    return Check(
        id="EV07",
        name="gradients reach the input",
        status="pass",
        figure="the loss can be differentiated to the pixels; a model where it cannot is refused",
        advice="remove detach, rounding or numpy from the model's forward",
    )


def _margin(logits_BK: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The strongest rival minus the label."""
    rows = torch.arange(len(labels), device=labels.device)
    return (logits_BK[rows, rivals(logits_BK, labels)] - logits_BK[rows, labels]).sum()


def _gradient(classifier: Classifier, x: Tensor, labels: Tensor, loss: object) -> Tensor:
    """The gradient of the summed loss with respect to each sample, one row each."""
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        total = loss(classifier(x), labels, reduction="sum")  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(total, x)
    return gradient.reshape(len(x), -1)


def _zero_gradients(classifier: Classifier, campaign: Campaign, images: Images) -> Check:
    right = np.flatnonzero(campaign.clean_correct)
    counts = {"cross-entropy": 0, "margin": 0}
    for start in range(0, len(right), campaign.plan.block):
        rows = right[start : start + campaign.plan.block]
        x = torch.from_numpy(images[rows]).to(classifier.device)
        labels = torch.from_numpy(campaign.label[rows]).to(classifier.device)
        for name, loss in (("cross-entropy", torch.nn.functional.cross_entropy), ("margin", _margin)):
            gradient = _gradient(classifier, x, labels, loss)
            dead = (gradient == 0).all(dim=1) | ~gradient.isfinite().all(dim=1)
            counts[name] += int(dead.sum())
    share = max(counts.values()) / max(len(right), 1)
    status: Status = "not evaluated" if not len(right) else "fail" if share > 0.05 else "flag" if share else "pass"
    figure = ", ".join(f"{name} {count}" for name, count in counts.items())
    return Check(
        id="EV06",
        name="gradients are not zero",
        status=status,
        figure=f"zero or undefined gradients among {len(right)} samples: {figure}",
        advice="a masked gradient is no robustness: attack with the margin, a smoothed model, or without gradients",
    )


def _monotone(campaign: Campaign) -> Check:
    robust = [int(campaign.robust(eps.value).sum()) for eps in campaign.plan.threat.eps]
    falls = all(later <= earlier for earlier, later in pairwise(robust))
    return Check(
        id="EV09",
        name="robust accuracy does not rise with eps",
        status="pass" if falls else "fail",
        figure=f"robust samples by eps: {', '.join(map(str, robust))} (by construction: each keeps its nearest)",
        advice="nothing to do; broken samples are not attacked again, so that violations before this cannot be counted",
    )


def _nearest(campaign: Campaign, floor: bool) -> Floats:
    """Per sample the nearest example of the noise, or of everything else; infinite where there is none."""
    nearest = np.full(len(campaign.index), np.inf)
    for name, distance in campaign.by_attack.items():
        if (method_of(name).role == "floor") == floor:
            nearest = np.fmin(nearest, distance)
    return nearest


def _noise_floor(campaign: Campaign) -> Check:
    noise, sought = _nearest(campaign, True), _nearest(campaign, False)
    radii = [eps.value for eps in campaign.plan.threat.eps if eps.value > 0]
    alone = [int(((noise <= eps) & (sought > eps)).sum()) for eps in radii]
    most = max(alone, default=0)
    found = [f"{int((noise <= eps).sum())}/{int((sought <= eps).sum())}" for eps in radii]
    nothing = not np.isfinite(np.fmin(noise, sought)).any()
    status: Status = "not evaluated" if nothing or not radii else "flag" if most else "pass"
    return Check(
        id="EV14",
        name="random noise breaks nothing that gradients miss",
        status=status,
        figure=f"broken by noise/by gradients, by eps: {', '.join(found)}; by noise alone at most {most}",
        advice="where noise wins, the gradients mislead the attack: more steps, more restarts, other losses",
    )


def _box_and_norm(campaign: Campaign, images: Images) -> Check:
    rows = np.isfinite(campaign.distance)
    examples, (low, high) = campaign.adversarial[rows], campaign.plan.threat.box
    outside = ~((examples >= low) & (examples <= high)).all(axis=tuple(range(1, examples.ndim)))
    measured = distance_up(campaign.plan.threat.norm, images[rows], examples)
    wrong = outside | (measured != campaign.distance[rows])
    return Check(
        id="EV21",
        name="examples lie in the box, at the distance stated",
        status="fail" if wrong.any() else "pass" if len(examples) else "not evaluated",
        figure=f"{len(examples)} stored examples measured again in float64, {int(wrong.sum())} of them otherwise",
        advice="an example that is not where it is said to be counts for nothing: run again into an empty folder",
    )


def _size(campaign: Campaign) -> Check:
    count = len(campaign.index)
    robust = rate(int(campaign.robust(campaign.plan.threat.eps[-1].value).sum()), count)
    return Check(
        id="EV24",
        name="enough samples",
        status="flag" if count < FEW else "pass",
        figure=f"{count} samples (from {FEW} on this passes); at the largest eps the 95 % interval is "
        f"{robust.low:.4f} to {robust.high:.4f}",
        advice="attack more samples to narrow the interval",
    )
