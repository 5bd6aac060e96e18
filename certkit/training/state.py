"""The state from which an interrupted run goes on to the same bytes: one safetensors file, there whole or not at all.

It holds the weights, what the optimisers remember, both random generators, and as JSON in the header the step, the
metrics so far and the digest of the run it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from certkit.config import Run
from certkit.errors import CheckpointError, ConfigError, one_line
from certkit.files import digest, write_atomic

STATE = "state.safetensors"
LAST_GOOD = "last-good"
FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A state as it was read: tensors by name, and the notes of the loop."""

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]


def fingerprint(run: Run) -> str:
    """The digest of everything that decides the bytes of a run; how often it saves does not."""
    value = run.model_dump(mode="json", exclude={"description": True, "training": {"save"}})
    return digest(json.dumps(value, sort_keys=True).encode())


def save(
    path: Path,
    run: Run,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    generator: torch.Generator,
    notes: Mapping[str, Any],
) -> None:
    """Write the state atomically; what was there is replaced only once the new one is on the disk."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    numbers: dict[str, float | int] = {}
    for i, optimizer in enumerate(optimizers):
        for key, kept in optimizer.state_dict()["state"].items():
            for name, value in kept.items():
                where = f"optimizer.{i}.{key}.{name}"
                if isinstance(value, Tensor):
                    tensors[where] = value
                else:
                    numbers[where] = value
    tensors["random.batches"] = generator.get_state()
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    header = {"format": FORMAT, "run": fingerprint(run), "numbers": numbers, "notes": dict(notes)}
    flat = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    write_atomic(path, safetensors.torch.save(flat, metadata={"certkit.state": json.dumps(header, allow_nan=False)}))


def load(path: Path, run: Run) -> Saved | None:
    """The state of this run, or None where there is none.

    Raises ConfigError for the state of another run, CheckpointError for a file that is none.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["certkit.state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        known = header["format"] == FORMAT and isinstance(header["notes"], dict)
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything
        raise CheckpointError(
            f"{path.name}: not a state of certkit train ({one_line(error, 120)}); delete it to train from the start"
        ) from None
    if not known or header["run"] != fingerprint(run):
        raise ConfigError(
            f"{one_line(path.parent)}: holds the state of another run; choose another --out, "
            f"or delete {path.name} there to train from the start; nothing was changed"
        )
    return Saved({**tensors, **header["numbers"]}, header["notes"])


def restore(saved: Saved, model: nn.Module, optimizers: Sequence[Optimizer], generator: torch.Generator) -> None:
    """Put everything back as it was when the state was saved."""
    prefix = "model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in saved.tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, position, name = key.split(".", 3)
                state.setdefault(int(position), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(saved.tensors["random.batches"])
    torch.set_rng_state(saved.tensors["random.torch"])
    if torch.cuda.is_available() and "random.cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["random.cuda"])
