"""Every random number of a campaign. Shape suffixes: N repeats, S the shape of one sample.

The library draws from one global stream, so that what a sample gets depends on who was attacked before it. Here each
(campaign seed, sample, attack, restart) has a generator of its own: neither the order of the work, nor its division
among processes, nor a restart after a crash changes a start. The radius is left out on purpose: it scales the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from certkit.records import Norm


def seed_of(*parts: int | str) -> int:
    """63 bits that depend on every part and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, whose stream is the same whatever the device."""
    return torch.Generator().manual_seed(seed_of(*parts))


def start(norm: Norm, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """A point drawn uniformly from the unit ball of the norm.

    l2: the first n of n + 2 coordinates of a uniform point on the sphere. Voelker et al. 2017, "Efficiently sampling
    vectors and coordinates from the n-sphere and n-ball".
    """
    size = int(torch.Size(shape).numel())
    if norm == "linf":
        cube = 2 * torch.rand(size, generator=source, dtype=torch.float64) - 1
        return cube.float().reshape(shape)
    point = torch.randn(size + 2, generator=source, dtype=torch.float64)
    scaled: Tensor = (point / torch.linalg.vector_norm(point))[:size]
    return scaled.float().reshape(shape)


def directions(norm: Norm, shape: tuple[int, ...], repeats: int, source: torch.Generator) -> Tensor:
    """``repeats`` directions: isotropic for l2, uniform in the cube and scaled to its surface for linf.

    Foolbox scales linf noise by its largest entry, not by its largest absolute entry; with the sign chosen so that both
    are the same, its noise has the size it should have.
    """
    noise_NS = torch.randn((repeats, *shape), generator=source)
    if norm == "l2":
        return noise_NS
    flat = 2 * torch.rand((repeats, int(torch.Size(shape).numel())), generator=source) - 1
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))
    return (flat / torch.where(largest == 0, torch.ones_like(largest), largest)).reshape(noise_NS.shape)


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Torch's global streams seeded for the block, and put back afterwards: some attacks draw inside their loop."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(*parts))
        yield
