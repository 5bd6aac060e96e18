"""The norm that each weight lives in: declared once by the layer that owns it, read by optimiser and constraint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, TypeVar

import numpy as np
from torch import Tensor, nn

from certkit.bounds.spectral import euclidean, spectral_norm, up


@dataclass(frozen=True, slots=True)
class Spectral:
    """A matrix, or a stack of them (..., out, in), as a map of l2: measured by its largest singular value sigma.

    ``cap`` bounds sigma in units of ``l2``, and in units of ``rms`` sqrt(in/out) sigma, its norm from RMS to RMS.
    """

    cap: float = 1.0
    units: Literal["l2", "rms"] = "l2"

    def unit(self, shape: Sequence[int]) -> float:
        """The sigma of a matrix of this shape whose declared norm is 1."""
        return 1.0 if self.units == "l2" else math.sqrt(shape[-2] / shape[-1])

    def limit(self, shape: Sequence[int]) -> float:
        """The largest sigma that the cap allows a matrix of this shape."""
        return self.cap * self.unit(shape)


@dataclass(frozen=True, slots=True)
class Rows:
    """A table (..., rows, width) that is looked up, such as an embedding: no row's RMS exceeds ``cap``.

    That is the norm from l1 to RMS: what a one-hot vector, or a mixture of them, can become.
    """

    cap: float = 1.0

    def unit(self, shape: Sequence[int]) -> float:
        """The l2 norm of a row of this width whose RMS is 1."""
        return math.sqrt(shape[-1])

    def limit(self, shape: Sequence[int]) -> float:
        """The largest l2 norm that the cap allows a row."""
        return self.cap * self.unit(shape)


@dataclass(frozen=True, slots=True)
class Entries:
    """A vector or table that stretches nothing, such as a bias or a constant score: its entries move freely.

    They move at ``rate`` times the learning rate of entries.
    """

    rate: float = 1.0


Geometry: TypeAlias = Spectral | Rows | Entries
Capped = TypeVar("Capped", bound="Spectral | Rows")


def scaled(geometry: Capped, factor: float) -> Capped:
    """The same geometry with ``factor`` times its cap: how the one cap of a run's settings reaches every weight."""
    return replace(geometry, cap=geometry.cap * factor)


def norm_over_cap(weight: Tensor, geometry: Geometry) -> float:
    """The weight's norm as a share of its cap, as a proved upper bound: the largest of a stack, or of a table's rows.

    0 for entries, which have no cap.
    """
    stack = weight.detach().cpu().double().reshape(-1, *weight.shape[-2:]).numpy()
    if isinstance(geometry, Entries) or not stack.size:
        return 0.0
    if isinstance(geometry, Rows):
        norm = float(np.max(euclidean(stack.reshape(-1, stack.shape[-1]), axis=1)))
    else:
        norm = max(spectral_norm(matrix) for matrix in stack)
    return up(norm / math.nextafter(geometry.limit(weight.shape) * (1 - 1e-15), 0.0))  # the limit's own rounding


class Declared(nn.Module):
    """A layer that declares a geometry for each of its own weights; an instance may declare another than its class."""

    geometry: ClassVar[Mapping[str, Geometry]] = {}


def weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Geometry]]:
    """Every trainable weight of the network with its declared geometry. Raises ValueError for one that has none."""
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            declared = part.geometry if isinstance(part, Declared) else {}
            if name not in declared:
                raise ValueError(f"{full}: no geometry is declared by {type(part).__name__}; add one to its `geometry`")
            yield full, parameter, declared[name]
