"""Layers move no two points further apart than their docstrings say, and attention counts every head.

Sizes of text are |x| = max over tokens of the RMS of a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from certkit.config import LanguageModelConfig
from certkit.models import activations
from certkit.models.attention import CausalAttention, Rotary
from certkit.models.geometry import Entries, norm_over_cap, weights
from certkit.models.gpt import LanguageModel, language_model
from certkit.models.layers import ACTIVATIONS, GELU, Linear, Residual, Unembedding

seeds = st.integers(0, 2**32 - 1)
GPT = LanguageModelConfig(vocabulary=11, context=8, width=16, heads=4, blocks=2, expansion=2)


def rms(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()


def largest_rms(x: Tensor) -> Tensor:
    return rms(x).amax(-1)


def l2(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def ball(x_BTD: Tensor) -> Tensor:
    """Every token of RMS above 1 scaled down to 1."""
    return x_BTD / rms(x_BTD).clamp_min(1.0)[..., None]


def steepest(
    layer: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    size: Callable[[Tensor], Tensor] = largest_rms,
    inside: Callable[[Tensor], Tensor] = ball,
    distance: float = 1e-3,
    steps: int = 40,
) -> float:
    """The largest |f(x) - f(y)| / |x - y| that gradient ascent on pairs x, y finds from these starts, in float64."""
    x = start.clone().requires_grad_()
    towards = torch.randn_like(start).requires_grad_()
    adam = torch.optim.Adam([x, towards], lr=0.05)
    best = 0.0
    for _ in range(steps):
        a = inside(x)
        b = inside(a + distance * towards / size(towards).clamp_min(1e-30).reshape(-1, *[1] * (start.ndim - 1)))
        slope = size(layer(a) - layer(b)) / size(a - b).clamp_min(1e-30)
        best = max(best, float(slope.detach().max()))
        adam.zero_grad()
        (-slope.clamp_min(1e-30).log().sum()).backward()
        adam.step()
    return best


def exact(layer: nn.Module) -> nn.Module:
    return layer.double().eval().requires_grad_(False)


def mlp_block(activation: str) -> nn.Module:
    wide, narrow = Linear(6, 12, bias=False, units="rms"), Linear(12, 6, bias=False, units="rms")
    return nn.Sequential(wide, ACTIVATIONS[activation](), narrow)


IN_L2: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Linear(6, 9),
    "linear per token": lambda: Linear(6, 9, tokens=4),
    **ACTIVATIONS,
    "residual": lambda: Residual(Linear(6, 6), 0.3),
}
IN_RMS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Linear(6, 9, units="rms"),
    "narrow linear": lambda: Linear(6, 3, units="rms"),
    "unembedding": lambda: Unembedding(6, 11),
    "residual": lambda: Residual(Linear(6, 6, units="rms"), 0.3),
    "rotary": lambda: Rotary(4, 6),
    **{f"mlp {name}": lambda name=name: mlp_block(name) for name in ACTIVATIONS},
    **{f"attention of {heads}": lambda heads=heads: attention(heads, 4) for heads in (1, 3)},
}


def attention(heads: int, context: int, width: int = 6) -> CausalAttention:
    return CausalAttention(width, heads, Rotary(context, width // heads))


@pytest.mark.parametrize("name", IN_L2)
@settings(max_examples=5)
@given(seed=seeds, distance=st.sampled_from([1e-3, 0.1, 3.0]))
def test_no_two_points_move_apart_in_l2(name: str, seed: int, distance: float) -> None:
    torch.manual_seed(seed)
    layer = exact(IN_L2[name]())
    start = 3 * torch.randn(6, 4, 6, dtype=torch.float64)
    found = steepest(layer, start, size=l2, inside=lambda x: x, distance=distance)
    assert found <= 1 + 1e-6  # orthogonal in float32


@pytest.mark.parametrize("name", IN_RMS)
@settings(max_examples=5)
@given(seed=seeds, distance=st.sampled_from([1e-3, 0.1, 1.0]))
def test_no_two_texts_move_apart_in_rms_and_none_outgrows_1(name: str, seed: int, distance: float) -> None:
    torch.manual_seed(seed)
    layer = exact(IN_RMS[name]())
    start = torch.randn(6, 4, 6, dtype=torch.float64)
    assert steepest(layer, start, distance=distance) <= 1 + 1e-6
    assert float(rms(layer(ball(3 * start))).max()) <= 1 + 1e-6


def test_the_slope_of_gelu_is_1_at_sqrt_2_and_nowhere_more() -> None:
    x = torch.linspace(-6, 6, 100_001, dtype=torch.float64, requires_grad=True)
    GELU()(x).sum().backward()
    assert float(x.grad.abs().max()) <= 1
    top = torch.tensor(math.sqrt(2), dtype=torch.float64, requires_grad=True)
    GELU()(top).backward()
    assert 1 - 1e-7 < float(top.grad) <= 1


def test_gelu_moves_nothing_away_from_0() -> None:
    x = torch.linspace(-20, 20, 100_001, dtype=torch.float64)
    assert bool((GELU()(x).abs() <= x.abs()).all())


# Attention


def clusters(width: int) -> Tensor:
    """Texts whose tokens are of two kinds, one the negative of the other, every entry 1 or -1: each slice has RMS 1."""
    generator = torch.Generator().manual_seed(0)
    sides_BTD, kinds_BTD = (torch.randint(0, 2, (16, *shape), generator=generator) for shape in ((1, width), (13, 1)))
    return (2.0 * sides_BTD - 1).double() * (2.0 * kinds_BTD - 1)


def identity(heads: int, part: int, *, share: float) -> CausalAttention:
    """Attention whose heads read their own slice of the token, times ``share``; 1 / sqrt(heads) is at the cap."""
    layer = CausalAttention(heads * part, heads, nn.Identity())
    slices_HED = torch.eye(heads * part).reshape(heads, part, heads * part)
    for weight in (layer.q_HED, layer.k_HED, layer.v_HED):
        weight.data.copy_(share * slices_HED)
    layer.out.weight.data.copy_(torch.eye(heads * part))
    return exact(layer)


def shared(heads: int, part: int) -> CausalAttention:
    """Attention whose heads all read the same slice of the token, at the cap: one head's worst case, in every head."""
    layer = CausalAttention(heads * part, heads, nn.Identity())
    slice_ED = torch.eye(part, heads * part) / math.sqrt(heads)
    for weight in (layer.q_HED, layer.k_HED, layer.v_HED):
        weight.data.copy_(slice_ED.expand_as(weight))
    return exact(layer)


