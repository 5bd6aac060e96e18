"""Random changes of training images that keep their label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What is done to each image of a batch: a move in pixels, down and right, and whether it is mirrored."""

    move_B2: Tensor | None
    mirror_B: Tensor | None

    @classmethod
    def drawn(cls, count: int, pixels: float, mirror: bool, generator: torch.Generator) -> Change:
        """Moves of up to ``pixels`` in both directions and mirror images of every second, drawn for a whole batch."""
        move = (torch.rand(count, 2, generator=generator) * 2 - 1) * pixels if pixels else None
        return cls(move, torch.rand(count, generator=generator) < 0.5 if mirror else None)

    def of(self, images_BCSS: Tensor, part: slice) -> Tensor:
        """The images, which are ``part`` of the batch, changed; bilinear, zeros coming in at the border."""
        if self.mirror_B is not None:
            chosen = self.mirror_B[part].to(images_BCSS.device)[:, None, None, None]
            images_BCSS = torch.where(chosen, images_BCSS.flip(-1), images_BCSS)
        return images_BCSS if self.move_B2 is None else moved(images_BCSS, self.move_B2[part])


def moved(images_BCSS: Tensor, pixels_B2: Tensor) -> Tensor:
    """Each image moved by its own number of pixels, bilinear, zeros coming in at the border."""
    theta = torch.zeros(len(images_BCSS), 2, 3).to(images_BCSS)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = pixels_B2.to(images_BCSS) * 2 / images_BCSS.shape[-1]
    grid = F.affine_grid(theta, list(images_BCSS.shape), align_corners=False)
    return F.grid_sample(images_BCSS, grid, align_corners=False)
