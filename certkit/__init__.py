"""certkit: how much can a network's output move, how far can it be pushed, and do the two agree.

``certkit.certify(module, ...)``, ``certkit.attack(module, ...)``, ``certkit.audit(...)``, ``certkit.verify(...)``,
``certkit.report(...)``, ``certkit.train(...)``, ``certkit.compare(...)`` and ``certkit.precision(...)`` are the jobs; each command
of the same name is a thin caller. They are imported when first used: ``import certkit`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from certkit.engine.certify import certify as certify
    from certkit.engine.precision import precision as precision
    from certkit.reconcile import audit as audit
    from certkit.training.compare import compare as compare
    from certkit.training.train import train as train
    from certkit.verification import verify as verify

_JOBS = {
    "attack": "certkit.attacks",
    "audit": "certkit.reconcile",
    "certify": "certkit.engine.certify",
    "compare": "certkit.training.compare",
    "precision": "certkit.engine.precision",
    "report": "certkit.reports",
    "train": "certkit.training.train",
    "verify": "certkit.verification",
}
__all__ = ["__version__", "attack", "audit", "certify", "compare", "precision", "report", "train", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _JOBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_JOBS[name]), name)
