"""The commands as a user meets them: exit codes, one line per mistake, JSON on stdout, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
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
from certkit.commands import options
from certkit.config import preset
from certkit.files import load
from certkit.models import create
from certkit.records import Ablation, Attention, Audit, Rate
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
    assert run("report", tmp_path / "two", "--data", "digits").exit_code == 0
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
        (["certify", "{ck}", "--device", "meta", "--out", "{out}"], "certkit: device 'meta' cannot be used here; expected one of cpu"),
        (["audit", "{ck}", "--suite", "quik", "--out", "{out}"], "did you mean 'quick'?"),
        (["train", "--preset", "digits-vit", "--set", "training.batch=1000000000", "--out", "{out}"], "certkit: --set: training.batch: expected an integer >= 1 and <= 65536, got 1000000000"),
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


def test_an_error_is_json_too_when_the_environment_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"error": "Missing argument 'CHECKPOINT'.", "exit_code": 2}
    for value, spoken in (("1", True), ("yes", True), ("0", False)):
        monkeypatch.setenv("CERTKIT_CERTIFY_JSON", value)
        assert (run("certify").stdout == json.dumps(expected) + "\n") is spoken


LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["report", LONG],
        ["report", "{out}", "--checkpoint", LONG],
        ["certify", LONG, "--out", "{out}"],
        ["certify", "{ck}", "--limit", "2", "--out", "{out}/" + LONG],
        ["certify", "{ck}", "--data", "./" + LONG, "--out", "{out}"],
        ["attack", LONG, "--out", "{out}"],
        ["attack", "{ck}", "--limit", "2", "--out", "{out}/" + LONG],
        ["audit", LONG, "--out", "{out}"],
        ["audit", "{ck}", "--limit", "2", "--out", "{out}/" + LONG],
        ["train", LONG, "--out", "{out}"],
    ],
)
def test_a_name_that_is_too_long_is_one_line_and_exit_code_2(words: list[str], digits: Path, tmp_path: Path) -> None:
    result = run(*(word.format(ck=digits, out=tmp_path / "out") for word in words))
    assert result.exit_code == 2
    assert result.stderr.startswith("certkit: ")
    assert len(result.stderr.splitlines()) == 1
    assert "fault" not in result.stderr


def test_a_usage_error_is_json_too_when_json_is_asked_for() -> None:
    assert json.loads(run("certify", "--json").stdout) == {"error": "Missing argument 'CHECKPOINT'.", "exit_code": 2}


def test_a_fault_of_our_own_is_exit_code_70(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certkit.config.presets", lambda: 1 / 0)
    result = run("presets")
    assert result.exit_code == 70
    assert result.stderr.startswith("certkit: a fault of certkit's own: ZeroDivisionError: division by zero")


# --- what people read


@pytest.mark.parametrize(
    ("count", "total", "down", "up"),
    [
        (3599, 3600, "3599/3600 = 99.9 %", "3599/3600 = 100.0 %"),
        (3600, 3600, "3600/3600 = 100.0 %", "3600/3600 = 100.0 %"),
        (331, 360, "331/360 = 91.9 %", "331/360 = 92.0 %"),
        (1, 3000, "1/3000 = 0.0 %", "1/3000 = 0.1 %"),
        (0, 0, "0/0 = 0.0 %", "0/0 = 0.0 %"),
    ],
)
def test_a_share_is_rounded_to_the_side_that_claims_less(count: int, total: int, down: str, up: str) -> None:
    rate = Rate.model_construct(count=count, total=total)
    assert (options.share(rate), options.share(rate, up=True)) == (down, up)


@pytest.mark.parametrize(
    ("decorative", "looks", "said"),
    [
        (True, False, ["attention is decorative here: uniform weights or no branch cost less than a point"]),
        (False, False, ["attention mixes positions here: frozen at its mean, it does as well"]),
        (False, True, []),
    ],
)
def test_what_attention_is_worth_is_said_where_it_is_less_than_its_name(
    decorative: bool, looks: bool, said: list[str]
) -> None:
    none: tuple[Ablation, ...] = ()
    attention = Attention(
        ablations=none, largest_logit_spread=1, largest_content_spread=1, decorative=decorative, looks_at_content=looks
    )
    assert options.worth(attention) == said
    assert options.worth(None) == []


# --- one folder, one audit


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def audited(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited")
    assert run("audit", digits, "--limit", 8, "--eps", "0.05", "--out", out).exit_code == 0
    return out


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        (["--seed", "1"], "seed"),
        (["--limit", "9"], "data"),
        (["--norm", "linf"], "norm, attacks"),
        (["--eps", "0.05,0.1"], "eps"),
        (["--threads", "2"], "threads, environment"),
    ],
)
def test_an_audit_into_the_folder_of_another_campaign_changes_nothing(
    changes: list[str], differ: str, digits: Path, audited: Path
) -> None:
    before = contents(audited)
    result = run("audit", digits, "--limit", 8, "--eps", "0.05", "--out", audited, *changes)
    assert result.exit_code == 2
    assert result.stderr == (
        f"certkit: {audited / 'campaign'}: holds another campaign (they differ in {differ}); choose another --out; "
        "nothing was changed\n"
    )
    assert contents(audited) == before


def test_a_new_certificate_does_not_keep_the_old_audit_and_report(digits: Path, audited: Path, tmp_path: Path) -> None:
    out = shutil.copytree(audited, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    assert run("certify", digits, "--limit", 8, "--eps", "0.1", "--out", out).exit_code == 0
    left = {"campaign", "certificate.json", "certified.parquet", "health.json", "notes.txt"}
    assert {path.name for path in out.iterdir()} == left


def test_a_report_that_is_nobodys_is_left_alone(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    assert run("certify", digits, "--limit", 8, "--out", tmp_path).exit_code == 0
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_report_with_another_checkpoint_is_refused(digits: Path, audited: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    run_ = preset("digits-vit")
    checkpoint.write(tmp_path, create(run_.model).state_dict(), run_.model_dump(mode="json"))
    assert run("report", audited, "--checkpoint", digits).exit_code == 0
    result = run("report", audited, "--checkpoint", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == ("certkit: the model given is not the checkpoint that was certified: its weights differ\n")


# --- stdout that nobody reads, or that is full


BREAKS = "from certkit.bounds.rules import RULES; from tests.test_cli import heads_ignored; RULES['attention'] = heads_ignored; "


def ended(words: list[str], stdout: str, *, setup: str = "") -> tuple[int, str]:
    """Exit code and stderr of the command in a process of its own, its stdout a closed pipe or a full device."""
    program = [sys.executable, "-c", f"import sys; {setup}from certkit.cli import main; main()", *words]
    if stdout == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    try:
        done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    finally:
        os.close(writer)
    return done.returncode, done.stderr


ROOT = Path(__file__).parent.parent
FULL = "certkit: stdout: could not be written (No space left on device)\n"


@pytest.mark.parametrize(
    "words", [["presets"], ["--help"], ["presets", "--help"], ["--version"], ["presets", "--json"]]
)
def test_a_reader_who_left_is_no_error_and_a_full_device_is_one_line(words: list[str]) -> None:
    assert ended(words, "closed pipe") == (0, "")
    assert ended(words, "full device") == (2, FULL)


def test_an_error_keeps_its_exit_code_whoever_listens() -> None:
    words = ["report", "nowhere", "--json"]
    for stdout in ("closed pipe", "full device"):
        code, said = ended(words, stdout)
        assert code == 2
        assert said.startswith("certkit: nowhere: no certificate.json")
        assert len(said.splitlines()) == 1


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
    for stdout in ("closed pipe", "full device"):  # the verdict is the exit code, whether or not it could be printed
        report = ["report", str(tmp_path / "broken"), "--checkpoint", str(file), "--model", "tests.networks:SixHeads"]
        code, said = ended(report, stdout, setup=BREAKS)
        assert code == 4
        assert said.startswith("certkit: ")
        assert len(said.splitlines()) == 1
