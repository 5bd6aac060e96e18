"""The polar factor of a matrix by Newton-Schulz iteration: all singular values towards 1, nothing above 1.

Matrices come as (..., rows, columns); stacks are iterated as one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Six odd quintics a·x + b·x³ + c·x⁵, published over 1024. On [0, 1] their composition stays below 0.99934, so an update
# of Muon never exceeds the norm that the learning rate grants. You Jiacheng; arXiv 2507.13338, reference code.
SIX_STEPS = tuple(
    (a / 1024, b / 1024, c / 1024)
    for a, b, c in (
        (3955, -8306, 5008),
        (3735, -6681, 3463),
        (3799, -6499, 3211),
        (4019, -6385, 2906),
        (2677, -3029, 1162),
        (2172, -1833, 682),
    )
)
CUBIC_STEPS = 30
CONVERGED = 1e-6


def _wide(matrix: Tensor) -> tuple[Tensor, bool]:
    """The matrix with at most as many rows as columns, and whether it was transposed for that."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    return (matrix.mT, True) if tall else (matrix, False)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly the polar factor: singular values of 1 % of the largest or more end in [0.9956, 0.9993], in six steps.

    Runs in the dtype of the input, float32 or better; bfloat16 overshoots 1. A zero matrix stays zero.
    """
    x, tall = _wide(matrix)
    size: Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / size.clamp_min(torch.finfo(x.dtype).tiny)
    for a, b, c in SIX_STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def polar(matrix: Tensor) -> Tensor:
    """The polar factor, to about 1e-6: every singular value 1 and none above, for a matrix of full rank whose norm is below sqrt(3).

    x -> 1.5x - 0.5x³ maps [0, sqrt(3)] into [0, 1] and converges quadratically to 1 there. A larger matrix is first
    divided by a bound of its norm, sqrt of the largest absolute row sum of its Gram matrix.
    """
    x, tall = _wide(matrix)
    gram = x @ x.mT
    rows = gram.abs().sum(-1).amax(-1)[..., None, None].sqrt()
    shrink = torch.where(rows > 1.7, rows, 1.0)
    x, gram = x / shrink, gram / shrink**2
    identity = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    for _ in range(CUBIC_STEPS):
        x = 1.5 * x - 0.5 * (gram @ x)
        gram = x @ x.mT
        if float((gram - identity).abs().max()) < CONVERGED:
            break
    return x.mT if tall else x
