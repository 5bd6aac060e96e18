"""Bounds of auto_LiRPA on the exported graph of a network: an independent method beside certkit's own, and no proof."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certkit.crosscheck.attained import attained
from certkit.crosscheck.defaults import METHODS
from certkit.crosscheck.package import Package, Unavailable, package, quietly
from certkit.crosscheck.rewrite import ALLOWED, Written, written
from certkit.data import Dataset
from certkit.engine.program import Program
from certkit.errors import ConfigError, Refusal, one_line
from certkit.machine import pinned
from certkit.records import Eps, Norm, radii
from certkit.records.crosscheck import Bounded, Cost, Fault, Lirpa, Method, MethodName
from certkit.statistics import rate

SLACK = (
    1e-9  # of the margin, or of 1 where that is larger: far above float64's rounding, far below any bound's looseness
)
BATCH = 16
HALVINGS = 12
OWN_NAMES: dict[MethodName, str] = {
    "IBP": "IBP",
    "CROWN-IBP": "CROWN-IBP",
    "CROWN": "CROWN",
    "alpha-CROWN": "CROWN-Optimized",
}
# Matrices throughout: 0.3 loses itself in its sparse forms where a network is not a chain of convolutions.
OPTIONS = {
    "conv_mode": "matrix",
    "sparse_intermediate_bounds": False,
    "sparse_conv_intermediate_bounds": False,
    "sparse_intermediate_bounds_with_ibp": False,
    "sparse_features_alpha": False,
    "sparse_spec_alpha": False,
}
POSITIVE = ("BoundReciprocal", "BoundLog", "BoundSqrt")  # whose lines mean nothing unless what they read is above 0

Floats = NDArray[np.float64]


def cross_check(
    program: Program,
    data: Dataset,
    *,
    eps: Sequence[str | float | Fraction],
    norm: Norm,
    methods: Sequence[MethodName] = METHODS,
    batch: int = BATCH,
    with_radii: bool = False,
    threads: int | None = None,
) -> Lirpa:
    """What auto_LiRPA says of every sample at every radius, on the program that certkit certifies.

    A sample is verified when the lower bound of its label's smallest margin is above 0, over the ball cut with the data's
    box in linf, over the whole ball in l2. Bounds are float64 and not rounded outward. Every bound is held against
    outputs that a search attained inside the ball: one that excludes such an output beyond SLACK is a fault of the bound.
    ``with_radii`` adds each sample's radius by bisection: the largest value tried and verified.

    Nothing here raises for what auto_LiRPA cannot do: a method that fails carries its own message, and without the
    package the record says how to get it. Raises ConfigError for arguments that cannot be meant.
    """
    if norm not in ("l2", "linf"):
        raise ConfigError(f"norm must be l2 or linf, got {norm!r}")
    if unknown := [name for name in methods if name not in OWN_NAMES]:
        raise ConfigError(f"method {one_line(unknown[0])!r} is none of {', '.join(OWN_NAMES)}")
    if batch < 1:
        raise ConfigError(f"batch must be 1 or more, got {batch}")
    asked = radii(eps)
    version = message = difference = None
    found: list[tuple[Method, Cost]] = []
    try:
        used = package()
        version = used.version
        model, difference = written(program, data.images)
    except (Unavailable, Refusal) as error:
        message = str(error)
    else:
        bounder = _Bounder(used, model, data, norm, batch)
        with pinned(threads):
            found = [_method(bounder, program, data, name, asked, with_radii) for name in methods]
    return Lirpa(
        version=version,
        message=message,
        norm=norm,
        box=data.box,
        indices=tuple(data.indices.tolist()),
        difference=difference,
        allowed=ALLOWED,
        slack=SLACK,
        methods=tuple(method for method, _ in found),
        costs=tuple(cost for _, cost in found),
    )


@dataclass(slots=True, eq=False)
class _Bounder:
    """Lower bounds of margins on one set of samples, by one BoundedModule, so in batches of one size, in float64."""

    package: Package
    model: Written
    data: Dataset
    norm: Norm
    batch: int
    module: Any = None

    def margins(self, method: MethodName, rows: Sequence[int], eps: Floats) -> Floats:
        """Lower bounds (rows, classes - 1) of the label's logit minus each other one; NaN where a bound means nothing.

        ``eps`` is one radius per row.
        """
        found = []
        size = min(self.batch, len(self.data.labels))
        for start in range(0, len(rows), size):
            piece, radii = list(rows[start : start + size]), eps[start : start + size]
            missing = size - len(piece)  # filled with copies: another batch size would be another BoundedModule
            whole = torch.from_numpy(np.pad(radii, (0, missing), mode="edge"))
            found.append(self._piece(method, piece + piece[-1:] * missing, whole)[: len(piece)])
        return np.concatenate(found)

    def _piece(self, method: MethodName, rows: list[int], eps: Tensor) -> Floats:
        x = self.model.flat(self.data.images[rows])
        away = eps.reshape(-1, 1)
        if self.norm == "linf":
            low, high = self.data.box
            ball = self.package.PerturbationLpNorm(
                norm=np.inf, eps=float(eps.max()), x_L=(x - away).clamp(min=low), x_U=(x + away).clamp(max=high)
            )
        else:
            ball = self.package.PerturbationLpNorm(norm=2.0, eps=away)
        if self.module is None:
            self.module = self.package.BoundedModule(self.model, x, bound_opts=dict(OPTIONS), device="cpu")
        module = self.module
        lower, _ = module.compute_bounds(
            x=(self.package.BoundedTensor(x, ball),),
            C=differences(self.data.labels[rows], len(self.data.record.classes)),
            method=OWN_NAMES[method],
            bound_lower=True,
            bound_upper=False,
        )
        lower = lower.detach().double().clone()
        lower[~lower.isfinite()] = math.nan  # an overflow: plus infinity would verify anything
        for node in module._modules.values():
            if type(node).__name__ in POSITIVE and isinstance(read := getattr(node.inputs[0], "lower", None), Tensor):
                lower[(read.reshape(len(read), -1) <= 0).any(1).expand(len(rows))] = math.nan
        found: Floats = lower.numpy()
        return found


def differences(labels: Tensor, classes: int) -> Tensor:
    """(N, classes - 1, classes): the rows that take each other logit from the label's, other classes in order."""
    eye = torch.eye(classes, dtype=torch.float64)
    rows = [torch.stack([eye[label] - eye[j] for j in range(classes) if j != label]) for label in labels.tolist()]
    return torch.stack(rows)


