"""Every random number of a campaign. Shape suffixes: N repeats, S the shape of one sample.

The library draws from one global stream, so that what a sample gets depends on who was attacked before it. Here each
(campaign seed, sample, attack, restart) has a generator of its own: neither the order of the work, nor its division
among processes, nor a restart after a crash changes a start. The radius is left out on purpose: it scales the start.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from certkit.records import AttackNorm


def seed_of(*parts: int | str) -> int:
    """63 bits that depend on every part and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, whose stream is the same whatever the device."""
    return torch.Generator().manual_seed(seed_of(*parts))


def start(norm: AttackNorm, shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    """A point drawn uniformly from the unit ball of the norm; each token of its own under ``token``.

    l2: the first n of n + 2 coordinates of a uniform point on the sphere. Voelker et al. 2017, "Efficiently sampling
    vectors and coordinates from the n-sphere and n-ball". l1: exponential variables over their sum and one more, with
    random signs. The ball of l0 has no volume: its point is 0.
    """
    size = int(torch.Size(shape).numel())
    if norm == "l0":
        return torch.zeros(shape)
    if norm == "linf":
        cube = 2 * torch.rand(size, generator=source, dtype=torch.float64) - 1
        return cube.float().reshape(shape)
    if norm == "l1":
        share = -torch.rand(size + 1, generator=source, dtype=torch.float64).clamp_min(1e-300).log()
        sign = 2.0 * torch.randint(0, 2, (size,), generator=source) - 1
        return (sign * share[:size] / share.sum()).float().reshape(shape)
    width = shape[-1] if norm == "token" else size
    point = torch.randn(size // max(width, 1), width + 2, generator=source, dtype=torch.float64)
    scaled: Tensor = (point / torch.linalg.vector_norm(point, dim=1, keepdim=True))[:, :width]
    return scaled.float().reshape(shape)


def directions(norm: AttackNorm, shape: tuple[int, ...], repeats: int, source: torch.Generator) -> Tensor:
    """``repeats`` directions: isotropic for l2 and token, uniform in the cube and scaled to its surface for linf.

    Foolbox scales linf noise by its largest entry, not by its largest absolute entry; with the sign chosen so that both
    are the same, its noise has the size it should have. l1 and l0 noise are the campaign's own: random points of the
    ball, and random entries.
    """
    if norm == "l1":
        return torch.stack([start(norm, shape, source) for _ in range(repeats)])
    noise_NS = torch.randn((repeats, *shape), generator=source)
    if norm != "linf":
        return noise_NS
    flat = 2 * torch.rand((repeats, int(torch.Size(shape).numel())), generator=source) - 1
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))
    return (flat / torch.where(largest == 0, torch.ones_like(largest), largest)).reshape(noise_NS.shape)


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """The global streams of torch, numpy and Python seeded for the block, and put back afterwards: some attacks of the
    library draw inside their loop."""
    seed = seed_of(*parts)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
