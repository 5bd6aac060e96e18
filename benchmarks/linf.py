"""Certified accuracy in linf: the route that bounds linf itself, beside sqrt(d) times the l2 bound.

    python -m benchmarks.linf --digits CHECKPOINT --mnist CHECKPOINT > benchmarks/results/linf.json

A move of at most eps in every one of d entries is one of at most sqrt(d) eps in l2, so an l2 certificate at sqrt(d) eps is
one at eps in linf. Both are bounds on the whole box, from the same graph; the better of the two is what certkit may claim.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import printed
from certkit.bounds.spectral import up
from certkit.certified import certify_rows
from certkit.commands.loading import load_model
from certkit.data import load
from certkit.engine.certify import pair_matrix
from certkit.engine.execute import centres
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.machine import pinned

EPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def measured(checkpoint: Path, data: str) -> dict[str, Any]:
    """Counts of correctly classified samples of the test split that each route certifies."""
    model, subject = load_model(checkpoint)
    samples = load(data, "test")
    program = export(model, tuple(samples.images.shape[1:]))
    interpret, logits = Interpreter(program), centres(program, samples.images).numpy()
    entries = math.prod(program.input_shape)
    found: dict[str, Any] = {"subject": subject.sha256, "samples": len(logits), "entries": entries}
    for norm, stretch in (("linf", 1.0), ("l2", up(math.sqrt(entries)))):
        ledger = interpret(norm, samples.box)
        gain, error = pair_matrix(ledger), ledger.pairs.error.to_float()
        table = certify_rows(samples.indices.numpy(), samples.labels.numpy(), logits, gain, error)
        found["clean"] = int(table.correct.sum())
        found["linf" if norm == "linf" else "sqrt(d) l2"] = {
            "largest_pair_gain": float(gain.max()) * stretch,
            "median_radius": float(np.median(table.radius[table.correct])) / stretch,
            "certified": {str(eps): int((table.correct & (table.radius >= up(eps * stretch))).sum()) for eps in EPS},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--mnist-data", default="ylecun/mnist")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    results: dict[str, Any] = {}
    with pinned(given.threads) as threads:
        results["digits"] = measured(given.digits, "digits")
        print("digits", results["digits"], file=sys.stderr)
        if given.mnist is not None:
            results["mnist"] = measured(given.mnist, given.mnist_data)
        printed("benchmarks.linf", {"results": results}, threads)


if __name__ == "__main__":
    main()
