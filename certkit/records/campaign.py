"""The campaign: what was planned, what ran, and what its own checks say. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from certkit.files import canonical, digest
from certkit.records.base import AttackNorm, Count, Data, Environment, Eps, Record, Role, Sha256, Subject


class AttackSpec(Record):
    """One attack of a suite, with every setting that can change its result."""

    name: str
    library: str
    settings: dict[str, float | int | str | bool]


class Budget(Record):
    """What may be spent: ``steps`` and ``queries`` (on one sample, by one attack at one radius) bound the work itself.

    ``seconds`` never shapes a result: it stops a unit of work, which is then marked and makes the campaign inconclusive.
    """

    steps: Annotated[int, Field(ge=1)] | None
    queries: Annotated[int, Field(ge=1)] | None
    seconds: Annotated[float, Field(gt=0)] | None


class Adversary(Record):
    """The threat model of a campaign, complete: none of its parts has a default here.

    Goals: ``untargeted``, any class but the label; ``targeted``, the class ``target``; ``pair``, samples of class
    ``source`` to the class ``target``. Knowledge: ``white-box``, everything; ``score``, the logits; ``decision``, the
    predicted class; ``transfer``, nothing but another network. Norms: ``l0`` counts changed entries, ``token`` is the
    largest l2 norm over the last axis, one token at a time.
    """

    norm: AttackNorm
    eps: Annotated[tuple[Eps, ...], Field(min_length=1)]
    box: tuple[float, float]
    goal: Literal["untargeted", "targeted", "pair"]
    source: Count | None
    target: Count | None
    knowledge: Literal["white-box", "score", "decision", "transfer"]
    budget: Budget

    @model_validator(mode="after")
    def _is_complete(self) -> Adversary:
        named = (self.source is not None, self.target is not None)
        wanted = {"untargeted": (False, False), "targeted": (False, True), "pair": (True, True)}[self.goal]
        if named != wanted or (self.goal == "pair" and self.source == self.target):
            raise ValueError(f"goal {self.goal} does not go with source {self.source} and target {self.target}")
        return self


class Guide(Record):
    """What the certificate-guided attack reads: certified radii, one per sample of the plan's data, in its order."""

    certificate_sha256: Sha256
    radius: tuple[Annotated[float, Field(ge=0)], ...]


class Plan(Record):
    """What a campaign will do and with what, written and hashed before it starts.

    ``roles`` says who each attack gets: ``bounded`` each sample from the largest radius down at which nothing broke it
    yet, ``floor`` everyone at each radius, ``minimum`` everyone, ``guided`` those furthest from their certificate, on top
    of everything else. Format 1 had every attack go through the radii from the smallest up.
    """

    format: Literal[2] = 2
    kind: Literal["certkit.plan"] = "certkit.plan"
    subject: Subject
    threat: Adversary
    data: Data
    suite: str
    attacks: tuple[AttackSpec, ...]
    roles: tuple[Role, ...]
    surrogate: Subject | None
    guide: Guide | None
    seed: Count
    block: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    device: str
    environment: Environment

    @model_validator(mode="after")
    def _each_attack_has_a_role(self) -> Plan:
        if len(self.roles) != len(self.attacks):
            raise ValueError(f"{len(self.attacks)} attacks come with {len(self.roles)} roles")
        if ("guided" in self.roles) != (self.guide is not None):
            raise ValueError("a certificate goes with the attack that it guides")
        if self.guide is not None and len(self.guide.radius) != self.data.count:
            raise ValueError(f"{len(self.guide.radius)} certified radii come with {self.data.count} samples")
        return self

    @property
    def sha256(self) -> str:
        """The plan's identity: two campaigns with one hash attack the same samples in the same way."""
        return digest(canonical(self).encode())


class AttackSummary(Record):
    """One attack as planned and as executed. ``found`` counts samples, at any distance inside the largest eps."""

    spec: AttackSpec
    attacked: Count
    found: Count
    best: Count


class Check(Record):
    """One evaluation check with its trigger, its figure and what to do."""

    id: Annotated[str, StringConstraints(pattern=r"^EV\d\d$")]
    name: str
    status: Literal["pass", "flag", "fail", "not evaluated"]
    figure: str
    advice: str


class CampaignSummary(Record):
    """A campaign in numbers: what was planned, what ran."""

    plan_sha256: Sha256
    suite: str
    seed: Count
    block: Count
    threads: Count
    device: str
    units_planned: Count
    units_executed: Count
    attacks: tuple[AttackSummary, ...]
