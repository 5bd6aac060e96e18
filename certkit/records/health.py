"""What is seen inside a network and told of its training: entries, singular values, losses. No torch here."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from certkit.records.base import Count, Data, Environment, Provenance, Record, Sha256, Subject

MAX_PARTS = 64  # blocks of one figure
MAX_VALUES = 33  # singular values of one weight
MAX_POINTS = 200  # of a curve over the steps
MAX_WEIGHTS = 400
MAX_STEPS = 100_000

Size = Annotated[float, Field(ge=0)]
Format = Literal["fp16", "bf16", "fp8-e4m3"]
Kind = Literal["matrix", "convolution", "table"]


class Largest(Record):
    """The largest absolute entry inside one part: over the samples, and proved over the whole domain; a text, as it may be huge."""

    part: str
    measured: Size
    certified: str


class Fit(Record):
    """Whether a format holds the entries: its largest number over the largest entry, measured and certified, rounded down.

    ``fits`` says that no input of the domain can exceed the format, as proved.
    """

    name: Format
    largest: float
    headroom: Size
    certified_headroom: Size
    fits: bool


class Steps(Record):
    """What metrics.jsonl tells of a training run: figures over all lines that have them."""

    lines: Count
    steps: Count
    loss: float
    largest_loss: float
    spikes: Count
    median_gradient_norm: Size
    largest_gradient_norm: Size
    largest_norm_over_cap: Size | None


class Curves(Record):
    """The lines of metrics.jsonl as columns, at most ``MAX_POINTS`` of them.

    A point stands for ``every`` lines in a row: the last step of them, their largest loss, gradient norm and norm over cap,
    and the last validation loss. None where no line says it.
    """

    every: Annotated[int, Field(ge=1)]
    step: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MAX_POINTS)]
    loss: tuple[float | None, ...]
    validation_loss: tuple[float | None, ...]
    gradient_norm: tuple[Size | None, ...]
    norm_over_cap: tuple[Size | None, ...]
    spikes: tuple[Count, ...]

    @model_validator(mode="after")
    def _is_a_table(self) -> Curves:
        columns = (self.loss, self.validation_loss, self.gradient_norm, self.norm_over_cap, self.spikes)
        if any(len(column) != len(self.step) for column in columns):
            raise ValueError("the columns of the curves differ in length")
        if any(b <= a for a, b in pairwise(self.step)):
            raise ValueError("the steps of the curves do not rise")
        return self


class Trained(Record):
    """What trained.json says of the run whose weights these are; norms over caps are proved there, entries measured."""

    optimizer: str
    constraint: str
    promise: str
    largest_norm_over_cap: Size
    largest_entry: Size
    spikes: Count


class Training(Record):
    """A training run, as the files beside the checkpoint tell of it. ``about`` is from trained.json, None without one."""

    steps: Steps
    curves: Curves
    about: Trained | None
    metrics_sha256: Sha256


class Spectrum(Record):
    """The singular values of one weight, measured in float64, beside the norm that is proved of it.

    ``matrices`` stand in it, such as one for each head, each ``shape``; ``values`` are quantiles of all their singular
    values from the largest to the smallest, rounded to 7 digits; of a ``table`` that is looked up, of the lengths of its
    rows. ``proved`` bounds what the operator does: of a ``matrix`` the largest singular value of any, of a ``convolution``
    the operator's norm, which its kernel, reshaped to a matrix, does not have, of a ``table`` its longest row. ``cap`` is
    what training allowed, in the same units. ``at_cap`` is the share of values within a hundredth of the cap, or of
    ``proved`` without one. ``stable_rank``: the sum of squares over the largest square, the mean over the matrices. None for
    a weight of zeros. ``skipped`` says why there are no values.
    """

    name: str
    kind: Kind
    shape: tuple[Count, ...]
    matrices: Annotated[int, Field(ge=1)]
    proved: Size
    cap: Size | None
    values: Annotated[tuple[Size, ...], Field(max_length=MAX_VALUES)]
    at_cap: Annotated[float, Field(ge=0, le=1)] | None
    stable_rank: Size | None
    skipped: str | None

    @model_validator(mode="after")
    def _falls(self) -> Spectrum:
        if any(b > a for a, b in pairwise(self.values)):
            raise ValueError("singular values are given from the largest to the smallest")
        if bool(self.values) == (self.skipped is not None):
            raise ValueError("a spectrum has values, or a reason why it has none")
        return self


class Seen(Record):
    """The largest absolute entry of one value of the graph over the samples; of an attention operator, of its logits."""

    node: str
    largest: Size


class Health(Record):
    """What `health.json` holds: measured of a network on the samples of its certificate, and read beside its checkpoint.

    ``entries`` are of values, ``scores`` of attention logits, mask aside, both in float64. What is proved of them stands in
    the ledger of certificate.json, and nowhere else. ``untold`` says why there is no ``training``.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.health"] = "certkit.health"
    subject: Subject
    program_sha256: Sha256
    data: Data
    box: tuple[float, float]
    entries: Annotated[tuple[Seen, ...], Field(max_length=MAX_STEPS)]
    scores: Annotated[tuple[Seen, ...], Field(max_length=MAX_STEPS)]
    spectra: Annotated[tuple[Spectrum, ...], Field(max_length=MAX_WEIGHTS)]
    more_weights: Count
    training: Training | None
    untold: str | None
    environment: Environment
    provenance: Provenance

    @model_validator(mode="after")
    def _says_why_not(self) -> Health:
        if (self.training is None) != (self.untold is not None):
            raise ValueError("there is a training record, or a reason why there is none")
        return self


class HealthView(Record):
    """What the report shows of it. ``parts`` and ``scores`` are in the order in which they run.

    ``too_large`` names what was seen beyond what the ledger proves: each disproves it. ``joined`` parts in a row stand
    together where there are many.
    """

    samples: Count
    parts: Annotated[tuple[Largest, ...], Field(max_length=MAX_PARTS)]
    joined: Annotated[int, Field(ge=1)]
    scores: Annotated[tuple[Largest, ...], Field(max_length=MAX_PARTS)]
    fits: tuple[Fit, ...]
    too_large: tuple[str, ...]
    spectra: Annotated[tuple[Spectrum, ...], Field(max_length=MAX_WEIGHTS)]
    more_weights: Count
    training: Training | None
    untold: str | None
