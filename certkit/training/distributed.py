"""Several processes that train one network: each takes its share of every batch and of the optimiser's work.

Started by ``torchrun``, which sets RANK and WORLD_SIZE. Every process draws the same random numbers and holds the same
weights; gradients are averaged, and only rank 0 writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from certkit.errors import ConfigError, one_line


@dataclass(frozen=True, slots=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of ``count`` samples. Raises ConfigError unless all shares are equal: a mean of means."""
        if count % self.size:
            raise ConfigError(
                f"training.batch {count} cannot be shared among {self.size} processes; expected a multiple"
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, in one message per dtype."""
        if self.size == 1:
            return
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for same in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            torch.distributed.all_reduce(flat)
            flat /= self.size
            for tensor, mean in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def mean(self, number: float) -> float:
        """The mean of a number over all processes."""
        if self.size == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(value)
        return value.item() / self.size

    def same_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of the first process."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.data, src=0)

    def mapped(self, function: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
        """``function`` of a stack of matrices, each process computing its share of them.

        The function must treat the matrices of a stack one by one and keep their shape; then all processes end with the
        same result to the bit, as each matrix was computed once.
        """
        if self.size == 1 or len(stack) < self.size:
            return function(stack)
        each = -(-len(stack) // self.size)
        mine = stack[self.rank * each : (self.rank + 1) * each]
        found = function(mine) if len(mine) else mine
        padded = torch.zeros(each, *stack.shape[1:], dtype=stack.dtype, device=stack.device)
        padded[: len(found)] = found
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, padded)
        return torch.cat(gathered)[: len(stack)]


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun started this process in, left again at the end; a world of one without torchrun.

    Raises ConfigError for variables that torchrun does not set so.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield World()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    numbers = [size, os.environ.get("RANK", "0"), os.environ.get("MASTER_PORT", "1")]
    if missing or not all(number.isdecimal() for number in numbers) or not 0 <= int(numbers[1]) < int(size):
        raise ConfigError(
            f"WORLD_SIZE is {one_line(size, 40)!r} in the environment, but this process was not started by torchrun; unset it"
        )
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        torch.distributed.destroy_process_group()
