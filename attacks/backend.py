"""Proposers of examples: Foolbox 3.3.4, and certkit's own attacks. Nothing they say about success or distance is believed.

What is avoided of Foolbox: its global random stream (starts are handed in, the rest is seeded), its clean errors counted
as successes (only samples that are right come here), its repeats on broken samples (the engine passes survivors), its
last iterate where an earlier one was an example (the path keeps it), its clipping (the engine measures again), its broken
PointwiseAttack and its refusal of l0 at a radius (no attack is asked through its ``__call__``). PyPI has had no newer
release; the version is part of the plan.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from certkit.errors import CertkitError, ConfigError, Refusal, one_line
from certkit.records import Adversary, AttackSpec, Budget
from certkit.shards import Stopped

from .apgd import apgd_ce, apgd_targeted, transfer
from .draws import directions, generator, seeded, start
from .geometry import along, diameter, size
from .minimal import fab, noise, sigma_zero
from .model import Classifier, TimeUp, out_of_memory, predictions
from .path import LIBRARY, MARGIN, Duel, Path, Search, Spent, ranked
from .square import square
from .suites import OWN, Method, method_of

os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox imports GitPython, which needs a git binary or this
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox
    from eagerpy.astensor import astensor, astensor_

CERTKIT: Mapping[str, Callable[[Search], Tensor]] = {
    "apgd_ce": apgd_ce,
    "apgd_targeted": apgd_targeted,
    "fab": fab,
    "noise": noise,
    "sigma_zero": sigma_zero,
    "square": square,
    "transfer": transfer,
}
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "apgd_ce": {"steps": 100},
    "apgd_targeted": {"steps": 100},
    "fab": {"steps": 100},
    "noise": {"repeats": 100},
    "sigma_zero": {"steps": 300},
    "square": {"queries": 500},
    "transfer": {"steps": 100},
}
WHOLE = {"restarts": 1, "bisection": 0, "rounds": 1, "steps": 1, "queries": 1, "repeats": 1}  # and the least of each
DISTANCES = {"l2": "l2", "linf": "linf", "l1": "l1", "l0": "l0", "token": "l2"}
BLENDED = getattr(foolbox.attacks, "LinearSearchBlendedUniformNoiseAttack")  # noqa: B009 - not among its exports
DIRECTIONS = 100  # of noise to try for a row that has no other to start from
STARTED = (
    "BinarizationRefinementAttack",
    "BoundaryAttack",
    "HopSkipJumpAttack",
    "L0BrendelBethgeAttack",
    "L1BrendelBethgeAttack",
    "L2BrendelBethgeAttack",
    "LinfinityBrendelBethgeAttack",
    "PointwiseAttack",
)


class Reached(foolbox.criteria.Misclassification):  # type: ignore[misc, unused-ignore]
    """An example counts while it is searched for as it counts in the end: a tie is an error."""

    def __init__(self, labels: Tensor, target: int | None) -> None:
        super().__init__(labels)
        self.target = target

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        logits, restore = astensor_(outputs)
        seen = predictions(logits.raw, self.labels.raw)
        return restore(astensor(seen != self.labels.raw if self.target is None else seen == self.target))


class Scaled(nn.Module):
    """A path for an attack that takes every box for [0, 1]."""

    def __init__(self, path: Path, box: tuple[float, float]) -> None:
        super().__init__()
        self.path, self.low, self.width = path, box[0], box[1] - box[0]

    def to_unit(self, x: Tensor) -> Tensor:
        """From the box to [0, 1]."""
        return ((x - self.low) / self.width).clamp(0, 1)

    def back(self, x: Tensor) -> Tensor:
        """From [0, 1] to the box."""
        return (self.low + x * self.width).clamp(self.low, self.low + self.width)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.path(self.back(x))
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class Proposed:
    """One candidate per row; ``silent`` where the attack passed over it and did not return it.

    ``stopped`` says which limit ended the search, if one did: what it had found by then are the candidates.
    """

    examples: Tensor
    silent: Tensor
    stopped: Stopped = ""


def defaults(spec: AttackSpec) -> Mapping[str, Any]:
    """Every setting of the attack's own, each with the value that it has where none is given."""
    method = method_of(spec.name)
    if method.source == "certkit":
        return {**DEFAULTS[method.kind], **({"rounds": 8} if method.role == "guided" else {})}
    signature = inspect.signature(getattr(foolbox.attacks, method.kind).__init__)
    return {name: one.default for name, one in signature.parameters.items() if name not in ("self", "args", "kwargs")}


