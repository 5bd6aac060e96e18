"""The loop: batches, loss, step, constraint; measurements now and then; states from which it can go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.config import Run, TrainingConfig
from certkit.engine.certify import pair_matrix
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError
from certkit.models import activations
from certkit.progress import bar
from certkit.training import losses, state
from certkit.training.distributed import World
from certkit.training.stepper import Stepper
from certkit.training.tasks import ImageTask, Task, judge

SLACK = 1e-6  # what float32 projections may leave above a cap
SPIKE = 2.0  # a loss this many times the median of those before it counts as a spike
RECENT = 50  # losses that the median is taken of

Line = dict[str, Any]
Note = Callable[[Line], None]


class Diverged(CertkitError):
    """The loss or a weight is no longer finite."""


@dataclass(slots=True)
class History:
    """What is known of a run so far; saved and restored with it.

    norm_over_cap  the largest proved norm of a weight as a share of its cap, over all measurements
    activation     the largest absolute entry of any block's output on the probe, over all measurements
    spikes         how many losses were beyond ``SPIKE`` times the median of the ``RECENT`` before
    """

    step: int = 0
    norm_over_cap: float = 0.0
    activation: float = 0.0
    spikes: int = 0
    recent: list[float] = field(default_factory=list)
    gain: list[list[float]] | None = None
    lines: list[Line] = field(default_factory=list)

    def saw(self, loss: float) -> None:
        """Count a step's loss."""
        if len(self.recent) == RECENT and loss > SPIKE * median(self.recent):
            self.spikes += 1
        self.recent = [*self.recent[1 - RECENT :], loss]


def fit(
    model: nn.Module,
    task: Task,
    run: Run,
    *,
    world: World | None = None,
    out: Path | None = None,
    note: Note | None = None,
    what: str = "training",
) -> History:
    """Train a network whose weights declare their geometry, on its own device, and say what came of it.

    Every weight is put back under its cap after every step. With ``out`` a state is written there every
    ``training.save`` steps, and a state found there is gone on from: on a CPU to the same bytes. ``note`` receives every
    line of metrics. Raises Diverged when loss or weights are no longer finite, CertkitError when a weight leaves a cap
    that its constraint promises to hold, ConfigError for settings that cannot hold together.
    """
    settings, world = run.training, world or World()
    part = world.part(settings.batch)
    stepper = Stepper(model, settings, world)
    generator = torch.Generator().manual_seed(settings.seed)
    history = History()
    path = None if out is None else out / state.STATE
    saved = None if path is None else state.load(path, run)
    if saved is None:
        stepper.start_()
    else:
        state.restore(saved, model, stepper.optimizers, generator)
        history = History(**saved.notes)
    device = next(model.parameters()).device
    forward = torch.compile(model) if settings.compile else model
    gain = None if history.gain is None else torch.tensor(history.gain, device=device)
    model.train()
    with bar(what, settings.steps, history.step) as progress:
        for step in range(history.step, settings.steps):
            line: Line | None = None
            if step % settings.refresh == 0:
                gain = _gain(model, task, settings, device)
                line = measured(model, task, stepper, history, step)
            x, y = task.batch(generator, part)
            model.zero_grad()
            loss, right = _gradients(forward, x, y, gain, settings, device)
            loss, right = world.mean(loss), world.mean(right)
            if not math.isfinite(loss):
                raise Diverged(
                    f"training: the loss is {loss} at step {step}; lower training.learning_rate{_kept(path, history)}"
                )
            world.average_(stepper.gradients())
            history.saw(loss)
            factor = schedule(settings, step)
            if line is not None or step == settings.steps - 1:
                history.lines.append(
                    {
                        "step": step,
                        **(line or {}),
                        "loss": loss,
                        "batch_accuracy": right,
                        "lr": factor * settings.learning_rate,
                        "gradient_norm": stepper.gradient_norm(),
                        "spikes": history.spikes,
                        "pair_gain": None if gain is None else float(gain.max()),
                    }
                )
                if settings.sensitivity:
                    stepper.weigh_()
                if note is not None:
                    note(history.lines[-1])
            stepper.step(factor)
            progress.advance(f"loss {loss:.3f}")
            if path is not None and (step + 1) % settings.save == 0 and step + 1 < settings.steps:
                history.step = step + 1
                history.gain = None if gain is None else gain.tolist()
                _save(path, run, model, stepper, generator, history, world)
    history.step = settings.steps
    measured(model, task, stepper, history, settings.steps)
    _finite(model, settings.steps, _kept(path, history))
    return history


