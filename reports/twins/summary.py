"""Summaries that are read as Markdown: for a pull request, and for a model card of the Hugging Face hub."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

from certkit.files import canonical, digest
from certkit.records import Audit, Rate

from ..claims import Claims
from ..findings import NORMS
from ..rounding import percent
from .outcomes import outcomes
from .text import markdown

_MARK = {"pass": "✅", "flag": "⚠️", "fail": "❌", "not evaluated": "➖"}


def share(rate: Rate | None, *, up: bool = False) -> str:
    """``331/360 = 91.9 % [88.6, 94.5]``: never a percentage without what it is of, rounded so that it claims no more."""
    if rate is None:
        return "not evaluated"
    if not rate.total:
        return "0/0"
    middle = percent(Fraction(rate.count, rate.total), "up" if up else "down")
    return f"{rate.count}/{rate.total} = {middle} % [{percent(rate.low, 'down')}, {percent(rate.high, 'up')}]"


def summary(audit: Audit) -> bytes:
    """Verdict first, then accuracy per radius, then what was flagged; short enough for a comment on a pull request."""
    found, places = outcomes(audit), Claims.of(audit).executed
    lines = [
        f"## Robustness audit: {audit.verdict}",
        "",
        markdown(audit.verdict_reason),
        "",
        _scope(audit),
        "",
        f"| eps | certified, {markdown(audit.claim)} | {audit.execution.arithmetic} execution | under attack, at most |",
        "|---|---|---|---|",
        f"| 0 | | | {share(audit.clean)} (clean) |",
        *(
            f"| {markdown(point.eps.text)} | {share(point.certified)} | {_executed(audit, place)} "
            f"| {share(point.attacked, up=True)} |"
            for point, place in zip(audit.curve, places, strict=True)
        ),
        "",
        *(
            f"- {_MARK[outcome.status]} {outcome.id} {markdown(outcome.name)}: {markdown(outcome.figure)}"
            for outcome in found
            if outcome.status != "pass"
        ),
        f"- {_MARK['pass']} {sum(outcome.status == 'pass' for outcome in found)} of {len(found)} checks pass",
        "",
        "Intervals are 95 % Clopper-Pearson, for samples drawn like these. An attack that finds nothing proves nothing.",
        f"Audit `{digest(canonical(audit).encode())[:16]}`.",
    ]
    return ("\n".join(lines) + "\n").encode()


def _executed(audit: Audit, place: int | None) -> str:
    return "no claim" if place is None else share(audit.execution.certified[place].certified)


def _scope(audit: Audit) -> str:
    data = f"{audit.data.count} samples of {markdown(audit.data.name)} ({markdown(audit.data.split)})"
    subject = f"{markdown(audit.subject.architecture)}, checkpoint `{audit.subject.sha256[:16]}`"
    return f"{subject}, on {data}; threat {NORMS[audit.threat.norm]}, claim {markdown(audit.claim)}."


def model_card(audit: Audit) -> bytes:
    """The ``model-index`` block that a model card's front matter takes, with one metric per figure.

    Each metric names its radius and its claim, so that no number travels without them.
    """
    norm = audit.threat.norm
    metrics = [_metric("accuracy", "clean accuracy", audit.clean)]
    for point, place in zip(audit.curve, Claims.of(audit).executed, strict=True):
        radius = f"{norm} {point.eps.text}"
        metrics.append(_metric("certified_accuracy", f"certified accuracy at {radius}, {audit.claim}", point.certified))
        if place is not None:
            claim = f"certified accuracy at {radius}, {audit.execution.arithmetic} execution"
            metrics.append(_metric("certified_accuracy", claim, audit.execution.certified[place].certified))
        if point.attacked is not None:
            metrics.append(
                _metric("attacked_accuracy", f"accuracy under attack at {radius}, an upper bound", point.attacked)
            )
    index = {
        "name": audit.subject.architecture,
        "results": [
            {
                "task": {"type": "image-classification", "name": "certified robustness"},
                "dataset": {"type": audit.data.name, "name": audit.data.name, "split": audit.data.split},
                "metrics": metrics,
                "source": {"name": f"certkit {audit.environment.certkit}, audit {digest(canonical(audit).encode())}"},
            }
        ],
    }
    return ("---\n" + "\n".join(_yaml({"model-index": [index]})) + "\n---\n").encode()


def _metric(kind: str, name: str, rate: Rate) -> dict[str, Any]:
    value = rate.count / rate.total if rate.total else 0.0
    return {"type": kind, "name": name, "value": value, "args": {"count": rate.count, "total": rate.total}}


def _yaml(value: Any, depth: int = 0) -> list[str]:
    """The value as YAML of quoted texts and numbers only; JSON's own quoting is valid YAML and cannot be broken out of."""
    pad = "  " * depth
    lines = []
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, (dict, list)):
                lines += [f"{pad}{key}:", *_yaml(inner, depth + 1)]
            else:
                lines.append(f"{pad}{key}: {json.dumps(inner)}")
        return lines
    for inner in value:
        first, *rest = _yaml(inner, depth + 1)
        lines += [f"{pad}- {first.lstrip()}", *rest]
    return lines
