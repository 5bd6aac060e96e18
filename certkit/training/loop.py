"""The loop: batches, loss, step, constraint, measurements now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.config import Run, TrainingConfig
from certkit.errors import ConfigError, Refusal
from certkit.progress import bar
from certkit.training import losses
from certkit.training.distributed import World
from certkit.training.faults import Diverged
from certkit.training.history import History, Line
from certkit.training.keeper import Keeper
from certkit.training.measure import measured, proved_gains
from certkit.training.stepper import Stepper
from certkit.training.tasks import ImageTask, Task

Note = Callable[[Line], None]


def fit(
    model: nn.Module,
    task: Task,
    run: Run,
    *,
    world: World | None = None,
    out: Path | None = None,
    about: Mapping[str, str] | None = None,
    note: Note | None = None,
) -> History:
    """Train a network whose weights declare their geometry, on its own device, and say what came of it.

    After every step the run's constraint is applied to every weight that has a cap. With ``out``, metrics and a state are
    written there every ``training.save`` steps, and a state found there is gone on from: on a CPU to the same bytes.
    ``about`` names what else must be the same for that. ``note`` receives every line of metrics. Raises Diverged when
    something is no longer finite, CertkitError when a cap is not held that the constraint promises, ConfigError for
    settings that cannot hold together.
    """
    settings, world = run.training, world or World()
    part = world.part(settings.batch)
    stepper = Stepper(model, settings, world)
    generator = torch.Generator().manual_seed(settings.seed)
    keeper = Keeper(out, run, about or {}, model, stepper, generator, world)
    history = keeper.resumed()
    device = next(model.parameters()).device
    forward = torch.compile(model) if settings.compile else model
    gain = None if history.gain is None else torch.tensor(history.gain, device=device)
    started = time.monotonic() - history.seconds
    model.train()
    try:
        with bar("training", settings.steps, history.step) as progress:
            for step in range(history.step, settings.steps):
                line: Line | None = None
                if step % settings.refresh == 0:
                    gain = _gain(model, task, settings, device, step)
                    line = _measured(model, task, stepper, history, step)
                x, y = task.batch(generator, part)
                model.zero_grad()
                loss, right = _gradients(forward, x, y, gain, settings, device)
                loss, right = world.mean(loss), world.mean(right)
                if not math.isfinite(loss):
                    raise Diverged(f"training: the loss is {loss} at step {step}")
                world.average_(stepper.gradients())
                history.saw(loss)
                factor = schedule(settings, step)
                if line is not None or step == settings.steps - 1:
                    line = {"step": step, **(line or {}), "loss": loss, "batch_accuracy": right}
                    line |= {"lr": factor * settings.learning_rate, "gradient_norm": stepper.gradient_norm()}
                    line |= {"spikes": history.spikes, "pair_gain": None if gain is None else float(gain.max())}
                    _noted(history, line, note)
                    if settings.sensitivity:
                        stepper.weigh_()
                stepper.step(factor)
                progress.advance(f"loss {loss:.3f}")
                history.step, history.seconds = step + 1, time.monotonic() - started
                if (step + 1) % settings.save == 0 and step + 1 < settings.steps:
                    history.gain = None if gain is None else gain.tolist()
                    keeper.save(history)
        line = _measured(model, task, stepper, history, settings.steps)
        _noted(history, {"step": settings.steps, **line, "spikes": history.spikes}, note)
        keeper.finite(settings.steps)
        keeper.flush(history)
    except Diverged as fault:
        where = "" if " at step " in str(fault) else f" at step {history.step}"
        raise Diverged(f"{fault}{where}; lower training.learning_rate{keeper.kept(history)}") from None
    return history


def _measured(model: nn.Module, task: Task, stepper: Stepper, history: History, step: int) -> Line:
    """A measurement, entered into the history."""
    line, history.held = measured(model, task, stepper, step)
    history.norm_over_cap = max([history.norm_over_cap, *line["norm_over_cap"].values()])
    history.activation = max([history.activation, *line["largest_entry"].values()])
    return line


def _noted(history: History, line: Line, note: Note | None) -> None:
    wild = [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    if wild:
        raise Diverged(f"training: {wild[0]} is no longer finite at step {line['step']}")
    history.lines.append(line)
    if note is not None:
        note(line)


def schedule(settings: TrainingConfig, step: int) -> float:
    """The share of the learning rate at a step: rising over ``warmup``, constant, from ``decay_from`` linear to 0."""
    rising = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    left = 1 - step / settings.steps
    falling = min(1.0, left / (1 - settings.decay_from)) if settings.decay_from < 1 else 1.0
    return rising * falling


def _gain(model: nn.Module, task: Task, settings: TrainingConfig, device: torch.device, step: int) -> Tensor | None:
    """The bound that the loss needs, if it needs one. What had a bound at first and has none later has diverged."""
    if settings.loss == "cross-entropy":
        return None
    assert isinstance(task, ImageTask)
    try:
        gain = proved_gains(model, tuple(task.training.images.shape[1:]), task.training.box).to(device)
    except Refusal as refusal:
        if step == 0:
            raise
        raise Diverged(f"training: no bound is left at step {step} ({refusal})") from None
    if not bool((gain + torch.eye(len(gain), device=device) > 0).all()):
        raise ConfigError(
            f"training.loss {settings.loss} asks for margins, but two logits of this network cannot part (a last layer of "
            "zeros?); start it elsewhere, or use cross-entropy"
        )
    return gain


def _loss(settings: TrainingConfig, logits: Tensor, wanted: Tensor, gain: Tensor | None) -> Tensor:
    if logits.dtype is torch.bfloat16:
        logits = logits.float()
    if gain is None:
        return F.cross_entropy(logits, wanted)
    if settings.loss == "hinge":
        return losses.hinge(logits, wanted, gain.to(logits.dtype), eps=settings.eps)
    return losses.offset_cross_entropy(
        logits, wanted, gain.to(logits.dtype), eps=settings.eps, temperature=settings.temperature
    )


def _gradients(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    gain: Tensor | None,
    settings: TrainingConfig,
    device: torch.device,
) -> tuple[float, float]:
    """The mean loss of a batch and the share of right predictions; its gradients are added to the weights'."""
    loss, right = 0.0, 0
    for inputs, targets in zip(x.chunk(settings.pieces), y.chunk(settings.pieces), strict=True):
        with _precision(settings, device):
            logits = forward(inputs).flatten(0, -2)
        wanted, share = targets.flatten(), len(inputs) / len(x)
        part = _loss(settings, logits, wanted, gain)
        (part * share if share < 1 else part).backward()  # type: ignore[no-untyped-call]
        loss, right = loss + part.item() * share, right + losses.correct(logits, wanted)
    return loss, right / y.numel()


@contextmanager
def _precision(settings: TrainingConfig, device: torch.device) -> Iterator[None]:
    low = settings.precision == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16) if low else nullcontext():
        yield
