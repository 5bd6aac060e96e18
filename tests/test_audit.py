"""The audit as a falsifier: what is tampered with is refused, what is wrong is refuted, what is sound stands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import certkit
from certkit import certified
from certkit.errors import RecordError, RuleViolation, Tampered
from certkit.files import digest_file, load, save
from certkit.records import Certificate
from tests.networks import labelled_by, linear, samples

EPS = ("0.01", "0.05", "0.1")


def full(model: nn.Module, data: Any, out: Path, norm: str = "l2") -> Any:
    """Certify, attack, audit."""
    certkit.certify(model, data, eps=EPS, norm=norm, out=out, threads=1)
    certkit.attack(model, data, norm=norm, eps=EPS, out=out)
    return certkit.audit(out, model=model)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    model = linear()
    out = tmp_path_factory.mktemp("audited")
    full(model, labelled_by(model, samples()), out)
    return out, model


@pytest.fixture
def copy(audited: tuple[Path, nn.Module], tmp_path: Path) -> Path:
    shutil.copytree(audited[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_classifier_has_its_exact_radius(norm: str, tmp_path: Path) -> None:
    model = linear()
    data = labelled_by(model, samples())
    certkit.certify(model, data, eps=EPS, norm=norm, out=tmp_path, threads=1)  # type: ignore[arg-type]
    table = certified.read(tmp_path / "certified.parquet")
    weight, bias = (p.detach().double().numpy() for p in model.parameters())
    logits = data.images.flatten(1).double().numpy() @ weight.T + bias
    order = 2 if norm == "l2" else 1
    for row, (scores, radius) in enumerate(zip(logits, table.radius, strict=True)):
        top = scores.argmax()
        exact = min(
            (scores[top] - scores[j]) / np.linalg.norm(weight[top] - weight[j], order)
            for j in range(len(scores))
            if j != top
        )
        assert exact * (1 - 1e-9) <= radius <= exact, row


def test_a_sound_certificate_is_not_refuted(audited: tuple[Path, nn.Module]) -> None:
    audit = json.loads((audited[0] / "audit.json").read_text())
    assert audit["verdict"] == "NOT REFUTED"
    assert audit["contradictions"] == []
    for row in audit["samples"]:
        assert row["distance"] is None or row["distance"] >= row["radius"]


def test_without_a_campaign_nothing_is_evaluated(tmp_path: Path) -> None:
    model = linear()
    certkit.certify(model, samples(), eps=EPS, out=tmp_path)
    audit = certkit.audit(tmp_path)
    assert audit.verdict == "NOT EVALUATED"
    assert all(point.attacked is None for point in audit.curve)


def test_two_runs_give_the_same_bytes_but_for_the_provenance(tmp_path: Path) -> None:
    model = linear()
    data = labelled_by(model, samples())
    for name in ("first", "second"):
        full(model, data, tmp_path / name)
    for file in ("certificate.json", "audit.json"):
        first, second = (json.loads((tmp_path / name / file).read_text()) for name in ("first", "second"))
        assert first.pop("provenance").keys() == second.pop("provenance").keys()
        assert json.dumps(first) == json.dumps(second)
    for file in ("certified.parquet", "campaign/plan.json", "campaign/checks.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def edited(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_an_edited_radius_is_refused_as_tampered(copy: Path) -> None:
    table = pq.read_table(copy / "certified.parquet")
    column = table.column("radius").to_numpy().copy()
    column[0] *= 2
    pq.write_table(
        table.set_column(table.schema.get_field_index("radius"), "radius", [column]), copy / "certified.parquet"
    )
    with pytest.raises(Tampered, match=r"^certified.parquet: was changed after it was written \(sha256 differs\)"):
        certkit.audit(copy)


def with_column(copy: Path, column: str, change: Any) -> None:
    """The table with one column changed, and its digest with it."""
    table = certified.read(copy / "certified.parquet")
    fields = {name: getattr(table, name) for name in certified.Certified.__slots__}
    certified.write(
        certified.Certified(**{**fields, column: change(fields[column].copy())}), copy / "certified.parquet"
    )
    sha256 = digest_file(copy / "certified.parquet")
    edited(copy / "certificate.json", lambda value: value["table"].update(sha256=sha256))


@pytest.mark.parametrize(
    ("column", "factor", "message"),
    [
        ("global_radius", 2.0, "a stated global_radius is not the one that its logits and the ledger give"),
        ("margin", 2.0, "a stated margin is not the one that its logits and the ledger give"),
        ("radius", 0.5, "a stated radius is below its global_radius, or none at all"),
        ("radius", np.nan, "a stated radius is below its global_radius, or none at all"),
        ("radius", np.inf, "a stated radius is below its global_radius, or none at all"),
        ("radius", 2.0, "certified is not what the samples and the ledger give"),
        ("float_radius", 2.0, "a stated float_radius is not one that its logits and the ledgers allow"),
        ("float_radius", 0.5, "a stated float_radius is not one that its logits and the ledgers allow"),
    ],
)
def test_an_edited_column_is_refused_even_when_its_digest_was_edited_too(
    copy: Path, column: str, factor: float, message: str
) -> None:
    """A larger radius, with every count that follows from it edited as well, takes the checkpoint: tests/test_verify.py."""
    with_column(copy, column, lambda values: values * factor)
    with pytest.raises(Tampered, match=message):
        certkit.audit(copy)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c["pair_gain"][0].__setitem__(1, 0.1), RuleViolation, "pair_gain is not what the ledger proves"),
        (
            lambda c: c["ledger"]["steps"][-1]["evidence"].update(sigma="0.1"),
            RuleViolation,
            "the stated bound is not the one",
        ),
        (
            lambda c: c["certified"][0]["certified"].update(count=0),
            Tampered,
            "certified is not what the samples and the ledger give",
        ),
        (
            lambda c: c["clean"].update(low=0.99, high=1.0),
            Tampered,
            "clean is not what the samples and the ledger give",
        ),
        (lambda c: c.update(median_radius=5.0), Tampered, "median_radius is not what the samples and the ledger give"),
        (
            lambda c: c.update(input_shape=[3, 2, 2]),
            Tampered,
            "input_shape is not what the samples and the ledger give",
        ),
        (
            lambda c: c["execution"].update(pair_error=0.0),
            RuleViolation,
            "the execution's error is not what its ledger proves",
        ),
        (
            lambda c: c["execution_ledger"]["steps"][-1]["evidence"].update(sigma="0.1"),
            RuleViolation,
            "the stated bound is not the one",
        ),
        (
            lambda c: c["execution"].update(reasons=["none"]),
            RecordError,
            "execution: Value error, a claim has an error and no reasons against it",
        ),
        (
            lambda c: c["execution_ledger"]["steps"][0]["attributes"].update(norm="linf"),
            RuleViolation,
            "the stated bound is not the one",
        ),
        (
            lambda c: c.update(ledger=c["execution_ledger"], pair_error=c["execution"]["pair_error"]),
            RuleViolation,
            "its centres are computed in float64, and its ledger is of another arithmetic",
        ),
        (lambda c: c["without_local"].update(improved=7), Tampered, "without_local is not what the samples and the"),
        (lambda c: c.update(certified=[]), Tampered, "certified is not what the samples and the ledger give"),
        (lambda c: c["clean"].update(total=1), RecordError, "clean: Value error, 24 of 1 in"),
        (
            lambda c: c["threat"]["eps"][0].update(text="8.0"),
            RecordError,
            "threat.eps.0: Value error, value 0.01 is not 8.0",
        ),
        (lambda c: c["table"].update(name="x/../../etc"), RecordError, "table.name: String should match pattern"),
        (
            lambda c: c["threat"].update(box=[0.0, 0.5]),
            Tampered,
            "the threat is not the one that the ledger starts from",
        ),
        (lambda c: c["subject"].update(sha256="0" * 64), RecordError, "the campaign attacked another checkpoint"),
        (lambda c: c["data"].update(sha256="0" * 64), RecordError, "the campaign attacked other samples"),
        (lambda c: c.update(verdict="SAFE"), RecordError, "certificate.json: verdict: Extra inputs are not permitted"),
    ],
)
def test_an_edited_certificate_is_refused(copy: Path, change: Any, error: type[Exception], message: str) -> None:
    edited(copy / "certificate.json", change)
    with pytest.raises(error, match=message):
        certkit.audit(copy)


def test_a_float32_only_hit_is_a_float_gap_and_not_a_refutation(
    audited: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    # The same weights with 1e6 added to every logit: float32 cannot tell close logits apart, the exact function can.
    model = linear()
    with torch.no_grad():
        model[1].bias += 1e6  # type: ignore[index,operator]
    data = labelled_by(linear(), samples(200))
    audit = full(model, data, tmp_path)
    assert audit.verdict == "NOT REFUTED"
    assert {c.refutes for c in audit.contradictions} == {"float gap"}
    assert f"on {len(audit.contradictions)} certified samples the deployed program errs" in audit.verdict_reason
    assert {c.attack for c in audit.contradictions} >= {"clean"}
    (soundness,) = (check for check in audit.checks if check.id == "EV22")
    assert soundness.status == "flag"


def test_a_program_that_errs_refutes_the_claim_about_its_execution_and_no_other(tmp_path: Path) -> None:
    """The float-gap network above, whose claim about the execution is forged: taken from its sibling without the 1e6."""
    from certkit.certified import certify_rows, executed
    from certkit.records import File

    model, sibling = linear(), linear()
    with torch.no_grad():
        model[1].bias += 1e6  # type: ignore[index,operator]
    data = labelled_by(sibling, samples(200))
    honest = certkit.certify(sibling, data, eps=EPS, norm="l2", out=tmp_path / "sibling", threads=1)
    full(model, data, tmp_path)
    certificate = load(Certificate, tmp_path / "certificate.json")
    assert [point.certified.count for point in certificate.execution.certified] == [0, 0, 0]
    table = certified.read(tmp_path / "certified.parquet")
    gain = np.array(certificate.pair_gain)
    rows = table.index, table.label, table.logits, gain, certificate.pair_error
    forged = certify_rows(*rows, local=table.radius, execution=table.radius)
    certified.write(forged, tmp_path / "certified.parquet")
    execution = executed(
        forged, certificate.threat.eps, arithmetic="float32", pair_error=honest.execution.pair_error, reasons=[], assumptions=[]
    )  # fmt: skip
    file = File(name="certified.parquet", sha256=digest_file(tmp_path / "certified.parquet"))
    changes = {"execution": execution, "execution_ledger": honest.execution_ledger, "table": file}
    save(certificate.model_copy(update=changes), tmp_path / "certificate.json")
    audit = certkit.audit(tmp_path, model=model)
    assert audit.verdict == "REFUTED"
    assert "that claim is wrong; the one about exact arithmetic stands" in audit.verdict_reason
    kinds = {c.refutes for c in audit.contradictions}
    assert kinds == {"float execution"}
    (soundness,) = (check for check in audit.checks if check.id == "EV22")
    assert soundness.status == "fail"


class Told(nn.Module):
    """Its logits are its inputs; the first of its parameters is a table of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(3), requires_grad=False)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x[:, self.order]