def draws(spec: AttackSpec) -> bool:
    """Whether another restart begins at another point: Foolbox's searches for the nearest example, for one, do not."""
    return method_of(spec.name).source == "certkit" or bool(getattr(_made(spec), "random_start", False))


def steps_of(spec: AttackSpec) -> int | None:
    """How many steps the attack takes; None for one that counts none."""
    steps = {**defaults(spec), **spec.settings}.get("steps")
    return None if steps is None else int(steps)


def affordable(spec: AttackSpec, budget: Budget) -> AttackSpec:
    """The attack with no more steps or queries than the budget has, also where it would take more by itself."""
    takes = {**defaults(spec), **spec.settings}
    caps = {"steps": budget.steps, "queries": budget.queries}
    lower = {key: cap for key, cap in caps.items() if cap is not None and takes.get(key, 0) > cap}
    return spec.model_copy(update={"settings": {**spec.settings, **lower}})


def refuse_unusable(specs: tuple[AttackSpec, ...]) -> None:
    """Raises ConfigError for a setting that an attack does not have or that cannot be meant, and for a package that it
    needs and is not there."""
    for spec in specs:
        method, known = method_of(spec.name), defaults(spec).keys()
        if unknown := sorted(spec.settings.keys() - known - OWN):
            raise ConfigError(
                f"attack {spec.name!r} has no setting {one_line(unknown[0])!r}; "
                f"expected {', '.join(sorted(known | OWN))}"
            )
        for name, value in spec.settings.items():
            if name in WHOLE and (isinstance(value, bool) or not isinstance(value, int) or value < WHOLE[name]):
                raise ConfigError(
                    f"attack {spec.name!r}: {name} {one_line(value, 40)} cannot be used; "
                    f"expected a whole number of at least {WHOLE[name]}"
                )
        for loss in str(spec.settings.get("losses", "library")).split(", "):
            if not re.fullmatch("library|margin|rival [1-9][0-9]*", loss):
                raise ConfigError(
                    f"attack {spec.name!r}: loss {one_line(loss, 40)!r} is unknown; expected library, margin or rival 1"
                )
        if "VirtualAdversarial" in method.kind and "steps" not in spec.settings:
            raise ConfigError(f"attack {spec.name!r} has no default for steps; write {spec.name}:steps=10")
        if "BrendelBethge" in method.kind and importlib.util.find_spec("numba") is None:
            raise ConfigError(f"attack {spec.name!r} needs numba, which Foolbox does not bring: pip install numba")
        if method.source == "foolbox":
            _made(spec)


def _made(spec: AttackSpec, **more: Any) -> Any:
    """The library's attack. Raises ConfigError for settings that it refuses."""
    settings = {key: value for key, value in spec.settings.items() if key not in OWN}
    try:
        return getattr(foolbox.attacks, method_of(spec.name).kind)(**settings, **more)
    except Exception as error:  # noqa: BLE001 - a constructor of the library may raise anything
        reason = f"{type(error).__name__}: {one_line(error, 120)}".rstrip(": ")
        raise ConfigError(f"attack {spec.name!r} cannot be made with these settings ({reason})") from None


