"""certkit language and certkit stability from a folder of text to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result

from certkit import checkpoint
from certkit.bounds.ledger import main as derive
from certkit.config import validate
from certkit.errors import RecordError
from certkit.files import load, save
from certkit.health.activations import watched
from certkit.health.largest import fits, largest_entries, largest_scores
from certkit.health.spectra import weight_norms
from certkit.health.training import training_steps
from certkit.language.certificate import bounded
from certkit.language.records import LanguageAudit, Stability
from certkit.models import create
from certkit.models.gpt import LanguageModel
from certkit.records.health import Largest
from certkit.reports.language import changed, render, report, visible
from tests import languages
from tests.languages import LETTERS, run
from tests.pages import Page


@pytest.fixture(scope="module")
def text() -> Path:
    return languages.text()


@pytest.fixture(scope="module")
def network() -> Path:
    return languages.network()


@pytest.fixture(scope="module")
def audited() -> tuple[Path, Result]:
    return languages.audited()


def test_an_audit_of_a_language_model_ends_with_a_page(audited: tuple[Path, Result]) -> None:
    out, result = audited
    assert result.exit_code in (0, 3), result.output  # a campaign on three samples may fail its own checks
    found = load(LanguageAudit, out / "language.json")
    assert found.verdict in ("NOT REFUTED", "INCONCLUSIVE")
    assert sum(curve.contradictions for curve in found.curves) == 0
    assert [(c.moves, c.positions) for c in found.curves] == [
        ("every token", "all"), ("every token", "last"), ("one token", "last"), ("8 tokens", "last"),
    ]  # fmt: skip
    for curve in found.curves:
        for proved, attacked in zip(curve.certified, curve.attacked, strict=True):
            assert proved.certified.count <= attacked.robust.count
    assert found.losses[0].loss <= found.losses[1].loss <= found.losses[2].loss
    assert found.losses[0].loss >= found.loss
    assert "published" in result.output


def test_the_ledger_derives_again_without_torch(
    audited: tuple[Path, Result], capsys: pytest.CaptureFixture[str]
) -> None:
    assert derive([str(audited[0] / "language.json")]) == 0
    assert "no difference" in capsys.readouterr().out


def test_one_row_per_position(audited: tuple[Path, Result]) -> None:
    out, _ = audited
    found, table = load(LanguageAudit, out / "language.json"), pq.read_table(out / "positions.parquet").to_pydict()
    assert len(table["radius_all"]) == found.positions == 3 * 8
    assert sum(table["right"]) == found.clean.count
    for right, radius, own, attacked in zip(
        *(table[name] for name in ("right", "radius_all", "float_radius_all", "attacked_all")), strict=True
    ):
        assert own <= radius
        assert not right or radius < attacked
    at = found.curves[0].certified[0]
    counted = sum(r and radius >= at.eps.value for r, radius in zip(table["right"], table["radius_all"], strict=True))
    assert counted == at.certified.count


def test_the_program_as_it_runs_has_radii_of_its_own(audited: tuple[Path, Result]) -> None:
    found = load(LanguageAudit, audited[0] / "language.json")
    assert found.execution.arithmetic == "float32"
    assert found.execution.pair_error is not None
    for curve in found.curves:
        assert 0 < curve.median_float_radius <= curve.median_radius
        for exact, own in zip(curve.certified, curve.executed, strict=True):
            assert own.certified.count <= exact.certified.count
    assert "as executed" in audited[1].output


def test_what_few_tokens_do_more_can_do_as_well(audited: tuple[Path, Result]) -> None:
    table = pq.read_table(audited[0] / "positions.parquet").to_pydict()
    for all_, eight, one in zip(*(table[f"attacked_{moved}"] for moved in ("all", "8", "1")), strict=True):
        assert all_ <= eight <= one


def test_the_page_escapes_the_text_and_fetches_nothing(audited: tuple[Path, Result]) -> None:
    out, _ = audited
    found = load(LanguageAudit, out / "language.json")
    hostile = found.shown[0].model_copy(update={"tokens": ("<script>alert(1)</script>",) * 8, "true": ("\u202e",) * 8})
    html = render(found.model_copy(update={"shown": (hostile,)}))
    page = Page(html)
    assert "<script" not in html
    assert "alert(1)" in page.text
    assert "\u202e" not in html
    assert not any(name in ("src", "onclick", "style") for _, names in page.elements for name in names)
    assert all(not (value or "").startswith("http") for _, names in page.elements for value in names.values())
    (content,) = [names["content"] for tag, names in page.elements if names.get("http-equiv")]
    assert (content or "").startswith("default-src 'none'; style-src 'sha256-")


def test_every_number_of_the_page_is_the_record_s(audited: tuple[Path, Result]) -> None:
    out, _ = audited
    record = json.loads((out / "language.json").read_text(encoding="utf-8"))
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert len(page.data) > 50
    for path, values in page.data.items():
        if not path:
            continue  # derived
        value = record
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert all(float(shown) == float(value) for shown, _ in values), path


def test_replaced_tokens_are_marked(audited: tuple[Path, Result]) -> None:
    found = load(LanguageAudit, audited[0] / "language.json")
    some = [one for one in found.substitutions if one.places]
    assert some
    for one in some:
        rows = changed(one)
        marked = [(a, b) for a, b, replaced in rows if replaced]
        assert marked == [(visible(one.before[n]), visible(one.after[n])) for n in one.places]


def test_spaces_and_line_ends_are_seen() -> None:
    assert visible("a \n") == "a␣↵"


def test_an_image_command_names_the_one_that_reads_text(network: Path, tmp_path: Path) -> None:
    result = run("audit", network, "--out", tmp_path)
    assert result.exit_code == 2
    assert "reads text, and this command reads images; run certkit language CHECKPOINT" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--moves", "some"], "--moves 'some' is neither all nor a number of tokens"),
        (["--moves", "0"], "--moves '0' is neither all nor a number of tokens"),
        (["--context", "9"], "context must be 1 to 8, got 9"),
        (["--eps", "0"], "the largest radius must be above 0 and finite, got 0.0"),
        (["--eps", "-1"], "eps -1 is negative"),
        (["--tokenizer", "word"], "tokenizer 'word' is not known"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    network: Path, text: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = run("language", network, "--data", text, "--out", tmp_path, *words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_another_vocabulary_is_refused(network: Path, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("xyz" * 40, encoding="utf-8")
    result = run("language", network, "--data", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the text has a vocabulary of 3, the model one of 7" in result.output


def test_a_network_of_float64_is_refused_as_its_examples_would_be_rounded(
    network: Path, text: Path, tmp_path: Path
) -> None:
    settings = json.loads((network / "config.json").read_text(encoding="utf-8"))
    settings["training"]["precision"] = "float64"
    weights = {name: tensor.double() for name, tensor in checkpoint.read(network).state.items()}
    checkpoint.write(tmp_path / "wide", weights, settings)
    result = run("language", tmp_path / "wide", "--data", text, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert (
        "wide: its weights are float64; examples are embeddings in float32, expected a language model of float32"
        in result.output
    )


def test_a_folder_without_an_audit_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no language\.json here; expected a folder that certkit language wrote"):
        report(tmp_path)


def test_stability_sets_folders_side_by_side(network: Path, text: Path, tmp_path: Path) -> None:
    result = run("stability", network, network, "--data", text, "--contexts", 2, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    first, second = (load(Stability, tmp_path / name) for name in ("stability.json", "stability-2.json"))
    assert first.entries == second.entries
    assert first.training is not None
    assert (first.training.spikes, first.training.largest_gradient_norm, first.training.steps) == (2, 3.0, 10)
    assert "attention logit, proved" in result.output


def test_entries_and_scores_of_any_text_are_below_what_is_proved(network: Path) -> None:
    held = checkpoint.read(network)
    model = create(validate(held.config or {}, "run").model)
    checkpoint.load_into(model, held)
    assert isinstance(model.eval(), LanguageModel)
    given = bounded(model, 8, 2.0**-20)
    x = torch.randint(len(LETTERS), (6, 8), generator=torch.Generator().manual_seed(5))
    seen = watched(given.program, model.embed(x).detach(), piece=4)
    entries = largest_entries(given.everywhere, seen.entries)
    scores = largest_scores(given.everywhere, seen.entries, seen.scores)
    assert [entry.part for entry in entries] == ["input", "blocks.0", "blocks.1", "logits"]
    assert [score.part for score in scores] == ["blocks.0"]
    for one in (*entries, *scores):
        assert 0 < one.measured <= float(one.certified)
    norms = weight_norms(model.named_parameters())
    exact = torch.linalg.matrix_norm(model.head.weight.detach().double(), 2)
    assert norms["head.weight"] >= float(exact)
    assert norms["head.weight"] == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize(
    ("certified", "expected"), [("400", [True, True, True]), ("1e4", [True, True, False]), ("1e400", [False] * 3)]
)
def test_a_format_fits_only_what_is_proved(certified: str, expected: list[bool]) -> None:
    found = fits((Largest(part="x", measured=10.0, certified=certified), Largest(part="y", measured=1, certified="2")))
    assert [fit.fits for fit in found] == expected
    assert found[0].headroom == pytest.approx(6550.4)
    assert all(fit.certified_headroom <= fit.headroom for fit in found)


@pytest.mark.parametrize("line", ["nonsense", '{"step": 1}', '{"step": 1, "loss": NaN, "spikes": 0}', "[1]"])
def test_broken_metrics_are_refused_by_name(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"^metrics\.jsonl: not the metrics of a training run"):
        training_steps(tmp_path / "metrics.jsonl")


def test_a_record_reads_back_as_it_was_written(audited: tuple[Path, Result], tmp_path: Path) -> None:
    found = load(LanguageAudit, audited[0] / "language.json")
    save(found, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (audited[0] / "language.json").read_bytes()
