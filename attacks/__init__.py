"""certkit.attacks: the strongest honest attempt to refute a certificate, as a campaign that resumes.

``attack(model, data, ...)`` is the job; it is imported when first used: ``import certkit.attacks`` loads no torch.

    library     every attack of Foolbox by its name                  a table
    suites      which attacks, in which order, with which budget     a table
    draws       every random start, one generator per sample         seeds
    geometry    balls, steps and projections in five norms           the search's own, never what counts
    model       the model as a campaign runs it                      evaluation mode, labels, ties
    path        what an attack sees of the model                     nothing it passes is lost
    apgd minimal square losses                                       certkit's own attacks
    backend     Foolbox and these, reduced to proposing examples     nothing they say is believed
    engine      what an example counts as                            own semantics, float64
    store       plan, shards, locks                                  survives kill -9
    work        one block, wherever it runs
    executors   processes, submitit, Ray                             the same bytes from any of them
    checks      the evaluation checks of the campaign on itself      checks_model, checks_result, probes
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
