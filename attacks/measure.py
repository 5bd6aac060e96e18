"""Moving an example towards its input: along the segment between them nothing leaves the box.

Points are computed in float64 and rounded to float32; rounding is monotone, so every entry stays between its two ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from certkit.campaign import distance_up
from certkit.records import AttackNorm
from certkit.shards import Flags, Floats, Images

SHRINK = (0.0, 2.0**-40, 2.0**-30, 2.0**-24, 2.0**-16)


def between(inputs: Images, examples: Images, share: Floats) -> Images:
    """The point that lies ``share`` of the way from each input to its example; the example itself at 1."""
    share = share.reshape(-1, *[1] * (inputs.ndim - 1))
    point = (inputs + share * (examples.astype(np.float64) - inputs)).astype(np.float32)
    return np.where(share == 1, examples, point)


def inside(norm: AttackNorm, inputs: Images, examples: Images, eps: float | Floats) -> Images:
    """Each example, shortened where it lies outside the radius by so little that it then lies inside by float64.

    The library projects in float32 and overshoots by up to 1e-6 of the radius; without this such an example would not
    count. Entries are rounded towards the input, so that rounding cannot undo the shortening. Under l0 nothing can be
    shortened: the smallest moves are taken back until as few entries differ as the radius allows.
    """
    result = examples.copy()
    if norm == "l0":
        moves = np.abs(examples - inputs).reshape(len(inputs), -1)
        ranks = np.argsort(np.argsort(-moves, axis=1, kind="stable"), axis=1, kind="stable")
        many = (ranks >= np.floor(np.broadcast_to(eps, len(inputs)))[:, np.newaxis]).reshape(inputs.shape)
        result[many] = inputs[many]
        return result
    distance = distance_up(norm, inputs, examples)
    each = np.broadcast_to(np.asarray(eps, np.float64), distance.shape)
    for shrink in SHRINK:
        outside = distance > each
        if not outside.any():
            break
        radius = each[outside].reshape(-1, *[1] * (inputs.ndim - 1))
        x, move = inputs[outside].astype(np.float64), examples[outside] - inputs[outside].astype(np.float64)
        if norm == "linf":
            short = x + np.clip(move, -radius * (1 - shrink), radius * (1 - shrink))
        else:
            scale = (1 - shrink) / distance_up(norm, inputs[outside], examples[outside])
            short = x + move * radius * scale.reshape(-1, *[1] * (x.ndim - 1))
        rounded = short.astype(np.float32)
        too_far = np.abs(rounded - x) > np.abs(short - x)
        result[outside] = np.where(too_far, np.nextafter(rounded, inputs[outside]), rounded)
        distance = distance_up(norm, inputs, result)
    return result


def pulled(inputs: Images, examples: Images, wrong: Callable[[Images], Flags], halvings: int) -> Images:
    """The nearest misclassified point that bisection meets on each segment; the example itself when it meets none."""
    low, high = np.zeros(len(inputs)), np.ones(len(inputs))
    for _ in range(halvings):
        middle = (low + high) / 2
        hit = wrong(between(inputs, examples, middle))
        low, high = np.where(hit, low, middle), np.where(hit, middle, high)
    return between(inputs, examples, high)
