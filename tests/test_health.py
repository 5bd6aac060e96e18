"""The largest numbers inside a network, seen and proved, and the spectra of its weights: what is seen stays below what is proved."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.ledger import Ledger
from certkit.bounds.number import Up
from certkit.config import Run, validate
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.errors import Refusal
from certkit.health.activations import watched
from certkit.health.largest import FORMATS, fits, largest_entries, largest_scores, too_large
from certkit.health.parts import parts
from certkit.health.spectra import quantiles, singular_values, spectra
from certkit.models import create
from certkit.models.geometry import weights
from certkit.records.health import Largest, Spectrum
from tests.networks import SixHeads, linear

SHAPE = (1, 4, 4)


class Written(nn.Module):
    """Attention written out as products and a softmax, on 4 tokens of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], 4, 4)
        scores = self.q(tokens) @ self.k(tokens).transpose(1, 2) / 2
        logits: Tensor = self.head((torch.softmax(scores, -1) @ self.v(tokens)).mean(1))
        return logits


class Causal(nn.Module):
    """One causal attention whose largest product is one that the mask hides."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(x.shape[0], 4, 4)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True, scale=1.0)
        logits: Tensor = self.head(mixed.mean(1))
        return logits


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GELU(), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: linear(entries=16),
    "convolution": convolutional,
    "layer norm": normalised,
    "attention": SixHeads,
    "attention, written out": Written,
    "causal": Causal,
}


def made(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    return NETWORKS[name]().eval(), (1, 8, 24) if name == "attention" else SHAPE


@functools.cache
def proved(name: str) -> tuple[nn.Module, Program, Ledger]:
    model, shape = made(name)
    program = export(model, shape)
    return model, program, Interpreter(program)("l2", (0.0, 1.0))


def worst(program: Program, shape: tuple[int, ...], seed: int) -> Tensor:
    """Inputs that look for the largest entries: corners of the box and points inside."""
    draw = torch.Generator().manual_seed(seed)
    inside = torch.rand(8, *shape, generator=draw, dtype=torch.float64)
    corners = (torch.rand(24, *shape, generator=draw, dtype=torch.float64) > 0.5).double()
    return torch.cat([inside, corners, torch.zeros(1, *shape).double(), torch.ones(1, *shape).double()])


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_nothing_that_is_seen_is_beyond_what_is_proved(name: str, seed: int) -> None:
    _, program, ledger = proved(name)
    seen = watched(program, worst(program, program.input_shape, seed))
    assert too_large(ledger, seen.entries, seen.scores) == ()
    entries = largest_entries(ledger, seen.entries)
    assert entries[0].part == "input"
    assert entries[-1].part == "logits"
    for one in (*entries, *largest_scores(ledger, seen.entries, seen.scores)):
        assert 0 <= one.measured <= float(one.certified) * (1 + 1e-12), one


def test_the_certified_entry_of_one_linear_map_of_the_box_is_attained() -> None:
    model, program, ledger = proved("linear")
    weight, bias = (p.detach().double() for p in model.parameters())
    corner = (weight[0] > 0).double().reshape(1, *SHAPE)
    only = torch.cat([corner, 1 - corner])
    seen = watched(program, only)
    reached = (only.flatten(1) @ weight.T + bias).abs().max()
    assert seen.entries[ledger.output] == pytest.approx(float(reached), rel=1e-12)
    assert seen.entries["x" if "x" in seen.entries else program.input.name] == 1.0
    assert largest_entries(ledger, seen.entries)[0].certified == "1"


def test_a_number_beyond_size_and_error_is_named_and_one_within_is_not() -> None:
    _, program, ledger = proved("convolution")
    seen = watched(program, torch.rand(4, *SHAPE))
    step = next(step for step in ledger.steps if step.rule == "convolution")
    limit = (step.bound.within(frozenset()).size + step.bound.within(frozenset()).error).to_float()
    for value, named in ((math.nextafter(limit, 0.0), ()), (limit * (1 + 1e-9), (step.node,))):
        assert too_large(ledger, {**seen.entries, step.node: value}, {}) == named


def test_an_attention_logit_beyond_its_factors_is_named() -> None:
    _, program, ledger = proved("attention")
    seen = watched(program, torch.rand(4, 1, 8, 24))
    ((node, size),) = seen.scores.items()
    certified = float(largest_scores(ledger, seen.entries, seen.scores)[0].certified)
    assert 0 < size <= certified
    assert too_large(ledger, {}, {node: certified}) == ()
    assert too_large(ledger, {}, {node: certified * 1.0001}) == (node,)


def test_attention_logits_are_the_largest_product_of_a_visible_pair() -> None:
    _, program, _ = proved("causal")
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, :] = 1.0  # |x_0|² = 4 is the largest that a query sees: x_0 itself
    x[0, 0, 3, 0] = 0.5
    (size,) = watched(program, x).scores.values()
    assert size == 4.0
    hidden = x.flip(2)  # now the long token stands last and sees itself still
    (size,) = watched(program, hidden).scores.values()
    assert size == 4.0
    two = torch.zeros(1, 1, 4, 4)
    two[0, 0, 0, 0], two[0, 0, 3, 0] = -0.25, 0.5  # the pair (0, 3) is hidden: 0.125 of the pair (3, 0) is not
    (size,) = watched(program, two).scores.values()
    assert size == 0.25


def test_a_written_out_attention_has_its_logits_measured_where_the_softmax_reads() -> None:
    model, program, ledger = proved("attention, written out")
    assert isinstance(model, Written)
    x = torch.rand(6, *SHAPE)
    seen = watched(program, x)
    assert seen.scores == {}
    (one,) = largest_scores(ledger, seen.entries, seen.scores)
    tokens = x.double().reshape(6, 4, 4)
    wide = copy.deepcopy(model).double()
    scores = wide.q(tokens) @ wide.k(tokens).transpose(1, 2) / 2
    assert one.measured == pytest.approx(float(scores.detach().abs().max()), rel=1e-12)


def test_what_a_mask_leaves_out_is_no_entry() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.reshape(x.shape[0], 4, 4)
            scores = (tokens @ tokens.transpose(1, 2)).masked_fill(~torch.ones(4, 4).tril().bool(), -1e30)
            return (torch.softmax(scores, -1) @ tokens).mean(1)

    seen = watched(export(Masked().eval(), SHAPE), torch.rand(3, *SHAPE))
    assert max(seen.entries.values()) <= 4.0


def test_a_run_that_leaves_the_range_of_float64_is_refused() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) * 1e200 * 1e200 - 1.0)[:, :2]

    with pytest.raises(Refusal, match="a sample's activations leave the range of float64"):
        watched(export(Large().eval(), (4,)), torch.ones(1, 4))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convolution", ["input", "0", "1", "2", "3", "logits"]),
        ("attention", ["input", "logits"]),
        ("attention, written out", ["input", "q", "k", "v", "logits"]),
    ],
)
def test_parts_are_blocks_in_the_order_in_which_they_run(name: str, expected: list[str]) -> None:
    ledger = proved(name)[2]
    assert list(dict.fromkeys(parts(ledger).values())) == expected


def test_a_path_up_to_its_first_number_is_a_block_and_what_holds_blocks_is_none() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(4, 4)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x) + 1.0
            for layer in self.layers:
                x = x + layer(x)
            return self.norm(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = Inner(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x))

    ledger = Interpreter(export(Outer().eval(), (4,)))("l2", (0.0, 1.0))
    found = list(dict.fromkeys(parts(ledger).values()))
    assert found == ["input", "net.embed", "net.layers.0", "net.layers.1", "net.norm", "logits"]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(1, 1e6)), min_size=1, max_size=5),
)
def test_a_format_fits_exactly_where_the_largest_certified_entry_does(pairs: list[tuple[float, float]]) -> None:
    entries = [Largest(part="x", measured=seen, certified=str(Up.of(seen + more))) for seen, more in pairs]
    top = max(float(entry.certified) for entry in entries)
    for fit in fits(entries):
        assert fit.fits == (top <= fit.largest) == (FORMATS[fit.name] >= top)
        assert fit.certified_headroom <= fit.headroom
        assert fit.certified_headroom * top <= fit.largest


# --- Spectra ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.floats(-1e3, 1e3)))
def test_singular_values_are_those_of_a_decomposition(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    exact = np.linalg.svd(matrix, compute_uv=False)
    found = singular_values(matrix)
    assert np.abs(found - exact).max() <= 1e-7 * max(exact[0], 1e-300)
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_singular_values_survive_squares_that_leave_float64(scale: float) -> None:
    assert singular_values(np.diag([3.0, 2.0]) * scale) == pytest.approx([3 * scale, 2 * scale])


@given(st.integers(1, 80), st.integers(1, 33))
def test_quantiles_fall_and_hold_both_ends(count: int, points: int) -> None:
    falling = np.arange(count, 0, -1).astype(float)
    found = quantiles(falling, points)
    assert len(found) == min(count, points)
    assert found[0] == count
    assert found[-1] == 1 or points == 1
    assert list(found) == sorted(found, reverse=True)


def run_of(**model: Any) -> Run:
    base = {"name": "vit", "image_size": 8, "patch": 4, "width": 8, "heads": 2, "blocks": 1}
    return validate({"model": base | model, "training": {}, "data": {}}, "test")


def spectra_of(model: nn.Module, shape: tuple[int, ...], **options: Any) -> tuple[tuple[Spectrum, ...], int]:
    program = export(model.eval(), shape)
    return spectra(model, program, Interpreter(program)("l2", (0.0, 1.0)), **options)


def test_own_weights_start_at_their_caps_and_stand_under_their_names() -> None:
    torch.manual_seed(0)
    model = create(run_of().model)
    found, more = spectra_of(model, (1, 8, 8), cap=2.0)
    declared = {name: parameter for name, parameter, _ in weights(model)}
    assert more == 0
    for one in found:
        assert one.kind == "matrix"
        assert one.cap == pytest.approx(2.0)
        exact = torch.linalg.svdvals(declared[one.name].detach().double())
        assert one.values[0] == pytest.approx(float(exact[0]), rel=1e-6)
        assert one.proved >= float(exact[0]) * (1 - 1e-15)
        assert one.at_cap == 0.0
        assert one.stable_rank == pytest.approx(min(one.shape), rel=1e-5)
    assert all(one.at_cap == 1.0 for one in spectra_of(model, (1, 8, 8), cap=1.0)[0])
    assert all(one.cap is None for one in spectra_of(model, (1, 8, 8))[0])


def test_a_matrix_per_head_has_all_singular_values_of_all_heads() -> None:
    config = {"name": "gpt", "blocks": 1, "width": 8, "heads": 2, "context": 4, "vocabulary": 5}
    model = create(validate({"model": config, "training": {}, "data": {}}, "test").model).eval()
    from certkit.models.gpt import AtEmbeddings, LanguageModel

    assert isinstance(model, LanguageModel)
    program = export(AtEmbeddings(model).eval(), (4, 8))
    found, _ = spectra(model, program, Interpreter(program)("token", (-9.0, 9.0), token_size=20.0), cap=1.0)
    heads = [one for one in found if one.matrices == 2]
    assert len(heads) == 3
    named = dict(model.named_parameters())
    for one in heads:
        every = torch.linalg.svdvals(named[one.name].detach().double()).flatten().sort(descending=True).values
        assert list(one.values) == pytest.approx(every.tolist(), rel=1e-5)
    (table,) = [one for one in found if one.kind == "table"]
    assert table.stable_rank is None
    assert table.values[0] <= table.proved


def test_a_kernel_is_shown_as_a_matrix_and_its_proved_norm_is_the_operators() -> None:
    model, shape = made("convolution")
    found, _ = spectra_of(model, shape)
    assert [one.kind for one in found] == ["convolution", "convolution", "matrix"]
    kernel = next(model.parameters()).detach().double()
    exact = torch.linalg.svdvals(kernel.reshape(3, 9))
    assert list(found[0].values) == pytest.approx(exact.tolist(), rel=1e-6)
    images = torch.rand(64, 1, 4, 4, dtype=torch.float64) - 0.5
    reached = F.conv2d(images, kernel, padding=1).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    assert float(reached.max()) <= found[0].proved
    assert [one.name for one in found] == ["0", "2", "4"]


def test_a_weight_used_twice_is_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.map(torch.tanh(self.map(x))))

    found, _ = spectra_of(Twice(), (4,))
    assert [one.name for one in found] == ["map", "head"]


def test_what_would_take_too_long_is_left_out_with_the_reason_and_the_same_ones_each_time() -> None:
    model, shape = made("layer norm")
    found, _ = spectra_of(model, shape, work=16 * 6 * 6)
    again, _ = spectra_of(model, shape, work=16 * 6 * 6)
    assert found == again
    (shown,) = [one for one in found if one.values]
    (skipped,) = [one for one in found if not one.values]
    assert shown.skipped is None
    assert skipped.skipped == "decomposing all would take too long; 1 of 2 weights were drawn"
    assert (skipped.at_cap, skipped.stable_rank) == (None, None)
    assert skipped.proved > 0


def test_a_weight_of_zeros_has_no_rank_and_no_line() -> None:
    model = linear(entries=16)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    ((one,), _) = spectra_of(model, SHAPE)
    assert (one.proved, one.values, one.at_cap, one.stable_rank) == (0.0, (0.0, 0.0, 0.0), None, None)
