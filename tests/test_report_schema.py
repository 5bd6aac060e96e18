"""The schema that is handed out is the record's own, and an audit names nobody's machine."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import certkit
from certkit.cli import main
from certkit.files import canonical
from certkit.records import Verdict
from certkit.reports.schema import schema
from certkit.reports.twins import TWINS, write
from tests.audits import example_audit
from tests.networks import labelled_by, linear, samples

HERE = Path(__file__).parent.parent
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: it comes with certkit[dev]")


def judged(value: Any) -> list[str]:
    return [error.json_path for error in jsonschema.Draft202012Validator(json.loads(schema())).iter_errors(value)]


def test_the_exported_schema_is_current() -> None:
    exported = (HERE / "docs" / "audit.schema.json").read_text()
    assert exported == schema(), "python -m certkit.reports.schema > docs/audit.schema.json"
    jsonschema.Draft202012Validator.check_schema(json.loads(exported))


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_an_audit_is_valid_by_it(verdict: Verdict) -> None:
    assert judged(json.loads(canonical(example_audit(12, verdict)))) == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"verdict": "SAFE"}, "$.verdict"),
        ({"unheard": 1}, "$"),
        ({"median_radius": -1.0}, "$.median_radius"),
        ({"format": 2}, "$.format"),
        ({"samples": [{"index": 0}]}, "$.samples[0]"),
    ],
)
def test_what_certkit_refuses_is_invalid_by_it(change: dict[str, Any], path: str) -> None:
    assert path in judged(json.loads(canonical(example_audit(12))) | change)


def test_every_key_is_required_and_no_other_is_allowed() -> None:
    described = json.loads(schema())
    for name, one in {"Audit": described, **described["$defs"]}.items():
        if one.get("type") == "object" and "properties" in one:
            fixed = {key for key, value in one["properties"].items() if "default" in value}
            assert set(one["properties"]) - fixed <= set(one.get("required", ())), name
            assert one["additionalProperties"] is False, name


def test_an_audit_holds_no_path_name_or_secret_of_the_machine_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SecretSecretSecret")
    monkeypatch.setenv("CERTKIT_NOTE", "another-secret-value")
    model, out = linear(), tmp_path / "private-folder" / "audit"
    data = labelled_by(model, samples())
    certkit.certify(model, data, eps=["0.05"], norm="l2", out=out, threads=1)
    certkit.attack(model, data, norm="l2", eps=["0.05"], out=out)
    certkit.audit(out, model=model)
    certkit.report(out)
    write(out, list(TWINS))
    _holds_nothing_private(out)


def test_nor_does_one_that_the_command_made_of_files_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private-folder"
    data = private / "pictures" / "test"
    for at in range(12):
        (data / f"class-{at % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), 40 + 150 * (at % 2) + at, dtype=np.uint8)).save(
            data / f"class-{at % 2}" / f"{at}.png"
        )
    (tmp_path / "architecture_of_mine.py").write_text(
        "from torch import nn\ndef made():\n    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))\n"
    )
    save_file(linear(classes=2).state_dict(), private / "weights.safetensors")
    monkeypatch.setenv("HF_TOKEN", "hf_SecretSecretSecret")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--data", str(private / "pictures"), "--eps", "0.01", "--model", "architecture_of_mine:made"]
    result = CliRunner().invoke(
        main, ["audit", str(private / "weights.safetensors"), *words, "--out", str(private / "audit")]
    )
    assert result.exit_code in (0, 3), result.stderr
    write(private / "audit", list(TWINS))
    _holds_nothing_private(private / "audit")


def _holds_nothing_private(out: Path) -> None:
    private = {"private-folder", str(Path.home()), "SecretSecret", "another-secret", platform.node(), os.getcwd()}
    user = getpass.getuser()
    for path in [out / "audit.json", out / "report.html", *(out / twin.file for twin in TWINS.values())]:
        text = path.read_bytes().decode("utf-8", "replace")
        assert not {word for word in private if len(word) > 3 and word in text}, path.name
        assert not re.search(rf"\b(user|home|login)\W+{re.escape(user)}\b", text), path.name
