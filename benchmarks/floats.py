"""How many samples the claims about a float execution certify, beside the claim about the exact function.

    python -m benchmarks.floats CHECKPOINT --data digits --eps 0.25 --into benchmarks/results/floats.json

One entry per checkpoint and norm; one that stands in the file is replaced. Beside the bound of the error stands the largest
that was observed: the module in that arithmetic against the float64 centre, on the samples themselves.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import commit
from certkit.certified import certified_counts
from certkit.checkpoint import load_into, read
from certkit.data import load
from certkit.engine.certify import proved_rows
from certkit.engine.execute import centres
from certkit.engine.floats import float_claim
from certkit.engine.interpret import Interpreter
from certkit.engine.kernels import deployed
from certkit.engine.program import export
from certkit.machine import environment, pinned
from certkit.models import build
from certkit.records import radii


def measured(checkpoint: Path, name: str, norm: str, eps: list[str], limit: int | None) -> dict[str, Any]:
    """The counts of all three claims, and what the float ones rest on."""
    stored = read(checkpoint)
    assert stored.config is not None
    model, architecture = build(stored.config)
    load_into(model, stored)
    model.eval()
    data = load(name, "test", limit=limit)
    program = export(model, tuple(data.images.shape[1:]))
    interpret = Interpreter(program)
    ledger = interpret(norm, data.box)
    logits = centres(program, data.images).numpy()
    wanted, own = radii(eps), {"index": data.indices.numpy(), "label": data.labels.numpy()}
    found: dict[str, Any] = {
        "subject": {"sha256": stored.sha256, "architecture": architecture},
        "data": data.record.model_dump(),
        "norm": norm,
    }
    for arithmetic, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        executing = interpret(norm, data.box, arithmetic=arithmetic)
        claim = float_claim(program, executing)
        module = copy.deepcopy(model).to(dtype)
        with torch.no_grad(), deployed():
            computed = torch.cat([module(x.to(dtype)).double() for x in torch.split(data.images, 64)]).numpy()
        rows = proved_rows(program, (ledger, executing), claim, data.images, logits, **own)
        assert bool((rows.float_radius <= rows.radius).all())
        found["clean"] = int(rows.correct.sum())
        found["exact"] = {
            "certified": {at.eps.text: at.certified.count for at in certified_counts(rows, wanted)},
            "pair_error": ledger.pairs.error.to_float(),
        }
        found[arithmetic] = {
            "certified": {e.text: int((rows.correct & (rows.float_radius >= e.value)).sum()) for e in wanted},
            "pair_error": claim.pair_error,
            "twice_the_largest_observed": 2 * float(np.abs(computed - logits).max()),
            "reasons": claim.reasons,
            "assumptions": claim.assumptions,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--norm", default="l2")
    parser.add_argument("--eps", default="0.1,0.25,0.5")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--into", type=Path, required=True)
    given = parser.parse_args()
    with pinned(1) as threads:
        found = measured(given.checkpoint, given.data, given.norm, given.eps.split(","), given.limit)
    # neither the checkpoint's place nor the data's is anybody's business: their digests stand below
    words = ["python", "-m", "benchmarks.floats", "CHECKPOINT", "--norm", given.norm, "--eps", given.eps]
    entry = {
        "command": " ".join(words),
        "commit": commit(),
        "environment": environment("cpu", threads).model_dump(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **found,
    }
    kept = json.loads(given.into.read_text()) if given.into.exists() else []
    kept = [e for e in kept if (e["subject"]["sha256"], e["norm"]) != (entry["subject"]["sha256"], entry["norm"])]
    given.into.write_text(json.dumps([*kept, entry], indent=1) + "\n")
    print(json.dumps(entry, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
