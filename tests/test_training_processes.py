"""Training in processes of its own: killed at any moment it goes on to the same bytes, and several share one run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import certkit
from certkit.config import Run, override, preset
from certkit.errors import ConfigError
from certkit.training.distributed import World

TRAIN = [sys.executable, "-P", "-m", "certkit.cli", "train", "--preset", "digits-vit", "--threads", "1", "--json"]


def command(out: Path, *changes: str) -> list[str]:
    return [*TRAIN, "--out", str(out), *(word for change in changes for word in ("--set", change))]


def alone() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    changes = ("training.steps=120", "training.save=7", "training.refresh=25")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, *changes), check=True, capture_output=True, env=alone())
    kills, kept = 0, None
    for _ in range(3):
        process = subprocess.Popen(command(killed, *changes), stdout=subprocess.DEVNULL, env=alone())
        state, before = killed / "state.safetensors", kept
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            kept = state.read_bytes() if state.exists() else None
            if kept is not None and kept != before:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills == 3
    assert not (killed / "model.safetensors").exists()
    subprocess.run(command(killed, *changes), check=True, capture_output=True, env=alone())
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def run(precision: str, steps: int) -> list[str]:
    return [
        f"training.precision={precision}", f"training.steps={steps}", "training.refresh=1", "training.batch=32",
        "training.loss=cross-entropy", "model.blocks=2",
    ]  # fmt: skip


def losses_of(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def together(out: Path, changes: list[str], size: int = 2) -> list[float]:
    """The losses of a run that ``size`` processes share, started as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**alone(), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command(out, *changes),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    assert json.loads(said[0][0])["processes"] == size
    assert said[1][0] == ""
    return losses_of(out)


@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"), [("float64", 50, 1e-9), ("float32", 5, 1e-5)], ids=["float64", "float32"]
)
def test_two_processes_have_the_loss_curve_of_one(precision: str, steps: int, tolerance: float, tmp_path: Path) -> None:
    """Sums over a batch are split in two; Newton-Schulz amplifies their rounding, so float32 drifts apart later."""
    base: Run = override(preset("digits-vit"), run(precision, steps))
    certkit.train(base, out=tmp_path / "one", threads=1)
    one, two = losses_of(tmp_path / "one"), together(tmp_path / "two", run(precision, steps))
    assert len(one) == len(two) == steps
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) <= tolerance


def test_a_batch_that_cannot_be_shared_equally_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        World(0, 3).part(128)
    assert str(caught.value) == "training.batch 128 cannot be shared among 3 processes; expected a multiple"
    assert [World(rank, 4).part(8) for rank in (0, 3)] == [slice(0, 2), slice(6, 8)]
