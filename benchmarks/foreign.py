"""Time and memory of certificates for networks of others: ViT-base and GPT-2 (124M) of Hugging Face, weights at random.

    python -m benchmarks.foreign --threads 2 > benchmarks/results/foreign.json

Each is written by ``save_pretrained``, read back as a folder, exported and bounded in a process of its own. The aim for GPT-2
is 60 s and 4 GiB on two cores. The bound of all logit pairs is one number here, as a table of 50,257 times 50,257 equal ones
would not fit a certificate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import printed

NETWORKS = ("vit-base", "gpt2-124m")
REACH = 0.01  # radius that a token's embedding may move by


def folder(name: str, path: Path) -> None:
    """The folder of a network with random weights, as its authors' own package writes it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    if name == "vit-base":
        ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(path)
    else:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(path)


def measured(name: str, path: Path, tokens: int) -> dict[str, Any]:
    """One network from its folder to the bound of its logits: seconds, memory, steps."""
    from certkit.bounds.ledger import Pairs, pair_gain
    from certkit.engine.interpret import Interpreter
    from certkit.engine.program import export
    from certkit.engine.reading import Graph
    from certkit.foreign import huggingface, text

    class OneNumber(Interpreter):
        """One bound for every pair of logits."""

        def _pairs(self, graph: Graph) -> Pairs:
            logits = graph.bounds[self.program.output.name]
            error = logits.within(frozenset()).error * 2
            return Pairs(self.program.output.name, None, None, ((pair_gain(logits),),), error)

    seconds, started = {}, (time.perf_counter(), time.process_time())

    def took(what: str) -> None:
        nonlocal started
        now = time.perf_counter(), time.process_time()
        seconds[what] = {"wall": round(now[0] - started[0], 2), "cpu": round(now[1] - started[1], 2)}
        started = now

    found = huggingface.load(path, normalisation="none" if name == "vit-base" else None)
    took("load")
    shape = (3, 224, 224) if found.embeddings is None else (tokens, found.embeddings.shape[1])
    program = export(found.module, shape)
    took("export")
    box, norm, longest = (0.0, 1.0), "l2", None
    if found.embeddings is not None:
        box, norm, longest = text.box(found, REACH), "token", text.longest(found, REACH)
    ledger = OneNumber(program)(norm, box, token_size=longest)
    took("bounds")
    return {
        "parameters": found.subject.parameters,
        "input": list(shape),
        "norm": norm,
        "box": list(box),
        "operators": sorted({str(node.target) for node in program.nodes}),
        "steps": len(ledger.steps),
        "gain_of_a_pair": str(ledger.pairs.gain[0][0]),
        "float64_error_of_a_pair": str(ledger.pairs.error),
        "seconds": seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def apart(name: str, tokens: int, threads: int) -> dict[str, Any]:
    """The same in a process of its own, so that its memory is its own."""
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-W", "ignore", "-m", "benchmarks.foreign", "--tokens", str(tokens), "--only", name]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        found: dict[str, Any] = {}
        for step in ("write", "measure"):
            made = subprocess.run(
                [*words, "--step", step, "--folder", place], env=environment, stdout=subprocess.PIPE, check=True
            )
            found = json.loads(made.stdout) if step == "measure" else {}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--only", choices=NETWORKS)
    parser.add_argument("--step", choices=["write", "measure"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.step == "write":
        folder(given.only, given.folder)
    elif given.step == "measure":
        print(json.dumps(measured(given.only, given.folder, given.tokens)))
    else:
        names = [given.only] if given.only else NETWORKS
        load = os.getloadavg()[0]
        found = {name: apart(name, given.tokens, given.threads) for name in names}
        printed("benchmarks.foreign", {"load_before": load, **found}, given.threads)


if __name__ == "__main__":
    main()
