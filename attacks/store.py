"""Where a campaign lies on disk while it runs: the plan first, then one file per unit of work, each whole or absent.

A process may die at any instruction. What it leaves is a plan, finished shards, and at most one temporary file, which
the next run removes: it runs the units that are missing and none that is there.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from certkit.campaign import CLEAN, Checks, seal
from certkit.errors import CertkitError, ConfigError, Incomplete, RecordError
from certkit.files import load, save, write_atomic
from certkit.records import Check, Plan
from certkit.shards import SCHEMA, Shard, Unit, read_shard, shard_metadata

try:
    import fcntl as _fcntl
except ImportError:  # Windows has no flock: two processes are then kept apart by nobody
    fcntl: ModuleType | None = None
else:
    fcntl = _fcntl


WAIT = 10.0  # seconds for what a killed campaign left running to end


class Store:
    """The folder of one campaign, held by one process and joined by its workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"

    def get(self, unit: Unit) -> Shard | None:
        """The unit's result if it is there and sound; a damaged shard counts as missing and is computed again."""
        try:
            return read_shard(self.shards / unit.name, unit)
        except Incomplete:
            return None
        except RecordError as error:
            self.log({"event": "damaged", "unit": unit.sha256, "reason": str(error)})
            return None

    def put(self, unit: Unit, shard: Shard) -> None:
        """Store the unit's result; equal results give equal bytes."""
        write_atomic(self.shards / unit.name, encode(unit, shard))

    def put_checks(self, plan: Plan, checks: tuple[Check, ...]) -> None:
        """Store the checks, bound to the shards that are there: every unit must be."""
        save(seal(self.folder, plan, checks), self.folder / "checks.json")

    def checks(self, plan: Plan) -> tuple[Check, ...] | None:
        """The checks that are there, if they are those of the shards beside them."""
        path = self.folder / "checks.json"
        try:
            held = load(Checks, path)
        except RecordError:
            return None
        return held.checks if seal(self.folder, plan, held.checks) == held else None

    def log(self, entry: dict[str, Any]) -> None:
        """One line for people; times stand here and nowhere else."""
        with _writing(self.folder / "log.jsonl"), (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, sort_keys=True) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """An OSError while writing becomes the user's one line."""
    try:
        yield
    except OSError as error:
        raise CertkitError(f"{path}: could not be written ({error.strerror or error}); nothing was changed") from None


@contextmanager
def opened(out: Path, plan: Plan) -> Iterator[Store]:
    """The store of this plan in ``out/campaign``, new or resumed, and held against every other process.

    Raises ConfigError, before anything is changed, when the folder holds another plan or another process holds it.
    """
    store = Store(out / "campaign")
    with _writing(store.folder):
        store.shards.mkdir(parents=True, exist_ok=True)
        lock = (store.folder / ".lock").open("a")
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"{store.folder}: another process is running this campaign; wait for it or choose another --out"
                ) from None
        _wait_for_workers(store.folder)
        _claim(store.folder / "plan.json", plan)
        for left in [*store.folder.glob(".*.tmp"), *store.shards.glob(".*.tmp")]:
            left.unlink(missing_ok=True)
        yield store


@contextmanager
def joined(folder: Path) -> Iterator[Store]:
    """The store as a worker sees it: the process that sent it here holds it."""
    store = Store(folder)
    with (folder / ".workers").open("a") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield store


def _wait_for_workers(folder: Path) -> None:
    """Raises ConfigError when workers of an earlier run are still at work after a while."""
    if fcntl is None:
        return
    until = time.monotonic() + WAIT
    with (folder / ".workers").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > until:
                    raise ConfigError(
                        f"{folder}: workers of this campaign are still running; wait for them, or end them"
                    ) from None
                time.sleep(0.1)


def _claim(path: Path, plan: Plan) -> None:
    """Write the plan, or see that the one that is there is the same."""
    if not path.exists():
        save(plan, path)
        return
    held = load(Plan, path)
    if held.sha256 != plan.sha256:
        differ = [name for name in Plan.model_fields if getattr(held, name) != getattr(plan, name)]
        raise ConfigError(
            f"{path.parent}: holds another campaign (plan {held.sha256[:12]}, this one is {plan.sha256[:12]}; "
            f"they differ in {', '.join(differ)}); choose another --out"
        )


def encode(unit: Unit, shard: Shard) -> bytes:
    """The shard as Parquet; every setting that could move a byte is fixed."""
    rows = len(shard.index)
    flat = shard.adversarial.reshape(rows, -1)
    values = pa.array(flat[shard.found].reshape(-1), pa.float32())
    ends = np.concatenate([[0], np.cumsum(shard.found * flat.shape[1])]).astype(np.int32)
    missing = ~shard.found
    columns = [
        pa.array(shard.index, pa.int64()),
        pa.array(shard.label, pa.int64()),
        pa.array([unit.attack] * rows, pa.string()),
        pa.array(shard.attacked, pa.bool_()),
        pa.array(shard.found, pa.bool_()),
        pa.array(shard.silent, pa.bool_()),
        pa.array(shard.distance, pa.float64(), mask=missing),
        pa.array(shard.prediction, pa.int64(), mask=None if unit.attack == CLEAN else missing),
        pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, mask=pa.array(missing)),
    ]
    table = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(shard_metadata(unit, shard)))
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=max(rows, 1),
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        write_statistics=False,
    )
    return buffer.getvalue()
