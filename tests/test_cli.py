"""The commands as a user meets them: exit codes, one line per mistake, JSON on stdout, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from certkit import checkpoint
from certkit.bounds.bound import Bound, bound
from certkit.bounds.rules import RULES
from certkit.cli import COMMANDS, main
from certkit.config import preset
from certkit.models import create
from certkit.records import Audit, load
from tests.networks import SixHeads


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits checkpoint as initialised: the commands need a network, not a good one."""
    torch.manual_seed(0)
    run_ = preset("digits-vit")
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.write(folder, create(run_.model).state_dict(), run_.model_dump(mode="json"))
    return folder


def test_help_names_every_command_and_loads_no_torch() -> None:
    code = "import sys; from certkit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("False")
    for name in COMMANDS:
        assert f"  {name} " in shown


def test_a_slip_gets_a_suggestion() -> None:
    result = run("reprot", "x")
    assert result.exit_code == 2
    assert "No such command 'reprot'. Did you mean 'report'?" in result.output


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_and_json(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--json" in result.output


def test_presets_and_doctor_speak_json() -> None:
    assert "digits-vit" in json.loads(run("presets", "--json").stdout)
    assert json.loads(run("doctor", "--json").stdout)["required"]["torch"]


def test_an_option_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTKIT_PRESETS_JSON", "1")
    assert "digits-vit" in json.loads(run("presets").stdout)


def test_an_audit_writes_everything_and_says_the_verdict_first(digits: Path, tmp_path: Path) -> None:
    result = run("audit", digits, "--limit", 20, "--eps", "0.05,36/255", "--out", tmp_path, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("NOT REFUTED: ")
    for name in ("certificate.json", "certified.parquet", "campaign/plan.json", "audit.json", "report.html"):
        assert (tmp_path / name).is_file()
    assert [p.eps.text for p in load(Audit, tmp_path / "audit.json").curve] == ["0.05", "36/255"]
    again = run("report", tmp_path, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["verdict"] == "NOT REFUTED"


def test_the_steps_one_by_one_give_the_same_audit(digits: Path, tmp_path: Path) -> None:
    shared: Sequence[object] = ("--limit", 12, "--eps", "0.05", "--norm", "linf", "--threads", 1)
    assert run("audit", digits, *shared, "--out", tmp_path / "one").exit_code == 0
    assert run("attack", digits, *shared, "--out", tmp_path / "two").exit_code == 0
    assert run("certify", digits, *shared, "--out", tmp_path / "two").exit_code == 0
    assert run("report", tmp_path / "two").exit_code == 0
    one, two = (json.loads((tmp_path / name / "audit.json").read_text()) for name in ("one", "two"))
    one.pop("provenance"), two.pop("provenance")
    assert one == two


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify", "{ck}", "--eps", "-1", "--out", "{out}"], "certkit: eps -1 is negative; a radius is 0 or more"),
        (["certify", "{ck}", "--eps", "x", "--out", "{out}"], "certkit: eps 'x' is not a number; expected 0.25 or 36/255"),
        (["certify", "{ck}", "--eps", ",", "--out", "{out}"], "certkit: no eps was given; expected at least one radius such as"),
        (["certify", "{ck}", "--device", "cuda:7", "--out", "{out}"], "certkit: device 'cuda:7' cannot be used here; expected one of cpu"),
        (["certify", "{ck}", "--model", "nowhere", "--out", "{out}"], "certkit: --model 'nowhere' is not of the form package.module:factory"),
        (["certify", "{ck}", "--model", "math:pi", "--out", "{out}"], "certkit: --model math:pi: TypeError: 'float' object is not callable"),
        (["certify", "{ck}", "--model", "builtins:dict", "--out", "{out}"], "certkit: --model builtins:dict returned a dict; expected a torch.nn.Module"),
        (["attack", "{ck}", "--suite", "quik", "--out", "{out}"], "did you mean 'quick'?"),
        (["train", "--out", "{out}"], "certkit: give either a run file or --preset NAME; certkit presets lists the names"),
        (["train", "--preset", "digit-vit", "--out", "{out}"], "did you mean 'digits-vit'?"),
        (["train", "--preset", "digits-vit", "--set", "training.step=3", "--out", "{out}"], "did you mean 'training.steps'?"),
        (["train", "--preset", "digits-vit", "--set", "model.image_size=16", "--out", "{out}"], "certkit: data set 'digits' has images of 1 x 8 x 8, the model reads 1 x 16 x 16"),
        (["report", "{out}"], "no certificate.json; run certkit certify CHECKPOINT --out"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], message: str, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*(word.format(ck=digits, out=out) for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output
    assert not out.exists()


def test_an_error_is_json_too_when_json_is_asked_for(digits: Path, tmp_path: Path) -> None:
    result = run("certify", digits, "--eps", "-1", "--json", "--out", tmp_path)
    assert json.loads(result.stdout) == {"error": "eps -1 is negative; a radius is 0 or more", "exit_code": 2}


def test_a_usage_error_is_json_too_when_json_is_asked_for() -> None:
    assert json.loads(run("certify", "--json").stdout) == {"error": "Missing argument 'CHECKPOINT'.", "exit_code": 2}


def test_a_fault_of_our_own_is_exit_code_70(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certkit.config.presets", lambda: 1 / 0)
    result = run("presets")
    assert result.exit_code == 70
    assert result.stderr.startswith("certkit: a fault of certkit's own: ZeroDivisionError: division by zero")


class Tangent(torch.nn.Module):
    """An operator without a rule, one level down."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        self.squash = Squash()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.squash(self.inner(x))
        return logits


class Squash(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tan(x)


def test_an_operator_without_a_rule_is_refused_with_operator_module_and_remedy(tmp_path: Path) -> None:
    file = checkpoint.write(tmp_path / "ck", Tangent().state_dict(), {})
    result = run("certify", file, "--model", "tests.test_cli:Tangent", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == (
        "certkit: squash: no rule for aten.tan.default; certkit refuses what it cannot bound. "
        "To certify this model, replace it by covered operators, or add a rule: docs/rules.md\n"
    )
    assert not (tmp_path / "out").exists()


def heads_ignored(inputs: Any, facts: Any) -> Bound:
    """Deliberately wrong: what holds per head is claimed of all heads together, without sqrt(H)."""
    right = ATTENTION(inputs, facts)
    return bound(right.shape, {frozenset({1, 3}): right.within(frozenset({3}))})


ATTENTION = RULES["attention"]


def six_heads_on_disk(folder: Path) -> tuple[Path, Path]:
    """The checkpoint of the network with six heads, and images that it labels itself."""
    model = SixHeads().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 24), dtype=np.uint8)
    with torch.no_grad():
        labels = model(torch.from_numpy(pixels / np.float32(255))[:, None]).argmax(1).tolist()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)
    (folder / "data").mkdir()
    table.to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return checkpoint.write(folder / "ck", model.state_dict(), {}), folder / "data"


def test_a_bound_that_ignores_heads_is_refuted_by_the_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, data = six_heads_on_disk(tmp_path)
    words = ("audit", file, "--model", "tests.networks:SixHeads", "--data", data, "--norm", "linf", "--eps", "0.02,0.1")
    sound = run(*words, "--out", tmp_path / "sound")
    assert sound.exit_code == 0, sound.output
    monkeypatch.setitem(RULES, "attention", heads_ignored)
    broken = run(*words, "--out", tmp_path / "broken")
    assert broken.exit_code == 4
    assert broken.stdout.startswith("REFUTED: ")
    audit = load(Audit, tmp_path / "broken" / "audit.json")
    assert audit.verdict == "REFUTED"
    assert all((tmp_path / "broken" / c.example.name).is_file() for c in audit.contradictions)
    assert "REFUTED" in (tmp_path / "broken" / "report.html").read_text()
