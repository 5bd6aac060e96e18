"""A Lipschitz transformer beside a LayerNorm transformer at equal tokens: the same text once, twice and four times over.

    python -m benchmarks.epochs TEXT FOLDER --set lipschitz:training.learning_rate=0.2 > benchmarks/results/epochs.json

Both are 4 blocks of width 256 on characters, trained by ``certkit train`` from the presets shakespeare-2m (Muon, every
weight under its cap, no normalisation, nothing clipped) and shakespeare-2m-adamw (AdamW with weight decay). Each run has its
own schedule, down to 0 at its last step. Then ``certkit stability`` measures the largest entries on the test text and proves
what no text exceeds. Runs that lie in FOLDER are gone on with, or only read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import printed
from certkit.text.tokens import load_text

PRESETS = {"lipschitz": "shakespeare-2m", "layernorm": "shakespeare-2m-adamw"}
CONTEXT, BATCH, VALIDATION = 128, 16, 0.02
KEPT = ("subject", "clean", "test_loss", "training", "validation", "largest_norm_over_cap", "spikes", "promise")
LOOKED = ("context", "contexts", "entries", "scores", "fits", "training")


def steps_of(text: str, epochs: int) -> int:
    """How many batches see the training text so many times."""
    tokens = int(load_text(text, "train").record.count * (1 - VALIDATION))
    return epochs * tokens // (BATCH * CONTEXT)


def trained(family: str, text: str, folder: Path, steps: int, changes: list[str]) -> dict[str, Any]:
    """The run in its folder, made or gone on with where it is not there yet."""
    if not (folder / "trained.json").is_file():
        keys = {
            "data.name": text,
            "data.validation": VALIDATION,
            "model.context": CONTEXT,
            "model.blocks": 4,
            "training.batch": BATCH,
            "training.steps": steps,
            "training.refresh": 120,
        }
        told = [*(f"{key}={value}" for key, value in keys.items()), *changes]
        words = [part for one in told for part in ("--set", one)]
        _certkit("train", "--preset", PRESETS[family], *words, "--out", str(folder))
    value = json.loads((folder / "trained.json").read_text(encoding="utf-8"))
    return {"steps": steps, "tokens": steps * BATCH * CONTEXT, "changes": changes, **{k: value[k] for k in KEPT}}


def stable(folder: Path, text: str) -> dict[str, Any]:
    """The largest entries and attention logits of the network, measured on the test text and proved for every text."""
    out = folder / "stability"
    if not (out / "stability.json").is_file():
        _certkit("stability", str(folder), "--data", text, "--out", str(out))
    value = json.loads((out / "stability.json").read_text(encoding="utf-8"))
    largest = {
        name: {"measured": max(one["measured"] for one in value[name]), "certified": _most(value[name])}
        for name in ("entries", "scores")
    }
    return {"largest": largest, **{name: value[name] for name in LOOKED}}


def _most(entries: list[dict[str, Any]]) -> str:
    return str(max((one["certified"] for one in entries), key=float))


def _certkit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "certkit.cli", *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--set", dest="changes", action="append", default=[], help="FAMILY:KEY=VALUE")
    given = parser.parse_args()
    found = []
    for epochs in given.epochs:
        for family in PRESETS:
            own = [text.partition(":")[2] for text in given.changes if text.partition(":")[0] == family]
            folder = given.folder / f"{family}-{epochs}"
            run = trained(family, given.text, folder, steps_of(given.text, epochs), own)
            found.append({"family": family, "epochs": epochs, **run, "stability": stable(folder, given.text)})
    printed("benchmarks.epochs", {"text": Path(given.text).name, "runs": found}, 1)


if __name__ == "__main__":
    main()
