"""A certificate read back: what can be derived is derived again before anything is believed.

The ledgers from their evidence, the radii of the whole box from the ledger and the logits, rates and medians from the
radii. What local certificates add to a radius needs the checkpoint: ``certkit verify`` proves it again. Names, the agreement
with the module and the ablations' own counts are as stated: they cannot be derived.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.ledger import Ledger, checked
from certkit.bounds.number import Up
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS
from certkit.certified import (
    Certified,
    certified_counts,
    certify_rows,
    executed,
    judged,
    median_radius,
    radii,
    read,
    without_local,
)
from certkit.errors import RecordError, RuleViolation, Tampered, one_line
from certkit.files import digest_file, load
from certkit.records import Certificate
from certkit.statistics import rate

# What every certificate rests on, whatever the network; what its float execution rests on stands in certkit.engine.floats.
ASSUMPTIONS = (
    f"exp, log, pow, sin, erf, tanh and the like of the float64 centre are accurate to {ELEMENTARY_ULPS} units in the last place",
    "torch.export captures the function that the module computes (checked on the evaluation samples)",
)


def load_certificate(directory: Path) -> tuple[Certificate, Certified, Ledger]:
    """The certificate with its table and ledger, everything derived again from the evidence.

    Raises RecordError when a file is missing or malformed, RuleViolation when the ledger states a bound that its rule does
    not give, Tampered when radii or counts are not those that follow.
    """
    path = directory / "certificate.json"
    if not path.is_file():
        raise RecordError(
            f"{one_line(directory.name)}: no certificate.json; run certkit certify CHECKPOINT --out {one_line(directory.name)}"
        )
    certificate = load(Certificate, path)
    ledger = _derived(certificate.ledger, "ledger")
    proved = tuple(tuple(number.to_float() for number in row) for row in ledger.pairs.gain)
    if proved != certificate.pair_gain or ledger.pairs.error.to_float() != certificate.pair_error:
        raise RuleViolation("certificate.json: pair_gain is not what the ledger proves; certify the checkpoint again")
    if ledger.arithmetic != "float64":
        raise RuleViolation(
            "certificate.json: its centres are computed in float64, and its ledger is of another arithmetic"
        )
    _same_threat(certificate, ledger)
    file = directory / certificate.table.name
    if not file.is_file():
        raise RecordError(f"{certificate.table.name}: missing beside certificate.json; certify the checkpoint again")
    if digest_file(file) != certificate.table.sha256:
        raise Tampered(f"{certificate.table.name}: was changed after it was written (sha256 differs); certify again")
    table = read(file)
    gain = np.array(certificate.pair_gain)
    classes = len(certificate.data.classes)
    if table.logits.shape != (certificate.data.count, classes) or len(gain) not in (1, classes):
        raise Tampered(f"{certificate.table.name}: holds other samples than certificate.json names; certify again")
    derived = certify_rows(table.index, table.label, table.logits, gain, certificate.pair_error)
    for column in ("predicted", "correct", "margin", "global_radius"):
        if not np.array_equal(getattr(table, column), getattr(derived, column)):
            raise Tampered(
                f"{certificate.table.name}: a stated {column} is not the one that its logits and the ledger give; certify again"
            )
    _same_execution(certificate, table, gain)
    _same_figures(certificate, table, ledger)
    return certificate, table, ledger


def _derived(value: object, name: str) -> Ledger:
    """The ledger, every bound derived again. What is wrong with it is said of the file that holds it."""
    try:
        return checked(value)
    except RecordError as error:
        raise type(error)(f"certificate.json: {name}: {error}") from None


def _same_threat(certificate: Certificate, ledger: Ledger) -> None:
    first = ledger.steps[0].attributes
    stated = {"norm": certificate.threat.norm, "low": certificate.threat.box[0], "high": certificate.threat.box[1]}
    if any(first.get(key) != value for key, value in stated.items()):
        raise Tampered("certificate.json: the threat is not the one that the ledger starts from; certify again")


def _same_execution(certificate: Certificate, table: Certified, gain: NDArray[np.float64]) -> None:
    """The radii that no ledger holds are at least those that one does, and the program's never above the function's.

    The error of the program follows from its own ledger. Raises RuleViolation or Tampered.
    """
    name, execution = certificate.table.name, certificate.execution
    ledger = _derived(certificate.execution_ledger, "execution_ledger")
    _same_threat(certificate, ledger)
    if ledger.arithmetic != execution.arithmetic or execution.pair_error not in (None, ledger.pairs.error.to_float()):
        raise RuleViolation(
            "certificate.json: the execution's error is not what its ledger proves; certify the checkpoint again"
        )
    if not (np.isfinite(table.radius).all() and (table.radius >= table.global_radius).all()):
        raise Tampered(f"{name}: a stated radius is below its global_radius, or none at all; certify again")
    least = most = np.zeros(len(table.radius))
    if execution.pair_error is not None:
        both = Up.of(certificate.pair_error) + Up.of(execution.pair_error)
        least, most = radii(table.logits, gain, both.to_float()), table.radius
    if not ((least <= table.float_radius) & (table.float_radius <= most)).all():
        raise Tampered(f"{name}: a stated float_radius is not one that its logits and the ledgers allow; certify again")


def _same_figures(certificate: Certificate, table: Certified, ledger: Ledger) -> None:
    """Every figure that follows from the samples and the ledger is the one stated. Raises Tampered naming the first."""
    attention, total = certificate.attention, len(table.label)
    clean, certified = rate(int(table.correct.sum()), total), certified_counts(table, certificate.threat.eps)
    follows = {
        "clean": clean,
        "certified": certified,
        "median_radius": median_radius(table),
        "without_local": without_local(table, certificate.threat.eps),
        "execution": executed(
            table,
            certificate.threat.eps,
            arithmetic=certificate.execution.arithmetic,
            pair_error=certificate.execution.pair_error,
            reasons=certificate.execution.reasons,
            assumptions=certificate.execution.assumptions,
        ),
        "input_shape": ledger.steps[0].bound.shape[1:],
        "assumptions": ASSUMPTIONS,
    }
    if attention is not None:
        try:
            spreads = attention.largest_logit_spread, attention.largest_content_spread
            follows["attention"] = judged(clean, certified, attention.ablations, *spreads)
        except (KeyError, ValueError):
            raise Tampered("certificate.json: its attention ablations are not complete; certify again") from None
    for name, value in follows.items():
        if getattr(certificate, name) != value:
            raise Tampered(f"certificate.json: {name} is not what the samples and the ledger give; certify again")
