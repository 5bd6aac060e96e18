"""What a run file may say, and the one line that answers anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from certkit.config import (
    ARCHITECTURES,
    MAX_BYTES,
    ComparisonConfig,
    Contender,
    DataConfig,
    Run,
    TrainingConfig,
    changed,
    load_run,
    override,
    parse,
    preset,
    presets,
    validate,
)
from certkit.errors import ConfigError


def test_an_empty_file_is_the_default_run() -> None:
    assert parse(b"", "run.toml") == Run()


def test_what_is_written_to_a_checkpoint_is_the_same_run_again() -> None:
    for name in presets():
        assert validate(preset(name).model_dump(mode="json"), "config.json") == preset(name)


def test_a_run_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\nwidth = 48\n[training]\nsteps = 7\nlearning_rate = 0.125\n[data]\nname = "mnist"\n')
    run = load_run(path)
    assert (run.model.width, run.training.steps, run.training.learning_rate, run.data.name) == (48, 7, 0.125, "mnist")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.widht = 3", "run.toml: unknown key 'model.widht'; did you mean 'model.width'?"),
        ("modle.width = 3", "run.toml: unknown key 'modle'; did you mean 'model'?"),
        ("zzzzzzzz = 3", "run.toml: unknown key 'zzzzzzzz'"),
        ("training.steps = 'x'", "run.toml: training.steps: expected an integer >= 1 and <= 10000000, got 'x'"),
        ("training.steps = 0", "run.toml: training.steps: expected an integer >= 1 and <= 10000000, got 0"),
        ("training.steps = true", "run.toml: training.steps: expected an integer >= 1 and <= 10000000, got True"),
        ("training.steps = 2.0", "run.toml: training.steps: expected an integer >= 1 and <= 10000000, got 2.0"),
        ("training.batch = 65537", "run.toml: training.batch: expected an integer >= 1 and <= 65536, got 65537"),
        ("training.temperature = nan", "run.toml: training.temperature: expected a number > 0, got nan"),
        ("training.temperature = inf", "run.toml: training.temperature: expected a number > 0, got inf"),
        ("training.temperature = '0.1'", "run.toml: training.temperature: expected a number > 0, got '0.1'"),
        (
            "training.optimizer = 'lion'",
            "run.toml: training.optimizer: expected 'muon' or 'adamw' or 'sgd', got 'lion'",
        ),
        (
            "model.name = 'vitt'",
            "run.toml: model.name: expected 'vit' or 'vit-layernorm' or 'mlp' or 'gpt' or 'gpt-layernorm', "
            + "got 'vitt'; did you mean 'vit'?",
        ),
        ("model = {name = 'mlp', hiden = [2]}", "run.toml: unknown key 'model.hiden'; did you mean 'model.hidden'?"),
        ("model = {name = 'mlp', hidden = 3}", "run.toml: model.hidden: expected a list, got 3"),
        ("model = {name = 'mlp', patch = 2}", "run.toml: model.name 'mlp' has no setting 'model.patch'"),
        ("compare = {seeds = [0]}", "run.toml: compare.rows: expected a list, got a table"),
        ("compare = {rows = []}", "run.toml: compare.rows: expected at least 1 entry"),
        (
            "compare = {seeds = [], rows = [{name = 'a', learning_rates = [1]}]}",
            "run.toml: compare.seeds: expected at least 1 entry",
        ),
        (
            f"compare = {{rows = [{{name = 'a', learning_rates = {[*range(1, 66)]}}}]}}",
            "run.toml: compare.rows.0.learning_rates: expected at most 64 entries",
        ),
        (
            "compare = {seeds = [0, 1, 0], rows = [{name = 'a', learning_rates = [1]}]}",
            "run.toml: compare: seeds: 0 stands twice",
        ),
        (
            "compare = {rows = [{name = 'a', learning_rates = [0.1, 1, 1e-1]}]}",
            "run.toml: compare.rows.0: learning_rates: 0.1 stands twice",
        ),
        (
            "compare = {rows = [{name = 'a', learning_rates = [1]}, {name = 'a', learning_rates = [2]}]}",
            "run.toml: compare: rows: two rows are called 'a'",
        ),
        ("data.name = 3", "run.toml: data.name: expected a text, got 3"),
        ("data.name = ['a']", "run.toml: data.name: expected a text, got a list"),
        ("model = 3", "run.toml: model: expected a table, got 3"),
        ("model.width.a = 3", "run.toml: model.width: expected an integer >= 1 and <= 65536, got a table"),
        ("model.patch = 3", "run.toml: model: patch 3 does not divide image_size 8"),
        ("model = {width = 25, heads = 5}", "run.toml: model: width 25 must be even and divisible by heads, 5"),
        (
            "model = {image_size = 65536, patch = 1}",
            "run.toml: model: 68719476736 entries in all tokens together; certkit builds at most 1048576",
        ),
        ("a = [", "run.toml: not TOML (Invalid value (at end of document))"),
        ("x = " + "1" * 1000, "run.toml: a line is longer than 1000 characters"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "run.toml")
    assert str(caught.value) == message


def test_a_huge_integer_is_named_by_its_size() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"training.temperature = -0x" + b"f" * 900, "run.toml")
    assert str(caught.value).startswith("run.toml: not TOML (")
    with pytest.raises(ConfigError) as caught:
        parse(b"training.seed = 0x" + b"f" * 900, "run.toml")
    assert str(caught.value).endswith(
        "training.seed: expected an integer >= 0 and < 4294967296, got an integer of 3600 bits"
    )


def test_bytes_that_are_not_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^run.toml: not TOML \('utf-8' codec can't decode byte 0xff"):
        parse(b"\xff\xfe", "run.toml")


def test_a_file_name_cannot_write_to_the_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b"[", "run\x1b[31m\n.toml")
    assert str(caught.value).startswith("run\\x1b[31m\\n.toml: not TOML")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run.toml: cannot be read \(No such file or directory\)$"):
        load_run(tmp_path / "run.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)$"):
        load_run(tmp_path)


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"^run.toml: larger than 65536 bytes; a run file is a page of TOML$"):
        load_run(path)


def test_set_takes_toml_values_and_bare_words() -> None:
    run = override(Run(), ["training.steps=3", "training.temperature = 0.5", "data.name=./mnist", 'data.test="valid"'])
    assert (run.training.steps, run.training.temperature, run.data.name, run.data.test) == (3, 0.5, "./mnist", "valid")
    assert Run().training.steps != 3


def test_set_nothing_changes_nothing() -> None:
    assert override(preset("digits-vit"), []) == preset("digits-vit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.stps=3", "--set: unknown key 'training.stps'; did you mean 'training.steps'?"),
        ("training.steps.a=3", "--set: unknown key 'training.steps.a'; did you mean 'training.steps'?"),
        ("=3", "--set: unknown key ''"),
        ("training.steps", "--set 'training.steps' is not of the form a.b=value"),
        ("training.steps=", "--set: training.steps: expected an integer >= 1 and <= 10000000, got ''"),
        ("training=4", "--set: training: expected a table, got 4"),
        ("data.name=[1,2]", "--set: data.name: expected a text, got a list"),
        (
            "training.steps=3\nmodel=1",
            "--set: training.steps: expected an integer >= 1 and <= 10000000, got '3\\nmodel=1'",
        ),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Run(), [change])
    assert str(caught.value) == message


def test_every_preset_has_a_description_of_one_line() -> None:
    assert "digits-vit" in presets()
    for description in presets().values():
        assert description.isprintable()
        assert description


def test_an_unknown_preset_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("digit-vit")
    assert str(caught.value) == (
        "no preset is called 'digit-vit'; did you mean 'digits-vit'?; certkit presets lists them"
    )


def test_every_setting_says_what_it_is() -> None:
    for section in (*ARCHITECTURES.values(), DataConfig, TrainingConfig, ComparisonConfig, Contender):
        for name, field in section.model_fields.items():
            assert field.description or name == "name", name


def test_another_architecture_starts_from_its_own_defaults() -> None:
    run = override(Run(), ["model.name=mlp", "model.hidden=[8, 4]"])
    assert (run.model.name, getattr(run.model, "hidden", None)) == ("mlp", (8, 4))
    with pytest.raises(ConfigError) as caught:
        override(Run(), ["model.name=mlp", "model.patch=2"])
    assert str(caught.value) == "--set: model.name 'mlp' has no setting 'model.patch'"


def test_a_row_changes_keys_and_replaces_models() -> None:
    run = changed(Run(), {"training": {"steps": 3}, "model": {"width": 32}}, "row")
    assert (run.training.steps, run.training.batch, getattr(run.model, "width", None)) == (3, 128, 32)
    other = changed(run, {"model": {"name": "vit-layernorm"}}, "row")
    assert (other.model.name, getattr(other.model, "width", None)) == ("vit-layernorm", 16)
    with pytest.raises(ConfigError) as caught:
        changed(Run(), {"training": {"stps": 3}}, "row 'x'")
    assert str(caught.value) == "row 'x': unknown key 'training.stps'; did you mean 'training.steps'?"
