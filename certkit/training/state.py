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

from certkit import __version__, header
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
    """The digest of a run's settings and of the versions that compute it; how often it saves is left out."""
    value = run.model_dump(mode="json", exclude={"description": True, "training": {"save"}})
    return digest(json.dumps([value, __version__, torch.__version__], sort_keys=True).encode())


def save(
    path: Path,
    run: Run,
    about: Mapping[str, str],
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
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    held = {"format": FORMAT, "run": fingerprint(run), "about": dict(about), "numbers": numbers, "notes": dict(notes)}
    flat = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    write_atomic(path, safetensors.torch.save(flat, metadata={"certkit.state": json.dumps(held, allow_nan=False)}))


def load(path: Path, run: Run, about: Mapping[str, str]) -> Saved | None:
    """The state of this run, or None where there is none.

    Raises ConfigError for the state of another run or of another machine's kind, CheckpointError for a file that is none.
    """
    if not path.exists():
        return None
    try:
        raw = path.read_bytes()
        header.check(raw, len(raw), path.name)
        with safetensors.safe_open(path, framework="pt") as file:
            held = json.loads((file.metadata() or {})["certkit.state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
        known = held["format"] == FORMAT and all(isinstance(held[key], dict) for key in ("notes", "numbers", "about"))
        told, digest_of_run = {str(k): str(v) for k, v in held["about"].items()}, held["run"]
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything
        raise _damaged(path.name, error) from None
    differ = sorted(key for key in {*told, *about} if told.get(key) != about.get(key))
    if not known or digest_of_run != fingerprint(run) or differ:
        what = f" (they differ in {', '.join(differ)})" if differ and digest_of_run == fingerprint(run) else ""
        raise ConfigError(
            f"{one_line(path.parent)}: holds the state of another run{what}; choose another --out, "
            f"or delete {path.name} there to train from the start; nothing was changed"
        )
    return Saved({**tensors, **held["numbers"]}, held["notes"])


def restore(saved: Saved, model: nn.Module, optimizers: Sequence[Optimizer], generator: torch.Generator) -> None:
    """Put everything back as it was when the state was saved. Raises CheckpointError for a state that lacks parts."""
    prefix = "model."
    device = next(model.parameters()).device
    try:
        model.load_state_dict({k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)})
        for i, optimizer in enumerate(optimizers):
            parts: dict[int, dict[str, Any]] = {}
            for key, value in saved.tensors.items():
                if key.startswith(f"optimizer.{i}."):
                    _, _, position, name = key.split(".", 3)
                    parts.setdefault(int(position), {})[name] = value
            groups = optimizer.state_dict()["param_groups"]
            if set(parts) != {index for group in groups for index in group["params"]}:
                raise ValueError("an optimiser's memory is missing")
            optimizer.load_state_dict({"state": parts, "param_groups": groups})
        generator.set_state(saved.tensors["random.batches"])
        torch.set_rng_state(saved.tensors["random.torch"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(saved.tensors["random.cuda"], device)
    except Exception as error:  # noqa: BLE001 - a damaged file raises anything
        raise _damaged(STATE, error) from None


def _damaged(name: str, error: Exception) -> CheckpointError:
    reason = one_line(str(error).split(chr(10))[0], 120)
    return CheckpointError(f"{name}: not a state of certkit train ({reason}); delete it to train from the start")
