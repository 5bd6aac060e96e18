"""Attention with a known Lipschitz constant. Shape suffixes: B batch, H heads, T tokens, D model width, E head width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.models.geometry import Declared, Entries, Geometry, Spectral
from certkit.models.layers import Linear, orthogonal


def heads_apart(x_BTD: Tensor, heads: int) -> Tensor:
    """Tokens cut into their heads: (B, H, T, E)."""
    batch, tokens, width = x_BTD.shape
    return x_BTD.reshape(batch, tokens, heads, width // heads).transpose(1, 2)


class Attention(Declared):
    """Multi-head softmax attention with a learned constant score for every pair of positions, per head.

    Scores are (scale / head width) q·k plus the constant; no bias on q, k, v, so that sizes stay those of the tokens. The
    constant costs the Lipschitz bound only what its softmax concentrates on one key.
    """

    geometry: ClassVar[Mapping[str, Geometry]] = {"position_HTT": Entries()}

    def __init__(self, width: int, heads: int, position_HTT: Tensor, *, scale: float, rate: float = 1.0) -> None:
        super().__init__()
        self.geometry = {"position_HTT": Entries(rate)}  # type: ignore[misc] # an instance may declare its own
        self.heads = heads
        self.scale = scale / (width // heads)
        self.q, self.k, self.v = (Linear(width, width, bias=False) for _ in range(3))
        self.out = Linear(width, width, tokens=position_HTT.shape[-1])
        self.position_HTT = nn.Parameter(position_HTT.clone())

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (heads_apart(map_(x_BTD), self.heads) for map_ in (self.q, self.k, self.v))
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTE, k_BHTE, v_BHTE, attn_mask=self.position_HTT.unsqueeze(0), scale=self.scale
        )
        joined: Tensor = self.out(y_BHTE.transpose(1, 2).flatten(2))
        return joined


class Rotary(nn.Module):
    """Turns entry pair (i, i + E/2) of token t by the angle t / base^(2i/E): every token keeps its length.

    Products of two tokens turned so depend on the distance of their positions alone. Su et al. 2021, arXiv 2104.09864.
    The tables are no part of a checkpoint; they are computed on the CPU even where weights take no memory yet.
    """

    cos_TE: Tensor
    sin_TE: Tensor

    def __init__(self, context: int, width: int, *, base: float = 10_000.0) -> None:
        super().__init__()
        place_T = torch.arange(context, dtype=torch.float64, device="cpu")
        rate_E = base ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
        angle_TE = torch.outer(place_T, rate_E).repeat(1, 2)
        self.register_buffer("cos_TE", angle_TE.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin_TE", angle_TE.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_BHTE: Tensor) -> Tensor:
        tokens = x_BHTE.shape[-2]
        a, b = x_BHTE.chunk(2, dim=-1)
        turned_BHTE = torch.cat([-b, a], dim=-1)
        return x_BHTE * self.cos_TE[:tokens] + turned_BHTE * self.sin_TE[:tokens]


class CausalAttention(Declared):
    """1/3 out(softmax(scale/E q·k over earlier tokens) v), per head, joined: (1 + 2 scale)/3-Lipschitz, heads counted.

    In |x| = max over tokens of the RMS of a token, on |x| <= 1, with every weight inside its cap. q, k and v hold one
    matrix per head, each of RMS -> RMS norm at most 1: |q_h|, |k_h|, |v_h| <= |x|, and their moves are at most |dx|
    (``rotary`` keeps lengths). Scores s = scale/E q·k move by |ds| <= scale (|dq||k| + |q||dk|) <= 2 scale |dx|. A row p
    of the softmax moves by p (ds - p·ds), in l1 at most max |ds|: the mean deviation from the mean of what lies in
    [-m, m] is at most m. So a head's output moves by |dv| + |v| (scale (|dq||k| + |q||dk|)) <= (1 + 2 scale) |dx|. The
    heads stand side by side in one token, whose RMS is at most the largest of theirs, for moves as for sizes: no factor
    sqrt(H), which one D x D matrix inside the same cap would cost v, and H the scores. Last, ``out`` has norm at most 1.

    Large et al. 2024, arXiv 2405.14813, proposition 7, for one head; arXiv 2507.13338, B.1.
    """

    per_head = Spectral(units="rms")
    geometry: ClassVar[Mapping[str, Geometry]] = dict.fromkeys(("q_HED", "k_HED", "v_HED"), per_head)

    def __init__(self, width: int, heads: int, rotary: nn.Module, *, scale: float = 1.0, zero: bool = False) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale / (width // heads)
        self.q_HED, self.k_HED, self.v_HED = (
            orthogonal(heads, width // heads, width, geometry=self.per_head) for _ in range(3)
        )
        self.out = Linear(width, width, bias=False, units="rms", zero=zero)
        self.rotary = rotary

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BHTE, k_BHTE, v_BHTE = (
            heads_apart(F.linear(x_BTD, weight_HED.flatten(0, 1)), self.heads)
            for weight_HED in (self.q_HED, self.k_HED, self.v_HED)
        )
        y_BHTE = F.scaled_dot_product_attention(
            self.rotary(q_BHTE), self.rotary(k_BHTE), v_BHTE, is_causal=True, scale=self.scale
        )
        joined: Tensor = self.out(y_BHTE.transpose(1, 2).flatten(2))
        return joined / 3
