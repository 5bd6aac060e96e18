"""Norms of convolutions as proved upper bounds, in any number of dimensions, with padding by zeros.

    y[o, p] = sum over c, t of w[o, c, t] x[c, p·stride + t·dilation − padding],   x = 0 outside the image.

A *tap* is one position t of the kernel. Everything is float64 arithmetic followed by its error term. Centres are executed
by direct sums; Winograd and FFT algorithms, whose rounding is another, are outside of what the rules charge for.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from certkit.bounds.spectral import (
    Array,
    absolute_norm,
    absolute_sums,
    euclidean,
    first_slack,
    largest,
    power_above,
    proved_square,
    remembered,
    spectral_norm,
    up,
)
from certkit.bounds.spectral import _gamma as gamma
from certkit.bounds.spectral import _sums as sums

TRIES = 60
CHUNK = 1 << 19  # numbers of the blocks that are looked at together: a few MB
DENSE_ENTRIES, DENSE_WORK = 1 << 22, 1e9  # up to here the whole operator is written out as a matrix


@dataclass(frozen=True, slots=True)
class Convolution:
    """The geometry of a convolution: per dimension image size, stride, padding before and after, dilation; and groups."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def outputs(self, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The size of the output."""
        return tuple(
            (n + sum(pad) - d * (k - 1) - 1) // s + 1
            for n, k, s, pad, d in zip(self.size, kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    def reads(self, kernel: tuple[int, ...]) -> list[Array]:
        """Per dimension, which input position output p reads with tap t, as (outputs, taps); −1 for padding."""
        found = []
        for n, k, s, (before, _), d, out in zip(
            self.size, kernel, self.stride, self.padding, self.dilation, self.outputs(kernel), strict=True
        ):
            at = np.arange(out)[:, None] * s + np.arange(k)[None, :] * d - before
            found.append(np.where((at >= 0) & (at < n), at, -1))
        return found


def convolution_norms(weight: Array, geometry: Convolution) -> dict[str, float]:
    """Norms of the convolution with a weight (outputs, inputs/groups, taps...), each an upper bound.

    sigma     the spectral norm of the whole operator
    absolute  that of the operator with |w|
    row_l2    the largest l2 norm of what one output entry reads
    row_l1    the largest l1 norm of it
    window    the spectral norm of the map from what one position reads to its output channels
    taps      how far the largest channel vector grows from inputs to outputs
    and ``window_absolute`` and ``taps_absolute`` of |w|.
    """
    power_above(weight)  # refuses what is not finite
    weight = live(weight, geometry)
    rows = weight.reshape(len(weight), -1)
    grouped = weight.reshape(geometry.groups, len(weight) // geometry.groups, -1)
    taps = math.prod(weight.shape[2:])
    found = {
        "row_l2": largest(euclidean(rows, axis=1)),
        "row_l1": largest(absolute_sums(rows, axis=1)),
        "window": largest(stacked(grouped)),
        "window_absolute": max(absolute_norm(matrix) for matrix in grouped),
    }
    # |y_p| = |sum_t w_t x_{p,t}| <= sum_t |w_t| |x_{p,t}|, and <= |window| sqrt(taps) max_t |x_{p,t}|.
    joined = up(up(math.sqrt(taps)) * found["window"])
    by_tap = np.moveaxis(grouped.reshape(*grouped.shape[:2], -1, taps), -1, 0)
    matrices = by_tap.reshape(-1, *by_tap.shape[2:])
    each = stacked(matrices) if len(matrices) <= MANY else euclidean(matrices.reshape(len(matrices), -1), axis=1)
    found["taps"] = min(joined, float(sums(each.reshape(taps, -1).max(axis=1), axis=0)))
    found["taps_absolute"] = up(up(math.sqrt(taps)) * found["window_absolute"])
    shape = " ".join(map(str, [geometry, weight.shape]))
    found["absolute"] = remembered("absolute convolution", weight, shape, lambda: by_absolute(weight, geometry))
    found["sigma"] = remembered("convolution", weight, shape, lambda: _sigma(weight, geometry, found))
    return found


MANY = 256  # matrices for which a spectral norm each would take long


def _sigma(weight: Array, geometry: Convolution, found: Mapping[str, float]) -> float:
    """The smallest of the routes that are worth their time."""
    kernel = weight.shape[2:]
    routes = [found["absolute"], by_windows(found["window"], weight, geometry)]
    if all(at.taps == 1 for at in phases(kernel, geometry)) and all((at >= 0).all() for at in geometry.reads(kernel)):
        return min(routes)  # windows stand apart and inside the image: the norm of one is that of all
    rows = len(weight) // geometry.groups * math.prod(geometry.outputs(kernel))
    columns = weight.shape[1] * math.prod(geometry.size)
    if rows * columns <= DENSE_ENTRIES and geometry.groups * rows * columns * min(rows, columns) <= DENSE_WORK:
        return min(*routes, by_dense(weight, geometry))
    return min(*routes, by_symbol(weight, geometry))


def live(weight: Array, geometry: Convolution) -> Array:
    """The weight with 0 for taps that only ever read padding: the operator is the same."""
    weight = weight.copy()
    for axis, reads in enumerate(geometry.reads(weight.shape[2:]), start=2):
        dead = np.flatnonzero((reads < 0).all(axis=0))
        weight[(slice(None),) * axis + (dead,)] = 0.0
    return weight


def stacked(matrices: Array) -> Array:
    """The spectral norm of each of a stack of matrices (count, rows, columns)."""
    if 1 in matrices.shape[1:]:
        return euclidean(matrices.reshape(len(matrices), -1), axis=1)
    return np.array([spectral_norm(matrix) for matrix in matrices])


# --- Phases: a strided convolution as a convolution of stride 1 with more input channels. -----------------------------


@dataclass(frozen=True, slots=True)
class Phase:
    """One dimension of the stride-1 form: tap t reads at place ``places[t]`` of input phase ``residues[t]``.

    ``grid`` is the length of a circle on which the convolution is the circular one, and ``taps`` the number of places.
    """

    residues: tuple[int, ...]
    places: tuple[int, ...]
    channels: int
    taps: int
    grid: int


def phases(kernel: tuple[int, ...], geometry: Convolution) -> list[Phase]:
    """Each dimension of the convolution in its stride-1 form.

    With z the image between its paddings and z_r[m] = z[m·stride + r], output p is the sum over taps t·dilation =
    j·stride + r of w_t z_r[p + j]: a convolution of stride 1 whose input channels are the phases r in use. Its phases
    hold the image at places lo..hi, and the outputs that see any of it read places first..last. On a circle of
    M >= max(hi − first, last − lo) + 1 places no place that is read, and lies outside lo..hi, falls onto lo..hi: it
    reads the zero that the circle holds there. So the operator is the circular one on M places, restricted to inputs
    that vanish outside the image and to the outputs that exist. (With stride 1 and padding P below the kernel's extent
    M = N + P; on N places alone the padded rims would read the other side of the image.)
    """
    found = []
    for n, k, s, (before, _), d, out in zip(
        geometry.size,
        kernel,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.outputs(kernel),
        strict=True,
    ):
        split = [divmod(t * d, s) for t in range(k)]
        used = sorted({r for _, r in split})
        taps = max(j for j, _ in split) + 1
        lo = min(-((r - before) // s) for r in used)
        hi = max((before + n - 1 - r) // s for r in used)
        first, last = max(0, lo - taps + 1), min(out - 1, hi) + taps - 1
        lo, hi = max(lo, first), min(hi, last)  # what no output sees is left out
        grid = max(hi - first, last - lo, 0) + 1
        found.append(Phase(tuple(used.index(r) for _, r in split), tuple(j for j, _ in split), len(used), taps, grid))
    return found


def polyphase(weight: Array, geometry: Convolution) -> Array:
    """The weight of the stride-1 form: (groups, outputs/groups, inputs/groups · phases, places...)."""
    kernel = weight.shape[2:]
    dims = phases(kernel, geometry)
    grouped = weight.reshape(geometry.groups, -1, *weight.shape[1:])
    full = np.zeros((*grouped.shape[:3], *(phase.channels for phase in dims), *(phase.taps for phase in dims)))
    for tap in itertools.product(*(range(k) for k in kernel)):
        residues = tuple(phase.residues[t] for phase, t in zip(dims, tap, strict=True))
        places = tuple(phase.places[t] for phase, t in zip(dims, tap, strict=True))
        full[(slice(None),) * 3 + residues + places] = grouped[(slice(None),) * 3 + tap]
    return full.reshape(*grouped.shape[:2], -1, *(phase.taps for phase in dims))


# --- Routes: each is an upper bound of the spectral norm by itself. ---------------------------------------------------


def by_windows(window: float, weight: Array, geometry: Convolution) -> float:
    """|y|² = sum over positions |window map of what is read there|² <= |window|² · (reads of one input entry) |x|²."""
    repeats = 1
    for reads in geometry.reads(weight.shape[2:]):
        seen = reads[reads >= 0]
        repeats *= int(np.bincount(seen).max()) if seen.size else 0
    return up(up(math.sqrt(repeats)) * window)


def by_absolute(weight: Array, geometry: Convolution) -> float:
    """The spectral norm of the sum over places of |w| in the stride-1 form.

    Entry by entry every block of the symbol is at most that sum, and |A| <= B entrywise gives |A|_2 <= |B|_2.
    The same for the operator with |w|.
    """
    full = polyphase(weight, geometry)
    return largest(stacked(sums(np.abs(full.reshape(*full.shape[:3], -1)), axis=3)))


def by_dense(weight: Array, geometry: Convolution) -> float:
    """The operator written out as one matrix per group: the norm itself. The groups' is the largest of theirs."""
    return max(spectral_norm(matrix) for matrix in dense(weight, geometry))


def dense(weight: Array, geometry: Convolution) -> Iterator[Array]:
    """Per group the matrix (output channels and positions, input channels and positions). Every entry is a weight or 0."""
    kernel = weight.shape[2:]
    out, size = geometry.outputs(kernel), geometry.size
    reads = geometry.reads(kernel)
    for group in weight.reshape(geometry.groups, -1, *weight.shape[1:]):
        matrix = np.zeros((group.shape[0], *out, group.shape[1], *size))
        for tap in itertools.product(*(range(k) for k in kernel)):
            kept = [np.flatnonzero(at[:, t] >= 0) for at, t in zip(reads, tap, strict=True)]
            to = np.ix_(*kept)
            come = np.ix_(*(at[p, t] for at, p, t in zip(reads, kept, tap, strict=True)))
            where = (slice(None), *to, slice(None), *come)
            # advanced indices that stand apart move to the front: (positions..., outputs, inputs)
            matrix[where] = group[(slice(None), slice(None), *tap)]
        yield matrix.reshape(group.shape[0] * math.prod(out), group.shape[1] * math.prod(size))


def by_symbol(weight: Array, geometry: Convolution) -> float:
    """The largest spectral norm of the symbol's blocks, B(f) = sum_j w_j exp(2 pi i f·j / M), over the grid of ``phases``.

    The operator is a restriction of the circular convolution on the grid, which the unitary Fourier transform makes block
    diagonal; B(−f) is the conjugate of B(f), so that half the frequencies suffice. Groups are blocks of their own.
    Computed B: with cosines and sines off by at most u, a sum over J places is off by gamma_{J+1} sum_j |w_j| in its
    real and in its imaginary part (Higham, ASNA 2nd ed., section 3.1), so the block by at most
    sqrt(2) gamma_{J+1} |sum_j |w_j||_2. A complex block is proved as the real matrix [[Re, −Im], [Im, Re]] of the same
    norm, by Cholesky as in ``spectral.proved_square``; all blocks are held against one s.
    """
    power = power_above(weight)
    if power == 0.0:
        return 0.0
    weight = weight / power
    dims = phases(weight.shape[2:], geometry)
    full = polyphase(weight, geometry)
    groups, outputs, inputs = full.shape[:3]
    places = list(itertools.product(*(range(phase.taps) for phase in dims)))
    kernel = np.ascontiguousarray(full.reshape(groups, outputs * inputs, len(places)).transpose(0, 2, 1))
    around = math.lcm(*(phase.grid for phase in dims))
    cosines, sines = turns(around)
    steps = np.array([[j * (around // phase.grid) for j, phase in zip(place, dims, strict=True)] for place in places])
    halves = [phase.grid for phase in dims[:-1]] + [dims[-1].grid // 2 + 1]
    frequencies = np.indices(halves).reshape(len(halves), -1)
    count = max(1, CHUNK // (4 * groups * outputs * inputs))
    certified, guess = 0.0, 0.0
    for start in range(0, frequencies.shape[1], count):
        turn = (steps @ frequencies[:, start : start + count]).T % around
        real, imaginary = (np.matmul(table[turn], kernel).reshape(-1, outputs, inputs) for table in (cosines, sines))
        if outputs < inputs:
            real, imaginary = real.swapaxes(1, 2), imaginary.swapaxes(1, 2)
        if 1 in real.shape[1:]:
            parts = np.concatenate([real, imaginary], axis=1).reshape(len(real), -1)
            certified = max(certified, largest(euclidean(parts, axis=1)))
        else:
            found, guess = _blocks(real, imaginary, guess)
            certified = max(certified, found)
    off = up(up(1.4142135623730952 * gamma(len(places) + 1)) * by_absolute(weight, geometry))
    return up(up(certified + off) * power)


def _blocks(real: Array, imaginary: Array, guess: float) -> tuple[float, float]:
    """An upper bound of the norms of all complex blocks (count, rows, columns), and the squared norm to try next.

    Re'Re + Im'Im and Re'Im − Im'Re, each one real product of twice as many rows, are the real and imaginary part of B*B.
    """
    tall = np.concatenate([real, imaginary], axis=1)
    count, rows, columns = tall.shape
    along = tall.swapaxes(1, 2) @ tall
    across = tall.swapaxes(1, 2) @ np.concatenate([imaginary, -real], axis=1)
    along = np.tril(along) + np.tril(along, -1).swapaxes(1, 2)
    across = np.tril(across, -1) - np.tril(across, -1).swapaxes(1, 2)
    gram = np.concatenate(
        [np.concatenate([along, -across], axis=2), np.concatenate([across, along], axis=2)], axis=1
    )  # of the real matrix, twice as wide
    diagonals = np.diagonal(along, axis1=1, axis2=2)
    # |[[Re, −Im], [Im, Re]]|_F² = 2 (|Re|_F² + |Im|_F²)
    whole = up(up(1.4142135623730952) * largest(euclidean(tall.reshape(count, -1), axis=1)))
    hermitian = along + 1j * across
    guess = max(guess, float(diagonals.max()), _guess(hermitian))
    spread = 2 * (columns * guess - float(diagonals.sum(axis=1).min()))
    slack = first_slack(guess, 2 * columns, rows, spread, whole)
    exact = False
    for _ in range(TRIES):
        square = guess * (1 + slack)
        shifted = -gram
        shifted[:, range(2 * columns), range(2 * columns)] += square
        trace = largest(sums(np.diagonal(shifted, axis1=1, axis2=2), axis=1))
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            if not exact:
                exact, guess = True, max(guess, float(np.linalg.eigvalsh(hermitian).max()))
            slack *= 4
            if slack > 1:
                break
            continue
        bound = proved_square(square, 2 * columns, rows, trace, whole, float(diagonals.max()))
        return min(up(math.sqrt(bound)), whole), guess
    return whole, guess


def _guess(hermitian: Array) -> float:
    """About the largest eigenvalue of all: a few power steps choose the blocks that are looked at."""
    columns = hermitian.shape[1]
    vector = np.random.default_rng(0).standard_normal((columns, 2)) + 1j
    moved = np.broadcast_to(vector, (len(hermitian), columns, 2))
    for _ in range(6):
        moved = hermitian @ moved
        moved = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-300)
    strengths = np.linalg.norm(hermitian @ moved, axis=1).max(axis=1)
    chosen = np.argsort(strengths)[-4:]
    return float(np.linalg.eigvalsh(hermitian[chosen]).max())


# --- Twiddles. --------------------------------------------------------------------------------------------------------

_BITS = 128
_PI = "3.14159265358979323846264338327950288419716939937510"


@functools.lru_cache(maxsize=8)
def turns(count: int) -> tuple[Array, Array]:
    """Cosines and sines of k/count turns for k = 0 .. count − 1, each off by at most u = 2^-53.

    Taylor's series in integers of 128 bits after the point on a quarter turn; dropping the digits beyond costs less than
    100 · 2^-128, and rounding to float64 at most 2^-54.
    """
    one = 1 << _BITS
    whole, _, digits = _PI.partition(".")
    pi = int(whole + digits) * one // 10 ** len(digits)
    quarter: dict[int, tuple[float, float]] = {}

    def at(part: int) -> tuple[float, float]:  # the angle is part/(4·count) of a turn, part < count
        if part not in quarter:
            angle = pi * part // (2 * count)
            square = angle * angle >> _BITS
            cosine, sine, term_c, term_s = 0, 0, one, angle
            k = 0
            while term_c or term_s:
                cosine, sine = (cosine + term_c, sine + term_s) if k % 4 == 0 else (cosine - term_c, sine - term_s)
                term_c = (term_c * square >> _BITS) // ((k + 1) * (k + 2))
                term_s = (term_s * square >> _BITS) // ((k + 2) * (k + 3))
                k += 2
            quarter[part] = cosine / one, sine / one
        return quarter[part]

    cosines, sines = np.empty(count), np.empty(count)
    for k in range(count):
        turn, part = divmod(4 * k, count)
        c, s = at(part)
        cosines[k], sines[k] = [(c, s), (-s, c), (-c, -s), (s, -c)][turn]
    return cosines, sines
