"""Metrics for TensorBoard, on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certkit.errors import ConfigError


@contextmanager
def board(folder: Path | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """A function that writes a line of metrics to ``folder``; None where no folder is given.

    Raises ConfigError when TensorBoard is not installed.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs the package tensorboard; pip install 'certkit[tensorboard]', or leave it out: "
            "metrics.jsonl holds the same numbers"
        ) from None
    writer = SummaryWriter(str(folder))

    def note(line: dict[str, Any]) -> None:
        for key, value in line.items():
            for name, number in (value if isinstance(value, dict) else {"": value}).items():
                if isinstance(number, int | float) and key != "step":
                    writer.add_scalar(f"{key}/{name}" if name else key, number, line["step"])

    try:
        yield note
    finally:
        writer.close()
