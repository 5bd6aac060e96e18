"""Checks of the model that a campaign attacks: its modes, its outputs, its gradients. Shape suffixes: B batch, K classes."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from certkit.campaign import Campaign
from certkit.errors import one_line
from certkit.records import Check
from certkit.shards import Images

from .model import Classifier, rivals

Status = Literal["pass", "flag", "fail", "not evaluated"]

FORWARDS = 5
SAME = 1e-4  # of the largest logit


def evaluation_mode(classifier: Classifier) -> Check:
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


def determinism(classifier: Classifier, runs: Tensor) -> Check:
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


def logits(logits_BK: Tensor) -> Check:
    inside = (logits_BK >= 0).all() & (logits_BK <= 1).all()
    probabilities = bool(inside & ((logits_BK.sum(dim=1) - 1).abs() <= 1e-3).all())
    return Check(
        id="EV05",
        name="the output is logits",
        status="flag" if probabilities else "pass",
        figure="every row is a probability distribution" if probabilities else "rows are not probabilities",
        advice="hand over the model without its softmax: its gradients vanish where it is confident",
    )


def graph(reached: bool = True) -> Check:
    return Check(
        id="EV07",
        name="gradients reach the input",
        status="pass" if reached else "not evaluated",
        figure="the loss can be differentiated to the input; a white-box campaign refuses a model where it cannot"
        if reached
        else "no gradient reaches the input, and none was used: the threat is not white-box",
        advice="remove detach, rounding or numpy from the model's forward",
    )


def margin(logits_BK: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """The strongest rival minus the label."""
    rows = torch.arange(len(labels), device=labels.device)
    return (logits_BK[rows, rivals(logits_BK, labels)] - logits_BK[rows, labels]).sum()


def gradient(classifier: Classifier, x: Tensor, labels: Tensor, loss: object) -> Tensor:
    """The gradient of the summed loss with respect to each sample, one row each."""
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        total = loss(classifier(x), labels, reduction="sum")  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(total, x)
    return gradient.reshape(len(x), -1)


def zero_gradients(classifier: Classifier, campaign: Campaign, images: Images) -> Check:
    right = np.flatnonzero(campaign.clean_correct)
    counts = {"cross-entropy": 0, "margin": 0}
    for start in range(0, len(right), campaign.plan.block):
        rows = right[start : start + campaign.plan.block]
        x = torch.from_numpy(images[rows]).to(classifier.device)
        labels = torch.from_numpy(campaign.label[rows]).to(classifier.device)
        for name, loss in (("cross-entropy", torch.nn.functional.cross_entropy), ("margin", margin)):
            slope = gradient(classifier, x, labels, loss)
            dead = (slope == 0).all(dim=1) | ~slope.isfinite().all(dim=1)
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


def weights(classifier: Classifier) -> str:
    """The digest of everything that the module carries."""
    found = hashlib.sha256()
    for name, value in classifier.module.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def full_pipeline(classifier: Classifier, before: str) -> Check:
    """EV25: what was attacked is the network that the plan names, and the campaign did not change it."""
    same = weights(classifier) == before
    return Check(
        id="EV25",
        name="the whole pipeline is attacked",
        status="pass" if same else "fail",
        figure=f"weights and buffers {'are' if same else 'are no longer'} those of the start; what is not part of the "
        "module, such as resizing before it, is not attacked",
        advice="make normalisation and every other step before the network part of the module",
    )
