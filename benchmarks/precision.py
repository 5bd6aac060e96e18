"""Rounded weights: the drift that is proved beside the largest that a search finds, and who provably keeps its class.

    python -m benchmarks.precision CHECKPOINT [--data NAME_OR_FOLDER] [--limit N]

The drift holds for every input of the box; the search climbs from the samples inside the box, on the l2 distance of the
logits of the two networks in float64.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import printed
from certkit.commands.loading import load_model
from certkit.data import load
from certkit.engine.execute import run
from certkit.engine.formats import FORMATS, rounded
from certkit.engine.precision import precision
from certkit.engine.program import Program, export
from certkit.machine import pinned

STEPS = 40


def climbed(first: Program, second: Program, images: Tensor, box: tuple[float, float]) -> tuple[float, float]:
    """The largest change that the search finds: of one logit, and of all in l2."""

    def one(x: Tensor) -> Tensor:
        return (run(second, x.unsqueeze(0)) - run(first, x.unsqueeze(0))).squeeze(0)

    xs = images.double().requires_grad_()
    ascent = torch.optim.Adam([xs], lr=0.05 * (box[1] - box[0]))
    entry = whole = 0.0
    for _ in range(STEPS):
        moved = torch.func.vmap(one)(xs)
        entry = max(entry, float(moved.detach().abs().max()))
        whole = max(whole, float(moved.detach().norm(dim=1).max()))
        ascent.zero_grad()
        (-moved.norm(dim=1).sum()).backward()
        ascent.step()
        with torch.no_grad():
            xs.clamp_(*box)
    return entry, whole


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int, default=None)
    given = parser.parse_args()
    model, subject = load_model(given.checkpoint)
    data = load(given.data, "test", limit=given.limit)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = precision(model, data, formats=tuple(FORMATS), out=Path(folder), subject=subject)
    seconds = time.monotonic() - started
    rows: dict[str, Any] = {}
    with pinned(None) as threads:
        first = export(model, tuple(data.images.shape[1:]))
        for each in found.formats:
            second = export(rounded(model, each.format), tuple(data.images.shape[1:]))
            entry, whole = climbed(first, second, data.images[:100], data.box)
            rows[each.format] = {
                "drift": each.drift,
                "drift_l2": each.drift_l2,
                "on_samples": each.largest_observed,
                "searched": entry,
                "searched_l2": whole,
                "kept_by_drift": each.anywhere.count,
                "kept_by_sample": each.survives.count,
                "same_class": each.unchanged.count,
                "clean": each.clean.count,
            }
    about = {"checkpoint": subject.sha256, "architecture": subject.architecture, "data": data.record.name}
    totals = {"samples": data.record.count, "clean": found.clean.count, "seconds": round(seconds, 1)}
    printed("benchmarks.precision", {**about, **totals, "formats": rows}, threads)


if __name__ == "__main__":
    main()
