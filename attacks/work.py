"""One block of a campaign, wherever it runs, and what another process needs to run it."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certkit.campaign import units
from certkit.errors import ConfigError, one_line
from certkit.records import Plan
from certkit.shards import Images, Shard, Unit, Whole

from .engine import Block, Engine
from .model import Classifier, prepared
from .store import Store, joined

Report = Callable[[Unit], None]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The plan's samples as arrays, checked, in its order."""

    images: Images
    labels: Whole
    index: Whole

    def block(self, unit: Unit) -> Block:
        """The samples of the unit's block."""
        rows = slice(unit.start, unit.stop)
        return Block(self.images[rows], self.labels[rows], self.index[rows])


def run_block(engine: Engine, store: Store, block: Sequence[Unit], samples: Samples, report: Report) -> list[Shard]:
    """Every unit of one block, in the order in which they need one another; those that are there are only read."""
    here, found = samples.block(block[0]), list[Shard]()
    for unit in block:
        shard = store.get(unit)
        if shard is None:
            began, queries = time.perf_counter(), engine.classifier.queries
            shard = engine.run(unit, here, found)
            store.put(unit, shard)
            spent = {
                "seconds": round(time.perf_counter() - began, 6),
                "queries": engine.classifier.queries - queries,
                "stopped": shard.stopped,
                "time": now(),
            }
            entry = {"event": "unit", "unit": unit.sha256, "attack": unit.attack, "start": unit.start}
            store.log({**entry, **spent})
            report(unit)
        found.append(shard)
    return found


def now() -> str:
    """The time as logs state it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A campaign as sent to another process: it joins the store that the sender holds, and writes shards into it."""

    folder: str
    plan: Plan
    samples: Samples
    networks: bytes

    @classmethod
    def of(cls, store: Store, plan: Plan, samples: Samples, model: nn.Module, surrogate: nn.Module | None) -> Parcel:
        """Raises ConfigError for a model that cannot be sent."""
        try:
            networks = pickle.dumps((model, surrogate))
        except Exception as error:  # noqa: BLE001 - pickle and the model's own code may raise anything
            raise ConfigError(
                f"the model cannot be sent to another process ({one_line(error, 160)}); "
                "define its class in a module, or run with one worker in this process"
            ) from None
        return cls(str(store.folder.absolute()), plan, samples, networks)


class Worker:
    """A process that runs blocks of one campaign; the networks stay on its device until it ends."""

    def __init__(self, parcel: Parcel, device: str) -> None:
        self.parcel = parcel
        self.blocks = list(units(parcel.plan))
        self.open = ExitStack()
        model, surrogate = pickle.loads(parcel.networks)
        chosen, threads = torch.device(device), parcel.plan.threads
        classifier = self.open.enter_context(prepared(model, chosen, threads))
        other: Classifier | None = None
        if surrogate is not None:
            other = self.open.enter_context(prepared(surrogate, chosen, threads))
        self.engine = Engine(classifier, parcel.plan, other)
        self.store = self.open.enter_context(joined(Path(parcel.folder)))

    def run(self, number: int) -> int:
        """Run one block; how many of its units were run rather than found."""
        ran: list[Any] = []
        run_block(self.engine, self.store, self.blocks[number], self.parcel.samples, ran.append)
        return len(ran)