def test_a_tie_and_no_number_are_errors_of_the_program_whichever_class_stands_first() -> None:
    from certkit.reconcile import misclassified

    logits = [
        [1.0, 0.5, 0.0],
        [1.0, 1.0, 0.0],
        [np.nan, 0.0, 0.0],
        [0.0, np.nan, 1.0],
        [0.25, 0.0, 0.0],
        [0.0, 0.0, 0.25],
    ]
    found = misclassified(Told(), np.array(logits, np.float32), np.array([0, 0, 0, 2, 0, 0]))
    assert found.tolist() == [False, True, True, True, False, True]


def test_another_checkpoint_cannot_turn_a_refutation_into_silence(copy: Path, audited: tuple[Path, nn.Module]) -> None:
    enlarge(copy, load(Certificate, copy / "certificate.json"))
    with pytest.raises(
        RecordError, match="the model given is not the checkpoint that was certified: its weights differ"
    ):
        certkit.audit(copy, model=linear(seed=1))


def test_a_campaign_that_did_not_try_the_claimed_radius_does_not_count(tmp_path: Path) -> None:
    model = linear()
    certkit.certify(model, samples(), eps=["0.3"], out=tmp_path)
    certkit.attack(model, samples(), norm="l2", eps=["0.1"], out=tmp_path)
    with pytest.raises(RecordError, match=r"the campaign attacked up to 0\.1, the certificate speaks of 0\.3"):
        certkit.audit(tmp_path, model=model)


