"""What an example counts as: the campaign's own semantics, whatever the library says.

1. A sample is attacked only if it is classified right; one that is wrong by itself is an error at every radius, and
   no attack's success.
2. An example counts when the model, run on the stored float32 example *alone*, does not strictly prefer the label; the
   same rule decides what is right to begin with.
3. Its distance is measured in float64 on the stored example and rounded up; it counts at eps only if that is at most
   eps. An example of a bounded attack that overshoots its radius by rounding is first pulled inside.
4. A sample keeps its nearest example. Radii are tried from the smallest up and only on those not yet broken there, so
   the share of broken samples cannot fall as eps grows.
5. Random noise is the floor that attacks are measured against: it takes no sample away from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from certkit.campaign import Flags, Floats, Images, Shard, Unit, Whole, broken_before, distance_up
from certkit.errors import Refusal
from certkit.records import AttackSpec, Plan

from .backend import Foolbox
from .measure import inside, pulled
from .model import UNDEFINED, Classifier
from .suites import METHODS


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The samples of one block, always run as one batch or as that batch's survivors."""

    images: Images
    labels: Whole
    index: Whole


class Engine:
    """Runs units of one plan on one classifier. A unit's result depends on nothing but the plan, its block, and the
    results of the earlier units of that block."""

    def __init__(self, classifier: Classifier, plan: Plan) -> None:
        self.classifier = classifier
        self.plan = plan
        self.backend = Foolbox(classifier, plan.threat.box, plan.seed)

    def run(self, unit: Unit, block: Block, earlier: Sequence[Shard]) -> Shard:
        """The unit's result; ``earlier`` holds those of the units before it in the block, ``clean`` first."""
        if unit.number == 0:
            return self._clean(block)
        spec = self.plan.attacks[unit.number - 1]
        clean = earlier[0]
        broken = broken_before(self.plan, unit.number, earlier)
        return self._attack(spec, block, clean.prediction == clean.label, broken)

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
            distance=np.full(rows, np.nan),
            prediction=prediction,
            adversarial=np.full_like(block.images, np.nan),
        )

    def _attack(self, spec: AttackSpec, block: Block, right: Flags, broken: Floats) -> Shard:
        """One attack on the samples that are right; ``broken`` is how near each already has an example that counts."""
        attacked = np.zeros(len(right), np.bool_)
        best = np.full(len(right), np.inf)
        prediction = np.full(len(right), UNDEFINED, np.int64)
        adversarial = np.full_like(block.images, np.nan)
        for eps, restart in self._rounds(spec):
            rows = np.flatnonzero(right if eps is None else right & (np.fmin(best, broken) > eps))
            if not len(rows):
                continue
            attacked[rows] = True
            examples, distance, seen = self._examples(spec, block, rows, eps, restart)
            nearer = distance < best[rows]
            kept = rows[nearer]
            best[kept], prediction[kept], adversarial[kept] = distance[nearer], seen[nearer], examples[nearer]
        found = np.isfinite(best)
        return Shard(block.index, block.labels, attacked, found, np.where(found, best, np.nan), prediction, adversarial)

    def _rounds(self, spec: AttackSpec) -> Iterator[tuple[float | None, int]]:
        """The radii from the smallest up, each with its restarts; None for an attack that looks for its own radius."""
        restarts = range(int(spec.settings.get("restarts", 1)))
        if METHODS[spec.name].role == "minimum":
            yield from ((None, restart) for restart in restarts)
            return
        # At radius 0 there is nothing to move.
        radii = sorted(eps.value for eps in self.plan.threat.eps if eps.value > 0)
        yield from ((eps, restart) for eps in radii for restart in restarts)

    def _examples(
        self, spec: AttackSpec, block: Block, rows: Whole, eps: float | None, restart: int
    ) -> tuple[Images, Floats, Whole]:
        """For each row a candidate, its distance (infinite unless it counts) and the prediction on it."""
        images, labels = block.images[rows], block.labels[rows]
        device = self.classifier.device
        x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
        samples = [int(sample) for sample in block.index[rows]]
        proposed = self.backend.propose(spec, x, y, samples, eps, restart).float().cpu().numpy()
        low, high = (np.float32(end) for end in self.plan.threat.box)
        finite = np.isfinite(proposed).reshape(len(rows), -1).all(axis=1).reshape(-1, *[1] * (images.ndim - 1))
        examples = np.clip(np.where(finite, proposed, images), low, high)
        if eps is not None:
            examples = inside(self.plan.threat.norm, images, examples, eps)
        distance = np.full(len(rows), np.inf)
        prediction = np.full(len(rows), UNDEFINED, np.int64)
        hopeful = np.flatnonzero(self.classifier.wrong(examples, labels))
        if halvings := int(spec.settings.get("bisection", 0)):
            here, own = images[hopeful], labels[hopeful]
            nearer = pulled(here, examples[hopeful], lambda points: self.classifier.wrong(points, own), halvings)
            self._judge(images, labels, hopeful, nearer, eps, (examples, distance, prediction))
            hopeful = hopeful[np.isinf(distance[hopeful])]  # what bisection spoilt may still count as it was
        self._judge(images, labels, hopeful, examples[hopeful], eps, (examples, distance, prediction))
        return examples, distance, prediction

    def _judge(
        self,
        images: Images,
        labels: Whole,
        rows: Whole,
        candidates: Images,
        eps: float | None,
        into: tuple[Images, Floats, Whole],
    ) -> None:
        """Write into examples, distances and predictions those candidates that count, each run alone."""
        examples, distance, prediction = into
        if not len(rows):
            return
        seen = self.classifier.alone(candidates, labels[rows])
        size = distance_up(self.plan.threat.norm, images[rows], candidates)
        counts = (seen != labels[rows]) & (size <= (np.inf if eps is None else eps))
        kept = rows[counts]
        examples[kept], distance[kept], prediction[kept] = candidates[counts], size[counts], seen[counts]
