"""A finished attack campaign, read back and checked. No torch here: the audit reads campaigns, it does not run them.

    OUT/campaign/plan.json                  what was to be done; its sha256 is the campaign's identity
    OUT/campaign/shards/<unit>.parquet      what came of it: one unit of work per file, named by the unit's sha256
    OUT/campaign/checks.json                the evaluation checks of the campaign on itself
    OUT/campaign/log.jsonl                  when and how long; read by no program

A unit is one block of samples under one attack, or under none: the unit ``clean`` holds each sample's own prediction.
Rows keep the order of the data. What is read is checked, shard by shard and shard against plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from certkit.errors import Incomplete, RecordError, Tampered
from certkit.files import digest, digest_file, load
from certkit.records import (
    Adversary,
    AttackNorm,
    AttackSpec,
    AttackSummary,
    CampaignSummary,
    Check,
    Plan,
    Rate,
    Record,
    Sha256,
)
from certkit.shards import Flags, Floats, Images, Shard, Unit, Whole, read_shard, shards_in
from certkit.statistics import rate

CLEAN = "clean"


class Checks(Record):
    """The evaluation checks of one campaign, as stored beside its shards.

    ``sealed`` is the digest over the checks and the shards' names and digests: neither can change without the other.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.checks"] = "certkit.checks"
    plan_sha256: Sha256
    checks: tuple[Check, ...]
    sealed: Sha256


def units(plan: Plan) -> Iterator[tuple[Unit, ...]]:
    """Every unit of the plan, block by block; within a block in the order in which they need one another's results."""
    plan_sha256 = plan.sha256
    names = (CLEAN, *(spec.name for spec in plan.attacks))
    for start in range(0, plan.data.count, plan.block):
        stop = min(start + plan.block, plan.data.count)
        yield tuple(Unit(plan_sha256, name, number, start, stop) for number, name in enumerate(names))


def seal(folder: Path, plan: Plan, checks: tuple[Check, ...]) -> Checks:
    """The checks bound to the shards that lie in the folder now."""
    shards = [f"{unit.name} {digest_file(folder / 'shards' / unit.name)}" for unit in chain(*units(plan))]
    content = {"checks": [check.model_dump() for check in checks], "shards": shards}
    return Checks(plan_sha256=plan.sha256, checks=checks, sealed=digest(json.dumps(content, sort_keys=True).encode()))


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """Every sample's smallest verified adversarial example, over all attacks, radii and restarts.

    One row per sample in data order. ``distance`` is float64, rounded up, and NaN where no example was found (``at``
    gives None there); ``attack`` names who found it, ``adversarial`` is the float32 example as stored. A sample that is
    wrong without any attack is not ``clean_correct``; it was never attacked and has no example. ``units_executed``
    counts the units that ran to their end: what a limit of time or memory stopped is not among them.
    """

    plan: Plan
    index: Whole
    label: Whole
    prediction: Whole
    clean_correct: Flags
    distance: Floats
    attack: tuple[str | None, ...]
    adversarial_prediction: Whole
    adversarial: Images
    by_attack: dict[str, Floats]
    examples: dict[str, Images]
    silent: dict[str, int]
    summaries: tuple[AttackSummary, ...]
    units_planned: int
    units_executed: int
    checks: tuple[Check, ...]

    def at(self, row: int) -> float | None:
        """The smallest distance at which the row's sample was broken, or None."""
        distance = float(self.distance[row])
        return None if math.isnan(distance) else distance

    def robust(self, eps: float) -> Flags:
        """Which samples are right and were not broken at any distance up to eps; never grows as eps grows."""
        return self.clean_correct & ~(self.distance <= eps)

    def success(self, attack: str, eps: float) -> Rate:
        """The share of the samples that are right without attack, and so attacked, which this attack broke within eps."""
        asked = eligible(self.plan.threat, self.label, self.prediction)
        return rate(int((asked & (self.by_attack[attack] <= eps)).sum()), int(asked.sum()))

    @property
    def validity(self) -> Literal["valid", "limited", "invalid"]:
        """What the campaign's own checks make of it: invalid when one fails, limited when one is flagged."""
        found = {check.status for check in self.checks}
        return "invalid" if "fail" in found else "limited" if "flag" in found else "valid"

    def summary(self) -> CampaignSummary:
        """The campaign in numbers, for the audit."""
        return CampaignSummary(
            plan_sha256=self.plan.sha256,
            suite=self.plan.suite,
            seed=self.plan.seed,
            block=self.plan.block,
            threads=self.plan.threads,
            device=self.plan.device,
            units_planned=self.units_planned,
            units_executed=self.units_executed,
            attacks=self.summaries,
        )


