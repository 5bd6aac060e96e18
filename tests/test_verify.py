"""certkit verify: forged evidence, other checkpoints and other samples are told apart from what was certified."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

import certkit
from certkit import certified
from certkit.bounds.elementary import MEASURED, Build
from certkit.bounds.ledger import Ledger, checked, from_json, pair_gains, to_json
from certkit.bounds.ledger import main as derive_again
from certkit.bounds.number import Up
from certkit.certified import certified_counts, certify_rows, executed, median_radius, without_local
from certkit.cli import main
from certkit.engine.floats import assumptions, running
from certkit.engine.precision import precision
from certkit.errors import CheckpointError, ConfigError, DataError, RecordError, RuleViolation, Tampered
from certkit.files import digest_file, load, save
from certkit.records import Certificate
from certkit.verification import Verification, verify
from tests.networks import samples

HALF = Up.of("0.5")


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest")
    certkit.certify(model(), samples(), eps=["0.01", "0.1"], out=out)
    return out


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "out"))


def forged(ledger: Ledger, change: Callable[[dict[str, Up]], None], place: int) -> Ledger:
    """The ledger with the evidence of one step changed, and every bound derived again from there."""
    value = to_json(ledger)
    evidence = {key: Up.of(text) for key, text in value["steps"][place]["evidence"].items()}
    change(evidence)
    value["steps"][place]["evidence"] = {key: str(number) for key, number in evidence.items()}
    return derived(from_json(value))


def derived(ledger: Ledger) -> Ledger:
    """The same steps with the bounds that their rules give."""
    from certkit.bounds.ledger import facts_for
    from certkit.bounds.rules import derive

    known: dict[str, Any] = {}
    steps = []
    for step in ledger.steps:
        facts = facts_for(ledger.arithmetic, step.attributes, step.evidence)
        known[step.node] = derive(step.rule, [known[name] for name in step.inputs], facts)
        steps.append(replace(step, bound=known[step.node]))
    pairs = ledger.pairs
    gain, error = pair_gains(known[pairs.node], known[ledger.output], pairs.l2, pairs.l1)
    return replace(ledger, steps=tuple(steps), pairs=replace(pairs, gain=gain, error=error))


def consistent(folder: Path, change: Callable[[dict[str, Up]], None], place: int = 2) -> None:
    """Forge the evidence of a step, and everything that follows from it: bounds, radii, counts, digests."""
    stated = load(Certificate, folder / "certificate.json")
    table = certified.read(folder / stated.table.name)
    ledger = forged(checked(stated.ledger), change, place)
    deployed = forged(checked(stated.execution_ledger), change, place)
    gain = tuple(tuple(number.to_float() for number in row) for row in ledger.pairs.gain)
    error = ledger.pairs.error.to_float()
    own = deployed.pairs.error.to_float() if stated.execution.pair_error is not None else None
    radii = certified.radii(table.logits, np.array(gain), 2 * (error + (own or 0.0)))
    rows = certify_rows(
        table.index, table.label, table.logits, np.array(gain), error, execution=None if own is None else radii * 1.5
    )
    certified.write(rows, folder / stated.table.name)
    eps = stated.threat.eps
    given = {name: getattr(stated.execution, name) for name in ("arithmetic", "reasons", "assumptions")}
    made = stated.model_copy(
        update={
            "ledger": to_json(ledger),
            "execution_ledger": to_json(deployed),
            "pair_gain": gain,
            "pair_error": error,
            "certified": certified_counts(rows, eps),
            "median_radius": median_radius(rows),
            "without_local": without_local(rows, eps),
            "execution": executed(rows, eps, pair_error=own, **given),
            "table": stated.table.model_copy(update={"sha256": digest_file(folder / stated.table.name)}),
        }
    )
    save(made, folder / "certificate.json")


def in_float64(folder: Path) -> None:
    """Claim that the deployed program, of float32, runs in float64, with everything that follows from it."""
    stated = load(Certificate, folder / "certificate.json")
    table = certified.read(folder / stated.table.name)
    exact = checked(stated.ledger)
    error = exact.pairs.error.to_float()
    rows = replace(table, float_radius=table.radius)
    certified.write(rows, folder / stated.table.name)
    told = {"arithmetic": "float64", "pair_error": error, "reasons": (), "assumptions": resting(exact)}
    made = stated.model_copy(
        update={
            "execution_ledger": stated.ledger,
            "execution": executed(rows, stated.threat.eps, **told),  # type: ignore[arg-type]
            "table": stated.table.model_copy(update={"sha256": digest_file(folder / stated.table.name)}),
        }
    )
    save(made, folder / "certificate.json")


def resting(ledger: Ledger) -> tuple[str, ...]:
    """What a claim about the execution of this ledger's program says that it rests on, on this machine."""
    return tuple(assumptions(ledger, (), running()))


