"""How far torch's float32 functions are from the exact ones, over every finite float32 number.

    python -m benchmarks.elementary --out benchmarks/results/elementary.json
    ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.elementary --out benchmarks/results/elementary.json

Each function runs as its rule's operator does: on a contiguous tensor, where it is vectorised, and on one with strides, where
an entry may be computed alone; and contiguous with oneDNN, which the other two leave out. The reference is the same function written in float64. What a rule charges has two parts:
so many roundings u of the value, u = 2^-24, and an amount beside. Here the second is taken off the error, and the rest is
counted in roundings of the value. Asked are all numbers of absolute value up to 2^124, as far as the value is no larger: a
sixteenth of what float32 holds, as a float claim demands of every value. The worst place of each function is computed again
with Arb. Strides are measured alone where one in 61 numbers finds a difference, powers from 5 on at one in 61 numbers.
Results of one build and CPU capability replace earlier ones of the same. Printed is the table that
``certkit.bounds.elementary`` holds, once every function was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flint import arb, ctx
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import commit
from certkit.bounds.elementary import CHARGED, POWERS
from certkit.bounds.number import SMALLEST, UNIT_ROUNDOFF
from certkit.bounds.rules.curves import FLUSHED

U, LEAST = UNIT_ROUNDOFF["float32"].to_float(), SMALLEST["float32"].to_float()
LARGEST = 2.0**124
SAMPLE = 61
CHUNK = 1 << 16
PATTERNS = ((0, 0x7F800000), (-0x80000000, -0x00800000))  # of the finite numbers, as int32: positive, negative
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Function:
    """``run`` in float32 against ``exact`` in float64, per rounding of ``scale``, ``off`` taken off; ``arb`` at one place.

    Numbers outside [low, high] are not asked.
    """

    run: Map
    exact: Map
    proved: Callable[[arb], arb]
    scale: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y
    off: Callable[[Tensor], Tensor | float] = lambda x: LEAST * FLUSHED
    low: float = -LARGEST
    high: float = LARGEST


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def _first_share(x: Tensor, dim: int) -> Tensor:
    """softmax of (x, 0): the exponential, a sum of two and a quotient."""
    return F.softmax(torch.stack([x, torch.zeros_like(x)], dim), dim).select(dim, 0)


def _power(n: int) -> Map:
    def run(x: Tensor) -> Tensor:
        found = x
        for _ in range(abs(n) - 1):
            found = found * x
        return found if n > 0 else 1 / found

    return run


def _arb_gelu_tanh(x: arb) -> arb:
    return x / 2 * (1 + ((2 / arb.pi()).sqrt() * (x + arb("0.044715") * x**3)).tanh())


SAMPLED = tuple(f"power {n}" for n in POWERS if not 0 < n < 5)
CURVE_OFF = LEAST * FLUSHED
FUNCTIONS: dict[str, Function] = {
    "exp": Function(torch.exp, torch.exp, arb.exp),
    "log": Function(torch.log, torch.log, arb.log, low=LEAST),
    "tanh": Function(torch.tanh, torch.tanh, arb.tanh),
    "sigmoid": Function(torch.sigmoid, torch.sigmoid, lambda x: 1 / (1 + (-x).exp())),
    "erf": Function(torch.erf, torch.erf, arb.erf),
    "sin": Function(torch.sin, torch.sin, arb.sin),
    "cos": Function(torch.cos, torch.cos, arb.cos),
    "sqrt": Function(torch.sqrt, torch.sqrt, arb.sqrt, low=0.0),
    "rsqrt": Function(torch.rsqrt, torch.rsqrt, lambda x: 1 / x.sqrt(), low=LEAST),
    "reciprocal": Function(torch.reciprocal, torch.reciprocal, lambda x: 1 / x),
    "silu": Function(F.silu, F.silu, lambda x: x / (1 + (-x).exp())),
    "mish": Function(F.mish, lambda x: x * torch.tanh(_softplus(x)), lambda x: x * x.exp().log1p().tanh()),
    "softplus": Function(
        F.softplus,
        _softplus,
        lambda x: x.exp().log1p(),
        off=lambda x: 4 * U * x.abs() + torch.where(x > 19.8, 2 * math.exp(-20), 0.0) + CURVE_OFF,
    ),
    "log-sigmoid": Function(
        lambda x: -F.logsigmoid(x),
        lambda x: _softplus(-x),
        lambda x: (-x).exp().log1p(),
        off=lambda x: 4 * U * x.abs() + CURVE_OFF,
    ),
    "elu": Function(
        F.elu,
        lambda x: torch.where(x > 0, x, torch.expm1(x)),
        lambda x: x if x > 0 else x.expm1(),
        off=lambda x: 10 * U + CURVE_OFF,
    ),
    "selu": Function(
        F.selu,
        lambda x: 1.0507009873554804934 * torch.where(x > 0, x, 1.6732632423543772848 * torch.expm1(x)),
        lambda x: (
            arb("1.0507009873554804934193349852946")
            * (x if x > 0 else arb("1.6732632423543772848170429916717") * x.expm1())
        ),
        off=lambda x: 10 * U * 1.758099340847377 + CURVE_OFF,
    ),
    "hardsigmoid": Function(
        F.hardsigmoid,
        lambda x: (x + 3).clamp(0, 6) / 6,
        lambda x: arb(0) if x < -3 else arb(1) if x > 3 else (x + 3) / 6,
    ),
    "hardswish": Function(
        F.hardswish,
        lambda x: x * (x + 3).clamp(0, 6) / 6,
        lambda x: arb(0) if x < -3 else x if x > 3 else x * (x + 3) / 6,
    ),
    "gelu": Function(
        F.gelu,
        lambda x: x / 2 * torch.erfc(-x / math.sqrt(2)),
        lambda x: x / 2 * (-x / arb(2).sqrt()).erfc(),
        scale=lambda x, y: x,
        off=lambda x: LEAST,
    ),
    "gelu-tanh": Function(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        _arb_gelu_tanh,
        scale=lambda x, y: x,
        off=lambda x: LEAST,
    ),
    "softmax": Function(lambda x: _first_share(x, 1), torch.sigmoid, lambda x: 1 / (1 + (-x).exp()), high=0.0),
    "softmax of columns": Function(
        lambda x: _first_share(x, 0), torch.sigmoid, lambda x: 1 / (1 + (-x).exp()), high=0.0
    ),
    **{
        f"power {n}": Function(lambda x, n=n: torch.pow(x, n), _power(n), lambda x, n=n: x**n)  # type: ignore[misc]
        for n in POWERS
    },
}


def strided(x: Tensor) -> Tensor:
    """The same numbers, every other entry of a longer tensor."""
    wide = torch.zeros(2 * len(x), dtype=x.dtype)
    wide[::2] = x
    return wide[::2]


PATHS: dict[str, tuple[Map, bool]] = {
    "vectorised": (lambda x: x, False),
    "strided": (strided, False),
    "oneDNN": (lambda x: x, True),
}


def taken(f: Function, path: str, x: Tensor) -> Tensor:
    """The function of float32 numbers on one of the paths."""
    way, onednn = PATHS[path]
    torch._C._set_mkldnn_enabled(onednn)
    return f.run(way(x))


@dataclass
class Worst:
    """The largest error met, in roundings, and where."""

    roundings: float = 0.0
    at: float = 0.0
    asked: int = 0


def measured(f: Function, path: str, step: int) -> Worst:
    """Every ``step``-th finite float32 number in the function's domain whose value is not too large."""
    worst = Worst()
    for first, last in PATTERNS:
        for start in range(first, last, CHUNK * step):
            x = torch.arange(start, min(start + CHUNK * step, last), step, dtype=torch.int32).view(torch.float32)
            if float(x.max()) < f.low or float(x.min()) > f.high:
                continue
            wide = x.double()
            exact = f.exact(wide)
            whole = f.low <= float(x.min()) and float(x.max()) <= f.high and float(exact.abs().max()) <= LARGEST
            if not whole:
                inside = (wide >= f.low) & (wide <= f.high) & (exact.abs() <= LARGEST)
                x, wide, exact = x[inside], wide[inside], exact[inside]
            if not len(x):
                continue
            worst.asked += len(x)
            error = taken(f, path, x).double().sub_(exact).abs_().sub_(f.off(wide))
            error.div_(f.scale(wide, exact).abs()).div_(U)  # a value of 0 makes it minus infinity, or infinity
            top = float(error.max())
            if not top <= worst.roundings:  # NaN is worst
                worst.roundings, worst.at = top, float(x[error.argmax()])
    return worst


