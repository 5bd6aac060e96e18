"""How far torch's functions of one entry were measured to be off in float32, beside what the rules charge for.

The figures are those of ``benchmarks/results/elementary.json``, rounded up to a hundredth of a rounding 2^-24 of the value
(of the entry for GELU), after what a rule charges beside is taken off; the larger of the vectorised and the scalar path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from certkit.bounds.rules.curves import ELEMENTARY, ROUNDINGS
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS

POWERS = (2, 3, 4, 5, 8, 16, 33, 64, -2, -3)
GELU = 4 + 4 * ELEMENTARY_ULPS + 16
SOFTMAX = 2 + ELEMENTARY + 4  # of two keys

CHARGED: Mapping[str, int] = {
    **{name: count for name, count in ROUNDINGS.items() if name not in ("power", "leaky-relu")},
    "log-sigmoid": ROUNDINGS["softplus"],
    "selu": ROUNDINGS["elu"],
    "gelu": GELU,
    "gelu-tanh": GELU,
    "softmax": SOFTMAX,
    "softmax of columns": SOFTMAX,
    **{f"power {n}": ROUNDINGS["power"] for n in POWERS},
}


class Build(NamedTuple):
    """A build of torch and the vector instructions that it uses, as ``torch.backends.cpu.get_cpu_capability()`` names them."""

    torch: str
    capability: str


class Figure(NamedTuple):
    """The largest error met, in roundings, on one number in ``every`` of those that float32 has up to 2^124."""

    roundings: float
    every: int


# fmt: off
MEASURED: Mapping[Build, Mapping[str, Figure]] = {
    Build("2.13.0+cpu", "AVX512"): {
        "tanh": Figure(1.01, 1),
        "sigmoid": Figure(2.49, 1),
        "silu": Figure(2.93, 1),
        "softplus": Figure(1.44, 1),
        "mish": Figure(4.56, 61),
        "elu": Figure(0.0, 61),
        "hardsigmoid": Figure(1.5, 1),
        "hardswish": Figure(2.5, 1),
        "exp": Figure(1.07, 1),
        "log": Figure(1.7, 1),
        "sqrt": Figure(1.5, 1),
        "rsqrt": Figure(1.5, 1),
        "reciprocal": Figure(1.0, 1),
        "erf": Figure(1.27, 1),
        "sin": Figure(1.1, 1),
        "cos": Figure(1.1, 1),
        "log-sigmoid": Figure(1.77, 61),
        "selu": Figure(1.56, 61),
        "gelu": Figure(6.39, 1),
        "gelu-tanh": Figure(2.45, 1),
        "softmax": Figure(3.38, 1),
        "softmax of columns": Figure(2.96, 61),
        "power 2": Figure(1.0, 61),
        "power 3": Figure(1.98, 61),
        "power 4": Figure(1.0, 61),
        "power 5": Figure(1.0, 61),
        "power 8": Figure(1.0, 61),
        "power 16": Figure(1.0, 61),
        "power 33": Figure(1.0, 61),
        "power 64": Figure(1.0, 61),
        "power -2": Figure(1.5, 61),
        "power -3": Figure(1.01, 61),
    },
}
# fmt: on
