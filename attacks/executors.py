"""Where the blocks of a campaign run: in this process, in a pool of others, as jobs of a cluster, or under Ray.

A block is the unit of sharing. Its result depends on the plan alone, so neither the number of workers nor the order in
which they finish can change a byte; each shard is written by whoever computed it. Only one process may run a campaign
at a time: it holds the store's lock, and its workers hold a second one, so that what a killed campaign left running is
waited for.
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from certkit.errors import ConfigError, Incomplete, one_line, suggestion

from .work import Parcel, Worker

Executor = Literal["process", "submitit", "ray"]
EXTRAS = {"submitit": "pip install submitit", "ray": "pip install 'ray>=2.54'"}
WATCHED_EVERY = 0.5
JOB_MINUTES = 24 * 60  # what is not finished by then, the same command resumes

Done = Callable[[int], None]


def known(name: str) -> Executor:
    """The executor of this name, if what it needs is installed. Raises ConfigError with the remedy."""
    if name not in get_args(Executor):
        options = ", ".join(get_args(Executor))
        raise ConfigError(
            f"executor {one_line(name)!r} is unknown; expected one of {options}{suggestion(name, get_args(Executor))}"
        )
    if name in EXTRAS and importlib.util.find_spec(name) is None:
        raise ConfigError(f"executor {name!r} needs the package {name}, which is not installed: {EXTRAS[name]}")
    return name  # type: ignore[return-value]


def run(executor: Executor, parcel: Parcel, numbers: Sequence[int], workers: int, done: Done) -> None:
    """Run these blocks with so many workers; ``done(units)`` after each. Raises Incomplete when a worker dies."""
    {"process": _pool, "submitit": _submitit, "ray": _ray}[executor](parcel, numbers, workers, done)


def device_of(plan: str, worker: int) -> str:
    """The device of a worker: one GPU each, in turn, when the plan names cuda without a number."""
    if plan != "cuda" or torch.cuda.device_count() < 2:
        return plan
    return f"cuda:{worker % torch.cuda.device_count()}"


_here: list[Worker] = []  # the worker of this process, once it has become one


def _become(parcel: Parcel, parent: int, path: list[str], counter: Any) -> None:
    sys.path[:] = path
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    worker = Worker(parcel, device_of(parcel.plan.device, number))
    atexit.register(worker.open.close)  # later the interpreter is too far gone to give anything back
    _here.append(worker)


def _modules() -> list[str]:
    """Where this process looks for modules, as another process must name it: the model's own may stand in any of them.

    The folder where this one was started is among them only if it is here, too.
    """
    return [one or os.getcwd() for one in sys.path]


def _watch(parent: int) -> None:
    """A worker whose parent was killed ends: its campaign may be resumed by another."""
    while os.getppid() == parent:
        time.sleep(WATCHED_EVERY)
    os._exit(1)


def _block(number: int) -> int:
    return _here[0].run(number)


def _pool(parcel: Parcel, numbers: Sequence[int], workers: int, done: Done) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (parcel, os.getpid(), _modules(), context.Value("i", 0))
    count = min(workers, len(numbers))
    pool = ProcessPoolExecutor(count, context, initializer=_become, initargs=arguments)
    try:
        futures: list[Future[int]] = [pool.submit(_block, number) for number in numbers]
        for future in as_completed(futures):
            done(future.result())
    except BrokenProcessPool:
        raise Incomplete(
            "a worker of this campaign died, as when the system is out of memory; what was finished is kept: run the "
            "same command again, with fewer workers if need be"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _job(parcel: Parcel, numbers: list[int], device: str, path: list[str]) -> int:
    sys.path[:] = path
    worker = Worker(parcel, device)
    with worker.open:
        return sum(worker.run(number) for number in numbers)


def _submitit(parcel: Parcel, numbers: Sequence[int], workers: int, done: Done) -> None:
    """As many jobs as workers: under SLURM where it is, else as local processes. The folder of jobs is the user's alone,
    since what lies there is unpickled."""
    import submitit

    folder = Path(parcel.folder) / "jobs"
    folder.mkdir(mode=0o700, exist_ok=True)
    executor = submitit.AutoExecutor(folder=folder)
    executor.update_parameters(name="certkit", cpus_per_task=parcel.plan.threads, timeout_min=JOB_MINUTES)
    share = [list(numbers[start::workers]) for start in range(min(workers, len(numbers)))]
    path = _modules()
    jobs = [executor.submit(_job, parcel, blocks, parcel.plan.device, path) for blocks in share]
    for job in jobs:
        try:
            done(job.result())
        except submitit.core.utils.UncompletedJobError as error:
            for other in jobs:
                other.cancel()
            raise Incomplete(
                f"a job of this campaign did not finish ({one_line(error, 120)}); what was finished is kept: run the "
                f"same command again; its output is in {folder}"
            ) from None


def _ray(parcel: Parcel, numbers: Sequence[int], workers: int, done: Done) -> None:
    """Under the cluster that RAY_ADDRESS names, else a local one.

    Its ports run whatever they are sent: use it in a closed network.
    """
    import ray

    began = not ray.is_initialized()
    if began:
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        ray.init(logging_level="ERROR", **local)
    try:
        sent, path = ray.put(parcel), _modules()
        gpus = 1 if parcel.plan.device.startswith("cuda") else 0
        task = ray.remote(num_cpus=parcel.plan.threads, num_gpus=gpus)(_job)
        share = [list(numbers[start::workers]) for start in range(min(workers, len(numbers)))]
        for one in [task.remote(sent, blocks, parcel.plan.device, path) for blocks in share]:
            done(ray.get(one))
    except ray.exceptions.RayError as error:
        raise Incomplete(
            f"a task of this campaign did not finish ({one_line(error, 120)}); what was finished is kept: run the same "
            "command again"
        ) from None
    finally:
        if began:
            ray.shutdown()
