"""From a language model, a text and what attacks reached to language.json: curves, contradictions, contexts to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from certkit.bounds.number import Up
from certkit.files import write_atomic
from certkit.language.certificate import Bounded, Proof
from certkit.language.published import published_bound
from certkit.language.records import AttackedAt, Curve, LossAt, Shown, Slope, Words
from certkit.language.threat import of_few, substitutions
from certkit.models.gpt import LanguageModel
from certkit.records import CertifiedAt, Eps
from certkit.statistics import rate
from certkit.text.tokens import Tokens

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
EVERY = "every token"


@dataclass(frozen=True, slots=True)
class Moves:
    """Which tokens move: all with None, else at most so many of them."""

    tokens: int | None

    @property
    def name(self) -> str:
        """In words."""
        if self.tokens is None:
            return EVERY
        return "one token" if self.tokens == 1 else f"{self.tokens} tokens"

    def radius(self, proof: Proof) -> Floats:
        """Certified radii (N, T) when these tokens move."""
        everywhere = proof.radius(proof.everywhere)
        return everywhere if self.tokens is None else of_few(everywhere, proof.radius(proof.jointly), self.tokens)


def curve(
    moves: Moves, proof: Proof, y_NT: Whole, eps: Sequence[Eps], distance_NT: Floats, *, last: bool = False
) -> Curve:
    """Certified beside attacked accuracy over the radius, with what contradicts: an example inside a certified radius.

    ``distance_NT`` is the nearest example of each position whose prediction is right, infinite for none. An example counts
    at eps when its distance, rounded up, is at most eps. The median is that of the positions that are right, 0 without any.
    """
    where = np.s_[:, -1:] if last else np.s_[:, :]
    right = (proof.predicted == y_NT)[where]
    proved = right & (proof.room > 0)[where]
    radius, distance = moves.radius(proof)[where], distance_NT[where]
    total = right.size

    def certified(at: Eps) -> int:
        return int((proved & (radius >= at.value)).sum())

    def robust(at: Eps) -> int:
        return int((right & ~(distance <= at.value)).sum())

    return Curve(
        moves=moves.name,
        tokens=moves.tokens,
        positions="last" if last else "all",
        certified=tuple(CertifiedAt(eps=at, certified=rate(certified(at), total)) for at in eps),
        attacked=tuple(AttackedAt(eps=at, robust=rate(robust(at), total)) for at in eps),
        median_radius=float(np.sort(radius[right])[(right.sum() - 1) // 2]) if right.any() else 0.0,
        contradictions=int((proved & (distance <= radius)).sum()),
    )


def losses(proof: Proof, y_NT: Whole, eps: Sequence[Eps]) -> tuple[LossAt, ...]:
    """Upper bounds of the mean loss, and of its mean change, when every token moves; for eps among the radii tried."""
    found = []
    for at in eps:
        moved = proof.moved(at.value)
        loss, change = proof.loss(y_NT, moved), proof.change(y_NT, moved)
        found.append(LossAt(eps=at, loss=_mean(loss), change=_mean(change)))
    return tuple(found)


def _mean(values: Floats) -> float | None:
    """An upper bound of the mean: N additions in any order lose less than N units of the sum of absolute values; None for infinity."""
    if not np.isfinite(values).all():
        return None
    lost = (values.size + 2) * 2.0**-52 * float(np.abs(values).mean())
    return math.nextafter(float(values.mean()) + lost, math.inf)


def slope(given: Bounded, model: LanguageModel) -> Slope:
    """The ledger's bound of one position's logits, and what the published formula says of the same weights."""
    output = next(step for step in given.everywhere.steps if step.node == given.everywhere.output)
    token = output.bound.within(output.bound.axes).gain
    classes, width = output.bound.shape[-1], given.program.input_shape[-1]
    # sqrt(D / V) = sqrt(D V) / V: an upper bound is divided by whole numbers only
    sound = token * Up.of(width * classes).sqrt() / classes
    published = published_bound(model)
    return Slope(
        reach=given.domain.reach,
        sound=str(sound),
        token=str(token),
        published=published,
        factor=None if not published else _ratio(sound, published),
    )


def _ratio(sound: Up, published: float) -> float | None:
    ratio = sound.to_float() / published
    return ratio if math.isfinite(ratio) else None


def words(table_VD: Tensor) -> Words:
    """The table of embeddings in three numbers; lengths rounded up, the nearest distance down."""
    longest = float(table_VD.detach().double().norm(dim=1).max()) * (1 + 2.0**-40)
    nearest = float(substitutions(table_VD).min()) * (1 - 2.0**-40)
    return Words(longest=longest, rms=longest / math.sqrt(table_VD.shape[1]) * (1 + 2.0**-50), nearest=nearest)


def shown(
    proof: Proof, x_NT: Whole, y_NT: Whole, distance_NT: Floats, tokens: Tokens, contexts: Sequence[int]
) -> tuple[Shown, ...]:
    """Contexts position by position, for people to read; every token may move."""
    radius, predicted = proof.radius(proof.everywhere), proof.predicted
    right = predicted == y_NT
    return tuple(
        Shown(
            context=n,
            tokens=spelled(tokens, x_NT[n]),
            true=spelled(tokens, y_NT[n]),
            predicted=spelled(tokens, predicted[n]),
            certified=tuple(float(r) for r in np.where(right[n], radius[n], 0.0)),
            attacked=tuple(None if math.isinf(d) else float(d) for d in np.where(right[n], distance_NT[n], np.inf)),
        )
        for n in contexts
    )


def spelled(tokens: Tokens, ids: Whole) -> tuple[str, ...]:
    """Each token as text."""
    return tuple(tokens.decode([int(one)]) for one in ids)


def write_positions(path: Path, columns: Mapping[str, NDArray[np.generic]]) -> None:
    """A Parquet file with one row per position, atomically and with deterministic bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    table = pa.table({name: pa.array(column.reshape(-1)) for name, column in columns.items()})
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, store_schema=False)
    write_atomic(path, buffer.getvalue())
