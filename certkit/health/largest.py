"""The largest entries and attention logits, measured and proved, part by part. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from certkit.bounds.ledger import Ledger, Step
from certkit.bounds.number import Up, gamma, most
from certkit.health.parts import parts
from certkit.records.health import Fit, Format, Largest

ENTRY = frozenset[int]()
FORMATS: dict[Format, float] = {
    "fp16": 65504.0,
    "bf16": 3.3895313892515355e38,
    "fp8-e4m3": 448.0,
}  # the largest finite number of each
ROUNDOFF = Up.of(2.0**-53)


def largest_entries(ledger: Ledger, seen: Mapping[str, float]) -> tuple[Largest, ...]:
    """The largest absolute entry of any value inside each part, in the order in which parts run, logits last.

    ``seen`` are those of the samples by step, in float64; what is proved is the ledger's, for every input of its domain.
    """
    where = parts(ledger)
    found: dict[str, tuple[float, Up]] = {}
    for step in ledger.steps:
        if step.rule == "constant" or step.node not in seen:
            continue
        certified = step.bound.within(ENTRY).size
        name = where[step.node]
        measured, bound = found.get(name, (0.0, certified))
        found[name] = max(measured, seen[step.node]), most(bound, certified)
    return tuple(Largest(part=name, measured=size, certified=str(bound)) for name, (size, bound) in found.items())


def largest_scores(ledger: Ledger, entries: Mapping[str, float], scores: Mapping[str, float]) -> tuple[Largest, ...]:
    """The largest absolute attention logit of each attention, mask aside, over the keys that a query sees.

    Of an attention operator these are ``scores``; of a softmax over tokens that is written out, the ``entries`` that it reads.
    """
    where, known = parts(ledger), {step.node: step for step in ledger.steps}
    found = []
    for step in ledger.steps:
        if step.rule == "attention" and step.node in scores:
            found.append((step, scores[step.node], step.evidence["score"]))
        elif step.rule == "softmax" and len(step.bound.shape) > 2 and step.inputs[0] in entries:
            found.append((step, entries[step.inputs[0]], known[step.inputs[0]].bound.within(ENTRY).size))
    return tuple(
        Largest(part=where[step.node], measured=measured, certified=str(bound)) for step, measured, bound in found
    )


def too_large(ledger: Ledger, entries: Mapping[str, float], scores: Mapping[str, float]) -> tuple[str, ...]:
    """The steps at which something was seen that the ledger excludes: each disproves it.

    A value computed in float64 is off from the exact one by at most ``error``, so that it is at most size + error.
    """
    known = {step.node: step for step in ledger.steps}
    found = []
    for step in ledger.steps:
        reach, limits = step.bound.within(ENTRY), []
        if step.node in entries and step.rule != "constant":
            limits.append((entries[step.node], reach.size + reach.error))
        if step.node in scores and step.rule == "attention":
            limits.append((scores[step.node], _computed(step, known)))
        if not all(Up.of(seen) <= limit for seen, limit in limits):
            found.append(step.node)
    return tuple(found)


def _computed(step: Step, known: Mapping[str, Step]) -> Up:
    """How large a computed attention logit can be: the factors' sizes with their errors, multiplied, and its roundings.

    The d products, their sum, and the scale, which is itself rounded twice, are d + 3 roundings at most, each relative to
    the product of the lengths; the last addend is what underflow can lose.
    """
    q, k = (known[name].bound for name in step.inputs[:2])
    lengths = [x.within(frozenset({len(x.shape) - 1})) for x in (q, k)]
    whole = step.evidence["scale"]
    for length in lengths:
        whole = whole * (length.size + length.error)
    return whole * (Up.of(1) + gamma(q.shape[-1] + 4, ROUNDOFF)) + Up.of(1e-290)


def fits(entries: Sequence[Largest]) -> tuple[Fit, ...]:
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
