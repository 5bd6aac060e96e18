"""What an example counts as: the campaign's own semantics, whatever the library says.

1. A sample is attacked only if it is classified right; one that is wrong by itself is an error at every radius, and
   no attack's success.
2. An example counts when the model, run on the stored float32 example *alone*, does not strictly prefer the label; the
   same rule decides what is right to begin with.
3. Its distance is measured in float64 on the stored example and rounded up; it counts at eps only if that is at most
   eps. An example of a bounded attack that overshoots its radius by rounding is first pulled inside.
4. A sample keeps its nearest example, whichever attack passed it, so the share of broken samples cannot fall as eps
   grows. A search inside a radius begins at the largest at which the sample still stands; a success goes on at the next
   radius below its distance, a failure ends it, for whoever withstands a radius withstands what lies inside it. Attacked
   accuracy is an upper bound of robust accuracy in whatever order; what the order can miss is an example inside a small
   radius that a search of a larger one passes by, a sign of masked gradients that EV09 looks for.
5. Random noise is the floor that attacks are measured against: it takes no sample away from them, and is tried at every
   radius, as noise that is harmless far away says nothing of noise nearby.
6. Under a targeted goal only the target counts, and only samples that the goal is about are attacked.
7. A limit of time stops a unit between two forwards, one of memory where the system refuses it: what was found stands,
   and the unit is marked. Steps and queries are part of the attack and mark nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from certkit.campaign import broken_before, distance_up, eligible, guided, hits, nearest
from certkit.errors import Refusal
from certkit.records import AttackSpec, Plan
from certkit.shards import Flags, Floats, Images, Shard, Stopped, Unit, Whole

from .backend import Proposed, Proposer
from .measure import inside, pulled
from .model import UNDEFINED, Classifier, out_of_memory
from .suites import method_of

TOGETHER = 4  # blocks' worth of rows that restarts may fill in one batch


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The samples of one block, always run as one batch or as that batch's survivors."""

    images: Images
    labels: Whole
    index: Whole


