"""What is measured of a network while it trains: proved norms, the largest entries, the certificate's own bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from certkit.engine.certify import pair_matrix
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import CertkitError
from certkit.models import activations
from certkit.training.faults import Diverged
from certkit.training.history import Line
from certkit.training.stepper import Stepper
from certkit.training.tasks import Judged, Task, judge

SLACK = 1e-6  # what float32 projections may leave above a cap


def measured(model: nn.Module, task: Task, stepper: Stepper, step: int) -> tuple[Line, Judged | None]:
    """Norms over caps, largest entries and validation at a step, as a line of metrics; and how the held-out samples did.

    Raises Diverged for anything that is not finite, CertkitError where a cap is not held that its constraint promises.
    """
    entries = largest_entries(model, task.probe())
    if wild := [name for name, size in entries.items() if not math.isfinite(size)]:
        raise Diverged(f"training: the output of {wild[0]} is no longer finite at step {step}")
    norms = stepper.norms()
    if stepper.promised and not max(norms.values(), default=0.0) <= 1 + SLACK:
        worst = max(norms, key=norms.__getitem__)
        raise CertkitError(
            f"training: {worst} has {norms[worst]:.9f} times its cap at step {step}, beyond 1 + {SLACK:.0e}; "
            "its constraint promises more; this is a fault of certkit's own"
        )
    line: Line = {"norm_over_cap": norms, "largest_entry": entries}
    held = None if (samples := task.held_out()) is None else judge(model, samples)
    if held is not None:
        if not math.isfinite(held.loss):
            raise Diverged(f"training: the validation loss is no longer finite at step {step}")
        line.update(validation_loss=held.mean_loss, validation_accuracy=held.accuracy)
    return line, held


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
    """How fast each logit difference can change, in l2 on the box: the certificate's bound, rounded to float32."""
    was_training = model.training
    model.eval()
    ledger = Interpreter(export(model, shape))("l2", box)
    model.train(was_training)
    return torch.from_numpy(pair_matrix(ledger)).float()
