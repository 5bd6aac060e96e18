"""certified.parquet: one row per sample, from which every certified figure can be derived again. No torch here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certkit.errors import RecordError, one_line
from certkit.files import write_atomic
from certkit.records import Ablation, Arithmetic, Attention, CertifiedAt, Eps, Execution, Rate, WithoutLocal
from certkit.statistics import rate


@dataclass(frozen=True, slots=True, eq=False)
class Certified:
    """What was proved of each sample. ``logits`` (N, classes) are the float64 centre; radii are in the threat's norm.

    ``correct`` means that the label is the one and only largest logit, beyond the centre's own error. ``margin`` is the
    smallest lead over another class, rounded down; radii are rounded down and 0 where nothing is proved. ``radius`` is the
    one that counts, ``global_radius`` what follows from the whole box alone, and never more; ``float_radius`` is that of
    the claim about the float execution, and never more than ``radius``.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    correct: NDArray[np.bool_]
    margin: NDArray[np.float64]
    radius: NDArray[np.float64]
    global_radius: NDArray[np.float64]
    float_radius: NDArray[np.float64]
    logits: NDArray[np.float64]


def margins(logits: NDArray[np.float64], pair_error: float) -> NDArray[np.float64]:
    """The lead (N, classes) of the top logit over each other, less the centre's error, rounded down; +inf at the top.

    Negative or zero wherever the top is not unique: then nothing is certified.
    """
    top = logits.argmax(axis=1)
    lead = np.nextafter(logits[np.arange(len(logits)), top][:, None] - logits, -np.inf)
    slack = np.nextafter(lead - pair_error, -np.inf)
    slack[np.arange(len(logits)), top] = np.inf
    return np.asarray(slack)


def radii(logits: NDArray[np.float64], pair_gain: NDArray[np.float64], pair_error: float) -> NDArray[np.float64]:
    """The largest radius found at which each sample's top class is proved to stay on top; 0 where none is proved.

    Moving the input by r lowers logit i minus logit j by at most pair_gain[i, j] * r (see ``gains_of``), so class i stays on top while
    lead - error > up(r * gain), strictly. The quotient is stepped down until that holds, so that a sample is certified at
    eps exactly when eps <= radius (rounding is monotone). Tsuzuku et al. 2018, arXiv 1802.04034; per pair as in Leino
    et al. 2021, arXiv 2102.08452.
    """
    slack = margins(logits, pair_error)
    gains = gains_of(pair_gain, logits)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        each = np.where(gains > 0, slack / gains, np.inf)
    found = np.where((slack > 0).all(axis=1), each.min(axis=1, initial=np.inf), 0.0)
    found = np.minimum(found, np.finfo(np.float64).max)
    for halving in range(54):  # one unit in the last place first, then twice as much each time, 0 at the end
        rows = (found > 0) & ~_stays(found, slack, gains)
        found[rows] = np.nextafter(found[rows] * (1 - 2.0 ** (halving - 53)), 0.0)
    return np.asarray(found)


