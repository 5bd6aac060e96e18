"""Language models in embedding space: time and memory of certifying, and the figures of finished audits beside the aims.

    certkit language CHECKPOINT --data TEXT --out AUDIT
    certkit stability CHECKPOINT OTHER --data TEXT --out STABILITY
    python -m benchmarks.language CHECKPOINT TEXT --contexts 256 --audits AUDIT --stability STABILITY

Peak memory is that of the whole process, torch included; ``before`` is what it held when the model was loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import printed
from certkit.commands.language import load, table
from certkit.language.certificate import Proof, bounded, proof
from certkit.language.execution import execution
from certkit.text.tokens import load_text

AIMS = {"sound_lipschitz": 2.0, "accuracy": 0.61, "loss": 1.30}


def certified(checkpoint: Path, data: str, *, context: int, contexts: int, eps: list[float]) -> dict[str, Any]:
    """What certifying all positions of these contexts takes, and what it proves."""
    model, subject = load(checkpoint)
    x, y = load_text(data, "test").windows(context, contexts)
    before, started, cpu = _peak(), time.monotonic(), time.process_time()
    bounds = bounded(model, context, max(eps))
    bound_seconds = time.monotonic() - started
    found: Proof = proof(bounds, table(model)[x], eps)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    began = time.monotonic()
    own = execution(bounds, found, table(model)[x])
    executing = time.monotonic() - began
    right = (found.predicted == y.numpy()) & (found.room > 0)
    radius = found.radius(found.everywhere)
    losses = {str(e): float(found.loss(y.numpy(), found.moved(e)).mean()) for e in eps}
    return {
        "network": subject.sha256,
        "architecture": subject.architecture,
        "context": context,
        "contexts": len(x),
        "positions": x.numel(),
        "right": int(right.sum()),
        "loss": float(found.cross_entropy(y.numpy()).mean()),
        "certified": {str(e): int((right & (radius >= e)).sum()) for e in eps},
        "certified_as_executed": {str(e): int((right & (own.everywhere >= max(e, 5e-324))).sum()) for e in eps},
        "certified_loss": losses,
        "median_radius_of_right": float(np.median(radius[right])),
        "median_float_radius_of_right": float(np.median(own.everywhere[right])),
        "pair_error_of_float32_on_the_domain": own.claim.pair_error,
        "radii_tried": len(found.radii),
        "seconds": {"all": seconds, "of it bounds of the graph": bound_seconds, "cpu": cpu, "the execution": executing},
        "peak_memory_mib": {"before": before, "after": _peak()},
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def audit(folder: Path) -> dict[str, Any]:
    """The figures of a language.json, without its ledger and texts, and what is missing to the aims."""
    value = json.loads((folder / "language.json").read_text(encoding="utf-8"))
    kept = ("subject", "context", "contexts", "positions", "verdict", "verdict_reason", "clean", "loss", "slope")
    found = {name: value[name] for name in (*kept, "words", "curves", "losses", "contradictions", "campaign")}
    found["execution"] = {name: value["execution"][name] for name in ("arithmetic", "pair_error", "reasons")}
    searches: dict[str, dict[str, Any]] = {}
    for one in value["substitutions"]:
        held = searches.setdefault(one["kind"], {"searches": 0, "broken": 0, "distances": []})
        held["searches"] += 1
        held["broken"] += one["broken"]
        if one["broken"]:
            held["distances"].append(one["distance"])
    for held in searches.values():
        distances = held.pop("distances")
        held["median_distance_of_broken"] = float(np.median(distances)) if distances else None
    reached = {
        "sound_lipschitz": float(value["slope"]["sound"]),
        "accuracy": value["clean"]["count"] / max(value["clean"]["total"], 1),
        "loss": value["loss"],
    }
    return {
        **found,
        "replaced_tokens": searches,
        "aims": AIMS,
        "reached": reached,
        "seconds": value["provenance"]["seconds"],
    }


def stable(folder: Path) -> list[dict[str, Any]]:
    """The figures of every stability record in a folder."""
    names = ("subject", "context", "contexts", "entries", "scores", "norms", "fits", "training")
    values = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("stability*.json"))]
    return [{name: value[name] for name in names} for value in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--contexts", type=int, default=256)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.0003, 0.001, 0.003])
    parser.add_argument("--audits", type=Path, nargs="*", default=[])
    parser.add_argument("--stability", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = certified(given.checkpoint, given.data, context=given.context, contexts=given.contexts, eps=given.eps)
    audits, looked = [audit(folder) for folder in given.audits], [one for f in given.stability for one in stable(f)]
    printed("benchmarks.language", {"certifying": found, "audits": audits, "stability": looked}, 1)


if __name__ == "__main__":
    main()
