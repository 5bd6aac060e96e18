"""The comparison job: several ways to train on the same samples, each with its own learning rates, over the same seeds."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import certkit
from certkit import checkpoint
from certkit.comparison import Comparison, CurvePoint, Proven, Row, Trial, best_rate
from certkit.config import Contender, Language, ModelConfig, Run, changed
from certkit.data import Dataset, load
from certkit.errors import CertkitError, CheckpointError, ConfigError, RecordError, Refusal, one_line
from certkit.files import check_folder, digest, digest_file, save, write_atomic
from certkit.files import load as load_record
from certkit.machine import THREADS, environment, provenance
from certkit.models import build, create, describe
from certkit.progress import bar
from certkit.records import Record, Sha256, radii
from certkit.training.constraints import promise
from certkit.training.distributed import World
from certkit.training.faults import Diverged
from certkit.training.keeper import METRICS
from certkit.training.measure import proved_gains
from certkit.training.state import STATE, fingerprint
from certkit.training.stepper import Stepper
from certkit.training.tasks import ImageTask, task_of
from certkit.training.train import Trained, made, train

COMPARISON, TRIAL = "comparison.json", "trial.json"
SHARED = ("steps", "batch")  # settings of training that decide how many samples are seen
GIVEN = {"learning_rate": "its learning_rates give that", "seed": "compare.seeds give that"}


@dataclass(frozen=True, slots=True)
class Samples:
    """What all trials learn from and are tested on, by digest."""

    training: str
    testing: str


@dataclass(frozen=True, slots=True)
class Job:
    """One trial to run: where it goes, and what it is."""

    row: int
    name: str
    run: Run
    samples: Samples
    folder: Path
    device: str
    threads: int | None
    target: float

    @property
    def sha256(self) -> str:
        """The digest of everything that decides what comes of it."""
        decides = [
            fingerprint(self.run),
            self.samples.training,
            self.samples.testing,
            self.device,
            self.threads or THREADS,
        ]
        return digest(json.dumps(decides).encode())

    def __str__(self) -> str:
        s = self.run.training
        return f"row {one_line(self.name)!r}, learning rate {s.learning_rate!r}, seed {s.seed}"


class Kept(Record):
    """What a trial's folder belongs to, written before anything else there; ``trial`` once it has come to an end."""

    format: Literal[2] = 2
    kind: Literal["certkit.trial"] = "certkit.trial"
    job: Sha256
    trial: Trial | None


def compare(
    run: Run, *, out: Path, device: str = "cpu", threads: int | None = None, workers: int = 1, name: str = "comparison"
) -> Comparison:
    """Train every row with every learning rate and seed, certify and attack the best, and write ``out/comparison.json``.

    A row's learning rate is chosen by mean validation accuracy on samples held out of the training split; the test split
    chooses nothing. Trials that are already there are not run again, so that the same call goes on after an interruption.
    A trial that diverges is recorded and the others go on; anything else that goes wrong ends the comparison.
    Raises ConfigError, DataError or Refusal before anything runs for rows whose settings cannot hold together, for data
    that are missing or do not fit, and without held-out samples.
    """
    started = time.monotonic()
    if run.compare is None:
        raise ConfigError("this run has no [compare] section; certkit.train makes single runs")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("a comparison is not run under torchrun; --workers runs several of its trials at a time")
    out = Path(out)
    bases = _bases(run)
    samples = _samples(run, bases)
    check_folder(out)
    jobs = list(_jobs(run, bases, samples, out, device, threads))
    trials: list[list[Trial]] = [[] for _ in bases]
    with bar("trials", len(jobs)) as progress:
        for job, trial in zip(jobs, _run(jobs, workers), strict=True):
            trials[job.row].append(trial)
            progress.advance(f"{job.name}: {trial.validation:.3f}")
    rows = [
        _row(contender, base, tuple(found), run, out / _folder(contender), threads)
        for contender, base, found in zip(run.compare.rows, bases, trials, strict=True)
    ]
    found = Comparison(
        name=name,
        data=run.data.name if run.data.name == "digits" else Path(run.data.name).name,
        training_sha256=samples.training,
        test_sha256=samples.testing,
        target=run.compare.target,
        steps=run.training.steps,
        seeds=run.compare.seeds,
        eps=run.compare.eps,
        limit=run.compare.limit,
        rows=tuple(rows),
        environment=environment(device, threads or THREADS),
        provenance=provenance(started),
    )
    write_atomic(out / COMPARISON, (found.model_dump_json(indent=1) + "\n").encode())
    return found


