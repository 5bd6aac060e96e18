"""The polar factor of a matrix by Newton-Schulz iteration: all singular values towards 1, nothing above 1.

Matrices come as (..., rows, columns) and stacks of them are iterated as one batch. Inside, x_KMN is a stack of K
matrices no taller than wide, and everything formed from its Gram matrix x x.T is a symmetric M x M polynomial of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Triples: TypeAlias = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Odd quintics a·x + b·x³ + c·x⁵, applied in this order, and an upper bound of their composition on [0, 1]."""

    triples: Triples
    maximum: float


def _over(triples: Triples, unit: float) -> Triples:
    return tuple((a / unit, b / unit, c / unit) for a, b, c in triples)


def _damped(triples: Triples, factor: float) -> Triples:
    return tuple((a / factor, b / factor**3, c / factor**5) for a, b, c in triples)


# Every maximum is proved in tests/test_muon.py by interval arithmetic, and leaves 4e-6 for the rounding of float32.
SETS: dict[str, Coefficients] = {
    # You Jiacheng; the reference code of arXiv 2507.13338. The only short list that never exceeds 1.
    "six-step": Coefficients(
        _over(
            (
                (3955, -8306, 5008),
                (3735, -6681, 3463),
                (3799, -6499, 3211),
                (4019, -6385, 2906),
                (2677, -3029, 1162),
                (2172, -1833, 682),
            ),
            1024,
        ),
        maximum=0.99934,
    ),
    # The NanoGPT script of the same reference code.
    "five-step": Coefficients(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        maximum=1.14503,
    ),
    # Keller Jordan 2024; also what torch.optim.Muon runs.
    "jordan": Coefficients(((3.4445, -4.7750, 2.0315),) * 5, maximum=1.20238),
    # Amsel et al. 2025, arXiv 2505.16932; all but the last are damped so that rounding cannot leave their intervals.
    "polar-express-8": Coefficients(
        (
            *_damped(
                (
                    (8.28721201814563, -23.595886519098837, 17.300387312530933),
                    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                    (3.9486908534822946, -2.908902115951949, 0.5518191394370137),
                    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
                    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
                ),
                1.01,
            ),
            (1.875, -1.25, 0.375),
        ),
        maximum=1.00001,
    ),
    # x -> 1.5x - 0.5x³ never exceeds 1 on [0, sqrt(3)], and is slow from below.
    "cubic": Coefficients(((1.5, -0.5, 0.0),) * 20, maximum=1.00001),
}
SIX_STEPS = SETS["six-step"].triples

PANEL = 192  # rows of a symmetric product computed at once: the fastest of 96 ... 384 at width 768 on one core
WIDE = 1.5  # columns over rows from where polynomials of the Gram matrix cost less than steps on the matrix
STAGE = 3  # triples per Gram matrix: what float32 loses in one is then 3e-5 of where it decides, at all six 6 %
LARGEST_REACH = math.sqrt(3)
SERIES = (1 / 2, 3 / 8, 5 / 16, 35 / 128, 63 / 256, 231 / 1024)  # of 1/sqrt(1 - e) in e, after its 1
SHORT_REACH = 1.5
CONVERGED = 1e-6
POLAR_STEPS = 18  # a cubic, then septics: 35/16 times a small singular value each, 1e-6 of the largest to 1


def symmetric(a: Tensor, b: Tensor, add: Tensor | None = None, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """beta·add + alpha·(a @ b) for stacks whose product is symmetric: panels on and above the diagonal, then mirrored.

    That is about 5/8 of the multiplications at four panels. Small or half-precision matrices are multiplied whole.
    """
    size = a.shape[-2]
    if size < 2 * PANEL or a.dtype == torch.bfloat16:
        whole = add if add is not None else a.new_zeros(())
        return torch.baddbmm(whole, a, b, beta=beta if add is not None else 0.0, alpha=alpha)
    out = a.new_empty((*a.shape[:-1], size))
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        panel = torch.bmm(a[:, start:stop], b[:, :, start:])
        if alpha != 1.0:
            panel.mul_(alpha)
        if add is not None:
            panel.add_(add[:, start:stop, start:], alpha=beta)
        out[:, start:stop, start:] = panel
        out[:, stop:, start:stop] = panel[:, :, stop - start :].mT
    return out


def as_wide(matrix: Tensor) -> tuple[Tensor, bool]:
    """The matrices as one stack, with at most as many rows as columns, and whether they were transposed for that."""
    x_KMN = matrix.reshape(-1, *matrix.shape[-2:])
    tall = matrix.shape[-2] > matrix.shape[-1]
    return (x_KMN.mT, True) if tall else (x_KMN, False)


def back(x_KMN: Tensor, tall: bool, shape: torch.Size) -> Tensor:
    """What ``as_wide`` was given, in its own shape."""
    return (x_KMN.mT if tall else x_KMN).reshape(shape)


def orthogonalised(matrix: Tensor, triples: Triples = SIX_STEPS) -> Tensor:
    """Nearly the polar factor: by six terms singular values from 1 % of the largest on end in [0.9956, 0.99934].

    None exceeds the maximum of the list in float32 or float64, the dtype of the input; bfloat16 overshoots by another
    percent. Matrices far wider than tall go through ``quintics``. Zero stays zero, and entries may be of any size.
    """
    x, tall = as_wide(matrix)
    if not x.numel():
        return matrix.clone()
    x = _normalised(x)
    count = STAGE if x.shape[-1] > WIDE * x.shape[-2] and x.dtype != torch.bfloat16 else 1
    for start in range(0, len(triples), count):
        x = quintics(x, triples[start : start + count])
    return back(x, tall, matrix.shape)


def _normalised(x: Tensor) -> Tensor:
    """Divided by 1 + 1e-6 times its Frobenius norm, so that none of it is above 1 by the rounding of float32.

    An exact power of two comes first, as squares of entries such as 1e-30 would underflow. Squares are summed in float64:
    torch's own norm in float32 is up to 10 % too small for a table of 50257 x 768, where short rows follow long ones.
    """
    wide, largest = (torch.float64, 1022) if x.dtype == torch.float64 else (torch.float32, 126)
    _, exponent = torch.frexp(x.abs().amax((-2, -1), keepdim=True).to(wide))
    x = x * torch.exp2(-exponent.clamp(-largest, largest).to(wide)).to(x.dtype)
    size = x.to(wide).square().sum((-2, -1), keepdim=True, dtype=torch.float64).sqrt() * (1 + 1e-6)
    return x / size.to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny)


