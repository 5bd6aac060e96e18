"""A search, guided by gradients, for inputs that break a bound: too far apart, too large, or too far off in float32.

One trial is a pair of inputs of one program under one threat. It starts far apart, near or at a corner, climbs along the
gradient of its own quotient (or of the size of a value) for some steps, and is then held against every number that the
ledger states for every operator: gain, size, range, and the error of float32 beside float64.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.fx import Node

from certkit.bounds.bound import Axes
from certkit.bounds.ledger import Step
from certkit.engine.slopes import block_norm, dual
from tests.laws import length, norms_of, proof_of
from tests.modules import NOISE, Case, Proof, points, prove

FIELDS = ("gain", "size", "error")


@dataclass(frozen=True, slots=True)
class Violation:
    """What went beyond its bound, and by which factor."""

    field: str
    node: str
    axes: tuple[int, ...]
    ratio: float


@dataclass(slots=True)
class Found:
    """How many trials and comparisons, what broke, and how close to each rule's bounds any came, as measured / stated."""

    trials: int = 0
    comparisons: int = 0
    violations: list[Violation] = field(default_factory=list)
    closest: dict[str, dict[str, float]] = field(default_factory=dict)

    def hold(
        self, name: str, node: Node, step: Step, axes: Axes, measured: Tensor, stated: Tensor | float, slack: float
    ) -> None:
        """Compare measured numbers (N,) with stated ones; ``slack`` is what the float64 measurement may be off."""
        limit = torch.as_tensor(stated, dtype=torch.float64).expand_as(measured)
        self.comparisons += measured.numel()
        if not bool((measured <= limit * (1 + NOISE) + slack).all()):  # so that NaN is a violation
            worst = float((measured / limit.clamp_min(1e-300)).nan_to_num(math.inf).max())
            self.violations.append(Violation(name, node.name, tuple(sorted(axes)), worst))
        counts = limit > max(1e3 * slack, 1e-30)
        if bool(counts.any()):
            known = self.closest.setdefault(step.rule, dict.fromkeys(FIELDS, 0.0))
            known[name] = max(known[name], float((measured / limit)[counts].max()))

    def add(self, other: Found) -> None:
        """Count another search in."""
        self.trials, self.comparisons = self.trials + other.trials, self.comparisons + other.comparisons
        self.violations += other.violations
        for rule, numbers in other.closest.items():
            known = self.closest.setdefault(rule, dict.fromkeys(FIELDS, 0.0))
            known.update({name: max(known[name], number) for name, number in numbers.items()})


def search(case: Case, seed: int, norm: str, pairs: int, steps: int) -> Found:
    """Some pairs of one case with the constants of a seed, each climbed and held against the whole ledger."""
    proof = proof_of(case, seed, norm)
    found = Found(trials=pairs)
    x, y = climb(proof, norm, case.shape, case.box, pairs, seed, steps)
    apart = length(y - x, norm)
    for node, step in proof.nodes:
        at_x, at_y = proof.values(node, x), proof.values(node, y)
        for axes, reach in norms_of(step.bound):
            gain, slack = reach.gain.to_float(), reach.error.to_float()
            found.hold("gain", node, step, axes, block_norm(at_y - at_x, axes), gain * apart, 2 * slack)
            for value in (at_x, at_y):
                found.hold("size", node, step, axes, block_norm(value, axes), reach.size.to_float(), slack)
        if step.bound.range is not None:
            slack = step.bound.within(frozenset()).error.to_float()
            low, high = float(step.bound.range.low), float(step.bound.range.high)
            for value in (at_x.flatten(1), at_y.flatten(1)):
                outside = (value - value.clamp(low, high)).abs().amax(1)
                found.hold("size", node, step, frozenset(), outside, 0.0, slack + NOISE * max(abs(low), abs(high)))
    hold_float32(proof, x, case, norm, found)
    return found


