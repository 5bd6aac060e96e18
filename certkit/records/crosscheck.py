"""What the cross-checks found, as records. No torch here.

``costs`` differ between two identical runs; everything else is the same on one machine with one thread count.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from certkit.records.base import (
    Count,
    Data,
    Environment,
    Eps,
    Norm,
    Provenance,
    Rate,
    Record,
    Sha256,
    Subject,
    Threat,
)

MethodName = Literal["IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"]  # from the loosest to the tightest


class Bounded(Record):
    """One method at one radius: per sample the lower bound of its smallest margin, None where there is no finite one.

    A sample is verified when that bound is above 0; samples come in the order of ``indices``.
    """

    eps: Eps
    margins: tuple[float | None, ...]
    verified: Rate


class Fault(Record):
    """An output that was attained inside the ball and that the method's bound excludes: a fault of that bound.

    ``bound`` is the claimed smallest value of the label's logit minus that of ``against``, ``attained`` what was seen.
    """

    index: Count
    eps: Eps
    against: Count
    bound: float
    attained: float


class Method(Record):
    """What one method of auto_LiRPA gave. ``message`` is its own word where it could not bound the network, or part of it.

    ``radii`` holds, if asked for, per sample the largest radius tried and verified, 0 where none was.
    """

    name: MethodName
    message: str | None
    bounds: tuple[Bounded, ...]
    radii: tuple[Annotated[float, Field(ge=0)], ...] | None
    faults: tuple[Fault, ...]

    @property
    def trusted(self) -> bool:
        """Whether it gave bounds and none of them was seen to be wrong."""
        return not self.faults and (bool(self.bounds) or self.radii is not None)


class Cost(Record):
    """What one method took: ``calls`` counts samples times radii; memory is the growth of the process, where known."""

    method: MethodName
    calls: Count
    seconds: Annotated[float, Field(ge=0)]
    per_second: Annotated[float, Field(ge=0)]
    peak_bytes: Count | None


class Lirpa(Record):
    """auto_LiRPA beside certkit, on the same exported graph. Never a proof: its arithmetic is not rounded outward.

    ``version`` is None where it is not installed, and ``message`` then says how to get it. ``difference`` is the largest
    between the rewritten graph and the graph itself on these samples, in float64; above ``allowed`` nothing is bounded.
    """

    version: str | None
    message: str | None
    claim: Literal["float64, not rounding-sound"] = "float64, not rounding-sound"
    norm: Norm
    box: tuple[float, float]
    indices: tuple[Count, ...]
    difference: Annotated[float, Field(ge=0)] | None
    allowed: float
    slack: float
    methods: tuple[Method, ...]
    costs: tuple[Cost, ...]

    @model_validator(mode="after")
    def _one_margin_per_sample(self) -> Lirpa:
        for method in self.methods:
            rows = [len(bounded.margins) for bounded in method.bounds]
            rows += [] if method.radii is None else [len(method.radii)]
            if any(count != len(self.indices) for count in rows):
                raise ValueError(f"{method.name} does not hold one value for each of {len(self.indices)} samples")
        return self


class Smoothing(Record):
    """A plan of randomised smoothing: what is drawn, and with which confidence each sample is certified.

    ``levels`` is the number of steps between 0 and 1 that inputs lie on (255 for bytes), or None for inputs of any value;
    with it the noise is drawn exactly, by integers. ``seed`` and a sample's index give that sample's own noise.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.smoothing"] = "certkit.smoothing"
    subject: Subject
    data: Data
    sigma: Annotated[float, Field(gt=0)]
    selection: Annotated[int, Field(ge=1)]
    draws: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0, lt=1)]
    seed: Count
    levels: Annotated[int, Field(ge=1)] | None
    batch: Annotated[int, Field(ge=1)]
    block: Annotated[int, Field(ge=1)]


class Smoothed(Record):
    """One sample: ``predicted`` is the smoothed classifier's class, None where it abstains, and then the radius is 0.

    ``count`` of the plan's draws gave ``guess``, the class that the selection draws chose; ``probability`` is the
    one-sided Clopper-Pearson lower bound of its share.
    """

    index: Count
    label: Count
    guess: Count
    count: Count
    probability: Annotated[float, Field(ge=0, le=1)]
    predicted: Count | None
    radius: Annotated[float, Field(ge=0)]


