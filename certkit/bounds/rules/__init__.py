"""One rule per operator: what it does to a bound, why that holds, and where the proof stands.

A rule is a pure function of its inputs' bounds and of facts: ``attributes`` read from the graph (shapes, axes, scale) and
``evidence`` measured from the weights and rounded up (norms). Rules use the standard library alone, so that a ledger can
be derived again without torch, without the model and without trusting whoever wrote it.
"""

from certkit.bounds.rules import (
    attention,
    convolution,
    curves,
    fused,
    linear,
    normalisation,
    pointwise,
    products,
    shape,
)
from certkit.bounds.rules.registry import RULES, Facts, Rule, why
from certkit.bounds.rules.registry import derive as derive

__all__ = [
    "RULES",
    "Facts",
    "Rule",
    "attention",
    "convolution",
    "curves",
    "derive",
    "fused",
    "linear",
    "normalisation",
    "pointwise",
    "products",
    "shape",
    "why",
]