@dataclass(frozen=True, slots=True)
class Paired:
    """Two networks on the same samples: how many only one of them holds, and the exact two-sided p-value of McNemar 1947.

    The p-value is the chance of a split at least as uneven as this one if neither network were the more robust.
    """

    only_first: int
    only_second: int
    p_value: float


def paired(first: Campaign, second: Campaign, eps: float) -> Paired:
    """The robustness of two networks at one radius, compared sample by sample.

    Raises RecordError unless both campaigns attacked the same samples under the same threat with the same attacks.
    """
    from scipy.stats import binomtest

    one, two = first.plan, second.plan
    same = {
        "data": one.data.sha256 == two.data.sha256 and np.array_equal(first.index, second.index),
        "threat": one.threat == two.threat,
        "attacks": one.attacks == two.attacks,
    }
    if differ := [name for name, equal in same.items() if not equal]:
        raise RecordError(f"the two campaigns differ in {' and '.join(differ)}; compare two that differ in the network")
    here, there = first.robust(eps), second.robust(eps)
    only_first, only_second = int((here & ~there).sum()), int((there & ~here).sum())
    total = only_first + only_second
    p_value = float(binomtest(only_first, total).pvalue) if total else 1.0
    return Paired(only_first, only_second, p_value)


def load_campaign(out: Path) -> Campaign:
    """The campaign in ``out/campaign``, each shard checked against the plan and its own digest.

    Raises Incomplete when a part is missing, RecordError or Tampered when one is not what it says it is.
    """
    folder = out / "campaign"
    if not (folder / "plan.json").is_file():
        raise RecordError(f"{folder}: no plan.json, so no campaign; run certkit attack with --out {out}")
    plan = load(Plan, folder / "plan.json")
    _refuse_missing(folder, plan)
    read = [[read_shard(folder / "shards" / unit.name, unit) for unit in block] for block in units(plan)]
    campaign = gather(plan, read)
    stored = folder / "checks.json"
    if not stored.is_file():
        raise Incomplete(f"{folder}: the campaign's checks are missing; run the same attack again")
    checks = load(Checks, stored)
    if checks.plan_sha256 != plan.sha256:
        raise Tampered("checks.json: belongs to another campaign; run the same attack again")
    if seal(folder, plan, checks.checks) != checks:
        raise Tampered("checks.json: these are not the checks of the shards beside it; run the same attack again")
    return replace(campaign, checks=checks.checks)