class SmoothedBlock(Record):
    """The finished samples of one block, bound to their plan."""

    format: Literal[1] = 1
    kind: Literal["certkit.smoothing.block"] = "certkit.smoothing.block"
    plan_sha256: str
    samples: tuple[Smoothed, ...]


class SmoothedAttack(Record):
    """An attack on the smoothed classifier: ``distance`` of an input on which it was *seen*, by the plan's own number of
    draws, to predict another class; None where none was found. All tries together are wrong in at most its alpha."""

    index: Count
    distance: Annotated[float, Field(ge=0)] | None


class SmoothedAt(Record):
    """How many samples the smoothed classifier gets right with a radius above eps: at the radius itself it may tie."""

    eps: Eps
    certified: Rate


class SmoothingResult(Record):
    """Randomised smoothing of the network: statements about *another* classifier, each true with confidence 1 - alpha.

    It never enters a contradiction with the base model. ``abstained`` counts samples without a prediction.
    """

    plan: Smoothing
    classifier: Literal["smoothed classifier"] = "smoothed classifier"
    claim: Literal["probabilistic, not sound in floating point", "probabilistic, sound for inputs on the grid"]
    samples: tuple[Smoothed, ...]
    accurate: Rate
    abstained: Count
    certified: tuple[SmoothedAt, ...]
    attacks: tuple[SmoothedAttack, ...] | None


Pair = Literal["certkit above attack", "auto_LiRPA above attack", "smoothing above its own attack"]


class Contradiction(Record):
    """Two rungs of the ladder that cannot both be true of one sample: a proved radius above a distance that was reached."""

    index: Count
    pair: Pair
    method: str
    radius: float
    distance: float
    slack: float


class Ladder(Record):
    """The rungs of one sample, from proved to reached; None where a rung was not measured or found nothing.

    ``larger`` orders nothing: it says which of certkit's radius and auto_LiRPA's is the larger. The two smoothing rungs
    are of the smoothed classifier.
    """

    index: Count
    certkit: float | None
    lirpa: float | None
    attack: float | None
    larger: Literal["certkit", "auto_LiRPA", "equal"] | None
    smoothing: float | None
    smoothing_attack: float | None


class Rung(Record):
    """The median of one rung over the samples that have it."""

    name: Literal["certkit", "auto_LiRPA", "attack", "smoothing", "smoothing attack"]
    samples: Count
    median: float | None


class AgreementView(Record):
    """Every rung of every sample, and each contradiction by name."""

    method: str | None
    slack: float
    samples: tuple[Ladder, ...]
    rungs: tuple[Rung, ...]
    contradictions: tuple[Contradiction, ...]


class Against(Record):
    """certkit and one method at one radius, on the same samples."""

    eps: Eps
    method: MethodName
    certkit: Rate
    lirpa: Rate
    both: Count
    certkit_only: Count
    lirpa_only: Count


class AttainedSlope(Record):
    """How steep one operator's value was really seen to be, in l2 over the value: at most the ledger's gain of ``node``."""

    node: str
    slope: Annotated[float, Field(ge=0)]


class Timed(Provenance):
    """What differs between two identical runs: here also what each method took."""

    costs: tuple[Cost, ...]


class CrossCheck(Record):
    """What independent methods say of a certified network, on the first ``samples`` of its data.

    ``slopes`` start from ``starts`` of them. ``lirpa`` says for itself why it holds nothing; ``smoothing`` is None where
    it was not asked for.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.crosscheck"] = "certkit.crosscheck"
    subject: Subject
    program_sha256: Sha256
    data: Data
    threat: Threat
    samples: Annotated[int, Field(ge=1)]
    starts: Count
    slopes: tuple[AttainedSlope, ...]
    lirpa: Lirpa
    smoothing: SmoothingResult | None
    environment: Environment
    provenance: Timed


class CrossView(Record):
    """The cross-check beside the certificate, as the report shows it.

    ``too_steep`` names the operators at which a slope is stated that the ledger's gain forbids: any one refutes the ledger.
    """

    version: str | None
    message: str | None
    methods: tuple[Method, ...]
    against: tuple[Against, ...]
    too_steep: tuple[str, ...] = ()
    agreement: AgreementView
    smoothing: SmoothingResult | None
    costs: tuple[Cost, ...]
