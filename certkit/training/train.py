"""The training job: from a run to a checkpoint whose every matrix is proved to be inside its cap."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit import checkpoint
from certkit.bounds.spectral import spectral_norm
from certkit.config import Run, TrainingConfig
from certkit.data import Dataset, load
from certkit.engine.certify import pair_matrix
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError, ConfigError
from certkit.files import digest_file, write_atomic
from certkit.machine import environment, pinned, provenance
from certkit.models import create, describe
from certkit.models.geometry import Spectral, weights
from certkit.progress import Bar, bar
from certkit.records import Data, Environment, Provenance, Rate, Record, Subject
from certkit.statistics import rate
from certkit.training.augment import shifted
from certkit.training.constraints import CONSTRAINTS, Constraint, constrain_
from certkit.training.muon import Muon

SLACK = 1e-6  # what float32 projections may leave above a cap
DECAY_FROM = 1 / 3  # the learning rate is constant up to here, then falls linearly to 0


class Trained(Record):
    """What came of a run. ``largest_norm_over_cap`` is proved, over every matrix, at every refresh and at the end."""

    format: Literal[1] = 1
    kind: Literal["certkit.trained"] = "certkit.trained"
    subject: Subject
    data: Data
    clean: Rate
    largest_norm_over_cap: float
    constraint: str
    provable: bool
    environment: Environment
    provenance: Provenance


def train(run: Run, *, out: Path, device: str = "cpu", threads: int | None = None) -> Trained:
    """Train a Lipschitz network and write ``out/model.safetensors``, ``config.json``, ``metrics.jsonl``, ``trained.json``.

    Every matrix is projected onto its constraint after every step. The loss is cross-entropy on logits of which each
    wrong one is raised by eps times the proved gain of its lead over the true one: the very bound that certificates use,
    derived again from the network's graph every ``refresh`` steps. No normalisation, no clipping. Nothing is written
    unless training succeeds. Raises DataError for data that do not fit the model, ConfigError for a run that cannot be
    meant, CertkitError when the loss is no longer finite or a matrix leaves a cap that its constraint promises to hold.
    """
    started = time.monotonic()
    out = Path(out)
    with pinned(threads) as count:
        training = load(run.data.name, run.data.train)
        testing = load(run.data.name, run.data.test)
        _fits(run, training)
        torch.manual_seed(run.training.seed)
        model = create(run.model).to(device)
        norms, metrics = fit(model, run.training, training, device)
        model.cpu().eval()
        correct = _correct(model, testing)
    path = checkpoint.write(out, model.state_dict(), run.model_dump(mode="json"))
    constraint = CONSTRAINTS[run.training.constraint]
    trained = Trained(
        subject=Subject(
            sha256=digest_file(path),
            architecture=describe(run.model),
            parameters=sum(p.numel() for p in model.parameters()),
        ),
        data=testing.record,
        clean=rate(correct, len(testing.labels)),
        largest_norm_over_cap=norms,
        constraint=run.training.constraint,
        provable=constraint.provable,
        environment=environment(device, count),
        provenance=provenance(started),
    )
    write_atomic(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics).encode())
    write_atomic(out / "trained.json", (trained.model_dump_json(indent=1) + "\n").encode())
    return trained


def _fits(run: Run, data: Dataset) -> None:
    """The model must read these images and name these classes. Raises ConfigError saying what would."""
    model, (channels, height, width) = run.model, data.images.shape[1:]
    if (channels, height, width) != (model.channels, model.image_size, model.image_size):
        raise ConfigError(
            f"data set {data.record.name!r} has images of {channels} x {height} x {width}, the model reads "
            f"{model.channels} x {model.image_size} x {model.image_size}; set model.image_size and model.channels"
        )
    if len(data.record.classes) != model.classes:
        raise ConfigError(
            f"data set {data.record.name!r} has {len(data.record.classes)} classes, the model {model.classes}; "
            "set model.classes"
        )


def fit(
    model: nn.Module, settings: TrainingConfig, data: Dataset, device: str = "cpu"
) -> tuple[float, list[dict[str, float]]]:
    """Train any network whose weights declare their geometry; the largest proved norm over cap, and the metrics."""
    constraint = CONSTRAINTS[settings.constraint]
    declared = list(weights(model))
    matrices = [(weight, kind.cap) for _, weight, kind in declared if isinstance(kind, Spectral)]
    entries = [weight for _, weight, kind in declared if not isinstance(kind, Spectral)]
    muon = Muon([weight for weight, _ in matrices], lr=settings.learning_rate, momentum=settings.momentum)
    adam = torch.optim.Adam(entries, lr=settings.entry_learning_rate, betas=(0.9, 0.99))
    for weight, cap in matrices:
        constrain_(weight.data, cap, constraint)
    generator = torch.Generator().manual_seed(settings.seed)
    images, labels = data.images.to(device), data.labels.to(device)
    largest, metrics = 0.0, []
    gain = torch.empty(0)
    progress: Bar
    with bar("training", settings.steps) as progress:
        for step in range(settings.steps):
            if step % settings.refresh == 0:
                gain = proved_gains(model, data).to(device)
                largest = max(largest, _held(matrices, constraint, step))
            picked = torch.randint(len(labels), (settings.batch,), generator=generator).to(device)
            batch = shifted(images[picked], settings.shift, generator)
            logits, wanted = model(batch), labels[picked]
            raised = logits + settings.eps * gain[wanted]
            # gain.max() / sqrt(2) is the bound of one logit: the temperature is in its units
            loss = F.cross_entropy(raised * (math.sqrt(2) / settings.temperature / gain.max()), wanted)
            if not bool(torch.isfinite(loss)):
                raise CertkitError(f"training: the loss is {loss.item()} at step {step}; lower training.learning_rate")
            model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            factor = min(1.0, (1 - step / settings.steps) / (1 - DECAY_FROM))
            for optimizer, rate_ in ((muon, settings.learning_rate), (adam, settings.entry_learning_rate)):
                optimizer.param_groups[0]["lr"] = rate_ * factor
                optimizer.step()
            for weight, cap in matrices:
                constrain_(weight.data, cap, constraint)
            if step % settings.refresh == 0 or step == settings.steps - 1:
                accuracy = float((logits.argmax(1) == wanted).float().mean())
                metrics.append(
                    {
                        "step": step,
                        "loss": loss.item(),
                        "batch_accuracy": accuracy,
                        "pair_gain": float(gain.max()),
                        "lr": factor * settings.learning_rate,
                    }
                )
            progress.advance(f"loss {loss.item():.3f}")
    return max(largest, _held(matrices, constraint, settings.steps)), metrics


def _held(matrices: list[tuple[nn.Parameter, float]], constraint: Constraint, step: int) -> float:
    """The largest proved norm over cap. Raises CertkitError when a provable constraint let one out."""
    found = largest_norm_over_cap(matrices)
    if constraint.provable and not found <= 1 + SLACK:
        raise CertkitError(
            f"training: a matrix has {found:.9f} times its cap at step {step}, beyond 1 + {SLACK:.0e}; nothing was written"
        )
    return found


def proved_gains(model: nn.Module, data: Dataset) -> Tensor:
    """How fast each logit difference can change, in l2 on the data's box: the certificate's own bound, as float32."""
    was_training = model.training
    model.eval()
    ledger = Interpreter(export(model, tuple(data.images.shape[1:])))("l2", data.box)
    model.train(was_training)
    return torch.from_numpy(pair_matrix(ledger)).float()


def largest_norm_over_cap(matrices: list[tuple[nn.Parameter, float]]) -> float:
    """The largest proved spectral norm of a matrix (or of one in a stack), as a share of its cap."""
    found = [
        spectral_norm(matrix.numpy()) / cap
        for weight, cap in matrices
        for matrix in weight.detach().cpu().double().reshape(-1, *weight.shape[-2:])
    ]
    return max(found, default=0.0)


def _correct(model: nn.Module, data: Dataset) -> int:
    """How many samples the model gets right."""
    with torch.no_grad():
        pieces = [model(images).argmax(1) for images in torch.split(data.images, 256)]
    return int((torch.cat(pieces) == data.labels).sum())
