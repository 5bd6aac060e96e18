"""precision.json and precision.parquet: what follows from the logits of each sample, derived once to write and again to read.

The logits of all networks stand in the table, so that every share and every number of a sample can be derived from them and
from ``pair_drift``. How far rounding can move a logit on the whole box, how many weights it changes, the errors of computing
the logits and the agreement with the modules are as stated: to come to them again takes the checkpoint. No torch here.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.number import Up, least
from certkit.certified import margins
from certkit.errors import RecordError, Tampered, one_line
from certkit.files import digest_file, load, write_atomic
from certkit.proof import ASSUMPTIONS
from certkit.records.precision import Precision, RoundedTo
from certkit.statistics import rate

NAME = "precision.json"
Columns = dict[str, NDArray[Any]]
FLOATS, WHOLE = np.dtype(np.float64), np.dtype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """The float64 logits (N, classes) of one network; ``error`` bounds the error of the difference of any two of them."""

    logits: NDArray[np.float64]
    error: float

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class of the largest logit."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def leads(self) -> NDArray[np.float64]:
        """How far the largest logit leads each other (N, classes), rounded down; not above 0 where two may be equal."""
        return margins(self.logits, self.error)

    @property
    def one(self) -> NDArray[np.bool_]:
        """Which samples (N) have one largest logit, beyond the error of computing it."""
        return np.asarray((self.leads > 0).all(axis=1))

    def right(self, labels: NDArray[np.int64]) -> int:
        """How many samples have their label as the one largest logit."""
        return int(((self.predicted == labels) & self.one).sum())


def keeps(own: Computed, drifts: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which samples (N) keep their class by their lead alone: it exceeds what the two logits can drift apart.

    ``drifts`` (N, classes) bounds, for each sample, how far its largest logit minus each other can fall. That difference is
    at least lead - error before and at least drift less after; a tie is no class.
    """
    return np.asarray((own.leads > drifts).all(axis=1))


def survives(own: Computed, after: Computed) -> NDArray[np.bool_]:
    """Which samples (N) have one largest logit, the same in both networks, beyond the errors of computing them."""
    return np.asarray((own.predicted == after.predicted) & own.one & after.one)


def rows(index: NDArray[np.int64], labels: NDArray[np.int64], own: Computed) -> Columns:
    """The columns of the network itself."""
    margin = np.minimum(own.leads.min(axis=1), np.finfo(np.float64).max)
    return {"index": index, "label": labels, "predicted": own.predicted, "margin": margin, "logits": own.logits}


