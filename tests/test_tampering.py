"""One byte of an audit's folder changed, added or removed: certkit verify says which file it was."""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import certkit
from certkit import certified, data
from certkit.certified import certified_counts, executed, median_radius, without_local
from certkit.cli import main
from certkit.crosscheck.run import crosscheck
from certkit.errors import CertkitError, RecordError, Tampered
from certkit.files import canonical, digest_file, load, save
from certkit.folder import LOCKS, LOG, MOST_NAMED
from certkit.health.measure import measure
from certkit.reconcile import derived
from certkit.records import Audit, Certificate
from certkit.reports.twins import TWINS, write
from certkit.verification import verify

EPS = ("0.05", "0.25")


@functools.cache
def network() -> nn.Module:
    """A linear classifier of digits, fitted by least squares."""
    train = data.load("digits", "train")
    inputs = torch.cat([train.images.flatten(1), torch.ones(len(train.labels), 1)], 1).double()
    wanted = nn.functional.one_hot(train.labels, 10).double()
    solved = torch.linalg.solve(inputs.T @ inputs + torch.eye(65), inputs.T @ wanted).float()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        net[1].weight.copy_(solved[:-1].T)
        net[1].bias.copy_(solved[-1])
    return net


@functools.cache
def digits() -> data.Dataset:
    return data.load("digits", "test", limit=24)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit of digits with measurements, campaign, cross-check, page and every twin."""
    out = tmp_path_factory.mktemp("written") / "audit"
    certkit.certify(network(), digits(), eps=EPS, out=out)
    measure(network(), digits(), out=out)
    certkit.attack(network(), digits(), norm="l2", eps=EPS, out=out, suite="quick")
    crosscheck(network(), digits(), eps=EPS, norm="l2", out=out, samples=4)
    certkit.audit(out, model=network(), data=digits())
    certkit.report(out)
    write(out, tuple(TWINS))
    return out


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "audit"))


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page of one audit is drawn once: it is a pure function, as other tests see."""
    reports = importlib.import_module("certkit.reports")
    known: dict[str, str] = {}

    def render(audit: Audit, draw: Callable[[Audit], str] = reports.render) -> str:
        key = canonical(audit)
        known[key] = known.get(key) or draw(audit)
        return known[key]

    monkeypatch.setattr(reports, "render", render)
    return


