"""Samples per CPU second: certkit's local certificates against full CROWN of auto_LiRPA, on one small tanh transformer.

    python -m benchmarks.throughput > benchmarks/results/throughput.json

A local certificate is a radius, found by a search; a CROWN bound decides one radius of one sample. Both on one thread, in
one run, in CPU time, which other processes disturb least.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.common import printed
from benchmarks.lirpa import tanh_vit
from certkit.crosscheck.agreement import verified_radii
from certkit.crosscheck.lirpa import cross_check
from certkit.data import load
from certkit.engine.execute import centres
from certkit.engine.interpret import Interpreter
from certkit.engine.local import local_radii
from certkit.engine.program import export

EPS = ("0.02", "0.05", "0.1", "0.2")
FEW = 16  # samples of CROWN


def main() -> None:
    torch.set_num_threads(1)
    model, data = tanh_vit(), load("digits", "test")
    program = export(model, tuple(data.images.shape[1:]))
    ledger = Interpreter(program)("l2", data.box)
    centres(program, data.images[:8])
    started = time.process_time()
    logits = centres(program, data.images).numpy()
    forward = time.process_time() - started
    started = time.process_time()
    local = local_radii(program, ledger, data.images, logits)
    own = time.process_time() - started
    few = data.first(FEW)
    started = time.process_time()
    crown = cross_check(program, few, eps=EPS, norm="l2", methods=["CROWN"], threads=1)
    taken = time.process_time() - started
    (method,) = crown.methods
    right = logits.argmax(1) == data.labels.numpy()
    ours, theirs = len(logits) / own, FEW * len(EPS) / taken
    found = {
        "samples": {"certkit": len(logits), "CROWN": FEW, "radii per sample of CROWN": len(EPS)},
        "clean": float(right.mean()),
        "forward_per_cpu_second": len(logits) / forward,
        "certkit_radii_per_cpu_second": ours,
        "crown_bounds_per_cpu_second": theirs,
        "ratio": ours / theirs,
        "cost_in_forward_passes": own / forward,
        "median_radius": {
            "certkit, all right": float(np.median(local.radius[right])),
            "certkit, the few": float(np.median(local.radius[:FEW])),
            "CROWN, the few": float(np.median(verified_radii(method))),
        },
    }
    printed("benchmarks.throughput", found, 1)


if __name__ == "__main__":
    main()
