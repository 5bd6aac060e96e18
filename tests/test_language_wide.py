"""Laws of the certificate of large vocabularies: no distance of two rows below the truth, and nothing proved that a search breaks."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from decimal import Overflow
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from certkit.bounds.ledger import pair_gain
from certkit.bounds.spectral import euclidean, row_differences
from certkit.config import LanguageModelConfig
from certkit.engine.execute import centres
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.errors import Refusal
from certkit.language import head as heads
from certkit.language.certificate import Bounded, Proof, agreement, bounded, pieces_of, proof
from certkit.language.execution import execution
from certkit.language.head import Head, head_of
from certkit.models.gpt import LanguageModel, language_model

CONTEXT, WIDTH, WORDS = 5, 8, 300
EPS = (0.02, 0.1, 0.4)


def head(weight: np.ndarray, *factors: float, bias: np.ndarray | None = None) -> Head:
    """A head without a table of pairs."""
    rows = np.asarray(weight, dtype=np.float64)
    return Head(
        weight_VD=rows, bias_V=bias, factors=factors, lengths_V=euclidean(rows, axis=1), pairs_VV=None
    )  # fmt: skip


def network(words: int, seed: int = 0, *, scale: float = 1.0) -> LanguageModel:
    """A small language model whose weights lie beyond their caps, so that attention has something to do."""
    torch.manual_seed(seed)
    config = LanguageModelConfig(
        vocabulary=words, context=CONTEXT, width=WIDTH, heads=2, blocks=2, scale=scale, final_scale=2.0
    )
    model = language_model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
        model.head.weight.mul_(3.0)  # type: ignore[operator, union-attr]
    return model


@pytest.fixture(scope="module", params=[(WORDS, 1.0), (60, 1.0), (WORDS, 4.0)], ids=["large", "small", "sharp"])
def case(request: pytest.FixtureRequest) -> tuple[LanguageModel, Bounded, Proof, torch.Tensor, np.ndarray]:
    words, scale = request.param
    model = network(words, scale=scale)
    x, y = torch.randint(words, (2, 6, CONTEXT), generator=torch.Generator().manual_seed(1))
    given = bounded(model, CONTEXT, max(EPS))
    embedded = model.embed(x).detach()
    return model, given, proof(given, embedded, EPS, steps=5), embedded, y.numpy()


# --- distances of rows


def exact_square(weight: np.ndarray, i: int, j: int, *factors: float) -> Fraction:
    square = sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(weight[i], weight[j], strict=True)), Fraction(0))
    return square * math.prod((Fraction(factor) ** 2 for factor in factors), start=Fraction(1))


def below(found: np.ndarray, weight: np.ndarray, *factors: float) -> list[tuple[int, int]]:
    """The pairs whose bound is below the exact distance."""
    return [
        (i, j)
        for i in range(len(weight))
        for j in range(len(weight))
        if math.isfinite(found[i, j]) and Fraction(float(found[i, j])) ** 2 < exact_square(weight, i, j, *factors)
    ]


finite = st.floats(allow_nan=False, allow_infinity=False)
ordinary = st.floats(-8, 8)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Rows of any size float64 has, or ordinary ones, or ones that nearly coincide, or tiny ones."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    entries = draw(st.sampled_from([finite, ordinary]))
    found = np.array([[draw(entries) for _ in range(columns)] for _ in range(rows)])
    kind = draw(st.sampled_from(["as drawn", "near", "tiny"]))
    if kind == "near":
        with np.errstate(over="ignore"):
            found = found[:1] + np.arange(rows)[:, None] * np.spacing(found[:1])
    return np.nan_to_num(found * (1e-300 if kind == "tiny" else 1.0), posinf=1e308, neginf=-1e308)


@settings(deadline=None, max_examples=200)
@drawn(weight=matrices(), factors=st.lists(finite, max_size=2))
def test_a_distance_of_two_rows_is_never_below_the_exact_one(weight: np.ndarray, factors: list[float]) -> None:
    with np.errstate(all="ignore"):
        found = head(weight, *factors).slopes(np.arange(len(weight)))
    assert not np.isnan(found).any()
    assert (np.diag(found) == 0).all()
    assert below(found, weight, *factors) == []


@pytest.mark.parametrize("width", [1, 64, 768])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_distance_is_the_exact_one_to_a_millionth_and_never_below(width: int, size: float) -> None:
    rows = np.random.default_rng(width).standard_normal((40, width)) * size + 3 * size
    found, exact = head(rows, -0.25).slopes(np.arange(40)), row_differences(rows)[0] / 4
    np.fill_diagonal(exact, 1.0)
    np.fill_diagonal(found, 1.0)
    assert below(found[:4, :4], rows[:4], 0.25) == []
    if width > 1:  # two numbers may lie close together
        assert (found / exact).max() < 1 + 1e-6
    assert (found >= exact * (1 - 1e-12)).all()


def test_a_bound_that_forgot_rounding_would_be_caught() -> None:
    # |a - b| of two rows that share their first digits: the plain formula is below the truth for some of them.
    rng = np.random.default_rng(0)
    rows = 1e8 + rng.standard_normal((30, 3))
    squares = (rows * rows).sum(axis=1)
    plain = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0.0))
    assert below(plain, rows)
    assert below(head(rows).slopes(np.arange(30)), rows) == []


def test_equal_rows_lie_no_further_apart_than_rounding_says() -> None:
    rows = np.ones((3, 64))
    found = head(rows).slopes(np.array([0]))[0]
    assert found[0] == 0
    assert (found[1:] <= 1e-5).all()


def test_distances_beyond_float64_are_infinite() -> None:
    rows = np.array([[1e200, 0.0], [-1e200, 0.0], [0.0, 1.0]])
    found = head(rows).slopes(np.arange(3))
    assert np.isinf(found[0, 1:]).all()
    assert not np.isnan(found).any()


@pytest.mark.parametrize("size", [6e153, 9e153, 1.2e154, 1.4e154])
def test_squares_near_the_end_of_float64_make_no_distance_too_small(size: float) -> None:
    # Half of a square is finite, twice a product is not.
    rows = np.array([[size, 0.0], [size, 9e152], [size, -9e152], [-size, 0.0]])
    assert below(head(rows).slopes(np.arange(4)), rows) == []


def test_the_steepest_is_the_largest_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).standard_normal((50, 6))
    one, ids = head(rows), np.array([7, 3, 7, 49, 0, 3])
    expected = one.slopes(ids).max(axis=1)
    monkeypatch.setattr(heads, "ENTRIES", 120)  # two rows at a time
    assert one.steepest(ids).tolist() == expected.tolist()
    assert one.steepest(np.zeros(0, dtype=np.int64)).shape == (0,)


def test_a_table_of_pairs_is_taken_where_the_ledger_has_one() -> None:
    assert network_head(60)[0].pairs_VV is not None
    assert network_head(101)[0].pairs_VV is None


def network_head(words: int) -> tuple[Head, LanguageModel]:
    model = network(words)
    return bounded(model, 2, 0.1).head, model


# --- the head of a graph


def test_the_head_is_that_of_the_graph_with_bias_and_factors_in_their_order() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WORDS)

        @property
        def weight(self) -> nn.Parameter:
            return self.inner.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 3.0 * -0.1

    torch.manual_seed(4)
    model = LanguageModel(nn.Embedding(WORDS, WIDTH), nn.Sequential(), Scaled(), context=CONTEXT).eval()
    given = bounded(model, CONTEXT, 0.1)
    assert given.head.factors == (3.0, -0.1)
    x = model.embed(torch.arange(CONTEXT)[None]).detach()
    found = proof(given, x, [0.1], steps=0)
    alone = centres(given.program, x).numpy()
    assert np.abs(given.head.logits(found.hidden[:, -1]) - alone).max() <= given.error
    rows = model.head.weight.detach().double().numpy()  # type: ignore[union-attr, operator]
    assert below(given.head.slopes(np.arange(3))[:, :3], rows[:3], 3.0, 0.1) == []


@pytest.mark.parametrize("tail", [nn.Softmax(dim=-1), nn.Identity()], ids=["softmax", "none"])
def test_logits_that_are_no_linear_map_are_refused(tail: nn.Module) -> None:
    class Tail(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return tail(x.flatten(1) * 2.0)

    with pytest.raises(
        Refusal,
        match=r"^the logits of this model are not one linear map of each token; expected a language model such as gpt$",
    ):
        head_of(export(Tail().eval(), (2, 3)), None)


def test_a_head_that_reads_all_tokens_is_refused() -> None:
    class Joined(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class Mixed(LanguageModel):
        def hidden(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return x_BTD.flatten(1).unsqueeze(1)

    model = Mixed(nn.Embedding(5, 4), nn.Sequential(), Joined(8, 5), context=2).eval()
    with pytest.raises(
        Refusal, match=r"^the head of this model does not read one token each; expected a language model such as gpt$"
    ):
        bounded(model, 2, 0.1)


# --- what is proved of a text


def moves(x: torch.Tensor, radius: float, seed: int, along: torch.Tensor | None = None) -> torch.Tensor:
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = step if along is None else along
    return x + step * (radius * (1 - 1e-9) / step.norm(dim=-1, keepdim=True).clamp(min=1e-300))


def descents(model: LanguageModel, x: torch.Tensor, top: torch.Tensor, seed: int) -> torch.Tensor:
    """The direction in which the leads of all positions over one rival each fall fastest."""
    point = x.clone().requires_grad_(True)
    logits = model.from_embeddings(point)
    best = logits.gather(-1, top[..., None])
    rival = logits.scatter(-1, top[..., None], -torch.inf).topk(1 + seed % 3).values[..., -1:]
    return -torch.autograd.grad((best - rival).sum(), point)[0]


def test_no_move_within_the_certified_radius_changes_a_prediction(case) -> None:
    model, _, found, embedded, _ = case
    double, x = copy.deepcopy(model).double(), embedded.double()
    radius, top = found.radius(found.everywhere), torch.from_numpy(found.predicted)
    assert (radius > 0).any()
    broken_beyond = False
    for seed in range(12):
        way = descents(double, x, top, seed) if seed % 2 else None
        for context in range(len(x)):
            for reach in {float(r) for r in radius[context] if r > 0}:
                here = moves(x[[context]], reach, seed, None if way is None else way[[context]])
                with torch.no_grad():
                    after = double.from_embeddings(here)[0].argmax(-1).numpy()
                assert (after == found.predicted[context])[radius[context] >= reach].all()
            with torch.no_grad():
                far = moves(x[[context]], 4.0, seed, None if way is None else way[[context]])
                broken_beyond |= bool(
                    (double.from_embeddings(far)[0].argmax(-1).numpy() != found.predicted[context]).any()
                )
    assert broken_beyond  # the search is not blind


@pytest.mark.parametrize("radius", EPS)
def test_no_move_changes_the_loss_by_more_than_is_proved(case, radius: float) -> None:
    model, _, found, embedded, y = case
    double, x, labels = copy.deepcopy(model).double(), embedded.double(), torch.from_numpy(y)
    moved = found.moved(radius)
    loss, change = found.loss(y, moved), found.change(y, moved)

    def measured(z: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            answers = double.from_embeddings(z).transpose(1, 2)
        return nn.functional.cross_entropy(answers, labels, reduction="none").numpy()

    before = measured(x)
    for seed in range(10):
        after = measured(moves(x, radius, seed, descents(double, x, labels, seed) if seed % 2 else None))
        assert (after <= loss).all()
        assert (np.abs(after - before) <= change).all()
    assert (loss <= before + change + 1e-8).all()  # pair by pair is never worse than the largest pair


def test_the_loss_of_a_text_is_its_cross_entropy_and_the_bound_lies_just_above(case) -> None:
    model, _, found, embedded, y = case
    with torch.no_grad():
        answers = copy.deepcopy(model).double().from_embeddings(embedded.double()).transpose(1, 2)
    exact = nn.functional.cross_entropy(answers, torch.from_numpy(y), reduction="none").numpy()
    assert found.cross_entropy(y) == pytest.approx(exact, abs=1e-12)
    held = found.loss(y, np.zeros(len(y)))
    assert (held >= exact).all()
    assert held == pytest.approx(exact, abs=1e-8)


def test_a_loss_is_unbounded_where_the_error_is(case) -> None:
    _, _, found, _, y = case
    error = found.error.copy()
    error[1] = np.inf
    with np.errstate(all="raise", under="ignore"):
        loss = replace(found, error=error).loss(y, found.moved(0.1))
    assert np.isinf(loss[1]).all()
    assert np.array_equal(loss[2:], found.loss(y, found.moved(0.1))[2:])


def test_small_vocabularies_are_proved_no_less_than_by_the_whole_table() -> None:
    # The formulas on all logits and all pairs at once, in one array each: what 65 tokens had before there were pieces.
    model = network(65, seed=2)
    x, y = torch.randint(65, (2, 6, CONTEXT), generator=torch.Generator().manual_seed(3))
    given, embedded = bounded(model, CONTEXT, 0.4), model.embed(x).detach()
    found = proof(given, embedded, EPS, steps=5)
    logits = np.concatenate([centres(export(Answers(model).eval(), (CONTEXT, WIDTH)), embedded).numpy()])
    pairs = np.array([[number.to_float() for number in row] for row in given.everywhere.pairs.l2 or ()])
    top = logits.argmax(axis=-1)
    lead = np.take_along_axis(logits, top[..., None], axis=-1) - logits - given.error
    with np.errstate(divide="ignore", invalid="ignore"):
        each = lead / pairs[top]
    np.put_along_axis(each, top[..., None], np.inf, axis=-1)
    before = np.maximum(each.min(axis=-1), 0.0)
    assert np.array_equal(found.predicted, top)
    assert (found.room >= before * (1 - 1e-13) - 1e-15).all()  # the order of summation aside
    assert (found.error <= given.error).all()
    moved = found.moved(0.1)
    assert np.array_equal(found.change(y.numpy(), moved), np.nextafter(pairs.max(axis=1)[y] * moved[:, None], np.inf))
    labels = y.numpy()[..., None]
    a = logits - np.take_along_axis(logits, labels, axis=-1) + pairs[y] * moved[:, None, None]
    a += np.where(np.arange(65) != labels, given.error, 0.0)
    assert (found.loss(y.numpy(), moved) <= np.log(np.exp(a).sum(axis=-1)) + 1e-10).all()


class Answers(nn.Module):
    """Embeddings to the logits of all positions."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.from_embeddings(x)