def lowered(evidence: dict[str, Up]) -> None:
    evidence |= {key: number * HALF for key, number in evidence.items()}


def what(found: Verification) -> list[str]:
    return [statement.what for statement in found.verified]


def test_an_honest_certificate_is_proved_again(folder: Path) -> None:
    found = verify(folder, model=model(), data=samples())
    assert what(found) == [
        "certified.parquet", "ledgers", "checkpoint", "graph", "ledger", "execution_ledger", "samples", "logits and radii",
        "agreement",
    ]  # fmt: skip
    assert {one.what for one in found.not_verified} == {"audit.json", "assumption", "other logits and local radii"}
    whole = verify(folder, model=model(), data=samples(), samples=24)
    assert {statement.what for statement in whole.not_verified} == {"audit.json", "assumption"}
    assert found.certificate == digest_file(folder / "certificate.json")


def test_without_the_checkpoint_the_evidence_is_named_as_open(folder: Path) -> None:
    found = verify(folder)
    assert what(found) == ["certified.parquet", "ledgers"]
    assert [statement.what for statement in found.not_verified][:3] == [
        "audit.json",
        "evidence",
        "logits and local radii",
    ]


def test_without_the_samples_the_logits_are_named_as_open(folder: Path) -> None:
    found = verify(folder, model=model())
    assert "execution_ledger" in what(found)
    assert "logits and radii" not in what(found)
    assert "logits and local radii" in [statement.what for statement in found.not_verified]


def test_evidence_forged_so_that_the_ledger_derives_is_caught_by_the_weights(folder: Path) -> None:
    before = load(Certificate, folder / "certificate.json").pair_gain[0][1]
    consistent(folder, lowered)
    assert load(Certificate, folder / "certificate.json").pair_gain[0][1] < 0.6 * before
    assert derive_again([str(folder / "certificate.json")]) == 0
    assert "ledgers" in what(verify(folder))  # the files alone cannot tell
    with pytest.raises(
        Tampered, match=r"^ledger: linear: the stated \w+ \S+ is below the \S+ measured from the weights: f"
    ):
        verify(folder, model=model(), data=samples())


def test_evidence_stated_too_large_is_no_forgery(folder: Path) -> None:
    def raised(evidence: dict[str, Up]) -> None:
        evidence["sigma"] = evidence["sigma"] * 2

    consistent(folder, raised)
    assert "logits and radii" in what(verify(folder, model=model(), data=samples()))


def test_a_program_of_float32_cannot_be_claimed_to_run_in_float64(folder: Path) -> None:
    in_float64(folder)
    verify(folder)  # the files alone do not know the weights
    with pytest.raises(Tampered) as caught:
        verify(folder, model=model(), data=samples())
    assert str(caught.value) == "execution_ledger: it is of float64 arithmetic, but this one must be of float32"


