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


MEASURED: Mapping[Build, Mapping[str, float]] = {}