def test_without_a_table_of_pairs_hardly_less_is_proved() -> None:
    model = network(60, seed=5)
    x, y = torch.randint(60, (2, 4, CONTEXT), generator=torch.Generator().manual_seed(3))
    given, embedded = bounded(model, CONTEXT, 0.4), model.embed(x).detach()
    table = proof(given, embedded, EPS, steps=0)
    bare = Head(**{**{name: getattr(given.head, name) for name in Head.__slots__}, "pairs_VV": None})
    rows = proof(Bounded(**{**{n: getattr(given, n) for n in Bounded.__slots__}, "head": bare}), embedded, EPS, steps=0)
    assert np.array_equal(rows.predicted, table.predicted)
    assert (rows.room <= table.room).all()
    assert rows.room == pytest.approx(table.room, rel=1e-9)
    assert rows.loss(y.numpy(), rows.moved(0.1)) == pytest.approx(table.loss(y.numpy(), table.moved(0.1)), rel=1e-9)


def test_pieces_of_any_size_say_the_same(case, monkeypatch: pytest.MonkeyPatch) -> None:
    _, given, found, embedded, y = case
    moved = found.moved(0.1)
    whole = found.loss(y, moved), found.change(y, moved), found.cross_entropy(y)
    monkeypatch.setattr(heads, "ENTRIES", 1)  # one position at a time
    again = proof(given, embedded, [0.1], steps=0)
    assert np.array_equal(again.predicted, found.predicted)
    assert again.room == pytest.approx(found.room, rel=1e-9, abs=1e-12)
    for one, other in zip(whole, (found.loss(y, moved), found.change(y, moved), found.cross_entropy(y)), strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_the_logits_of_a_text_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(WORDS)
    x, y = torch.randint(WORDS, (2, 9, CONTEXT), generator=torch.Generator().manual_seed(3))
    given, embedded, sizes = bounded(model, CONTEXT, 0.1), model.embed(x).detach(), list[int]()
    for name in ("logits", "slopes"):
        plain = getattr(Head, name)

        def counted(self: Head, given: np.ndarray, plain: Any = plain) -> np.ndarray:
            found: np.ndarray = plain(self, given)
            sizes.append(found.size)
            return found

        monkeypatch.setattr(Head, name, counted)
    monkeypatch.setattr(heads, "ENTRIES", 4 * WORDS)
    found = proof(given, embedded, [0.1], steps=0)
    for words in (found.loss(y.numpy(), found.moved(0.1)), found.change(y.numpy(), found.moved(0.1))):
        assert words.shape == (9, CONTEXT)
    agreement(given, model, embedded, found)
    assert max(sizes) == 4 * WORDS


def test_the_ledger_of_a_large_vocabulary_has_one_number_for_all_pairs() -> None:
    given = bounded(network(101), 2, 0.1)
    given.everywhere.check()
    assert given.everywhere.pairs.gain == ((pair_gain(given.everywhere.steps[-1].bound),),)


def test_errors_at_a_text_are_those_of_every_position_and_no_larger_than_the_ledgers(case) -> None:
    model, given, found, embedded, _ = case
    assert (found.error <= given.error).all()
    with torch.no_grad():
        other = copy.deepcopy(model).double().from_embeddings(embedded.double()).numpy()
    computed = given.head.logits(found.hidden)
    off = np.abs((computed - computed[..., :1]) - (other - other[..., :1])).max(axis=(1, 2))
    assert (off <= 2 * found.error).all()


def test_a_module_whose_graph_is_another_is_refused() -> None:
    model = network(WORDS)
    given = bounded(model, CONTEXT, 0.1)
    embedded = model.embed(torch.arange(2 * CONTEXT).reshape(2, CONTEXT)).detach()
    found = proof(given, embedded, [0.1], steps=0)
    assert agreement(given, model, embedded, found) <= 1e-4
    with torch.no_grad():
        model.head.weight[7] += 1.0  # type: ignore[operator, index, union-attr]
    with pytest.raises(Refusal, match=r"^the module and its exported graph differ by .*, more than rounding explains"):
        agreement(given, model, embedded, found)


def overflowing(monkeypatch: pytest.MonkeyPatch, *arithmetics: str) -> None:
    """Bounds in these arithmetics grow beyond what a decimal number can hold, as after 12 LayerNorms."""
    plain = Interpreter.__call__

    def bounds(self: Interpreter, *words: Any, **given: Any) -> Any:
        if given.get("arithmetic", "float64") in arithmetics:
            raise Overflow
        return plain(self, *words, **given)

    monkeypatch.setattr(Interpreter, "__call__", bounds)


def test_of_an_execution_whose_rounding_has_no_written_bound_nothing_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overflowing(monkeypatch, "float32")
    model = network(60)
    given = bounded(model, CONTEXT, 0.1)
    assert given.deployed is None
    embedded = model.embed(torch.arange(2 * CONTEXT).reshape(2, CONTEXT)).detach()
    found = proof(given, embedded, [0.01], steps=0)
    assert (found.radius(found.everywhere) > 0).any()  # the exact claim stands
    assert agreement(given, model, embedded, found) < 1e-4
    own = execution(given, found, embedded)
    assert not own.claim.holds
    assert own.claim.reasons == ("a bound of its rounding is larger than any number that can be written down",)
    assert not own.everywhere.any()
    assert not own.jointly.any()


def test_bounds_beyond_every_written_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(monkeypatch, "float64", "float32")
    with pytest.raises(
        Refusal, match=r"^the bounds of this model are larger than any number that can be written down$"
    ):
        bounded(network(60), CONTEXT, 0.1)


def test_long_contexts_are_executed_a_few_at_a_time() -> None:
    assert [pieces_of(context) for context in (1, 256, 257, 1024, 10**6)] == [8, 8, 7, 2, 1]
