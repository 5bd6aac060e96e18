"""GPT-2 folders of Hugging Face in embedding space: the same network, certified, attacked and looked into as certkit's own."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from certkit.bounds.ledger import main as derive
from certkit.cli import main
from certkit.commands import falsify
from certkit.commands.language import lines
from certkit.commands.language import load as load_language
from certkit.errors import ConfigError, DataError, Refusal
from certkit.files import load
from certkit.foreign import huggingface, text
from certkit.language.certificate import agreement, bounded, proof
from certkit.language.records import LanguageAudit, Stability
from certkit.models.gpt import LanguageModel
from certkit.reports.language import render
from certkit.text import GPT2, tokenizers

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

LETTERS = "abc <&\n"
CONTEXT = 8


def folder(path: Path, *, vocabulary: int = len(LETTERS), sharp: float = 6.0, **given: Any) -> Path:
    """A GPT-2 of 2 blocks as ``save_pretrained`` writes it; ``sharp`` multiplies the table that is also its head."""
    torch.manual_seed(0)
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "bos_token_id": 0, "eos_token_id": 0}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocabulary, **{**settings, **given}))
    with torch.no_grad():
        network.transformer.wte.weight.mul_(sharp)
    network.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("text")
    again = "".join(
        letter * 12 for letter in LETTERS
    )  # the head is the table: what an untrained network expects is the same letter
    (found / "all.txt").write_text(again * 6, encoding="utf-8")
    return found


def run(*given: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in given])


@pytest.mark.parametrize(
    "given", [{}, {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": False}, {"activation_function": "relu"}],
    ids=["plain", "scaled by layer", "own head", "relu"],
)  # fmt: skip
def test_three_parts_give_the_logits_of_the_network(tmp_path: Path, given: dict[str, Any]) -> None:
    path = folder(tmp_path / "gpt2", **given)
    model = text.language_model(huggingface.load(path))
    whole = transformers.GPT2LMHeadModel.from_pretrained(path).eval()
    ids = torch.randint(len(LETTERS), (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(ids), whole(input_ids=ids).logits, atol=1e-5)
    assert isinstance(model, LanguageModel)
    assert not model.training
    assert model.context == CONTEXT


def test_parts_that_are_not_the_network_are_refused(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = text.Body.forward
    monkeypatch.setattr(text.Body, "forward", lambda self, x: plain(self, x) * 1.01)
    with pytest.raises(
        Refusal,
        match=r"^GPT2LMHeadModel: its embeddings, body and head do not make its logits; certkit would speak of another network$",
    ):
        text.language_model(huggingface.load(network))


def test_a_network_that_continues_no_text_is_refused(tmp_path: Path) -> None:
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    cls = transformers.BertForSequenceClassification
    cls(transformers.BertConfig(vocab_size=30, **settings)).save_pretrained(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"^BertForSequenceClassification is no causal language model; expected one of GPT2LMHeadModel$",
    ):
        load_language(tmp_path)


@pytest.mark.parametrize("vocabulary", [len(LETTERS), 150], ids=["pairs", "rows"])
def test_no_move_within_a_certified_radius_of_a_gpt2_changes_a_prediction(tmp_path: Path, vocabulary: int) -> None:
    # Through LayerNorm little is certified: radii of about a millionth, which hold all the same.
    model = text.language_model(huggingface.load(folder(tmp_path / "gpt2", vocabulary=vocabulary)))
    given = bounded(model, CONTEXT, 0.1)
    x = torch.randint(vocabulary, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    embedded = model.embed(x).detach()
    found = proof(given, embedded, [1e-5, 1e-4, 0.1], steps=6)
    agreement(given, model, embedded, found)
    radius, double = found.radius(found.everywhere), copy.deepcopy(model).double()
    assert (radius > 0).any()
    assert (radius < 0.1).all()
    change, loss = (find(x.numpy(), found.moved(1e-4)) for find in (found.change, found.loss))

    def answers(z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return double.from_embeddings(z)

    before = torch.nn.functional.cross_entropy(answers(embedded.double()).transpose(1, 2), x, reduction="none").numpy()
    source = torch.Generator().manual_seed(2)
    for _ in range(10):
        step = torch.randn(embedded.shape, generator=source, dtype=torch.float64)
        step /= step.norm(dim=-1, keepdim=True)
        for context in range(len(x)):
            for reach in {float(r) for r in radius[context] if r > 0}:
                top = answers(embedded[[context]].double() + step[[context]] * reach * (1 - 1e-9))[0].argmax(-1).numpy()
                assert (top == found.predicted[context])[radius[context] >= reach].all()
        moved = answers(embedded.double() + step * 1e-4 * (1 - 1e-9)).transpose(1, 2)
        after = torch.nn.functional.cross_entropy(moved, x, reduction="none").numpy()
        assert (after <= loss).all()
        assert (np.abs(after - before) <= change).all()


@pytest.fixture(scope="module")
def audited(network: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("audit")
    given = ("--contexts", 3, "--eps", "0.00001,8", "--moves", "all", "--steps", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(falsify, "LOGITS", 1)  # one context is attacked at a time, as with a large vocabulary
        return out, run("language", network, "--data", words, *given, "--out", out)


def test_an_audit_of_a_folder_of_hugging_face_ends_with_a_page(audited: tuple[Path, Result], network: Path) -> None:
    out, result = audited
    assert result.exit_code in (0, 3), result.output  # a campaign on three samples may fail its own checks
    found = load(LanguageAudit, out / "language.json")
    assert found.subject == huggingface.load(network).subject
    small, large = zip(found.curves[0].certified, found.curves[0].attacked, strict=True)
    assert 0 < small[0].certified.count <= small[1].robust.count <= found.clean.count
    assert large[0].certified.count == 0
    assert large[1].robust.count < found.clean.count  # the attacks work
    assert found.contradictions == ()
    assert (out / "report.html").is_file()
    assert derive([str(out / "language.json")]) == 0


def test_that_nothing_is_certified_is_said(audited: tuple[Path, Result]) -> None:
    found, sentence = (
        load(LanguageAudit, audited[0] / "language.json"),
        "the bounds are sound, and too wide for this network",
    )
    assert not found.certifies_nothing
    assert sentence not in "".join(lines(found)) + render(found)
    names = ("certified", "executed", "attacked")  # the small radius left out
    without = found.model_copy(
        update={"curves": tuple(one.model_copy(update={n: getattr(one, n)[1:] for n in names}) for one in found.curves)}
    )
    assert without.certifies_nothing
    assert lines(without)[1] == f"certified        nothing at these radii: {sentence}"
    assert f"Nothing is certified at these radii: {sentence}." in render(without)


def test_stability_tells_of_every_block_of_the_network(network: Path, words: Path, tmp_path: Path) -> None:
    result = run("stability", network, "--data", words, "--contexts", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = load(Stability, tmp_path / "stability.json")
    assert len(found.scores) == 2
    for one in (*found.entries, *found.scores):
        assert 0 < one.measured <= float(one.certified)


def test_a_gpt2_and_a_text_of_letters_are_told_which_tokenizer_to_take(tmp_path: Path, words: Path) -> None:
    path = folder(tmp_path / "gpt2", vocabulary=50257, n_embd=2, n_layer=1, n_head=1)
    result = run("language", path, "--data", words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert (
        "the text has a vocabulary of 7, the model one of 50257; give --tokenizer gpt2, or the folder with its files"
        in result.output
    )
    assert "Traceback" not in result.output


def test_the_tokenizer_s_files_are_found_under_either_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"vocab.bpe": b"#version: 0.2\n", "encoder.json": json.dumps({"a": 0}).encode()}
    for name, content in contents.items():
        monkeypatch.setitem(tokenizers.GPT2_FILES, name, hashlib.sha256(content).hexdigest())
    (tmp_path / "merges.txt").write_bytes(contents["vocab.bpe"])
    (tmp_path / "vocab.json").write_bytes(contents["encoder.json"])
    assert [path.name for path in GPT2(tmp_path).files()] == ["merges.txt", "vocab.json"]
    (tmp_path / "vocab.bpe").write_bytes(b"another")  # the published name comes first, and must be the published file
    with pytest.raises(DataError, match=r"holds another vocab\.bpe \(sha256"):
        GPT2(tmp_path).files()
