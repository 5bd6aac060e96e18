"""The comparison job: several ways to train on the same samples, each with its own learning rates, over the same seeds."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certkit
from certkit import checkpoint
from certkit.comparison import Comparison, CurvePoint, Proven, Row, Trial, best_rate
from certkit.config import Contender, Run, changed
from certkit.data import Dataset, load
from certkit.errors import CertkitError, ConfigError, Refusal, one_line
from certkit.files import digest, write_atomic
from certkit.machine import environment, provenance
from certkit.models import build, describe
from certkit.progress import bar
from certkit.training.constraints import promise
from certkit.training.state import fingerprint
from certkit.training.stepper import possible
from certkit.training.train import METRICS, Trained, train

COMPARISON, TRIAL = "comparison.json", "trial.json"


@dataclass(frozen=True, slots=True)
class Job:
    """One trial to run: where it goes, and what it is."""

    row: int
    run: Run
    folder: Path
    device: str
    threads: int | None
    target: float


def compare(
    run: Run, *, out: Path, device: str = "cpu", threads: int | None = None, workers: int = 1, name: str = "comparison"
) -> Comparison:
    """Train every row with every learning rate and seed, certify and attack the best, and write ``out/comparison.json``.

    A row's learning rate is chosen by mean validation accuracy on samples held out of the training split; the test split
    chooses nothing. Trials that are already there are not run again, so that the same call goes on after an interruption.
    Raises ConfigError before anything runs for a row whose settings cannot hold together or without held-out samples.
    """
    started = time.monotonic()
    if run.compare is None:
        raise ConfigError("this run has no [compare] section; certkit.train makes single runs")
    out = Path(out)
    jobs = list(_jobs(run, out, device, threads))
    trials: list[list[Trial]] = [[] for _ in run.compare.rows]
    with bar("trials", len(jobs)) as progress:
        for job, trial in zip(jobs, _run(jobs, workers), strict=True):
            trials[job.row].append(trial)
            progress.advance(f"{run.compare.rows[job.row].name}: {trial.validation:.3f}")
    rows = [
        _row(contender, base, tuple(found), run, out / _folder(contender), threads)
        for contender, base, found in zip(run.compare.rows, _bases(run), trials, strict=True)
    ]
    found = Comparison(
        name=name,
        data=run.data.name if run.data.name == "digits" else Path(run.data.name).name,
        target=run.compare.target,
        steps=run.training.steps,
        seeds=run.compare.seeds,
        eps=run.compare.eps,
        limit=run.compare.limit,
        rows=tuple(rows),
        environment=environment(device, threads or 1),
        provenance=provenance(started),
    )
    write_atomic(out / COMPARISON, (found.model_dump_json(indent=1) + "\n").encode())
    return found


def _bases(run: Run) -> list[Run]:
    """Each row's run, before learning rate and seed. Raises ConfigError naming the row."""
    assert run.compare is not None
    common = run.model_copy(update={"compare": None})
    found = []
    for contender in run.compare.rows:
        base = changed(common, contender.set, f"row {contender.name!r}")
        if not base.data.validation:
            raise ConfigError("a comparison chooses learning rates on held-out samples; set data.validation above 0")
        if (base.data, base.training.steps) != (common.data, common.training.steps):
            raise ConfigError(
                f"row {one_line(contender.name)!r} changes data or training.steps; all rows learn the same samples as long"
            )
        found.append(base)
    return found


def _jobs(run: Run, out: Path, device: str, threads: int | None) -> Iterator[Job]:
    assert run.compare is not None
    for row, (contender, base) in enumerate(zip(run.compare.rows, _bases(run), strict=True)):
        for rate in contender.learning_rates:
            for seed in run.compare.seeds:
                one = changed(base, {"training": {"learning_rate": rate, "seed": seed}}, f"row {contender.name!r}")
                possible(one.training)
                folder = out / _folder(contender) / f"{rate:g}-{seed}"
                yield Job(row, one, folder, device, threads, run.compare.target)


def _folder(contender: Contender) -> str:
    """A folder name for a row, whatever it is called."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in contender.name.lower())
    return f"{plain[:40]}-{digest(contender.name.encode())[:6]}"


def _run(jobs: list[Job], workers: int) -> Iterator[Trial]:
    if workers == 1:
        yield from map(_trial, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_trial, jobs)


def _trial(job: Job) -> Trial:
    """Run one trial, or read it if it was run before with the same settings."""
    path = job.folder / TRIAL
    wanted = fingerprint(job.run)
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["run"] == wanted:
            return Trial.model_validate_json(json.dumps(kept["trial"]))
    started = time.monotonic()
    rate, seed = job.run.training.learning_rate, job.run.training.seed
    try:
        trained = train(job.run, out=job.folder, device=job.device, threads=job.threads)
        trial = _told(job, trained, round(time.monotonic() - started, 1))
    except CertkitError as error:
        trial = Trial(learning_rate=rate, seed=seed, fault=one_line(error))
    record = {"run": wanted, "trial": trial.model_dump(mode="json")}
    write_atomic(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return trial


def _told(job: Job, trained: Trained, seconds: float) -> Trial:
    lines = [json.loads(line) for line in (job.folder / METRICS).read_text().splitlines()]
    curve = tuple(
        CurvePoint(step=line["step"], loss=line["loss"], validation=line.get("validation_accuracy")) for line in lines
    )
    reached = [p.step for p in curve if p.validation is not None and p.validation >= job.target]
    assert trained.validation is not None
    return Trial(
        learning_rate=job.run.training.learning_rate,
        seed=job.run.training.seed,
        validation=trained.validation.count / trained.validation.total,
        test=trained.clean,
        training=trained.training,
        test_loss=trained.test_loss,
        reached=min(reached, default=None),
        spikes=trained.spikes,
        norm_over_cap=trained.largest_norm_over_cap,
        largest_entry=trained.largest_entry,
        seconds=seconds,
        curve=curve,
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
                proved.append(_proved(folder / f"{rate:g}-{trial.seed}", data, run.compare.eps, threads))
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


def _proved(folder: Path, data: Dataset, eps: tuple[str, ...], threads: int | None) -> tuple[Proven, ...]:
    """Certified and attacked counts of the checkpoint in a folder."""
    found = checkpoint.read(folder)
    assert found.config is not None
    model, _ = build(found.config)
    checkpoint.load_into(model, found)
    model.eval()
    audit: dict[str, Any] = {"eps": list(eps), "norm": "l2", "out": folder / "audit", "threads": threads}
    certificate = certkit.certify(model, data, **audit)
    certkit.attack(model, data, **audit)
    record = certkit.audit(folder / "audit", model=model)
    assert len(certificate.certified) == len(record.curve)
    return tuple(
        Proven(eps=point.eps.text, certified=point.certified, attacked=point.attacked, verdict=record.verdict)
        for point in record.curve
        if point.attacked is not None
    )
