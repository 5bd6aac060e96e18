"""Checks that attack a little more: on some samples, after the campaign, to see whether its attacks work at all.

Shape suffixes: B batch, K classes, N draws per sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from certkit.campaign import Campaign, eligible, hits
from certkit.records import AttackNorm, AttackSpec, Budget, Check
from certkit.shards import Flags, Images, Whole

from .backend import STARTED, Proposer, affordable, draws, steps_of
from .checks_model import Status, gradient
from .draws import generator, start
from .engine import Engine
from .geometry import along, diameter, project, steepest
from .measure import inside, pulled
from .model import Classifier
from .suites import METHODS, SMOOTH, method_of, spec_of
from .work import Samples

PROBED, PLANTED, DRAWS = 32, 16, 32
NEW = 0.02  # of the probed samples may fall to more effort before the attacks count as unfinished
LATER = 1000  # cycles of losses and rivals are the campaign's; the restarts from there on are the probes'
BROKEN = 0.9  # of a control: less is a weak attack
SMALLEST = 1e-4  # of the box: below, single precision cannot resolve the moves of a control


class Probes:
    """The probes of one finished campaign, on at most so many samples that are right, spread over the data."""

    def __init__(self, engine: Engine, campaign: Campaign, samples: Samples) -> None:
        self.engine, self.campaign = engine, campaign
        self.plan, self.threat = campaign.plan, campaign.plan.threat
        right = np.flatnonzero(eligible(self.threat, campaign.label, campaign.prediction))
        self.rows = right[np.linspace(0, len(right) - 1, min(PROBED, len(right))).round().astype(int)]
        self.images, self.labels, self.index = samples.images, samples.labels, samples.index
        self.eps = self.threat.eps[-1].value
        sought = [spec for spec in self.plan.attacks if method_of(spec.name).role in ("bounded", "minimum")]
        gradients = [spec for spec in sought if method_of(spec.name).knowledge == "white-box"]
        self.white = [spec for spec in gradients if method_of(spec.name).kind not in STARTED]
        self.left = self.rows[~(campaign.distance[self.rows] <= self.eps)]
        self.open = len(self.left) > 0 and self.eps > 0
        low, high = self.threat.box
        self.small = self.eps < SMALLEST * (high - low)

    def converged(self) -> Check:
        """EV11: twice the steps break nothing new; and no unit was stopped by a limit."""
        stopped = self.campaign.units_planned - self.campaign.units_executed
        spec, figure, broken = self._strongest(), "", None
        if spec is not None and self.open and (once := steps_of(spec)) is not None:
            steps = 2 * once
            longer = spec.model_copy(update={"settings": {**spec.settings, "steps": steps}})
            broken = self._again(longer, range(1))
            figure = (
                f"{spec.name} with {steps} steps breaks {broken} of {len(self.left)} samples that had withstood eps "
            )
            figure += self.threat.eps[-1].text
        if stopped:
            figure = f"{stopped} of {self.campaign.units_planned} units of work were stopped by a limit"
        return Check(
            id="EV11",
            name="attacks ran to their end",
            status="fail" if stopped else self._effort(broken),
            figure=figure or "nothing to run for longer",
            advice="raise steps, or the limit of time, until more of them change nothing",
        )

    def below(self) -> tuple[int, int] | None:
        """How many searches inside a smaller radius broke a sample that had withstood a larger one, of how many.

        A search inside radii stops at the largest that a sample withstands. Here the last of them with gradients goes on
        below, with a start of its own; None where there is no such attack or no smaller radius.
        """
        inside_radii = [spec for spec in self.white if method_of(spec.name).role == "bounded"]
        spec, radii = self._strongest(inside_radii), [eps.value for eps in self.threat.eps if eps.value > 0]
        broken = tried = 0
        if spec is None:
            return None
        for at, eps in enumerate(radii[:-1]):
            rows = self.rows[~(self.campaign.distance[self.rows] <= radii[at + 1])]
            tried += len(rows)
            if len(rows):
                broken += int(self._broken(self.engine.proposer, spec, rows, eps, self._later(spec)).sum())
        return (broken, tried) if tried else None

    def restarted(self) -> Check:
        """EV12: more random starts break nothing new."""
        spec, broken, figure = (
            self._strongest([spec for spec in self.white if draws(spec)]),
            None,
            "nothing to start again",
        )
        if spec is not None and self.open:
            later = self._later(spec)
            broken = self._again(spec, range(later, later + 2))
            figure = f"2 more starts of {spec.name} break {broken} of {len(self.left)} samples that had withstood eps "
            figure += self.threat.eps[-1].text
        return Check(
            id="EV12",
            name="more restarts change nothing",
            status=self._effort(broken),
            figure=figure,
            advice="raise the restarts until more of them change nothing",
        )

    def square(self) -> tuple[int, int] | None:
        """How many of the samples left a short Square attack breaks, where the plan has no black-box attack of its own."""
        black = any(
            method_of(spec.name).knowledge != "white-box" and method_of(spec.name).role != "floor"
            for spec in self.plan.attacks
        )
        if black or self.threat.norm not in METHODS["Square"].norms or not self.open:
            return None
        return self._again(spec_of("Square", {"queries": 200}), range(LATER, LATER + 1)), len(self.left)

    def single_step(self) -> Check:
        """EV08: one step of the whole radius breaks nothing that the campaign missed."""
        missed, tried = 0, 0
        if self.threat.norm in SMOOTH and len(self.rows):
            x, labels = self._tensors(self.rows)
            uphill = steepest(self.threat.norm, self._slope(x, labels))
            for eps in self.threat.eps:
                eps_B = torch.full((len(x),), min(eps.value, self._widest()), device=x.device)
                point = project(self.threat.norm, x, x + along(eps_B, x) * uphill, eps_B, self.threat.box)
                standing = ~(self.campaign.distance[self.rows] <= eps.value)
                missed += int(
                    (self._hit(self.engine.classifier, self.rows, point.numpy(force=True), eps.value) & standing).sum()
                )
                tried += int(standing.sum())
        status: Status = (
            "not evaluated" if not tried else "fail" if missed > NEW * tried else "flag" if missed else "pass"
        )
        return Check(
            id="EV08",
            name="iterating is no weaker than one step",
            status=status,
            figure=f"one step of the whole radius breaks {missed} of {tried} that the campaign left standing",
            advice="an attack that loses to its own first step is set wrongly: lower its step size",
        )

    def whole_box(self) -> Check:
        """EV10: with a radius that covers the box, nothing withstands."""
        norm, standing, tried = self.threat.norm, 0, len(self.rows)
        if norm in SMOOTH and tried:
            spec = spec_of("APGD-T", {"steps": 30})
            left = self.rows
            for restart in range(LATER, LATER + 4):
                if len(left):
                    left = left[~self._broken(self.engine.proposer, spec, left, self._widest(), restart)]
            standing = len(left)
        return Check(
            id="EV10",
            name="a radius that covers the box breaks everything",
            status="not evaluated" if norm not in SMOOTH or not tried else "flag" if standing else "pass",
            figure=f"{standing} of {tried} samples withstand a radius of {self._widest():.3g}",
            advice="what withstands any change is not robust but unattacked: gradients are masked, or the output is constant",
        )

    def smooth(self) -> Check:
        """EV16: close to a sample the gradient points the way it points there."""
        cosine, eps = float("nan"), min((e.value for e in self.threat.eps if e.value > 0), default=0.0)
        if len(self.rows) and eps > 0 and self.threat.norm != "l0":
            x, labels = self._tensors(self.rows)
            here = self._slope(x, labels).flatten(1)
            near = []
            for draw in range(4):
                moved = self._drawn(self.rows, f"EV16 {draw}", min(eps, self._widest()) / 10)
                near.append(nn.functional.cosine_similarity(here, self._slope(moved, labels).flatten(1), dim=1))
            cosine = float(torch.stack(near).median())
        return Check(
            id="EV16",
            name="gradients are stable close to a sample",
            status="not evaluated" if math.isnan(cosine) else "pass" if cosine >= 0.5 else "flag",
            figure="nothing to measure between"
            if math.isnan(cosine)
            else f"median cosine {cosine:.3f} to the gradient a tenth of the smallest eps away (limit 0.5)",
            advice="on a rough loss follow the gradient averaged over small noise, or take an attack without gradients",
        )

    def control(self) -> Check:
        """EV17: the same attacks break a sibling whose samples all lie half the largest eps from its boundary."""
        specs = [spec for spec in self.white if spec.name in METHODS]
        shares: dict[str, float] = {}
        if specs and len(self.rows) and not self.small and self.threat.target is None:
            x, labels = self._tensors(self.rows)
            target = Open(
                x,
                labels,
                self.threat.norm,
                min(self.eps, self._widest()),
                self.threat.box,
                self._sources(self.rows, "EV17"),
                self._classes(),
            )
            proposer = self._beside(target)
            for spec in specs:
                brief = affordable(spec, Budget(steps=100, queries=None, seconds=None))
                broken = np.zeros(len(self.rows), np.bool_)
                for restart in range(min(int(spec.settings.get("restarts", 1)), 2)):
                    if not broken.all():
                        broken |= self._broken(proposer, brief, self.rows, self.eps, restart)
                shares[spec.name] = float(broken.mean())
        weak = [name for name, share in shares.items() if share < BROKEN]
        status: Status = (
            "not evaluated" if not shares else "fail" if len(weak) == len(shares) else "flag" if weak else "pass"
        )
        return Check(
            id="EV17",
            name="a sibling without defence is broken",
            status=status,
            figure="broken, of a model whose boundary lies at half the largest eps: "
            + (", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items()) or "no attack to try"),
            advice="an attack that fails here fails everywhere: its steps, its radius or its box are set wrongly",
        )

    def planted(self) -> Check:
        """EV18: a planted example is found, in the manner of Zimmermann et al. 2022.

        For each sample the model's own logits are read out anew, linearly, so that one chosen point at the largest eps
        is an example and everything around half of it is none; an attack that cannot find it is blind in this model.
        """
        spec, rows = self._strongest(), self.rows[:PLANTED]
        found, tried = 0, 0
        if (
            spec is not None
            and len(rows)
            and not self.small
            and self.threat.norm != "l0"
            and self.threat.target is None
        ):
            x, _ = self._tensors(rows)
            plant = Readout.planted(self, rows, x)
            tried = int(plant.separable.sum())
            if tried:
                keep = rows[plant.separable.numpy(force=True)]
                proposer = self._beside(plant.model)
                broken = np.zeros(len(keep), np.bool_)
                for restart in range(3):
                    if not broken.all():
                        broken |= self._broken(proposer, spec, keep, self.eps, restart, np.zeros(len(keep), np.int64))
                found = int(broken.sum())
        status: Status = "not evaluated" if not tried else "pass" if found >= BROKEN * tried else "flag"
        return Check(
            id="EV18",
            name="a planted example is found",
            status="fail" if tried and found < tried / 2 else status,
            figure=f"{found} of {tried} planted examples found" + (f" by {spec.name}" if spec is not None else ""),
            advice="an attack that misses an example that is there proves nothing where it finds none: change the attack",
        )

    def _strongest(self, among: list[AttackSpec] | None = None) -> AttackSpec | None:
        """The last attack of the plan that uses gradients; none where a limit stopped a unit, as it would stop this."""
        stopped = self.campaign.units_executed < self.campaign.units_planned
        known = self.white if among is None else among
        return None if stopped or not known else known[-1]

    def _later(self, spec: AttackSpec) -> int:
        """The first restart of the probes' own: losses and rivals are taken in turn, and here both begin again."""
        losses = str(spec.settings.get("losses", "")).count(",") + 1
        return LATER * losses * (self._classes() - 1)

    def _effort(self, broken: int | None) -> Status:
        if broken is None:
            return "not evaluated"
        return "flag" if broken > NEW * len(self.rows) else "pass"

    def _again(self, spec: AttackSpec, restarts: range) -> int:
        """How many of the samples left fall to these restarts at the largest eps."""
        broken = np.zeros(len(self.left), np.bool_)
        for restart in restarts:
            if not broken.all():
                broken |= self._broken(self.engine.proposer, spec, self.left, self.eps, restart)
        return int(broken.sum())

    def _broken(
        self, proposer: Proposer, spec: AttackSpec, rows: Whole, eps: float, restart: int, labels: Whole | None = None
    ) -> Flags:
        x, own = self._tensors(rows)
        own = own if labels is None else torch.from_numpy(labels).to(own)
        radius = None if method_of(spec.name).role == "minimum" else eps
        given = proposer.propose(spec, x, own, [int(one) for one in self.index[rows]], radius, restart)
        if given.stopped:
            raise MemoryError(f"{spec.name} needs more memory than the system gives")
        low, high = self.threat.box
        found = given.examples.nan_to_num().clamp(low, high).float().numpy(force=True)
        if radius is None and (halvings := int(spec.settings.get("bisection", 0))):
            truth = own.numpy(force=True)
            found = pulled(
                self.images[rows],
                found,
                lambda points: hits(self.threat, truth, proposer.classifier.batch(points, truth)),
                halvings,
            )
        return self._hit(proposer.classifier, rows, found, eps, labels)

    def _hit(
        self, classifier: Classifier, rows: Whole, points: Images, eps: float, labels: Whole | None = None
    ) -> Flags:
        """Which points count, by the campaign's own rules, for a model that is given the whole batch."""
        images, own = self.images[rows], self.labels[rows] if labels is None else labels
        low, high = (np.float32(end) for end in self.threat.box)
        near = inside(self.threat.norm, images, np.clip(np.nan_to_num(points), low, high), eps)
        return hits(self.threat, own, classifier.batch(near, own))

    def _beside(self, model: nn.Module) -> Proposer:
        return Proposer(Classifier(model, self.engine.classifier.device, tied=True), self.threat, self.plan.seed)

    def _tensors(self, rows: Whole) -> tuple[Tensor, Tensor]:
        device = self.engine.classifier.device
        return torch.from_numpy(self.images[rows]).to(device), torch.from_numpy(self.labels[rows]).to(device)

    def _sources(self, rows: Whole, name: str) -> list[torch.Generator]:
        return [generator(self.plan.seed, int(one), name, 0) for one in self.index[rows]]

    def _slope(self, x: Tensor, labels: Tensor) -> Tensor:
        return gradient(self.engine.classifier, x, labels, nn.functional.cross_entropy).reshape(x.shape)

    def _drawn(self, rows: Whole, name: str, eps: float) -> Tensor:
        x, _ = self._tensors(rows)
        moves = [start(self.threat.norm, tuple(x.shape[1:]), one) for one in self._sources(rows, name)]
        return (x + eps * torch.stack(moves).to(x.device)).clamp(*self.threat.box)

    def _widest(self) -> float:
        return diameter(self.threat.norm, tuple(self.images.shape[1:]), self.threat.box)

    def _classes(self) -> int:
        return self.engine.classifier.classes(self.images[:1])


