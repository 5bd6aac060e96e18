"""The threat on embeddings: every token moves by at most the radius, all at once, and no bound is ever beaten."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from certkit.bounds.ledger import from_json, to_json
from certkit.bounds.number import Up
from certkit.config import LanguageModelConfig
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.errors import Refusal
from certkit.models.gpt import AtEmbeddings, LanguageModel, language_model
from tests.laws import norms_of, program_of
from tests.modules import BOX, NOISE, Case, MultiHead, Net, Proof, points, size
from tests.table import CASES

GPT = LanguageModelConfig(vocabulary=11, context=8, width=16, heads=4, blocks=2, expansion=2)
TOKENS = [
    (rule, case)
    for rule, cases in CASES.items()
    for case in [case for case in cases if len(case.shape) > 1 and case.fixed is None][
        : 9 if rule == "attention" else 1
    ]
]  # the other cases' rules meet no norm that these do not
every_case = pytest.mark.parametrize(("rule", "case"), [pytest.param(r, c, id=f"{r}: {c.name}") for r, c in TOKENS])


def proof(
    module: nn.Module | Program, shape: tuple[int, ...], box: tuple[float, float] = BOX, token_size: float | None = None
) -> Proof:
    program = module if isinstance(module, Program) else export(module, shape)
    ledger = Interpreter(program)("token", box, token_size=token_size)
    ledger.check()
    return Proof(program, ledger, {})


def longest(x: Tensor) -> Tensor:
    """The threat's norm of moves (N, ..., tokens, features): the longest token of each."""
    return x.norm(dim=-1).flatten(1).amax(1)


def gain(found: Proof) -> float:
    last = found.ledger.steps[-1].bound
    return last.within(last.axes).gain.to_float()


def steepest(jacobians: Tensor, shape: tuple[int, ...], outputs: tuple[int, ...], axes: Any) -> float:
    """How far some direction that moves every token by 1 really moves N_A, by ascent: J'u, token by token of length 1."""
    count, _, inputs = jacobians.shape
    others = [axis for axis in range(len(outputs)) if axis not in axes]
    blocks = jacobians.reshape(count, *outputs, inputs).permute(
        0, *(a + 1 for a in others), *(a + 1 for a in sorted(axes)), -1
    )
    blocks = blocks.reshape(count, -1, math.prod(outputs[axis] for axis in axes), inputs)
    moved = torch.ones(*blocks.shape[:2], inputs, 1, dtype=torch.float64)
    for _ in range(8):
        back = (blocks.mT @ (blocks @ moved)).reshape(*blocks.shape[:2], -1, shape[-1])
        moved = (back / back.norm(dim=-1, keepdim=True).clamp_min(1e-300)).reshape(*blocks.shape[:2], inputs, 1)
    return float((blocks @ moved).norm(dim=2).max())


def attained(module: nn.Module, at: Any, box: tuple[float, float] = BOX) -> tuple[float, float]:
    """The steepest slope at one input, and the gain that is claimed."""
    x = torch.as_tensor(at, dtype=torch.float64)
    found = proof(module, tuple(x.shape), box)
    node, step = found.nodes[-1]
    jacobians = found.jacobians(node, x[None])
    return steepest(jacobians, tuple(x.shape), step.bound.shape, step.bound.axes), gain(found)


@every_case
def test_no_two_inputs_move_a_value_apart_by_more_than_the_gain_per_token(rule: str, case: Case) -> None:
    found = proof(program_of(case, 0), case.shape, case.box)
    xs, ys = points(case.shape, case.box, 16, 1), points(case.shape, case.box, 16, 2)
    near = xs + 1e-4 * (ys - xs)
    for node, step in found.nodes:
        start = found.values(node, xs)
        for axes, reach in norms_of(step.bound):
            slack = 2 * reach.error.to_float()
            assert float(size(start, axes).max()) <= reach.size.to_float() + slack, (node, axes)
            for others in (ys, near):
                moved = size(found.values(node, others) - start, axes)
                allowed = reach.gain.to_float() * longest(others - xs) * (1 + NOISE) + slack
                assert bool((moved <= allowed).all()), (node, axes)
    node, step = found.nodes[-1]
    slopes = found.jacobians(node, xs[-3:])
    for axes, reach in norms_of(step.bound):
        assert steepest(slopes, case.shape, step.bound.shape, axes) <= reach.gain.to_float() * (1 + NOISE), axes


def test_the_gain_is_met_where_all_tokens_move_alike() -> None:
    flat = Net(lambda net, x: x.flatten(1))
    total = Net(lambda net, x: x.sum(1))
    doubled = Net(lambda net, x: F.linear(x, 2 * torch.eye(2))[:, 1])
    for module, expected in ((flat, math.sqrt(3)), (total, 3.0), (doubled, 2.0)):
        slope, claimed = attained(module, torch.zeros(3, 2))
        assert slope == pytest.approx(expected)
        assert expected <= claimed <= expected * (1 + 1e-12)


def test_attention_pays_nothing_for_mixing_tokens() -> None:
    # One key, seen by all queries: in l2 it would move all three outputs, sqrt(3); per token it moves each by 1.
    mask = torch.tensor([[True, False, False]] * 3)
    module = Net(lambda net, x: F.scaled_dot_product_attention(x, x, x, attn_mask=mask)[:, 2])
    slope, claimed = attained(module, torch.zeros(3, 2))
    assert slope == pytest.approx(1.0)
    assert claimed <= 1 + 1e-12


