"""Comparisons: every row is tried fairly, chosen on held-out samples, and nothing is run twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import certkit
from certkit.cli import main
from certkit.comparison import Comparison, Trial, best_rate, spread
from certkit.config import ComparisonConfig, Contender, Run, changed, preset, validate
from certkit.errors import ConfigError
from certkit.training import compare as module
from certkit.training.constraints import promise
from certkit.training.stepper import possible

PLAIN = {"constraint": "none", "loss": "cross-entropy"}


def run(*rows: dict[str, Any], **compare: Any) -> Run:
    return validate(
        {
            "data": {"validation": 0.2},
            "training": {"steps": 6, "refresh": 3, "save": 4},
            "compare": {"seeds": [0, 1], "rows": list(rows), **compare},
        },
        "test",
    )


def row(name: str, *rates: float, **training: Any) -> dict[str, Any]:
    return {"name": name, "learning_rates": list(rates), "set": {"training": training}}


TWO = (row("held", 0.05, 0.1), row("../free", 0.03, optimizer="sgd", **PLAIN))


def test_every_row_rate_and_seed_is_tried_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = certkit.compare(run(*TWO), out=tmp_path)
    assert [[(t.learning_rate, t.seed) for t in one.trials] for one in first.rows] == [
        [(0.05, 0), (0.05, 1), (0.1, 0), (0.1, 1)],
        [(0.03, 0), (0.03, 1)],
    ]
    assert all(trial.fault is None and trial.validation > 0 for one in first.rows for trial in one.trials)
    assert [one.promise for one in first.rows] == ["provable", "none"]
    assert all(path.parent == tmp_path for path in tmp_path.iterdir())
    assert Comparison.model_validate_json((tmp_path / "comparison.json").read_text()) == first

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a trial ran twice")

    monkeypatch.setattr(module, "train", never)
    again = certkit.compare(run(*TWO), out=tmp_path)
    assert again.rows == first.rows


def test_a_trial_of_other_settings_is_run_again(tmp_path: Path) -> None:
    certkit.compare(run(row("a", 0.05)), out=tmp_path)
    longer = changed(run(row("a", 0.05)), {"training": {"steps": 7}}, "test")
    found = certkit.compare(longer, out=tmp_path)
    assert [point.step for point in found.rows[0].trials[0].curve] == [0, 3, 6]
    assert json.loads(next(tmp_path.glob("a-*/0.05-0/metrics.jsonl")).read_text().splitlines()[-1])["step"] == 6


def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    one, two = (certkit.compare(run(*TWO), out=tmp_path / str(n), workers=n) for n in (1, 2))

    def untimed(found: Comparison) -> list[Any]:
        return [[t.model_copy(update={"seconds": 0.0}) for t in r.trials] for r in found.rows]

    assert untimed(one) == untimed(two)


def test_the_rate_is_chosen_on_held_out_samples_and_a_failed_run_counts_nothing() -> None:
    def trial(rate: float, seed: int, validation: float, fault: str | None = None) -> Trial:
        return Trial(learning_rate=rate, seed=seed, validation=validation, fault=fault)

    steady = (trial(0.1, 0, 0.8), trial(0.1, 1, 0.8), trial(0.2, 0, 0.95), trial(0.2, 1, 0.0, "diverged"))
    assert best_rate(steady) == 0.1
    assert best_rate((trial(0.2, 0, 0.8), trial(0.1, 0, 0.8))) == 0.1
    assert spread([1.0, 3.0]) == (2.0, 1.0)
    assert spread([]) == (0.0, 0.0)


def test_a_run_that_diverges_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    found = certkit.compare(run(row("wild", 1e30, optimizer="sgd", **PLAIN), row("calm", 0.05)), out=tmp_path)
    wild, calm = found.rows
    assert wild.failed == 2
    assert all(t.fault is not None and "lower training.learning_rate" in t.fault for t in wild.trials)
    assert calm.failed == 0


def test_the_best_networks_are_certified_and_attacked_and_a_refusal_is_told(tmp_path: Path) -> None:
    rows = (
        row("held", 0.1),
        {"name": "normalised", "learning_rates": [0.01],
         "set": {"model": {"name": "vit-layernorm"}, "training": {"optimizer": "adamw", **PLAIN}}},
    )  # fmt: skip
    found = certkit.compare(run(*rows, eps=["0.1", "36/255"], limit=12, seeds=[0]), out=tmp_path)
    held, normalised = found.rows
    assert [[point.eps for point in one] for one in held.proved] == [["0.1", "36/255"]]
    for point in held.proved[0]:
        assert point.certified.count <= point.attacked.count <= point.certified.total == 12
        assert point.verdict in ("NOT REFUTED", "INCONCLUSIVE")
    assert held.unproved is None
    if not normalised.proved:
        assert normalised.unproved is not None
        assert "aten.layer_norm.default" in normalised.unproved


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            run(row("a", 0.05)).model_copy(update={"data": Run().data}),
            "a comparison chooses learning rates on held-out samples; set data.validation above 0",
        ),
        (run(row("a", 0.05, stps=3)), "row 'a': unknown key 'training.stps'; did you mean 'training.steps'?"),
        (
            run(row("a", 0.05, steps=3)),
            "row 'a' changes data or training.steps; all rows learn the same samples as long",
        ),
        (
            run(row("a", 0.05, optimizer="sgd", constraint="spectral-soft-cap")),
            "training.constraint: spectral-soft-cap needs training.optimizer muon, not sgd: "
            + "it undoes steps of a bounded length, and this optimiser's are not bounded",
        ),
        (Run(), "this run has no [compare] section; certkit.train makes single runs"),
    ],
    ids=["no validation", "unknown key", "other steps", "impossible", "no rows"],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(given: Run, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        certkit.compare(given, out=tmp_path / "out")
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["compare-digits", "compare-shakespeare"])
def test_every_row_of_a_preset_can_be_meant(name: str) -> None:
    base = preset(name)
    compare = base.compare
    assert isinstance(compare, ComparisonConfig)
    assert len(compare.seeds) == 3
    for contender in compare.rows:
        assert isinstance(contender, Contender)
        assert len(contender.learning_rates) == 5
        for rate in contender.learning_rates:
            one = changed(base, contender.set, "row")
            one = changed(one, {"training": {"learning_rate": rate}}, "row")
            possible(one.training)
            assert promise(one.training.constraint, one.training.optimizer) != "refused"


def test_the_command_prints_a_table_and_writes_a_page(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[data]\nvalidation = 0.2\n[training]\nsteps = 4\nrefresh = 2\n[compare]\nseeds = [0]\n"
        '[[compare.rows]]\nname = "held"\nlearning_rates = [0.05]\n'
    )
    out = tmp_path / "out"
    found = CliRunner().invoke(main, ["train", str(path), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "held" in found.stdout
    assert {"comparison.json", "comparison.md", "comparison.html"} <= {one.name for one in out.iterdir()}
    assert json.loads((out / "comparison.json").read_text())["name"] == "mine"
    told = CliRunner().invoke(main, ["train", str(path), "--out", str(out), "--json"])
    assert json.loads(told.stdout)["rows"][0]["name"] == "held"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "digits-vit", "--workers", "2"], "--workers is for comparisons; one network is shared among processes by torchrun"),
        (["--preset", "compare-digits", "--tensorboard"], "--tensorboard is for single runs; a comparison writes its own plots"),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["train", *words, "--out", str(tmp_path / "out")])
    assert (found.exit_code, found.stderr) == (2, f"certkit: {message}\n")
    assert not (tmp_path / "out").exists()


def test_a_refuted_row_ends_the_command_with_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[data]\nvalidation = 0.2\n[training]\nsteps = 4\nrefresh = 2\n[compare]\nseeds = [0]\neps = ['0.1']\nlimit = 5\n"
        '[[compare.rows]]\nname = "held"\nlearning_rates = [0.05]\n'
    )
    audit = certkit.audit

    def refuted(*words: Any, **given: Any) -> Any:
        return audit(*words, **given).model_copy(update={"verdict": "REFUTED"})

    monkeypatch.setattr(certkit, "audit", refuted, raising=False)
    found = CliRunner().invoke(main, ["train", str(path), "--out", str(tmp_path / "out")])
    assert found.exit_code == 4
    assert found.stderr == (
        "certkit: row 'held': an adversarial example lies inside a certified radius; its audit is kept\n"
    )
    assert "REFUTED" in found.stdout
