"""Time of a proved spectral norm against the singular values that torch computes, and how far it is above them.

    python -m benchmarks.spectral --threads 2 > benchmarks/results/spectral.json

Matrices of 4096 x 1024 in float32, Gaussian and orthogonal, widened to float64; both jobs interleaved in one process, the
medians' ratio. Then convolutions on one thread, against the singular values of all blocks of the symbol, which prove nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import printed
from certkit.bounds import spectral
from certkit.bounds.convolution import Convolution, by_symbol
from certkit.machine import pinned

ROWS, COLUMNS = 4096, 1024
IMAGES = ((64, 64, 3, 32), (128, 128, 3, 8), (64, 3, 7, 32))  # outputs, inputs, kernel, size


def compared(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Seconds of both, by turns, the ratio of the medians, and the excess of our number over theirs."""
    wall: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    found = [0.0, 0.0]
    for turn in range(repeats + 1):
        for which, job in enumerate((ours, theirs)):
            spectral._KNOWN.clear()
            started = time.perf_counter(), time.process_time()
            found[which] = job()
            if turn:  # the first round is not counted
                wall[which].append(time.perf_counter() - started[0])
                cpu[which].append(time.process_time() - started[1])
    return {
        "seconds": {"proved": wall[0], "singular_values": wall[1]},
        "cpu_seconds": {"proved": cpu[0], "singular_values": cpu[1]},
        "ratio": statistics.median(wall[0]) / statistics.median(wall[1]),
        "cpu_ratio": statistics.median(cpu[0]) / statistics.median(cpu[1]),
        "excess": found[0] / found[1] - 1,
    }


def largest_singular_value(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix)[0])


def symbol(weight: np.ndarray, size: int) -> float:
    """The largest singular value of the symbol on the enlarged grid, unproved."""
    grid = size + weight.shape[-1] // 2
    blocks = np.fft.fft2(weight, (grid, grid))[..., : grid // 2 + 1].transpose(2, 3, 0, 1)
    return float(torch.linalg.svdvals(torch.from_numpy(np.ascontiguousarray(blocks)))[..., 0].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    gaussian = rng.normal(size=(ROWS, COLUMNS))
    results: dict[str, Any] = {}
    with pinned(given.threads) as threads:
        orthogonal = np.linalg.qr(gaussian)[0]
        for name, matrix in (("gaussian", gaussian), ("orthogonal", orthogonal)):
            wide = matrix.astype(np.float32).astype(np.float64)
            tensor = torch.from_numpy(wide)
            results[f"{name} {ROWS} x {COLUMNS}"] = compared(
                lambda wide=wide: spectral.spectral_norm(wide),  # type: ignore[misc]
                lambda tensor=tensor: largest_singular_value(tensor),  # type: ignore[misc]
                given.repeats,
            )
            print(name, file=sys.stderr)
    with pinned(1):  # blocks are small: threads only wait for each other
        for outputs, inputs, kernel, size in IMAGES:
            weight = rng.normal(size=(outputs, inputs, kernel, kernel)) / math.sqrt(inputs * kernel**2)
            half = kernel // 2
            image = Convolution((size, size), (1, 1), ((half, half), (half, half)), (1, 1), 1)
            name = f"convolution {outputs} x {inputs} x {kernel} x {kernel} on {size} x {size}"
            results[name] = compared(
                lambda weight=weight, image=image: by_symbol(weight, image),  # type: ignore[misc]
                lambda weight=weight, size=size: symbol(weight, size),  # type: ignore[misc]
                given.repeats,
            )
            print(name, file=sys.stderr)
    printed("benchmarks.spectral", {"results": results}, threads)


if __name__ == "__main__":
    main()
