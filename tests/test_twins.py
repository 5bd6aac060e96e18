"""The twins say what the audit says, no more, and nothing in them is more than text."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from certkit.errors import ConfigError, RecordError
from certkit.files import save
from certkit.records import Audit, Verdict
from certkit.reports.twins import TWINS, write
from certkit.reports.twins.outcomes import outcomes
from certkit.reports.twins.tables import COLUMNS, cell
from tests.audits import example_audit
from tests.hostile import PAYLOADS, made, poisoned

EVERY_VERDICT = pytest.mark.parametrize("verdict", get_args(Verdict))
EVERY_TWIN = pytest.mark.parametrize("name", TWINS)


def parsed(name: str, verdict: Verdict = "NOT REFUTED", samples: int = 12) -> Any:
    return json.loads(TWINS[name].make(example_audit(samples, verdict)))


# The same audit


@EVERY_TWIN
@EVERY_VERDICT
def test_a_twin_is_a_pure_function_of_the_audit(name: str, verdict: Verdict) -> None:
    audit = example_audit(12, verdict)
    assert TWINS[name].make(audit) == TWINS[name].make(audit.model_copy(deep=True))


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_a_table_holds_every_sample_to_the_last_digit(name: str) -> None:
    audit = example_audit(40)
    data = TWINS[name].make(audit)
    if name == "csv":
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        number, missing = float, ""
    else:
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        number, missing = float, None
    assert len(rows) == 40
    assert tuple(rows[0]) == COLUMNS
    for row, sample in zip(rows, audit.samples, strict=True):
        assert int(row["index"]) == sample.index
        assert number(row["certified_radius"]) == sample.radius
        assert number(row["margin"]) == sample.margin
        assert (
            row["smallest_attack"] == missing
            if sample.distance is None
            else number(row["smallest_attack"]) == sample.distance
        )
        assert row["label_name"] == audit.data.classes[sample.label]


@EVERY_VERDICT
def test_every_format_counts_the_outcomes_alike(verdict: Verdict) -> None:
    audit = example_audit(12, verdict)
    found = outcomes(audit)
    tally = Counter(outcome.status for outcome in found)
    assert {one.id for one in audit.checks} | {"CR01", "CR02"} == {outcome.id for outcome in found}

    suite = ElementTree.fromstring(TWINS["junit"].make(audit)).find("testsuite")
    assert suite is not None
    assert [int(suite.get(key, "-1")) for key in ("tests", "failures", "skipped")] == [
        len(found), tally["fail"], tally["not evaluated"],
    ]  # fmt: skip
    assert len(suite.findall("testcase/failure")) == tally["fail"]
    assert len(suite.findall("testcase/skipped")) == tally["not evaluated"]

    predicate = parsed("in-toto", verdict)["predicate"]
    assert predicate["passedTests"] == [one.id for one in found if one.status == "pass"]
    assert predicate["failedTests"] == [one.id for one in found if one.status == "fail"]
    assert len(predicate["warnedTests"]) == tally["flag"] + tally["not evaluated"]

    (run,) = parsed("sarif", verdict)["runs"]
    own = [
        result
        for result in run["results"]
        if len(result["message"]["text"]) and "sample " not in result["message"]["text"][:7]
    ]
    assert (
        Counter(result["kind"] for result in own)
        == Counter({"pass": tally["pass"], "fail": tally["flag"] + tally["fail"], "open": tally["not evaluated"]})
        - Counter()
    )
    assert all((result["level"] == "none") == (result["kind"] != "fail") for result in run["results"])


@pytest.mark.parametrize(
    ("verdict", "result"),
    [("REFUTED", "FAILED"), ("INCONCLUSIVE", {"FAILED", "WARNED"}), ("NOT EVALUATED", "WARNED")],
)
def test_what_was_not_evaluated_has_not_passed(verdict: Verdict, result: str | set[str]) -> None:
    assert parsed("in-toto", verdict)["predicate"]["result"] in ({result} if isinstance(result, str) else result)


def test_a_refutation_is_an_error_wherever_it_is_shown() -> None:
    audit = example_audit(12, "REFUTED")
    (run,) = parsed("sarif", "REFUTED")["runs"]
    refuted = [result for result in run["results"] if result["ruleId"] == "CR01"]
    assert {result["level"] for result in refuted} == {"error"}
    assert len(refuted) == 1 + sum(one.refutes == "exact arithmetic" for one in audit.contradictions)
    assert len({result["partialFingerprints"]["certkit/v1"] for result in refuted}) == len(refuted)
    assert b"## Robustness audit: REFUTED" in TWINS["markdown"].make(audit)


def test_what_refutes_the_execution_alone_fails_the_program_and_not_the_exact_claim() -> None:
    audit = example_audit(12, "REFUTED")
    (one,) = audit.contradictions
    audit = audit.model_copy(update={"contradictions": (one.model_copy(update={"refutes": "float execution"}),)})
    assert {outcome.id: outcome.status for outcome in outcomes(audit)[:2]} == {"CR01": "pass", "CR02": "fail"}
    (run,) = json.loads(TWINS["sarif"].make(audit))["runs"]
    (result,) = [result for result in run["results"] if result["message"]["text"].startswith("sample ")]
    assert (result["ruleId"], result["level"]) == ("CR02", "error")
    assert result["message"]["text"].endswith("this refutes the claim about the float execution")


def test_no_share_stands_where_nothing_is_claimed_of_the_execution() -> None:
    audit = example_audit(12)
    nothing = {"pair_error": None, "certified": (), "median_radius": 0.0, "reasons": ("no kernel",)}
    audit = audit.model_copy(update={"execution": audit.execution.model_copy(update=nothing)})
    assert TWINS["markdown"].make(audit).decode().count("| no claim |") == len(audit.curve)
    for name in ("model-card", "cyclonedx"):
        assert b"float32 execution" not in TWINS[name].make(audit)


def test_shares_are_rounded_so_that_they_claim_no_more() -> None:
    text = TWINS["markdown"].make(example_audit(60)).decode()
    shares = re.findall(r"(\d+)/(\d+) = (\d+\.\d) %", text)
    assert len(shares) >= 9
    for line in text.splitlines():
        if line.startswith("| ") and "%" in line:
            _, _, certified, executed, attacked, _ = line.split("|")
            for cell_, low in ((certified, True), (executed, True), (attacked, "clean" in line)):
                for count, total, shown in re.findall(r"(\d+)/(\d+) = (\d+\.\d) %", cell_):
                    exact = 100 * int(count) / int(total)
                    assert float(shown) <= exact + 1e-9 if low else float(shown) >= exact - 1e-9


# Published schemas


def test_the_bill_of_materials_is_valid_cyclonedx() -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    for verdict in get_args(Verdict):
        text = TWINS["cyclonedx"].make(example_audit(12, verdict)).decode()
        assert validation.JsonStrictValidator(schema.SchemaVersion.V1_7).validate_str(text) is None


def test_sarif_is_what_a_typed_reader_reads() -> None:
    reader = pytest.importorskip("sarif_pydantic")
    for verdict in get_args(Verdict):
        log = reader.Sarif.model_validate(parsed("sarif", verdict))
        rules = [rule.id for rule in log.runs[0].tool.driver.rules]
        assert [rules[result.rule_index] for result in log.runs[0].results] == [r.rule_id for r in log.runs[0].results]


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_the_statement_is_what_the_protobuf_of_in_toto_reads(verdict: Verdict) -> None:
    pytest.importorskip("in_toto_attestation", reason="in-toto-attestation is not installed: pip install certkit[dev]")
    from google.protobuf import json_format
    from in_toto_attestation.predicates.test_result.v0.test_result_pb2 import TestResult
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    text = TWINS["in-toto"].make(example_audit(12, verdict)).decode()
    read = json_format.Parse(text, Message())  # refuses a field that the statement does not have
    Statement.copy_from_pb(read).validate()
    result = json_format.ParseDict(json.loads(text)["predicate"], TestResult())
    assert result.result in ("PASSED", "WARNED", "FAILED")
    assert result.configuration
    for descriptor in result.configuration:
        ResourceDescriptor.copy_from_pb(descriptor).validate()
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in descriptor.digest.values())
    assert json_format.MessageToDict(read)["predicate"] == json.loads(text)["predicate"]


PUBLISHED = os.environ.get("CERTKIT_SCHEMAS")  # a folder with junit-10.xsd and sarif-schema-2.1.0.json as published


def published(name: str) -> Path:
    """A published schema, which does not come along. Skips the test where it is not at hand."""
    path = Path(PUBLISHED or "", name)
    if PUBLISHED is None or not path.is_file():
        pytest.skip(f"no {name}: CERTKIT_SCHEMAS names no folder that holds it")
    return path


@EVERY_VERDICT
def test_junit_is_valid_by_the_schema_of_jenkins(verdict: Verdict) -> None:
    xmlschema = pytest.importorskip("xmlschema", reason="xmlschema is not installed: pip install certkit[dev]")
    schema = xmlschema.XMLSchema(str(published("junit-10.xsd")))
    assert [str(error) for error in schema.iter_errors(TWINS["junit"].make(example_audit(12, verdict)).decode())] == []


@EVERY_VERDICT
def test_sarif_is_valid_by_the_schema_of_oasis(verdict: Verdict) -> None:
    validators = pytest.importorskip("jsonschema.validators")
    schema = json.loads(published("sarif-schema-2.1.0.json").read_text())
    found = validators.validator_for(schema)(schema).iter_errors(parsed("sarif", verdict))
    assert [error.message for error in found] == []


# What the schema of Jenkins (junit-10) asks for: attributes that must stand, those that may, and what may stand inside.
JUNIT: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url", "group"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": ({"name"}, {"classname", "time", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": (set(), {"message", "type"}, set()),
    "skipped": (set(), {"message", "type"}, set()),
    "system-out": (set(), set(), set()),
}


@EVERY_VERDICT
def test_junit_has_the_elements_attributes_and_counts_that_readers_ask_for(verdict: Verdict) -> None:
    root = ElementTree.fromstring(TWINS["junit"].make(example_audit(12, verdict)))
    assert root.tag == "testsuites"
    for element in root.iter():
        must, may, inside = JUNIT[element.tag]
        assert must <= {*element.keys()} <= must | may, element.tag
        assert {child.tag for child in element} <= inside
        if element.tag not in ("failure", "skipped", "system-out"):
            assert not (element.text or "").strip()
    (suite,) = root
    cases = suite.findall("testcase")
    for key, found in (
        ("tests", cases),
        ("failures", suite.findall("*/failure")),
        ("errors", suite.findall("*/error")),
    ):
        assert root.get(key) == suite.get(key) == str(len(found))
    assert suite.get("skipped") == str(len(suite.findall("*/skipped")))
    assert len({case.get("name") for case in cases}) == len(cases)
    assert all(len(case) <= 1 for case in cases)
    assert all(re.fullmatch(r"[0-9]{0,3}(\.[0-9]*)?", element.get("time", "")) for element in root.iter())


@EVERY_VERDICT
def test_sarif_places_every_result_and_names_every_rule_once(verdict: Verdict) -> None:
    log = parsed("sarif", verdict)
    assert (log["version"], log["$schema"].rsplit("/", 1)[1]) == ("2.1.0", "sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len({*rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["kind"] in {"pass", "open", "fail"}
        assert result["level"] in ({"warning", "error"} if result["kind"] == "fail" else {"none"})
        (place,) = result["locations"]
        artifact = place["physicalLocation"]["artifactLocation"]
        assert run["artifacts"][artifact["index"]]["location"]["uri"] == artifact["uri"] == "audit.json"
        assert result["message"]["text"]


def test_an_empty_or_hostile_text_leaves_the_formats_valid() -> None:
    """No format has a text that must not be empty and could be, or a character that its readers refuse."""
    for text in ("", " ", *PAYLOADS.values()):
        audit = made(Audit, text)
        for element in ElementTree.fromstring(TWINS["junit"].make(audit)).iter():
            must, may, _ = JUNIT[element.tag]
            assert must <= {*element.keys()} <= must | may
        (run,) = json.loads(TWINS["sarif"].make(audit))["runs"]
        assert all(result["message"]["text"] for result in run["results"])
        if PUBLISHED is not None:
            xmlschema = pytest.importorskip("xmlschema")
            xmlschema.XMLSchema(str(published("junit-10.xsd"))).validate(TWINS["junit"].make(audit).decode())


def test_an_in_toto_statement_names_what_was_tested() -> None:
    audit = example_audit(12)
    statement = parsed("in-toto")
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["subject"] == [{"name": "checkpoint", "digest": {"sha256": audit.subject.sha256}}]


# Nothing in them is more than text


@EVERY_TWIN
@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text(name: str, payload: str) -> None:
    audit, _ = poisoned(PAYLOADS[payload])
    data = TWINS[name].make(audit)
    if name == "parquet":  # a typed table: text is data there
        return
    text = data.decode()
    assert not [c for c in text if not c.isprintable() and c not in "\r\n"]
    if name == "junit":
        ElementTree.fromstring(text)
    elif name in ("sarif", "cyclonedx", "in-toto"):
        json.loads(text)
    elif name == "markdown":
        assert not re.search(r"<(?!/?a\b)[a-z!/]", text, re.IGNORECASE)
        assert "](" not in text
    elif name == "model-card":
        assert text.count("---\n") == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "=cmd|' /C calc'!A0"])
def test_a_spreadsheet_is_given_no_formula(text: str) -> None:
    assert cell(text).startswith("'")


@pytest.mark.parametrize("value", [-1.5, 0, None, "digit 3", "a=b"])
def test_numbers_and_plain_text_stay_what_they_are(value: Any) -> None:
    assert cell(value) == value


# Files


def test_twins_are_written_beside_the_audit(tmp_path: Path) -> None:
    save(example_audit(12), tmp_path / "audit.json")
    written = write(tmp_path, [*TWINS, "csv"])
    assert [path.name for path in written] == [twin.file for twin in TWINS.values()]
    assert all(path.read_bytes() for path in written)


def test_an_unknown_format_is_refused_and_nothing_written(tmp_path: Path) -> None:
    save(example_audit(12), tmp_path / "audit.json")
    with pytest.raises(ConfigError) as error:
        write(tmp_path, ["csv", "sarf"])
    assert str(error.value) == (
        "format 'sarf' is not known; expected csv, parquet, sarif, junit, markdown, model-card, cyclonedx, in-toto; "
        "did you mean 'sarif'?"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


def test_a_folder_without_an_audit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no audit\.json here; expected a folder that certkit audit wrote"):
        write(tmp_path, ["csv"])