class Engine:
    """Runs units of one plan on one classifier. A unit's result depends on nothing but the plan, its block, and the
    results of the earlier units of that block."""

    def __init__(self, classifier: Classifier, plan: Plan, surrogate: Classifier | None = None) -> None:
        self.classifier = classifier
        self.plan = plan
        self.proposer = Proposer(classifier, plan.threat, plan.seed, surrogate)

    def run(self, unit: Unit, block: Block, earlier: Sequence[Shard]) -> Shard:
        """The unit's result; ``earlier`` holds those of the units before it in the block, ``clean`` first."""
        if unit.number == 0:
            return self._clean(block)
        spec = self.plan.attacks[unit.number - 1]
        clean = earlier[0]
        if self.plan.roles[unit.number - 1] == "guided":
            return self._guided(spec, block, clean, unit.start, nearest(self.plan, earlier))
        broken = broken_before(self.plan, unit.number, earlier)
        return self._attack(spec, block, eligible(self.plan.threat, clean.label, clean.prediction), broken)

    def _clean(self, block: Block) -> Shard:
        rows = len(block.index)
        prediction = self.classifier.alone(block.images, block.labels)
        if (undefined := prediction == UNDEFINED).any():
            first = int(block.index[undefined][0])
            raise Refusal(f"the model gives NaN logits on sample {first} without any attack; it cannot be attacked")
        return Shard(
            index=block.index,
            label=block.labels,
            attacked=np.zeros(rows, np.bool_),
            found=np.zeros(rows, np.bool_),
            silent=np.zeros(rows, np.bool_),
            distance=np.full(rows, np.nan),
            prediction=prediction,
            adversarial=np.full_like(block.images, np.nan),
        )

    def _attack(self, spec: AttackSpec, block: Block, right: Flags, broken: Floats) -> Shard:
        """One attack on the samples it is for; ``broken`` is how near each already has an example that counts."""
        tally = Tally(block, self._deadline())
        role = method_of(spec.name).role
        if role == "bounded":
            self._downwards(spec, block, right, broken, tally)
            return tally.shard()
        for eps in self._radii() if role == "floor" else [None]:
            for restarts in self._restarts(spec, int(right.sum())):
                rows = np.flatnonzero(right if eps is None else right & (tally.best > eps))
                radius = None if eps is None else np.full(len(rows), eps)
                if len(rows) and not self._round(spec, block, rows, radius, restarts, tally):
                    return tally.shard()
        return tally.shard()

    def _radii(self) -> list[float]:
        """The radii from the smallest up, 0 left out: there is nothing to move."""
        return sorted({eps.value for eps in self.plan.threat.eps if eps.value > 0})

    def _downwards(self, spec: AttackSpec, block: Block, right: Flags, broken: Floats, tally: Tally) -> None:
        """A search inside one radius after another, each sample from the largest at which it still stands.

        A sample that no restart breaks is left alone from there on; one that falls goes on at the next radius below its
        distance. Whoever stands at different radii is searched for in one batch, where the attack can.
        """
        radii = np.array([0.0, *self._radii()])
        open_ = right.copy()
        while open_.any():
            best = np.fmin(tally.best, broken)
            radius = radii[np.searchsorted(radii[1:], best)]  # the largest that is below the nearest example
            open_ &= radius > 0
            for restarts in self._restarts(spec, int(open_.sum())):
                left = open_ & (np.fmin(tally.best, broken) > radius)
                for rows in self._batches(spec, np.flatnonzero(left), radius):
                    if not self._round(spec, block, rows, radius[rows], restarts, tally):
                        return
            open_ &= np.fmin(tally.best, broken) <= radius

    def _batches(self, spec: AttackSpec, rows: Whole, radius: Floats) -> list[Whole]:
        """The rows in batches: Foolbox's attacks take one radius at a time."""
        if not len(rows) or method_of(spec.name).source == "certkit":
            return [rows] * bool(len(rows))
        return [rows[radius[rows] == one] for one in np.unique(radius[rows])[::-1]]

    def _restarts(self, spec: AttackSpec, rows: int) -> list[range]:
        """The restarts in groups that stand in one batch, where the attack can: it holds at most ``TOGETHER`` blocks."""
        total = int(spec.settings.get("restarts", 1))
        most = max(1, TOGETHER * self.plan.block // max(rows, 1)) if method_of(spec.name).together else 1
        each = -(-total // -(-total // most))
        return [range(first, min(first + each, total)) for first in range(0, total, each)]

    def _guided(self, spec: AttackSpec, block: Block, clean: Shard, start: int, found: Floats) -> Shard:
        """Bisection between certified radius and nearest example, of the samples where the two are furthest apart.

        The first round searches at the certified radius itself: an example there refutes the certificate. A radius at
        which every restart fails is taken for the new lower end; no claim follows from it.
        """
        plan, guide = self.plan, self.plan.guide
        if guide is None:
            raise ValueError("a plan without a certificate guides no attack")
        low = np.array(guide.radius[start : start + len(found)])
        asked = guided(plan, clean, start, found)
        high = np.where(np.isfinite(found), found, np.maximum(plan.threat.eps[-1].value, 2 * low))
        tally = Tally(block, self._deadline())
        restarts = int(spec.settings.get("restarts", 1))
        for attempt in range(int(spec.settings.get("rounds", 8))):
            radius = np.where(attempt == 0, low, (low + high) / 2)
            for number in range(attempt * restarts, (attempt + 1) * restarts):
                rows = np.flatnonzero(asked & (radius > 0) & (tally.best > radius))
                if len(rows) and not self._round(spec, block, rows, radius[rows], range(number, number + 1), tally):
                    return tally.shard()
            broken = tally.best <= radius
            low, high = np.where(broken, low, radius), np.where(broken, tally.best, high)
        tally.attacked |= asked
        return tally.shard()

    def _deadline(self) -> float | None:
        seconds = self.plan.threat.budget.seconds
        return None if seconds is None else time.monotonic() + seconds

    def _round(
        self, spec: AttackSpec, block: Block, rows: Whole, eps: Floats | None, restarts: range, tally: Tally
    ) -> bool:
        """One search on some rows, what it found entered in the tally; False when a limit stopped it."""
        tally.attacked[rows] = True
        try:
            with self._within(tally.deadline):
                proposed = self._proposed(spec, block, rows, eps, restarts)
            tally.stopped = proposed.stopped
            for number in range(len(restarts)):
                one = slice(number * len(rows), (number + 1) * len(rows))
                own = Proposed(proposed.examples[one], proposed.silent[one])
                tally.enter(rows, *self._counted(spec, block, rows, eps, own, tally.best[rows]))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            tally.stopped = "memory"
        return not tally.stopped

    @contextmanager
    def _within(self, deadline: float | None) -> Iterator[None]:
        """No forward of the model or of the surrogate begins after the deadline."""
        surrogate = self.proposer.surrogate
        with self.classifier.within(deadline), nullcontext() if surrogate is None else surrogate.within(deadline):
            yield

    def _proposed(self, spec: AttackSpec, block: Block, rows: Whole, eps: Floats | None, restarts: range) -> Proposed:
        device = self.classifier.device
        x, y = torch.from_numpy(block.images[rows]).to(device), torch.from_numpy(block.labels[rows]).to(device)
        samples = [int(sample) for sample in block.index[rows]]
        asked = None if eps is None else torch.from_numpy(eps)
        return self.proposer.propose(spec, x, y, samples, asked, restarts.start, len(restarts))

    def _counted(
        self, spec: AttackSpec, block: Block, rows: Whole, eps: Floats | None, proposed: Proposed, best: Floats
    ) -> tuple[Images, Floats, Whole, Flags]:
        """For each row a candidate, its distance (infinite unless it counts and is nearer than the ``best`` so far), the
        prediction on it, and whether the attack had lost it again."""
        images, labels, threat = block.images[rows], block.labels[rows], self.plan.threat
        candidates = proposed.examples.float().cpu().numpy()
        low, high = (np.float32(end) for end in threat.box)
        finite = np.isfinite(candidates).reshape(len(rows), -1).all(axis=1).reshape(-1, *[1] * (images.ndim - 1))
        examples = np.clip(np.where(finite, candidates, images), low, high)
        if eps is not None:
            examples = inside(threat.norm, images, examples, eps)
        limit = np.nextafter(best, 0) if eps is None else np.minimum(np.nextafter(best, 0), eps)
        distance = np.full(len(rows), np.inf)
        prediction = np.full(len(rows), UNDEFINED, np.int64)
        hopeful = np.flatnonzero(hits(threat, labels, self.classifier.batch(examples, labels)))
        if halvings := int(spec.settings.get("bisection", 0)):
            here, own = images[hopeful], labels[hopeful]
            nearer = pulled(
                here, examples[hopeful], lambda points: hits(threat, own, self.classifier.batch(points, own)), halvings
            )
            self._judge(images, labels, hopeful, nearer, limit, (examples, distance, prediction))
            hopeful = hopeful[np.isinf(distance[hopeful])]  # what bisection spoilt may still count as it was
        self._judge(images, labels, hopeful, examples[hopeful], limit, (examples, distance, prediction))
        return examples, distance, prediction, proposed.silent.cpu().numpy() & np.isfinite(distance)

    def _judge(
        self,
        images: Images,
        labels: Whole,
        rows: Whole,
        candidates: Images,
        limit: Floats,
        into: tuple[Images, Floats, Whole],
    ) -> None:
        """Write into examples, distances and predictions those candidates that count, each run alone; those beyond the
        limit are not run."""
        examples, distance, prediction = into
        size = distance_up(self.plan.threat.norm, images[rows], candidates)
        within = size <= limit[rows]
        rows, candidates, size = rows[within], candidates[within], size[within]
        seen = self.classifier.alone(candidates, labels[rows])
        counts = hits(self.plan.threat, labels[rows], seen)
        kept = rows[counts]
        examples[kept], distance[kept], prediction[kept] = candidates[counts], size[counts], seen[counts]


class Tally:
    """What one unit has found so far: each sample's nearest example, over its rounds."""

    def __init__(self, block: Block, deadline: float | None) -> None:
        self.block = block
        self.deadline = deadline
        self.attacked = np.zeros(len(block.index), np.bool_)
        self.silent = np.zeros(len(block.index), np.bool_)
        self.best = np.full(len(block.index), np.inf)
        self.prediction = np.full(len(block.index), UNDEFINED, np.int64)
        self.adversarial = np.full_like(block.images, np.nan)
        self.stopped: Stopped = ""

    def enter(self, rows: Whole, examples: Images, distance: Floats, seen: Whole, silent: Flags) -> None:
        """Keep what is nearer than before."""
        nearer = distance < self.best[rows]
        kept = rows[nearer]
        self.best[kept], self.prediction[kept] = distance[nearer], seen[nearer]
        self.adversarial[kept], self.silent[kept] = examples[nearer], silent[nearer]

    def shard(self) -> Shard:
        """The unit's result."""
        found = np.isfinite(self.best)
        block, distance = self.block, np.where(found, self.best, np.nan)
        return Shard(
            index=block.index,
            label=block.labels,
            attacked=self.attacked,
            found=found,
            silent=self.silent,
            distance=distance,
            prediction=self.prediction,
            adversarial=self.adversarial,
            stopped=self.stopped,
        )
