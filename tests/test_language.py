"""Laws of the certificate of a text: nothing inside a certified radius moves further, or flips, than is proved."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from certkit.attacks.language import pgd, token_distance
from certkit.config import LanguageBaselineConfig, LanguageModelConfig
from certkit.engine.execute import centres
from certkit.engine.local.centre import measure
from certkit.errors import ConfigError
from certkit.language.audit import slope
from certkit.language.certificate import (
    Bounded,
    Proof,
    bounded,
    joined,
    ladder,
    proof,
    room,
)
from certkit.language.head import Head
from certkit.language.published import published_bound, rms_norm
from certkit.language.threat import domain, of_few, substitutions
from certkit.models.baseline import language_baseline
from certkit.models.gpt import LanguageModel, language_model
from certkit.models.layers import Unembedding

CONTEXT, WIDTH, WORDS = 6, 8, 7
EPS = (0.02, 0.1, 0.4)


def network(seed: int = 0, *, scale: float = 1.0, stretched: float = 1.5) -> LanguageModel:
    """A small language model whose weights lie beyond their caps, so that attention has something to do."""
    torch.manual_seed(seed)
    config = LanguageModelConfig(
        vocabulary=WORDS, context=CONTEXT, width=WIDTH, heads=2, blocks=2, scale=scale, final_scale=2.0
    )
    model = language_model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(stretched)
    return model


@pytest.fixture(scope="module", params=[(0, 1.0), (1, 4.0)], ids=["mild", "sharp"])
def case(request: pytest.FixtureRequest) -> tuple[LanguageModel, Bounded, Proof, torch.Tensor, torch.Tensor]:
    seed, scale = request.param
    model = network(seed, scale=scale)
    x, y = torch.randint(WORDS, (2, 5, CONTEXT), generator=torch.Generator().manual_seed(seed))
    given = bounded(model, CONTEXT, max(EPS))
    embedded = model.embed(x).detach()
    return model, given, proof(given, embedded, EPS, steps=8, piece=2), embedded, y


def pushed(model: LanguageModel, x: torch.Tensor, radius: float, goal: nn.Module | None, seed: int) -> torch.Tensor:
    """Embeddings with every token moved by at most the radius: at random, or up the gradient of a goal."""
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if goal is not None:
        point = (x + step * 1e-3).requires_grad_(True)
        (step,) = torch.autograd.grad(goal(model.blocks(point)), point)
    return x + step * (radius * (1 - 1e-9) / step.norm(dim=-1, keepdim=True).clamp(min=1e-12))


class Along(nn.Module):
    """How far values lie along a random direction, summed over tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.way = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self.way).sum()


@pytest.mark.parametrize("radius", EPS)
def test_no_token_that_the_head_reads_moves_further_than_is_proved(case, radius: float) -> None:
    model, _, found, embedded, _ = case
    double = network_in_float64(model)
    x, bound = embedded.double(), found.moved(radius)
    largest = np.zeros(len(x))
    with torch.no_grad():
        before = double.blocks(x)
    for seed in range(20):
        for goal in (None, Along(seed)):
            after = double.blocks(pushed(double, x, radius, goal, seed).detach()).detach()
            largest = np.maximum(largest, (after - before).norm(dim=-1).amax(dim=1).numpy())
    assert (largest <= bound).all()
    assert (largest > radius / 3).all()  # the search is not blind


def network_in_float64(model: LanguageModel) -> LanguageModel:
    return copy.deepcopy(model).double()


