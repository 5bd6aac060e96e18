"""One unit of a campaign's work, and the Parquet file that holds what came of it. No torch here.

Whatever is read is checked: names, types, rows, and the digest of the values. The writer is the attacks' own.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from certkit.errors import Incomplete, RecordError, Tampered, one_line
from certkit.files import digest, digest_file

Stopped: TypeAlias = Literal["", "seconds", "memory"]
Floats: TypeAlias = NDArray[np.float64]
Images: TypeAlias = NDArray[np.float32]
Whole: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

AGAIN = "delete this file and run the same attack again"
ANOTHER = "it belongs to another part of the campaign"
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("label", pa.int64()),
        ("attack", pa.string()),
        ("attacked", pa.bool_()),
        ("found", pa.bool_()),
        ("silent", pa.bool_()),
        ("distance", pa.float64()),
        ("prediction", pa.int64()),
        ("adversarial", pa.list_(pa.float32())),
    ]
)


UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def shards_in(folder: Path) -> list[Path]:
    """The files that may be shards, in order; what is no file, such as a pipe, which nobody would write to, is none."""
    return sorted(path for path in folder.glob("*.parquet") if path.is_file())


def shards_digest(folder: Path) -> str:
    """The one digest of all shards in a folder, over their names and digests in order."""
    return digest("".join(f"{path.name} {digest_file(path)}\n" for path in shards_in(folder)).encode())


@dataclass(frozen=True, slots=True)
class Unit:
    """Samples ``start`` to ``stop`` of the plan's data under its ``number``-th attack; number 0 attacks nothing."""

    plan: str
    attack: str
    number: int
    start: int
    stop: int

    @property
    def sha256(self) -> str:
        """The unit's identity, and the name of its shard: it changes with anything the plan says."""
        return digest(json.dumps(asdict(self), sort_keys=True).encode())

    @property
    def name(self) -> str:
        return f"{self.sha256}.parquet"


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What came of one unit, a row per sample.

    ``distance`` and ``adversarial`` are NaN and ``prediction`` is -1 where nothing was found. In the unit ``clean``
    nothing is attacked, and ``prediction`` is the model's on the sample itself. ``silent``: the attack passed over an
    example on its way and did not return it; the campaign kept it. ``stopped`` says which limit, time or memory, cut
    the unit off before its end, and is empty when none did.
    """

    index: Whole
    label: Whole
    attacked: Flags
    found: Flags
    silent: Flags
    distance: Floats
    prediction: Whole
    adversarial: Images
    stopped: Stopped = ""

    @property
    def sha256(self) -> str:
        """The digest of every value, in one fixed byte order."""
        whole, floats = [self.index, self.label, self.prediction], [self.distance]
        parts = [array.astype("<i8").tobytes() for array in whole] + [array.astype("<f8").tobytes() for array in floats]
        parts += [flags.astype("<u1").tobytes() for flags in (self.attacked, self.found, self.silent)]
        # Only what was found is stored: the filling of the other rows is no value.
        parts += [
            np.asarray(self.adversarial.shape, "<i8").tobytes(),
            self.adversarial[self.found].astype("<f4").tobytes(),
            self.stopped.encode(),
        ]
        return digest(b"".join(parts))


def shard_metadata(unit: Unit, shard: Shard) -> dict[str, str]:
    """What a shard says of itself: its unit, the shape of one sample, what stopped it, the digest of its values."""
    return {
        "certkit.unit": json.dumps(asdict(unit), sort_keys=True),
        "certkit.shape": json.dumps(shard.adversarial.shape[1:]),
        "certkit.stopped": shard.stopped,
        "certkit.content": shard.sha256,
    }


def read_shard(path: Path, unit: Unit) -> Shard:
    """The shard of a unit, every column and the digest of its values checked. Raises RecordError or Tampered."""
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != unit.stop - unit.start:  # before they are read: there could be very many
                raise Tampered(f"{path.name}: {ANOTHER}; {AGAIN}")
            return _checked(path, unit, file.read())
    except FileNotFoundError:
        raise Incomplete(f"{path.name}: this part of the campaign is missing; run the same attack again") from None
    except UNREADABLE as error:
        raise RecordError(f"{path.name}: not a readable shard ({one_line(error, 120)}); run the attack again") from None


def _checked(path: Path, unit: Unit, table: Any) -> Shard:
    def refuse(reason: str) -> Tampered:
        return Tampered(f"{path.name}: {reason}; {AGAIN}")

    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise refuse("its columns are not those of a shard")
    if metadata.get("certkit.unit") != json.dumps(asdict(unit), sort_keys=True):
        raise refuse(ANOTHER)
    if any(table[name].null_count for name in ("index", "label", "attack", "attacked", "found", "silent")):
        raise refuse("a value is missing")
    if set(table["attack"].to_pylist()) != {unit.attack}:
        raise refuse("its rows name another attack")
    shape = tuple(int(size) for size in json.loads(metadata["certkit.shape"]))
    found = table["found"].to_numpy()
    examples = table["adversarial"].combine_chunks()
    if not np.array_equal(examples.is_valid().to_numpy(zero_copy_only=False), found):
        raise refuse("its examples are not those of the samples it calls found")
    flat = examples.drop_null().flatten().to_numpy(zero_copy_only=False)
    if len(flat) != int(found.sum()) * math.prod(shape):
        raise refuse("its examples are not of the shape that it states")
    adversarial = np.full((len(found), *shape), np.nan, np.float32)
    adversarial[found] = flat.reshape(-1, *shape)
    shard = Shard(
        index=table["index"].to_numpy(),
        label=table["label"].to_numpy(),
        attacked=table["attacked"].to_numpy(),
        found=found,
        silent=table["silent"].to_numpy(),
        distance=table["distance"].to_numpy(),
        prediction=table["prediction"].fill_null(-1).to_numpy(),
        adversarial=adversarial,
        stopped=_limit(metadata["certkit.stopped"]),
    )
    if shard.sha256 != metadata.get("certkit.content"):
        raise refuse("its values do not match their digest")
    distance = shard.distance[found]
    if not (np.isfinite(distance).all() and (distance >= 0).all() and np.isfinite(adversarial[found]).all()):
        raise refuse("a distance or an example is not finite")
    if (
        (found & ~shard.attacked).any()
        or (shard.silent & ~found).any()
        or not np.array_equal(np.isnan(shard.distance), ~found)
    ):
        raise refuse("it finds what it did not attack")
    return shard


def _limit(text: str) -> Stopped:
    if text not in ("", "seconds", "memory"):
        raise ValueError(f"stopped by {text!r}")
    return text  # type: ignore[return-value]