def test_heads_are_counted_where_they_are_joined() -> None:
    # Equal scores: each head hands on the mean of its slice, and the slices of a token of length 1 join to length 1.
    for heads in (1, 2, 4):
        slope, claimed = attained(MultiHead(heads, scale=1e-9), torch.zeros(3, 4))
        assert slope == pytest.approx(math.sqrt(3))
        assert claimed >= slope * (1 - NOISE)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), tokens=st.integers(2, 4))
def test_a_random_block_moves_no_further_than_its_gain(seed: int, tokens: int) -> None:
    torch.manual_seed(seed)
    module = Net(
        lambda net, x: (x + F.linear(F.gelu(F.linear(F.scaled_dot_product_attention(x, x, x), net.a)), net.b)).flatten(
            1
        ),
        a=torch.randn(6, 4),
        b=torch.randn(4, 6),
    )
    found = proof(module, (tokens, 4))
    node, step = found.nodes[-1]
    jacobians = found.jacobians(node, points((tokens, 4), BOX, 12, seed))
    assert steepest(jacobians, (tokens, 4), step.bound.shape, step.bound.axes) <= gain(found) * (1 + NOISE)


# --- A stated length of the longest token -----------------------------------------------------------------------------


def test_a_stated_length_of_tokens_is_the_size_of_the_input_in_every_norm() -> None:
    program = export(Net(lambda net, x: x.flatten(1)), (4, 9))
    for norm in ("l2", "linf", "token"):
        first = Interpreter(program)(norm, (-1.0, 1.0), token_size=1.5).steps[0]
        assert first.evidence == {"token_size": Up.of(1.5)}
        assert first.bound.within(frozenset({2})).size == Up.of(1.5)
        assert first.bound.within(frozenset({1, 2})).size == Up.of(1.5) * Up.of(4).sqrt()
        assert first.bound.within(frozenset()).size == Up.of(1)


def test_a_longer_token_never_gives_a_smaller_bound_and_the_box_bounds_it() -> None:
    module = Net(lambda net, x: F.scaled_dot_product_attention(x, x, x, scale=1.0).flatten(1))
    gains = [gain(proof(module, (3, 4), token_size=length)) for length in (0.1, 0.5, 2.0, 50.0)]
    assert gains == sorted(gains)
    assert gains[0] < gains[1] < gains[2] == gains[3] == gain(proof(module, (3, 4)))


def test_a_threat_on_tokens_needs_tokens() -> None:
    with pytest.raises(
        Refusal,
        match="^the model: placeholder has no bound here: the threat's norm token needs an input of tokens, "
        r"shape \(1, ..., tokens, features\)$",
    ):
        proof(nn.Linear(3, 2).eval(), (3,))


def test_an_unknown_norm_is_refused_by_name() -> None:
    with pytest.raises(
        Refusal,
        match=r"^the model: placeholder has no bound here: the threat's norm must be one of l2, linf, token, got 'l1'$",
    ):
        Interpreter(export(nn.Linear(3, 2).eval(), (3,)))("l1", BOX)


# --- A language model from its embeddings -----------------------------------------------------------------------------


def small_gpt(position: int = -1) -> AtEmbeddings:
    torch.manual_seed(1)
    return AtEmbeddings(language_model(GPT), position=position).eval()


def test_a_language_model_is_certified_from_its_embeddings_to_the_logits_of_each_position() -> None:
    for position in (0, 3, -1):
        module = small_gpt(position)
        assert isinstance(module.model, LanguageModel)
        rows = module.model.embed.weight.detach().double()  # type: ignore[union-attr,operator]
        radius = 0.25
        box = (float(rows.min()) - radius, float(rows.max()) + radius)
        found = proof(module, (6, 16), box, token_size=float(rows.norm(dim=1).max()) * (1 + NOISE) + radius)
        assert found.ledger.steps[-1].bound.shape == (1, 11)
        tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(2))
        xs = rows[tokens]
        expected = module.model(tokens)[:, position]
        node, step = found.nodes[-1]
        assert torch.allclose(found.values(node, xs)[:, 0].float(), expected, atol=1e-5)
        slope = steepest(found.jacobians(node, xs), (6, 16), step.bound.shape, step.bound.axes)
        assert 0.01 < slope <= gain(found) * (1 + NOISE)
        moved = xs + radius * F.normalize(
            torch.randn(xs.shape, generator=torch.Generator().manual_seed(3)).double(), dim=-1
        )
        apart = (found.values(node, moved) - found.values(node, xs)).flatten(1).norm(dim=1)
        assert bool((apart <= gain(found) * longest(moved - xs) * (1 + NOISE)).all())


def test_more_tokens_than_the_context_are_refused_from_embeddings_too() -> None:
    # Of a context of one token the tables of positions would be repeated for all.
    module = AtEmbeddings(language_model(GPT.model_copy(update={"context": 1}))).eval()
    assert proof(module, (1, 16)).ledger.steps[-1].bound.shape == (1, 11)
    with pytest.raises(Refusal, match=r"3 tokens are more than the context of 1"):
        export(module, (3, 16))


def test_the_proof_survives_json_and_a_shorter_stated_token_is_found_out() -> None:
    found = proof(small_gpt(), (5, 16), token_size=4.0)
    again = from_json(to_json(found.ledger))
    assert again == found.ledger
    first = again.steps[0]
    forged = replace(again, steps=(replace(first, evidence={"token_size": Up.of(1.0)}), *again.steps[1:]))
    with pytest.raises(Exception, match="the stated bound is not the one that rule 'input' gives"):
        forged.check()
