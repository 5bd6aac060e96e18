"""What a run was computed with, and the threads it is pinned to."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version

from certkit.errors import ConfigError, one_line
from certkit.records import Environment, Provenance

THREADS = 1  # unless asked otherwise: the same sums on every machine, and the fastest for networks of this size


@contextmanager
def pinned(threads: int | None) -> Iterator[int]:
    """Pin torch and the BLAS libraries to a thread count, given back afterwards: it can change the last digit of a sum."""
    import torch
    from threadpoolctl import threadpool_limits

    count = THREADS if threads is None else threads
    if count < 1:
        raise ConfigError(f"threads must be 1 or more, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(limits=count):
            yield count
    finally:
        torch.set_num_threads(before)


def environment(device: str, threads: int) -> Environment:
    """Versions and machine kind; neither host nor user nor path."""
    from certkit import __version__

    return Environment(
        certkit=__version__,
        python=platform.python_version(),
        torch=version("torch"),
        numpy=version("numpy"),
        platform=f"{sys.platform} {platform.machine()}",
        device=device,
        threads=threads,
    )


def provenance(started: float) -> Provenance:
    """When this was made and how long it took since ``started`` (``time.monotonic()``)."""
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.monotonic() - started, 3)
    )


def usable(device: str) -> str:
    """The device, if torch can use it here. Raises ConfigError saying which ones it can."""
    import torch

    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    refusal = ConfigError(f"device {one_line(device)!r} cannot be used here; expected one of {', '.join(here)}")
    if device not in here and not (device == "cuda" and len(here) > 1):
        raise refusal  # torch knows devices that hold no values, such as meta
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise refusal from None
    return device
