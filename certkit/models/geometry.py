"""The norm that each weight lives in: declared once by the layer that owns it, read by optimiser and constraint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import nn


@dataclass(frozen=True, slots=True)
class Spectral:
    """A matrix, or a stack of matrices, as a map of l2: measured by its largest singular value, which ``cap`` bounds."""

    cap: float = 1.0


@dataclass(frozen=True, slots=True)
class Entries:
    """A vector or table that stretches nothing, such as a bias or a constant score: its entries move freely."""


Geometry: TypeAlias = Spectral | Entries


class Declared(nn.Module):
    """A layer that declares a geometry for each of its own weights."""

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
