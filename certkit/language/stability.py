"""How large the numbers inside a language model get: measured over a text, and proved over all token sequences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certkit.bounds.ledger import Step
from certkit.bounds.number import Up, most
from certkit.bounds.spectral import spectral_norm
from certkit.engine.execute import attention_nodes, run
from certkit.engine.local.centre import Centre, measure
from certkit.errors import RecordError, one_line
from certkit.language.certificate import PIECE, Bounded, joined
from certkit.language.records import Fit, Largest, Steps

FORMATS = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp8-e4m3": 448.0}  # the largest finite number of each
MAX_LINES = 10**6


def largest_entries(given: Bounded, embedded_NTD: Tensor, *, piece: int = PIECE) -> tuple[Largest, ...]:
    """The largest absolute entry of any value inside each block, in the order in which blocks run, logits last.

    Measured in float64 on these contexts, and proved for all: every token sequence lies in the domain of ``given``.
    """
    parts = torch.split(embedded_NTD, piece)
    seen = joined([measure(given.program, given.everywhere, part) for part in parts])
    found: dict[str, tuple[float, Up]] = {}
    for step in given.everywhere.steps:
        if step.rule == "constant" or step.node not in seen.ranges:
            continue
        certified = step.bound.within(frozenset()).size
        name = _part(step)
        measured, bound = found.get(name, (0.0, certified))
        found[name] = max(measured, _size(seen, step.node)), most(bound, certified)
    return tuple(Largest(part=name, measured=size, certified=str(bound)) for name, (size, bound) in found.items())


def _size(seen: Centre, node: str) -> float:
    ends = seen.ranges[node]
    return float(np.maximum(np.abs(ends.low), np.abs(ends.high)).max())


def _part(step: Step) -> str:
    """The block that a step belongs to, by the path of its module."""
    names = [name for name in step.module.split(".") if name != "model"]
    if "blocks" in names:
        return ".".join(names[names.index("blocks") : names.index("blocks") + 2])
    return "logits" if "head" in names else "embeddings"


def largest_scores(given: Bounded, embedded_NTD: Tensor, *, piece: int = PIECE) -> tuple[Largest, ...]:
    """The largest absolute attention logit of each attention, mask aside, over the keys that a query sees."""
    sizes = dict.fromkeys((node.name for node in attention_nodes(given.program)), 0.0)

    def one(x_TD: Tensor) -> dict[str, Tensor]:
        watch: dict[str, tuple[Tensor, Tensor]] = {}
        run(given.program, x_TD.unsqueeze(0), watch=watch)
        return {
            name: torch.where(torch.isinf(scores), 0.0, content).abs().amax()
            for name, (content, scores) in watch.items()
        }

    with torch.no_grad():
        for part in torch.split(embedded_NTD, piece):
            for name, size in torch.func.vmap(one)(part.double()).items():
                sizes[name] = max(sizes[name], float(size.max()))
    certified = {step.node: step.evidence["score"] for step in given.everywhere.steps if step.rule == "attention"}
    paths = {step.node: _part(step) for step in given.everywhere.steps}
    return tuple(
        Largest(part=paths[name], measured=sizes[name], certified=str(bound)) for name, bound in certified.items()
    )


def fits(entries: tuple[Largest, ...]) -> tuple[Fit, ...]:
    """Which formats hold the largest of these entries, and with how much to spare.

    ``fits`` speaks of the exact values; a format's own rounding adds to them, by less than what headroom above 2 leaves.
    """
    measured = max(entry.measured for entry in entries)
    certified = most(*(Up.of(entry.certified) for entry in entries)).to_float()
    return tuple(
        Fit(
            name=name,
            largest=largest,
            headroom=_headroom(largest, measured),
            certified_headroom=_headroom(largest, certified),
            fits=certified <= largest,
        )
        for name, largest in FORMATS.items()
    )


def _headroom(largest: float, entry: float) -> float:
    return 0.0 if math.isinf(entry) else math.nextafter(largest / max(entry, 1e-300), 0.0)


def weight_norms(named: Iterator[tuple[str, Tensor]]) -> dict[str, float]:
    """The proved spectral norm of each matrix, and of the largest of each stack of them; vectors are left out."""
    found = {}
    for name, weight in named:
        if weight.ndim >= 2:
            stack = weight.detach().double().cpu().numpy().reshape(-1, *weight.shape[-2:])
            found[name] = max(spectral_norm(matrix) for matrix in stack)
    return found


def training_steps(path: Path) -> Steps | None:
    """What metrics.jsonl in a checkpoint's folder tells; None where there is none. Raises RecordError for a broken one."""
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:MAX_LINES]
        values = [json.loads(line, parse_constant=_refused) for line in lines if line.strip()]
        losses = [float(value["loss"]) for value in values]
        gradients = [float(value["gradient_norm"]) for value in values if value.get("gradient_norm") is not None]
        norms: dict[str, Any] = next((v["norm_over_cap"] for v in reversed(values) if "norm_over_cap" in v), {})
        return Steps(
            lines=len(values),
            steps=int(values[-1]["step"]) + 1,
            loss=losses[-1],
            largest_loss=max(losses),
            spikes=int(values[-1]["spikes"]),
            median_gradient_norm=median(gradients),
            largest_gradient_norm=max(gradients),
            norm_over_cap={str(name): float(norm) for name, norm in norms.items()},
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise RecordError(f"{path.name}: not the metrics of a training run ({one_line(error, 120)})") from None


def _refused(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")
