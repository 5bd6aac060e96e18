"""The weight-precision job: what becomes of a network's logits when its weights are rounded to another number format.

It is about the precision of the weights. Both networks, before and after, are the functions that their weights define in
real arithmetic; activations and sums are not rounded. What is rounded is every parameter of the module (embeddings,
positions, biases and the factors of normalisations among them), not its buffers nor the numbers of its code.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from certkit.bounds.ledger import Ledger
from certkit.checkpoint import subject_of
from certkit.data import Dataset
from certkit.engine.agreement import agreement_of, logits_of
from certkit.engine.drift import Drift, drift
from certkit.engine.formats import USUAL, named, rounded
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.errors import Refusal
from certkit.files import digest_file, save
from certkit.machine import environment, pinned, provenance
from certkit.proof import ASSUMPTIONS
from certkit.records import Agreement, File, Subject
from certkit.records.precision import Precision, RoundedTo
from certkit.rounding import Columns, Computed, judged, rows, write
from certkit.statistics import rate


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """One network as it is bounded and computed: its graph, the proof of it on the box, its logits in float64."""

    program: Program
    ledger: Ledger
    computed: Computed
    agreement: Agreement


def precision(
    model: nn.Module,
    data: Dataset,
    *,
    formats: Sequence[str] = USUAL,
    out: Path,
    subject: Subject | None = None,
    threads: int | None = None,
) -> Precision:
    """Prove how far rounding the weights can move the logits, on the data's box and on each sample, and write it down.

    ``formats`` are names of certkit.engine.formats. Writes ``out/precision.parquet`` and then ``out/precision.json``. The
    model must be in eval mode; it is not changed. Raises Refusal or NoRule for a model that cannot be bounded, ConfigError
    for a format that is not known.
    """
    started = time.monotonic()
    names = named(tuple(formats))
    out, labels = Path(out), data.labels.numpy()
    with pinned(threads) as count:
        own = network(model, data)
        columns, found = rows(data.indices.numpy(), labels, own.computed), []
        for name in names:
            record, more = _rounded_to(name, model, own, data)
            found.append(record)
            columns |= more
    write(columns, out / "precision.parquet")
    result = Precision(
        subject=subject or subject_of(model),
        program_sha256=own.program.sha256,
        box=data.box,
        input_shape=own.program.input_shape,
        data=data.record,
        clean=rate(own.computed.right(labels), len(labels)),
        pair_error=own.computed.error,
        agreement=own.agreement,
        formats=tuple(found),
        assumptions=ASSUMPTIONS,
        table=File(name="precision.parquet", sha256=digest_file(out / "precision.parquet")),
        environment=environment("cpu", count),
        provenance=provenance(started),
    )
    save(result, out / "precision.json")
    return result


def network(model: nn.Module, data: Dataset) -> Network:
    """Export, bound and compute one network. Raises Refusal or NoRule."""
    program = export(model, tuple(data.images.shape[1:]))
    interpret = Interpreter(program)
    ledger = interpret("linf", data.box)
    logits = logits_of(program, data)
    deployed = interpret("linf", data.box, arithmetic=program.arithmetic)
    agreement = agreement_of(model, program, ledger, deployed, data, logits)
    return Network(program, ledger, Computed(logits, ledger.pairs.error.to_float()), agreement)


def _rounded_to(name: str, model: nn.Module, own: Network, data: Dataset) -> tuple[RoundedTo, Columns]:
    twin = rounded(model, name)
    after = network(twin, data)
    bound = drift(own.program, after.program, data.box, (own.ledger, after.ledger))
    pairs = _finite(bound)
    figures, columns = judged(name, own.computed, after.computed, pairs, data.labels.numpy())
    changes = [
        (new.detach().double() - old.detach().double()).abs()
        for old, new in zip(model.parameters(), twin.parameters(), strict=True)
        if old.is_floating_point()
    ]
    record = RoundedTo(
        format=name,
        weights=sum(change.numel() for change in changes),
        changed=sum(int((change > 0).sum()) for change in changes),
        largest_change=max((float(change.max()) for change in changes if change.numel()), default=0.0),
        drift=bound.linf.to_float(),
        drift_l2=bound.l2.to_float(),
        pair_drift=tuple(tuple(float(number) for number in row) for row in pairs),
        pair_error=after.computed.error,
        agreement=after.agreement,
        **figures,
    )
    return record, columns


def _finite(bound: Drift) -> NDArray[np.float64]:
    """The drift of each pair as float64, rounded up. Raises Refusal when one is beyond float64."""
    pairs = np.array([[number.to_float() for number in row] for row in bound.pairs])
    if not (np.isfinite(pairs).all() and np.isfinite(bound.l2.to_float())):
        raise Refusal("the drift of this model's logits is bounded by no number below 1.8e308: true, but of no use")
    return pairs
