"""Checks of a finished campaign that need nothing but its results and its plan."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from certkit.campaign import Campaign, distance_up
from certkit.records import Check
from certkit.shards import Floats, Images
from certkit.statistics import rate

from .checks_model import Status
from .suites import method_of

FEW = 500
BELOW = 0.02  # of the searches inside smaller radii: with more, the campaign's order hides examples
BEATEN = 0.002  # of the samples: Croce and Hein's flag for a black box that beats the gradients


def clean_accuracy(campaign: Campaign) -> Check:
    clean = rate(int(campaign.clean_correct.sum()), len(campaign.index))
    figure = f"{clean.count} of {clean.total} right without attack (95 % interval {clean.low:.4f} to {clean.high:.4f})"
    return Check(
        id="EV02",
        name="clean accuracy on the same samples",
        status="pass",
        figure=figure,
        advice="read every robust accuracy against this one",
    )


def monotone(campaign: Campaign, probed: tuple[int, int] | None) -> Check:
    """EV09: whoever withstands a radius withstands those below it, which the campaign takes for granted. ``probed``: how
    many fell to a search inside a smaller radius, of how many tries."""
    robust = [int(campaign.robust(eps.value).sum()) for eps in campaign.plan.threat.eps]
    falls = all(later <= earlier for earlier, later in pairwise(robust))
    broken, tried = probed or (0, 0)
    status: Status = "fail" if not falls or broken > BELOW * tried else "flag" if broken else "pass"
    return Check(
        id="EV09",
        name="robust accuracy does not rise with eps",
        status=status if tried or not falls else "not evaluated",
        figure=f"robust samples by eps: {', '.join(map(str, robust))} (by construction: each keeps its nearest); inside "
        f"smaller radii than one it had withstood, {broken} of {tried} searches broke the sample",
        advice="an attack that fails at a radius and succeeds inside a smaller one is misled: look for masked gradients, "
        "and run each radius as a campaign of its own",
    )


def nearest(campaign: Campaign, floor: bool) -> Floats:
    """Per sample the nearest example of the noise, or of everything else; infinite where there is none."""
    nearest = np.full(len(campaign.index), np.inf)
    for name, distance in campaign.by_attack.items():
        if (method_of(name).role == "floor") == floor:
            nearest = np.fmin(nearest, distance)
    return nearest


def noise_floor(campaign: Campaign) -> Check:
    noise, sought = nearest(campaign, True), nearest(campaign, False)
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


def box_and_norm(campaign: Campaign, images: Images) -> Check:
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


def size(campaign: Campaign) -> Check:
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


def threat_model(campaign: Campaign) -> Check:
    """EV01: the plan states every part of the threat; without one of them it is refused."""
    threat = campaign.plan.threat
    low, high = threat.box
    goal = {"untargeted": "untargeted", "targeted": f"to class {threat.target}"}.get(
        threat.goal, f"from class {threat.source} to class {threat.target}"
    )
    spend = [f"{value:g} {name}" for name, value in threat.budget if value is not None]
    return Check(
        id="EV01",
        name="the threat model is complete",
        status="pass",
        figure=f"{threat.norm}, eps {', '.join(eps.text for eps in threat.eps)}, box [{low:g}, {high:g}], {goal}, "
        f"{threat.knowledge}, budget {' and '.join(spend) if spend else 'as the attacks are set'}",
        advice="read every figure under this threat and no other",
    )


def white_box(campaign: Campaign, black: bool) -> Floats:
    """Each sample's nearest example of the attacks that use gradients, or of those that do not; noise is neither."""
    found = np.full(len(campaign.index), np.inf)
    for name, distance in campaign.by_attack.items():
        method = method_of(name)
        if method.role != "floor" and (method.knowledge != "white-box") == black:
            found = np.fmin(found, distance)
    return found


