"""The files that certkit writes and reads back: certificate, campaign plan and audit. No torch here.

Every record is frozen, refuses unknown keys, NaN and infinity, carries ``format`` and ``kind`` at the top, and names
its subject by the sha256 of the checkpoint. Whatever differs between two identical runs (times, durations) stands in
``provenance`` alone; everything else is byte for byte the same on one machine with one thread count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from certkit.errors import ConfigError, one_line
from certkit.files import canonical, digest

FORMAT = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Norm = Literal["l2", "linf"]
Arithmetic = Literal["float32", "float64"]
Refutes = Literal["exact arithmetic", "float execution", "float gap"]
AttackNorm = Literal["l2", "linf", "l1", "l0", "token"]
Role = Literal["floor", "minimum", "bounded", "guided"]
Verdict = Literal["REFUTED", "NOT REFUTED", "INCONCLUSIVE", "NOT EVALUATED"]


class Record(BaseModel):
    """A frozen value that knows every one of its keys and holds only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Subject(Record):
    """Which network: ``sha256`` is its identity, ``architecture`` is for display only and is never imported."""

    sha256: Sha256
    architecture: str
    parameters: Count


class Data(Record):
    """Which samples: ``sha256`` is over the images and labels as used, in order."""

    name: str
    split: str
    count: Count
    sha256: Sha256
    classes: tuple[str, ...]


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?|[+-]?\d+/\d+", re.ASCII)
MAX_NUMBER = 100


def rounded_up(text: str) -> float:
    """The smallest float64 that is not below the number: ``36/255`` and ``0.3`` lie between two floats.

    Raises ConfigError for anything negative, beyond float64, or not a number.
    """
    shown = one_line(text, 40)
    if len(text) > MAX_NUMBER or not _NUMBER.fullmatch(text):
        raise ConfigError(f"eps {shown!r} is not a number; expected 0.25 or 36/255")
    try:
        exact = Fraction(text)
    except ZeroDivisionError:
        raise ConfigError(f"eps {shown!r} is not a number; expected 0.25 or 36/255") from None
    if exact < 0:
        raise ConfigError(f"eps {shown} is negative; a radius is 0 or more")
    try:
        value = float(exact)
    except OverflowError:
        value = math.inf
    value = math.nextafter(value, math.inf) if value < math.inf and Fraction(value) < exact else value
    if math.isinf(value):
        raise ConfigError(f"eps {shown} is too large for a float64")
    return value


class Eps(Record):
    """A radius as it was asked for, and the smallest float64 that is not below it."""

    text: str
    value: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _agrees(self) -> Eps:
        try:
            if rounded_up(self.text) == self.value:
                return self
        except ConfigError as error:
            raise ValueError(str(error)) from None
        raise ValueError(f"value {self.value} is not {one_line(self.text, 40)} rounded up")

    @classmethod
    def of(cls, given: str | float | Fraction) -> Eps:
        """The radius of a text or number; a float means the decimal it is printed as. Raises ConfigError."""
        if isinstance(given, bool) or not isinstance(given, (str, int, float, Fraction)):
            raise ConfigError(f"eps {one_line(repr(given), 40)} is not a number; expected 0.25 or 36/255")
        text = str(given).strip()
        return cls(text=text, value=rounded_up(text))


def radii(given: Sequence[str | float | Fraction]) -> tuple[Eps, ...]:
    """The radii in ascending order, each value once. Raises ConfigError for none, or for one that cannot be meant."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"eps {one_line(given, 40)!r} is no list; expected radii such as ['0.25', '36/255']")
    found = {eps.value: eps for eps in map(Eps.of, given)}
    if not found:
        raise ConfigError("no eps was given; expected at least one radius such as 0.25 or 36/255")
    return tuple(found[value] for value in sorted(found))


class Threat(Record):
    """What an attacker may do: move the input by at most eps in ``norm``, inside ``box``, knowing everything."""

    norm: Norm
    eps: Annotated[tuple[Eps, ...], Field(min_length=1)]
    box: tuple[float, float]
    goal: Literal["untargeted"] = "untargeted"
    knowledge: Literal["white-box"] = "white-box"


class Rate(Record):
    """A share with its denominator and its two-sided 95 % Clopper-Pearson interval."""

    count: Count
    total: Count
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _is_a_share(self) -> Rate:
        if self.count > self.total or self.low > self.high:
            raise ValueError(f"{self.count} of {self.total} in [{self.low}, {self.high}] is no share with its interval")
        return self


class File(Record):
    """A file beside this record, by name and digest."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w-]+(\.[\w-]+)*(/[\w-]+(\.[\w-]+)*)*$")]
    sha256: Sha256


class Environment(Record):
    """What the figures were computed with; equal on a second run on the same machine."""

    certkit: str
    python: str
    torch: str
    numpy: str
    platform: str
    device: str
    threads: Count


class Provenance(Record):
    """The one block in which two identical runs differ; ``files`` are those that hold such a block themselves."""

    created: str
    seconds: Annotated[float, Field(ge=0)]
    files: tuple[File, ...] = ()


class CertifiedAt(Record):
    """How many samples are correct and certified at one radius."""

    eps: Eps
    certified: Rate


class WithoutLocal(Record):
    """What the certificate of the whole box proves alone; ``improved`` samples have a larger radius by their own ball."""

    certified: tuple[CertifiedAt, ...]
    median_radius: Annotated[float, Field(ge=0)]
    improved: Count