def _refuse_missing(folder: Path, plan: Plan) -> None:
    """Raises Incomplete when parts are missing, Tampered when the plan is not the one that the parts belong to.

    A plan can claim any number of samples: no more units are listed than there are files, and some for those deleted.
    """
    present = {path.name for path in shards_in(folder / "shards")}
    total = -(-plan.data.count // plan.block) * (1 + len(plan.attacks))
    listed = [unit.name in present for unit in islice(chain.from_iterable(units(plan)), 2 * len(present) + 1000)]
    if not total or (present and not any(listed)):
        raise Tampered(
            "plan.json: none of the parts beside it belongs to this plan; run the attack again into an empty folder"
        )
    if missing := total - sum(listed):
        raise Incomplete(f"{folder}: {missing} of {total} parts of the campaign are missing; run the same attack again")


def gather(plan: Plan, blocks: Sequence[Sequence[Shard]]) -> Campaign:
    """One campaign from the shards of all of its blocks, each block in the order of ``units``.

    A sample keeps the nearest of its examples; at equal distance the earlier attack of the plan keeps it. The checks
    are not made yet.
    """
    if any(clean.adversarial.shape[1:] != blocks[0][0].adversarial.shape[1:] for clean, *_ in blocks):
        raise Tampered(
            "the shards of this campaign hold samples of different shapes; run it again into an empty folder"
        )
    largest = max(eps.value for eps in plan.threat.eps)
    for start, block in zip(range(0, plan.data.count, plan.block), blocks, strict=True):
        clean, *attacks = block
        for number, shard in enumerate(attacks, 1):
            if not (np.array_equal(shard.index, clean.index) and np.array_equal(shard.label, clean.label)):
                raise Tampered(
                    "two shards of one block hold different samples; run the attack again into an empty folder"
                )
            asked = _attacked(plan, number, block[:number], start)
            differs = shard.attacked & ~asked if shard.stopped else shard.attacked != asked
            if clean.attacked.any() or differs.any():
                raise Tampered(
                    f"a shard of {plan.attacks[number - 1].name} did not attack the samples that the plan gives it; "
                    "run the attack again into an empty folder"
                )
            reached = hits(plan.threat, shard.label, shard.prediction)
            beyond = plan.roles[number - 1] in ("bounded", "floor") and bool((shard.distance > largest).any())
            if beyond or (shard.found & ~reached).any():
                raise Tampered(
                    f"a shard of {plan.attacks[number - 1].name} counts an example that does not count under this threat; "
                    "run the attack again into an empty folder"
                )
    clean = _joined([block[0] for block in blocks])
    runs = [_joined([block[number] for block in blocks]) for number in range(1, len(plan.attacks) + 1)]
    distance = np.full(len(clean.index), np.nan)
    winner = np.full(len(clean.index), -1)
    prediction, adversarial = np.full(len(clean.index), -1, np.int64), np.full_like(clean.adversarial, np.nan)
    for number, run in enumerate(runs):
        better = run.found & ~(distance <= run.distance)
        distance[better], winner[better] = run.distance[better], number
        prediction[better], adversarial[better] = run.prediction[better], run.adversarial[better]
    planned = len(blocks) * (1 + len(plan.attacks))
    return Campaign(
        plan=plan,
        index=clean.index,
        label=clean.label,
        prediction=clean.prediction,
        clean_correct=clean.prediction == clean.label,
        distance=distance,
        attack=tuple(plan.attacks[number].name if number >= 0 else None for number in winner),
        adversarial_prediction=prediction,
        adversarial=adversarial,
        by_attack={spec.name: run.distance for spec, run in zip(plan.attacks, runs, strict=True)},
        examples={spec.name: run.adversarial for spec, run in zip(plan.attacks, runs, strict=True)},
        silent={spec.name: int(run.silent.sum()) for spec, run in zip(plan.attacks, runs, strict=True)},
        summaries=tuple(
            _summary(spec, run, (winner == number) & (distance <= largest), largest)
            for number, (spec, run) in enumerate(zip(plan.attacks, runs, strict=True))
        ),
        units_planned=planned,
        units_executed=sum(not shard.stopped for block in blocks for shard in block),
        checks=(),
    )


def eligible(threat: Adversary, label: Whole, prediction: Whole) -> Flags:
    """Which samples the threat is about: those that are right without attack and not already where it wants them."""
    asked: Flags = prediction == label
    if threat.target is not None:
        asked = asked & (label != threat.target)
    return asked if threat.source is None else asked & (label == threat.source)


def hits(threat: Adversary, label: Whole, prediction: Whole) -> Flags:
    """Which predictions reach the goal: another class than the label, or the target."""
    reached: Flags = prediction != label if threat.target is None else prediction == threat.target
    return reached


def nearest(plan: Plan, earlier: Sequence[Shard]) -> Floats:
    """How near each sample has an example by now, that of noise apart; infinite where it has none.

    ``earlier`` holds the block's shards so far, ``clean`` first.
    """
    found = np.full(len(earlier[0].index), np.inf)
    for role, shard in zip(plan.roles, earlier[1:], strict=False):
        if role != "floor":
            found = np.fmin(found, shard.distance)
    return found


def broken_before(plan: Plan, number: int, earlier: Sequence[Shard]) -> Floats:
    """How near each sample has an example that spares it the plan's ``number``-th attack; infinite where it has none.

    Only a bounded attack is spared what is broken, and noise, the floor it is measured against, takes no sample away.
    """
    if plan.roles[number - 1] == "bounded":
        return nearest(plan, earlier[:number])
    return np.full(len(earlier[0].index), np.inf)


def guided(plan: Plan, clean: Shard, start: int, found: Floats) -> Flags:
    """Whom the certificate-guided attack gets: the quarter of the block whose certified radius and nearest example are
    furthest apart, and at least one.

    A sample that nothing broke counts as broken just beyond the largest radius of the plan; a gap that is closed is
    none. Equal gaps go to the earlier sample.
    """
    if plan.guide is None:
        raise ValueError("a plan without a certificate guides no attack")
    radius = np.array(plan.guide.radius[start : start + len(found)])
    gap = np.fmin(found, max(np.nextafter(plan.threat.eps[-1].value, np.inf), float(radius.max()) * 2)) - radius
    asked = eligible(plan.threat, clean.label, clean.prediction) & (gap > 0)
    order = np.argsort(np.where(asked, -gap, np.inf), kind="stable")[: max(1, len(found) // 4)]
    chosen = np.zeros(len(found), np.bool_)
    chosen[order] = True
    given: Flags = chosen & asked
    return given


def _attacked(plan: Plan, number: int, earlier: Sequence[Shard], start: int) -> Flags:
    """Whom the plan's ``number``-th attack gets: whoever is right and not spared at the smallest radius above 0."""
    right = eligible(plan.threat, earlier[0].label, earlier[0].prediction)
    if plan.roles[number - 1] == "minimum":
        return right
    if plan.roles[number - 1] == "guided":
        return guided(plan, earlier[0], start, nearest(plan, earlier))
    smallest = min((eps.value for eps in plan.threat.eps if eps.value > 0), default=math.inf)
    left: Flags = right & (broken_before(plan, number, earlier) > smallest)
    return left


def _summary(spec: AttackSpec, run: Shard, best: Flags, largest: float) -> AttackSummary:
    found = int((run.distance <= largest).sum())
    return AttackSummary(spec=spec, attacked=int(run.attacked.sum()), found=found, best=int(best.sum()))


def _joined(shards: Sequence[Shard]) -> Shard:
    names = [name for name in Shard.__slots__ if name != "stopped"]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(shard, name) for shard in shards]) for name in names}
    return Shard(**arrays)


