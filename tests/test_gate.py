"""The gate lets through what was asked for and nothing else, and believes no figure that it cannot derive."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import certkit
from certkit import certified
from certkit.campaign import load_campaign, seal
from certkit.cli import main
from certkit.errors import ConfigError, RecordError, Tampered
from certkit.files import digest_file, load, save
from certkit.gate import Threshold, gate
from certkit.records import Audit, Certificate
from tests.networks import labelled_by, linear, samples

EPS = ("0.01", "0.05", "0.1")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, out = linear(), tmp_path_factory.mktemp("gated")
    data = labelled_by(model, samples())
    certkit.certify(model, data, eps=EPS, norm="l2", out=out, threads=1)
    certkit.attack(model, data, norm="l2", eps=EPS, out=out)
    certkit.audit(out, model=model)
    return out


@pytest.fixture
def copy(audited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "copy"))


def shares(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Per radius: certified, unbroken, of how many."""
    audit = load(Audit, folder / "audit.json")
    return {
        point.eps.text: (point.certified.count, point.attacked.count if point.attacked else -1, point.certified.total)
        for point in audit.curve
    }


@pytest.mark.parametrize("eps", EPS)
def test_a_threshold_is_met_up_to_the_very_share_and_not_beyond(audited: Path, eps: str) -> None:
    certified, unbroken, total = shares(audited)[eps]
    gap = unbroken - certified
    for kind, count, slack in (("min-certified", certified, 1), ("min-attacked", unbroken, 1), ("max-gap", gap, -1)):
        at, beyond = f"{count}/{total}@l2:{eps}", f"{count + slack}/{total}@l2:{eps}"
        assert gate(audited, [Threshold.of(kind, at)]).passed  # type: ignore[arg-type]
        if 0 <= count + slack <= total:
            assert not gate(audited, [Threshold.of(kind, beyond)]).passed  # type: ignore[arg-type]