class Proposer:
    """Every attack on one classifier under one threat."""

    def __init__(
        self, classifier: Classifier, threat: Adversary, seed: int, surrogate: Classifier | None = None
    ) -> None:
        self.classifier = classifier.eval()
        self.threat = threat
        self.surrogate = surrogate
        self.device = classifier.device
        self.seed = seed

    def propose(
        self,
        spec: AttackSpec,
        x: Tensor,
        labels: Tensor,
        samples: list[int],
        eps: float | Tensor | None,
        restart: int,
        together: int = 1,
    ) -> Proposed:
        """One candidate per row, in the shape of ``x``; it may be no example at all, too far away or not finite.

        ``samples`` are the rows' indices in the dataset: each names its own random start. ``eps`` is one radius, one per
        row, or None. ``together``: so many restarts from ``restart`` on in one batch; the candidates of each follow those
        of the one before.
        """
        threat, method = self.threat, method_of(spec.name)
        widest = diameter(threat.norm, tuple(x.shape[1:]), threat.box)
        eps_B: Tensor | None = None
        if eps is not None:
            each = torch.as_tensor(eps, dtype=torch.float64).clamp(max=widest)
            eps_B = each.float().to(x.device).expand(len(x)).repeat(together)
        x, labels = x.repeat(together, *[1] * (x.ndim - 1)), labels.repeat(together)
        queries = threat.budget.queries
        path = Path(self.classifier, x, labels, threat.norm, eps_B, threat.box, threat.target, queries).eval()
        restarts = range(restart, restart + together)
        sources = [generator(self.seed, sample, spec.name, number) for number in restarts for sample in samples]
        stopped: Stopped = ""
        try:
            if method.source == "foolbox":
                radius = None if eps is None else float(each.max())
                with seeded(self.device, self.seed, spec.name, restart, samples[0]):
                    found = self._foolbox(spec, method, path, sources, radius, restarts)
                return self._kept(path, found)
            far = torch.full((len(x),), torch.inf, device=x.device) if eps_B is None else eps_B
            settings = {**DEFAULTS[method.kind], **spec.settings}
            search = Search(
                path, x, labels, far, threat.norm, threat.box, sources, restart, settings, self.surrogate, together
            )
            found = CERTKIT[method.kind](search)
        except Spent:
            found = path.best
        except TimeUp:
            found, stopped = path.best, "seconds"
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            found, stopped = path.best, "memory"
        examples = torch.where(along(path.found(), x), path.best, found).detach()
        return Proposed(examples, torch.zeros_like(labels, dtype=torch.bool), stopped)

    def _kept(self, path: Path, found: Tensor) -> Proposed:
        """What the library returned, or the nearest it passed where that is nearer or the only example."""
        low, high = self.threat.box
        found = found.detach().clamp(low, high)
        with torch.no_grad():
            hit = path.reached(self.classifier(torch.nan_to_num(found))) & found.isfinite().flatten(1).all(dim=1)
        distance = size(self.threat.norm, found - path.x)
        far = distance > path.eps_B * (1 + 1e-3) if path.eps_B is not None else torch.zeros_like(hit)
        silent = path.found() & (~hit | far)
        nearer = silent | (path.distance < distance)
        return Proposed(torch.where(along(nearer, found), path.best, found), silent)

    def _foolbox(
        self,
        spec: AttackSpec,
        method: Method,
        path: Path,
        sources: list[torch.Generator],
        eps: float | None,
        restarts: range,
    ) -> Tensor:
        x, norm = path.x, self.threat.norm
        shape = tuple(x.shape[1:])
        more: dict[str, Any] = {}
        distance = getattr(foolbox.distances, DISTANCES[norm])
        if "distance" in defaults(spec):
            more["distance"] = distance
        if method.kind == "HopSkipJumpAttack" and "constraint" not in spec.settings:
            more["constraint"] = "linf" if norm == "linf" else "l2"
        attack = _made(spec, **more)
        if method.kind == "PointwiseAttack":
            attack._distance = distance  # its own constructor forgets it
        if hasattr(attack, "check_trivial"):
            attack.check_trivial = False
            drawn = torch.stack([directions(norm, shape, attack.repeats, source) for source in sources], dim=1)
            prepared = iter(drawn.to(self.device))
            attack.sample_noise = lambda x0: astensor(next(prepared))
        elif getattr(attack, "random_start", False):
            point = torch.stack([start(norm, shape, source) for source in sources]).to(self.device)
            attack.get_random_start = lambda x0, epsilon: x0 + epsilon * astensor(point)
        seen = self._under(str(spec.settings.get("losses", "library")).split(", "), path, method, restarts)
        model = foolbox.models.pytorch.PyTorchModel(seen, bounds=self.threat.box, device=self.device)
        given: dict[str, Any] = {} if eps is None else {"epsilon": eps}
        criterion: Any = Reached(path.labels, path.target)
        if method.kind == "GenAttack":  # it aims at one class only
            with torch.no_grad():
                aim = ranked(path.classifier(x), path.labels, 1)
            aim = aim if path.target is None else torch.full_like(aim, path.target)
            criterion = foolbox.criteria.TargetedMisclassification(aim)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if method.kind == "DatasetAttack":
                    attack.feed(model, x)
                if method.kind not in STARTED:
                    found: Tensor = attack.run(model, x, criterion, **given)
                    return found
                return self._from_starts(attack, path)
        except (CertkitError, Spent, TimeUp):
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {one_line(error, 160)}"
            raise Refusal(f"attack {spec.name!r} failed on samples of shape {shape}: {reason}; leave it out") from None

    def _from_starts(self, attack: Any, path: Path) -> Tensor:
        """An attack that walks from a misclassified point back to the input, on the rows for which there is one.

        The library finds its own, and gives up on the whole batch where one row has none. It also takes every box for
        [0, 1]: what it sees is scaled.
        """
        points = self._starts(path)
        rows = torch.ones(len(points), dtype=torch.bool, device=self.device)
        hit = ~rows
        while not bool(hit.all()) and bool(rows.any()):  # a batch of fewer rows may round otherwise
            scaled = Scaled(path.part(rows), self.threat.box).eval()
            with torch.no_grad():
                hit = scaled.path.reached(self.classifier(scaled.back(scaled.to_unit(points[rows]))))
            rows[rows.clone()] = hit
        found = path.best.clone()
        if bool(rows.any()):
            inner = foolbox.models.pytorch.PyTorchModel(scaled, bounds=(0, 1), device=self.device)
            start, origin = scaled.to_unit(points[rows]), scaled.to_unit(scaled.path.x)
            criterion = Reached(scaled.path.labels, path.target)
            try:
                found[rows] = scaled.back(attack.run(inner, origin, criterion, starting_points=start).detach())
            except (AssertionError, ValueError) as error:
                # The library gives up where a point stops to be an example: by rounding, or as a randomised model says.
                if isinstance(error, ValueError) and "not adversarial" not in str(error):
                    raise
                found = path.best.clone()
        return found

    def _starts(self, path: Path) -> Tensor:
        """For each row a point to walk back from: the nearest other row that the model tells from it as the goal asks;
        where there is none, noise blended in until it does."""
        with torch.no_grad():
            seen = predictions(self.classifier(path.x), path.labels)
        flat = path.x.flatten(1)
        apart_BB = torch.stack([torch.linalg.vector_norm(flat - one, dim=1) for one in flat])
        other_BB = (
            seen != path.labels.unsqueeze(1) if path.target is None else (seen == path.target).expand_as(apart_BB)
        )
        nearest_B = torch.where(other_BB, apart_BB, torch.inf).argmin(dim=1)
        points, alone = path.x[nearest_B], ~other_BB.any(dim=1)
        if bool(alone.any()):
            part = path.part(alone).eval()
            model = foolbox.models.pytorch.PyTorchModel(part, bounds=self.threat.box, device=self.device)
            blended = BLENDED(distance=foolbox.distances.l2, directions=DIRECTIONS)
            points[alone] = blended.run(model, part.x, Reached(part.labels, part.target)).detach()
            path.spent += part.spent
        return points

    def _under(self, losses: list[str], path: Path, method: Method, restarts: range) -> nn.Module:
        """The model under which the library's loss is the one asked for: ``library``, ``margin`` or ``rival k``."""
        named = {"library": LIBRARY, "margin": MARGIN}
        asked = [losses[restart % len(losses)] for restart in restarts]
        each = [named[loss] if loss in named else int(loss.removeprefix("rival ")) for loss in asked]
        if method.knowledge != "white-box" or (not any(each) and path.target is None):
            return path
        rank_B = torch.tensor(each, device=self.device).repeat_interleave(len(path.x) // len(restarts))
        return Duel(path, rank_B).eval()
