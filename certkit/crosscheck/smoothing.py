"""Randomised smoothing: how far the *smoothed* classifier keeps its class, with a stated confidence, by sampling.

The smoothed classifier gives the class that the network gives most often under Gaussian noise. It is another classifier
than the network, and what is certified of it says nothing about the network itself.

Sound in floating point only on a grid. Where inputs are multiples of 1/levels, the base classifier is taken to be
z -> f(round(levels z) / levels); for an input x on the grid round(levels (x + sigma N)) = levels x + round(levels sigma N),
an integer that ``noise`` draws exactly, so that what is sampled is what the theorem is about, at every input on the grid.
With float noise added in floats it is not: Voráček and Hein 2023, arXiv 2207.07209.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from certkit.checkpoint import subject_of
from certkit.crosscheck.defaults import ALPHA, DRAWS
from certkit.crosscheck.noise import Thresholds, deviation, drawn, radius_low, share_low, thresholds
from certkit.data import Dataset
from certkit.errors import ConfigError, RecordError, Refusal, one_line
from certkit.files import canonical, digest, load, save
from certkit.machine import pinned
from certkit.records import Eps, Subject, radii
from certkit.records.crosscheck import Smoothed, SmoothedAt, SmoothedBlock, Smoothing, SmoothingResult
from certkit.statistics import rate

GRIDS = (16, 255)  # scikit-learn's digits, bytes
OFF_GRID = 1e-6

Counts = NDArray[np.int64]


def levels_of(images: Tensor) -> int | None:
    """The steps between 0 and 1 that all images lie on, to float32's rounding: 16, 255, or None."""
    scaled = images.double()
    return next((n for n in GRIDS if float((scaled * n - (scaled * n).round()).abs().max()) <= n * OFF_GRID), None)


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Classes of one network under the plan's noise."""

    model: nn.Module
    plan: Smoothing
    classes: int
    dtype: torch.dtype
    table: Thresholds | None

    @classmethod
    def of(cls, model: nn.Module, plan: Smoothing) -> Sampler:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        table = None if plan.levels is None else thresholds(plan.sigma, plan.levels)
        return cls(model, plan, len(plan.data.classes), dtype, table)

    def generator(self, index: int, purpose: int = 0) -> np.random.Generator:
        """The sample's own noise, whoever else is sampled."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.plan.seed, index, purpose])))

    def on_grid(self, image: Tensor) -> Tensor:
        """The image itself, or its nearest point of the grid, in float64."""
        x, levels = image.double(), self.plan.levels
        return x if levels is None else (x * levels).round() / levels

    def noisy(self, image: Tensor, generator: np.random.Generator, rows: int) -> Tensor:
        """(rows, ...) noisy copies of a float64 image on the grid, in the model's dtype."""
        shape = (rows, *image.shape)
        if self.table is None or self.plan.levels is None:
            noise = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
            return image.to(self.dtype) + self.plan.sigma * noise.to(self.dtype)
        steps = (image * self.plan.levels).round() + torch.from_numpy(drawn(self.table, generator, shape))
        return (steps / self.plan.levels).to(self.dtype)

    def counts(self, image: Tensor, generator: np.random.Generator, draws: int) -> Counts:
        """How often each class came out of ``draws`` noisy copies, all batches alike; NaN logits count for no class."""
        found = np.zeros(self.classes, np.int64)
        with torch.no_grad():
            rows = min(self.plan.batch, draws)
            for start in range(0, draws, rows):
                logits = self.model(self.noisy(image, generator, rows))[: draws - start]
                winners = logits.argmax(1)[~logits.isnan().any(1)]
                found += np.bincount(winners.numpy(), minlength=self.classes)
        return found

    def certify(self, index: int, label: int, image: Tensor) -> Smoothed:
        """One sample: some draws choose the class, others count it (CERTIFY of Cohen et al. 2019)."""
        generator, x, plan = self.generator(index), self.on_grid(image), self.plan
        guess = int(self.counts(x, generator, plan.selection).argmax())
        count = int(self.counts(x, generator, plan.draws)[guess])
        share = share_low(count, plan.draws, confidence_left(plan, self.table, x.numel()))
        radius = radius_low(plan.sigma, share)
        return Smoothed(
            index=index,
            label=label,
            guess=guess,
            count=count,
            probability=share,
            predicted=guess if share > 0.5 else None,
            radius=radius,
        )