def test_one_threshold_that_is_not_met_fails_the_whole(audited: Path) -> None:
    met, failed = Threshold.of("min-clean", "0.5"), Threshold.of("min-certified", "1@l2:0.1")
    found = gate(audited, [met, failed])
    assert [one.met for one in found.thresholds] == [True, shares(audited)["0.1"][0] == shares(audited)["0.1"][2]]
    assert found.passed == all(one.met for one in found.thresholds)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("min-certified", "0.6", "--min-certified '0.6' is no threshold; expected SHARE@NORM:EPS such as 0.6@l2:0.25"),
        ("min-clean", "high", "--min-clean 'high' is no threshold; expected a share such as 0.95"),
        ("min-clean", "95", "--min-clean '95': a share lies between 0 and 1; expected one such as 0.95"),
        ("max-gap", "x@l2:0.1", "--max-gap 'x@l2:0.1' is no threshold; expected a share such as 0.6@l2:0.25"),
        ("max-gap", "1/0@l2:0.1", "--max-gap '1/0@l2:0.1' is no threshold; expected a share such as 0.6@l2:0.25"),
        ("min-certified", "0.6@l2:x", "eps 'x' is not a number; expected 0.25 or 36/255"),
    ],
)
def test_what_is_no_threshold_is_refused(kind: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Threshold.of(kind, text)  # type: ignore[arg-type]
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0.6@linf:0.1",
            "--min-certified 0.6@linf:0.1: the audit is in l2; ask in that norm, or audit in the other",
        ),
        ("0.6@l2:0.2", "--min-certified 0.6@l2:0.2: not audited at 0.2; audited are 0.01, 0.05, 0.1"),
    ],
)
def test_what_was_not_audited_is_refused(audited: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        gate(audited, [Threshold.of("min-certified", text)])
    assert str(error.value) == message


def test_an_audit_that_claims_more_than_its_certificate_is_refused(copy: Path) -> None:
    audit = load(Audit, copy / "audit.json")
    save(
        audit.model_copy(update={"clean": audit.clean.model_copy(update={"count": 0, "low": 0.0})}), copy / "audit.json"
    )
    with pytest.raises(Tampered) as error:
        gate(copy, [Threshold.of("min-clean", "0")])
    assert str(error.value) == (
        "audit.json: clean is not what the files beside it give; run certkit report again, and compare"
    )


@pytest.mark.parametrize("name", ["verdict", "curve"])
def test_what_the_attacks_left_is_derived_from_them(copy: Path, name: str) -> None:
    audit = load(Audit, copy / "audit.json")
    best = tuple(point.model_copy(update={"attacked": audit.clean}) for point in audit.curve)
    forged = {"verdict": {"verdict": "INCONCLUSIVE"}, "curve": {"curve": best}}[name]
    save(audit.model_copy(update=forged), copy / "audit.json")
    with pytest.raises(Tampered, match=rf"^audit\.json: {name} is not what the files beside it give"):
        gate(copy, [Threshold.of("min-attacked", "0@l2:0.1")])


def test_without_an_audit_there_is_nothing_to_judge(copy: Path) -> None:
    (copy / "audit.json").unlink()
    with pytest.raises(RecordError) as error:
        gate(copy, [])
    assert str(error.value).endswith("no audit.json here; run certkit audit or certkit report first")


def test_what_was_not_attacked_does_not_pass_for_robust(copy: Path) -> None:
    shutil.rmtree(copy / "campaign")
    certkit.audit(copy)
    found = gate(copy, [Threshold.of("min-attacked", "0@l2:0.1"), Threshold.of("max-gap", "1@l2:0.1")])
    assert [one.met for one in found.thresholds] == [False, False]
    assert found.thresholds[0].reason == (
        "--min-attacked 0@l2:0.1: no campaign stands beside the certificate, so nothing was attacked"
    )
    assert gate(copy, [Threshold.of("min-certified", "0@l2:0.1")]).passed


def test_what_is_claimed_of_the_execution_is_a_threshold_of_its_own(copy: Path) -> None:
    audit = load(Audit, copy / "audit.json")
    held = audit.execution.certified[0].certified
    assert held.count
    (met,) = gate(copy, [Threshold.of("min-executed", f"{held.count}/{held.total}@l2:0.01")]).thresholds
    assert (met.met, met.figure) == (True, f"{held.count}/{held.total}")
    raised = held.model_copy(update={"count": held.count - 1})
    point = audit.execution.certified[0].model_copy(update={"certified": raised})
    forged = audit.execution.model_copy(update={"certified": (point, *audit.execution.certified[1:])})
    save(audit.model_copy(update={"execution": forged}), copy / "audit.json")
    with pytest.raises(Tampered, match=r"^audit\.json: execution is not what the files beside it give"):
        gate(copy, [Threshold.of("min-executed", "0@l2:0.01")])


def too_large(folder: Path) -> None:
    """Radii of the certificate that its campaign refutes."""
    stated = load(Certificate, folder / "certificate.json")
    rows = certified.read(folder / stated.table.name)
    rows = replace(rows, radius=rows.radius + 1.0)
    certified.write(rows, folder / stated.table.name)
    eps, told = stated.threat.eps, stated.execution
    of = {name: getattr(told, name) for name in ("arithmetic", "pair_error", "reasons", "assumptions")}
    changes = {
        "certified": certified.certified_counts(rows, eps),
        "median_radius": certified.median_radius(rows),
        "without_local": certified.without_local(rows, eps),
        "execution": certified.executed(rows, eps, **of),
        "table": stated.table.model_copy(update={"sha256": digest_file(folder / stated.table.name)}),
    }
    save(stated.model_copy(update=changes), folder / "certificate.json")


def check_failed(folder: Path) -> None:
    """A check of the campaign on itself that fails."""
    campaign = load_campaign(folder)
    first, *others = campaign.checks
    checks = (first.model_copy(update={"status": "fail"}), *others)
    save(seal(folder / "campaign", campaign.plan, checks), folder / "campaign" / "checks.json")


@pytest.mark.parametrize(("spoil", "verdict", "code"), [(too_large, "REFUTED", 4), (check_failed, "INCONCLUSIVE", 3)])
def test_a_refuted_or_inconclusive_audit_never_passes(
    copy: Path, spoil: Callable[[Path], None], verdict: str, code: int
) -> None:
    spoil(copy)
    assert certkit.audit(copy, model=linear()).verdict == verdict
    assert not gate(copy, [Threshold.of("min-clean", "0")]).passed
    assert CliRunner().invoke(main, ["gate", str(copy), "--min-clean", "0"]).exit_code == code


def test_the_command_exits_with_one_and_says_why(audited: Path) -> None:
    certified, _, total = shares(audited)["0.1"]
    asked = f"{min(certified + 1, total)}/{total}@l2:0.1"
    result = CliRunner().invoke(main, ["gate", str(audited), "--min-certified", asked, "--json"])
    assert result.exit_code == 1
    stated, _ = json.JSONDecoder().raw_decode(result.stdout)
    assert (stated["passed"], stated["thresholds"][0]["figure"]) == (False, f"{certified}/{total}")
    assert "of the samples are correct and proved to stay so" in result.stderr


def test_the_command_needs_something_to_judge_by(audited: Path) -> None:
    result = CliRunner().invoke(main, ["gate", str(audited)])
    assert result.exit_code == 2
    assert result.stderr == ("certkit: no threshold was given; expected one such as --min-certified 0.6@l2:0.25\n")
