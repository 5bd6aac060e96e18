"""What a run leaves in its folder while it goes on: metrics line by line, and a state to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from certkit.config import Run
from certkit.errors import CertkitError, CheckpointError, ConfigError
from certkit.training import losses, state
from certkit.training.distributed import World
from certkit.training.faults import Diverged
from certkit.training.history import History
from certkit.training.stepper import Stepper
from certkit.training.tasks import Judged

METRICS = "metrics.jsonl"


class Keeper:
    """Writes metrics and states of one run to a folder, and finds them again. Only the first process writes."""

    def __init__(
        self,
        out: Path | None,
        run: Run,
        about: Mapping[str, str],
        model: nn.Module,
        stepper: Stepper,
        generator: torch.Generator,
        world: World,
    ) -> None:
        self.out, self.run, self.about, self.world = out, run, about, world
        self.model, self.stepper, self.generator = model, stepper, generator
        self.fresh = True

    def resumed(self) -> History:
        """The history of the state in the folder, everything put back as it was; a fresh start where there is none.

        Raises ConfigError for the state of another run, and when the processes do not find the same state.
        """
        history = History()
        if self.out is None or (saved := state.load(self.out / state.STATE, self.run, self.about)) is None:
            self.stepper.start_()
        else:
            state.restore(saved, self.model, self.stepper.optimizers, self.generator)
            notes = dict(saved.notes)
            held = notes.pop("held")
            history = History(**notes, held=None if held is None else Judged(**held))
            self.fresh = False
            if self.world.first:
                self._cut(history.written)
        if self.world.mean(float(history.step)) != history.step:
            raise ConfigError("the processes find different states; --out must be one folder that all of them see")
        self.world.same_(self.model.parameters())
        return history

    def save(self, history: History) -> None:
        """Append the metrics, then write the state, whole or not at all. Raises Diverged for weights that are not finite."""
        self.finite(history.step)
        history.saved = history.step
        lines = history.lines
        history.written, history.lines = history.written + len(lines), []
        if self.world.first and self.out is not None:
            notes = asdict(history)
            self._append(lines)
            state.save(
                self.out / state.STATE,
                self.run,
                self.about,
                self.model,
                self.stepper.optimizers,
                self.generator,
                notes,
            )

    def flush(self, history: History) -> None:
        """Append the metrics that no file holds yet."""
        if self.world.first and self.out is not None:
            self._append(history.lines)

    def finite(self, step: int) -> None:
        """Raises Diverged unless every weight is."""
        for name, weight in self.model.named_parameters():
            if not losses.finite(weight):
                raise Diverged(f"training: weight {name} is no longer finite at step {step}")

    def kept(self, history: History) -> str:
        """What a failed run leaves behind, in words."""
        held = self.out is not None and history.saved > 0
        return f"; the weights of step {history.saved} are kept in {state.LAST_GOOD}" if held else ""

    def _append(self, lines: list[dict[str, object]]) -> None:
        assert self.out is not None
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / METRICS).open("w" if self.fresh else "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise CertkitError(f"{self.out / METRICS}: could not be written ({error.strerror or error})") from None
        self.fresh = False

    def _cut(self, count: int) -> None:
        """Drop lines that were written after the state was: they will be made again."""
        assert self.out is not None
        path = self.out / METRICS
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) < count:
            raise CheckpointError(
                f"{METRICS}: holds {len(lines)} lines, the state beside it has {count}; "
                f"delete {state.STATE} to train from the start"
            )
        if len(lines) > count:
            os.truncate(path, sum(map(len, lines[:count])))
