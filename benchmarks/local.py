"""What facts of a sample's own ball add to those of the box: radii, certified share, and the time they take.

    python -m benchmarks.local CHECKPOINT DATA --limit 500 --eps 0.25 --attack

The time is in units of one float64 forward pass of the same exported program over the same samples. With ``--attack`` the
smallest l2 distance that Foolbox's DDN finds stands beside the certified radius, over the samples that are right.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import printed
from certkit import checkpoint, data
from certkit.certified import radii
from certkit.engine.execute import centres
from certkit.engine.interpret import Interpreter
from certkit.engine.local import local_radii
from certkit.engine.local.radii import PASSES
from certkit.engine.program import export
from certkit.models import build


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
    given = parser.parse_args()
    torch.set_num_threads(1)
    held = checkpoint.read(given.checkpoint)
    model, _ = build(held.config or {})
    checkpoint.load_into(model, held)
    samples = data.load(given.data, "test", limit=given.limit)
    found = measured(model.eval(), samples, given.eps, passes=given.passes, attack=given.attack)
    printed("benchmarks.local", {"network": held.sha256, "data": given.data, **found}, 1)


if __name__ == "__main__":
    main()