def test_a_program_without_a_claim_about_its_execution_is_not_given_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.GroupNorm(1, 1, eps=0.1), nn.Flatten(), nn.Linear(4, 3)).eval()
    certkit.certify(net, samples(), eps=["0.01"], out=tmp_path)
    stated = load(Certificate, tmp_path / "certificate.json")
    assert stated.execution.pair_error is None
    table = certified.read(tmp_path / stated.table.name)
    rows = replace(table, float_radius=table.radius)
    certified.write(rows, tmp_path / stated.table.name)
    deployed = checked(stated.execution_ledger)
    error = deployed.pairs.error.to_float()
    told = {"arithmetic": "float32", "pair_error": error, "reasons": (), "assumptions": resting(deployed)}
    made = stated.model_copy(
        update={
            "execution": executed(rows, stated.threat.eps, **told),  # type: ignore[arg-type]
            "table": stated.table.model_copy(update={"sha256": digest_file(tmp_path / stated.table.name)}),
        }
    )
    save(made, tmp_path / "certificate.json")
    verify(tmp_path)  # the files alone do not know the kernels
    with pytest.raises(
        Tampered, match=r"^certificate\.json: it claims what its program's execution cannot be claimed to do: "
    ):
        verify(tmp_path, model=net, data=samples())


def enlarged(folder: Path, chosen: slice = slice(None)) -> None:
    """State larger local radii of some samples, with everything that follows from them."""
    stated = load(Certificate, folder / "certificate.json")
    rows = certified.read(folder / stated.table.name)
    radius = rows.radius.copy()
    radius[chosen] = radius[chosen] * 1.5 + 0.01
    rows = replace(rows, radius=radius)
    certified.write(rows, folder / stated.table.name)
    eps, told = stated.threat.eps, stated.execution
    made = stated.model_copy(
        update={
            "certified": certified_counts(rows, eps),
            "median_radius": median_radius(rows),
            "without_local": without_local(rows, eps),
            "execution": executed(
                rows, eps, arithmetic=told.arithmetic, pair_error=told.pair_error, reasons=told.reasons,
                assumptions=told.assumptions,
            ),
            "table": stated.table.model_copy(update={"sha256": digest_file(folder / stated.table.name)}),
        }
    )  # fmt: skip
    save(made, folder / "certificate.json")


def test_a_local_radius_stated_too_large_is_caught(folder: Path) -> None:
    enlarged(folder)
    assert "ledgers" in what(verify(folder))
    with pytest.raises(Tampered, match=r"its stated radius is larger than what is proved here$"):
        verify(folder, model=model(), data=samples())


def test_nobody_knows_beforehand_which_rows_are_drawn(folder: Path) -> None:
    drawn = sorted(np.random.default_rng(0).permutation(24)[:23].tolist())
    (left,) = set(range(24)) - set(drawn)
    enlarged(folder, slice(left, left + 1))
    verify(folder, model=model(), data=samples(), samples=23, seed=0)
    caught = 0
    for _ in range(40):  # each misses it with a chance of 1/24
        try:
            verify(folder, model=model(), data=samples(), samples=23)
        except Tampered:
            caught += 1
            break
    assert caught


@pytest.mark.parametrize("given", [{"samples": 0}, {"samples": -1}, {"seed": -1}])
def test_a_draw_of_nothing_is_refused(folder: Path, given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"^samples must be 1 or more and seed 0 or more, got -?\d+ and (None|-1)$"):
        verify(folder, **given)  # type: ignore[arg-type]


