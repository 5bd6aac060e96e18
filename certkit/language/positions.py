"""positions.parquet: one row per position, from which every count, curve and mean of a language audit follows. No torch here."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from certkit.errors import ConfigError, RecordError, one_line
from certkit.files import write_atomic
from certkit.language.records import AttackedAt, Curve, LossAt, Substitution
from certkit.records import CertifiedAt, Eps, Rate
from certkit.statistics import rate

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]
EVERY = "every token"


@dataclass(frozen=True, slots=True)
class Moves:
    """Which tokens move: all with None, else at most so many of them, wherever they stand. Raises ConfigError for none."""

    tokens: int | None

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ConfigError(f"the number of tokens that move must be 1 or more, got {self.tokens}")

    @property
    def name(self) -> str:
        """In words."""
        if self.tokens is None:
            return EVERY
        return "one token" if self.tokens == 1 else f"{self.tokens} tokens"

    @property
    def column(self) -> str:
        """What the columns of these moves end with."""
        return "all" if self.tokens is None else str(self.tokens)


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """What is known of T positions of N contexts, for W choices of the tokens that move and E radii of the curves.

    token, true, predicted  (N, T): the token, the one that follows, and the top one of the float64 centre
    room                    (N, T): how far what the head reads may move before another token can stand on top
    right                   (N, T): the true token is the one predicted; proved where there is room
    loss                    (N, T): the cross-entropy on the text itself, in nats, as computed
    radius, float_radius    (W, N, T): certified, of the exact function and of the program as it runs
    attacked                (W, N, T): the nearest example of a position that is right, infinite for none
    lost, changed           (E, N, T): upper bounds of the cross-entropy when every token moves by eps, and of its change
    """

    token: Whole
    true: Whole
    predicted: Whole
    room: Floats
    right: Flags
    loss: Floats
    radius: Floats
    float_radius: Floats
    attacked: Floats
    lost: Floats
    changed: Floats

    @property
    def clean(self) -> Rate:
        """The share of positions that are right."""
        return rate(int(self.right.sum()), self.right.size)

    @property
    def proved(self) -> Flags:
        """The positions (N, T) that are right beyond the error of computing them: only of these is a radius claimed."""
        return np.asarray(self.right & (self.room > 0))

    @property
    def inside(self) -> Flags:
        """The positions (N, T) with an example inside a certified radius, whichever tokens it moves."""
        return np.asarray((self.proved & (self.attacked <= self.radius)).any(axis=0))

    def within(self, ways: Sequence[Moves], one: Substitution) -> tuple[int, ...]:
        """The choices of tokens, by number, inside whose certified radius of the last position a text is broken by other tokens."""
        if not one.broken or not self.proved[one.context, -1]:
            return ()
        return tuple(
            place
            for place, way in enumerate(ways)
            if (way.tokens is None or len(one.places) <= way.tokens)
            and one.distance <= self.radius[place, one.context, -1]
        )

    def curves(self, ways: Sequence[Moves], eps: Sequence[Eps], *, executed: bool) -> tuple[Curve, ...]:
        """All positions and the last ones where every token moves, the last ones for every other choice of tokens."""
        return tuple(
            self._curve(way, place, eps, executed=executed, last=last)
            for place, way in enumerate(ways)
            for last in ((False, True) if way.tokens is None else (True,))
        )

    def _curve(self, way: Moves, place: int, eps: Sequence[Eps], *, executed: bool, last: bool) -> Curve:
        """An example counts at eps when its distance, rounded up, is at most eps.

        Medians are those of the positions that are right, the lower of two middle values, 0 without any.
        """
        where = np.s_[:, -1:] if last else np.s_[:, :]
        right, proved, distance = self.right[where], self.proved[where], self.attacked[place][where]
        exact, own = self.radius[place][where], self.float_radius[place][where]
        total = right.size

        def certified(radius: Floats, held: Flags) -> tuple[CertifiedAt, ...]:
            counts = [int((held & (radius >= at.value)).sum()) for at in eps]
            return tuple(CertifiedAt(eps=at, certified=rate(n, total)) for at, n in zip(eps, counts, strict=True))

        return Curve(
            moves=way.name,
            tokens=way.tokens,
            positions="last" if last else "all",
            certified=certified(exact, proved),
            executed=certified(own, proved & (own > 0)) if executed else (),
            attacked=tuple(
                AttackedAt(eps=at, robust=rate(int((right & ~(distance <= at.value)).sum()), total)) for at in eps
            ),
            median_radius=_median(exact[right]),
            median_float_radius=_median(own[right]),
            contradictions=int((proved & (distance <= exact)).sum()),
        )

    def losses(self, eps: Sequence[Eps]) -> tuple[LossAt, ...]:
        """Upper bounds of the mean loss, and of its mean change, when every token moves."""
        return tuple(
            LossAt(eps=at, loss=mean_up(lost), change=mean_up(changed))
            for at, lost, changed in zip(eps, self.lost, self.changed, strict=True)
        )


def _median(values: Floats) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2]) if len(values) else 0.0


def mean_up(values: Floats) -> float | None:
    """An upper bound of the mean: N additions in any order lose less than N units of the sum of absolute values; None for infinity."""
    if not np.isfinite(values).all():
        return None
    lost = (values.size + 2) * 2.0**-52 * float(np.abs(values).mean())
    return math.nextafter(float(values.mean()) + lost, math.inf)


def _columns(ways: Sequence[Moves], eps: Sequence[Eps]) -> list[tuple[str, str, int | None]]:
    """Every column after context and position: its name, the field it belongs to, and the place in it."""
    names: list[tuple[str, str, int | None]] = [
        (name, name, None) for name in ("token", "true", "predicted", "room", "right", "loss")
    ]
    names += [
        (f"{name}_{way.column}", name, place)
        for name in ("radius", "float_radius", "attacked")
        for place, way in enumerate(ways)
    ]
    return names + [(f"{name}_{at.text}", name, place) for name in ("lost", "changed") for place, at in enumerate(eps)]


def write(found: Positions, path: Path, ways: Sequence[Moves], eps: Sequence[Eps]) -> None:
    """A Parquet file with one row per position, atomically and with deterministic bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    contexts, tokens = found.token.shape
    columns = {
        "context": np.repeat(np.arange(contexts), tokens),
        "position": np.tile(np.arange(tokens), contexts),
    }
    for column, name, place in _columns(ways, eps):
        values = getattr(found, name)
        columns[column] = (values if place is None else values[place]).reshape(-1)
    buffer = io.BytesIO()
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, store_schema=False)
    write_atomic(path, buffer.getvalue())


