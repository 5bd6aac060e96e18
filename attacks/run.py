"""The job: a plan from what was asked, every unit of it run or found, and the campaign read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import nn

from certkit.campaign import Campaign, Shard, gather, units
from certkit.checkpoint import subject_of
from certkit.errors import ConfigError, DataError, one_line, suggestion
from certkit.machine import THREADS, environment, usable
from certkit.progress import bar
from certkit.records import Data, Norm, Plan, Subject, Threat, radii

from .checks import Before, after, before
from .engine import Block, Engine
from .model import prepared
from .store import Store, opened
from .suites import METHODS
from .suites import suite as attacks_of

Progress = Callable[[int, int, str], None]


class Dataset(Protocol):
    """What a campaign reads of a dataset."""

    @property
    def record(self) -> Data: ...
    @property
    def images(self) -> Any: ...
    @property
    def labels(self) -> Any: ...
    @property
    def indices(self) -> Any: ...
    @property
    def box(self) -> tuple[float, float]: ...


def attack(
    model: nn.Module,
    data: Dataset,
    *,
    subject: Subject | None = None,
    norm: Norm,
    eps: Sequence[str | float],
    suite: str = "quick",
    out: Path,
    seed: int = 0,
    block: int = 64,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Campaign:
    """Try to refute the model at every radius, and keep each sample's nearest verified adversarial example.

    The plan is written to ``out/campaign`` before anything runs; a campaign that was interrupted there goes on where it
    stopped, and gives the same bytes as one that was not. ``eps`` is in the units of the images. The model runs in
    evaluation mode and is left as it was. ``progress(done, of, attack)`` is called after each unit that was run.

    Raises ConfigError for what cannot be meant, DataError for images or labels outside their range, Refusal when the
    model gives no logits or no gradient, and CertkitError when the disk is full.
    """
    chosen = torch.device(usable(device))
    images, labels, index = _samples(data)
    plan = planned(
        subject or subject_of(model),
        data,
        norm=norm,
        eps=eps,
        suite=suite,
        seed=seed,
        block=block,
        threads=threads,
        device=device,
    )
    with prepared(model, chosen, plan.threads) as classifier:
        _labels_fit(labels, index, classifier.classes(images[:1]))
        first = slice(0, plan.block)
        facts = before(classifier, Block(images[first], labels[first], index[first]))
        with opened(out, plan) as store:
            return _run(Engine(classifier, plan), store, (images, labels, index), facts, progress)


def planned(
    subject: Subject,
    data: Dataset,
    *,
    norm: Norm,
    eps: Sequence[str | float],
    suite: str = "quick",
    seed: int = 0,
    block: int = 64,
    threads: int | None = None,
    device: str = "cpu",
) -> Plan:
    """What ``attack`` would do with these arguments; nothing runs. Raises ConfigError for what cannot be meant."""
    threat = Threat(norm=_norm(norm), eps=radii(eps), box=(float(data.box[0]), float(data.box[1])))
    attacks = attacks_of(suite, norm)
    count = _at_least("threads", THREADS if threads is None else threads, 1)
    return Plan(
        subject=subject,
        threat=threat,
        data=data.record,
        suite=suite,
        attacks=attacks,
        roles=tuple(METHODS[spec.name].role for spec in attacks),
        seed=_at_least("seed", seed, 0),
        block=_at_least("block", block, 1),
        threads=count,
        device=device,
        environment=environment(device, count),
    )


def _run(
    engine: Engine, store: Store, samples: tuple[Any, Any, Any], facts: Before, progress: Progress | None
) -> Campaign:
    plan, (images, labels, index) = engine.plan, samples
    blocks = list(units(plan))
    total = sum(len(block) for block in blocks)
    store.log({"event": "start", "plan": plan.sha256, "time": _now()})
    results: list[list[Shard]] = []
    done = 0
    with bar("attack", total) as shown:
        for block in blocks:
            rows = slice(block[0].start, block[0].stop)
            here, found = Block(images[rows], labels[rows], index[rows]), list[Shard]()
            for unit in block:
                done += 1
                shard = store.get(unit)
                if shard is None:
                    began = time.perf_counter()
                    shard = engine.run(unit, here, found)
                    store.put(unit, shard)
                    seconds = round(time.perf_counter() - began, 6)
                    entry = {"event": "unit", "unit": unit.sha256, "attack": unit.attack, "start": unit.start}
                    store.log({**entry, "time": _now(), "seconds": seconds})
                    if progress is not None:
                        progress(done, total, unit.attack)
                shown.advance(unit.attack)
                found.append(shard)
            results.append(found)
    campaign = gather(plan, results)
    checks = after(engine.classifier, facts, campaign, images)
    store.put_checks(plan, checks)
    store.log({"event": "end", "plan": plan.sha256, "time": _now()})
    return replace(campaign, checks=checks)


def _norm(norm: str) -> Norm:
    for known in get_args(Norm):
        if norm == known:
            return known  # type: ignore[no-any-return]
    known = ", ".join(get_args(Norm))
    raise ConfigError(
        f"norm {one_line(norm)!r} is unknown; expected one of {known}{suggestion(str(norm), get_args(Norm))}"
    )


def _at_least(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} {one_line(repr(value))} cannot be used; expected a whole number of at least {least}")
    return value


def _samples(data: Dataset) -> tuple[Any, Any, Any]:
    """Images, labels and indices as arrays, checked against one another and against the box."""
    images, labels, index = (np.asarray(one) for one in (data.images, data.labels, data.indices))
    low, high = data.box
    if not len(images):
        raise DataError("no samples were selected; expected at least one image")
    if images.dtype != np.float32 or images.ndim < 2:
        raise DataError(f"images are {images.dtype} of shape {images.shape}; expected float32 (N, C, H, W)")
    if labels.shape != (len(images),) or index.shape != (len(images),) or data.record.count != len(images):
        raise DataError(
            f"{len(images)} images come with {labels.size} labels, {index.size} indices and a record of "
            f"{data.record.count}; expected one of each per image"
        )
    if not (np.issubdtype(labels.dtype, np.integer) and np.issubdtype(index.dtype, np.integer)):
        raise DataError(f"labels are {labels.dtype} and indices {index.dtype}; expected whole numbers")
    if len(np.unique(index)) < len(index):
        raise DataError("an index stands twice in the selection; expected each sample once")
    outside = ~((images >= low) & (images <= high)).reshape(len(images), -1).all(axis=1)
    if outside.any():
        raise DataError(
            f"{int(outside.sum())} images leave the box [{low}, {high}] or are not finite "
            f"(first: sample {int(index[outside][0])}); scale them into it"
        )
    return np.ascontiguousarray(images), labels.astype(np.int64), index.astype(np.int64)


def _labels_fit(labels: Any, index: Any, classes: int) -> None:
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"label {int(labels[outside][0])} of sample {int(index[outside][0])} is none of the model's {classes} "
            f"classes; expected 0 to {classes - 1}"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
