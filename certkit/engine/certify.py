"""The certifying job: from a module and a data set to certificate.json and certified.parquet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from certkit.bounds.ledger import Ledger, to_json
from certkit.certified import (
    Certified,
    certified_counts,
    certify_rows,
    executed,
    judged,
    median_radius,
    without_local,
    write,
)
from certkit.checkpoint import subject_of
from certkit.data import Dataset
from certkit.engine.agreement import agreement_of, logits_of
from certkit.engine.execute import attention_nodes, attention_statistics, centres
from certkit.engine.floats import FloatClaim, float_claim
from certkit.engine.interpret import Interpreter
from certkit.engine.local import local_radii, measure
from certkit.engine.program import Program, export
from certkit.errors import ConfigError, Refusal
from certkit.files import digest_file, save
from certkit.machine import environment, pinned, provenance
from certkit.proof import ASSUMPTIONS
from certkit.records import (
    Ablation,
    Attention,
    Certificate,
    CertifiedAt,
    File,
    Norm,
    Rate,
    Subject,
    Threat,
    radii,
)
from certkit.statistics import rate


def certify(
    model: nn.Module,
    data: Dataset,
    *,
    eps: Sequence[str | float | Fraction],
    norm: Norm = "l2",
    out: Path,
    subject: Subject | None = None,
    threads: int | None = None,
) -> Certificate:
    """Prove how far each sample may move before its predicted class can change, and write the proof.

    The bound is a Lipschitz constant of every logit difference in ``norm`` (l2 over all input entries, or linf) on the
    data's box, from one rule per operator of the exported graph; a sample is certified at eps when its float64 margin,
    less the error of computing it, exceeds eps times that constant. Writes ``out/certified.parquet`` and then
    ``out/certificate.json``. The model must be in eval mode; it is not changed. Raises Refusal or NoRule for a model
    that cannot be bounded, ConfigError for radii that cannot be meant.
    """
    started = time.monotonic()
    if norm not in ("l2", "linf"):
        raise ConfigError(f"norm must be l2 or linf, got {norm!r}")
    threat = Threat(norm=norm, eps=radii(eps), box=data.box)
    with pinned(threads) as count:
        program = export(model, tuple(data.images.shape[1:]))
        interpret = Interpreter(program)
        ledger = interpret(norm, data.box)
        logits = logits_of(program, data)
        deployed = interpret(norm, data.box, arithmetic=program.arithmetic)
        agreement = agreement_of(model, program, ledger, deployed, data, logits)
        claim = float_claim(program, deployed)
        table = proved_rows(
            program,
            (ledger, deployed),
            claim,
            data.images,
            logits,
            index=data.indices.numpy(),
            label=data.labels.numpy(),
        )
        clean, certified = rate(int(table.correct.sum()), len(logits)), certified_counts(table, threat.eps)
        attention = _attention(program, interpret, threat, data, clean, certified)
    out = Path(out)
    write(table, out / "certified.parquet")
    certificate = Certificate(
        subject=subject or subject_of(model),
        program_sha256=program.sha256,
        threat=threat,
        input_shape=program.input_shape,
        data=data.record,
        clean=clean,
        certified=certified,
        pair_gain=tuple(tuple(float(g) for g in row) for row in pair_matrix(ledger)),
        pair_error=ledger.pairs.error.to_float(),
        median_radius=median_radius(table),
        without_local=without_local(table, threat.eps),
        execution=executed(
            table,
            threat.eps,
            arithmetic=program.arithmetic,
            pair_error=claim.pair_error,
            reasons=claim.reasons,
            assumptions=claim.assumptions,
        ),
        attention=attention,
        agreement=agreement,
        assumptions=ASSUMPTIONS,
        table=File(name="certified.parquet", sha256=digest_file(out / "certified.parquet")),
        ledger=to_json(ledger),
        execution_ledger=to_json(deployed),
        environment=environment("cpu", count),
        provenance=provenance(started),
    )
    save(certificate, out / "certificate.json")
    return certificate


def proved_rows(
    program: Program,
    ledgers: tuple[Ledger, Ledger],
    claim: FloatClaim,
    images: Tensor,
    logits: NDArray[np.float64],
    *,
    index: NDArray[np.int64],
    label: NDArray[np.int64],
) -> Certified:
    """The certified table of images (N, ...) with float64 logits (N, classes), their own balls included.

    ``ledgers`` are the program's on the box: in the centres' float64, and in the arithmetic that ``claim`` is about. Where
    the claim does not hold, no ``float_radius`` is above 0. Raises Refusal for an image outside the box, and for a gain
    beyond float64.
    """
    ledger, deployed = ledgers
    gain, centre = pair_matrix(ledger), measure(program, ledger, images)

    def radius(arithmetic: Ledger | None) -> NDArray[np.float64]:
        return local_radii(program, ledger, images, logits, deployed=arithmetic, centre=centre).radius

    return certify_rows(
        index,
        label,
        logits,
        gain,
        ledger.pairs.error.to_float(),
        local=radius(None),
        execution=radius(deployed) if claim.holds else None,
    )


def pair_matrix(ledger: Ledger) -> NDArray[np.float64]:
    """The gains of the logit pairs as float64, rounded up. Raises Refusal when one is beyond float64."""
    gain = np.array([[number.to_float() for number in row] for row in ledger.pairs.gain])
    if not np.isfinite(gain).all():
        raise Refusal("the Lipschitz bound of this model is beyond 1.8e308: a true statement, but no radius follows")
    return gain


def _attention(
    program: Program,
    interpret: Interpreter,
    threat: Threat,
    data: Dataset,
    clean: Rate,
    certified: tuple[CertifiedAt, ...],
) -> Attention | None:
    """What attention is worth: the same network, and its own sound bound, with the softmax weights replaced."""
    if not attention_nodes(program):
        return None
    seen = attention_statistics(program, data.images)
    variants = {
        "uniform": {n: (mean > 0) / (mean > 0).sum(-1, keepdim=True).clamp(min=1) for n, mean in seen.weights.items()},
        "removed": {n: torch.zeros_like(mean) for n, mean in seen.weights.items()},
        "frozen": seen.weights,
    }
    found = []
    for name, fixed in variants.items():
        weights = {key: value.double() for key, value in fixed.items()}

        def attend(node: Node, softmax: Tensor, weights: dict[str, Tensor] = weights) -> Tensor:
            return weights[node.name].expand_as(softmax)

        ledger = interpret(threat.norm, threat.box, fixed=weights)
        g, e = pair_matrix(ledger), ledger.pairs.error.to_float()
        rows = certify_rows(
            data.indices.numpy(), data.labels.numpy(), centres(program, data.images, attend).numpy(), g, e
        )
        found.append(
            Ablation(
                name=name,
                clean=rate(int(rows.correct.sum()), len(data.labels)),
                certified=certified_counts(rows, threat.eps),
            )
        )
    return judged(clean, certified, tuple(found), seen.spread, seen.content_spread)