@pytest.mark.parametrize("heads", [1, 2, 4, 6])
def test_attention_is_1_lipschitz_with_every_head_counted(heads: int) -> None:
    torch.manual_seed(0)
    random_BTD = torch.randn(8, 13, 2 * heads, dtype=torch.float64)
    for layer in (identity(heads, 2, share=heads**-0.5), shared(heads, 2), exact(attention(heads, 13, 2 * heads))):
        assert all(norm_over_cap(w, g) < 1 + 1e-5 for _, w, g in weights(layer) if not isinstance(g, Entries))
        assert steepest(layer, clusters(2 * heads)) <= 1 + 1e-6
        assert steepest(layer, random_BTD) <= 1 + 1e-6


@pytest.mark.parametrize(("heads", "least"), [(4, 1.2), (6, 1.5)])
def test_one_matrix_for_all_heads_at_norm_1_would_exceed_1(heads: int, least: float) -> None:
    """The identity has norm 1 as one D x D matrix: bounds that ignore heads claim slope 1 for it. arXiv 2507.13338, B.1."""
    torch.manual_seed(0)
    layer = identity(heads, 2, share=1.0)
    assert norm_over_cap(layer.q_HED, layer.per_head) == pytest.approx(math.sqrt(heads))
    assert steepest(layer, clusters(2 * heads), steps=80) > least


@pytest.mark.parametrize(("scale", "least"), [(1.0, 0.6), (4.0, 1.3)])
def test_attention_comes_near_what_it_may(scale: float, least: float) -> None:
    """Tightness, at (1 + 2 scale)/3: all heads read one slice, where all of every token is."""
    torch.manual_seed(0)
    layer = shared(2, 2)
    layer.scale *= scale
    start_BTD = 3 * torch.randn(32, 9, 4, dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert least < steepest(layer, start_BTD, steps=100) <= (1 + 2 * scale) / 3 + 1e-6


def test_rotary_positions_keep_lengths_and_know_distances_alone() -> None:
    torch.manual_seed(0)
    rotary = exact(Rotary(32, 8))
    q_E, k_E = torch.randn(2, 8, dtype=torch.float64)
    q_TE, k_TE = rotary(q_E.expand(1, 1, 32, 8))[0, 0], rotary(k_E.expand(1, 1, 32, 8))[0, 0]
    assert torch.allclose(q_TE.norm(dim=1), q_E.norm().expand(32), atol=1e-6)
    scores_TT = q_TE @ k_TE.mT
    assert torch.allclose(scores_TT[:-1, :-1], scores_TT[1:, 1:], atol=1e-5)
    assert not torch.allclose(scores_TT[0, 0], scores_TT[0, 1], atol=1e-2)


# Language models


def language(**settings: object) -> LanguageModel:
    model = language_model(GPT.model_copy(update=settings))
    return model.double().eval().requires_grad_(False)  # type: ignore[return-value]


@settings(max_examples=10)
@given(
    seed=seeds,
    heads=st.sampled_from([1, 2, 4]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    scale=st.sampled_from([0.25, 1.0, 8.0, 64.0]),
)
def test_no_activation_exceeds_rms_1(seed: int, heads: int, activation: str, scale: float) -> None:
    """Whatever the scale of the scores: softmax only mixes. Logits stay below the final scale."""
    update = {"heads": heads, "activation": activation, "scale": scale, "final_scale": 8.0}
    torch.manual_seed(seed)
    model = language(**update)
    seen: dict[str, Tensor] = {}
    for name, part in activations(model).items():
        part.register_forward_hook(lambda _, __, value, name=name: seen.__setitem__(name, value))
    model(torch.randint(11, (16, 8), generator=torch.Generator().manual_seed(seed)))
    assert list(seen) == ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "logits"]
    assert float(rms(seen.pop("logits")).max()) <= 8 * (1 + 1e-6)
    assert all(float(rms(value).max()) <= 1 + 1e-6 for value in seen.values())


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("final_scale", [1.0, 8.0])
def test_a_language_model_is_as_steep_as_its_final_scale_at_most(heads: int, final_scale: float) -> None:
    for activation in ("gelu", "maxmin"):
        update = {"heads": heads, "final_scale": final_scale, "activation": activation}
        torch.manual_seed(0)
        model = language(**update)
        start = torch.randn(6, 8, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        for distance in (1e-3, 0.5):
            assert steepest(model.from_embeddings, start, distance=distance, steps=25) <= final_scale * (1 + 1e-5)
