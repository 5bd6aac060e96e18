"""Comparisons: every row is tried fairly, chosen on held-out samples, and nothing is run twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import certkit
from certkit.cli import main
from certkit.comparison import Comparison, Trial, best_rate, spread
from certkit.config import ComparisonConfig, Contender, Run, changed, preset, validate
from certkit.data import load
from certkit.errors import CertkitError, CheckpointError, ConfigError, DataError, NoRule, Refusal
from certkit.files import digest_file
from certkit.records import Rate
from certkit.training import compare as module
from certkit.training.constraints import promise
from certkit.training.state import STATE
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


def instead(monkeypatch: pytest.MonkeyPatch, change: Callable[[Run, Path, Any], Any]) -> list[tuple[float, int]]:
    """Trials are trained and then told as ``change`` has it; the rates and seeds that were trained, as they come."""
    seen: list[tuple[float, int]] = []

    def trained(given: Run, *, out: Path, **words: Any) -> Any:
        seen.append((given.training.learning_rate, given.training.seed))
        return change(given, out, certkit.train(given, out=out, **words))

    monkeypatch.setattr(module, "train", trained)
    return seen


def share(count: int) -> Rate:
    return Rate(count=count, total=100, low=0.0, high=1.0)


def plain(name: str, *rates: float) -> dict[str, Any]:
    """A row that trains fast: no bound is derived and no weight is held."""
    return row(name, *rates, **PLAIN)


TWO = (row("held", 0.05, 0.1, loss="cross-entropy"), row("../free", 0.03, optimizer="sgd", **PLAIN))


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
    certkit.compare(run(plain("a", 0.05)), out=tmp_path)
    longer = changed(run(plain("a", 0.05)), {"training": {"steps": 7}}, "test")
    found = certkit.compare(longer, out=tmp_path)
    assert [point.step for point in found.rows[0].trials[0].curve][:3] == [0, 3, 6]
    assert json.loads(next(tmp_path.glob("a-*/0.05-0/metrics.jsonl")).read_text().splitlines()[-1])["step"] >= 6


def test_a_state_of_other_settings_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    one = run(plain("a", 0.05), seeds=[0])
    with monkeypatch.context() as patch:
        patch.setattr("certkit.training.train.judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            certkit.compare(one, out=tmp_path)
    (state,) = tmp_path.glob(f"a-*/0.05-0/{STATE}")
    kept = state.read_bytes()
    certkit.compare(one, out=tmp_path)
    whole = digest_file(state.with_name("model.safetensors"))
    state.write_bytes(kept)
    longer = certkit.compare(changed(one, {"training": {"steps": 7}}, "test"), out=tmp_path)
    assert longer.rows[0].failed == 0
    assert longer.rows[0].trials[0].sha256 != whole
    assert not state.exists()


def test_a_checkpoint_that_is_not_the_trials_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = certkit.compare(run(plain("a", 0.05)), out=tmp_path).rows[0].trials
    (one,), (other,) = (list(tmp_path.glob(f"a-*/0.05-{seed}/model.safetensors")) for seed in (0, 1))
    assert [trial.sha256 for trial in first] == [digest_file(one), digest_file(other)]
    one.write_bytes(other.read_bytes())
    seen = instead(monkeypatch, lambda _, __, trained: trained)
    again = certkit.compare(run(plain("a", 0.05)), out=tmp_path).rows[0].trials
    assert seen == [(0.05, 0)]
    assert (
        [trial.sha256 for trial in again] == [trial.sha256 for trial in first] == [digest_file(one), digest_file(other)]
    )
    one.write_bytes(other.read_bytes())
    monkeypatch.setattr(module, "_trial", lambda job: again[job.run.training.seed])
    with pytest.raises(CheckpointError, match=r"the checkpoint changed after its trial; run the comparison again$"):
        certkit.compare(run(plain("a", 0.05), eps=["0.1"], limit=5), out=tmp_path)


def test_other_samples_are_trained_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = run(plain("a", 0.05), seeds=[0])
    found = certkit.compare(one, out=tmp_path)
    assert {found.training_sha256, found.test_sha256} == {
        load("digits", split).record.sha256 for split in ("train", "test")
    }
    seen = instead(monkeypatch, lambda _, __, trained: trained)
    certkit.compare(one, out=tmp_path)
    assert seen == []
    kept = module._samples
    monkeypatch.setattr(module, "_samples", lambda *words: module.Samples("0" * 64, kept(*words).testing))
    certkit.compare(one, out=tmp_path)
    assert seen == [(0.05, 0)]


def test_rates_that_look_alike_do_not_share_a_folder(tmp_path: Path) -> None:
    close = (0.05, 0.05000000000000001)
    certkit.compare(run(plain("a", *close), seeds=[0]), out=tmp_path)
    assert {path.parent.name for path in tmp_path.glob("a-*/*/trial.json")} == {f"{rate!r}-0" for rate in close}


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


def test_the_test_split_chooses_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(
        monkeypatch,
        lambda given, _, trained: trained.model_copy(
            update={"validation": share(90), "clean": share(10)}
            if given.training.learning_rate == 0.05
            else {"validation": share(80), "clean": share(99)}
        ),
    )
    found = certkit.compare(run(plain("a", 0.02, 0.05), seeds=[0]), out=tmp_path).rows[0]
    assert found.learning_rate == 0.05
    assert [(t.validation, t.test) for t in found.trials] == [(0.8, share(99)), (0.9, share(10))]


def test_the_target_is_reached_at_the_first_step_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"step": 0, "loss": 2.0, "validation_accuracy": 0.1},
        {"step": 3, "loss": 1.0, "validation_accuracy": 0.9},
        {"step": 5, "loss": 0.5},
        {"step": 6, "validation_accuracy": 1.0},
    ]

    def written(_: Run, out: Path, trained: Any) -> Any:
        (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return trained

    instead(monkeypatch, written)
    for target, step in ((0.9, 3), (0.95, 6)):
        (trial,) = (
            certkit.compare(run(plain("a", 0.05), seeds=[0], target=target), out=tmp_path / str(step)).rows[0].trials
        )
        assert trial.reached == step
        assert [(p.step, p.loss, p.validation) for p in trial.curve] == [
            (0, 2.0, 0.1), (3, 1.0, 0.9), (5, 0.5, None), (6, 0.5, 1.0)
        ]  # fmt: skip


def test_a_run_that_diverges_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    found = certkit.compare(run(row("wild", 1e30, optimizer="sgd", **PLAIN), plain("calm", 0.05)), out=tmp_path)
    wild, calm = found.rows
    assert wild.failed == 2
    assert all(t.fault is not None and "lower training.learning_rate" in t.fault for t in wild.trials)
    assert calm.failed == 0


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("no folder 'x'"), DataError, "no folder 'x'"),
        (CertkitError("x: could not be written"), CertkitError, "x: could not be written"),
        (OSError(28, "No space left on device"), OSError, "[Errno 28] No space left on device"),
        (ValueError("odd\nthing"), RuntimeError, "row 'a', learning rate 0.05, seed 1: ValueError: odd\\nthing"),
    ],
    ids=["data", "files", "disk", "a fault of certkit's own"],
)
def test_what_is_no_divergence_ends_the_comparison_and_is_not_remembered(
    error: Exception, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(plain("a", 0.05))
    with monkeypatch.context() as patch:

        def broken(given: Run, _: Path, trained: Any) -> Any:
            if given.training.seed == 1:
                raise error
            return trained

        instead(patch, broken)
        with pytest.raises(kind) as caught:
            certkit.compare(one, out=tmp_path)
    assert str(caught.value) == message
    assert not (tmp_path / "comparison.json").exists()
    seen = instead(monkeypatch, lambda _, __, trained: trained)
    assert certkit.compare(one, out=tmp_path).rows[0].failed == 0
    assert seen == [(0.05, 1)], "what was done is kept"


def test_a_record_that_is_damaged_or_of_an_earlier_certkit_is_made_again(tmp_path: Path) -> None:
    one = run(plain("a", 0.05), seeds=[0])
    certkit.compare(one, out=tmp_path)
    (path,) = tmp_path.glob("a-*/*/trial.json")
    for text in ("{", '{"run": "x", "trial": {"learning_rate": 0.05, "seed": 0, "fault": "no folder"}}'):
        path.write_text(text)
        assert certkit.compare(one, out=tmp_path).rows[0].failed == 0


def test_the_best_networks_are_certified_and_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(
        monkeypatch,
        lambda given, _, trained: trained.model_copy(
            update={"validation": share(90 if given.training.learning_rate == 0.1 else 10)}
        ),
    )
    given = run(row("held", 0.02, 0.1, loss="cross-entropy"), eps=["0.1", "36/255"], limit=12, seeds=[0])
    (held,) = certkit.compare(given, out=tmp_path).rows
    assert [[point.eps for point in one] for one in held.proved] == [["0.1", "36/255"]]
    for point in held.proved[0]:
        assert point.certified.count <= point.attacked.count <= point.certified.total == 12
        assert point.verdict in ("NOT REFUTED", "INCONCLUSIVE")
    assert held.unproved is None
    (path,) = tmp_path.rglob("certificate.json")
    assert path.parent.parent.name == "0.1-0"
    assert json.loads(path.read_text())["subject"]["sha256"] == held.best[0].sha256
    other = run(row("held", 0.02, 0.1, loss="cross-entropy"), eps=["0.2"], limit=12, seeds=[0])
    assert [p.eps for p in certkit.compare(other, out=tmp_path).rows[0].proved[0]] == ["0.2"]
    assert len(list(tmp_path.rglob("certificate.json"))) == 2, "another audit has a folder of its own"


def test_a_refusal_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise NoRule("norm: no rule for aten.odd.default")

    monkeypatch.setattr(certkit, "certify", refused, raising=False)
    (held,) = certkit.compare(run(plain("held", 0.05), eps=["0.1"], limit=5, seeds=[0]), out=tmp_path).rows
    assert (held.proved, held.unproved) == ((), "norm: no rule for aten.odd.default")


SAME = "changes data, training.steps or training.batch; all rows see the same samples, and as many"


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
            f"row 'a': {SAME}",
        ),
        (run(row("a", 0.05, batch=64)), f"row 'a': {SAME}"),
        (run({**row("a", 0.05), "set": {"data": {"shuffle": 1}}}), "row 'a': unknown key 'data.shuffle'"),
        (run({**row("a", 0.05), "set": {"data": {"validation": 0.3}}}), f"row 'a': {SAME}"),
        (
            run(row("a", 0.05, learning_rate=0.1)),
            "row 'a': set may not hold training.learning_rate; its learning_rates give that",
        ),
        (run(row("a", 0.05, seed=0)), "row 'a': set may not hold training.seed; compare.seeds give that"),
        (
            run({**row("a", 0.05), "set": {"compare": {"rows": [row("b", 0.1)]}}}),
            "row 'a': set may not hold compare; a comparison has no comparisons inside",
        ),
        (
            changed(run(row("a", 0.05)), {"data": {"test": "train"}}, "test"),
            "data.test 'train': the test split must not be the training split",
        ),
        (
            changed(run(row("a", 0.05)), {"data": {"validation": 1e-4}}, "test"),
            "row 'a': data.validation 0.0001 of 1437 samples holds out 0",
        ),
        (run(row("a", 0.05), eps=["nonsense"]), "eps 'nonsense' is not a number; expected 0.25 or 36/255"),
        (
            run({**row("a", 0.05, **PLAIN), "set": {"model": {"name": "gpt"}}}, eps=["0.1"]),
            "row 'a': compare.eps: radii are for images; leave it out for a language model",
        ),
        (
            run(row("a", 0.05), {**row("b", 0.05), "set": {"model": {"classes": 3}}}),
            "row 'b': data set 'digits' has 10 classes, the model 3; set model.classes",
        ),
        (
            run(row("a", 0.05, optimizer="sgd", constraint="spectral-soft-cap")),
            "row 'a': training.constraint: spectral-soft-cap needs training.optimizer muon, not sgd: "
            + "it undoes steps of a bounded length, and this optimiser's are not bounded",
        ),
        (
            run(row("a", 0.01), row("b", 0.01, 1.5, constraint="weight-decay", weight_decay=1.0)),
            "row 'b': training: learning_rate 1.5 times weight_decay 1 is above 1, so that every "
            + "step would turn the weights round; lower either",
        ),
        (Run(), "this run has no [compare] section; certkit.train makes single runs"),
    ],
    ids=[
        "no validation",
        "unknown key",
        "other steps",
        "other batch",
        "unknown data",
        "other data",
        "rate",
        "seed",
        "compare",
        "test is train",
        "nothing held out",
        "radii",
        "radii of text",
        "misfit",
        "impossible",
        "a rate that is impossible",
        "no rows",
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(given: Run, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        certkit.compare(given, out=tmp_path / "out")
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_a_row_whose_loss_no_rule_can_bound_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> Any:
        raise NoRule("norm: no rule for aten.odd.default")

    monkeypatch.setattr(module, "proved_gains", refused)
    with pytest.raises(Refusal, match=r"^row 'b': norm: no rule for aten\.odd\.default$"):
        certkit.compare(run(row("plain", 0.05, **PLAIN), row("b", 0.05)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_data_set_is_refused_before_anything_runs(tmp_path: Path) -> None:
    gone = changed(run(row("a", 0.05)), {"data": {"name": str(tmp_path / "gone")}}, "test")
    with pytest.raises(DataError, match="no folder"):
        certkit.compare(gone, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_no_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(CertkitError, match="no folder can be made there"):
        certkit.compare(run(row("a", 0.05)), out=tmp_path / "out")


def test_a_comparison_is_not_shared_among_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"^a comparison is not run under torchrun; --workers runs several of its trials"
    ):
        certkit.compare(run(row("a", 0.05)), out=tmp_path / "out")


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
        "[data]\nvalidation = 0.2\n[training]\nsteps = 4\nrefresh = 2\nloss = 'cross-entropy'\n[compare]\nseeds = [0]\n"
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
        "[data]\nvalidation = 0.2\n[training]\nsteps = 4\nrefresh = 2\nloss = 'cross-entropy'\n[compare]\nseeds = [0]\neps = ['0.1']\nlimit = 5\n"
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
