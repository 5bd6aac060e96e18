"""certkit.attacks: the strongest honest attempt to refute a certificate, as a campaign that resumes.

``attack(model, data, ...)`` is the job; it is imported when first used: ``import certkit.attacks`` loads no torch.

    suites      which attacks, in which order, with which budget     a table
    draws       every random start, one generator per sample         seeds
    model       the model as a campaign runs it                      evaluation mode, labels, ties
    backend     Foolbox, reduced to proposing examples               nothing it says is believed
    engine      what an example counts as                            own semantics, float64
    store       plan, shards, lock                                   survives kill -9
    checks      the evaluation checks of the campaign on itself
    run         the job
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import attack as attack

__all__ = ["attack"]


def __getattr__(name: str) -> Any:
    if name != "attack":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .run import attack

    return attack