class Branching(nn.Module):
    """A module that runs otherwise than torch.export captures it."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.net, self.shift = model(), shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits if torch.compiler.is_exporting() else logits + self.shift


def test_the_allowed_difference_of_module_and_graph_is_not_taken_from_the_file(tmp_path: Path) -> None:
    stated = certkit.certify(Branching(0.0).eval(), samples(), eps=["0.01"], out=tmp_path)
    loose = stated.agreement.model_copy(update={"largest_difference": 0.01, "allowed": 1.0})
    save(stated.model_copy(update={"agreement": loose}), tmp_path / "certificate.json")
    with pytest.raises(
        Tampered, match=r"on these samples module and graph differ by 0\.01, more than rounding explains \("
    ):
        verify(tmp_path, model=Branching(0.01).eval(), data=samples())


def test_logits_of_another_network_are_caught(folder: Path) -> None:
    stated = load(Certificate, folder / "certificate.json")
    gain = np.array(stated.pair_gain)
    rows = certified.read(folder / stated.table.name)
    assert stated.execution.pair_error is not None
    both = (Up.of(stated.pair_error) + Up.of(stated.execution.pair_error)).to_float()
    executing = certified.radii(rows.logits * 2, gain, both)
    other = certify_rows(rows.index, rows.label, rows.logits * 2, gain, stated.pair_error, execution=executing)
    certified.write(other, folder / stated.table.name)
    eps, told = stated.threat.eps, stated.execution
    save(
        stated.model_copy(
            update={
                "clean": stated.clean.model_copy(update={"count": int(other.correct.sum())}),
                "certified": certified_counts(other, eps),
                "median_radius": median_radius(other),
                "without_local": without_local(other, eps),
                "execution": executed(
                    other, eps, arithmetic=told.arithmetic, pair_error=told.pair_error, reasons=(),
                    assumptions=told.assumptions,
                ),
                "table": stated.table.model_copy(update={"sha256": digest_file(folder / stated.table.name)}),
            }
        ),
        folder / "certificate.json",
    )  # fmt: skip
    verify(folder)
    with pytest.raises(
        Tampered, match=r"^certified\.parquet: sample \d+: its stated logits are not those of the network$"
    ):
        verify(folder, model=model(), data=samples())


def test_another_checkpoint_is_refused(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^the checkpoint has sha256 .{12}…, the certificate is for .{12}…; give the"
    ):
        verify(folder, model=model(1), data=samples())


def restated(folder: Path, **changes: dict[str, Any]) -> None:
    """Parts of the certificate with some entries replaced."""
    stated = load(Certificate, folder / "certificate.json")
    parts = {name: getattr(stated, name).model_copy(update=entries) for name, entries in changes.items()}
    save(stated.model_copy(update=parts), folder / "certificate.json")


@pytest.mark.parametrize("left", [0, 1, -1], ids=["none", "one", "all but one"])
def test_what_the_execution_rests_on_cannot_be_left_out(folder: Path, left: int) -> None:
    told = load(Certificate, folder / "certificate.json").execution.assumptions
    assert len(told) > 1
    restated(folder, execution={"assumptions": told[:left]})
    with pytest.raises(Tampered) as caught:
        verify(folder)
    assert str(caught.value) == (
        "certificate.json: execution.assumptions leaves out what the claim rests on by its ledger; certify again"
    )


def test_what_every_certificate_rests_on_cannot_be_left_out(folder: Path) -> None:
    stated = load(Certificate, folder / "certificate.json")
    save(stated.model_copy(update={"assumptions": stated.assumptions[:1]}), folder / "certificate.json")
    with pytest.raises(Tampered) as caught:
        verify(folder)
    assert str(caught.value) == (
        "certificate.json: assumptions is not what the samples and the ledger give; certify again"
    )


def test_functions_that_were_not_measured_on_a_machine_are_told_in_its_own_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    certkit.certify(net, samples(), eps=["0.01"], out=tmp_path)
    deployed = checked(load(Certificate, tmp_path / "certificate.json").execution_ledger)
    for build in (Build("2.99.1+cu130", "NO AVX"), *MEASURED):
        restated(tmp_path, execution={"assumptions": tuple(assumptions(deployed, (), build))})
        verify(tmp_path, model=net)
    restated(tmp_path, execution={"assumptions": (*assumptions(deployed, (), running()), "and the moon is full")})
    verify(tmp_path, model=net)
    restated(tmp_path, execution={"assumptions": tuple(assumptions(deployed, (), running()))[:2]})
    with pytest.raises(Tampered, match="leaves out what the claim rests on"):
        verify(tmp_path)


def test_why_nothing_is_claimed_of_the_execution_is_the_networks_own_reason(tmp_path: Path) -> None:
    net = nn.Sequential(nn.GroupNorm(1, 1, eps=0.1), nn.Flatten(), nn.Linear(4, 3)).eval()
    certkit.certify(net, samples(), eps=["0.01"], out=tmp_path)
    restated(tmp_path, execution={"reasons": ("the moon is full",)})
    verify(tmp_path)
    with pytest.raises(Tampered) as caught:
        verify(tmp_path, model=net)
    assert str(caught.value) == ("certificate.json: execution.reasons is not what this network gives; certify again")


def test_a_number_of_parameters_that_is_not_the_checkpoints_is_caught(folder: Path) -> None:
    restated(folder, subject={"parameters": 7})
    with pytest.raises(Tampered) as caught:
        verify(folder, model=model())
    assert str(caught.value) == "certificate.json: states 7 parameters, the checkpoint has 51"


def test_threads_and_names_that_a_file_states_are_not_believed(folder: Path) -> None:
    restated(folder, environment={"threads": 2**40}, data={"name": "imagenet"})
    found = verify(folder, model=model(), data=samples())
    (told,) = [statement.how for statement in found.verified if statement.what == "samples"]
    assert told.startswith("24 of random/test, ")


def test_other_samples_are_refused(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"^the samples of 'random' have sha256 .{12}…, the certificate is for .{12}…; give"
    ):
        verify(folder, model=model(), data=samples(seed=1))


def test_another_graph_with_the_same_weights_is_refused(folder: Path) -> None:
    other = model()
    other[2] = nn.Tanh().eval()
    with pytest.raises(Tampered) as caught:
        verify(folder, model=other, data=samples())
    assert str(caught.value) == (
        "certificate.json: program_sha256 is not that of the network's graph; certify the checkpoint again"
    )


def test_a_digit_changed_in_a_bound_is_refused_from_the_files_alone(folder: Path) -> None:
    path = folder / "certificate.json"
    value = json.loads(path.read_text())
    norms = value["ledger"]["steps"][2]["bound"]["norms"][0]
    norms["gain"] = str(Up.of(norms["gain"]) * HALF)
    path.write_text(json.dumps(value))
    with pytest.raises(RuleViolation):
        verify(folder)


@pytest.fixture(scope="module")
def attacked(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit with a campaign."""
    out = Path(shutil.copytree(honest, tmp_path_factory.mktemp("attacked") / "out"))
    certkit.attack(model(), samples(), norm="l2", eps=["0.01", "0.1"], out=out)
    certkit.audit(out, model=model())
    return out