def test_a_sample_is_certified_at_its_own_radius_and_not_beyond(audited: tuple[Path, nn.Module]) -> None:
    certificate = load(Certificate, audited[0] / "certificate.json")
    table = certified.read(audited[0] / "certified.parquet")
    gains = np.array(certificate.pair_gain)[table.predicted]
    slack = certified.margins(table.logits, certificate.pair_error)
    held = table.radius > 0
    assert held.any()
    assert (slack > np.where(gains > 0, np.nextafter(table.radius[:, None] * gains, np.inf), 0)).all(axis=1)[held].all()
    further = np.nextafter(table.radius * (1 + 1e-15), np.inf)
    assert not (slack > np.where(gains > 0, np.nextafter(further[:, None] * gains, np.inf), 0)).all(axis=1)[held].any()


def test_hits_without_the_model_say_what_to_run(copy: Path, audited: tuple[Path, nn.Module]) -> None:
    certificate = load(Certificate, copy / "certificate.json")
    enlarge(copy, certificate)
    with pytest.raises(RecordError, match="lie inside certified radii and must be evaluated in float64"):
        certkit.audit(copy)


def enlarge(folder: Path, certificate: Certificate) -> None:
    """A consistent forgery: the last weight's evidence is made ten times smaller and everything is derived again."""
    from certkit.bounds import ledger as ledgers
    from certkit.bounds.ledger import Ledger, Pairs, pair_gains
    from certkit.bounds.number import Up
    from certkit.certified import certified_counts, certify_rows, executed, median_radius, without_local
    from certkit.engine.certify import pair_matrix
    from certkit.records import File

    old = ledgers.from_json(certificate.ledger)
    assert old.pairs.l2 is not None
    assert old.pairs.l1 is not None
    l2, l1 = (tuple(tuple(Up(n.value / 10) for n in row) for row in m) for m in (old.pairs.l2, old.pairs.l1))
    known = {step.node: step.bound for step in old.steps}
    gain, error = pair_gains(known[old.pairs.node], known[old.output], l2, l1)
    forged = Ledger(old.arithmetic, old.steps, old.output, Pairs(old.pairs.node, l2, l1, gain, error))
    matrix = pair_matrix(forged)
    table = certified.read(folder / "certified.parquet")
    table = certify_rows(table.index, table.label, table.logits, matrix, certificate.pair_error)
    certified.write(table, folder / "certified.parquet")
    changes = {
        "ledger": ledgers.to_json(forged),
        "pair_gain": tuple(tuple(float(g) for g in row) for row in matrix),
        "certified": certified_counts(table, certificate.threat.eps),
        "median_radius": median_radius(table),
        "without_local": without_local(table, certificate.threat.eps),
        "execution": executed(
            table, certificate.threat.eps, arithmetic="float32", pair_error=None, reasons=["none"], assumptions=[]
        ),
        "table": File(name="certified.parquet", sha256=digest_file(folder / "certified.parquet")),
    }
    save(certificate.model_copy(update=changes), folder / "certificate.json")


def test_a_consistent_forgery_is_refuted_by_the_campaign(copy: Path, audited: tuple[Path, nn.Module]) -> None:
    enlarge(copy, load(Certificate, copy / "certificate.json"))
    audit = certkit.audit(copy, model=audited[1])
    assert audit.verdict == "REFUTED"
    first = audit.contradictions[0]
    assert first.example is not None
    assert first.refutes == "exact arithmetic"
    assert first.distance < first.radius
    example = np.load(copy / first.example.name, allow_pickle=False)
    assert example.shape == (1, 2, 2)
    assert digest_file(copy / first.example.name) == first.example.sha256