@contextmanager
def _of(contender: Contender) -> Iterator[None]:
    """Errors inside name the row. Raises them again."""
    try:
        yield
    except (ConfigError, Refusal) as error:
        raise type(error)(f"row {one_line(contender.name)!r}: {error}") from None


def _bases(run: Run) -> list[Run]:
    """Each row's run, before learning rate and seed. Raises ConfigError for settings that cannot be compared."""
    assert run.compare is not None
    common = run.model_copy(update={"compare": None})
    if not common.data.validation:
        raise ConfigError("a comparison chooses learning rates on held-out samples; set data.validation above 0")
    if common.data.test == common.data.train:
        raise ConfigError(f"data.test {one_line(common.data.test)!r}: the test split must not be the training split")
    if run.compare.eps:
        radii(run.compare.eps)
    found = []
    for contender in run.compare.rows:
        base = changed(common, contender.set, f"row {one_line(contender.name)!r}")
        with _of(contender):
            _comparable(contender.set, base, common)
            if run.compare.eps and isinstance(base.model, Language):
                raise ConfigError("compare.eps: radii are for images; leave it out for a language model")
            for rate in contender.learning_rates:
                _possible(changed(base, {"training": {"learning_rate": rate}}, "learning_rates"))
        found.append(base)
    return found


def _comparable(changes: Mapping[str, Any], base: Run, common: Run) -> None:
    """Raises ConfigError for what a row must leave as it is."""
    if base.compare is not None:
        raise ConfigError("set may not hold compare; a comparison has no comparisons inside")
    training = changes.get("training", {})
    for key, instead in GIVEN.items():
        if key in training:
            raise ConfigError(f"set may not hold training.{key}; {instead}")
    if base.data != common.data or any(getattr(base.training, k) != getattr(common.training, k) for k in SHARED):
        raise ConfigError("changes data, training.steps or training.batch; all rows see the same samples, and as many")


def _possible(run: Run) -> None:
    """Raises ConfigError for settings that this network cannot be trained with. Nothing is computed."""
    with torch.device("meta"):
        Stepper(create(run.model), run.training, World())


def _samples(run: Run, bases: list[Run]) -> Samples:
    """What all rows learn from. Raises DataError for what is missing, ConfigError or Refusal for a row it does not fit."""
    assert run.compare is not None
    found: dict[tuple[ModelConfig, str], Samples] = {}
    for contender, base in zip(run.compare.rows, bases, strict=True):
        if (base.model, base.training.loss) in found:
            continue
        with _of(contender):
            task = task_of(base, "cpu")
            task.held_out()  # raises for a text of which too little is held out
            if isinstance(task, ImageTask) and base.training.loss != "cross-entropy":
                proved_gains(made(base, "cpu"), tuple(task.training.images.shape[1:]), task.training.box)
        known = Samples(task.training.record.sha256, task.testing.record.sha256)
        if known.training == known.testing:
            raise ConfigError(f"data.test {one_line(run.data.test)!r}: the test split must not be the training split")
        found[base.model, base.training.loss] = known
    return next(iter(found.values()))


def _jobs(run: Run, bases: list[Run], samples: Samples, out: Path, device: str, threads: int | None) -> Iterator[Job]:
    assert run.compare is not None
    for row, (contender, base) in enumerate(zip(run.compare.rows, bases, strict=True)):
        for rate in contender.learning_rates:
            for seed in run.compare.seeds:
                one = changed(base, {"training": {"learning_rate": rate, "seed": seed}}, "learning_rates")
                folder = out / _folder(contender) / _place(rate, seed)
                yield Job(row, contender.name, one, samples, folder, device, threads, run.compare.target)


