"""A small language model on a text of seven letters, and the folder of its audit, made once."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import torch
from click.testing import CliRunner, Result
from torch import nn

from certkit import checkpoint
from certkit.cli import main
from certkit.config import validate
from certkit.models import create

LETTERS = "abc <&\n"
_kept: list[tempfile.TemporaryDirectory[str]] = []  # until the end of the process


def _folder() -> Path:
    _kept.append(tempfile.TemporaryDirectory())
    return Path(_kept[-1].name)


def run(*words: object) -> Result:
    """certkit with these words."""
    return CliRunner().invoke(main, [str(word) for word in words])


@cache
def text() -> Path:
    """A folder with one text file."""
    folder = _folder()
    (folder / "all.txt").write_text(LETTERS * 90, encoding="utf-8")
    return folder


@cache
def network() -> Path:
    """A checkpoint that has learned how the text goes on, with the metrics of a training run."""
    folder = _folder()
    settings = validate(
        {
            "model": {"name": "gpt", "vocabulary": len(LETTERS), "context": 8, "width": 8, "heads": 2, "blocks": 1},
            "training": {"loss": "cross-entropy", "constraint": "none"},
        },
        "run",
    )
    torch.manual_seed(0)
    model = create(settings.model)
    step = torch.optim.Adam(model.parameters(), lr=0.03)
    going_on = torch.arange(8 + len(LETTERS)) % len(LETTERS)  # in the order of sorted characters
    order = torch.tensor([sorted(LETTERS).index(LETTERS[n]) for n in going_on])
    rows = order.unfold(0, 9, 1)
    for _ in range(60):
        step.zero_grad()
        nn.functional.cross_entropy(model(rows[:, :-1]).transpose(1, 2), rows[:, 1:]).backward()
        step.step()
    checkpoint.write(folder, model.state_dict(), settings.model_dump(mode="json"))
    lines = [
        {"step": 0, "loss": 2.0, "gradient_norm": 1.0, "spikes": 0, "norm_over_cap": {"w": 0.5}},
        {"step": 9, "loss": 1.5, "gradient_norm": 3.0, "spikes": 2},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@cache
def audited() -> tuple[Path, Result]:
    """The folder of its audit, to be copied before it is changed, and what the command said."""
    out = _folder()
    given = ("--data", text(), "--contexts", 3, "--eps", "0.01,0.1,8", "--steps", 4, "--out", out)
    return out, run("language", network(), *given)
