"""The digits preset beside a plain 1-Lipschitz MLP: same constraint, optimiser, loss, split, and the same sound bound.

    python -m benchmarks.digits > benchmarks/results/digits.json

Prints, for each of several seeds, training time, clean accuracy, certified accuracy over a grid of l2 radii, the bound,
and for the transformer what its attention is worth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import certkit
from certkit.config import Run, override, preset
from certkit.data import load
from certkit.machine import environment, pinned
from certkit.models import create
from certkit.models.layers import Linear, MaxMin
from certkit.training.train import fit

EPS = ("0.1", "0.25", "0.5", "0.75", "1.0")


class Mlp(nn.Module):
    """64-256-256-10 with orthogonal weights and MaxMin: exactly 1-Lipschitz."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Linear(64, 256), MaxMin(), Linear(256, 256), MaxMin(), Linear(256, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers((x - 0.5).flatten(1))
        return logits


def measured(make: Callable[[], nn.Module], run: Run, threads: int | None) -> dict[str, Any]:
    """Train one network and certify it on the test split."""
    torch.manual_seed(run.training.seed)
    model = make()
    with pinned(threads):
        started = time.monotonic()
        norm, _ = fit(model, run.training, load("digits", "train"))
        seconds = time.monotonic() - started
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        found = certkit.certify(model, load("digits", "test"), eps=EPS, out=Path(folder), threads=threads)
    attention = found.attention
    return {
        "seed": run.training.seed,
        "train_seconds": round(seconds, 1),
        "largest_norm_over_cap": norm,
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
    networks: dict[str, Callable[[Run], nn.Module]] = {
        "digits-vit": lambda run: create(run.model),
        "mlp 64-256-256-10": lambda run: Mlp(),
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in networks}
    for seed in range(given.seeds):
        run = override(base, [f"training.seed={seed}"])
        for name, make in networks.items():
            results[name].append(measured(lambda make=make, run=run: make(run), run, given.threads))
            print(f"{name}, seed {seed}: {results[name][-1]['certified']}", file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    with pinned(given.threads) as threads:
        machine = environment("cpu", threads).model_dump()
    print(
        json.dumps(
            {"command": "python -m benchmarks.digits", "commit": commit, "environment": machine, "results": results},
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