def black_box(campaign: Campaign, probed: tuple[int, int] | None) -> Check:
    """EV13: what knows less breaks nothing that gradients miss. ``probed``: by a Square attack on those left, of how many,
    where no attack of the plan does without gradients."""
    names = [name for name in campaign.by_attack if method_of(name).role != "floor"]
    black = [name for name in names if method_of(name).knowledge != "white-box"]
    white = [name for name in names if method_of(name).knowledge == "white-box"]
    total = max(int(campaign.clean_correct.sum()), 1)
    status: Status = "not evaluated"
    figure = "no attack of this plan does without gradients, and there was nothing left to try one on"
    if black and white:
        near, far = white_box(campaign, True), white_box(campaign, False)
        alone = max(int(((near <= eps.value) & (far > eps.value)).sum()) for eps in campaign.plan.threat.eps)
        status = "flag" if alone > BEATEN * total else "pass"
        figure = f"{', '.join(black)}: at most {alone} of {total} samples broken that gradients missed (limit 0.2 %)"
    elif probed is not None and white:
        broken, tried = probed
        status = "flag" if broken else "pass"
        figure = f"Square with 200 queries broke {broken} of {tried} samples that had withstood the largest eps"
    return Check(
        id="EV13",
        name="knowing less breaks nothing more",
        status=status,
        figure=figure,
        advice="where a black box wins, gradients are masked: run the suite full, and attack a smoothed or surrogate model",
    )


def silent_success(campaign: Campaign) -> Check:
    """EV15: examples that an attack passed and did not return; the campaign keeps them."""
    lost = {name: count for name, count in campaign.silent.items() if count}
    figure = ", ".join(f"{name} {count}" for name, count in lost.items()) or "none"
    return Check(
        id="EV15",
        name="no example on the way is lost",
        status="pass",
        figure=f"passed but not returned, and kept by the campaign: {figure}",
        advice="nothing to do; a library's own count would have missed these",
    )


def diversity(campaign: Campaign) -> Check:
    """EV19: losses, knowledge and goals of different kinds, after the checklist of Carlini et al. 2019.

    An attack that looks for the nearest example and met none at any distance, as on too few queries, is none of its kind.
    """
    sought = [spec for spec in campaign.plan.attacks if method_of(spec.name).role != "floor"]
    losses = {str(spec.settings.get("losses", spec.name)) for spec in sought}
    met = [spec for spec in sought if method_of(spec.name).role != "minimum" or _met_any(campaign, spec.name)]
    knows = {method_of(spec.name).knowledge for spec in met}
    aimed = [
        spec for spec in sought if "rival" in str(spec.settings.get("losses", "")) or spec.name in ("APGD-T", "FAB-T")
    ]
    lacks = {
        "a second loss": len(losses) < 2,
        "an attack on scores alone": not knows & {"score"},
        "an attack on decisions alone": not knows & {"decision"},
        "an attack towards chosen classes": not aimed,
    }
    missing = [name for name, lacking in lacks.items() if lacking]
    return Check(
        id="EV19",
        name="attacks of different kinds",
        status="flag" if missing else "pass",
        figure=f"{len(sought)} attacks besides noise; missing: {', '.join(missing) or 'nothing'}",
        advice="the suites standard and full hold every kind under l2 and linf",
    )


def _met_any(campaign: Campaign, name: str) -> bool:
    return bool(np.isfinite(campaign.by_attack[name]).any())


def worst_case(campaign: Campaign) -> Check:
    """EV20: robust means robust against every attack, sample by sample."""
    largest = campaign.plan.threat.eps[-1]
    robust = int(campaign.robust(largest.value).sum())
    single = min(
        int((campaign.clean_correct & ~(distance <= largest.value)).sum()) for distance in campaign.by_attack.values()
    )
    return Check(
        id="EV20",
        name="the worst attack of each sample counts",
        status="pass",
        figure=f"at eps {largest.text} {robust} samples withstand all attacks; the best single attack leaves {single}",
        advice="nothing to do: each sample keeps its nearest example over all attacks",
    )
