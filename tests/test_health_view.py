"""health.json beside a certificate: what is of another network is refused, and what the ledger excludes refutes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import nn

import certkit
from certkit.cli import main
from certkit.errors import RecordError
from certkit.files import load
from certkit.health.measure import measure
from certkit.health.view import joined, load_health, view
from certkit.proof import load_certificate
from certkit.records import Audit
from certkit.records.health import MAX_PARTS, Health, Largest
from certkit.verification import verify
from tests.networks import labelled_by, linear, samples


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A folder with certificate and measurements of one linear map."""
    model, out = linear(), tmp_path_factory.mktemp("measured")
    data = labelled_by(model, samples())
    certkit.certify(model, data, eps=["0.1"], out=out)
    measure(model, data, out=out)
    return out, model


@pytest.fixture
def copy(measured: tuple[Path, nn.Module], tmp_path: Path) -> Path:
    shutil.copytree(measured[0], tmp_path / "copy")
    return tmp_path / "copy"


def changed(folder: Path, **changes: Any) -> None:
    path = folder / "health.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_an_audit_shows_what_was_measured_beside_what_is_proved(copy: Path) -> None:
    audit = certkit.audit(copy)
    assert audit.health is not None
    assert [part.part for part in audit.health.parts] == ["input", "0", "logits"]
    for part in audit.health.parts:
        assert part.measured <= float(part.certified) * (1 + 1e-12)
    assert audit.health.samples == 24
    assert audit.health.too_large == ()
    assert audit.health.untold is not None
    assert "health.json" in [file.name for file in audit.provenance.files]
    assert audit == load(Audit, copy / "audit.json")


def test_the_same_network_measured_again_gives_the_same_file(measured: tuple[Path, nn.Module], copy: Path) -> None:
    model = measured[1]
    measure(model, labelled_by(model, samples()), out=copy)
    first, second = (load(Health, folder / "health.json") for folder in (measured[0], copy))
    assert first.model_copy(update={"provenance": second.provenance}) == second


def test_without_measurements_the_audit_stands_and_has_none(copy: Path) -> None:
    (copy / "health.json").unlink()
    assert certkit.audit(copy).health is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": {"sha256": "0" * 64, "architecture": "x", "parameters": 1}}, "is of another checkpoint than"),
        ({"program_sha256": "0" * 64}, "is of another graph than"),
        ({"box": [0.0, 2.0]}, "is of another box than"),
        ({"entries": [{"node": "x", "largest": 1.0}] * 2}, "entries: 'x' stands twice"),
        ({"entries": []}, "entries: none is of a value of the ledger"),
        ({"entries": [{"node": "x", "largest": -1.0}]}, r"entries\.0\.largest: Input should be greater"),
        ({"untold": None}, "there is a training record, or a reason why there is none"),
        ({"another": 1}, "another: Extra inputs are not permitted"),
    ],
)
def test_measurements_of_another_network_are_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    changed(copy, **changes)
    with pytest.raises(RecordError, match=rf"^health\.json: .*{message}"):
        certkit.audit(copy)


def test_a_singular_value_above_the_proved_norm_is_refused(copy: Path) -> None:
    spectra = json.loads((copy / "health.json").read_text())["spectra"]
    spectra[0]["proved"] = spectra[0]["values"][0] * 0.99
    changed(copy, spectra=spectra)
    with pytest.raises(RecordError, match=r"health\.json: 1: a measured .* is above the proved"):
        certkit.audit(copy)


def test_a_number_that_the_ledger_excludes_refutes_the_certificate(copy: Path) -> None:
    certificate, _, ledger = load_certificate(copy)
    entries = json.loads((copy / "health.json").read_text())["entries"]
    entries[-1]["largest"] = 1e6
    changed(copy, entries=entries)
    found = load_health(copy, certificate, ledger)
    assert found is not None
    assert view(found, ledger).too_large == (entries[-1]["node"],)
    result = CliRunner().invoke(main, ["report", str(copy)])
    assert result.exit_code == 4
    assert f"health.json states a number at {entries[-1]['node']} that the ledger's size forbids" in result.output
    assert load(Audit, copy / "audit.json").verdict == "REFUTED"
    page = (copy / "report.html").read_text()
    assert "above the bound" in page
    assert "claimed, and refuted" in page


def test_verify_names_a_number_that_would_disprove_the_ledger_where_no_verdict_does(copy: Path) -> None:
    honest = {one.what: one.how for one in verify(copy).not_verified}["health.json"]
    assert honest.startswith("largest numbers, singular values and training record are as stated; ")
    entries = json.loads((copy / "health.json").read_text())["entries"]
    entries[-1]["largest"] = 1e6
    changed(copy, entries=entries)
    told = {one.what: one.how for one in verify(copy).not_verified}["health.json"]
    assert told == f"a number stated at {entries[-1]['node']} would disprove the ledger; {honest}"


def test_a_certificate_of_another_network_is_not_measured(copy: Path) -> None:
    other = linear(seed=1)
    with pytest.raises(RecordError, match=r"certificate\.json is of another network; certify this one first"):
        measure(other, labelled_by(other, samples()), out=copy)


def test_a_certificate_of_other_samples_is_not_measured(measured: tuple[Path, nn.Module], copy: Path) -> None:
    with pytest.raises(RecordError, match=r"certificate\.json is of other samples; certify these first"):
        measure(measured[1], labelled_by(measured[1], samples(seed=9)), out=copy)


@pytest.mark.parametrize("count", [1, MAX_PARTS, MAX_PARTS + 1, 10 * MAX_PARTS - 1])
def test_many_parts_stand_together_and_lose_no_largest(count: int) -> None:
    parts = [Largest(part=f"b.{n}", measured=float(n % 97), certified=str(n % 89 + 97)) for n in range(count)]
    every = -(-count // MAX_PARTS)
    found = joined(parts, every)
    assert len(found) <= MAX_PARTS
    assert max(one.measured for one in found) == max(one.measured for one in parts)
    assert max(float(one.certified) for one in found) == max(float(one.certified) for one in parts)
    assert found[0].part == ("b.0" if every == 1 else f"b.0 to b.{every - 1}")


def test_certify_and_audit_measure_from_the_command_line(tmp_path: Path) -> None:
    preset = [
        "--set",
        "training.steps=2",
        "--set",
        "training.refresh=1",
        "--set",
        "model.width=8",
        "--set",
        "model.hidden_width=8",
    ]
    made = CliRunner().invoke(main, ["train", "--preset", "digits-vit", *preset, "--out", str(tmp_path / "run")])
    assert made.exit_code == 0, made.output
    words = ["certify", str(tmp_path / "run"), "--limit", "12", "--eps", "0.1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    found = load(Health, tmp_path / "out" / "health.json")
    assert found.untold is None
    assert found.training is not None
    assert found.training.about is not None
    assert found.training.steps.steps == 2
    assert all(one.cap is not None and one.proved <= one.cap * (1 + 1e-6) for one in found.spectra)
    assert len(found.scores) == 1