def alike(f: Function, one: str, other: str) -> bool:
    """Whether both ways give the same bits at a sample of the numbers."""
    for first, last in PATTERNS:
        for start in range(first, last, CHUNK * SAMPLE):
            x = torch.arange(start, min(start + CHUNK * SAMPLE, last), SAMPLE, dtype=torch.int32).view(torch.float32)
            if not torch.equal(taken(f, one, x).view(torch.int32), taken(f, other, x).view(torch.int32)):
                return False
    return True


def proved(f: Function, path: str, at: float) -> float:
    """The error at one place in roundings, the reference in 256 bits."""
    ctx.prec = 256
    x = torch.full((CHUNK,), at, dtype=torch.float32)
    exact = f.proved(arb(at))
    wide = torch.tensor([at], dtype=torch.float64)
    off = float(torch.as_tensor(f.off(wide)))
    scale = float(f.scale(wide, torch.tensor([float(exact)], dtype=torch.float64)).abs())
    error = abs(arb(float(taken(f, path, x)[0])) - exact) - arb(off)
    return float((error / (arb(U) * arb(scale))).upper()) if scale else math.inf


def table(results: list[dict[str, Any]]) -> str:
    """The results as ``certkit.bounds.elementary`` holds them."""
    lines = []
    for entry in results:
        lines.append(f'    Build("{entry["build"]["torch"]}", "{entry["build"]["capability"]}"): {{')
        for name in CHARGED:
            found = entry["functions"][name]
            paths = [found[path] for path in PATHS if found[path] != "as vectorised"]
            worst = max(max(path["roundings"], path["roundings_by_arb"]) for path in paths)
            lines.append(f'        "{name}": Figure({math.ceil(worst * 100) / 100}, {found["every"]}),')
        lines.append("    },")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--step", type=int, default=1, help="ask every STEP-th number only, for a first look")
    given = parser.parse_args()
    torch.set_num_threads(1)
    here = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}
    for name in given.only:
        f, step = FUNCTIONS[name], given.step if name not in SAMPLED else max(SAMPLE, given.step)
        found: dict[str, Any] = {"charged": CHARGED[name], "every": step}
        started = time.process_time()
        for path in PATHS:
            if path != "vectorised" and alike(f, "vectorised", path):
                found[path] = "as vectorised"
                continue
            worst = measured(f, path, step)
            found[path] = {
                "roundings": worst.roundings,
                "at": float(worst.at).hex(),
                "roundings_by_arb": proved(f, path, worst.at) if worst.roundings else 0.0,
                "asked": worst.asked,
            }
        found["seconds"] = round(time.process_time() - started, 1)
        print(name, json.dumps(found), file=sys.stderr, flush=True)
        words = " ".join(["python", "-m", "benchmarks.elementary", *sys.argv[1:]])
        results = json.loads(given.out.read_text()) if given.out.exists() else []
        entry = next((e for e in results if e["build"] == here), None)
        if entry is None:
            entry = {"build": here, "command": words, "commit": commit(), "functions": {}}
            results.append(entry)
        entry["functions"][name] = found
        given.out.write_text(json.dumps(results, indent=1) + "\n")
    if all({*entry["functions"]} >= {*CHARGED} for entry in results):
        print(table(results))


if __name__ == "__main__":
    main()
