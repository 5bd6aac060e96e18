"""Ten thousand spoilt files: every reader loads them or says in one line why not, and never takes a second."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certkit import config
from certkit.bounds import ledger
from certkit.errors import ConfigError
from certkit.files import canonical, load, save
from certkit.records import Audit, Certificate
from tests.fuzzing import Target, case, fault, places, put, targets
from tests.strategies import a_certificate, a_ledger, an_audit

SEED = 0
MUTATED, STRUCTURED = 1_700, 375  # per kind of file: 5 x 1,700 and 4 x 375 are 10,000
SECONDS = 1.0  # a requirement on every single case, in seconds of CPU: the slowest takes some hundredths
NAMES = ("run.toml", "config.json", "weights.safetensors", "certificate.json", "audit.json")
JSON_NAMES = NAMES[1:]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2**63, -(2**63), 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {target.name: target for target in targets(tmp_path_factory.mktemp("fuzz"))}


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_load(name: str, kinds: dict[str, Target]) -> None:
    kinds[name].path.write_bytes(kinds[name].valid)
    kinds[name].read(kinds[name].path)


@pytest.mark.parametrize("name", NAMES)
def test_spoilt_bytes_load_or_are_refused_in_one_line(name: str, kinds: dict[str, Target]) -> None:
    target = kinds[name]
    for number in range(MUTATED):
        found, seconds = fault(target, case(target, SEED, number))
        assert found is None, f"case {number} of seed {SEED}: {found}"
        assert seconds < SECONDS, f"case {number} of seed {SEED} took {seconds:.2f} s"


@pytest.mark.parametrize("name", JSON_NAMES)
def test_foreign_values_load_or_are_refused_in_one_line(name: str, kinds: dict[str, Target]) -> None:
    target = kinds[name]
    assert target.frame is not None
    frame, valid = target.frame, json.loads(target.text)
    paths = list(places(valid))

    @settings(
        max_examples=STRUCTURED, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(paths), json_values)
    def law(path: tuple[str | int, ...], value: object) -> None:
        data = frame(json.dumps(put(copy.deepcopy(valid), path, value)).encode())
        found, seconds = fault(target, data)
        assert found is None, found
        assert seconds < SECONDS

    law()


@pytest.mark.parametrize("name", NAMES)
def test_cases_reach_past_the_parser(name: str, kinds: dict[str, Target]) -> None:
    """A fuzzer whose files all die at the first byte tests nothing: some load, and they are refused for many reasons."""
    target = kinds[name]
    seen: Counter[str] = Counter()
    for number in range(300):
        target.path.write_bytes(case(target, SEED, number))
        try:
            target.read(target.path)
            seen["loaded"] += 1
        except Exception as error:  # noqa: BLE001 - judged by the tests above
            seen[str(error)] += 1
    assert seen["loaded"] > 0
    assert len(seen) > 30


def test_the_same_case_is_the_same_bytes(kinds: dict[str, Target]) -> None:
    for target in kinds.values():
        assert case(target, 3, 11) == case(target, 3, 11)


def test_a_reader_that_raises_anything_else_is_caught(tmp_path: Path) -> None:
    def read(path: Path) -> object:
        raise KeyError(path.name)

    found, _ = fault(Target(tmp_path / "broken.json", b"{}", read, None), b"{}")
    assert found == "broken.json: KeyError: \"'broken.json'\""


def test_a_message_of_two_lines_is_caught(tmp_path: Path) -> None:
    def read(path: Path) -> object:
        raise ConfigError("one\ntwo")

    found, _ = fault(Target(tmp_path / "broken.json", b"{}", read, None), b"{}")
    assert found == "broken.json: a message that is not one line: 'one\\ntwo'"


def test_example_records_survive_the_round_trip(tmp_path: Path) -> None:
    for record in (a_certificate(), an_audit()):
        save(record, tmp_path / "record.json")
        again = load(type(record), tmp_path / "record.json")
        assert canonical(again) == canonical(record)
    assert isinstance(again, Audit)


def test_the_example_ledger_holds() -> None:
    assert ledger.checked(ledger.to_json(a_ledger())) == a_ledger()
    assert isinstance(a_certificate(), Certificate)


def test_many_dotted_keys_cost_no_time(kinds: dict[str, Target]) -> None:
    """tomllib takes the square of the parts of a key: 16,000 of them took 6 s before lines were capped."""
    data = b"a" + b".a" * 16_000 + b" = 1\n"
    found, seconds = fault(kinds["run.toml"], data)
    assert (found, seconds < SECONDS) == (None, True)
    with pytest.raises(ConfigError, match=r"^run.toml: a line is longer than 1000 characters$"):
        config.parse(data, "run.toml")


def test_dotted_keys_up_to_both_caps_cost_no_time(kinds: dict[str, Target]) -> None:
    lines = [f"k{number}" + ".a" * 496 + " = 1\n" for number in range(64)]
    found, seconds = fault(kinds["run.toml"], "".join(lines).encode())
    assert (found, seconds < SECONDS) == (None, True)
