"""The cross-check as a job: beside a certificate it is shown, against another one refused, and it can refute a ledger."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import certkit
from certkit.cli import main
from certkit.commands.audit import finish
from certkit.crosscheck import package
from certkit.crosscheck.run import crosscheck
from certkit.errors import ConfigError, RecordError, Refuted
from certkit.files import load, save
from certkit.reconcile import _verdict
from certkit.records import Contradiction
from certkit.records.crosscheck import AttainedSlope, CrossCheck, Method, MethodName
from certkit.reports.claims import exact_refuted
from certkit.verification import verify
from tests.networks import labelled_by, linear, samples

EPS = ("0.01", "0.05")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, out = linear(), tmp_path_factory.mktemp("checked")
    data = labelled_by(model, samples())
    certkit.certify(model, data, eps=EPS, norm="l2", out=out, threads=1)
    certkit.attack(model, data, norm="l2", eps=EPS, out=out)
    crosscheck(model, data, eps=EPS, norm="l2", out=out, samples=10, sigma=0.1, draws=50, threads=1)
    return out


@pytest.fixture
def copy(checked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checked, tmp_path / "copy"))


def change(folder: Path, **fields: Any) -> None:
    save(load(CrossCheck, folder / "crosscheck.json").model_copy(update=fields), folder / "crosscheck.json")


def test_the_audit_shows_what_the_methods_say(checked: Path) -> None:
    audit = certkit.audit(checked)
    cross = audit.crosscheck
    assert audit.verdict == "NOT REFUTED"
    assert cross is not None
    assert cross.agreement.contradictions == ()
    assert [ladder.index for ladder in cross.agreement.samples] == [sample.index for sample in audit.samples[:10]]
    assert [ladder.certkit for ladder in cross.agreement.samples] == [sample.radius for sample in audit.samples[:10]]
    assert cross.smoothing is not None
    assert {file.name for file in audit.provenance.files} == {"certificate.json", "crosscheck.json"}
    page = certkit.report(checked).read_text()
    assert '<section id="crosscheck"' in page


def test_on_a_linear_map_the_attained_slope_is_the_gain(checked: Path) -> None:
    audit = certkit.audit(checked)
    attained = {row.node: (float(row.attained), float(row.gain)) for row in audit.ledger if row.attained is not None}
    assert attained
    for slope, gain in attained.values():
        assert 0.99 * gain <= slope <= gain


def test_on_a_linear_map_every_method_verifies_what_certkit_certifies(checked: Path) -> None:
    cross = certkit.audit(checked).crosscheck
    assert cross is not None
    if cross.version is None:
        pytest.skip(cross.message or "")
    assert {(one.certkit_only, one.lirpa_only) for one in cross.against} == {(0, 0)}


def test_a_slope_above_its_gain_refutes_the_ledger_and_says_which_file_it_stands_in(copy: Path) -> None:
    node = certkit.audit(copy).ledger[-1].node
    change(copy, slopes=(AttainedSlope(node=node, slope=1e3),))
    audit = certkit.audit(copy)
    assert audit.verdict == "REFUTED"
    assert audit.verdict_reason == (
        f"crosscheck.json states a slope at {node} that the ledger's gain forbids: if it was attained, the certificate is "
        "wrong; certkit crosscheck measures it again"
    )
    assert 'href="#contradictions"' not in certkit.report(copy).read_text(), "a link to a section that is not there"


def test_a_slope_above_its_gain_by_less_than_is_shown_refutes_the_exact_claim_too(copy: Path) -> None:
    """Beside an error of the execution, the page must not say that the claim about exact arithmetic stands."""
    row = certkit.audit(copy).ledger[-1]
    change(copy, slopes=(AttainedSlope(node=row.node, slope=float(row.gain)),))  # the gain, rounded up to six digits
    audit = certkit.audit(copy)
    assert audit.verdict == "REFUTED"
    assert audit.crosscheck is not None
    assert audit.crosscheck.too_steep == (row.node,)
    executed = Contradiction(
        index=0, attack="pgd", distance=0.1, radius=0.2, refutes="float execution", reference_margin=1.0, example=None
    )
    assert exact_refuted(audit.model_copy(update={"contradictions": (executed,)}))


def test_no_examples_are_promised_where_a_slope_alone_refutes(copy: Path) -> None:
    change(copy, slopes=(AttainedSlope(node=certkit.audit(copy).ledger[-1].node, slope=1e3),))
    with pytest.raises(Refuted) as error:
        finish(copy, None, None, json=False)
    assert str(error.value) == certkit.audit(copy).verdict_reason


def test_an_adversarial_example_is_named_before_a_slope_that_a_file_states() -> None:
    disproved = Contradiction(
        index=0, attack="pgd", distance=0.1, radius=0.2, refutes="exact arithmetic", reference_margin=-1.0, example=None
    )
    verdict, reason = _verdict((disproved,), None, ("linear",), ("linear",))
    assert verdict == "REFUTED"
    assert reason == "1 adversarial example lies inside a certified radius: the certificate is wrong"


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("program_sha256", "0" * 64, "graph"),
        ("subject", {"sha256": "0" * 64}, "checkpoint"),
        ("data", {"sha256": "0" * 64}, "samples"),
        ("threat", {"norm": "linf"}, "norm"),
        ("threat", {"box": (0.0, 2.0)}, "box"),
        ("samples", 9, "rows"),
    ],
)
def test_a_crosscheck_of_something_else_is_refused(copy: Path, field: str, value: Any, what: str) -> None:
    before = getattr(load(CrossCheck, copy / "crosscheck.json"), field)
    change(copy, **{field: before.model_copy(update=value) if isinstance(value, dict) else value})
    with pytest.raises(RecordError) as error:
        certkit.audit(copy)
    assert str(error.value) == (
        f"crosscheck.json: is of another {what} than certificate.json; run certkit crosscheck again"
    )


def forged(folder: Path, place: str, value: Any) -> None:
    """Another value at a place such as ``smoothing.samples.0.label``; ``value`` may be a function of the one there."""
    path = folder / "crosscheck.json"
    record = json.loads(path.read_text())
    *parents, last = (int(part) if part.isdigit() else part for part in place.split("."))
    held = record
    for part in parents:
        held = held[part]
    held[last] = value(held[last]) if callable(value) else value
    path.write_text(json.dumps(record))


AGAIN = "run certkit crosscheck again"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("lirpa.norm", "linf", f"is of another norm for auto_LiRPA than certificate.json; {AGAIN}"),
        ("lirpa.box", [0.0, 9.0], f"is of another box for auto_LiRPA than certificate.json; {AGAIN}"),
        ("samples", 10**30, f"is of another rows than certificate.json; {AGAIN}"),
        ("samples", 0, "samples: Input should be greater than or equal to 1"),
        ("smoothing.samples", lambda all: all[:-1], f"is of another rows for smoothing than certificate.json; {AGAIN}"),
        ("smoothing.samples.0.index", 1, f"is of another rows for smoothing than certificate.json; {AGAIN}"),
        ("smoothing.samples.0.label", lambda n: n + 1, f"is of another rows for smoothing than certificate.json; {AGAIN}"),
        ("smoothing.attacks", lambda all: all[1:], f"is of another rows for the attack on smoothing than certificate.json; {AGAIN}"),
        ("smoothing.plan.subject.sha256", "0" * 64, f"is of another checkpoint for smoothing than certificate.json; {AGAIN}"),
        ("smoothing.abstained", lambda n: n + 1, f"smoothing: abstained: its count is not that of its samples; {AGAIN}"),
        ("smoothing.certified.0.certified", lambda one: one | {"count": one["count"] - 1}, f"smoothing at 0.01: its count is not that of its samples; {AGAIN}"),
        ("slopes", lambda all: [*all, all[0]], f"slopes: 'x' is no operator of the ledger, or stands twice; {AGAIN}"),
        ("slopes.0.node", "nowhere", f"slopes: 'nowhere' is no operator of the ledger, or stands twice; {AGAIN}"),
        ("slopes.0.slope", -1.0, "slopes.0.slope: Input should be greater than or equal to 0"),
        ("slopes.0.slope", float("nan"), "NaN is not a finite number; expected a JSON record written by certkit"),
    ],
)  # fmt: skip
def test_a_crosscheck_that_contradicts_itself_is_refused(copy: Path, place: str, value: Any, message: str) -> None:
    first = json.loads((copy / "crosscheck.json").read_text())["slopes"][0]["node"]
    forged(copy, place, value)
    with pytest.raises(RecordError) as error:
        certkit.audit(copy)
    assert str(error.value) == f"crosscheck.json: {message.replace(chr(39) + 'x' + chr(39), repr(first))}"


def method(name: MethodName, radius: float, rows: int = 10) -> Method:
    return Method(name=name, message=None, bounds=(), radii=(radius,) * rows, faults=())


def test_every_method_is_held_against_the_attack_and_the_tightest_is_shown(copy: Path) -> None:
    lirpa = load(CrossCheck, copy / "crosscheck.json").lirpa
    change(copy, lirpa=lirpa.model_copy(update={"methods": (method("CROWN", 0.0), method("IBP", 1e6))}))
    audit = certkit.audit(copy)
    assert audit.crosscheck is not None
    shown = audit.crosscheck.agreement
    broken = [sample.index for sample in audit.samples[:10] if sample.distance is not None]
    assert broken
    assert shown.method == "CROWN"
    assert {ladder.lirpa for ladder in shown.samples} == {0.0}
    assert [(one.index, one.method, one.pair) for one in shown.contradictions] == [
        (index, "IBP", "auto_LiRPA above attack") for index in broken
    ]
    assert audit.verdict == "NOT REFUTED", "bounds that are no proof refute nothing"


def test_the_ladder_knows_the_contradictions_of_the_verdict_and_how_they_were_judged(tmp_path: Path) -> None:
    # With 1e6 added to every logit float32 cannot tell close ones apart: float gaps, some of them without any attack.
    model = linear()
    with torch.no_grad():
        model[1].bias += 1e6  # type: ignore[index,operator]
    data = labelled_by(linear(), samples(60))
    certkit.certify(model, data, eps=EPS, norm="l2", out=tmp_path, threads=1)
    certkit.attack(model, data, norm="l2", eps=EPS, out=tmp_path)
    crosscheck(model, data, eps=EPS, norm="l2", out=tmp_path, samples=60, methods=(), threads=1)
    audit = certkit.audit(tmp_path, model=model)
    assert audit.verdict == "NOT REFUTED"
    assert {one.attack for one in audit.contradictions} > {"clean"}
    assert audit.crosscheck is not None
    ours = [one for one in audit.crosscheck.agreement.contradictions if one.pair == "certkit above attack"]
    assert [one.index for one in ours] == [one.index for one in audit.contradictions]
    page = certkit.report(tmp_path).read_text()
    assert page.count("Judged above</a>: float gap.") == len(ours)


def test_verify_says_that_a_crosscheck_is_as_stated(copy: Path) -> None:
    def said(folder: Path) -> tuple[list[str], list[str]]:
        found = verify(folder)
        both = (found.verified, found.not_verified)
        opened = [[one.how for one in part if one.what == "crosscheck.json"] for part in both]
        return opened[0], opened[1]

    for name in ("audit.json", "report.html"):  # an audit binds the file that is edited below
        (copy / name).unlink(missing_ok=True)
    again = "slopes, auto_LiRPA's bounds and draws are as stated; certkit crosscheck comes to them again"
    assert said(copy) == (["speaks of this certificate; its counts are those of its samples"], [again])
    node = load(CrossCheck, copy / "crosscheck.json").slopes[-1].node
    change(copy, slopes=(AttainedSlope(node=node, slope=1e3),))
    assert said(copy)[1] == [f"a slope stated at {node} would disprove the ledger; {again}"]
    forged(copy, "smoothing.abstained", lambda count: count + 1)
    with pytest.raises(RecordError, match="its count is not that of its samples"):
        verify(copy)


def test_without_auto_lirpa_the_rest_is_there_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, checked: Path, tmp_path: Path
) -> None:
    def absent() -> Any:
        raise package.Unavailable(package.MISSING)

    monkeypatch.setattr("certkit.crosscheck.lirpa.package", absent)
    shutil.copytree(checked, tmp_path / "copy")
    model = linear()
    found = crosscheck(model, labelled_by(model, samples()), eps=EPS, out=tmp_path / "copy", samples=4, threads=1)
    assert (found.lirpa.version, found.lirpa.message, found.lirpa.methods) == (None, package.MISSING, ())
    audit = certkit.audit(tmp_path / "copy")
    assert audit.crosscheck is not None
    assert audit.crosscheck.message == package.MISSING
    assert any(row.attained is not None for row in audit.ledger)


def test_two_runs_differ_in_their_provenance_alone(checked: Path, tmp_path: Path) -> None:
    model = linear()
    data = labelled_by(model, samples())
    crosscheck(model, data, eps=EPS, norm="l2", out=tmp_path, samples=10, sigma=0.1, draws=50, threads=1)
    first, second = (json.loads((folder / "crosscheck.json").read_text()) for folder in (checked, tmp_path))
    assert {key for key in first if first[key] != second[key]} <= {"provenance"}


def test_arguments_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    model = linear()
    data = labelled_by(model, samples())
    with pytest.raises(ConfigError, match=r"^samples must be 1 or more, got 0$"):
        crosscheck(model, data, eps=EPS, out=tmp_path, samples=0)
    with pytest.raises(
        ConfigError, match=r"^smoothing certifies in l2, and norm is linf; leave sigma out, or take l2$"
    ):
        crosscheck(model, data, eps=EPS, norm="linf", out=tmp_path, sigma=0.25)


def test_the_command_names_its_methods() -> None:
    result = CliRunner().invoke(main, ["crosscheck", "nowhere", "--method", "GUESS", "--out", "x"])
    assert result.exit_code == 2
    assert "'GUESS' is not one of 'IBP', 'CROWN-IBP', 'CROWN', 'alpha-CROWN'" in result.output
