"""What the files beside a checkpoint tell of the run that made it. They are untrusted: bounded, validated. No torch here."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from certkit.errors import RecordError, one_line
from certkit.files import digest, read_json
from certkit.records import Sha256
from certkit.records.health import MAX_POINTS, Curves, Size, Steps, Trained, Training

METRICS, TRAINED = "metrics.jsonl", "trained.json"
MAX_BYTES = 64 * 2**20
MAX_TRAINED_BYTES = 2**20
MAX_LINES = 10**6
MAX_STEP = 10**12


class Line(BaseModel):
    """What is read of one line of metrics.jsonl; it holds more. The last line may measure the weights after the last step."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    step: Annotated[int, Field(ge=0, le=MAX_STEP)]
    loss: float | None = None
    spikes: Annotated[int, Field(ge=0, le=MAX_STEP)]
    validation_loss: float | None = None
    gradient_norm: Size | None = None
    norm_over_cap: dict[str, Size] = {}

    @property
    def largest_norm(self) -> float | None:
        return max(self.norm_over_cap.values(), default=None)


class _Owner(BaseModel):
    sha256: Sha256


class _Owned(BaseModel):
    """Of which weights a file beside them speaks; it holds more."""

    subject: _Owner


class _TrainedFile(Trained):
    """What else is read of trained.json; it holds more."""

    model_config = ConfigDict(extra="ignore")


def training_steps(path: Path) -> Steps | None:
    """What metrics.jsonl in a checkpoint's folder tells; None where there is none. Raises RecordError for a broken one."""
    return summed(lines_of(path)) if path.is_file() else None


def training_of(folder: Path, sha256: str) -> tuple[Training | None, str | None]:
    """The training run of the weights with this sha256, from the files in their folder; or why it cannot be told.

    Files that are broken, or of other weights, are a reason and no error: they are no part of the checkpoint.
    """
    path = folder / METRICS
    if not path.is_file():
        return None, f"No {METRICS} stands beside the checkpoint, so that nothing is known of its training."
    try:
        about = _trained(folder / TRAINED, sha256)
        lines = lines_of(path)
        return Training(steps=summed(lines), curves=curves(lines), about=about, metrics_sha256=digest(_raw(path))), None
    except RecordError as error:
        return None, str(error)


def lines_of(path: Path) -> list[Line]:
    """The lines of metrics.jsonl, at least one, their steps rising. Raises RecordError naming the first fault."""
    try:
        texts = [text for text in _raw(path).decode("utf-8").splitlines() if text.strip()]
        if len(texts) > MAX_LINES:
            raise ValueError(f"more than {MAX_LINES} lines")
        lines = [Line.model_validate(json.loads(text, parse_constant=_refused)) for text in texts]
        if not lines:
            raise ValueError("it is empty")
        if any(after.step <= before.step for before, after in pairwise(lines)):
            raise ValueError("its steps do not rise")
        for name in ("loss", "gradient_norm"):
            if all(getattr(line, name) is None for line in lines):
                raise ValueError(f"no line holds a {name}")
        return lines
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        fault = f"{place}: {first['msg']}" if place else first["msg"]
    except (ValueError, RecursionError) as error:
        fault = str(error)
    raise RecordError(f"{path.name}: not the metrics of a training run ({one_line(fault, 120)})")


def summed(lines: list[Line]) -> Steps:
    """The figures over all lines."""
    losses = [line.loss for line in lines if line.loss is not None]
    gradients = [line.gradient_norm for line in lines if line.gradient_norm is not None]
    norms = [norm for line in lines if (norm := line.largest_norm) is not None]
    return Steps(
        lines=len(lines),
        steps=max(line.step + 1 for line in lines if line.loss is not None),
        loss=losses[-1],
        largest_loss=max(losses),
        spikes=lines[-1].spikes,
        median_gradient_norm=median(gradients),
        largest_gradient_norm=max(gradients),
        largest_norm_over_cap=max(norms, default=None),
    )


def curves(lines: list[Line]) -> Curves:
    """The lines as columns; where there are many, as few points as the record holds, each for as many lines in a row."""
    every = -(-len(lines) // MAX_POINTS)
    groups = [lines[at : at + every] for at in range(0, len(lines), every)]

    def largest(values: list[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    def last(values: list[float | None]) -> float | None:
        return next((value for value in reversed(values) if value is not None), None)

    return Curves(
        every=every,
        step=tuple(group[-1].step for group in groups),
        loss=tuple(largest([line.loss for line in group]) for group in groups),
        validation_loss=tuple(last([line.validation_loss for line in group]) for group in groups),
        gradient_norm=tuple(largest([line.gradient_norm for line in group]) for group in groups),
        norm_over_cap=tuple(largest([line.largest_norm for line in group]) for group in groups),
        spikes=tuple(group[-1].spikes for group in groups),
    )


def _trained(path: Path, sha256: str) -> Trained | None:
    """What trained.json says, None without one. Raises RecordError for a broken one, or one of other weights."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_TRAINED_BYTES:
            raise RecordError(f"{path.name}: larger than {MAX_TRAINED_BYTES} bytes; certkit train writes less")
        value = read_json(path)
        owner, found = _Owned.model_validate(value).subject, _TrainedFile.model_validate(value)
    except OSError as error:
        raise RecordError(f"{path.name}: cannot be read ({error.strerror or error})") from None
    except ValidationError as error:
        place = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise RecordError(f"{path.name}: not what certkit train writes ({one_line(place, 120)})") from None
    if owner.sha256 != sha256:
        raise RecordError(f"{METRICS} and {path.name} beside the checkpoint are of other weights (sha256 differs)")
    told = found.model_dump()
    return Trained(**told | {name: one_line(text, 60) for name, text in told.items() if isinstance(text, str)})


def _raw(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecordError(f"{path.name}: cannot be read ({error.strerror or error})") from None
    if len(raw) > MAX_BYTES:
        raise RecordError(f"{path.name}: larger than {MAX_BYTES // 2**20} MiB; the metrics of a run are less")
    return raw


def _refused(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")
