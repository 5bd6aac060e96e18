"""The program of a language model as it runs, and examples inside its radii: what each of them disproves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from certkit.attacks.language import pgd
from certkit.engine.kernels import deployed
from certkit.engine.local.centre import measure
from certkit.errors import RecordError
from certkit.language import audit
from certkit.language.certificate import Bounded, Proof, bounded, joined, proof
from certkit.language.contradictions import Hit, Judged, answered, contradictions, replayed
from certkit.language.execution import Executed, execution, rounding
from certkit.language.positions import Moves, Positions
from certkit.models.gpt import LanguageModel
from certkit.models.layers import Unembedding
from certkit.records import Eps
from certkit.text.tokens import Tokens, load_text
from tests.test_language import CONTEXT, WORDS, network, network_in_float64, pushed

LETTERS = "abc"
EPS = (Eps.of("0"), Eps.of("0.5"))
WAYS = (Moves(None), Moves(1))
Case = tuple[LanguageModel, Bounded, Proof, Executed, torch.Tensor]


def proved(model: LanguageModel, x: torch.Tensor, radii: list[float]) -> Case:
    given = bounded(model, x.shape[1], max(radii))
    embedded = model.embed(x).detach()
    found = proof(given, embedded, radii, steps=8)
    return model, given, found, execution(given, found, embedded), embedded


@pytest.fixture(scope="module")
def mild() -> Case:
    x = torch.randint(WORDS, (4, CONTEXT), generator=torch.Generator().manual_seed(3))
    return proved(network(1, scale=2.0), x, [0.02, 0.1, 0.4])


def plain(embeddings: list[list[float]], head: list[list[float]], context: int = 2) -> LanguageModel:
    """A language model without blocks: logits are one matrix times an embedding."""
    model = LanguageModel(
        nn.Embedding(len(embeddings), len(embeddings[0])),
        nn.Sequential(),
        Unembedding(len(embeddings[0]), len(head)),
        context=context,
    ).eval()
    with torch.no_grad():
        model.embed.weight.copy_(torch.tensor(embeddings))
        model.head.weight.copy_(torch.tensor(head))
    return model


# In exact arithmetic the first token leads by 0.001; in float32 two numbers of 2^24 swallow it.
CANCELLING = ([[4096.0, 1e-3], [-4096.0, 1.0], [0.0, 2.0]], [[4096.0, 1.0], [4096.0, 0.0], [0.0, 0.0]])
# Logits are the embedding: a token stays on top while it leads, at a distance of lead / sqrt(2).
IDENTITY = ([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0]], np.eye(3).tolist())


def test_radii_of_the_program_are_never_above_those_of_the_exact_function(mild: Case) -> None:
    _, _, found, own, _ = mild
    assert own.claim.holds
    for exact, executed in ((found.everywhere, own.everywhere), (found.jointly, own.jointly)):
        assert (executed <= found.radius(exact)).all()
        assert set(np.unique(executed)) <= {0.0, *found.radii}
    assert (own.everywhere > 0).any()


def test_no_rounding_of_the_program_exceeds_what_is_derived(mild: Case) -> None:
    model, given, _, _, embedded = mild
    seen, double = joined([measure(given.program, given.everywhere, embedded)]), network_in_float64(model)
    for radius in (0.0, 0.1, 0.4):
        off, lost = rounding(given, given.everywhere, seen, np.full(len(embedded), radius))
        for seed in range(10):
            x = pushed(model, embedded, radius * (1 - 1e-6), None, seed).float() if radius else embedded
            with torch.no_grad(), deployed():
                read, logits = model.hidden(x), model.from_embeddings(x)
                exact, of_read = double.hidden(x.double()), double.head(read.double())
            moved = (read.double() - exact).norm(dim=-1).amax(dim=1).numpy()
            rounded = (logits.double() - of_read).abs().amax(dim=(1, 2)).numpy()
            assert (moved <= off).all()
            assert (2 * rounded <= lost).all()
            assert (moved > off / 1e6).any()  # the search is not blind


def test_the_program_errs_nowhere_inside_its_radius(mild: Case) -> None:
    model, _, found, own, embedded = mild
    predicted = torch.from_numpy(found.predicted)
    with deployed():
        reached = pgd(model.from_embeddings, embedded, predicted, [0.02, 0.1, 0.4, 1.6], steps=12, restarts=2)
    assert np.isfinite(reached.distance).any()
    assert (reached.distance > own.everywhere).all()


def test_where_rounding_swallows_the_lead_the_exact_claim_stands_alone() -> None:
    model, _, found, own, embedded = proved(plain(*CANCELLING), torch.tensor([[0, 2]]), [1e-9, 1e-7])
    assert found.radius(found.everywhere)[0].tolist() == [1e-7, 1e-7]  # beyond the float64 error
    assert own.claim.holds
    assert own.everywhere[0, 0] == 0  # the program ties: nothing of it is claimed
    with torch.no_grad():
        logits = model.from_embeddings(embedded)[0, 0]
    assert logits[0] == logits[1]


def test_a_lead_beyond_the_rounding_is_certified_of_the_program_too() -> None:
    _, _, found, own, _ = proved(plain(*IDENTITY), torch.tensor([[0, 1]]), [0.5, 1.0, 1.4, 2.0])
    assert own.everywhere[0].tolist() == [1.4, 2.0]
    assert np.array_equal(own.everywhere, found.radius(found.everywhere))


def test_nothing_is_claimed_of_a_program_that_no_kernel_list_covers(
    mild: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, given, found, _, embedded = mild
    monkeypatch.setattr("certkit.engine.floats.COVERED", {})
    own = execution(given, found, embedded)
    assert own.claim.pair_error is None
    assert own.claim.reasons
    assert not own.everywhere.any()
    assert not own.jointly.any()


# --- Examples inside radii --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    folder = tmp_path_factory.mktemp("letters")
    (folder / "all.txt").write_text(LETTERS * 20, encoding="utf-8")
    return load_text(str(folder), "test", cache=folder / "cache")


def planted(
    case: Case, tokens: Tokens, out: Path, example: torch.Tensor, distance: float, **forged: float
) -> tuple[Positions, tuple[audit.Contradiction, ...]]:
    """What is made of an example of the first position, where radii are as ``forged`` or else as proved."""
    model, given, found, own, _ = case
    x = np.array([[0, 2]]) if model.embed.weight.shape[1] == 2 else np.array([[0, 1]])
    table = audit.positions(found, own, x, found.predicted, WAYS, EPS[:1])
    table = replace(table, **{name: np.full_like(getattr(table, name), value) for name, value in forged.items()})
    hit = Hit(0, "pgd", 0, 0, distance, example)
    return table, contradictions(given, model, [hit], table, WAYS, tokens, out)


def test_an_example_that_is_wrong_in_float64_refutes_the_exact_claim(tokens: Tokens, tmp_path: Path) -> None:
    case = proved(plain(*IDENTITY), torch.tensor([[0, 1]]), [1.0])
    example = torch.tensor([[0.9, 1.1, 0.0], [0.0, 3.0, 0.0]])
    distance = 1.6
    table, found = planted(case, tokens, tmp_path, example, distance, radius=1.7)
    (one,) = found
    assert one.refutes == "exact arithmetic"
    assert one.reference_margin == pytest.approx(-0.2)
    assert (one.context, one.position, one.text) == (0, 0, ("a",))
    assert (one.predicted, one.rival, one.moves, one.attack) == ("a", "b", "every token", "pgd")
    assert one.example is not None
    assert np.array_equal(np.load(tmp_path / one.example.name), example.numpy())
    verdict, reason = audit.judged(found, SimpleNamespace(checks=()))
    assert (verdict, reason) == (
        "REFUTED",
        "1 position broken in float64 inside a certified radius: the certificate is wrong",
    )
    again = replayed(tmp_path, one, table, case[1], case[0])
    assert again.reproduced
    assert again.distance <= distance
    assert again.refutes == "exact arithmetic"


def test_an_error_of_the_program_alone_is_a_float_gap(tokens: Tokens, tmp_path: Path) -> None:
    case = proved(plain(*CANCELLING), torch.tensor([[0, 2]]), [1e-7])
    _, found = planted(case, tokens, tmp_path, case[4][0], 0.0)
    (one,) = found
    assert (one.refutes, one.attack, one.distance) == ("float gap", "clean", 0.0)
    assert one.reference_margin == pytest.approx(1e-3, rel=1e-4)
    verdict, reason = audit.judged(found, SimpleNamespace(checks=()))
    assert verdict == "NOT REFUTED"
    assert (
        reason == "nothing refutes a claim, but on 1 position the program errs inside the certified radius (float gaps)"
    )


def test_an_error_inside_the_radius_of_the_execution_refutes_that_claim(tokens: Tokens, tmp_path: Path) -> None:
    case = proved(plain(*CANCELLING), torch.tensor([[0, 2]]), [1e-7])
    _, found = planted(case, tokens, tmp_path, case[4][0], 0.0, float_radius=1e-7)
    assert [one.refutes for one in found] == ["float execution"]
    verdict, reason = audit.judged(found, SimpleNamespace(checks=()))
    assert verdict == "REFUTED"
    assert "that claim is wrong; the one about exact arithmetic stands" in reason


def test_an_example_that_nothing_breaks_is_a_float_gap_of_another_machine(tokens: Tokens, tmp_path: Path) -> None:
    case = proved(plain(*IDENTITY), torch.tensor([[0, 1]]), [1.0])
    _, found = planted(case, tokens, tmp_path, case[4][0], 0.0)
    assert [(one.refutes, one.rival) for one in found] == [("float gap", "a")]


def test_an_example_beyond_the_radius_contradicts_nothing(tokens: Tokens, tmp_path: Path) -> None:
    case = proved(plain(*IDENTITY), torch.tensor([[0, 1]]), [1.0])
    _, found = planted(case, tokens, tmp_path, torch.tensor([[0.9, 1.1, 0.0], [0.0, 3.0, 0.0]]), 1.6)
    assert found == ()
    assert not list(tmp_path.iterdir())
    assert audit.judged(found, SimpleNamespace(checks=()))[0] == "NOT REFUTED"


def test_of_two_examples_the_one_that_disproves_more_is_kept(tokens: Tokens, tmp_path: Path) -> None:
    model, given, found, own, embedded = proved(plain(*IDENTITY), torch.tensor([[0, 1]]), [1.0])
    table = audit.positions(found, own, np.array([[0, 1]]), found.predicted, WAYS, EPS[:1])
    table = replace(table, radius=np.full_like(table.radius, 1.7))
    wrong = torch.tensor([[0.9, 1.1, 0.0], [0.0, 3.0, 0.0]])
    hits = [Hit(0, "pgd", 0, 0, 0.0, embedded[0]), Hit(1, "ddn", 0, 0, 1.6, wrong), Hit(0, "pgd", 0, 0, 1.65, wrong)]
    (one,) = contradictions(given, model, hits, table, WAYS, tokens, tmp_path)
    assert (one.refutes, one.attack, one.moves, one.distance) == ("exact arithmetic", "ddn", "one token", 1.6)


def test_a_margin_within_its_error_disproves_nothing() -> None:
    for margin, expected in ((-1.0, "exact arithmetic"), (-1e-9, "float gap"), (0.0, "float gap"), (1.0, "float gap")):
        assert Judged(margin, 1e-8, answer=1).disproves(0, claimed=False) == expected
    rounded = float(np.nextafter(-1e-8, -np.inf))  # of a lead that is the error exactly: the logits may be equal
    assert Judged(rounded, 1e-8, answer=1).disproves(0, claimed=False) == "float gap"
    assert Judged(-1e-9, 1e-8, answer=1).disproves(0, claimed=True) == "float execution"
    assert Judged(-1e-9, 1e-8, answer=0).disproves(0, claimed=True) == "float gap"


def test_a_tie_or_no_number_is_another_answer() -> None:
    assert answered(np.array([1.0, 1.0, 0.0]), 0) == 1
    assert answered(np.array([1.0, 0.5, np.nan]), 0) == 2
    assert answered(np.array([np.nan, 0.5, 0.0]), 0) == 1
    assert answered(np.array([1.0, 0.5, 0.0]), 0) == 0


@pytest.mark.parametrize("data", [b"", b"not numpy", None])
def test_an_example_that_is_not_the_one_named_is_refused(tokens: Tokens, tmp_path: Path, data: bytes | None) -> None:
    case = proved(plain(*IDENTITY), torch.tensor([[0, 1]]), [1.0])
    table, (one,) = planted(case, tokens, tmp_path, case[4][0], 0.0)
    assert one.example is not None
    path = tmp_path / one.example.name
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    told = "it is missing" if data is None else "is not the example that language.json names"
    with pytest.raises(RecordError, match=rf"^refutations/context-0-position-0.npy: .*{told}"):
        replayed(tmp_path, one, table, case[1], case[0])