def _method(
    bounder: _Bounder, program: Program, data: Dataset, name: MethodName, asked: tuple[Eps, ...], with_radii: bool
) -> tuple[Method, Cost]:
    rows = range(len(data.labels))
    bounds: list[Bounded] = []
    faults: list[Fault] = []
    reached: tuple[float, ...] | None = None
    notes: list[str] = []
    calls = 0
    grown = _peak_of(reset=True)
    started = time.monotonic()
    spent = 0.0  # outside of auto_LiRPA

    def margins(rows: Sequence[int], eps: Floats) -> Floats:
        nonlocal calls
        calls += len(rows)
        return bounder.margins(name, rows, eps)

    with quietly() as said:
        try:
            for one in asked:
                lower = margins(rows, np.full(len(rows), one.value))
                worst = lower.min(axis=1)
                bounds.append(
                    Bounded(
                        eps=one,
                        margins=tuple(None if math.isnan(m) else float(m) for m in worst),
                        verified=rate(int((worst > 0).sum()), len(rows)),
                    )
                )
                pause = time.monotonic()
                faults += _faults(program, bounder.model, data, bounder.norm, one, lower)
                if (undefined := int(np.isnan(worst).sum())) > 0:
                    notes.append(f"no meaningful bound for {undefined} of {len(rows)} samples at {one.text}")
                spent += time.monotonic() - pause
            if with_radii:
                reached = tuple(bisected(margins, rows, asked[-1].value))
        except Exception as error:  # noqa: BLE001 - whatever auto_LiRPA raises is its answer, and is shown
            notes.append(_own_words(error, said))
    seconds = time.monotonic() - started - spent
    after = _peak_of()
    if faults:
        notes.append(f"{len(faults)} of its bounds exclude an output that was attained: a fault of these bounds")
    return Method(
        name=name,
        message="; ".join(notes) or None,
        bounds=tuple(bounds),
        radii=reached,
        faults=tuple(faults),
    ), Cost(
        method=name,
        calls=calls,
        seconds=round(seconds, 3),
        per_second=round(calls / seconds, 3) if seconds else 0.0,
        peak_bytes=None if grown is None or after is None else max(after - grown, 0),
    )


def _faults(program: Program, model: Written, data: Dataset, norm: Norm, eps: Eps, lower: Floats) -> Iterator[Fault]:
    """Where a search inside the ball attained a margin below its bound."""
    if eps.value == 0:
        return
    seen = attained(program, model, data, norm, eps.value)
    limit = SLACK * np.maximum(1.0, np.abs(seen))
    for row, j in np.argwhere(lower > seen + limit):
        label = int(data.labels[row])
        yield Fault(
            index=int(data.indices[row]),
            eps=eps,
            against=int(j) + (int(j) >= label),
            bound=float(lower[row, j]),
            attained=float(seen[row, j]),
        )


def bisected(margins: Callable[[Sequence[int], Floats], Floats], rows: Sequence[int], first: float) -> Floats:
    """Per row the largest radius tried at which every margin is above 0; 0 where none was.

    Radii double from ``first`` while verified, or halve until they are, up to HALVINGS times, and are then bisected.
    """
    best, wrong = np.zeros(len(rows)), np.full(len(rows), np.inf)
    trial = np.full(len(rows), first if first > 0 else 1.0)
    for _ in range(2 * HALVINGS):
        here = np.flatnonzero((np.isinf(wrong) | (wrong - best > wrong / 2**HALVINGS)) & (trial > 0))
        if not len(here):
            break
        good = (margins([rows[int(i)] for i in here], trial[here]) > 0).all(axis=1)
        best[here] = np.where(good, trial[here], best[here])
        wrong[here] = np.where(good, wrong[here], trial[here])
        trial = np.where(np.isinf(wrong), 2 * best, (best + np.where(np.isinf(wrong), 0.0, wrong)) / 2)
    return best


def _own_words(error: Exception, said: list[str]) -> str:
    """auto_LiRPA's message, with the operators that it names in its log."""
    operators = sorted({line.split("Name: ")[1].split(",")[0] for line in said if line.startswith("Name: ")})
    text = one_line(str(error).strip() or type(error).__name__, 200)
    return f"{type(error).__name__}: {text}" + (f" ({', '.join(operators)})" if operators else "")


def _peak_of(*, reset: bool = False) -> int | None:
    """The largest resident memory of this process since the last reset, in bytes; None where the system does not say."""
    with suppress(OSError, StopIteration, ValueError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return None
