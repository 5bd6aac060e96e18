"""What metrics.jsonl and trained.json tell of a run: read when they are whole and of these weights, and a reason otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certkit.errors import RecordError
from certkit.health import training
from certkit.health.training import METRICS, TRAINED, Line, curves, lines_of, summed, training_of, training_steps
from certkit.records.health import MAX_POINTS

SHA = "a" * 64


def line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 2.0,
        "spikes": 0,
        "gradient_norm": 1.0,
        "norm_over_cap": {"w": 0.5},
        "lr": 0.1,
        **more,
    }


def written(folder: Path, lines: list[Any]) -> Path:
    path = folder / METRICS
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def trained(folder: Path, **changes: Any) -> None:
    whole: dict[str, Any] = {
        "format": 2,
        "subject": {"sha256": SHA, "architecture": "x"},
        "optimizer": "muon",
        "constraint": "stiefel",
        "promise": "provable",
        "largest_norm_over_cap": 1.0,
        "largest_entry": 3.0,
        "spikes": 0,
    }
    (folder / TRAINED).write_text(json.dumps(whole | changes), encoding="utf-8")


def test_a_run_is_told_by_its_files(tmp_path: Path) -> None:
    written(tmp_path, [line(0, loss=8.0), line(50, spikes=1, gradient_norm=4.0), {"step": 100, "spikes": 1}])
    trained(tmp_path)
    found, untold = training_of(tmp_path, SHA)
    assert untold is None
    assert found is not None
    assert found.about is not None
    assert (found.about.constraint, found.about.promise) == ("stiefel", "provable")
    assert (found.steps.lines, found.steps.steps, found.steps.loss, found.steps.largest_loss) == (3, 51, 2.0, 8.0)
    assert (found.steps.spikes, found.steps.largest_gradient_norm, found.steps.largest_norm_over_cap) == (1, 4.0, 0.5)
    assert found.curves.step == (0, 50, 100)
    assert found.curves.loss == (8.0, 2.0, None)


def test_without_trained_json_nobody_says_whose_the_metrics_are(tmp_path: Path) -> None:
    written(tmp_path, [line(0)])
    found, untold = training_of(tmp_path, SHA)
    assert untold is None
    assert found is not None
    assert found.about is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"subject": {"sha256": "b" * 64}},
            "metrics.jsonl and trained.json beside the checkpoint are of other weights",
        ),
        ({"subject": {}}, "trained.json: not what certkit train writes (subject.sha256)"),
        ({"optimizer": 3}, "trained.json: not what certkit train writes (optimizer)"),
        ({"largest_entry": -1.0}, "trained.json: not what certkit train writes (largest_entry)"),
        ({"padding": "x" * 2**20}, "trained.json: larger than 1048576 bytes"),
    ],
)
def test_a_trained_json_of_other_weights_or_of_nobody_is_a_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    written(tmp_path, [line(0)])
    trained(tmp_path, **changes)
    found, untold = training_of(tmp_path, SHA)
    assert found is None
    assert untold is not None
    assert untold.startswith(reason)


def test_a_folder_without_metrics_is_a_reason(tmp_path: Path) -> None:
    assert training_of(tmp_path, SHA) == (
        None,
        "No metrics.jsonl stands beside the checkpoint, so that nothing is known of its training.",
    )
    os.mkfifo(tmp_path / METRICS)  # a pipe that nobody writes to would never end
    assert training_of(tmp_path, SHA)[0] is None
    assert training_steps(tmp_path / METRICS) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is empty"),
        ("nonsense", "Expecting value"),
        ("[1]", "Input should be a valid dictionary"),
        ('{"step": 1, "spikes": 0}', "no line holds a loss"),
        ('{"step": 1, "spikes": 0, "loss": 1}', "no line holds a gradient_norm"),
        ('{"step": 1, "loss": NaN, "spikes": 0}', "NaN is not a finite number"),
        ('{"step": 1, "loss": 1e999, "spikes": 0}', "loss: Input should be a finite number"),
        ('{"step": 1, "loss": "2", "spikes": 0}', "loss: Input should be a valid number"),
        ('{"step": 1, "loss": true, "spikes": 0}', "loss: Input should be a valid number"),
        ('{"step": -1, "loss": 1, "spikes": 0}', "step: Input should be greater than or equal to 0"),
        ('{"step": 1e3, "loss": 1, "spikes": 0}', "step: Input should be a valid integer"),
        ('{"step": ' + "9" * 30 + ', "loss": 1, "spikes": 0}', "step: "),
        ('{"step": ' + "9" * 5000 + ', "loss": 1, "spikes": 0}', "Exceeds the limit"),
        ('{"step": 1, "loss": 1, "spikes": 0, "gradient_norm": -1}', "gradient_norm: Input should be greater"),
        ('{"step": 1, "loss": 1, "spikes": 0, "norm_over_cap": {"w": []}}', "norm_over_cap.w: Input should be a valid"),
        ("[" * 100_000, ""),
        ("\udcff", "'utf-8' codec can't decode"),
    ],
)
def test_broken_metrics_are_refused_with_the_first_fault(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / METRICS
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordError) as caught:
        lines_of(path)
    assert str(caught.value).startswith(f"metrics.jsonl: not the metrics of a training run ({fault}")
    assert len(str(caught.value)) < 200
    assert training_of(tmp_path, SHA) == (None, str(caught.value))


def test_steps_that_do_not_rise_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [line(5), line(5)])
    with pytest.raises(RecordError, match="its steps do not rise"):
        lines_of(path)


def test_a_file_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [line(step) for step in range(50)])
    monkeypatch.setattr(training, "MAX_BYTES", 2**20 // 1024)
    with pytest.raises(RecordError, match=r"metrics\.jsonl: larger than 0 MiB; the metrics of a run are less"):
        lines_of(path)
    monkeypatch.undo()
    monkeypatch.setattr(training, "MAX_LINES", 10)
    with pytest.raises(RecordError, match="more than 10 lines"):
        lines_of(path)


numbers = st.one_of(st.none(), st.floats(0, 1e6))


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), numbers, numbers, st.booleans()), min_size=1, max_size=3 * MAX_POINTS + 7)
)
def test_thinned_curves_hide_no_peak_no_spike_and_no_end(
    rows: list[tuple[float, float | None, float | None, bool]],
) -> None:
    spikes, lines = 0, []
    for step, (loss, gradient, norm, spike) in enumerate(rows):
        spikes += spike
        cap = {} if norm is None else {"w": norm}
        lines.append(Line(step=3 * step, loss=loss, gradient_norm=gradient, norm_over_cap=cap, spikes=spikes))
    found = curves(lines)
    assert len(found.step) <= MAX_POINTS
    assert len(found.step) == -(-len(lines) // found.every)
    assert found.step[-1] == lines[-1].step
    assert max(loss for loss in found.loss if loss is not None) == max(row[0] for row in rows)
    assert found.spikes[-1] == spikes
    for column, place in ((found.gradient_norm, 1), (found.norm_over_cap, 2)):
        given_ = [row[place] for row in rows if row[place] is not None]
        assert max((one for one in column if one is not None), default=None) == max(given_, default=None)
    if any(row[1] is not None for row in rows):
        assert summed(lines).largest_loss == max(row[0] for row in rows)
