"""The digits preset beside a plain 1-Lipschitz MLP: same constraint, optimiser, loss, split, and the same sound bound.

    python -m benchmarks.digits > benchmarks/results/digits.json

Prints, for each of several seeds, training time, clean accuracy, certified accuracy over a grid of l2 radii, the bound,
and for the transformer what its attention is worth.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import certkit
from benchmarks.common import printed
from certkit.config import Run, override, preset
from certkit.data import load
from certkit.machine import pinned
from certkit.training.loop import fit
from certkit.training.tasks import task_of
from certkit.training.train import made

EPS = ("0.1", "0.25", "0.5", "0.75", "1.0")


def measured(run: Run, threads: int | None) -> dict[str, Any]:
    """Train one network and certify it on the test split."""
    with pinned(threads):
        model = made(run, "cpu")
        started = time.monotonic()
        history = fit(model, task_of(run, "cpu"), run)
        seconds = time.monotonic() - started
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        found = certkit.certify(model, load("digits", "test"), eps=EPS, out=Path(folder), threads=threads)
    attention = found.attention
    return {
        "seed": run.training.seed,
        "train_seconds": round(seconds, 1),
        "largest_norm_over_cap": history.norm_over_cap,
        "clean": [found.clean.count, found.clean.total],
        "certified": {point.eps.text: point.certified.count for point in found.certified},
        "largest_pair_gain": max(max(row) for row in found.pair_gain),
        "attention": attention and {
            "largest_logit_spread": attention.largest_logit_spread,
            "largest_content_spread": attention.largest_content_spread,
            "decorative": attention.decorative,
            "looks_at_content": attention.looks_at_content,
            "ablations": {
                one.name: {"clean": one.clean.count, "certified": {p.eps.text: p.certified.count for p in one.certified}}
                for one in attention.ablations
            },
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    base = preset("digits-vit")
    networks = {"digits-vit": base, "mlp 64-256-256-10": override(base, ["model.name=mlp", "model.hidden=[256, 256]"])}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    for seed in range(given.seeds):
        for name, run in networks.items():
            results[name].append(measured(override(run, [f"training.seed={seed}"]), given.threads))
            print(f"{name}, seed {seed}: {results[name][-1]['certified']}", file=sys.stderr)
    with pinned(given.threads) as threads:
        printed("benchmarks.digits", {"results": results}, threads)


if __name__ == "__main__":
    main()
