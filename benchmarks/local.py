"""What facts of a sample's own ball add to those of the box: radii, certified share, and the time they take.

    python -m benchmarks.local CHECKPOINT DATA --limit 500 --eps 0.25 --attack

The time is in units of one float64 forward pass of the same exported program over the same samples. With ``--attack`` the
smallest l2 distance that Foolbox's DDN finds stands beside the certified radius, over the samples that are right. With
``--operators`` every operator's gain at the first samples, on balls of radius 0, stands beside the norm of its Jacobian there,
which no gain on a ball around them can undercut: where the two part, a better rule could gain something.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import printed
from certkit import checkpoint, data
from certkit.certified import radii
from certkit.engine.execute import centres, run
from certkit.engine.interpret import Interpreter
from certkit.engine.local import local_bounds, local_radii
from certkit.engine.local.numbers import Ups
from certkit.engine.local.radii import PASSES
from certkit.engine.program import Program, export
from certkit.models import build

FEW = 16  # samples whose operators are looked at
POWERS = 25


def measured(model: nn.Module, samples: data.Dataset, eps: list[float], *, passes: int, attack: bool) -> dict[str, Any]:
    """The figures of one network, in l2."""
    program = export(model, tuple(samples.images.shape[1:]))
    ledger = Interpreter(program)("l2", samples.box)
    centres(program, samples.images[:8])
    started = time.monotonic()
    logits = centres(program, samples.images).numpy()
    forward = time.monotonic() - started
    started = time.monotonic()
    local = local_radii(program, ledger, samples.images, logits, passes=passes)
    taken = time.monotonic() - started
    gain = np.array([[number.to_float() for number in row] for row in ledger.pairs.gain])
    box = radii(logits, gain, ledger.pairs.error.to_float())
    right = logits.argmax(1) == samples.labels.numpy()
    both = right & (box > 0)
    found: dict[str, Any] = {
        "samples": len(logits),
        "right": int(right.sum()),
        "passes": passes,
        "median_radius": {"local": float(np.median(local.radius[right])), "box": float(np.median(box[right]))},
        "median_local_over_box": float(np.median(local.radius[both] / box[both])) if both.any() else None,
        "share_above_0_of_right": float((local.radius[right] > 0).mean()),
        "certified": [
            {"eps": e, "local": float((right & (local.radius >= e)).mean()), "box": float((right & (box >= e)).mean())}
            for e in eps
        ],
        "seconds": {"forward": forward, "local": taken},
        "forward_passes": taken / forward,
    }
    if attack:
        distance = attacked(model, samples)[right]
        share = local.radius[right] / distance
        found["attacked"] = {
            "median_distance": float(np.median(distance)),
            "median_certified_over_attacked": float(np.median(share)),
            "largest_certified_over_attacked": float(share.max()),
        }
    return found


def operators(model: nn.Module, samples: data.Dataset) -> list[dict[str, Any]]:
    """The medians over samples of what is proved of each operator at the sample, and of what its Jacobian attains, in l2."""
    program = export(model, tuple(samples.images.shape[1:]))
    ledger = Interpreter(program)("l2", samples.box)
    bounds = local_bounds(program, ledger, samples.images, 0.0)
    places = {node.name: place for place, node in enumerate(program.nodes) if isinstance(node.meta.get("val"), Tensor)}
    found = []
    for step in ledger.steps:
        if step.node in places:
            place = places[step.node]
            part = replace(program, nodes=program.nodes[: place + 1], output=program.nodes[place])
            proved = np.median(Ups.of(bounds[step.node].within(step.bound.axes).gain).value)
            attained = np.median(jacobian_norms(part, samples.images.double()))
            found.append({"node": step.node, "rule": step.rule, "proved": float(proved), "attained": float(attained)})
    return found


def jacobian_norms(program: Program, x: Tensor) -> np.ndarray:
    """Lower bounds, by power iteration, of the norms of the Jacobians (N,) at samples (N, ...)."""
    batched = torch.func.vmap(lambda one: run(program, one.unsqueeze(0)).flatten())
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    pull = torch.func.vjp(batched, x)[1]
    for _ in range(POWERS):
        length = direction.flatten(1).norm(dim=1).clamp_min(1e-300)
        moved = torch.func.jvp(batched, (x,), (direction / length.reshape(-1, *[1] * (x.ndim - 1)),))[1]
        (direction,) = pull(moved)
    return moved.detach().norm(dim=1).numpy()


def attacked(model: nn.Module, samples: data.Dataset) -> np.ndarray:
    """The smallest l2 distance at which DDN changes each prediction; infinity where it does not."""
    import foolbox as fb

    wrapped = fb.PyTorchModel(model, bounds=samples.box, device="cpu")
    attack = fb.attacks.DDNAttack(steps=100)
    _, clipped, fooled = attack(wrapped, samples.images, samples.labels, epsilons=None)
    distance = (clipped.double() - samples.images.double()).flatten(1).norm(dim=1)
    return np.where(fooled.numpy(), distance.numpy(), np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.25])
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--attack", action="store_true")
    parser.add_argument("--operators", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    held = checkpoint.read(given.checkpoint)
    model, _ = build(held.config or {})
    checkpoint.load_into(model, held)
    samples = data.load(given.data, "test", limit=given.limit)
    found = measured(model.eval(), samples, given.eps, passes=given.passes, attack=given.attack)
    if given.operators:
        found["operators"] = {"samples": FEW, "medians": operators(model, samples.first(FEW))}
    printed("benchmarks.local", {"network": held.sha256, "data": given.data, **found}, 1)


if __name__ == "__main__":
    main()