@pytest.mark.parametrize("radius", EPS)
def test_log_probability_of_the_true_token_changes_by_no_more_than_is_proved(case, radius: float) -> None:
    model, _, found, embedded, y = case
    double, x = network_in_float64(model), embedded.double()
    change, loss = found.change(y.numpy(), found.moved(radius)), found.loss(y.numpy(), found.moved(radius))

    def log_probability(z: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            chosen = double.from_embeddings(z).log_softmax(-1).gather(-1, y[..., None])
        return chosen.squeeze(-1).numpy()

    before = log_probability(x)
    for seed in range(30):
        after = log_probability(pushed(double, x, radius, None if seed % 2 else Along(seed), seed).detach())
        assert (np.abs(after - before) <= change).all()
        assert (-after <= loss).all()
    assert (loss <= change - before + 1e-9).all()  # pair by pair is never worse than the largest pair


def test_loss_at_a_radius_that_moves_nothing_is_the_loss(case) -> None:
    model, _, found, embedded, y = case
    with torch.no_grad():
        exact = nn.functional.cross_entropy(
            network_in_float64(model).from_embeddings(embedded.double()).transpose(1, 2), y, reduction="none"
        )
    held = found.loss(y.numpy(), np.zeros(len(y)))
    assert (held >= exact.numpy()).all()
    assert held == pytest.approx(exact.numpy(), abs=1e-9)


def test_no_attack_breaks_a_position_inside_its_certified_radius(case) -> None:
    model, _, found, embedded, _ = case
    predicted = torch.from_numpy(found.predicted)
    radius = found.radius(found.everywhere)
    assert (radius > 0).any()
    reached = pgd(model.from_embeddings, embedded, predicted, [*EPS, 0.8, 1.6], steps=15, restarts=2)
    assert np.isfinite(reached.distance).any()  # the attack works
    assert (reached.distance > radius).all()


def test_one_token_moving_breaks_nothing_inside_the_radius_of_few_tokens(case) -> None:
    model, _, found, embedded, _ = case
    predicted = torch.from_numpy(found.predicted)
    radius = of_few(found.radius(found.everywhere), found.radius(found.jointly), 1)
    for place in range(CONTEXT):
        movable = torch.zeros(embedded.shape[:2])
        movable[:, place] = 1
        reached = pgd(model.from_embeddings, embedded, predicted, [*EPS, 1.6], steps=10, movable_NT=movable)
        assert (reached.distance > radius).all()


def test_an_argmax_is_certified_at_the_largest_radius_that_was_tried_and_passed(case) -> None:
    _, _, found, _, _ = case
    radius = found.radius(found.everywhere)
    assert set(np.unique(radius)) <= {0.0, *found.radii}
    for number, tried in enumerate(found.radii):
        passes = found.everywhere[number][:, None] < found.room
        assert (passes <= (radius >= tried)).all()


def test_movement_never_falls_as_the_radius_grows(case) -> None:
    _, _, found, _, _ = case
    assert (np.diff(found.everywhere, axis=0) >= 0).all()
    assert (found.jointly <= found.everywhere).all()


def test_pieces_of_any_size_prove_the_same(case) -> None:
    _, given, found, embedded, _ = case
    again = proof(given, embedded, EPS, steps=8, piece=5)
    assert np.array_equal(again.everywhere, found.everywhere)
    assert np.allclose(again.hidden, found.hidden, rtol=0, atol=1e-12)


def test_logits_of_all_positions_are_those_of_one(case) -> None:
    _, given, found, embedded, _ = case
    alone = centres(given.program, embedded).numpy()
    assert np.abs(alone - found.head.logits(found.hidden[:, -1])).max() <= given.error


def test_without_blocks_the_radius_is_the_lead_over_the_distance_of_two_rows() -> None:
    # Logits x W': the move that costs the lead most is along W_i - W_j, and costs |W_i - W_j| per unit.
    torch.manual_seed(3)
    embed = nn.Embedding(WORDS, WIDTH)
    model = LanguageModel(embed, nn.Sequential(), Unembedding(WIDTH, WORDS), context=CONTEXT).eval()
    x = embed(torch.arange(CONTEXT)[None]).detach()
    radii = np.linspace(0.01, 1.0, 100)
    found = proof(bounded(model, CONTEXT, 1.0), x, radii.tolist(), steps=0)
    weight, logits = model.head.weight.detach().double(), found.head.logits(found.hidden[0])
    top = logits.argmax(-1)
    exact = [
        min((logits[t, i] - logits[t, j]) / float((weight[i] - weight[j]).norm()) for j in range(WORDS) if j != i)
        for t, i in enumerate(top)
    ]
    expected = [max([r for r in radii if r < limit], default=0.0) for limit in exact]
    assert found.radius(found.everywhere)[0] == pytest.approx(expected)
    assert max(expected) > 0


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([1.0, 1.0, 0.0], 0.0), ([3.0, 1.0, 0.0], 1.0), ([1.0, 3.0, 2.9999], 0.00005), ([2.0, 2.0 - 1e-16, 0.0], 0.0)],
    ids=["tie", "two apart", "close", "within the error"],
)
def test_room_is_the_lead_over_the_slope(logits: list[float], expected: float) -> None:
    pairs = 2.0 * (1 - np.eye(3))
    found = float(room(np.array([logits]), pairs[[int(np.argmax(logits))]], 1e-12)[0])
    assert found <= expected
    assert found == pytest.approx(expected, abs=1e-11)


def test_classes_with_equal_rows_never_change_places() -> None:
    assert math.isinf(room(np.array([[1.0, 0.0]]), np.zeros((1, 2)), 0.0)[0])
    assert room(np.array([[0.0, 0.0]]), np.zeros((1, 2)), 0.0)[0] == 0
    assert 1e308 < room(np.array([[1.0, 0.0]]), np.array([[0.0, 1e-310]]), 0.0)[0] < math.inf


def test_few_tokens_take_the_better_of_both_radii() -> None:
    everywhere, jointly = np.array([1.0, 1.0]), np.array([4.0, 1.5])
    assert of_few(everywhere, jointly, 1).tolist() == [4.0, 1.5]
    assert of_few(everywhere, jointly, 4) == pytest.approx([2.0, 1.0])
    assert (of_few(everywhere, jointly, 4) <= [2.0, 1.0]).all()


def test_the_domain_holds_every_ball_around_every_token() -> None:
    table = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = domain(table, 0.3)
    push = table / table.norm(dim=1, keepdim=True) * 0.3
    assert found.longest >= float((table + push).double().norm(dim=1).max()) - 1e-7
    assert found.box[0] <= float(table.min()) - 0.3 <= float(table.max()) + 0.3 <= found.box[1]