def distance_up(norm: AttackNorm, inputs: Images, examples: Images) -> Floats:
    """For each row a float64 that is not below ||example - input||: the distance an attacker is charged for.

    linf: a difference of float64 is exact unless its two-sum remainder says otherwise (Knuth, TAOCP 2, 4.2.2), and only
    then is it rounded up. l2: differences, squares, their correctly rounded sum (fsum) and the root are off by at most
    five roundings of 2^-53, and the factor 1 + 2^-50 is worth eight; token: the largest of these over all tokens. l1:
    two roundings, likewise. l0: entries that differ are counted, which is exact.
    """
    size_of_one = math.prod(inputs.shape[1:])
    a = examples.reshape(-1, size_of_one).astype(np.float64)
    b = inputs.reshape(-1, size_of_one).astype(np.float64)
    difference = a - b
    if norm == "linf":
        back = difference + b
        remainder = (a - back) - (b - (back - difference))
        size = np.abs(difference)
        largest: Floats = np.where(remainder == 0, size, np.nextafter(size, np.inf)).max(axis=1, initial=0.0)
        return largest
    if norm == "l0":
        changed: Floats = (a != b).sum(axis=1).astype(np.float64)
        return changed
    if norm == "l1":
        return np.array([math.fsum(row) * (1 + 2.0**-50) for row in np.abs(difference)])
    if norm == "token":
        tokens = np.square(difference).reshape(len(a), math.prod(inputs.shape[1:-1]), inputs.shape[-1])
        return np.array([max(math.sqrt(math.fsum(one)) for one in row) * (1 + 2.0**-50) for row in tokens])
    return np.array([math.sqrt(math.fsum(row)) * (1 + 2.0**-50) for row in np.square(difference)])
