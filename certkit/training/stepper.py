"""What moves the weights and what holds them: optimiser and constraint, both told by the geometry of each weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from certkit.config import TrainingConfig
from certkit.errors import ConfigError
from certkit.models.geometry import Entries, Rows, Spectral, norm_over_cap, scaled, weights
from certkit.training.constraints import (
    CONSTRAINTS,
    Step,
    at_most,
    constrain_,
    largest_rate,
    promise,
    refuse,
    start_,
)
from certkit.training.distributed import World
from certkit.training.faults import Diverged
from certkit.training.losses import finite
from certkit.training.muon import SCALES, Muon

UNEVEN = 4.0  # one layer's step is at most this many times as long by its sensitivity


def possible(settings: TrainingConfig, smallest: float = 1.0) -> None:
    """Raises ConfigError for settings that cannot hold together; ``smallest`` is the least cap that a layer declares."""
    if settings.sensitivity and settings.optimizer != "muon":
        raise ConfigError(f"training.sensitivity weighs the steps of muon; training.optimizer is {settings.optimizer}")
    if settings.sensitivity and settings.constraint == "weight-decay":
        raise ConfigError("training.sensitivity makes steps of unequal length, which weight-decay cannot balance")
    refuse(
        settings.constraint,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        cap=settings.cap * smallest,
        scale=settings.scale,
        longest=UNEVEN if settings.sensitivity else 1.0,
    )


def fitting(settings: TrainingConfig, held: Sequence[tuple[str, Tensor, Spectral | Rows]]) -> None:
    """Raises ConfigError where a step, by its scale and the shape of a matrix, is longer than the constraint can undo."""
    if settings.optimizer != "muon":
        return
    weighing = UNEVEN if settings.sensitivity else 1.0
    rates = {
        name: largest_rate(
            settings.constraint,
            limit=kind.limit(weight.shape),
            longest=SCALES[settings.scale](kind, weight.shape) * weighing,
            weight_decay=settings.weight_decay,
        )
        for name, weight, kind in held
        if isinstance(kind, Spectral) and weight.numel()
    }
    name = min(rates, key=rates.__getitem__, default="")
    if name and settings.learning_rate > rates[name]:
        raise ConfigError(
            f"training.learning_rate {settings.learning_rate:g} with training.scale {settings.scale} is beyond the range "
            f"of {settings.constraint} at {name}: at most {at_most(rates[name])}"
        )


class Stepper:
    """The optimisers of a run with the constraint that follows every step.

    Under muon, matrices and tables go by Muon and everything else by Adam; under adamw and sgd everything goes by that
    optimiser, weight decay on matrices and tables only, and decoupled from the gradient under each of the three.
    ``promised`` says whether the caps are proved to hold.
    """

    def __init__(self, model: nn.Module, settings: TrainingConfig, world: World) -> None:
        self.settings = settings
        declared = list(weights(model))
        self.named = [(name, weight) for name, weight, _ in declared]
        self.held: list[tuple[str, nn.Parameter, Spectral | Rows]] = [
            (name, weight, scaled(kind, settings.cap))
            for name, weight, kind in declared
            if not isinstance(kind, Entries)
        ]
        possible(settings, min((kind.cap for _, _, kind in self.held), default=settings.cap) / settings.cap)
        fitting(settings, self.held)
        free = [(weight, kind.rate) for _, weight, kind in declared if isinstance(kind, Entries)]
        self.free = [weight for weight, _ in free]
        self.shares = {share: [weight for weight, own in free if own == share] for share in {rate for _, rate in free}}
        self.optimizers: list[Optimizer] = list(self._optimizers(world))
        self.rates = [
            settings.learning_rate if i == 0 or settings.optimizer != "muon" else settings.entry_learning_rate
            for i in range(len(self.optimizers))
        ]

    @property
    def promised(self) -> bool:
        """Whether the constraint is proved to hold every cap under this optimiser."""
        return promise(self.settings.constraint, self.settings.optimizer, scale=self.settings.scale) == "provable"

    @property
    def undecayed(self) -> bool:
        """Whether the constraint decays weights in a way of its own."""
        return CONSTRAINTS[self.settings.constraint].replaces_decay

    def _optimizers(self, world: World) -> Iterator[Optimizer]:
        s, betas = self.settings, (self.settings.momentum, self.settings.beta2)
        matrices = [weight for _, weight, _ in self.held]
        decay = 0.0 if self.undecayed else s.weight_decay
        entries = [{"params": self.shares[share], "weight_decay": 0.0, "share": share} for share in sorted(self.shares)]
        groups = [{"params": matrices, "weight_decay": decay}, *entries]
        if s.optimizer == "adamw":
            yield torch.optim.AdamW(groups, lr=s.learning_rate, betas=betas)
        elif s.optimizer == "sgd":
            nesterov = s.nesterov and s.momentum > 0
            undecayed = [{**group, "weight_decay": 0.0} for group in groups]  # torch's would be part of the gradient
            yield torch.optim.SGD(undecayed, lr=s.learning_rate, momentum=s.momentum, nesterov=nesterov)
        else:
            yield Muon(
                [(weight, kind) for _, weight, kind in self.held],
                lr=s.learning_rate,
                momentum=s.momentum,
                nesterov=s.nesterov,
                weight_decay=decay,
                scale=s.scale,
                mapped=world.mapped,
            )
            if self.free:
                yield torch.optim.Adam(entries, lr=s.entry_learning_rate, betas=betas)

    @torch.no_grad()
    def start_(self) -> None:
        """Put every weight inside its cap before the first step. Raises Diverged for weights that are not finite."""
        self._check()
        for _, weight, kind in self.held:
            start_(self.settings.constraint, weight, kind)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One step at ``factor`` times the learning rates, then every weight put back under its cap.

        Raises Diverged where the step leaves a weight that is not finite; weights are then as the step left them.
        """
        decay = factor * self.settings.learning_rate * self.settings.weight_decay
        with _representable():
            if self.settings.optimizer == "sgd" and decay and not self.undecayed:
                moving: list[Tensor] = [weight for _, weight, _ in self.held if weight.grad is not None]
                torch._foreach_mul_(moving, 1 - decay)
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor * group.get("share", 1.0)
                optimizer.step()
        self._check()
        muon = self.optimizers[0]
        constrain_(
            CONSTRAINTS[self.settings.constraint],
            [
                (weight, kind, Step(muon.moved(weight) if isinstance(muon, Muon) else None, decay))
                for _, weight, kind in self.held
            ],
        )

    @torch.no_grad()
    def weigh_(self) -> None:
        """Divide each weight's steps by its sensitivity: the first-order change of the loss by a step of norm 1.

        That is the dual norm of its gradient (nuclear for matrices, summed row norms for tables), here over the geometric
        mean of all, and held within a factor of ``UNEVEN``. Muon itself does no such thing: its steps are as long in every
        layer, whatever the layer's gradient. A weight whose gradient is zero or not finite keeps its factor.
        """
        muon = self.optimizers[0]
        assert isinstance(muon, Muon)
        found = {}
        for _, weight, kind in self.held:
            if weight.grad is None or not finite(weight.grad):
                continue
            gradient = weight.grad.double()
            norm = torch.linalg.matrix_norm(gradient, "nuc") if isinstance(kind, Spectral) else gradient.norm(dim=-1)
            if 0 < (sensitivity := float(norm.sum()) * kind.unit(weight.shape)) < math.inf:
                found[weight] = sensitivity
        middle = math.exp(sum(map(math.log, found.values())) / max(len(found), 1))
        for weight, sensitivity in found.items():
            muon.weigh_(weight, min(max(middle / sensitivity, 1 / UNEVEN), UNEVEN))

    def norms(self) -> dict[str, float]:
        """Of every capped weight the proved norm as a share of its cap. Raises Diverged for one that is not finite."""
        self._check()
        return {name: norm_over_cap(weight.detach(), kind) for name, weight, kind in self.held}

    def gradients(self) -> list[Tensor]:
        """All gradients."""
        every = [*(weight for _, weight, _ in self.held), *self.free]
        return [weight.grad for weight in every if weight.grad is not None]

    def gradient_norm(self) -> float:
        """The l2 norm of all gradients together."""
        norms = torch._foreach_norm(self.gradients(), dtype=torch.float64)
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def _check(self) -> None:
        """Raises Diverged for the first weight that is not finite."""
        held = [weight.detach() for _, weight in self.named]
        norms = torch._foreach_norm(held)  # of a finite weight infinite too, where squares overflow
        if norms and not finite(torch.stack(norms)):
            for name, weight in self.named:
                if not finite(weight):
                    raise Diverged(f"training: weight {name} is no longer finite")


@contextmanager
def _representable() -> Iterator[None]:
    """Steps so long that torch cannot write their length as a number of the weights' type end as Diverged."""
    try:
        yield
    except RuntimeError as error:
        if "value cannot be converted" not in str(error):
            raise
        raise Diverged("training: a step is too long for the numbers that weights are held in") from error