def files(folder: Path) -> list[str]:
    """Every file but the locks, which are empty."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if name not in LOCKS]


def outcome(folder: Path) -> tuple[int, str, list[str]]:
    """The exit code of verify, its message, and what it names as not verified."""
    try:
        found = verify(folder)
    except CertkitError as error:
        return error.exit_code, str(error), []
    return 0, "", [one.what for one in found.not_verified]


def flipped(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        place = at(len(content))
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flip


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "the first byte": flipped(lambda size: 0),
    "a byte near the start": flipped(lambda size: size // 7),
    "the middle byte": flipped(lambda size: size // 2),
    "a byte near the end": flipped(lambda size: size - size // 7 - 1),
    "the last byte": flipped(lambda size: size - 1),
    "a byte more": lambda content: content + b"\n",
    "a byte less": lambda content: content[:-1],
    "nothing left": lambda content: b"",
}


def test_an_untouched_audit_is_verified_file_by_file(written: Path) -> None:
    found = verify(written, model=network(), data=digits())
    told = " ".join(one.what for one in found.verified)
    assert {
        "certified.parquet",
        "ledgers",
        "campaign",
        "audit.json",
        "report.html",
        "crosscheck.json",
        "health.json",
        "pictures",
    } <= {name for one in found.verified for name in one.what.split(", ")}
    assert all(twin.file in told for twin in TWINS.values())
    assert LOG in [one.what for one in found.not_verified]
    assert len(files(written)) >= 19


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_was_changed_is_named(folder: Path, damage: str) -> None:
    for name in files(folder):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(DAMAGE[damage](content))
        code, message, open_ = outcome(folder)
        path.write_bytes(content)
        if name == LOG:  # holds times, which differ between two runs: by design it is named, whatever is in it
            assert (code, name in open_) == (0, True)
        else:
            assert code == 2, f"{name}, {damage}: {message}"
            assert path.name in message, f"{name}, {damage}: {message}"
    assert outcome(folder)[0] == 0


@pytest.mark.usefixtures("drawn_once")
def test_a_file_that_was_removed_is_named(folder: Path) -> None:
    made = {"report.html", *(twin.file for twin in TWINS.values())}
    for name in files(folder):
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        code, message, open_ = outcome(folder)
        path.write_bytes(content)
        if name in made | {LOG}:  # nobody can know that it was there
            assert code == 0
            assert name in ", ".join(open_)
        else:
            assert code == 2, f"{name}: {message}"
            assert path.name in message, f"{name}: {message}"


def test_a_file_that_was_added_is_named(folder: Path) -> None:
    for name in (
        "certified.csv",
        "campaign/.lock.txt",
        "campaign/shards/note.txt",
        "refutations/sample-3.npy",
        "\x1b[31m",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "checkpoint").symlink_to(folder.parent)
    (folder / "campaign" / ".lock").write_text("x")
    code, message, open_ = outcome(folder)
    assert (code, message) == (0, "")
    added = {
        "certified.csv", "campaign/.lock.txt", "campaign/shards/note.txt", "refutations/sample-3.npy", r"\x1b[31m", "checkpoint",
        "campaign/.lock",
    }  # fmt: skip
    assert added <= {*open_}


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(folder: Path) -> None:
    shards = folder / "campaign" / "shards"
    os.mkfifo(shards / "more.parquet")
    (shards / "folder.parquet").mkdir()
    code, message, open_ = outcome(folder)
    assert (code, message) == (0, "")
    assert "campaign/shards/more.parquet" in open_
    name = next(shards.glob("?" * 64 + ".parquet")).name
    (shards / name).unlink()
    os.mkfifo(shards / name)
    code, message, _ = outcome(folder)
    assert code == 2
    assert message.startswith(f"campaign/shards/{name}: missing, and audit.json was made from it")


def test_very_many_files_are_counted(folder: Path) -> None:
    for number in range(MOST_NAMED + 30):
        (folder / f"{number}.txt").touch()
    found = verify(folder)
    assert [one.how for one in found.not_verified if one.what == "other files"] == ["30 more are no part of the audit"]


def test_the_page_of_an_audit_that_is_gone_is_no_audit(folder: Path) -> None:
    (folder / "audit.json").unlink()
    assert outcome(folder)[:2] == (
        2,
        "audit.json: missing, and report.html shows it; run certkit report again, and compare",
    )


def test_the_command_says_so_with_its_documented_code(folder: Path) -> None:
    run = CliRunner().invoke
    told = run(main, ["verify", str(folder)])
    assert told.exit_code == 0
    assert "NOT verified  campaign/log.jsonl: when and how long: nothing is made from it\n" in told.output
    page = folder / "report.html"
    page.write_bytes(page.read_bytes().replace(b"NOT REFUTED", b"NOT REFUSED", 1))
    told = run(main, ["verify", str(folder)])
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == (
        f"certkit: report.html: is not what certkit {certkit.__version__} makes of audit.json: one of the two was changed or is "
        "older, or other versions of matplotlib or pyarrow made it; run certkit report --format all again, and compare\n"
    )


# A whole record forged, page and twins made from it


def rewritten(folder: Path, **changes: Any) -> None:
    audit = load(Audit, folder / "audit.json")
    save(audit.model_copy(update=changes), folder / "audit.json")
    certkit.report(folder)
    write(folder, tuple(TWINS))


FORGED: dict[str, dict[str, Any]] = {
    "statement": {"statement": "Certified robust, in every respect."},
    "limits": {"limits": ()},
    "assumptions": {"assumptions": ()},
    "verdict_reason": {"verdict_reason": "everything was tried"},
    "checks": {"checks": ()},
    "crosscheck": {"crosscheck": None},
    "health": {"health": None},
    "median_distance": {"median_distance": 9.0},
    "files": {"files": ()},
}


@pytest.mark.parametrize("name", FORGED)
def test_an_audit_rewritten_with_its_page_is_caught_from_the_files_alone(folder: Path, name: str) -> None:
    rewritten(folder, **FORGED[name])
    assert outcome(folder)[:2] == (
        2,
        f"audit.json: {name} is not what the files beside it give; run certkit report again, and compare",
    )


# Examples inside certified radii


@pytest.fixture(scope="module")
def refuted(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit whose certificate states radii that are far too large, and so is refuted by its campaign."""
    out = Path(shutil.copytree(written, tmp_path_factory.mktemp("refuted") / "audit"))
    (out / "crosscheck.json").unlink()
    stated = load(Certificate, out / "certificate.json")
    rows = certified.read(out / stated.table.name)
    rows = replace(rows, radius=rows.radius * 40 + 0.5)
    certified.write(rows, out / stated.table.name)
    eps, told = stated.threat.eps, stated.execution
    table = stated.table.model_copy(update={"sha256": digest_file(out / stated.table.name)})
    changes = {
        "certified": certified_counts(rows, eps),
        "median_radius": median_radius(rows),
        "without_local": without_local(rows, eps),
        "execution": executed(rows, eps, **{name: getattr(told, name) for name in ("arithmetic", "pair_error", "reasons", "assumptions")}),
        "table": table,
    }  # fmt: skip
    save(stated.model_copy(update=changes), out / "certificate.json")
    certkit.audit(out, model=network(), data=digits())
    certkit.report(out)
    write(out, tuple(TWINS))
    return out