@pytest.fixture
def audit(attacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(attacked, tmp_path / "audit"))


def test_an_honest_audit_is_verified_with_its_campaign(audit: Path) -> None:
    found = verify(audit, model=model(), data=samples())
    assert {"campaign", "audit.json"} <= {*what(found)}


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "median": (
        lambda value: value.update(median_radius=value["median_radius"] + 1.0),
        "audit.json: median_radius is not what the files beside it give; run certkit report again, and compare",
    ),
    "execution": (
        lambda value: value["execution"].update(median_radius=value["execution"]["median_radius"] + 1.0),
        "audit.json: execution is not what the files beside it give; run certkit report again, and compare",
    ),
    "assumptions": (
        lambda value: value.update(assumptions=[]),
        "audit.json: assumptions is not what the files beside it give; run certkit report again, and compare",
    ),
    "curve": (
        lambda value: value["curve"].pop(),
        "audit.json: curve is not what the files beside it give; run certkit report again, and compare",
    ),
    "a sample": (
        lambda value: value["samples"][3].update(radius=9.0),
        "audit.json: samples is not what the files beside it give; run certkit report again, and compare",
    ),
    "the verdict": (
        lambda value: value.update(verdict="INCONCLUSIVE"),
        "audit.json: verdict is not what the files beside it give; run certkit report again, and compare",
    ),
    "the statement": (
        lambda value: value.update(statement="This network is certified robust."),
        "audit.json: statement is not what the files beside it give; run certkit report again, and compare",
    ),
    "the limits": (
        lambda value: value.update(limits=[]),
        "audit.json: limits is not what the files beside it give; run certkit report again, and compare",
    ),
    "a check": (
        lambda value: value["checks"][0].update(figure="all is well"),
        "audit.json: checks is not what the files beside it give; run certkit report again, and compare",
    ),
    "no digest": (
        lambda value: value["provenance"].update(files=[]),
        "audit.json: provenance is not what the files beside it give; run certkit report again, and compare",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_an_audit_that_says_other_than_its_certificate_is_refused(audit: Path, name: str) -> None:
    change, message = FORGED[name]
    value = json.loads((audit / "audit.json").read_text())
    change(value)
    (audit / "audit.json").write_text(json.dumps(value))
    with pytest.raises(Tampered) as caught:
        verify(audit)
    assert str(caught.value) == message


def test_an_audit_of_another_version_is_not_measured_by_the_words_of_this_one(audit: Path) -> None:
    value = json.loads((audit / "audit.json").read_text())
    value["environment"]["certkit"] = "0.0.9"
    (audit / "audit.json").write_text(json.dumps(value))
    with pytest.raises(RecordError) as caught:
        verify(audit)
    assert str(caught.value) == (
        f"audit.json: made by certkit 0.0.9, and this is {certkit.__version__}, which may word and draw it otherwise; verify it "
        "with that version, or run certkit report again, and compare"
    )


def test_the_same_audit_in_other_words_is_not_the_file_that_was_written(audit: Path) -> None:
    value = json.loads((audit / "audit.json").read_text())
    (audit / "audit.json").write_text(json.dumps(value))
    with pytest.raises(Tampered, match=r"^audit\.json: says what it must, but not as certkit writes it; run certkit"):
        verify(audit)


def test_shards_that_changed_after_the_audit_are_missed(audit: Path) -> None:
    shards = audit / "campaign" / "shards"
    shutil.copy(next(shards.glob("*.parquet")), shards / f"{'0' * 64}.parquet")
    with pytest.raises(Tampered) as caught:
        verify(audit)
    assert str(caught.value) == (
        f"campaign/shards/{'0' * 64}.parquet: is no part of the campaign that audit.json was made from; "
        "run certkit report again, and compare"
    )


def test_the_command_says_what_was_verified_and_what_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), "tiny.safetensors")
    run = CliRunner().invoke
    given = ["tiny.safetensors", "--model", "tiny:net", "--limit", "8", "--eps", "0.01", "--out", "out"]
    assert run(main, ["certify", *given]).exit_code == 0
    told = run(main, ["verify", "out", "--checkpoint", "tiny.safetensors", "--model", "tiny:net", "--samples", "4"])
    assert told.exit_code == 0, told.output
    assert "verified      logits and radii: of 4 samples proved again; the logits differ by at most 0\n" in told.output
    assert "NOT verified  assumption: " in told.output
    assert "NOT verified  other logits and local radii: 4 samples were not drawn (by seed " in told.output
    found = json.loads(run(main, ["verify", "out", "--json"]).stdout)
    assert found["kind"] == "certkit.verification"
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), "other.safetensors")
    other = run(main, ["verify", "out", "--checkpoint", "other.safetensors", "--model", "tiny:net"])
    assert other.exit_code == 2


def test_rounded_weights_beside_a_certificate_are_derived_again_and_of_its_network(folder: Path) -> None:
    precision(model(), samples(), formats=["bf16"], out=folder)
    found = verify(folder)
    assert "precision.json, precision.parquet" in what(found)
    opened = {one.what: one.how for one in found.not_verified}
    assert opened.keys().isdisjoint({"precision.parquet", "other files"})
    assert opened["precision.json"] == (
        "logits and how far they drift are as stated; certkit precision comes to them again"
    )
    table = (folder / "precision.parquet").read_bytes()
    (folder / "precision.parquet").write_bytes(table[:-1])
    with pytest.raises(Tampered, match=r"^precision\.parquet: was changed after it was written"):
        verify(folder)
    precision(model(1), samples(), formats=["bf16"], out=folder)
    with pytest.raises(RecordError) as caught:
        verify(folder)
    assert str(caught.value) == (
        "precision.json: is of another checkpoint than certificate.json; run certkit precision again"
    )
