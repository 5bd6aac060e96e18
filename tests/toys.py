"""Samples for campaigns that need no data set: any tensors, numbered from 100 so that no number is a row by chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from certkit.records import Data


@dataclass(frozen=True)
class Samples:
    images: Tensor
    labels: Tensor
    box: tuple[float, float] = (0.0, 1.0)
    classes: tuple[str, ...] = ("a", "b", "c")

    @property
    def indices(self) -> Tensor:
        return torch.arange(100, 100 + len(self.images))

    @property
    def record(self) -> Data:
        return Data(name="toy", split="test", count=len(self.images), sha256="0" * 64, classes=self.classes)