def gains_of(pair_gain: NDArray[np.float64], logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per sample (N, classes) the slope of its top logit minus each other; a 1 by 1 matrix is one number for all pairs."""
    top = logits.argmax(axis=1)
    if pair_gain.shape != (1, 1):
        return np.asarray(pair_gain[top])
    gains = np.full(logits.shape, pair_gain[0, 0])
    gains[np.arange(len(logits)), top] = 0.0
    return gains


def _stays(radius: NDArray[np.float64], slack: NDArray[np.float64], gains: NDArray[np.float64]) -> NDArray[np.bool_]:
    """lead - error > up(radius * gain) for every other class."""
    with np.errstate(over="ignore"):
        reach = np.where(gains > 0, np.nextafter(radius[:, None] * gains, np.inf), 0.0)
    return np.asarray((slack > reach).all(axis=1))


def certify_rows(
    index: NDArray[np.int64],
    label: NDArray[np.int64],
    logits: NDArray[np.float64],
    pair_gain: NDArray[np.float64],
    pair_error: float,
    *,
    local: NDArray[np.float64] | None = None,
    execution: NDArray[np.float64] | None = None,
) -> Certified:
    """The table of a set of centres; ``local`` are radii proved on each sample's own ball, ``execution`` those of the program."""
    slack = margins(logits, pair_error)
    smallest = slack.min(axis=1)
    predicted = logits.argmax(axis=1).astype(np.int64)
    box = radii(logits, pair_gain, pair_error)
    best = box if local is None else np.maximum(box, local)
    return Certified(
        index=index,
        label=label,
        predicted=predicted,
        correct=(predicted == label) & (smallest > 0),
        margin=np.where(np.isfinite(smallest), smallest, np.finfo(np.float64).max),
        radius=best,
        global_radius=box,
        float_radius=np.zeros_like(box) if execution is None else np.minimum(best, execution),
        logits=logits,
    )


def certified_counts(table: Certified, eps: Sequence[Eps]) -> tuple[CertifiedAt, ...]:
    """How many samples are correct and proved to stay so, at each radius."""
    return _counts(table.correct, table.radius, eps)


def median_radius(table: Certified) -> float:
    """The median certified radius, 0 counting for samples that are wrong; the lower one of two middle values."""
    return _median(table.correct, table.radius)


def without_local(table: Certified, eps: Sequence[Eps]) -> WithoutLocal:
    """What is left when only the whole box counts."""
    return WithoutLocal(
        certified=_counts(table.correct, table.global_radius, eps),
        median_radius=_median(table.correct, table.global_radius),
        improved=int((table.correct & (table.radius > table.global_radius)).sum()),
    )


def executed(
    table: Certified,
    eps: Sequence[Eps],
    *,
    arithmetic: Arithmetic,
    pair_error: float | None,
    reasons: Sequence[str],
    assumptions: Sequence[str],
) -> Execution:
    """The claim about the float execution in numbers; a sample without a radius above 0 is not certified at any eps."""
    right = table.correct & (table.float_radius > 0)
    return Execution(
        arithmetic=arithmetic,
        pair_error=pair_error,
        certified=() if pair_error is None else _counts(right, table.float_radius, eps),
        median_radius=_median(right, table.float_radius),
        reasons=tuple(reasons),
        assumptions=tuple(assumptions),
    )


def _counts(right: NDArray[np.bool_], radius: NDArray[np.float64], eps: Sequence[Eps]) -> tuple[CertifiedAt, ...]:
    counts = [int((right & (radius >= e.value)).sum()) for e in eps]
    return tuple(CertifiedAt(eps=e, certified=rate(n, len(right))) for e, n in zip(eps, counts, strict=True))


def _median(right: NDArray[np.bool_], radius: NDArray[np.float64]) -> float:
    ordered = np.sort(np.where(right, radius, 0.0))
    return float(ordered[(len(ordered) - 1) // 2])


def judged(
    clean: Rate, certified: Sequence[CertifiedAt], ablations: tuple[Ablation, ...], spread: float, content_spread: float
) -> Attention:
    """What the ablations say of attention: see ``records.Attention``. A point is a hundredth of the samples."""

    def costs(name: str) -> bool:
        (found,) = (ablation for ablation in ablations if ablation.name == name)
        after = {at.eps.value: at.certified.count for at in found.certified}
        losses = [clean.count - found.clean.count, *(at.certified.count - after[at.eps.value] for at in certified)]
        return any(100 * loss >= clean.total for loss in losses)

    return Attention(
        ablations=ablations,
        largest_logit_spread=spread,
        largest_content_spread=content_spread,
        decorative=not (costs("uniform") or costs("removed")),
        looks_at_content=costs("frozen"),
    )


def write(table: Certified, path: Path) -> None:
    """Write the table as Parquet, atomically and with deterministic bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {f.name: pa.array(getattr(table, f.name)) for f in fields(table) if f.name != "logits"}
    columns["logits"] = pa.FixedSizeListArray.from_arrays(pa.array(table.logits.reshape(-1)), table.logits.shape[1])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", write_statistics=False, store_schema=False)
    write_atomic(path, buffer.getvalue())


def read(path: Path) -> Certified:
    """Read the table back. Raises RecordError naming the file when it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        columns = {name: table.column(name) for name in (f.name for f in fields(Certified))}
        flat = columns["logits"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        logits = flat.astype(np.float64).reshape(table.num_rows, -1)
        found = Certified(
            index=columns["index"].to_numpy().astype(np.int64),
            label=columns["label"].to_numpy().astype(np.int64),
            predicted=columns["predicted"].to_numpy().astype(np.int64),
            correct=columns["correct"].to_numpy().astype(np.bool_),
            margin=columns["margin"].to_numpy().astype(np.float64),
            radius=columns["radius"].to_numpy().astype(np.float64),
            global_radius=columns["global_radius"].to_numpy().astype(np.float64),
            float_radius=columns["float_radius"].to_numpy().astype(np.float64),
            logits=logits,
        )
        whole = (found.index >= 0) & (found.label >= 0) & (found.label < logits.shape[1])
        if not (whole.all() and np.isfinite(logits).all()):
            raise ValueError("an index, a label or a logit that cannot be")
        return found
    except (OSError, KeyError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise RecordError(f"{path.name}: not a table of certified samples ({one_line(error, 120)})") from None
