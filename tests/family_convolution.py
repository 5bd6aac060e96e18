"""Cases of convolutions, pooling, padding and repeated entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from certkit.bounds.rules import convolution, shape
from tests.attained import Attained, flat
from tests.modules import Case, Net, of


def small_cnn(net: Any, x: Tensor) -> Tensor:
    h = F.max_pool2d(F.relu(F.conv2d(x, net.a, net.b, padding=1)), 2)
    return F.linear(F.relu(F.conv2d(h, net.c, padding=1)).flatten(1), net.d)


def folded(net: Any, x: Tensor) -> Tensor:
    return F.pixel_unshuffle(F.pixel_shuffle(F.channel_shuffle(x, 2), 2), 2)


def constant_places(net: Any, x: Tensor) -> Tensor:
    return x[:, :, torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0])]


CASES: dict[str, tuple[Case, ...]] = {
    "convolution": (
        Case("of an image", (2, 3, 3), of(lambda net, x: F.conv2d(x, net.w, net.b, padding=1), w=(2, 2, 3, 3), b=(2,))),
        Case("of a sequence", (2, 4), of(lambda net, x: F.conv1d(x, net.w, net.b, padding=2), w=(3, 2, 3), b=(3,))),
        Case("same, one more behind", (1, 3, 4), of(lambda net, x: F.conv2d(x, net.w, padding="same"), w=(2, 1, 2, 3))),
        Case("valid", (2, 5), of(lambda net, x: F.conv1d(x, net.w, padding="valid"), w=(2, 2, 2))),
        Case("strided", (1, 4, 5), of(lambda net, x: F.conv2d(x, net.w, stride=(2, 3), padding=1), w=(2, 1, 3, 2))),
        Case("dilated", (1, 6), of(lambda net, x: F.conv1d(x, net.w, dilation=2, padding=2), w=(2, 1, 3))),
        Case("in groups", (4, 3), of(lambda net, x: F.conv1d(x, net.w, groups=2, padding=1), w=(4, 2, 2))),
        Case("depthwise", (2, 3, 3), of(lambda net, x: F.conv2d(x, net.w, groups=2, padding=1), w=(2, 1, 3, 3))),
        Case("patches", (1, 4, 4), of(lambda net, x: F.conv2d(x, net.w, net.b, stride=2), w=(3, 1, 2, 2), b=(3,))),
        Case(
            "after reflection",
            (1, 3, 3),
            of(lambda net, x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), net.w), w=(2, 1, 3, 3)),
        ),
        Case("twice, pooled", (1, 4, 4), of(small_cnn, a=(2, 1, 3, 3), b=(2,), c=(2, 2, 3, 3), d=(2, 8))),
    ),
    "window-max": (
        Case("apart", (2, 4), of(lambda net, x: F.max_pool1d(F.conv1d(x, net.w, net.b), 2), w=(2, 2, 1), b=(2,))),
        Case("overlapping, padded", (1, 4, 4), of(lambda net, x: F.max_pool2d(x, 3, 2, 1))),
        Case("dilated, one more", (2, 6), of(lambda net, x: F.max_pool1d(x, 2, 2, 0, 2, ceil_mode=True))),
    ),
    "window-mean": (
        Case("apart", (2, 4), of(lambda net, x: F.avg_pool1d(F.conv1d(x, net.w, net.b), 2), w=(2, 2, 1), b=(2,))),
        Case("overlapping, padded", (1, 4, 4), of(lambda net, x: F.avg_pool2d(x, 3, 2, 1))),
        Case("padding left out", (1, 3, 3), of(lambda net, x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False))),
        Case("adaptive", (2, 4, 4), of(lambda net, x: F.adaptive_avg_pool2d(x, (2, 1)))),
        Case("adaptive, overlapping", (2, 5), of(lambda net, x: F.adaptive_avg_pool1d(x, 3))),
        Case("shifted", (1, 3, 3), of(lambda net, x: F.avg_pool2d(x + 2.0, 2, 1, 1))),
    ),
    "copies": (
        Case("padded with a number", (2, 3), of(lambda net, x: F.linear(F.pad(x, (1, -1), value=3.1), net.w), w=(2, 3))),
        Case("reflected", (1, 3, 3), of(lambda net, x: F.pad(F.conv2d(x, net.w), (1, 2, 1, 0), mode="reflect"), w=(2, 1, 1, 1))),
        Case("repeated at the rim", (1, 2, 3), of(lambda net, x: F.pad(x, (2, 0, 1, 1), mode="replicate"))),
        Case("around", (2, 3), of(lambda net, x: F.pad(x, (1, 2), mode="circular"))),
        Case("rolled and flipped", (2, 3), of(lambda net, x: F.linear(x.roll((1, 2), (1, 2)).flip(2), net.w), w=(2, 3))),
        Case("repeated", (2, 3), of(lambda net, x: x.repeat(1, 2, 1).tile(1, 1, 2).repeat_interleave(3, 2))),
        Case("chosen", (3, 2), of(lambda net, x: x.index_select(1, torch.tensor([2, 0, 2])))),
        Case("chosen along two axes", (2, 2, 2), of(constant_places)),
        Case("gathered", (1, 2), of(lambda net, x: x.gather(2, torch.tensor([[[0, 0, 1]]])))),
        Case("folded", (4, 2, 2), of(folded)),
        Case("unfolded", (2, 3, 3), of(lambda net, x: F.unfold(x, 2, padding=1).mT)),
        Case("windows", (5, 2), of(lambda net, x: x.unfold(1, 3, 2))),
        Case("enlarged", (2, 2, 2), of(lambda net, x: F.interpolate(x, scale_factor=(2.0, 1.5)))),
        Case("stacked and taken apart", (2, 2), of(lambda net, x: torch.stack([*x.unbind(1), x[:, 0].roll(1, 1)], 2))),
    ),
}  # fmt: skip


def conv1d(*taps: float, **options: Any) -> Net:
    """One channel in and out."""
    w = torch.tensor([[list(taps)]])
    return Net(lambda net, x: F.conv1d(x, w, **options).flatten(1))


def damped(x: Tensor) -> Tensor:
    """Two groups, one with factor 2 and one with 0.25: together 2, not their product."""
    return F.conv1d(x, torch.tensor([[[2.0]], [[0.25]]]), groups=2)


ROW = [[0.0, 0.0, 0.0, 0.0]]
ONES = [[1.0, 1.0, 1.0, 1.0]]
CHANNELS = frozenset({1})

ATTAINED: dict[str, Any] = {
    "convolution": (
        Attained("convolution", conv1d(1.0), ROW, largest=ONES),
        Attained("convolution", conv1d(0.0, 1.0, 0.0, padding=1), ROW, largest=ONES),
        # Patches: x -> (x_0 + x_1, x_2 + x_3), and every other entry of x -> 3 x.
        Attained("convolution", conv1d(1.0, 1.0, stride=2), ROW, largest=ONES),
        Attained("convolution", conv1d(3.0, stride=2), ROW),
        # Each entry moves to where another one stands; no padding comes in, though the rim would wrap: 1, not 0.
        Attained("convolution", conv1d(1.0, 0.0, -1.0, padding=1), [[0.0, 0.0]]),
        Attained("convolution", conv1d(1.0, -2.0, 1.0, padding=1), ROW),
        Attained("convolution", conv1d(1.0, 2.0, 1.0, dilation=2, padding=2), ROW),
        Attained("convolution", flat(damped), ROW * 2),
        Attained("convolution", conv1d(1.0, -2.0, 1.0), ROW, norm="linf", axes=frozenset()),
        Attained("convolution", conv1d(3.0, 4.0), ROW, axes=frozenset()),
        # In linf all entries of a window move at once: the channels of one position by the sum of the taps.
        Attained("convolution", conv1d(1.0, 1.0, 1.0), ROW, norm="linf", axes=CHANNELS),
        Attained("convolution", flat(lambda x: F.conv1d(x, torch.tensor([[[3.0]], [[4.0]]]))), ROW, axes=CHANNELS),
        # 2x + 1 at each of four positions is 3.
        Attained(
            "convolution", flat(lambda x: F.conv1d(x, torch.full((1, 1, 1), 2.0), torch.ones(1))), ROW, largest=ONES
        ),
    ),
    "window-max": (
        Attained("window-max", flat(lambda x: F.max_pool1d(x, 2)), [[1.0, 0.0, 0.0, 1.0]], largest=ONES, box=(0.0, 1.0), tight=0.3),
        # The middle one of three entries is the largest of both windows: sqrt(2).
        Attained("window-max", flat(lambda x: F.max_pool1d(x, 2, 1)), [[0.0, 0.5, 0.0]], largest=[[0.0, 1.0, 0.0]], tight=0.3),
        Attained("window-max", flat(lambda x: F.max_pool1d(x, 2, 1)), [[0.0, 0.5, 0.0]]),
        Attained("window-max", flat(lambda x: F.max_pool1d(x, 2)), ROW, norm="linf", axes=frozenset(), largest=ONES),
    ),
    "window-mean": (
        Attained("window-mean", flat(lambda x: F.avg_pool1d(x, 2)), ROW, largest=ONES),
        Attained("window-mean", flat(lambda x: F.avg_pool1d(x, 2)), ROW, norm="linf", axes=frozenset()),
        Attained("window-mean", flat(lambda x: F.avg_pool2d(x, 2)), [[[0.0] * 4] * 4], largest=[[[1.0] * 4] * 4]),
        Attained("window-mean", flat(lambda x: F.adaptive_avg_pool1d(x, 1)), ROW, largest=ONES),
        # One entry in three windows of three: 1/sqrt(3) each.
        Attained("window-mean", flat(lambda x: F.avg_pool1d(x, 3, 1, 1)), [[0.0]], tight=0.5),
    ),
    "copies": (
        Attained("copies", flat(lambda x: x.repeat(1, 4)), [0.0, 0.0], largest=[1.0, 1.0]),
        Attained("copies", flat(lambda x: x.flip(1)), [0.0, 0.0], largest=[1.0, 1.0]),
        Attained("copies", flat(lambda x: F.pad(x, (1, 2), value=2.0)), [0.0, 0.0], largest=[1.0, -1.0]),
        Attained("copies", flat(lambda x: F.pad(x, (1, 1), value=2.0)), [0.0, 0.0], largest=[1.0, -1.0], axes=frozenset()),
        Attained("copies", flat(lambda x: x[:, torch.tensor([0, 0, 0, 1])]), [0.0, 0.0]),
        Attained("copies", flat(lambda x: F.pad(x, (1, 1), mode="replicate")), [[0.0, 0.0]], largest=[[1.0, 1.0]], tight=1e-9),
    ),
}  # fmt: skip

MUTANTS: list[tuple[Any, str, str, str]] = [
    (convolution, "convolution", "gain=factor * reach.gain", "gain=reach.gain"),
    (convolution, "convolution", '(everything, everything, "sigma"', '(everything, everything, "window"'),
    (convolution, "convolution", '(everything, channels, "window"', '(everything, channels, "row_l2"'),
    (convolution, "convolution", '(channels, channels, "taps"', '(channels, channels, "window"'),
    (convolution, "convolution", '(nothing, nothing, "row_l1"', '(nothing, nothing, "row_l2"'),
    (convolution, "convolution", "size=factor * reach.size + bias[out]", "size=factor * reach.size"),
    (convolution, "convolution", 'facts.measured("bias_l2") * spread', 'facts.measured("bias_l2")'),
    (convolution, "window-max", "reach = x.within(read).scaled(Up.of(copies).sqrt())", "reach = x.within(read)"),
    (convolution, "window-mean", "Up.of(copies * fewest).sqrt()", "Up.of(fewest).sqrt()"),
    (convolution, "window-mean", "Up.of(copies * fewest).sqrt() / fewest", "Up.of(copies) / fewest"),
    (convolution, "window-mean", "x.range.hull(Interval.of(0, 0))", "x.range"),
    (shape, "copies", "reach = x.within(read).scaled(Up.of(repeats).sqrt())", "reach = x.within(read)"),
    (shape, "copies", "(reach.size * reach.size + still * still).sqrt()", "reach.size"),
    (shape, "copies", "most(reach.size, fill)", "reach.size"),
    (shape, "copies", "x.range.hull(constant)", "x.range"),
]
