"""Every constraint under every optimiser on digits: accuracy, the largest proved norm over cap, time per step.

    python -m benchmarks.constraints > benchmarks/results/constraints.json

Learning rates are the same for all constraints under one optimiser. A combination that is refused is listed with its reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks.common import printed
from certkit.config import override, preset
from certkit.errors import CertkitError, ConfigError
from certkit.machine import pinned
from certkit.training.constraints import CONSTRAINTS, promise
from certkit.training.loop import fit
from certkit.training.tasks import judge, task_of
from certkit.training.train import made

RATES = {"muon": 0.05, "adamw": 0.003, "sgd": 0.1}
DECAY = {"weight-decay": 1.0, "spectral-weight-decay": 0.5}


def measured(constraint: str, optimizer: str, steps: int) -> dict[str, Any]:
    """Train one network and say how it did."""
    decay = DECAY.get(constraint, 0.0)
    run = override(
        preset("digits-vit"),
        [
            f"training.constraint={constraint}",
            f"training.optimizer={optimizer}",
            f"training.learning_rate={RATES[optimizer]}",
            f"training.weight_decay={decay}",
            f"training.steps={steps}",
            "training.refresh=5",
            "training.loss=cross-entropy",
        ],
    )
    row: dict[str, Any] = {"constraint": constraint, "optimizer": optimizer, "promise": promise(constraint, optimizer)}
    task = task_of(run, "cpu")
    try:
        model = made(run, "cpu")
        history = fit(model, task, run)
    except ConfigError as refusal:
        return {**row, "refused": str(refusal)}
    except CertkitError as failure:
        return {**row, "failed": str(failure)}
    tested = judge(model, task.tested())
    # Measuring norms takes longer than stepping at this size: time is taken of a run that measures at its ends only.
    timed = override(run, ["training.refresh=1000000", "training.steps=50"])
    again = made(timed, "cpu")
    started = time.perf_counter()
    fit(again, task, timed)
    milliseconds = (time.perf_counter() - started) / 50 * 1000
    return {
        **row,
        "test": [tested.correct, tested.total],
        "largest_norm_over_cap": history.norm_over_cap,
        "spikes": history.spikes,
        "milliseconds_per_step": round(milliseconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    rows = []
    with pinned(1) as threads:
        for optimizer in RATES:
            for constraint in CONSTRAINTS:
                rows.append(measured(constraint, optimizer, given.steps))
                print(rows[-1], file=sys.stderr)
        printed("benchmarks.constraints", {"steps": given.steps, "learning_rates": RATES, "rows": rows}, threads)


if __name__ == "__main__":
    main()
