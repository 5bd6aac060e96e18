"""``certkit train`` from the command line: what it says, and the one line for everything that cannot be meant."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from certkit.cli import main
from certkit.config import presets

SMALL = ["--set", "training.steps=4", "--set", "training.refresh=2"]


def train(out: Path, *words: str, preset: str = "digits-vit") -> Result:
    return CliRunner().invoke(main, ["train", "--preset", preset, *SMALL, *words, "--out", str(out)])


def changed(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


PLAIN = ("training.optimizer=sgd", "training.constraint=none", "training.loss=cross-entropy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("model.widht=3",), "--set: unknown key 'model.widht'; did you mean 'model.width'?"),
        (("training.stps=3",), "--set: unknown key 'training.stps'; did you mean 'training.steps'?"),
        (("training.cap=-1",), "--set: training.cap: expected a number > 0, got -1"),
        (
            ("training.constraint=weight-decay", "training.weight_decay=0.5"),
            "training.constraint: weight-decay with weight_decay 0.5 cannot hold cap 1; expected "
            + "training.weight_decay >= 1/cap = 1",
        ),
        (
            ("training.constraint=spectral-soft-cap", "training.learning_rate=2.0"),
            "training.learning_rate 2 is beyond the range of spectral-soft-cap at cap 1: at most 1.26284",
        ),
        (("data.name=./nowhere",), None),
        (
            ("model.image_size=16",),
            "data set 'digits' has images of 1 x 8 x 8, the model reads 1 x 16 x 16; "
            + "set model.image_size and model.channels",
        ),
        (
            ("training.sensitivity=true", *PLAIN),
            "training.sensitivity weighs the steps of muon; training.optimizer is sgd",
        ),
        (
            ("training.sensitivity=true", "training.constraint=weight-decay", "training.weight_decay=1.0"),
            "training.sensitivity makes steps of unequal length, which weight-decay cannot balance",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_writes_nothing(
    changes: tuple[str, ...], message: str | None, tmp_path: Path
) -> None:
    found = train(tmp_path / "out", *changed(*changes))
    assert found.exit_code == 2
    assert found.stderr.count("\n") == 1
    if message is None:
        assert found.stderr.startswith(
            "certkit: no folder './nowhere'; a data set is digits, a folder of Parquet files"
        )
    else:
        assert found.stderr == f"certkit: {message}\n"
    assert found.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    found = train(tmp_path / "out", *changed(*PLAIN, "training.learning_rate=1e30", "training.steps=50"))
    assert found.exit_code == 2
    assert re.fullmatch(
        r"certkit: training: (the loss is \S+|weight \S+ is no longer finite) at step \d+; "
        r"lower training.learning_rate\n",
        found.stderr,
    )
    assert not (tmp_path / "out").exists()


def test_it_says_what_came_of_it(tmp_path: Path) -> None:
    found = train(tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert re.fullmatch(
        r"clean accuracy  \d+/360 = \d+\.\d % on digits test\n"
        r"largest weight norm / cap  (0\.\d{9}|1\.000000\d{3}) "
        r"\(proved every 2 steps and at the end; proved to hold after every step\)\n"
        r"largest activation entry  \S+ \(on the first training samples\)\n"
        r"trained in \d+\.\d s, 0 loss spikes\n"
        r"wrote \S+/model.safetensors\n",
        found.stdout,
    )


def test_an_approximate_constraint_is_called_so(tmp_path: Path) -> None:
    found = train(tmp_path / "out", *changed("training.constraint=spectral-hard-cap"))
    assert "(proved every 2 steps and at the end; the constraint is approximate: it may exceed 1)" in found.stdout
    free = train(tmp_path / "free", *changed(*PLAIN))
    assert "(proved every 2 steps and at the end; no constraint)" in free.stdout


def test_a_language_model_says_its_loss(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "input.txt").write_text("To be, or not to be, that is the question.\n" * 40)
    words = changed(
        f"data.name={folder}", "model.context=16", "model.width=16", "model.heads=2", "model.blocks=1",
        "training.batch=4", "data.validation=0.1",
    )  # fmt: skip
    found = train(tmp_path / "out", *words, preset="shakespeare-2m")
    assert found.exit_code == 0, found.stderr
    assert re.match(r"next token right  \d+/\d+ = \d+\.\d % on text test\nloss  \d\.\d{4} per token\n", found.stdout)
    told = json.loads((tmp_path / "out" / "trained.json").read_text())
    assert told["data"]["vocabulary"] <= 65
    assert told["promise"] == "provable"
    assert told["largest_norm_over_cap"] <= 1 + 1e-6
    wrong = train(tmp_path / "wrong", *words, *changed("model.vocabulary=8"), preset="shakespeare-2m")
    assert wrong.exit_code == 2
    assert re.fullmatch(r"certkit: text 'text' has \d+ tokens, the model 8; set model.vocabulary\n", wrong.stderr)


def test_presets_are_listed(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["presets"])
    assert found.exit_code == 0
    assert [line.split()[0] for line in found.stdout.splitlines()] == sorted(presets())
