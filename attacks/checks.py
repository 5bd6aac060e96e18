"""The evaluation checks that a campaign makes of itself; each is evidence, none is a stamp.

After Carlini et al. 2019, "On Evaluating Adversarial Robustness" (arXiv 1902.06705), Pintor et al. 2022, "Indicators of
Attack Failure" (arXiv 2106.09947), Zimmermann et al. 2022 (arXiv 2206.13991) and AutoAttack's flags. EV22 and EV23 need
a certificate and are the audit's. A check that could not be made says so; it is never a silent pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from certkit.campaign import Campaign
from certkit.errors import Refusal, one_line
from certkit.records import Check

from . import checks_model, checks_result
from .model import Classifier
from .probes import Probes

if TYPE_CHECKING:
    from .engine import Block, Engine
    from .work import Samples


@dataclass(frozen=True, slots=True)
class Before:
    """What the first block showed of the model before anything was attacked; ``weights`` is their digest."""

    checks: tuple[Check, ...]
    weights: str


def before(classifier: Classifier, block: Block, knowledge: str = "white-box") -> Before:
    """Checks of the model itself. Raises Refusal when no gradient reaches the input and the attacks follow one."""
    x = torch.from_numpy(block.images).to(classifier.device)
    labels = torch.from_numpy(block.labels).to(classifier.device)
    with torch.no_grad():
        runs = torch.stack([classifier(x) for _ in range(checks_model.FORWARDS)]).double()
    reached = True
    try:
        checks_model.gradient(classifier, x, labels, torch.nn.functional.cross_entropy)
    except RuntimeError as error:
        if knowledge == "white-box":
            raise Refusal(
                f"no gradient of the logits reaches the input ({one_line(error, 120)}); gradient attacks would show "
                "nothing, so remove detach, rounding or numpy from the model's forward"
            ) from None
        reached = False
    found = (
        checks_model.evaluation_mode(classifier),
        checks_model.determinism(classifier, runs),
        checks_model.logits(runs[0]),
        checks_model.graph(reached),
    )
    return Before(found, checks_model.weights(classifier))


def after(engine: Engine, facts: Before, campaign: Campaign, samples: Samples) -> tuple[Check, ...]:
    """Every check of a finished campaign, by number."""
    classifier, images = engine.classifier, samples.images
    white = campaign.plan.threat.knowledge == "white-box"
    probes = Probes(engine, campaign, samples)
    found = [
        checks_result.threat_model(campaign),
        checks_result.clean_accuracy(campaign),
        *facts.checks,
        checks_result.monotone(campaign, probes.below()),
        probes.converged(),
        probes.restarted(),
        checks_result.black_box(campaign, probes.square()),
        checks_result.noise_floor(campaign),
        checks_result.silent_success(campaign),
        checks_result.diversity(campaign),
        checks_result.worst_case(campaign),
        checks_result.box_and_norm(campaign, images),
        checks_result.size(campaign),
        checks_model.full_pipeline(classifier, facts.weights),
    ]
    if white:
        found += [
            checks_model.zero_gradients(classifier, campaign, images),
            probes.single_step(),
            probes.whole_box(),
            probes.smooth(),
            probes.control(),
            probes.planted(),
        ]
    return tuple(sorted(found, key=lambda check: check.id))
