"""Campaigns in other processes: the same bytes with any number of workers, and nothing lost or run twice when they die."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from certkit.attacks import attack, executors
from certkit.cli import main
from certkit.commands.attack import MORE
from certkit.commands.loading import Inputs
from certkit.errors import ConfigError
from certkit.records import Data, Subject

SUBJECT = Subject(sha256="1" * 64, architecture="test", parameters=51)
ATTACKS = ["DDN:steps=5,restarts=2,bisection=2", "APGD-T:steps=5,restarts=2", "Square:queries=5"]
BLOCKS, UNITS = 3, 3 * 4


@dataclass(frozen=True)
class Samples:
    images: Tensor
    labels: Tensor
    indices: Tensor
    record: Data
    box: tuple[float, float] = (0.0, 1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    last = nn.Linear(5, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.GELU(), last).eval()
    with torch.no_grad():
        last.bias -= model(torch.full((1, 1, 2, 2), 0.5))[0]
    return model


def samples(count: int = 20) -> Samples:
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = network()(images).argmax(1)
    record = Data(name="toy", split="test", count=count, sha256="0" * 64, classes=("a", "b", "c"))
    return Samples(images, labels, torch.arange(count), record)


def run(out: Path, model: nn.Module | None = None, **given: Any) -> Any:
    options = {"norm": "l2", "eps": ["0.02", "0.1"], "block": 8, "suite": "none", "attacks": ATTACKS, **given}
    return attack(model or network(), samples(), subject=SUBJECT, out=out, **options)


def stored(out: Path) -> dict[str, bytes]:
    """Every file that a campaign is: its plan, its shards, its checks."""
    folder = out / "campaign"
    files = [folder / "plan.json", folder / "checks.json", *(folder / "shards").glob("*.parquet")]
    return {path.name: path.read_bytes() for path in files}


def executed(out: Path) -> list[str]:
    lines = map(json.loads, (out / "campaign" / "log.jsonl").read_text().splitlines())
    return [line["unit"] for line in lines if line["event"] == "unit"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    run(out)
    return out


def test_two_workers_give_the_bytes_of_one(
    alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And look for modules where their parent does, not in the folder where it was started; and end in silence."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "numpy.py").write_text("raise SystemExit('a file of the working folder was imported')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    seen: list[tuple[int, int]] = []
    run(tmp_path, workers=2, progress=lambda done, total, name: seen.append((done, total)))
    assert stored(tmp_path) == stored(alone)
    assert len(executed(tmp_path)) == len(set(executed(tmp_path))) == UNITS
    assert seen == [(4, UNITS), (8, UNITS), (12, UNITS)]
    assert "Traceback" not in capfd.readouterr().err


KILLED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("laws", sys.argv[1])
laws = sys.modules["laws"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(laws)
if __name__ == "__main__":
    laws.run(Path(sys.argv[2]), workers=2)
"""


def test_a_killed_campaign_with_workers_loses_nothing_and_leaves_none_running(alone: Path, tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, str(program), __file__, str(out)], start_new_session=True)
    until = time.monotonic() + 120
    while not list((out / "campaign" / "shards").glob("*.parquet")) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    run(out)  # waits for the workers to see that their parent is gone
    assert stored(out) == stored(alone)
    assert len(executed(out)) == len(set(executed(out)))
    assert not list((out / "campaign").rglob(".*.tmp"))


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")
def test_jobs_of_submitit_give_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    run(tmp_path, executor="submitit", workers=1)
    assert stored(tmp_path) == stored(alone)
    assert len(executed(tmp_path)) == UNITS
    assert (tmp_path / "campaign" / "jobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_tasks_of_ray_give_the_same_bytes(alone: Path, tmp_path: Path) -> None:
    run(tmp_path, executor="ray", workers=1)
    assert stored(tmp_path) == stored(alone)


class Local(nn.Module):
    """A model with something in it that no other process can get."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.hook = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


def test_a_model_that_cannot_be_sent_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, Local(), workers=2)
    assert str(caught.value).startswith("the model cannot be sent to another process (")
    assert str(caught.value).endswith("); define its class in a module, or run with one worker in this process")
    assert not executed(tmp_path)


def test_an_unknown_executor_and_a_missing_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, executor="slurm")
    assert str(caught.value) == "executor 'slurm' is unknown; expected one of process, submitit, ray"
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, executor="submitit")
    assert str(caught.value) == (
        "executor 'submitit' needs the package submitit, which is not installed: pip install submitit"
    )
    assert not list(tmp_path.iterdir())


def test_an_audit_shares_its_campaign_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "certkit.commands.loading.load_inputs", lambda checkpoint, given: Inputs(network(), SUBJECT, None)
    )
    monkeypatch.setattr("certkit.commands.audit.resumable", lambda inputs, given: None)
    monkeypatch.setattr("certkit.commands.audit.finish", lambda *args, **given: None)
    monkeypatch.setattr("certkit.commands.certify.run_certify", lambda inputs, **given: None)
    monkeypatch.setattr("certkit.commands.certify.run_health", lambda checkpoint, inputs, **given: None)
    monkeypatch.setattr("certkit.commands.attack.run_attack", lambda inputs, **words: given.update(words))
    result = CliRunner().invoke(main, ["audit", "any", "--out", "any", "--workers", "3"])
    assert result.exit_code == 0, result.output
    assert given["workers"] == 3
    assert "workers" in MORE  # which run_attack hands on


def test_no_workers_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^workers 0 cannot be used; expected a whole number of at least 1$"):
        run(tmp_path, workers=0)


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [executors.device_of("cuda", worker) for worker in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert executors.device_of("cuda:1", 0) == "cuda:1"
    assert executors.device_of("cpu", 5) == "cpu"