def schedule(settings: TrainingConfig, step: int) -> float:
    """The share of the learning rate at a step: rising over ``warmup``, constant, from ``decay_from`` linear to 0."""
    rising = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    left = 1 - step / settings.steps
    falling = min(1.0, left / (1 - settings.decay_from)) if settings.decay_from < 1 else 1.0
    return rising * falling


def measured(model: nn.Module, task: Task, stepper: Stepper, history: History, step: int) -> Line:
    """Norms, activations and validation at a step. Raises CertkitError where a promised cap is not held."""
    norms = stepper.norms()
    history.norm_over_cap = max([history.norm_over_cap, *norms.values()])
    if stepper.promised and not max(norms.values(), default=0.0) <= 1 + SLACK:
        worst = max(norms, key=norms.__getitem__)
        raise CertkitError(
            f"training: {worst} has {norms[worst]:.9f} times its cap at step {step}, beyond 1 + {SLACK:.0e}; "
            "its constraint promises more; this is a fault of certkit's own"
        )
    entries = largest_entries(model, task.probe())
    history.activation = max([history.activation, *entries.values()])
    line: Line = {"norm_over_cap": norms, "largest_entry": entries}
    if (held := task.held_out()) is not None:
        found = judge(model, held)
        line.update(validation_loss=found.mean_loss, validation_accuracy=found.accuracy)
    return line


@torch.no_grad()
def largest_entries(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """The largest absolute entry of each block's output on these inputs, in eval mode."""
    found: dict[str, float] = {}
    hooks = [
        part.register_forward_hook(lambda _, __, value, name=name: found.__setitem__(name, float(value.abs().max())))
        for name, part in activations(model).items()
    ]
    was_training = model.training
    model.eval()
    try:
        logits = model(inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return {**found, "logits": float(logits.abs().max())}


def proved_gains(model: nn.Module, shape: tuple[int, ...], box: tuple[float, float]) -> Tensor:
    """How fast each logit difference can change, in l2 on the box: the certificate's own bound, as float32."""
    was_training = model.training
    model.eval()
    ledger = Interpreter(export(model, shape))("l2", box)
    model.train(was_training)
    return torch.from_numpy(pair_matrix(ledger)).float()


def _gain(model: nn.Module, task: Task, settings: TrainingConfig, device: torch.device) -> Tensor | None:
    """The bound that the loss needs, if it needs one."""
    if settings.loss == "cross-entropy":
        return None
    assert isinstance(task, ImageTask)
    return proved_gains(model, tuple(task.training.images.shape[1:]), task.training.box).to(device)


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


def _finite(model: nn.Module, step: int, kept: str = "") -> None:
    for name, weight in model.named_parameters():
        if not losses.finite(weight):
            raise Diverged(
                f"training: weight {name} is no longer finite at step {step}; lower training.learning_rate{kept}"
            )


def _kept(path: Path | None, history: History) -> str:
    """What a failed run leaves behind, in words."""
    held = path is not None and path.exists()
    return f"; the weights of step {history.step} are kept in {state.LAST_GOOD}" if held else "; nothing was written"


def _save(
    path: Path,
    run: Run,
    model: nn.Module,
    stepper: Stepper,
    generator: torch.Generator,
    history: History,
    world: World,
) -> None:
    _finite(model, history.step, _kept(path, history))
    if world.first:
        state.save(path, run, model, stepper.optimizers, generator, asdict(history))