def _folder(contender: Contender) -> str:
    """A folder name for a row, whatever it is called."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in contender.name.lower())
    return f"{plain[:40]}-{digest(contender.name.encode())[:6]}"


def _place(rate: float, seed: int) -> str:
    """A trial's folder inside its row's: with every digit of the rate, so that no two share one."""
    return f"{rate!r}-{seed}"


def _run(jobs: list[Job], workers: int) -> Iterator[Trial]:
    if workers == 1:
        yield from map(_trial, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_trial, jobs)


def _trial(job: Job) -> Trial:
    """Run one trial, or read it if it was run before with the same settings and samples.

    Diverging is a result. Anything else propagates: what a user can mend as it is, a fault of certkit's own as a
    RuntimeError that names the trial.
    """
    path = job.folder / TRIAL
    kept = _kept(path)
    if kept is None or kept.job != job.sha256:
        (job.folder / STATE).unlink(missing_ok=True)  # of other settings: training would refuse to go on from it
        save(Kept(job=job.sha256, trial=None), path)
    elif kept.trial is not None and (kept.trial.fault is not None or kept.trial.sha256 == _weights(job.folder)):
        return kept.trial
    started = time.monotonic()
    s = job.run.training
    try:
        trained = train(job.run, out=job.folder, device=job.device, threads=job.threads)
        trial = _told(job, trained, round(time.monotonic() - started, 1))
    except Diverged as error:
        trial = Trial(learning_rate=s.learning_rate, seed=s.seed, fault=one_line(error))
    except (CertkitError, OSError):
        raise
    except Exception as error:
        raise RuntimeError(f"{job}: {type(error).__name__}: {one_line(error)}") from error
    save(Kept(job=job.sha256, trial=trial), path)
    return trial


def _kept(path: Path) -> Kept | None:
    """What is known of a trial; None for a file that is missing, damaged or of an earlier certkit: it is made again."""
    try:
        return load_record(Kept, path)
    except RecordError:
        return None


def _weights(folder: Path) -> str | None:
    """The identity of the checkpoint in a folder."""
    path = folder / checkpoint.WEIGHTS
    return digest_file(path) if path.is_file() else None


def _told(job: Job, trained: Trained, seconds: float) -> Trial:
    curve: list[CurvePoint] = []
    for line in map(json.loads, (job.folder / METRICS).read_text().splitlines()):
        loss = line["loss"] if "loss" in line else curve[-1].loss  # the last line measures after the last step
        curve.append(CurvePoint(step=line["step"], loss=loss, validation=line.get("validation_accuracy")))
    reached = [p.step for p in curve if p.validation is not None and p.validation >= job.target]
    assert trained.validation is not None
    return Trial(
        learning_rate=job.run.training.learning_rate,
        seed=job.run.training.seed,
        sha256=trained.subject.sha256,
        validation=trained.validation.count / trained.validation.total,
        test=trained.clean,
        training=trained.training,
        test_loss=trained.test_loss,
        reached=min(reached, default=None),
        spikes=trained.spikes,
        norm_over_cap=trained.largest_norm_over_cap,
        largest_entry=trained.largest_entry,
        seconds=seconds,
        curve=tuple(curve),
    )


def _row(
    contender: Contender, base: Run, trials: tuple[Trial, ...], run: Run, folder: Path, threads: int | None
) -> Row:
    """The row with its best learning rate, whose networks are certified and attacked where radii are given."""
    assert run.compare is not None
    rate = best_rate(trials)
    proved: list[tuple[Proven, ...]] = []
    unproved = None
    if run.compare.eps:
        data = load(run.data.name, run.data.test, limit=run.compare.limit)
        for trial in trials:
            if trial.learning_rate != rate or trial.fault is not None:
                continue
            try:
                proved.append(_proved(folder / _place(rate, trial.seed), trial, data, run.compare.eps, threads))
            except Refusal as error:
                unproved = one_line(error)
    return Row(
        name=contender.name,
        optimizer=base.training.optimizer,
        constraint=base.training.constraint,
        promise=promise(base.training.constraint, base.training.optimizer, scale=base.training.scale),
        architecture=describe(base.model),
        trials=trials,
        learning_rate=rate,
        proved=tuple(proved),
        unproved=unproved,
    )


def _proved(folder: Path, trial: Trial, data: Dataset, eps: tuple[str, ...], threads: int | None) -> tuple[Proven, ...]:
    """Certified and attacked counts of a trial's checkpoint. Raises CheckpointError when another one is in its folder."""
    found = checkpoint.read(folder)
    if found.sha256 != trial.sha256:
        raise CheckpointError(f"{one_line(folder)}: the checkpoint changed after its trial; run the comparison again")
    assert found.config is not None
    model, _ = build(found.config)
    checkpoint.load_into(model, found)
    model.eval()
    out = folder / _audit(found.sha256, data, eps, threads)
    audit: dict[str, Any] = {"eps": list(eps), "norm": "l2", "out": out, "threads": threads}
    certificate = certkit.certify(model, data, **audit)
    certkit.attack(model, data, **audit)
    record = certkit.audit(out, model=model)
    assert len(certificate.certified) == len(record.curve)
    return tuple(
        Proven(eps=point.eps.text, certified=point.certified, attacked=point.attacked, verdict=record.verdict)
        for point in record.curve
        if point.attacked is not None
    )


def _audit(sha256: str, data: Dataset, eps: tuple[str, ...], threads: int | None) -> str:
    """A folder name for one audit of one checkpoint: with other samples, radii or versions it is another one."""
    versions = environment("cpu", threads or THREADS).model_dump()
    return f"audit-{digest(json.dumps([sha256, data.record.sha256, eps, versions]).encode())[:12]}"