def hold_float32(proof: Proof, xs: Tensor, case: Case, norm: str, found: Found) -> None:
    """Compare the program executed in float32, by the same operators, with the errors that a float32 ledger states."""
    inputs = xs.float()
    if proof.program.dtype is not torch.float32 or not torch.equal(inputs.double().clamp(*case.box), inputs.double()):
        return  # float64 models, and boxes whose ends are no float32
    fixed = None if case.fixed is None else case.fixed()
    single = prove(proof.program, case.shape, box=case.box, norm=norm, arithmetic="float32", fixed=fixed)
    stated = {step.node: step.bound for step in single.ledger.steps}
    constants = {n: c.float() if c.is_floating_point() else c for n, c in proof.program.constants.items()}
    weights = {name: w.float() for name, w in proof.fixed.items()}
    rounded = replace(single, program=replace(proof.program, constants=constants), fixed=weights)
    for node, step in proof.nodes:
        off = rounded.values(node, inputs).double() - proof.values(node, inputs.double())
        for axes, reach in norms_of(stated[node.name]):
            allowed = reach.error.to_float() + step.bound.within(axes).error.to_float()
            found.hold("error", node, step, axes, block_norm(off, axes), allowed, 0.0)


def climb(
    proof: Proof, norm: str, shape: tuple[int, ...], box: tuple[float, float], pairs: int, seed: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Pairs of inputs in the box after some steps uphill, one operator of the program in view: three in four by how far
    they move apart, the rest by how large the value of the first is."""
    choice = random.Random(f"{seed} {norm}")
    node, step = choice.choice(proof.nodes)
    axes = choice.choice(sorted((axes for axes, _ in norms_of(step.bound)), key=sorted))
    value = replace(proof, program=replace(proof.program, nodes=_upto(proof, node)))
    batched: Callable[[Tensor], Tensor] = torch.func.vmap(lambda one: value.value(node, one.unsqueeze(0)))
    x, y = points(shape, box, pairs, 2 * seed), points(shape, box, pairs, 2 * seed + 1)
    near = torch.arange(pairs) % 3 == 0
    kinds = torch.where(near, 1e-4, 1.0).to(torch.float64).reshape(-1, *[1] * len(shape))
    y = x + kinds * (y - x)
    moves = (torch.arange(pairs) % 4 != 3).to(torch.float64)
    threat = frozenset(range(1, x.ndim)) if norm == "l2" else frozenset[int]()
    for turn in range(steps):
        x.requires_grad_()
        y.requires_grad_()
        at_x, at_y = batched(x), batched(y)
        apart = length(y - x, norm).clamp_min(1e-12)
        rise = block_norm(at_y - at_x, axes).clamp_min(1e-30).log() - apart.log()
        size = block_norm(at_x, axes).clamp_min(1e-30).log()
        uphill = torch.autograd.grad((moves * rise + (1 - moves) * size).sum(), (x, y), materialize_grads=True)
        stride = 0.2 * (box[1] - box[0]) * 0.5**turn
        x, y = (
            (point + stride * kinds * dual(gradient.nan_to_num(0.0, 0.0, 0.0), threat)).detach().clamp(*box)
            for point, gradient in zip((x, y), uphill, strict=True)
        )
    return x.detach(), y.detach()


def _upto(proof: Proof, node: Node) -> tuple[Node, ...]:
    nodes = proof.program.nodes
    return nodes[: nodes.index(node) + 1] if node in nodes else ()


def plan(cases: Sequence[tuple[str, Case]], trials: int, pairs: int) -> Iterator[tuple[str, Case, int, str]]:
    """Rule, case, seed and threat, in turn over all cases, until there are enough trials of ``pairs`` pairs."""
    left, seed = trials, 0
    while True:
        for rule, case in cases:
            for norm in ("l2", "linf"):
                if left <= 0:
                    return
                yield rule, case, seed, norm
                left -= pairs
        seed += 1