def test_the_distance_to_the_nearest_token_is_that_of_two_rows() -> None:
    assert substitutions(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])).tolist() == [5.0, 1.0, 1.0]


def test_a_distance_is_never_below_the_truth() -> None:
    x = torch.zeros(1, 2, 3)
    moved_ = torch.tensor([[[3.0, 4.0, 0.0], [0.1, 0.1, 0.1]]])
    assert token_distance(x, moved_)[0] >= 5.0
    assert token_distance(x, moved_)[0] == pytest.approx(5.0)


def test_what_cannot_be_meant_is_refused_in_one_line() -> None:
    model = network()
    with pytest.raises(ConfigError, match=r"^context must be 1 to 6, got 7$"):
        bounded(model, 7, 0.1)
    with pytest.raises(ConfigError, match=r"^the largest radius must be above 0 and finite, got 0$"):
        bounded(model, 6, 0)
    with pytest.raises(ConfigError, match=r"^radii must be between 0 and 0.1, the reach of the bounds$"):
        proof(bounded(model, 2, 0.1), model.embed(torch.zeros(1, 2, dtype=torch.long)).detach(), [0.2])
    with pytest.raises(ConfigError, match=r"^the number of tokens that move must be 1 or more, got 0$"):
        of_few(np.ones(1), np.ones(1), 0)


def test_one_run_of_all_contexts_is_its_own_join(case) -> None:
    _, given, _, embedded, _ = case
    whole = measure(given.program, given.everywhere, embedded)
    same = joined([whole])
    assert all(np.array_equal(same.ranges[name].low, whole.ranges[name].low) for name in whole.ranges)


def test_radii_that_are_tried_reach_down_from_the_last_that_could_pass() -> None:
    found = ladder(2.0, 1.0, 8)
    assert (found[0], len(found)) == (1.0, 8)
    assert found[1:] / found[:-1] == pytest.approx(0.5)
    assert ladder(0.0, 1.0, 8).size == 0


def test_a_radius_that_nobody_tried_is_refused(case) -> None:
    with pytest.raises(ConfigError, match=r"^nothing was tried at radius 0.05; expected one of those given to proof$"):
        case[2].moved(0.05)


def test_a_loss_is_rounded_up_where_large_numbers_cancel_and_infinite_where_nothing_is_known() -> None:
    head = Head(
        weight_VD=np.eye(2), bias_V=None, factors=(), lengths_V=np.ones(2), pairs_VV=1000.0 * (1 - np.eye(2))
    )  # fmt: skip
    found = Proof(
        head=head, hidden=np.array([[[1000.1, 0.0]]] * 2), predicted=np.zeros((2, 1), dtype=np.int64), room=np.ones((2, 1)),
        radii=np.array([1.0]), everywhere=np.ones((1, 2)), jointly=np.ones((1, 2)), error=np.zeros(2),
    )  # fmt: skip
    loss = found.loss(np.zeros((2, 1), dtype=np.int64), np.array([1.0, np.inf]))
    exact = math.log1p(math.exp(float(Fraction(1000) - Fraction(1000.1))))  # the difference is exact, then rounded once
    assert exact <= loss[0, 0] == pytest.approx(exact, abs=1e-11)
    assert math.isinf(loss[1, 0])
    equal = replace(found, head=replace(head, pairs_VV=np.zeros((2, 2))))
    change = equal.change(np.zeros((2, 1), dtype=np.int64), np.array([1.0, np.inf]))
    assert 0 <= change[0, 0] <= 1e-300
    assert math.isinf(change[1, 0])


def test_the_published_formula_gives_the_published_number_where_every_norm_is_1() -> None:
    # Three blocks at norms 1: 0.876 by the repository's formula. One head, so that a matrix is its own block.
    config = LanguageModelConfig(vocabulary=16, context=4, width=16, heads=1, blocks=3, activation="gelu")
    model = language_model(config).eval()
    assert rms_norm(model.head.weight) == pytest.approx(1.0, rel=1e-5)
    assert published_bound(model) == pytest.approx(0.876, abs=5e-4)


def test_the_published_formula_says_nothing_of_other_architectures() -> None:
    config = LanguageBaselineConfig(vocabulary=7, context=4, width=8, heads=2, blocks=1)
    assert published_bound(language_baseline(config).eval()) is None


def test_the_sound_slope_is_above_a_slope_that_is_attained(case) -> None:
    model, given, _, embedded, _ = case
    x = embedded[:1].double()
    double = network_in_float64(model)

    def last(z: torch.Tensor) -> torch.Tensor:
        return double.from_embeddings(z)[0, -1]

    jacobian = torch.autograd.functional.jacobian(last, x)[:, 0, -1]  # the last token alone moves
    attained = float(torch.linalg.matrix_norm(jacobian, 2)) * math.sqrt(WIDTH / WORDS)
    found = slope(given, model)
    assert attained <= float(found.sound)
    assert found.reach == max(EPS)
    assert float(found.sound) == pytest.approx(float(found.token) * math.sqrt(WIDTH / WORDS))
    assert found.factor == pytest.approx(float(found.sound) / found.published)
