"""Which of torch's CPU kernels round as the rules charge for, and the settings under which they are the ones that run.

Gone through are the kernels of eager torch on a CPU in float32 and float64, as ``deployed`` pins them. Whatever is not in
``COVERED`` has no claim about its execution; ``UNCOVERED`` says why of those that have a rule nevertheless.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from certkit.errors import Refusal

MOVES = "moves, repeats, compares or selects entries: exact"
ONE = "one rounding for each entry, two where a number of the code is rounded first"
AFFINE = "a factor and a shift for each channel, rounded on the way"
DOTS = "dot products in some order, with or without fused multiply-add: gamma_n"
SUMS = "sums in some order, a division or a root: gamma_n"
MOMENTS = "mean and variance by a tree of Welford's and Chan's updates, or in two passes"
CURVES = "a function of each entry, measured in float32"
SOFTMAX = "the largest entry subtracted, exp measured in float32, a sum in some order, a division"
ATTENTION = "the math kernel: queries and keys times the root of the scale, two matrix products, softmax"
CONVOLUTION = "windows gathered and one matrix product: gamma_n"

_TABLE: dict[str, str] = {
    MOVES: """
        getitem abs.default alias.default amax.default amin.default cat.default
        channel_shuffle.default chunk.default clamp.Tensor clamp.default clamp_max.Tensor clamp_max.default clamp_min.Tensor
        clamp_min.default clone.default constant_pad_nd.default contiguous.default detach.default diagonal.default
        dropout.default expand.default flatten.using_ints flip.default gather.default hardtanh.default im2col.default
        index.Tensor index_select.default masked_fill.Scalar masked_fill.Tensor max.dim max_pool1d.default
        max_pool2d.default max_pool3d.default maximum.default min.dim minimum.default neg.default pad.default
        permute.default pixel_shuffle.default pixel_unshuffle.default relu.default relu6.default repeat.default
        repeat_interleave.self_int reshape.default roll.default rot90.default select.int slice.Tensor split.Tensor
        split_with_sizes.default squeeze.dim squeeze.dims stack.default tile.default transpose.int unbind.int
        unfold.default unsqueeze.default upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default
        upsample_nearest2d.vec _unsafe_view.default view.default where.ScalarOther where.ScalarSelf where.self
    """,
    ONE: "add.Tensor div.Tensor leaky_relu.default mul.Tensor prelu.default rsub.Scalar sub.Tensor",
    AFFINE: "batch_norm.default _native_batch_norm_legit_no_training.default",
    DOTS: "addmm.default bmm.default linear.default matmul.default mm.default mv.default",
    SUMS: """
        adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default avg_pool1d.default
        avg_pool2d.default avg_pool3d.default linalg_vector_norm.default mean.dim rms_norm.default sum.dim_IntList
    """,
    MOMENTS: "layer_norm.default var.correction var.dim",
    CURVES: """
        celu.default cos.default elu.default erf.default exp.default gelu.default hardsigmoid.default hardswish.default
        log.default log_sigmoid.default mish.default pow.Tensor_Scalar reciprocal.default rsqrt.default selu.default
        sigmoid.default silu.default sin.default softplus.default sqrt.default square.default tanh.default
    """,
    SOFTMAX: "softmax.int _softmax.default",
    ATTENTION: "scaled_dot_product_attention.default",
    CONVOLUTION: "conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding convolution.default",
}
COVERED: dict[str, str] = {
    name if name == "getitem" else f"aten.{name}": why for why, names in _TABLE.items() for name in names.split()
}
DIFFERENCE = "for some layouts torch takes the variance as a difference of squares, which no rule charges for"
REFUSED = "has no rule that ends in a bound"
UNCOVERED: dict[str, str] = {
    "aten.group_norm.default": DIFFERENCE,
    "aten.instance_norm.default": DIFFERENCE,
    "aten.native_batch_norm.default": "its kernel was not gone through",
    "aten._native_batch_norm_legit.default": "its kernel was not gone through",
    "aten._native_batch_norm_legit.no_stats": REFUSED,
    "aten.native_dropout.default": REFUSED,
    "aten.pow.Scalar": REFUSED,
    "aten.pow.Tensor_Tensor": REFUSED,
}

PINNED = (
    "eager torch on a CPU, as certkit.engine.kernels.deployed pins it: the math kernel for attention, no oneDNN and no "
    "NNPACK (convolutions as one matrix product), no TF32 and no reduced precision in matrix products, no autocast, no fast "
    "path of nn.Transformer, subnormal numbers kept"
)
SHARE = 2**15  # entries that torch gives to one thread


@contextmanager
def deployed() -> Iterator[None]:
    """The execution that a float claim is about, on a CPU: the kernels whose rounding the rules charge for.

    Settings are given back afterwards, but for the flushing of subnormal numbers, which torch cannot be asked about: it is
    off from here on, as it is unless somebody turned it on. Raises Refusal where torch's threads flush nevertheless: each
    has the setting that it was born with. Threads, batch and order of summation are left as they are; the claim holds for
    all of them.
    """
    with ExitStack() as after:
        torch.set_flush_denormal(False)
        if _flushes():
            raise Refusal(
                "a thread of torch flushes subnormal numbers to 0, and nothing is claimed of such an execution; "
                "start again without torch.set_flush_denormal(True)"
            )
        # torch's older switch for all devices refuses to be read where this one, or that of a GPU, was set by itself
        products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
        after.callback(setattr, products, "fp32_precision", products.fp32_precision)
        products.fp32_precision = "ieee"
        for library in (torch.backends.mkldnn, torch.backends.nnpack):
            after.callback(library.set_flags, *library.set_flags(False))
        after.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        after.enter_context(torch.autocast("cpu", enabled=False))
        after.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _flushes() -> bool:
    """Whether any of torch's threads flushes subnormal numbers, tried on as many of them as keep all threads at work."""
    numbers = torch.full((SHARE * torch.get_num_threads(),), torch.finfo(torch.float32).tiny)
    return bool((numbers * 0.5 == 0).any())
