"""What is written of a language model: language.json and stability.json. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from certkit.records import (
    Arithmetic,
    CertifiedAt,
    Count,
    Environment,
    Eps,
    File,
    Provenance,
    Rate,
    Record,
    Refutes,
    Sha256,
    Subject,
    Verdict,
)
from certkit.records.health import Fit, Largest, Steps

Distance = Annotated[float, Field(ge=0)]


class Text(Record):
    """Which tokens: those of ``certkit.text.tokens.TextData``, whose record this repeats without torch."""

    name: str
    split: str
    count: Count
    sha256: Sha256
    vocabulary: Annotated[int, Field(ge=1)]
    tokenizer: str


class AttackedAt(Record):
    """How many positions are right and withstood every attack up to a radius: an upper bound of the truth."""

    eps: Eps
    robust: Rate


class Curve(Record):
    """Certified and attacked next-token accuracy over the radius, for one way to choose the tokens that move.

    ``tokens`` of them move, wherever they stand, each by at most eps; None is all. Attacks move the last ``tokens``. Over
    all positions of all contexts, or with ``positions`` ``last`` over the last of each. ``executed`` is ``certified`` of the
    program as it runs, and empty where nothing is claimed of that. ``contradictions`` counts positions with an example inside
    the certified radius, whatever it disproves.
    """

    moves: str
    tokens: Annotated[int, Field(ge=1)] | None
    positions: Literal["all", "last"]
    certified: tuple[CertifiedAt, ...]
    executed: tuple[CertifiedAt, ...]
    attacked: tuple[AttackedAt, ...]
    median_radius: Distance
    median_float_radius: Distance
    contradictions: Count

    @model_validator(mode="after")
    def _is_whole(self) -> Curve:
        eps = [at.eps for at in self.certified]
        if not any(at.value > 0 for at in eps):
            raise ValueError("a curve has a radius above 0")
        if [at.eps for at in self.attacked] != eps or (self.executed and [at.eps for at in self.executed] != eps):
            raise ValueError("the columns of a curve have the same radii")
        return self


class Execution(Record):
    """The second claim: of the program in the arithmetic that it runs in, at every position.

    ``pair_error`` bounds what rounding can do to a difference of two logits anywhere in the domain; radii count that of their
    own ball. None when nothing is claimed; then ``reasons`` say why. ``assumptions`` are what the claim rests on.
    """

    arithmetic: Arithmetic
    pair_error: Distance | None
    reasons: tuple[str, ...]
    assumptions: tuple[str, ...]

    @model_validator(mode="after")
    def _says_why_not(self) -> Execution:
        if (self.pair_error is None) != bool(self.reasons):
            raise ValueError("a claim has an error and no reasons against it, or reasons and no error")
        return self


class Contradiction(Record):
    """Embeddings inside a certified radius at which the program gets a position wrong that is proved to be right.

    ``moves`` is the choice of tokens whose radius it is; ``attack`` ``clean`` where the text itself is misread, unmoved.
    ``reference_margin`` is the lead of the certified token there in float64, rounded down; below minus its error the exact
    claim is refuted. ``text`` ends with the token of the position; ``predicted`` is certified, ``rival`` what stood above
    it. ``example`` holds the embeddings (tokens, features) of the whole context, None beyond the first ones that are kept.
    """

    context: Count
    position: Count
    moves: str
    attack: str
    distance: Distance
    radius: Distance
    float_radius: Distance
    refutes: Refutes
    reference_margin: float
    text: tuple[str, ...]
    predicted: str
    rival: str
    example: File | None


class LossAt(Record):
    """Upper bounds when every token moves by at most eps: of the mean loss in nats, and of its mean change either way.

    None where there is no bound, or none that float64 holds.
    """

    eps: Eps
    loss: float | None
    change: Distance | None


class Slope(Record):
    """Lipschitz bounds of the logits, from the largest RMS of an embedding to the RMS of the logits of one position.

    ``sound`` is the ledger's, all heads and scales and the head counted. ``published`` is what the formula of arXiv
    2507.13338, as its code computes it, gives for the same weights: it is no upper bound. ``factor`` is the first over the
    second. ``token`` is the ledger's from l2 to l2. A text, as it may lie beyond float64. It holds among all embeddings and
    what lies within ``reach`` of them, and grows with that.
    """

    reach: Distance

    sound: str
    token: str
    published: float | None
    factor: float | None


class Words(Record):
    """The table of embeddings: the longest row, in l2 and as RMS, and how near the two nearest tokens lie."""

    longest: Distance
    rms: Distance
    nearest: Distance


class Substitution(Record):
    """A text with tokens replaced, which leaves the threat unless ``distance`` is small.

    ``radius`` is the certified one of the last position, ``places`` were changed from ``before`` to ``after``.
    """

    kind: Literal["greedy coordinate gradient", "mistyped"]
    context: Count
    broken: bool
    places: tuple[Count, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    distance: Distance
    jointly: Distance
    radius: Distance

    @model_validator(mode="after")
    def _shows_what_changed(self) -> Substitution:
        if len(self.before) != len(self.after) or not {*self.places} <= {*range(len(self.before))}:
            raise ValueError("a text before and after has as many tokens, and those replaced are among them")
        if any(a != b and n not in self.places for n, (a, b) in enumerate(zip(self.before, self.after, strict=True))):
            raise ValueError("a token that differs was replaced")
        return self


class Shown(Record):
    """One context, position by position: what follows, what is predicted, the certified radii, the nearest example.

    ``certified`` is of the exact function, ``executed`` of the program as it runs.
    """

    context: Count
    tokens: tuple[str, ...]
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    certified: tuple[Distance, ...]
    executed: tuple[Distance, ...]
    attacked: tuple[Distance | None, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Shown:
        columns = (self.true, self.predicted, self.certified, self.executed, self.attacked)
        if any(len(column) != len(self.tokens) for column in columns):
            raise ValueError("a context that is shown has as many of everything as tokens")
        return self


class LanguageAudit(Record):
    """What is proved of a language model on a text, and what attacks made of it.

    ``ledger`` proves ``everywhere``; it derives again from its evidence, as does ``execution_ledger``, the same proof in the
    arithmetic of the program. ``loss`` is the mean in nats, ``positions`` all positions of all contexts. ``tried`` are the
    radii that were tried on each context; ``table`` has a row for each position, from which every count follows;
    ``files`` are those of the campaign. ``sealed``
    is the sha256 of all the rest: against accidents, as whoever forges can seal.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.language"] = "certkit.language"
    subject: Subject
    program_sha256: Sha256
    data: Text
    context: Count
    contexts: Count
    positions: Count
    verdict: Verdict
    verdict_reason: str
    clean: Rate
    loss: float
    slope: Slope
    words: Words
    tried: tuple[Annotated[float, Field(gt=0)], ...]
    curves: tuple[Curve, ...]
    execution: Execution
    losses: tuple[LossAt, ...]
    contradictions: tuple[Contradiction, ...]
    campaign: str
    substitutions: tuple[Substitution, ...]
    shown: tuple[Shown, ...]
    table: File
    files: tuple[File, ...]
    ledger: dict[str, Any]
    execution_ledger: dict[str, Any]
    pair_gain: tuple[tuple[float, ...], ...]
    pair_error: float
    assumptions: tuple[str, ...]
    environment: Environment
    provenance: Provenance
    sealed: Sha256 | None = None

    @property
    def certifies_nothing(self) -> bool:
        """Whether no position is certified at any radius above 0."""
        points = (point for curve in self.curves for point in curve.certified)
        return not any(point.certified.count for point in points if point.eps.value > 0)


class Stability(Record):
    """The stability audit of one checkpoint, and of the run that made it, where its metrics lie beside it."""

    format: Literal[1] = 1
    kind: Literal["certkit.stability"] = "certkit.stability"
    subject: Subject
    data: Text
    context: Count
    contexts: Count
    entries: tuple[Largest, ...]
    scores: tuple[Largest, ...]
    norms: dict[str, Distance]
    fits: tuple[Fit, ...]
    training: Steps | None
    environment: Environment
    provenance: Provenance
