"""The laws that every bound obeys, as checks that raise AssertionError, and the programs they are tried on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from certkit.bounds.bound import Axes, Bound, Reach
from certkit.engine.program import Program, export
from tests.modules import NOISE, Case, Proof, points, prove, size, slopes, weights

NORMS = ("l2", "linf")


@functools.cache
def module_of(case: Case) -> nn.Module:
    return case.build(weights(0))


@functools.cache
def program_of(case: Case, seed: int) -> Program:
    """The case's program; a seed other than 0 draws the constants again, which is faster than to export again."""
    if seed == 0:
        return export(module_of(case), case.shape)
    program, draw = program_of(case, 0), weights(seed)
    drawn = {
        node: draw(*value.shape).double() if value.is_floating_point() and bool(value.isfinite().all()) else value
        for node, value in program.constants.items()
    }
    return replace(program, constants=drawn)


def proof_of(case: Case, seed: int, norm: str, box: tuple[float, float] | None = None) -> Proof:
    fixed = None if case.fixed is None else case.fixed()
    return prove(program_of(case, seed), case.shape, box=box or case.box, norm=norm, fixed=fixed)


def norms_of(bound: Bound) -> Iterator[tuple[Axes, Reach]]:
    """Every norm that the bound states, and those that it implies."""
    last = {frozenset({len(bound.shape) - 1})} if len(bound.shape) > 1 else set[Axes]()
    for axes in {*bound.norms, bound.axes, frozenset[int](), *last}:
        yield axes, bound.within(axes)


def contained(proof: Proof, norm: str, shape: tuple[int, ...], box: tuple[float, float]) -> None:
    """The laws: values lie in the stated size and range, and pairs of inputs, far or near, stay within the gain."""
    xs, ys = points(shape, box, 32, 1), points(shape, box, 32, 2)
    near = xs + 1e-4 * (ys - xs)
    for node, step in proof.nodes:
        at_x, at_y, at_near = (proof.values(node, inputs) for inputs in (xs, ys, near))
        for axes, reach in norms_of(step.bound):
            slack = reach.error.to_float()
            assert float(size(at_x, axes).max()) <= reach.size.to_float() + slack, (node, axes)
            for inputs, values in ((ys, at_y), (near, at_near)):
                distance = length(inputs - xs, norm)
                moved = size(values - at_x, axes)
                assert bool((moved <= reach.gain.to_float() * distance * (1 + NOISE) + 2 * slack).all()), (node, axes)
        if step.bound.range is not None:
            slack = step.bound.within(frozenset()).error.to_float()
            low, high = float(step.bound.range.low) - slack, float(step.bound.range.high) + slack
            assert low <= float(at_x.min()) <= float(at_x.max()) <= high, node


def climbed(proof: Proof, norm: str, shape: tuple[int, ...], box: tuple[float, float]) -> None:
    """The search: the steepest direction at the steepest point that hill climbing finds is within the gain."""
    node, step = proof.nodes[-1]
    axes = step.bound.axes
    generator = torch.Generator().manual_seed(3)
    xs = points(shape, box, 24, 4)
    for spread in (0.3, 0.1, 0.03, 0.0):
        found = slopes(proof.jacobians(node, xs), step.bound.shape, axes, norm)
        best = xs[found.argsort(descending=True)[:4]]
        noise = torch.randn(6, 4, *shape, generator=generator, dtype=torch.float64)
        xs = (best + spread * (box[1] - box[0]) * noise).clamp(*box).flatten(0, 1)
    for node, step in proof.nodes:
        jacobians = proof.jacobians(node, xs[:4])
        for axes, reach in norms_of(step.bound):
            steepest = float(slopes(jacobians, step.bound.shape, axes, norm).max())
            assert steepest <= reach.gain.to_float() * (1 + NOISE), (node, axes)


def length(difference: Tensor, norm: str) -> Tensor:
    flat = difference.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)