def judged(
    name: str, own: Computed, after: Computed, pairs: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[dict[str, Any], Columns]:
    """What one format does to the samples: the fields of ``RoundedTo`` that follow from the logits, and the columns.

    ``pairs`` bounds how far the difference of two logits drifts on the box. A ``drift`` column is an upper bound of the
    move of any logit at that sample: the difference is rounded once, and each logit is off by half of what its network's
    differences are.
    """
    moved = np.abs(after.logits - own.logits)
    by_bound, at_sample = keeps(own, pairs[own.predicted]), survives(own, after)
    off = np.nextafter(moved.max(axis=1), np.inf)
    at_most = np.nextafter(off + np.nextafter(own.error + after.error, np.inf), np.inf)
    total = len(labels)
    figures = {
        "largest_observed": float(moved.max(initial=0.0)),
        "anywhere": rate(int(by_bound.sum()), total),
        "survives": rate(int(at_sample.sum()), total),
        "unchanged": rate(int((own.predicted == after.predicted).sum()), total),
        "clean": rate(after.right(labels), total),
    }
    columns = {"anywhere": by_bound, "survives": at_sample, "drift": at_most, "logits": after.logits}
    return figures, {f"{column} {name}": values for column, values in columns.items()}


def write(columns: Columns, path: Path) -> None:
    """The columns as Parquet, atomically and with deterministic bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(values: NDArray[Any]) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    buffer = io.BytesIO()
    table = pa.table({name: column(values) for name, values in columns.items()})
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, store_schema=False)
    write_atomic(path, buffer.getvalue())


def read(path: Path) -> Columns:
    """The columns of a table. Raises RecordError naming the file when it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        found: Columns = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            listed = pa.types.is_list(column.type)
            values = (column.flatten() if listed else column).to_numpy(zero_copy_only=False)
            found[name] = values.reshape(table.num_rows, len(values) // max(table.num_rows, 1)) if listed else values
        return found
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise RecordError(f"{path.name}: not a table of samples ({one_line(error, 120)})") from None


def load_precision(directory: Path) -> tuple[Precision, Columns]:
    """The result of ``certkit precision`` with its table, everything that follows from the logits derived again.

    Raises RecordError when a file is missing or malformed, Tampered when a number is not the one that follows, or when a
    bound is below what the samples attain.
    """
    path = Path(directory) / NAME
    if not path.is_file():
        name = one_line(path.parent.name)
        raise RecordError(f"{name}: no precision.json; run certkit precision CHECKPOINT --out {name}")
    record = load(Precision, path)
    file = path.parent / record.table.name
    if not file.is_file():
        raise RecordError(f"{record.table.name}: missing beside precision.json; run certkit precision again")
    if digest_file(file) != record.table.sha256:
        raise Tampered(
            f"{record.table.name}: was changed after it was written (sha256 differs); run certkit precision again"
        )
    names = [each.format for each in record.formats]
    if len(set(names)) < len(names):
        raise Tampered("precision.json: a format stands twice; run certkit precision again")
    table = read(file)
    own = Computed(_logits(record, table, "logits"), record.pair_error)
    labels, index = (_column(record, table, name, WHOLE) for name in ("label", "index"))
    follows, stated = (
        rows(index, labels, own),
        {"clean": rate(own.right(labels), len(labels)), "assumptions": ASSUMPTIONS},
    )
    _same("", record, stated)
    for each in record.formats:
        after = Computed(_logits(record, table, f"logits {each.format}"), each.pair_error)
        _possible(each, own, after)
        figures, columns = judged(each.format, own, after, np.array(each.pair_drift), labels)
        _same(f"{each.format}: ", each, figures)
        follows |= columns
    if table.keys() != follows.keys():
        raise Tampered(f"{record.table.name}: its columns are not those of precision.json; run certkit precision again")
    for name, values in follows.items():
        if table[name].dtype != values.dtype or not np.array_equal(table[name], values):
            raise Tampered(
                f"{record.table.name}: a stated {one_line(name, 60)} is not the one that its logits give; run certkit precision again"
            )
    return record, table


def _same(where: str, record: Precision | RoundedTo, follows: dict[str, Any]) -> None:
    """Raises Tampered naming the first field that is not what follows."""
    for name, value in follows.items():
        if getattr(record, name) != value:
            raise Tampered(
                f"precision.json: {one_line(where, 60)}{name} is not what the samples give; run certkit precision again"
            )


def _possible(each: RoundedTo, own: Computed, after: Computed) -> None:
    """What bounds the box bounds its samples, and no pair drifts further than both its logits. Raises Tampered."""
    where = f"precision.json: {one_line(each.format, 60)}"
    classes = own.logits.shape[1]
    if {len(each.pair_drift), *map(len, each.pair_drift)} != {classes}:
        raise Tampered(
            f"{where}: pair_drift is no matrix of {classes} by {classes} classes; run certkit precision again"
        )
    pairs, moves, errors = np.array(each.pair_drift), after.logits - own.logits, own.error + after.error
    furthest = least(Up.of(2).sqrt() * Up.of(each.drift_l2), Up.of(each.drift) * 2).to_float()
    if each.drift > each.drift_l2 or pairs.max(initial=0.0) > furthest or each.changed > each.weights:
        raise Tampered(f"{where}: its bounds contradict each other; run certkit precision again")
    slack = np.abs(moves).max(initial=0.0) * 2.0**-50  # of subtracting twice here
    for i in range(classes):
        apart = np.abs(moves - moves[:, [i]]).max(axis=0, initial=0.0)
        if (apart > pairs[i] + errors + slack).any():
            raise Tampered(f"{where}: pair_drift is below what a sample attains; run certkit precision again")
    if np.abs(moves).max(initial=0.0) > each.drift + errors + slack:
        raise Tampered(f"{where}: drift is below what a sample attains; run certkit precision again")


def _column(record: Precision, table: Columns, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """One column of the table. Raises Tampered unless it is there, of this kind, and has a row per sample."""
    values = table.get(name)
    if values is None or values.dtype != dtype or len(values) != record.data.count:
        raise Tampered(
            f"{record.table.name}: no column {one_line(name, 60)!r} with a row per sample of precision.json; run certkit precision again"
        )
    return values


def _logits(record: Precision, table: Columns, name: str) -> NDArray[np.float64]:
    values = _column(record, table, name, FLOATS)
    if values.ndim != 2 or values.shape[1] != len(record.data.classes) or not np.isfinite(values).all():
        raise Tampered(
            f"{record.table.name}: {one_line(name, 60)} holds no finite logit per class; run certkit precision again"
        )
    return values
