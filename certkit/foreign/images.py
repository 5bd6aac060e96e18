"""What an image processor does between an image in [0, 1] and the network, as part of the certified module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certkit.checkpoint import settings
from certkit.errors import CheckpointError, one_line

PREPROCESSOR = "preprocessor_config.json"
BYTE = 255.0
# Switches that change pixels or their order; resizing and cropping come before an image is one of the data set.
OTHER_STEPS = ("do_flip_channel_order", "do_pad", "do_thumbnail", "do_align_long_axis", "do_grayscale", "offset")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """x -> (factor x - mean) / std per channel, of an image in [0, 1]."""

    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalised(nn.Module):
    """A network that reads images in [0, 1] and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.network, self.factor = network, normalisation.factor
        self.register_buffer("mean", torch.tensor(normalisation.mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.factor != 1.0:
            x = x * self.factor
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def normalisation_of(folder: Path) -> Normalisation:
    """What ``preprocessor_config.json`` does to bytes, told of bytes / 255. Raises CheckpointError for what it leaves open."""
    found = settings(folder / PREPROCESSOR)
    if found is None:
        raise CheckpointError(
            f"{one_line(folder.name, 120)}: no {PREPROCESSOR} says how images are normalised, so that eps has no unit; "
            "add it, or give --normalisation none for a network that reads images in [0, 1] as they are"
        )
    if steps := [name for name in OTHER_STEPS if found.get(name)]:
        raise CheckpointError(f"{PREPROCESSOR}: {steps[0]!r} is not covered; covered are do_rescale and do_normalize")
    factor = 1.0 if found.get("do_rescale", True) else BYTE
    if found.get("do_rescale", True):
        # 255 * fl(1/255) is 1 in float64
        factor = BYTE * _number(found.get("rescale_factor", 1 / BYTE), "rescale_factor")
    if not found.get("do_normalize", True):
        return Normalisation(factor, (0.0,), (1.0,))
    mean, std = (_channels(found, name) for name in ("image_mean", "image_std"))
    if len(mean) != len(std) or min(std) <= 0:
        raise CheckpointError(f"{PREPROCESSOR}: image_std must be positive, one number per number of image_mean")
    return Normalisation(factor, mean, std)


def _channels(found: Mapping[str, Any], name: str) -> tuple[float, ...]:
    given = found.get(name)
    values = given if isinstance(given, list) else [given]
    if not values:
        raise CheckpointError(f"{PREPROCESSOR}: {name} is empty; expected one number per channel")
    return tuple(_number(value, name) for value in values)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CheckpointError(f"{PREPROCESSOR}: {name} is {one_line(repr(value), 40)}; expected a number")
    return float(value)
