"""Operators that move, copy and cut entries."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.foreign.operators.node import Attributes, Value, translates


@translates("Reshape")
def reshape(given: Attributes, x: Tensor, shape: Value) -> Tensor:
    wanted = given.integers(shape, "the shape")
    if not given.take("allowzero", 0):
        wanted = [int(x.shape[at]) if n == 0 else n for at, n in enumerate(wanted)]
    return torch.reshape(x, wanted)


@translates("Flatten")
def flatten(given: Attributes, x: Tensor) -> Tensor:
    axis = given.take("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return torch.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@translates("Transpose")
def transpose(given: Attributes, x: Tensor) -> Tensor:
    return torch.permute(x, given.take("perm", list(reversed(range(x.ndim)))))


@translates("Squeeze")
def squeeze(given: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    taken = given.axes(axes)
    if taken is None:
        given.refuse("without axes")
    return torch.squeeze(x, tuple(taken))


@translates("Unsqueeze")
def unsqueeze(given: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    added = given.axes(axes) or []
    rank = x.ndim + len(added)
    for axis in sorted(n % rank for n in added):
        x = torch.unsqueeze(x, axis)
    return x


@translates("Concat")
def concat(given: Attributes, *parts: Value) -> Tensor:
    whole = [part if isinstance(part, Tensor) else torch.from_numpy(np.array(part)) for part in parts]
    return torch.cat(whole, given.take("axis"))


@translates("Split")
def split(given: Attributes, x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    axis, count = given.take("axis", 0), given.take("num_outputs", given.outputs)
    sizes = given.either(sizes, "split")
    if sizes is None:
        return torch.split(x, -(-int(x.shape[axis]) // count), axis)
    return torch.split(x, given.integers(sizes, "the sizes"), axis)


@translates("Slice")
def slice_(
    given: Attributes,
    x: Tensor,
    starts: Value = None,
    ends: Value = None,
    axes: Value = None,
    steps: Value = None,
) -> Tensor:
    starts, ends, axes = (given.either(v, n) for v, n in ((starts, "starts"), (ends, "ends"), (axes, "axes")))
    first, last = given.integers(starts, "the starts"), given.integers(ends, "the ends")
    along = list(range(len(first))) if axes is None else given.integers(axes, "the axes")
    stride = [1] * len(first) if steps is None else given.integers(steps, "the steps")
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        if step < 1:
            given.refuse("backwards")
        place = [slice(None)] * x.ndim
        place[axis % x.ndim] = slice(*slice(start, end, step).indices(int(x.shape[axis])))
        x = x[tuple(place)]
    return x


@translates("Gather")
def gather(given: Attributes, x: Tensor, indices: Value) -> Tensor:
    axis = given.take("axis", 0) % x.ndim
    places = np.asarray(given.constant(indices, "the indices"))
    places = np.where(places < 0, places + x.shape[axis], places)
    if places.ndim == 0:
        return torch.select(x, axis, int(places))
    found = torch.index_select(x, axis, torch.from_numpy(places.reshape(-1)))
    return torch.reshape(found, (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


@translates("Expand")
def expand(given: Attributes, x: Tensor, shape: Value) -> Tensor:
    wanted = np.broadcast_shapes(tuple(x.shape), tuple(given.integers(shape, "the shape")))
    return x.expand(wanted)


@translates("Tile")
def tile(given: Attributes, x: Tensor, repeats: Value) -> Tensor:
    return x.repeat(given.integers(repeats, "the repeats"))


@translates("Pad")
def pad(given: Attributes, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    given.only("mode", "constant")
    pads, value = given.either(pads, "pads"), given.either(value, "value")
    wide = given.integers(pads, "the widths")
    along = list(range(x.ndim)) if axes is None else [n % x.ndim for n in given.integers(axes, "the axes")]
    sides = {axis: (wide[at], wide[at + len(along)]) for at, axis in enumerate(along)}
    flat = [n for axis in reversed(range(x.ndim)) for n in sides.get(axis, (0, 0))]
    return F.pad(x, flat, value=0.0 if value is None else np.asarray(given.constant(value, "the value")).item())
