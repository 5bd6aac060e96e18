"""A stored example comes out again as it is recorded, or the command says how it differs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import certkit
from certkit.checkpoint import subject_of
from certkit.cli import main
from certkit.commands.loading import Inputs
from certkit.data import Dataset
from certkit.errors import RecordError
from certkit.proof import load_certificate
from certkit.replay import replay
from tests.networks import labelled_by, linear, samples

EPS = ("0.01", "0.05", "0.1")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, Dataset]:
    model, out = linear(), tmp_path_factory.mktemp("audited")
    data = labelled_by(model, samples())
    certkit.certify(model, data, eps=EPS, out=out)
    certkit.attack(model, data, norm="l2", eps=EPS, out=out, suite="none", attacks=["DDN:steps=20"])
    return out, model, data


@pytest.fixture
def copy(held: tuple[Path, nn.Module, Dataset], tmp_path: Path) -> Path:
    shutil.copytree(held[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_a_stored_example_is_wrong_again_at_its_distance_and_outside_the_radius(held: Any) -> None:
    out, model, data = held
    found = replay(out, 3, model, data)
    assert found.reproduced
    assert not found.refutes
    assert found.distance == found.stated > found.radius > 0
    assert found.attack == "DDN"
    assert found.reference_margin < 0
    assert found.prediction != found.label == int(data.labels[3])


def test_without_a_certificate_there_is_no_radius(held: Any, copy: Path) -> None:
    (copy / "certificate.json").unlink()
    found = replay(copy, 3, *held[1:])
    assert (found.radius, found.reference_margin, found.refutes) == (None, None, False)
    assert found.reproduced


def test_the_model_is_left_in_its_mode(held: Any) -> None:
    out, model, data = held
    model.train()
    replay(out, 3, model, data)
    assert model.training
    model.eval()


def doubled(model: nn.Module) -> nn.Module:
    other = linear()
    with torch.no_grad():
        other[1].weight.copy_(2 * model[1].weight)
    return other


def test_another_network_other_data_and_a_sample_that_is_not_there_are_refused(held: Any) -> None:
    out, model, data = held
    cases = {
        "the network given is not the one that was attacked: its weights differ": (3, doubled(model), data),
        ("the samples given are not those that were attacked; name the same --data, --split and --limit"): (
            3,
            model,
            labelled_by(model, samples(23)),
        ),
        "sample 24 is none of this campaign's 24; its indices go from 0 to 23": (24, model, data),
    }
    for message, given in cases.items():
        with pytest.raises(RecordError) as caught:
            replay(out, *given)
        assert str(caught.value) == message


def test_a_sample_that_was_never_broken_has_no_example(tmp_path: Path) -> None:
    model = linear()
    data = labelled_by(model, samples())
    certkit.attack(model, data, norm="l2", eps=["1e-6"], out=tmp_path, suite="none", attacks=["APGD-CE:steps=2"])
    with pytest.raises(RecordError) as caught:
        replay(tmp_path, 3, model, data)
    assert str(caught.value) == "sample 3 has no adversarial example: nothing of this campaign broke it"


def command(monkeypatch: pytest.MonkeyPatch, held: Any, *words: object) -> Result:
    inputs = Inputs(held[1], subject_of(held[1]), held[2])
    monkeypatch.setattr("certkit.commands.loading.load_inputs", lambda checkpoint, given: inputs)
    return CliRunner().invoke(main, ["replay", *map(str, words), "--checkpoint", "any"])


def test_the_command_says_what_came_of_it(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = command(monkeypatch, held, held[0], 3)
    assert result.exit_code == 0, result.output
    first, *rest = result.stdout.splitlines()
    assert first == f"sample 3, label {int(held[2].labels[3])}, broken by DDN"
    assert [line.split()[0] for line in rest] == ["distance", "prediction", "certified", "margin"]
    found = json.loads(command(monkeypatch, held, held[0], 3, "--json").stdout)
    assert (found["reproduced"], found["refutes"], found["sample"]) == (True, False, 3)


def larger_radii(directory: Path) -> Any:
    certificate, table, ledger = load_certificate(directory)
    return certificate, replace(table, radius=table.radius * 10), ledger


def test_an_example_inside_a_certified_radius_exits_with_4(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certkit.replay.load_certificate", larger_radii)
    result = command(monkeypatch, held, held[0], 3)
    assert result.exit_code == 4
    assert "sample 3: the example lies inside the certified radius and is wrong in float64" in result.stderr


def test_an_example_that_only_the_program_errs_on_refutes_the_claim_about_its_execution(
    held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lenient(directory: Path) -> Any:
        certificate, table, ledger = load_certificate(directory)
        wider = replace(table, radius=table.radius * 10, float_radius=table.radius * 10)
        return certificate.model_copy(update={"pair_error": 100.0}), wider, ledger

    monkeypatch.setattr("certkit.replay.load_certificate", lenient)
    assert replay(held[0], 3, *held[1:]).disproves == "float execution"
    result = command(monkeypatch, held, held[0], 3)
    assert result.exit_code == 4
    assert "sample 3: the example lies inside the certified radius and the program errs on it" in result.stderr


def test_a_certificate_of_other_samples_has_no_radius_for_these(held: Any, copy: Path) -> None:
    _, model, data = held
    certkit.certify(model, labelled_by(model, samples(2)), eps=EPS, out=copy)
    found = replay(copy, 3, model, data)
    assert (found.radius, found.refutes, found.reproduced) == (None, False, True)


def test_an_example_of_a_targeted_campaign_is_reproduced_at_its_target_alone(held: Any) -> None:
    found = replay(held[0], 3, *held[1:])
    assert replace(found, target=found.prediction).reproduced
    assert not replace(found, target=found.prediction + 1).reproduced


def test_an_example_that_is_right_here_exits_with_3(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    label = int(held[2].labels[3])
    monkeypatch.setattr("certkit.replay._prediction", lambda model, example, label, threads: label)
    result = command(monkeypatch, held, held[0], 3)
    assert result.exit_code == 3
    assert "sample 3: the example does not come out here as it is recorded" in result.stderr
    assert f"prediction  {label}" in result.stdout


def test_a_refutation_is_replayed_before_the_nearest_example_and_must_be_the_one_named(
    held: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, data = held
    monkeypatch.setattr("certkit.reconcile.load_certificate", larger_radii)
    audit = certkit.audit(copy, model=model)
    assert audit.verdict == "REFUTED"
    (hit,) = [one for one in audit.contradictions if one.index == 3]
    found = replay(copy, 3, model, data)
    assert (found.attack, found.stated) == (hit.attack, hit.distance)
    assert hit.example is not None
    kept = (copy / hit.example.name).rename(copy / "kept.npy")
    with pytest.raises(RecordError, match=r"audit\.json names this example and it is missing; run the audit again$"):
        replay(copy, 3, model, data)
    kept.rename(copy / hit.example.name)
    np.save(copy / hit.example.name, np.zeros((1, 2, 2), np.float32))
    with pytest.raises(RecordError, match=r"is not the example that audit\.json names; run the audit again$"):
        replay(copy, 3, model, data)