def read(path: Path, shape: tuple[int, int], ways: Sequence[Moves], eps: Sequence[Eps]) -> Positions:
    """The table back, for ``shape`` (contexts, tokens). Raises RecordError naming the file when it is not one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"token": np.int64, "true": np.int64, "predicted": np.int64, "right": np.bool_}
    parts: dict[str, list[NDArray[np.generic]]] = {}
    try:
        table = pq.read_table(path)
        columns = _columns(ways, eps)
        if table.column_names != ["context", "position", *(name for name, _, _ in columns)]:
            raise ValueError("other columns")
        if table.num_rows != math.prod(shape):
            raise ValueError(f"{table.num_rows} rows, not {shape[0]} contexts of {shape[1]} tokens")
        for column, name, _ in columns:
            values = table.column(column).to_numpy().copy()
            kind = np.dtype(kinds.get(name, np.float64))
            if values.dtype != kind or (kind.kind == "f" and np.isnan(values).any()):
                raise ValueError(f"{column} is not of {kind.name} numbers")
            parts.setdefault(name, []).append(values.reshape(shape))
        for column, expected in (
            ("context", np.repeat(np.arange(shape[0]), shape[1])),
            ("position", np.tile(np.arange(shape[1]), shape[0])),
        ):
            if not np.array_equal(table.column(column).to_numpy(), expected):
                raise ValueError(f"{column} does not count up")
    except (OSError, KeyError, ValueError, TypeError, AttributeError, MemoryError, pa.ArrowException) as error:
        raise RecordError(f"{path.name}: not the positions of this audit ({one_line(error, 120)})") from None
    single = {name for column, name, place in columns if place is None}
    made = {name: value[0] if name in single else np.stack(value) for name, value in parts.items()}
    return Positions(**made)  # type: ignore[arg-type]