def confidence_left(plan: Smoothing, table: Thresholds | None, entries: int) -> float:
    """The plan's alpha, less what the tabulated noise may differ from the exact one. Raises ConfigError if none is left."""
    if table is None:
        return plan.alpha
    left = math.nextafter(plan.alpha - deviation(table, (plan.selection + plan.draws) * entries), 0.0)
    if left <= 0:
        raise ConfigError(f"alpha {plan.alpha} is too small for {plan.draws} draws of 64 bits; expected a larger alpha")
    return left


def smooth(
    model: nn.Module,
    data: Dataset,
    *,
    sigma: float,
    eps: Sequence[str | float | Fraction],
    draws: int = DRAWS,
    selection: int = 100,
    alpha: float = ALPHA,
    seed: int = 0,
    batch: int = 1000,
    block: int = 20,
    out: Path | None = None,
    subject: Subject | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> SmoothingResult:
    """Certify every sample of the smoothed classifier in l2, each with confidence 1 - alpha of its own.

    A sample counts at eps when the smoothed class is its label and its radius is above eps. With ``out`` finished blocks
    of samples are stored in ``out/smoothing``, and a run that was interrupted goes on where it stopped; the same plan
    gives the same numbers. The model must be in eval mode and classify a row alike wherever it stands in a batch.
    Raises ConfigError for a folder that holds another plan, and for numbers that cannot be meant.
    """
    asked = radii(eps)
    if any(part.training for part in model.modules()):
        raise Refusal("the model is in training mode; call model.eval() before smoothing")
    for name, value in (("draws", draws), ("selection", selection), ("batch", batch), ("block", block)):
        if value < 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha must lie between 0 and 1, got {alpha}")
    if not 0 < sigma < 1e3:
        raise ConfigError(f"sigma must be above 0 and below 1000, got {sigma}")
    plan = Smoothing(
        subject=subject or subject_of(model),
        data=data.record,
        sigma=sigma,
        selection=selection,
        draws=draws,
        alpha=alpha,
        seed=seed,
        levels=levels_of(data.images),
        batch=batch,
        block=block,
    )
    folder = None if out is None else _claimed(Path(out) / "smoothing", plan)
    sampler = Sampler.of(model, plan)
    samples: list[Smoothed] = []
    with pinned(threads):
        for start in range(0, len(data.labels), block):
            rows = range(start, min(start + block, len(data.labels)))
            samples += _block(sampler, data, rows, folder)
            progress(len(samples))
    return judged(plan, tuple(samples), asked)


def judged(plan: Smoothing, samples: tuple[Smoothed, ...], asked: tuple[Eps, ...]) -> SmoothingResult:
    """The counts over samples."""

    def right(one: Smoothed) -> bool:
        return one.predicted == one.label

    return SmoothingResult(
        plan=plan,
        claim="probabilistic, not sound in floating point"
        if plan.levels is None
        else "probabilistic, sound for inputs on the grid",
        samples=samples,
        accurate=rate(sum(map(right, samples)), len(samples)),
        abstained=sum(one.predicted is None for one in samples),
        certified=tuple(
            SmoothedAt(eps=one, certified=rate(sum(right(s) and s.radius > one.value for s in samples), len(samples)))
            for one in asked
        ),
        attacks=None,
    )


def _block(sampler: Sampler, data: Dataset, rows: range, folder: Path | None) -> tuple[Smoothed, ...]:
    """The samples of one block: read if they are there and belong to this plan, else drawn and stored."""
    sha256 = digest(canonical(sampler.plan).encode())
    indices = [int(data.indices[row]) for row in rows]
    path = None if folder is None else folder / f"block-{rows.start // sampler.plan.block:05d}.json"
    if path is not None and path.exists():
        try:
            held = load(SmoothedBlock, path)
        except RecordError:
            held = None  # damaged: drawn again
        if held is not None and held.plan_sha256 == sha256 and [one.index for one in held.samples] == indices:
            return held.samples
    found = tuple(
        sampler.certify(index, int(data.labels[row]), data.images[row])
        for index, row in zip(indices, rows, strict=True)
    )
    if path is not None:
        save(SmoothedBlock(plan_sha256=sha256, samples=found), path)
    return found


def _claimed(folder: Path, plan: Smoothing) -> Path:
    """The folder with this plan written down. Raises ConfigError when it holds another."""
    path = folder / "plan.json"
    if path.exists() and (held := load(Smoothing, path)) != plan:
        differ = [name for name in Smoothing.model_fields if getattr(held, name) != getattr(plan, name)]
        raise ConfigError(
            f"{one_line(folder)}: holds another smoothing (they differ in {', '.join(differ)}); choose another --out"
        )
    save(plan, path)
    return folder