def quintics(x: Tensor, triples: Sequence[tuple[float, float, float]]) -> Tensor:
    """Several quintics at one multiplication of x: x p(G) with the product p of their polynomials of G = x x.T.

    The product is kept as whole·I + rest. Every factor commutes with the others and is symmetric, so that the next Gram
    matrix is p G p. Rounding in G is relative to its largest eigenvalue, hence the limit to few triples.
    """
    gram = symmetric(x, x.mT)
    whole, rest = 1.0, None
    for index, (a, b, c) in enumerate(triples):
        step = symmetric(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        if index < len(triples) - 1:
            half = symmetric(step, gram, gram, beta=a)
            gram = symmetric(step, half, half, beta=a)
        rest = step if rest is None else symmetric(rest, step, step, beta=whole).add_(rest, alpha=a)
        whole *= a
    assert rest is not None
    return torch.baddbmm(x, rest, x, beta=whole)


def polar(matrix: Tensor, reach: float | None = None) -> Tensor:
    """The polar factor, to about 1e-6: every singular value 1 and none above, for a matrix of full rank.

    With r(e) the series of 1/sqrt(1 - e) up to an odd power of e = 1 - x², the slope of x r(e) is a positive multiple
    of that power: it rises to 1 at x = 1 and falls from there, so that no singular value that it maps ends above 1. Its
    first is Newton and Schulz's 1.5x - 0.5x³. ``reach`` < 1.5 is the caller's word that all singular values lie in
    [2 - reach, reach], as after a step of reach - 1 from a polar factor: then a series or two are enough, known
    beforehand, and a value below 2 - reach merely ends below 1. Otherwise a matrix whose bound, sqrt of the largest
    absolute row sum of its Gram matrix, is beyond the sqrt(3) that the cubic reaches is first divided by that bound,
    unless ``reach`` says that it need not be.
    """
    x, tall = as_wide(matrix)
    if not x.numel():
        return matrix.clone()
    if reach is not None and reach < SHORT_REACH:
        for terms in _lengths(reach):
            x = _series(x, _missing(symmetric(x, x.mT)), terms)
        return back(x, tall, matrix.shape)
    if reach is None or reach > LARGEST_REACH:
        largest = x.abs().amax((-2, -1), keepdim=True)
        x = x / torch.where(largest > 1e6, largest, 1.0)  # squares must not overflow
    gram = symmetric(x, x.mT)
    if reach is None or reach > LARGEST_REACH:
        rows = gram.abs().sum(-1, dtype=torch.float64).amax(-1)[..., None, None].sqrt().to(x.dtype)
        shrink = torch.where(rows > LARGEST_REACH * (1 - 1e-4), rows, 1.0)
        x, gram = x / shrink, gram / shrink**2
    missing, terms = _missing(gram), 1  # the cubic first, as the septic turns negative at 1.6
    for _ in range(POLAR_STEPS):
        x = _series(x, missing, terms)
        missing, terms = _missing(symmetric(x, x.mT)), 3
        if float(missing.abs().amax()) < CONVERGED:
            break
    return back(x, tall, matrix.shape)


def _missing(gram: Tensor) -> Tensor:
    """I - gram, in the memory of gram."""
    gram.neg_().diagonal(dim1=-2, dim2=-1).add_(1.0)
    return gram


def _series(x: Tensor, missing: Tensor, terms: int) -> Tensor:
    """x r(I - G) with the series of 1/sqrt(1 - e) up to the odd power ``terms`` of e, by Horner's rule in e²."""
    if terms == 1:
        return torch.baddbmm(x, missing, x, alpha=SERIES[0])
    square, rest = symmetric(missing, missing), None
    for power in range(terms, 1, -2):
        factor = missing * SERIES[power - 1] if rest is None else rest.add_(missing, alpha=SERIES[power - 1])
        rest = symmetric(square, factor, square, beta=SERIES[power - 2])
    assert rest is not None
    return torch.baddbmm(x, rest.add_(missing, alpha=SERIES[0]), x)


def _lengths(reach: float) -> list[int]:
    """The series that take [2 - reach, reach] to 1 within half of 1e-6: short ones near 1, or septics first."""
    ends = (2 - reach, reach)
    found: list[int] = []
    while True:
        for terms in (1, 3, 5):
            low = min(x + x * sum(SERIES[j] * (1 - x * x) ** (j + 1) for j in range(terms)) for x in ends)
            if low >= 1 - CONVERGED / 2:
                return [*found, terms]
            if terms == 3:
                septic = low
        found.append(3)
        ends = (septic, 1.0)
