"""Attacks on text: what they say is measured again, and what they replace is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from certkit.attacks.language import Nearest, ddn, margins, pgd, token_distance
from certkit.attacks.language_tokens import greedy_coordinate_gradient, mistyped, substitutes
from certkit.config import LanguageModelConfig
from certkit.models.gpt import LanguageModel, language_model
from certkit.models.layers import Unembedding

CONTEXT, WIDTH, WORDS = 6, 8, 7


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    made = language_model(
        LanguageModelConfig(vocabulary=WORDS, context=CONTEXT, width=WIDTH, heads=2, blocks=2, final_scale=4.0)
    ).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(1.5)
    return made


@pytest.fixture(scope="module")
def texts(model: LanguageModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randint(WORDS, (5, CONTEXT), generator=torch.Generator().manual_seed(1))
    embedded = model.embed(x).detach()
    return x, embedded, model.from_embeddings(embedded).detach().argmax(-1)


def linear() -> tuple[LanguageModel, torch.Tensor, torch.Tensor, np.ndarray]:
    """A model without blocks, its texts, its predictions, and the exact distance of each to the nearest boundary."""
    torch.manual_seed(2)
    made = LanguageModel(nn.Embedding(WORDS, WIDTH), nn.Sequential(), Unembedding(WIDTH, WORDS), context=CONTEXT).eval()
    x = made.embed(torch.arange(CONTEXT)[None]).detach()
    logits, weight = made.from_embeddings(x).detach().double()[0], made.head.weight.detach().double()
    top = logits.argmax(-1)
    exact = [
        min(float((row[i] - row[j]) / (weight[i] - weight[j]).norm()) for j in range(WORDS) if j != i)
        for row, i in zip(logits, top.tolist(), strict=True)
    ]
    return made, x, top[None], np.array([exact])


def test_pgd_finds_the_boundary_of_a_linear_model_and_nothing_nearer() -> None:
    made, x, top, exact = linear()
    radii = exact[0] * 1.05
    reached = pgd(made.from_embeddings, x, top, radii.tolist(), steps=40, restarts=WORDS)
    assert (reached.distance >= exact * (1 - 1e-5)).all()
    assert (reached.distance <= exact * 1.06).all()


def test_ddn_finds_the_boundary_of_the_last_position() -> None:
    made, x, top, exact = linear()
    reached = ddn(made.from_embeddings, x, top, 1.0, steps=150, share=0.05)
    assert exact[0, -1] * (1 - 1e-5) <= reached.distance[0, -1] <= exact[0, -1] * 1.1


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_the_distance_is_that_of_an_example_that_breaks_the_position(model, texts, attack: str) -> None:
    _, x, y = texts
    if attack == "pgd":
        found = pgd(model.from_embeddings, x, y, [0.5, 2.0, 4.0], steps=10)
    else:
        found = ddn(model.from_embeddings, x, y, 1.0)
    last = np.isfinite(found.distance[:, -1])
    assert last.any()
    lead = margins(model.from_embeddings(found.example).detach(), y)[:, -1].numpy()
    assert not (lead[last] > 0).any()
    assert np.array_equal(token_distance(x, found.example)[last], found.distance[last, -1])


@pytest.mark.parametrize("place", [0, 3, CONTEXT - 1])
def test_tokens_that_may_not_move_stay(model, texts, place: int) -> None:
    _, x, y = texts
    movable = torch.zeros(x.shape[:2])
    movable[:, place] = 1
    for found in (
        pgd(model.from_embeddings, x, y, [2.0], steps=5, movable_NT=movable),
        ddn(model.from_embeddings, x, y, 2.0, steps=10, movable_NT=movable),
    ):
        still = [t for t in range(CONTEXT) if t != place]
        assert torch.equal(found.example[:, still], x[:, still])
        assert np.isinf(found.distance[:, :place]).all()  # causal: what comes before does not see it


def test_a_larger_budget_never_reaches_less(model, texts) -> None:
    _, x, y = texts
    few = pgd(model.from_embeddings, x, y, [0.5, 1.0], steps=10, seed=3)
    more = pgd(model.from_embeddings, x, y, [0.5, 1.0, 2.0], steps=10, seed=3)
    assert (more.distance <= few.distance).all()


def test_a_tie_and_a_logit_that_is_not_finite_count_as_broken() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [torch.nan, 0.0, 0.0]]])
    leads = margins(logits, torch.zeros(1, 3, dtype=torch.long))
    assert leads[0, 1] == 1
    x = torch.zeros(1, 3, 2)
    found = Nearest.none(x)
    found.saw(x, x + 1, leads)
    assert np.isfinite(found.distance).tolist() == [[True, False, True]]


def test_the_nearest_example_is_kept() -> None:
    x = torch.zeros(1, 2, 3)
    found = Nearest.none(x)
    broken = torch.full((1, 2), -1.0)
    found.saw(x, x + 1, broken)
    found.saw(x, x + 2, broken)
    assert found.distance[0] == pytest.approx(np.sqrt(3))
    assert torch.equal(found.example, x + 1)
    assert not found.hits  # nobody asked for any


def test_a_text_that_is_not_moved_lies_at_distance_0() -> None:
    x = torch.randn(2, 2, 3)
    moved = x.clone()
    moved[1, 0, 0] = torch.nextafter(x[1, 0, 0], torch.tensor(9.0))
    assert token_distance(x, x).tolist() == [0.0, 0.0]
    assert token_distance(x, moved)[0] == 0 < token_distance(x, moved)[1]


def test_a_move_that_is_no_number_hides_no_nearer_example() -> None:
    x = torch.zeros(1, 2, 3)
    found = Nearest.none(x, np.full((1, 2), 5.0))
    found.saw(x, x + 1, torch.full((1, 2), -1.0))
    for lost in (torch.nan, torch.inf):
        found.saw(x, x + lost, torch.full((1, 2), torch.nan))
    assert (found.distance == token_distance(x, x + 1)).all()
    assert {hit.distance for hit in found.hits.values()} == set(token_distance(x, x + 1))
    assert token_distance(x, x + torch.nan).tolist() == [np.inf]


def test_of_the_examples_asked_for_the_nearest_and_the_clearest_are_kept() -> None:
    x, within = torch.zeros(1, 2, 3), np.array([[3.5, 0.5]])
    found = Nearest.none(x, within)
    for step, lead in ((2.0, -5.0), (1.0, -1.0), (1.5, torch.nan), (4.0, -9.0)):
        found.saw(x, x + step, torch.full((1, 2), lead))
    assert set(found.hits) == {(0, 0, "distance"), (0, 0, "lead")}  # the other position asked for nearer ones
    assert torch.equal(found.hits[0, 0, "distance"].example, torch.ones(2, 3))
    assert torch.equal(found.hits[0, 0, "lead"].example, torch.full((2, 3), 2.0))
    assert found.hits[0, 0, "lead"].distance == token_distance(x, x + 2)[0]


def test_a_text_that_is_misread_as_it_is_is_an_example_at_distance_0(model, texts) -> None:
    _, x, y = texts
    wrong = (y + 1) % WORDS
    found = pgd(model.from_embeddings, x, wrong, [0.1], steps=1, within_NT=np.zeros(y.shape))
    assert (found.distance == 0).all()
    assert len(found.hits) == 2 * y.numel()


def test_greedy_coordinate_gradient_says_what_the_model_says(model, texts) -> None:
    x, _, y = texts
    changed = 0
    for row, label in zip(x, y[:, -1].tolist(), strict=True):
        one = greedy_coordinate_gradient(model, row, label, changes=2)
        after = torch.tensor(one.tokens)
        assert len(one.places) <= 2
        assert one.places == tuple((after != row).nonzero().squeeze(1).tolist())
        with torch.no_grad():
            lead = margins(model(after[None])[:, -1:], torch.tensor([[label]]))
        assert one.broken == bool(lead <= 1e-6)
        moved = (model.embed(after) - model.embed(row)).detach().double().norm(dim=-1)
        assert one.distance == pytest.approx(float(moved.max()), rel=1e-6)
        assert one.jointly == pytest.approx(float(moved.norm()), rel=1e-6)
        changed += one.broken
    assert changed  # it finds some


def test_characters_are_mistaken_for_neighbours_and_their_other_case() -> None:
    near = substitutes(["a", "A", "s", "q", "!"])
    assert {key: set(value) for key, value in near.items()} == {0: {1, 2}, 1: {0}, 2: {0}, 3: set(), 4: set()}


def test_a_mistyped_text_lowers_the_lead_or_stays(model, texts) -> None:
    x, _, y = texts
    near = {token: tuple(other for other in range(WORDS) if other != token) for token in range(WORDS)}
    for row, label in zip(x, y[:, -1].tolist(), strict=True):
        one = mistyped(model, row, label, near)
        assert len(one.places) <= 1
        assert len(one.places) == 0 or one.distance > 0
    assert mistyped(model, x[0], int(y[0, -1]), {}).tokens == tuple(x[0].tolist())
