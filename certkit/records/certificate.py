"""The certificate: everything that was proved of one network. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from certkit.records.base import (
    Arithmetic,
    Count,
    Data,
    Environment,
    Eps,
    File,
    Provenance,
    Rate,
    Record,
    Sha256,
    Subject,
    Threat,
)


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
    logit i minus logit j can fall, per unit of ``threat.norm`` (one number for all pairs where it is 1 by 1); ``pair_error`` bounds the float64 error of that
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
