"""What a comparison of several ways to train found: the record that the table and the plots are drawn from. No torch here."""

from __future__ import annotations

from statistics import mean, pstdev
from typing import Annotated, Literal

from pydantic import Field

from certkit.records import Environment, Provenance, Rate, Record, Sha256, Verdict

Share = Annotated[float, Field(ge=0, le=1)]


class CurvePoint(Record):
    """Validation accuracy and training loss at a step."""

    step: int
    loss: float
    validation: Share | None


class Trial(Record):
    """One run of a row: a learning rate and a seed.

    ``fault`` says where a run diverged, which is the one reason to have no result; ``sha256`` is that of the checkpoint.
    ``reached`` is the first measured step at which the validation accuracy was at the target. ``norm_over_cap`` is proved.
    """

    learning_rate: Annotated[float, Field(gt=0)]
    seed: int
    sha256: Sha256 | None = None
    fault: str | None = None
    validation: Share = 0.0
    test: Rate | None = None
    training: Rate | None = None
    test_loss: float | None = None
    reached: int | None = None
    spikes: int = 0
    norm_over_cap: float | None = None
    largest_entry: float | None = None
    seconds: float = 0.0
    curve: tuple[CurvePoint, ...] = ()


class Proven(Record):
    """Certified and attacked counts of one network of a row at one radius, and the verdict of its whole audit."""

    eps: str
    certified: Rate
    attacked: Rate
    verdict: Verdict


class Row(Record):
    """One way to train: all its trials, the learning rate that did best on validation, and what was proved of it.

    ``proved`` holds one list per seed; ``unproved`` is the certificate's own refusal where there is none.
    """

    name: str
    optimizer: str
    constraint: str
    promise: str
    architecture: str
    trials: tuple[Trial, ...]
    learning_rate: float
    proved: tuple[tuple[Proven, ...], ...] = ()
    unproved: str | None = None

    @property
    def best(self) -> tuple[Trial, ...]:
        """The trials at the chosen learning rate, one per seed."""
        return tuple(trial for trial in self.trials if trial.learning_rate == self.learning_rate)

    @property
    def failed(self) -> int:
        """How many trials of all learning rates diverged."""
        return sum(trial.fault is not None for trial in self.trials)


class Comparison(Record):
    """All rows of a comparison, and by digest the samples that they learned from and were tested on."""

    format: Literal[1] = 1
    kind: Literal["certkit.comparison"] = "certkit.comparison"
    name: str
    data: str
    training_sha256: Sha256 | None = None
    test_sha256: Sha256 | None = None
    target: float
    steps: int
    seeds: tuple[int, ...]
    eps: tuple[str, ...]
    limit: int
    rows: tuple[Row, ...]
    environment: Environment
    provenance: Provenance


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds; zeros for none."""
    return (mean(values), pstdev(values)) if values else (0.0, 0.0)


def best_rate(trials: tuple[Trial, ...]) -> float:
    """The learning rate with the highest mean validation accuracy over the seeds, a failed run counting 0; ties go down."""
    rates = sorted({trial.learning_rate for trial in trials})
    return max(rates, key=lambda rate: (mean(t.validation for t in trials if t.learning_rate == rate), -rate))
