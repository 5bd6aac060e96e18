"""The weight-precision job: what becomes of a network's logits when its weights are rounded to another number format.

It is about the precision of the weights. Both networks, before and after, are the functions that their weights define in
real arithmetic; activations and sums are not rounded. What is rounded is every parameter of the module (embeddings,
positions, biases and the factors of normalisations among them), not its buffers nor the numbers of its code.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from certkit.bounds.ledger import Ledger
from certkit.bounds.rules.pointwise import ELEMENTARY_ULPS
from certkit.certified import margins
from certkit.checkpoint import subject_of
from certkit.data import Dataset
from certkit.engine.agreement import agreement_of, logits_of
from certkit.engine.drift import Drift, drift
from certkit.engine.formats import USUAL, named, rounded
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.errors import Refusal
from certkit.files import digest_file, save, write_atomic
from certkit.machine import environment, pinned, provenance
from certkit.records import Agreement, File, Subject
from certkit.records.precision import Precision, RoundedTo
from certkit.statistics import rate


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """One network as it is bounded and computed: its graph, the proof of it on the box, its logits (N, classes) in float64.

    ``error`` bounds the error of computing the difference of two logits.
    """

    program: Program
    ledger: Ledger
    logits: NDArray[np.float64]
    error: float
    agreement: Agreement

    @property
    def leads(self) -> NDArray[np.float64]:
        """How far the largest logit leads each other (N, classes), rounded down; none where two may be equal."""
        return margins(self.logits, self.error)

    def right(self, labels: NDArray[np.int64]) -> int:
        """How many samples have their label as the one largest logit, beyond the error of computing it."""
        return int(((self.logits.argmax(axis=1) == labels) & (self.leads > 0).all(axis=1)).sum())


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
        columns: dict[str, NDArray[np.generic]] = {
            "index": data.indices.numpy(),
            "label": labels,
            "predicted": own.logits.argmax(axis=1).astype(np.int64),
            "margin": np.minimum(own.leads.min(axis=1), np.finfo(np.float64).max),
        }
        found = []
        for name in names:
            record, more = _rounded_to(name, model, own, data)
            found.append(record)
            columns |= {f"{column} {name}": values for column, values in more.items()}
    _write(columns, out / "precision.parquet")
    result = Precision(
        subject=subject or subject_of(model),
        program_sha256=own.program.sha256,
        box=data.box,
        input_shape=own.program.input_shape,
        data=data.record,
        clean=rate(own.right(labels), len(labels)),
        pair_error=own.error,
        agreement=own.agreement,
        formats=tuple(found),
        assumptions=(
            f"exp, log, pow, sin, erf, tanh and the like of float64 are accurate to {ELEMENTARY_ULPS} units in the last place",
            "torch.export captures the function that each module computes (checked on the evaluation samples)",
        ),
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
    return Network(program, ledger, logits, ledger.pairs.error.to_float(), agreement)


def keeps(logits: NDArray[np.float64], drifts: NDArray[np.float64], error: float) -> NDArray[np.bool_]:
    """Which samples (N) keep their class by their lead alone: it exceeds what the two logits can drift apart.

    ``drifts`` (N, classes) bounds, for each sample, how far its largest logit minus each other can fall. That difference is
    at least lead - error before and at least drift less after; a tie is no class.
    """
    return np.asarray((margins(logits, error) > drifts).all(axis=1))


def survives(before: Network, after: Network) -> NDArray[np.bool_]:
    """Which samples (N) have one largest logit, the same in both networks, beyond the errors of computing them."""
    same = before.logits.argmax(axis=1) == after.logits.argmax(axis=1)
    return np.asarray(same & (before.leads > 0).all(axis=1) & (after.leads > 0).all(axis=1))


def _rounded_to(
    name: str, model: nn.Module, own: Network, data: Dataset
) -> tuple[RoundedTo, dict[str, NDArray[np.generic]]]:
    twin = rounded(model, name)
    after = network(twin, data)
    bound = drift(own.program, after.program, data.box, (own.ledger, after.ledger))
    pairs = _finite(bound)
    moved = np.abs(after.logits - own.logits)
    by_bound, at_sample = keeps(own.logits, pairs[own.logits.argmax(axis=1)], own.error), survives(own, after)
    changes = [
        (new.detach().double() - old.detach().double()).abs()
        for old, new in zip(model.parameters(), twin.parameters(), strict=True)
        if old.is_floating_point()
    ]
    total, labels = len(moved), data.labels.numpy()
    unchanged = own.logits.argmax(axis=1) == after.logits.argmax(axis=1)
    record = RoundedTo(
        format=name,
        weights=sum(change.numel() for change in changes),
        changed=sum(int((change > 0).sum()) for change in changes),
        largest_change=max((float(change.max()) for change in changes if change.numel()), default=0.0),
        drift=bound.linf.to_float(),
        drift_l2=bound.l2.to_float(),
        pair_drift=tuple(tuple(float(number) for number in row) for row in pairs),
        largest_observed=float(moved.max(initial=0.0)),
        anywhere=rate(int(by_bound.sum()), total),
        survives=rate(int(at_sample.sum()), total),
        unchanged=rate(int(unchanged.sum()), total),
        clean=rate(after.right(labels), total),
        pair_error=after.error,
        agreement=after.agreement,
    )
    # the difference is rounded once, and each logit is off by half of what its network's differences are
    off = np.nextafter(moved.max(axis=1), np.inf)
    at_most = np.nextafter(off + np.nextafter(own.error + after.error, np.inf), np.inf)
    return record, {"anywhere": by_bound, "survives": at_sample, "drift": at_most}


def _finite(bound: Drift) -> NDArray[np.float64]:
    """The drift of each pair as float64, rounded up. Raises Refusal when one is beyond float64."""
    pairs = np.array([[number.to_float() for number in row] for row in bound.pairs])
    if not (np.isfinite(pairs).all() and np.isfinite(bound.l2.to_float())):
        raise Refusal("the drift of this model's logits is bounded by no number below 1.8e308: true, but of no use")
    return pairs


def _write(columns: dict[str, NDArray[np.generic]], path: Path) -> None:
    """The columns as Parquet, atomically and with deterministic bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, store_schema=False)
    write_atomic(path, buffer.getvalue())
