"""Time of one optimiser step on the matrices of a GPT of width 768: ours, the same rule plainly written, and torch's.

    python -m benchmarks.muon_step > benchmarks/results/muon_step.json

Per block four matrices of 768 x 768, one of 3072 x 768 and one of 768 x 3072, in one process, jobs in turn, medians.
Then what each provable constraint adds, as a share of our step, after a step of 0.05 of the cap from inside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.common import printed
from certkit.machine import pinned
from certkit.models.geometry import Spectral, norm_over_cap
from certkit.training.constraints import CONSTRAINTS, Step, constrain_, promise, start_
from certkit.training.muon import Muon
from certkit.training.newton_schulz import SETS

WIDTH = 768
SHAPES = [(WIDTH, WIDTH)] * 4 + [(4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
LR, DECAY, MOMENTUM = 0.05, 1.0, 0.95


class Plain:
    """The same momentum and six terms in float32, matrix by matrix, each term by three whole products."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = weights
        self.averages = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self) -> None:
        for weight, average in zip(self.weights, self.averages, strict=True):
            assert weight.grad is not None
            average.lerp_(weight.grad, 1 - MOMENTUM)
            weight.mul_(1 - LR * DECAY).add_(self._direction(weight.grad.lerp(average, MOMENTUM)), alpha=-LR)

    @staticmethod
    def _direction(update: Tensor) -> Tensor:
        x = update.mT if update.shape[0] > update.shape[1] else update
        x = x / torch.linalg.matrix_norm(x)
        for a, b, c in SETS["six-step"].triples:
            gram = x @ x.mT
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return x.mT if update.shape[0] > update.shape[1] else x


def made(blocks: int) -> list[nn.Parameter]:
    """Random weights inside their caps, with a gradient each; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for shape in SHAPES * blocks:
        weight = nn.Parameter(torch.randn(shape, generator=generator) / (shape[0] ** 0.5 + shape[1] ** 0.5))
        weight.grad = torch.randn(shape, generator=generator)
        weights.append(weight)
    return weights


@dataclass
class Times:
    """Seconds of one job per round, by the clock and of all threads of the process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, job: Callable[[], object]) -> None:
        started = time.perf_counter(), time.process_time()
        job()
        self.wall.append(time.perf_counter() - started[0])
        self.cpu.append(time.process_time() - started[1])

    def over(self, other: Times) -> dict[str, float]:
        """The ratio of the medians, by both measures."""
        return {
            "wall": statistics.median(self.wall) / statistics.median(other.wall),
            "cpu": statistics.median(self.cpu) / statistics.median(other.cpu),
        }


def optimisers(blocks: int) -> dict[str, Callable[[], object]]:
    """One step of each of the three."""
    ours, plain, torchs = (made(blocks) for _ in range(3))
    muon = Muon([(weight, Spectral()) for weight in ours], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    other = torch.optim.Muon(torchs, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    return {"ours": muon.step, "plain": Plain(plain).step, "torch": other.step}


class Projection:
    """One constraint on weights that a step straight outward has moved from inside their caps."""

    def __init__(self, name: str, blocks: int) -> None:
        self.name, self.decay = name, DECAY if name == "weight-decay" else 0.0
        self.weights = made(blocks)
        for weight in self.weights:
            start_(name, weight, Spectral())
            weight.grad = -weight.detach()
        Muon([(weight, Spectral()) for weight in self.weights], lr=LR, weight_decay=self.decay).step()
        self.found = [weight.detach().clone() for weight in self.weights]

    def restore(self) -> None:
        for weight, found in zip(self.weights, self.found, strict=True):
            found.copy_(weight.detach())

    def __call__(self) -> None:
        constrain_(CONSTRAINTS[self.name], [(weight, Spectral(), Step(LR, LR * self.decay)) for weight in self.found])

    def norm(self) -> float:
        """The largest proved norm over cap in the first block."""
        return max(norm_over_cap(weight, Spectral()) for weight in self.found[: len(SHAPES)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    with pinned(given.threads) as threads:
        steps = optimisers(given.blocks)
        names = [name for name in CONSTRAINTS if promise(name, "muon") == "provable"]
        projections = {name: Projection(name, given.blocks) for name in names}
        times = {name: Times() for name in [*steps, *projections]}
        for turn in range(given.repeats + 1):
            for projection in projections.values():
                projection.restore()
            for name, job in {**steps, **projections}.items():
                (times[name] if turn else Times()).add(job)  # the first round is not counted
            print(f"round {turn} of {given.repeats}", file=sys.stderr)
        results = {
            "blocks": given.blocks,
            "seconds": {name: asdict(found) for name, found in times.items()},
            "ours_over_plain": times["ours"].over(times["plain"]),
            "ours_over_torch": times["ours"].over(times["torch"]),
            "constraint_over_our_step": {name: times[name].over(times["ours"]) for name in names},
            "largest_norm_over_cap": {name: projection.norm() for name, projection in projections.items()},
        }
    printed("benchmarks.muon_step", {"results": results}, threads)


if __name__ == "__main__":
    main()
