"""The job: a plan from what was asked, every unit of it run or found, and the campaign read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import nn

from certkit.campaign import Campaign, gather, units
from certkit.checkpoint import subject_of
from certkit.errors import ConfigError, DataError, one_line, suggestion
from certkit.files import digest_file
from certkit.machine import THREADS, environment, usable
from certkit.progress import bar
from certkit.proof import load_certificate
from certkit.records import Adversary, AttackNorm, Budget, Data, Guide, Plan, Subject, radii
from certkit.shards import Shard, Unit

from . import executors
from .backend import affordable, refuse_unusable
from .checks import Before, after, before
from .engine import Block, Engine
from .library import Knowledge
from .model import prepared
from .store import Store, opened
from .suites import chosen, method_of
from .work import Parcel, Samples, now, run_block

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
    norm: AttackNorm,
    eps: Sequence[str | float],
    suite: str = "quick",
    attacks: Sequence[str] = (),
    out: Path,
    seed: int = 0,
    block: int = 64,
    threads: int | None = None,
    device: str = "cpu",
    knowledge: Knowledge = "white-box",
    target: int | None = None,
    source: int | None = None,
    steps: int | None = None,
    queries: int | None = None,
    seconds: float | None = None,
    surrogate: nn.Module | None = None,
    certificate: Path | None = None,
    workers: int = 1,
    executor: str = "process",
    progress: Progress | None = None,
) -> Campaign:
    """Try to refute the model at every radius, and keep each sample's nearest verified adversarial example.

    The plan is written to ``out/campaign`` before anything runs; a campaign that was interrupted there goes on where it
    stopped, and gives the same bytes as one that was not, with however many ``workers``. ``eps`` is in the units of the
    images. The model runs in evaluation mode and is left as it was. ``progress(done, of, attack)`` is called after each
    unit that was run, after each block where others run it.

    ``attacks`` adds attacks by name to the suite (``suite="none"`` has none): those of the table, or any class of
    Foolbox, as ``L2CarliniWagnerAttack:steps=100``. ``target`` makes the goal targeted, with ``source`` a pair of
    classes. ``knowledge`` leaves out what knows more. ``steps`` and ``queries`` bound each attack, ``seconds`` stops a
    unit and makes the campaign inconclusive. ``surrogate`` adds a transfer attack, ``certificate`` (a folder that holds
    one) the attack that is guided by it.

    Raises ConfigError for what cannot be meant, DataError for images or labels outside their range, Refusal when the
    model gives no logits or no gradient, Incomplete when a worker dies, and CertkitError when the disk is full.
    """
    chosen_device = torch.device(usable(device))
    how = executors.known(executor)
    workers = _at_least("workers", workers, 1)
    samples = _samples(data)
    subject = subject or subject_of(model)
    plan = planned(
        subject,
        data,
        norm=norm,
        eps=eps,
        suite=suite,
        attacks=attacks,
        seed=seed,
        block=block,
        threads=threads,
        device=device,
        knowledge=knowledge,
        target=target,
        source=source,
        budget=Budget(
            steps=None if steps is None else _at_least("steps", steps, 1),
            queries=None if queries is None else _at_least("queries", queries, 1),
            seconds=_seconds(seconds),
        ),
        surrogate=None if surrogate is None else subject_of(surrogate),
        guide=None if certificate is None else guide_of(Path(certificate), subject, data, norm),
    )
    with ExitStack() as stack:
        classifier = stack.enter_context(prepared(model, chosen_device, plan.threads))
        classes = classifier.classes(samples.images[:1])
        _labels_fit(samples.labels, samples.index, classes)
        for name, value in (("target", target), ("source", source)):
            if value is not None and value >= classes:
                raise ConfigError(
                    f"{name} {value} is none of the model's {classes} classes; expected 0 to {classes - 1}"
                )
        other = None
        if surrogate is not None:
            other = stack.enter_context(prepared(surrogate, chosen_device, plan.threads))
            if (count := other.classes(samples.images[:1])) != classes:
                raise ConfigError(f"the surrogate tells {count} classes apart, the model {classes}; expected as many")
        first = slice(0, plan.block)
        first_block = Block(samples.images[first], samples.labels[first], samples.index[first])
        facts = before(classifier, first_block, knowledge)
        store = stack.enter_context(opened(out, plan))
        engine = Engine(classifier, plan, other)
        if workers == 1 and how == "process":
            return _run(engine, store, samples, facts, progress)
        return _run(engine, store, samples, facts, progress, (how, workers, model, surrogate))


def planned(
    subject: Subject,
    data: Dataset,
    *,
    norm: AttackNorm,
    eps: Sequence[str | float],
    suite: str = "quick",
    attacks: Sequence[str] = (),
    seed: int = 0,
    block: int = 64,
    threads: int | None = None,
    device: str = "cpu",
    knowledge: Knowledge = "white-box",
    target: int | None = None,
    source: int | None = None,
    budget: Budget | None = None,
    surrogate: Subject | None = None,
    guide: Guide | None = None,
) -> Plan:
    """The plan of the campaign that these would run; two equal ones make one campaign. Raises ConfigError."""
    norm, knowledge, count = _norm(norm), _knowledge(knowledge), THREADS if threads is None else threads
    if norm == "token" and data.images[:1].ndim != 3:
        raise ConfigError(
            f"norm token is for samples of shape (tokens, features); these have shape {tuple(data.images.shape[1:])}"
        )
    if source is not None and target is None:
        raise ConfigError(f"source {source} comes without a target; expected both for a pair of classes")
    if source is not None and source == target:
        raise ConfigError(f"source and target are both {source}; expected two classes")
    named = {name: value for name, value in (("source", source), ("target", target)) if value is not None}
    for name, value in named.items():
        _at_least(name, value, 0)
    within = budget or Budget(steps=None, queries=None, seconds=None)
    threat = Adversary(
        norm=norm,
        eps=radii(eps),
        box=data.box,
        goal="pair" if source is not None else "targeted" if target is not None else "untargeted",
        source=source,
        target=target,
        knowledge=knowledge,
        budget=within,
    )
    specs = chosen(suite, norm, attacks, knowledge, transfer=surrogate is not None, guide=guide is not None)
    refuse_unusable(specs)
    specs = tuple(affordable(spec, within) for spec in specs)
    return Plan(
        subject=subject,
        threat=threat,
        data=data.record,
        suite=suite,
        attacks=specs,
        roles=tuple(method_of(spec.name).role for spec in specs),
        surrogate=surrogate,
        guide=guide,
        seed=_at_least("seed", seed, 0),
        block=_at_least("block", block, 1),
        threads=_at_least("threads", count, 1),
        device=device,
        environment=environment(device, count),
    )


def guide_of(directory: Path, subject: Subject, data: Dataset, norm: str) -> Guide:
    """The certified radii in a folder, for the attack that is guided by them. Raises ConfigError when they belong to
    another network, other samples or another norm."""
    certificate, table, _ = load_certificate(directory)
    others = {
        "network": certificate.subject.sha256 != subject.sha256,
        "data": certificate.data.sha256 != data.record.sha256,
        "norm": certificate.threat.norm != norm,
    }
    if differ := [name for name, other in others.items() if other]:
        raise ConfigError(f"{directory}: the certificate there is for another {' and '.join(differ)}")
    radius = np.where(table.correct, np.minimum(table.radius, np.finfo(np.float64).max), 0.0)
    return Guide(
        certificate_sha256=digest_file(directory / "certificate.json"), radius=tuple(float(one) for one in radius)
    )


def _run(
    engine: Engine,
    store: Store,
    samples: Samples,
    facts: Before,
    progress: Progress | None,
    elsewhere: tuple[executors.Executor, int, nn.Module, nn.Module | None] | None = None,
) -> Campaign:
    """Every unit run or found, the checks made or found, and the campaign read back."""
    plan = engine.plan
    blocks = list(units(plan))
    total = sum(len(block) for block in blocks)
    store.log({"event": "start", "plan": plan.sha256, "time": now()})
    results: dict[int, list[Shard]] = {}
    there = 0
    for number, block in enumerate(blocks):
        found = [shard for unit in block if (shard := store.get(unit)) is not None]
        there += len(found)
        if len(found) == len(block):
            results[number] = found
    with bar("attack", total, there) as shown:

        def ran(unit: Unit) -> None:
            counted(1, unit.attack)

        def counted(units_run: int, note: str = "") -> None:
            nonlocal there
            there += units_run
            for _ in range(units_run):
                shown.advance(note)
            if progress is not None and units_run:
                progress(there, total, note)

        left = [number for number in range(len(blocks)) if number not in results]
        if elsewhere is None or not left:
            for number in left:
                results[number] = run_block(engine, store, blocks[number], samples, ran)
        else:
            how, workers, model, surrogate = elsewhere
            executors.run(how, Parcel.of(store, plan, samples, model, surrogate), left, workers, counted)
            for number in left:
                results[number] = run_block(engine, store, blocks[number], samples, ran)
    campaign = gather(plan, [results[number] for number in range(len(blocks))])
    held = store.checks(plan)
    checks = after(engine, facts, campaign, samples) if held is None else held
    if held is None:
        store.put_checks(plan, checks)
    store.log({"event": "end", "plan": plan.sha256, "time": now()})
    return replace(campaign, checks=checks)


def _norm(norm: str) -> AttackNorm:
    for known in get_args(AttackNorm):
        if norm == known:
            return known  # type: ignore[no-any-return]
    known = ", ".join(get_args(AttackNorm))
    raise ConfigError(
        f"norm {one_line(norm)!r} is unknown; expected one of {known}{suggestion(str(norm), get_args(AttackNorm))}"
    )


def _knowledge(given: str) -> Knowledge:
    for known in get_args(Knowledge):
        if given == known:
            return known  # type: ignore[no-any-return]
    known = ", ".join(get_args(Knowledge))
    raise ConfigError(
        f"knowledge {one_line(given)!r} is unknown; expected one of {known}{suggestion(str(given), get_args(Knowledge))}"
    )


def _seconds(given: float | None) -> float | None:
    if given is None or (not isinstance(given, bool) and isinstance(given, (int, float)) and 0 < given < np.inf):
        return given
    raise ConfigError(f"seconds {one_line(repr(given))} cannot be used; expected a time above 0")


def _at_least(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} {one_line(repr(value))} cannot be used; expected a whole number of at least {least}")
    return value


def _samples(data: Dataset) -> Samples:
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
    return Samples(np.ascontiguousarray(images), labels.astype(np.int64), index.astype(np.int64))


def _labels_fit(labels: Any, index: Any, classes: int) -> None:
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"label {int(labels[outside][0])} of sample {int(index[outside][0])} is none of the model's {classes} "
            f"classes; expected 0 to {classes - 1}"
        )