class Execution(Record):
    """The second claim: not of the exact function, but of the deployed program in the arithmetic that it runs in.

    ``pair_error`` bounds the rounding of any difference of two logits of that program, anywhere in the box. It is None when
    nothing is claimed; ``reasons`` then say why. ``assumptions`` name the kernels and tolerances that the claim rests on.
    """

    arithmetic: Arithmetic
    pair_error: Annotated[float, Field(ge=0)] | None
    certified: tuple[CertifiedAt, ...]
    median_radius: Annotated[float, Field(ge=0)]
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]

    @model_validator(mode="after")
    def _says_why_not(self) -> Execution:
        if (self.pair_error is None) != bool(self.reasons):
            raise ValueError("a claim has an error and no reasons against it, or reasons and no error")
        return self


class Ablation(Record):
    """The same network with its attention replaced: what attention is worth.

    ``uniform`` gives every key the same weight, ``removed`` lets the branch output zero, ``frozen`` keeps each weight at
    its mean over the evaluation set (attention that cannot look at the content). Each has its own sound bound.
    """

    name: Literal["uniform", "removed", "frozen"]
    clean: Rate
    certified: tuple[CertifiedAt, ...]


class Attention(Record):
    """What attention is worth in this network.

    The spreads are the largest difference of two logits in one row: of the whole logit, and of the part q·k that looks at
    the input. ``decorative``: neither uniform weights nor removing the branch costs a point of clean or certified
    accuracy. ``looks_at_content``: freezing the weights at their mean costs a point.
    """

    ablations: tuple[Ablation, ...]
    largest_logit_spread: Annotated[float, Field(ge=0)]
    largest_content_spread: Annotated[float, Field(ge=0)]
    decorative: bool
    looks_at_content: bool


class Agreement(Record):
    """The exported program against the module it came from, on the evaluation set: the one unproved link."""

    samples: Count
    largest_difference: Annotated[float, Field(ge=0)]
    allowed: Annotated[float, Field(ge=0)]


class Certificate(Record):
    """Everything that was proved of one network on one input domain, with the ledger that proves it.

    ``ledger`` is read by ``certkit.bounds.ledger`` with the standard library alone. ``pair_gain[i][j]`` bounds how fast
    logit i minus logit j can fall, per unit of ``threat.norm``; ``pair_error`` bounds the float64 error of that
    difference at a centre. ``table`` holds one row per sample with logits, margin and certified radii: the better of what
    follows from the ledger (``without_local``) and of what was proved on the sample's own ball, which no ledger holds and
    ``certkit verify`` proves again. ``execution_ledger`` is the same proof in the arithmetic of the deployed program.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.certificate"] = "certkit.certificate"
    subject: Subject
    program_sha256: Sha256
    claim: Literal["exact arithmetic"] = "exact arithmetic"
    threat: Threat
    input_shape: tuple[int, ...]
    data: Data
    clean: Rate
    certified: tuple[CertifiedAt, ...]
    pair_gain: tuple[tuple[float, ...], ...]
    pair_error: float
    median_radius: Annotated[float, Field(ge=0)]
    without_local: WithoutLocal
    execution: Execution
    attention: Attention | None
    agreement: Agreement
    assumptions: tuple[str, ...]
    table: File
    ledger: dict[str, Any]
    execution_ledger: dict[str, Any]
    environment: Environment
    provenance: Provenance


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

    ``roles`` says who each attack gets: ``bounded`` those not yet broken at a radius, ``minimum`` and ``floor``
    everyone, ``guided`` those furthest from their certificate, on top of everything else.
    """

    format: Literal[1] = 1
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


class Contradiction(Record):
    """An input inside a certified radius that the deployed program gets wrong.

    It refutes the exact claim when its reference float64 margin is below minus the margin's own error, and the claim about
    the float execution when the program, run as that claim says, errs within its radius. Otherwise it is a float gap: a
    program errs where the exact function does not, and none was claimed not to. ``attack`` is ``clean`` and ``example`` None
    where the program errs on the sample itself, at distance 0.
    """

    index: Count
    attack: str
    distance: float
    radius: float
    refutes: Refutes
    reference_margin: float
    example: File | None


class Sample(Record):
    """One row of the reconciliation. ``distance`` is None when no attack succeeded; ``radius`` is 0 if none is proved."""

    index: Count
    label: Count
    predicted: Count
    margin: float
    radius: Annotated[float, Field(ge=0)]
    distance: Annotated[float, Field(ge=0)] | None
    attack: str | None


class CurvePoint(Record):
    """Robust accuracy at one radius: at least ``certified``, at most ``attacked`` (None without a campaign)."""

    eps: Eps
    certified: Rate
    attacked: Rate | None


class LedgerRow(Record):
    """One step of the ledger as people read it; numbers are decimal texts, rounded up, in the threat's norm."""

    node: str
    module: str
    op: str
    rule: str
    why: str
    norm: str
    size: str
    gain: str
    error: str


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


class Audit(Record):
    """Everything the report shows and nothing else; report.html is a pure function of it."""

    format: Literal[1] = 1
    kind: Literal["certkit.audit"] = "certkit.audit"
    verdict: Verdict
    verdict_reason: str
    statement: str
    subject: Subject
    data: Data
    threat: Threat
    input_shape: tuple[int, ...]
    claim: str
    clean: Rate
    curve: tuple[CurvePoint, ...]
    lipschitz: float | None
    median_radius: Annotated[float, Field(ge=0)]
    without_local: WithoutLocal
    execution: Execution
    median_distance: Annotated[float, Field(ge=0)] | None
    contradictions: tuple[Contradiction, ...]
    campaign: CampaignSummary | None
    samples: tuple[Sample, ...]
    ledger: tuple[LedgerRow, ...]
    attention: Attention | None
    checks: tuple[Check, ...]
    assumptions: tuple[str, ...]
    limits: tuple[str, ...]
    files: tuple[File, ...]
    environment: Environment
    provenance: Provenance
