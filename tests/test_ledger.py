"""The proof as a file: it reads back as it was, every number of it is checked, and no torch is needed to do so."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from certkit.bounds.bound import Bound, Reach
from certkit.bounds.ledger import MAX_PAIRED_CLASSES, Ledger, checked, from_json, main, pair_gain, pair_gains, to_json
from certkit.bounds.number import Up
from certkit.certified import radii
from certkit.errors import CertkitError, RecordError, RuleViolation
from tests.modules import Net, maxmin, prove

Json = dict[str, Any]


def forward(net: Any, x: torch.Tensor) -> torch.Tensor:
    h = F.linear(x, net.w, net.b) + 0.5
    y = F.scaled_dot_product_attention(h, h, h, attn_mask=net.mask)
    return F.linear(maxmin(y).mean(1), net.head) * 0.5


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    torch.manual_seed(0)
    w, b, mask, head = torch.randn(4, 3), torch.randn(4), torch.randn(2, 2), torch.randn(2, 4)
    return prove(Net(forward, w=w, b=b, mask=mask, head=head), (2, 3)).ledger


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every number in a JSON value: integers, floats and decimal texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers(inner, (*path, index))
    elif isinstance(value, (int, float)) or (
        isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?(E[+-]\d+)?", value)
    ):
        yield path


def edited(value: Json, path: tuple[Any, ...]) -> Json:
    """The same with one digit of one number changed: the first that is not 0, or a 0 made 1."""
    changed = copy.deepcopy(value)
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    number = place[path[-1]]
    text = re.sub(r"[1-9]", lambda digit: "1" if digit[0] == "9" else str(int(digit[0]) + 1), str(number), count=1)
    text = text if text != str(number) else str(number).replace("0", "1", 1)
    place[path[-1]] = text if isinstance(number, str) else type(number)(text)
    return changed


def test_a_ledger_survives_json(ledger: Ledger) -> None:
    text = json.dumps(to_json(ledger), allow_nan=False)
    assert from_json(json.loads(text)) == ledger
    assert checked(json.loads(text)) == ledger


def test_every_number_of_a_bound_that_is_edited_is_refused(ledger: Ledger) -> None:
    value = to_json(ledger)
    stated = [path for path in numbers(value) if "bound" in path or path[:2] in {("pairs", "gain"), ("pairs", "error")}]
    assert len(stated) > 100
    for path in stated:
        with pytest.raises(RecordError):
            checked(edited(value, path))


def test_every_fact_that_is_edited_is_refused_unless_no_bound_rests_on_it(ledger: Ledger) -> None:
    # Evidence that loses to a better route carries nothing: editing it cannot change what is proved.
    value = to_json(ledger)
    carries, idle = set(), set()
    for path in numbers(value):
        if path[0] == "steps" and path[2] in ("attributes", "evidence"):
            name = (value["steps"][path[1]]["rule"], path[3])
            try:
                changed = checked(edited(value, path))
            except RecordError:
                carries.add(name)
                continue
            assert [step.bound for step in changed.steps] == [step.bound for step in ledger.steps]
            assert (changed.pairs.gain, changed.pairs.error) == (ledger.pairs.gain, ledger.pairs.error)
            idle.add(name)
    assert {key for _, key in idle}.isdisjoint({"shape", "axes", "axis", "groups", "scale"})
    assert {("linear", "sigma"), ("linear", "absolute"), ("scale", "largest"), ("input", "high")} <= carries


@pytest.mark.parametrize("key", ["node", "rule"])
def test_every_name_of_a_step_that_is_edited_is_refused(ledger: Ledger, key: str) -> None:
    value = to_json(ledger)
    read = {name for step in value["steps"] for name in step["inputs"]} | {value["output"]}
    for index, step in enumerate(value["steps"]):
        if key == "rule" or step["node"] in read:
            changed = copy.deepcopy(value)
            changed["steps"][index][key] = "other"
            with pytest.raises(CertkitError, match=r"no rule is called 'other'|which no (earlier )?step gives"):
                checked(changed)


def test_every_step_that_is_read_is_missed(ledger: Ledger) -> None:
    value = to_json(ledger)
    needed = {name for step in value["steps"] for name in step["inputs"]} | {value["output"]}
    for index, step in enumerate(value["steps"]):
        if step["node"] in needed:
            shorter = {**value, "steps": value["steps"][:index] + value["steps"][index + 1 :]}
            with pytest.raises(RuleViolation, match=r"which no (earlier )?step gives$"):
                checked(shorter)


def test_steps_out_of_order_are_refused(ledger: Ledger) -> None:
    value = to_json(ledger)
    value["steps"].reverse()
    with pytest.raises(RuleViolation, match=r"which no earlier step gives$"):
        checked(value)


def test_a_step_that_stands_twice_is_refused(ledger: Ledger) -> None:
    value = to_json(ledger)
    value["steps"].insert(1, value["steps"][0])
    with pytest.raises(RuleViolation, match=f"^{value['steps'][0]['node']}: stands twice in the ledger$"):
        checked(value)


def test_a_bound_that_its_rule_does_not_give_is_named(ledger: Ledger) -> None:
    value = to_json(ledger)
    step = next(step for step in value["steps"] if step["rule"] == "attention")
    step["bound"]["norms"][0]["gain"] = "1"
    with pytest.raises(RuleViolation) as caught:
        checked(value)
    assert str(caught.value) == f"{step['node']}: the stated bound is not the one that rule 'attention' gives"


DAMAGE: dict[str, tuple[Callable[[Json], object], str]] = {
    "not an object": (lambda v: [], "ledger: ledger must be an object with the keys arithmetic, output, pairs, steps"),
    "a key too many": (lambda v: {**v, "x": 1}, "ledger: ledger must be an object with the keys arithmetic"),
    "another arithmetic": (lambda v: {**v, "arithmetic": "float8"}, "arithmetic must be one of float64, float32"),
    "a number that is none": (lambda v: put(v, "NaN", "pairs", "error"), "ledger: 'NaN' is not finite"),
    "a number below zero": (lambda v: put(v, "-1", "pairs", "error"), "ledger: an upper bound of a norm is finite"),
    "a number too long": (lambda v: put(v, "1" * 65, "pairs", "error"), "ledger: pairs.error must be a decimal text of at"),
    "an overflowing number": (lambda v: put(v, "1E+999999999999999999", *SIZE), "ledger: a rule cannot read|stated bound"),
    "a rank too high": (lambda v: put(v, [1] * 17, "steps", 0, "bound", "shape"), "ledger: a shape has 1 to 16 axes, got 17"),
    "axes that are not there": (lambda v: put(v, [7], *SIZE[:-1], "axes"), "ledger: axes [7] do not belong to shape"),
    "no norms": (lambda v: put(v, [], *SIZE[:4]), "ledger: a bound knows at least one norm"),
    "a shape too large": (lambda v: put(v, [1, 2**62, 2**62], "steps", 1, "attributes", "shape"), "cannot make|cannot read"),
    "pairs of nothing": (
        lambda v: put(v, [[[1, 2], [1]], *[[[], []]] * 5], "steps", relabels(v), "attributes", "groups"),
        "pair axes with nothing",
    ),
}  # fmt: skip
SIZE = ("steps", 0, "bound", "norms", 0, "size")


def relabels(value: Json) -> int:
    return next((i for i, step in enumerate(value["steps"]) if step["rule"] == "relabel"), 0)


def put(value: Json, new: Any, *path: Any) -> Json:
    place: Any = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_refused_with_a_reason(damage: str) -> None:
    proof = prove(Net(lambda net, x: F.linear(x, net.w).flatten(1), w=torch.ones(2, 2)), (2, 2))
    change, message = DAMAGE[damage]
    with pytest.raises(RecordError, match=message.replace("[7]", r"\[7\]")):
        checked(change(to_json(proof.ledger)))


def test_what_a_ledger_quotes_reaches_the_reader_on_one_plain_line(ledger: Ledger) -> None:
    value = to_json(ledger)
    value["steps"][1]["node"] = value["steps"][0]["node"] = "\x1b[31m" + "x" * 1000 + "\n"
    with pytest.raises(RuleViolation) as caught:
        checked(value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 300


def certificate(ledger: Ledger, path: Path, changes: Json | None = None) -> Path:
    gain = [[number.to_float() for number in row] for row in ledger.pairs.gain]
    value = {"ledger": to_json(ledger), "pair_gain": gain, "pair_error": ledger.pairs.error.to_float()}
    path.write_text(json.dumps(value | (changes or {})), encoding="utf-8")
    return path


def test_the_checker_runs_alone_without_torch_or_numpy(ledger: Ledger, tmp_path: Path) -> None:
    path = certificate(ledger, tmp_path / "certificate.json")
    code = (
        "import runpy, sys; sys.argv = ['ledger', sys.argv[1]]\n"
        "try: runpy.run_module('certkit.bounds.ledger', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'pydantic'} & {*sys.modules}\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"\d+ steps derived again from their evidence with \d+ rules: no difference\n", done.stdout)


def test_the_checker_is_a_command(ledger: Ledger, tmp_path: Path) -> None:
    path = certificate(ledger, tmp_path / "certificate.json")
    command = [sys.executable, "-m", "certkit.bounds.ledger"]
    assert subprocess.run([*command, path], capture_output=True, check=False).returncode == 0
    usage = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr) == (2, "usage: python -m certkit.bounds.ledger certificate.json\n")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pair_gain": [[0.0, 0.0], [0.0, 0.0]]}, "pair_gain is not what the ledger proves"),
        ({"pair_error": 0.0}, "pair_error is not what the ledger proves"),
        ({"ledger": {}}, "ledger: ledger must be an object with the keys arithmetic, output, pairs, steps"),
    ],
)
def test_the_checker_refuses_what_the_ledger_does_not_prove(
    ledger: Ledger, changes: Json, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = certificate(ledger, tmp_path / "certificate.json", changes)
    assert main([str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: {reason}\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "NaN", "[" * 100_000])
def test_the_checker_refuses_other_files_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(text, encoding="utf-8")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path / "none.json")]) == 2


def test_a_network_at_ten_to_the_400_stays_finite_and_checks() -> None:
    w = 1e10 * torch.eye(2)

    def deep(net: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(40):
            x = F.linear(x, net.w)
        return x

    proof = prove(Net(deep, w=w), (2,))
    value = to_json(proof.ledger)
    assert checked(json.loads(json.dumps(value))) == proof.ledger
    gain = proof.ledger.pairs.gain[0][1]
    assert Up.of("1.4142E+400") <= gain <= Up.of("1.4143E+400")


def test_many_classes_share_one_gain_and_few_do_not() -> None:
    """A number for each of 50,257 x 50,257 pairs would outgrow every file."""
    reach = Reach(Up.of(3), Up.of(2), Up.of("1E-9"))
    for classes, shape in ((MAX_PAIRED_CLASSES, MAX_PAIRED_CLASSES), (MAX_PAIRED_CLASSES + 1, 1)):
        logits = Bound((1, classes), {frozenset({1}): reach})
        gain, error = pair_gains(logits, logits, None, None)
        assert {len(gain), *map(len, gain)} == {shape}
        assert gain[0][-1] == pair_gain(logits)
        table = np.array([[number.to_float() for number in row] for row in gain])
        centre = np.zeros((2, classes))
        centre[[0, 1], [0, classes - 1]] = 1.0
        found = radii(centre, table, error.to_float())
        assert (found > 0).all()
        assert (found <= 1.0 / gain[0][-1].to_float()).all()
        assert found[0] == found[1]
