"""The training job: from a run to a checkpoint whose weights are measured, and proved under their caps where promised."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from certkit import checkpoint
from certkit.config import Run
from certkit.errors import ConfigError
from certkit.files import check_folder, digest, write_atomic
from certkit.machine import environment, pinned, provenance
from certkit.models import create, describe
from certkit.records import Data, Environment, Provenance, Rate, Record, Subject
from certkit.statistics import rate
from certkit.text import TextData
from certkit.training import state
from certkit.training.board import board
from certkit.training.constraints import promise
from certkit.training.distributed import World, joined
from certkit.training.faults import Diverged
from certkit.training.history import History
from certkit.training.loop import Note, fit
from certkit.training.stepper import possible
from certkit.training.tasks import ImageTask, Judged, TextTask, judge, task_of

TRAINED, BOARD = "trained.json", "tensorboard"


class Trained(Record):
    """What came of a run.

    ``clean`` is right predictions on the test split (of images, or of next tokens), ``training`` on as many training
    samples, ``validation`` on those held out, if any were. ``largest_norm_over_cap`` is proved, over every weight with a
    cap, at every refresh and at the end; ``largest_entry`` is measured, over all blocks, on the first training samples.
    """

    format: Literal[2] = 2
    kind: Literal["certkit.trained"] = "certkit.trained"
    subject: Subject
    data: Data | TextData
    trained_on: Data | TextData
    clean: Rate
    test_loss: float
    training: Rate
    validation: Rate | None
    largest_norm_over_cap: float
    largest_entry: float
    spikes: int
    optimizer: str
    constraint: str
    promise: str
    processes: int
    environment: Environment
    provenance: Provenance


def train(
    run: Run, *, out: Path, device: str = "cpu", threads: int | None = None, tensorboard: bool = False
) -> Trained:
    """Train a network and write ``out/model.safetensors``, ``config.json``, ``metrics.jsonl``, ``trained.json``.

    After every step the run's constraint is applied to every weight that has a cap; ``promise`` says whether that is
    proved to hold it. A loss that asks for certified margins uses the bound that certificates use, derived again from the
    network's graph every ``refresh`` steps.
    Every ``save`` steps a state is written to ``out``; the same call goes on from there after an interruption, on a CPU
    to the same bytes. Under ``torchrun`` the processes share each batch and the optimiser's work.
    Raises DataError for data that do not fit the model, ConfigError for a run that cannot be meant, CertkitError when the
    loss is no longer finite (the last state's weights are then kept in ``out/last-good``) or a cap that was promised is
    not held.
    """
    out = Path(out)
    if run.compare is not None:
        raise ConfigError("this run is a comparison of several; certkit.compare makes those")
    s = run.training
    possible(s)
    check_folder(out)
    with (
        pinned(threads) as count,
        joined(device) as world,
        board(out / BOARD if tensorboard and world.first else None) as note,
    ):
        task = task_of(run, device)
        model = made(run, device)
        history = _fitted(model, task, run, world, out, _about(task, world, device, count), note)
        tested, seen = judge(model, task.tested()), judge(model, task.seen())
        if not math.isfinite(tested.loss + seen.loss):
            raise Diverged(
                f"training: the test loss is no longer finite after {s.steps} steps; lower training.learning_rate"
            )
        model.cpu().eval()
        trained = Trained(
            subject=Subject(
                sha256=digest(checkpoint.serialized(model.state_dict())),
                architecture=describe(run.model),
                parameters=sum(p.numel() for p in model.parameters()),
            ),
            data=task.testing.record,
            trained_on=task.training.record,
            clean=_rate(tested),
            test_loss=tested.mean_loss,
            training=_rate(seen),
            validation=None if history.held is None else _rate(history.held),
            largest_norm_over_cap=history.norm_over_cap,
            largest_entry=history.activation,
            spikes=history.spikes,
            optimizer=s.optimizer,
            constraint=s.constraint,
            promise=promise(s.constraint, s.optimizer, scale=s.scale),
            processes=world.size,
            environment=environment(device, count),
            provenance=provenance(time.monotonic() - history.seconds),
        )
        if world.first:
            (out / TRAINED).unlink(missing_ok=True)
            checkpoint.write(out, model.state_dict(), run.model_dump(mode="json"))
            (out / state.STATE).unlink(missing_ok=True)
            write_atomic(out / TRAINED, (trained.model_dump_json(indent=1) + "\n").encode())
    return trained


def _about(task: ImageTask | TextTask, world: World, device: str, threads: int) -> dict[str, str]:
    """What decides the bytes of a run beside its settings and the versions."""
    return {
        "data": task.training.record.sha256,
        "processes": str(world.size),
        "device": device.partition(":")[0],
        "threads": str(threads),
    }


def made(run: Run, device: str) -> nn.Module:
    """The run's network, freshly initialised from its seed."""
    torch.manual_seed(run.training.seed)
    model = create(run.model)
    if run.training.precision == "float64":
        model = model.double()
    return model.to(device)


def _fitted(
    model: nn.Module,
    task: ImageTask | TextTask,
    run: Run,
    world: World,
    out: Path,
    about: dict[str, str],
    note: Note | None,
) -> History:
    """The loop; where it fails, the weights of the last state are laid beside it as a checkpoint of their own."""
    try:
        return fit(model, task, run, world=world, out=out, about=about, note=note)
    except Diverged:
        if world.first and (saved := state.load(out / state.STATE, run, about)) is not None:
            kept = {name: saved.tensors[f"model.{name}"] for name in model.state_dict()}
            checkpoint.write(out / state.LAST_GOOD, kept, run.model_dump(mode="json"))
        raise


def _rate(judged: Judged) -> Rate:
    return rate(judged.correct, judged.total)
