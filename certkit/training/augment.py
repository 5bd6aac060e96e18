"""Random changes of training images that keep their label."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def shifted(images_BCSS: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Each image moved by up to ``pixels`` in both directions, bilinear, zeros coming in at the border."""
    if pixels == 0:
        return images_BCSS
    size = images_BCSS.shape[-1]
    move = torch.rand(len(images_BCSS), 2, generator=generator).to(images_BCSS) * 2 - 1
    theta = torch.zeros(len(images_BCSS), 2, 3).to(images_BCSS)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = move * pixels * 2 / size
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    return F.grid_sample(images_BCSS, grid, align_corners=False)
