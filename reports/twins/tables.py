"""The samples of an audit as tables: CSV for spreadsheets, Parquet for programs."""

from __future__ import annotations

import csv
import io
from typing import Any

from certkit.errors import one_line
from certkit.records import Audit, Sample

COLUMNS = (
    "index", "label", "label_name", "predicted", "predicted_name", "margin", "certified_radius", "smallest_attack",
    "attack",
)  # fmt: skip

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _named(audit: Audit, label: int) -> str:
    classes = audit.data.classes
    return classes[label] if label < len(classes) else ""


def _row(audit: Audit, sample: Sample) -> tuple[Any, ...]:
    return (
        sample.index,
        sample.label,
        _named(audit, sample.label),
        sample.predicted,
        _named(audit, sample.predicted),
        sample.margin,
        sample.radius,
        sample.distance,
        sample.attack,
    )


def cell(value: Any) -> Any:
    """A value as a CSV cell: a text that a spreadsheet would run as a formula gets an apostrophe in front.

    Control and direction characters are made visible. Numbers are no texts and stay what they are.
    """
    if not isinstance(value, str):
        return value
    shown = one_line(value, 2000)
    return f"'{shown}" if value.lstrip(" ").startswith(_FORMULA) else shown


def as_csv(audit: Audit) -> bytes:
    """One line per sample, RFC 4180, UTF-8, numbers with every digit; empty where no attack succeeded."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for sample in audit.samples:
        writer.writerow([cell(value) for value in _row(audit, sample)])
    return buffer.getvalue().encode()


def as_parquet(audit: Audit) -> bytes:
    """The same rows as Parquet, with null where no attack succeeded; the bytes are the same on every call."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (
        pa.int64(), pa.int64(), pa.string(), pa.int64(), pa.string(), pa.float64(), pa.float64(), pa.float64(), pa.string(),
    )  # fmt: skip
    rows = [_row(audit, sample) for sample in audit.samples]
    arrays = [pa.array([row[at] for row in rows], type=kind) for at, kind in enumerate(types)]
    buffer = io.BytesIO()
    table = pa.table(arrays, names=list(COLUMNS))
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, store_schema=False)
    return buffer.getvalue()
