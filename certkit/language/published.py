"""The formula of arXiv 2507.13338 for a Lipschitz bound, as its code computes it: printed beside the sound bound, never used.

It is no upper bound: heads are not counted, a_0 = 1 is assumed, GELU's slope is divided out twice with a constant below the
true one, the scale of the logits is left out, and the attention's scale multiplies the whole of it.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor, nn

from certkit.bounds.spectral import spectral_norm
from certkit.models.attention import CausalAttention
from certkit.models.gpt import LanguageModel
from certkit.models.layers import Residual

GELU = 1.1289  # the paper's


def rms_norm(weight_FD: Tensor) -> float:
    """The RMS -> RMS norm of a matrix, proved from above: sqrt(D / F) times its largest singular value."""
    rows, columns = weight_FD.shape
    return spectral_norm(np.asarray(weight_FD.detach().double().cpu())) * math.sqrt(columns / rows)


def published_bound(model: LanguageModel) -> float | None:
    """The formula on this model's weights; None for an architecture that it does not speak of.

    Per residual connection L <- (1 - a) L + a L_block L, with L_att = |W_O| (|W_V| + 2 |W_V| x^2 |W_Q| |W_K|) s / 3 and
    L_mlp = |W_out| |W_in| / 1.1289, where x is the size that activations are taken to have, from x = 1 on.
    """
    slope, size = 1.0, 1.0
    for part in model.blocks:
        if not isinstance(part, Residual) or not isinstance(part.inner, nn.Sequential):
            return None
        first, share = part.inner[0], part.weight
        if isinstance(first, CausalAttention):
            q, k, v = (rms_norm(w.flatten(0, 1)) for w in (first.q_HED, first.k_HED, first.v_HED))
            out, s = rms_norm(first.out.weight), first.scale * first.q_HED.shape[1]
            block = out * (v + 2 * v * size**2 * q * k) * s / 3
            size = (1 - share) * size + share * out * v * size / 3
        else:
            matrices = [weight for layer in part.inner if isinstance(weight := getattr(layer, "weight", None), Tensor)]
            if len(matrices) != 2:
                return None
            block = rms_norm(matrices[0]) * rms_norm(matrices[1]) / GELU
            size = (1 - share) * size + share * block * size
        slope = (1 - share) * slope + share * block * slope
    head = model.head.weight
    assert isinstance(head, Tensor)
    return slope * rms_norm(head)
