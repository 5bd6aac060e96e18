"""What `certkit precision` writes: how far rounding its weights can move a network's logits. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from certkit.records import Agreement, Count, Data, Environment, File, Provenance, Rate, Record, Sha256, Subject

Bound = Annotated[float, Field(ge=0)]


class RoundedTo(Record):
    """One number format: the network with all its parameters rounded to it, beside the network itself.

    ``changed`` counts the weights that rounding changes, of ``weights``, by ``largest_change`` at most. For every input of
    the box no logit differs by more than ``drift``, the logits no more than ``drift_l2`` in l2, and logit i minus logit j
    no more than ``pair_drift[i][j]``. ``anywhere`` counts the samples whose class survives by that bound alone;
    ``survives`` those of which both networks, computed at the sample, prove one class; ``unchanged`` those with the same
    largest logit in both; ``clean`` those that the rounded network gets right beyond the error of computing it.
    ``largest_observed`` is the largest change of a logit on the samples.
    """

    format: str
    weights: Count
    changed: Count
    largest_change: Bound
    drift: Bound
    drift_l2: Bound
    pair_drift: tuple[tuple[Bound, ...], ...]
    largest_observed: Bound
    anywhere: Rate
    survives: Rate
    unchanged: Rate
    clean: Rate
    pair_error: Bound
    agreement: Agreement


class Precision(Record):
    """What rounding the weights does to one network: proved for every input of ``box``, and for each of the samples.

    It is about the weights alone: both networks are the functions that their weights define in real arithmetic. ``table``
    holds one row per sample.
    """

    format: Literal[1] = 1
    kind: Literal["certkit.precision"] = "certkit.precision"
    subject: Subject
    program_sha256: Sha256
    claim: Literal["exact arithmetic"] = "exact arithmetic"
    box: tuple[float, float]
    input_shape: tuple[int, ...]
    data: Data
    clean: Rate
    pair_error: Bound
    agreement: Agreement
    formats: Annotated[tuple[RoundedTo, ...], Field(min_length=1)]
    assumptions: tuple[str, ...]
    table: File
    environment: Environment
    provenance: Provenance