class Open(nn.Module):
    """A classifier without defence: per row, one margin that rises along one linear function and is slightly curved, as
    attacks that follow a tangent stop exactly on a boundary that is a plane, and find nothing.

    The boundary is within half of eps, by a point that is known to lie there, inside the box. It must be given the batch
    that it was made for.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        norm: AttackNorm,
        eps: float,
        box: tuple[float, float],
        sources: list[torch.Generator],
        classes: int,
    ) -> None:
        super().__init__()
        shape = tuple(x.shape[1:])
        drawn = torch.stack([torch.randn(shape, generator=one) for one in sources]).to(x.device)
        inward = torch.where(x < (box[0] + box[1]) / 2, 1.0, -1.0)
        self.x, self.labels, self.classes = x, labels, classes
        self.slope = (drawn.abs() + 0.1) * inward
        half = torch.full((len(x),), max(eps / 2, 1.0) if norm == "l0" else eps / 2, device=x.device)
        far = (
            diameter(norm, shape, box) * self.slope
            if norm in ("l0", "l1")
            else along(half, x) * steepest(norm, self.slope)
        )
        self.reach = self._value(project(norm, x, x + far, half, box))

    def _value(self, x: Tensor) -> Tensor:
        return ((x - self.x) * self.slope).flatten(1).sum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        share_B = self._value(x) / self.reach.clamp_min(1e-30)
        margin_B = share_B * (1 + share_B.abs()) / 2 - 1 + 1e-3
        others = torch.full((len(x), self.classes), -3.0, device=x.device) - torch.arange(self.classes, device=x.device)
        logits = others.scatter(1, self.labels.unsqueeze(1), 0.0)
        rival = ((self.labels + 1) % self.classes).unsqueeze(1)
        return logits.scatter(1, rival, margin_B.unsqueeze(1))


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """A model with planted examples, and the rows for which there was a way to plant one."""

    model: nn.Module
    separable: Tensor

    @classmethod
    def planted(cls, probes: Probes, rows: Whole, x: Tensor) -> Readout:
        """Along the direction that tells the planted point's logits from those around half the radius, whitened by their
        spread; the threshold lies midway between the two."""
        classifier = probes.engine.classifier
        eps = min(probes.eps, probes._widest())
        with torch.no_grad():
            around = torch.stack(
                [classifier(probes._drawn(rows, f"EV18 {draw}", eps / 2)).double() for draw in range(DRAWS)], dim=1
            )
            ways = torch.stack(
                [torch.randn(tuple(x.shape[1:]), generator=one) for one in probes._sources(rows, "EV18 plant")]
            )
            eps_B = torch.full((len(x),), eps, device=x.device)
            norm = probes.threat.norm
            move = along(eps_B, x) * steepest("linf" if norm == "linf" else norm, ways.to(x.device))
            there = classifier(project(norm, x, x + move, eps_B, probes.threat.box)).double()
            mean = around.mean(dim=1)
            spread = around - mean.unsqueeze(1)
            cover = spread.mT @ spread / DRAWS
            ridge = 1e-3 * cover.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-12)
            cover = cover + ridge.reshape(-1, 1, 1) * torch.eye(cover.shape[1], dtype=cover.dtype, device=cover.device)
            way = torch.linalg.solve(cover, (there - mean).unsqueeze(2)).squeeze(2)
            reached = (there * way).sum(dim=1)
            most = (around * way.unsqueeze(1)).sum(dim=2).amax(dim=1)
            here = (classifier(x).double() * way).sum(dim=1)
            most = torch.maximum(most, here)
            gap = reached - most
            separable = gap > 1e-6 * reached.abs().clamp_min(1e-30)
        threshold = (reached + most) / 2
        return cls(_Planted(classifier, way[separable], threshold[separable], gap[separable]), separable)


class _Planted(nn.Module):
    def __init__(self, classifier: Classifier, way: Tensor, threshold: Tensor, gap: Tensor) -> None:
        super().__init__()
        self.classifier, self.way, self.threshold, self.gap = classifier, way, threshold, gap

    def forward(self, x: Tensor) -> Tensor:
        value = (self.classifier(x).double() * self.way).sum(dim=1) - self.threshold
        margin = (value / self.gap).float()
        return torch.stack([torch.zeros_like(margin), margin], dim=1)