@pytest.fixture
def case(refuted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(refuted, tmp_path / "refuted"))


@pytest.mark.usefixtures("drawn_once")
def test_the_examples_that_refute_are_the_campaigns(case: Path) -> None:
    audit = load(Audit, case / "audit.json")
    assert audit.verdict == "REFUTED"
    code, message, open_ = outcome(case)
    assert (code, message) == (0, "")
    assert "contradictions" in open_
    assert len({one.example for one in audit.contradictions} - {None}) == len(audit.contradictions)
    for one in audit.contradictions[:2]:
        assert one.example is not None
        path = case / one.example.name
        content = path.read_bytes()
        for other in (content[:-1], content + b"\0", content[:-1] + bytes([content[-1] ^ 1]), None):
            path.unlink() if other is None else path.write_bytes(other)
            told = f"{one.example.name}: is missing, or not the example that the campaign found; run certkit report again, "
            assert outcome(case)[:2] == (2, f"{told}and compare")
            path.write_bytes(content)


def test_a_contradiction_cannot_be_left_out(case: Path) -> None:
    first, *others = load(Audit, case / "audit.json").contradictions
    rewritten(case, contradictions=tuple(others))
    told = f"audit.json: says nothing of sample {first.index}, of which an example lies inside its certified radius"
    assert outcome(case)[:2] == (2, f"{told}; run certkit report again")


def test_a_contradiction_made_harmless_is_caught_by_the_network(case: Path) -> None:
    audit = load(Audit, case / "audit.json")
    harmless = [
        one.model_copy(update={"refutes": "float gap", "reference_margin": 1.0}) for one in audit.contradictions
    ]
    forged, _ = derived(case, stated=harmless)
    assert forged.verdict != "REFUTED"
    save(forged, case / "audit.json")
    certkit.report(case)
    write(case, tuple(TWINS))
    assert outcome(case)[0] == 0  # no file alone knows the network
    with pytest.raises(Tampered, match=r"^audit\.json: sample \d+: the network's float64 margin on its example is -"):
        verify(case, model=network())


def test_without_the_network_nothing_is_said_of_an_example_for_the_first_time(case: Path) -> None:
    with pytest.raises(
        RecordError, match=r"adversarial examples lie inside certified radii and must be evaluated in float64"
    ):
        certkit.audit(case)


# Samples of a stranger's choice


def test_no_data_set_is_looked_for_because_a_file_names_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certkit.commands.verify import samples_of

    def never(*given: Any, **more: Any) -> None:
        raise AssertionError(f"read {given}")

    monkeypatch.setattr(data, "load", never)
    stated = load(Certificate, folder / "certificate.json").data
    for name in ("cifar10", "user/data", "/etc", "audit", "digits ", "\x1b[31m"):
        (tmp_path / "audit").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path)
        found, reason = samples_of(stated.model_copy(update={"name": name}), None)
        shown = name.replace("\x1b", r"\\x1b")
        assert (found, reason) == (None, f"the certificate names data set '{shown}': give it with --data")


def test_a_data_set_that_the_user_names_is_read(folder: Path) -> None:
    from certkit.commands.verify import samples_of

    stated = load(Certificate, folder / "certificate.json").data
    found, reason = samples_of(stated.model_copy(update={"name": "elsewhere"}), "digits")
    assert reason is None
    assert found is not None
    assert found.record.sha256 == stated.sha256
    assert json.loads(canonical(found.record))["name"] == "digits"
