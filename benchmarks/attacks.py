"""The standard suite beside a plain Foolbox loop, beside a public AutoAttack, under kills, workers and block sizes.

    python -m benchmarks.attacks CHECKPOINT --data digits --norm l2 --eps 0.1,0.25,0.5 > benchmarks/results/attacks.json

``--only`` picks some of: loop, autoattack, kills, workers, blocks. The plain loop runs the suite's Foolbox attacks as
Foolbox's own manual does: every eps from scratch, every restart on every sample, its success believed. AutoAttack is the
PyPI package pyautoattack, which the comparison needs and certkit does not. Kills are SIGKILL at random moments of one
campaign with two workers; units that run twice are counted from its log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import certkit
from benchmarks.common import printed
from certkit.attacks.suites import OWN, SUITES, method_of
from certkit.campaign import Campaign, load_campaign
from certkit.commands.loading import load_model
from certkit.data import Dataset, load
from certkit.machine import pinned
from certkit.records import radii

PARTS = ("loop", "autoattack", "kills", "workers", "blocks")


def standing(campaign: Campaign) -> dict[str, int]:
    """How many samples withstand each radius."""
    return {eps.text: int(campaign.robust(eps.value).sum()) for eps in campaign.plan.threat.eps}


def ours(given: argparse.Namespace, model: torch.nn.Module, data: Dataset, **more: Any) -> tuple[Campaign, float]:
    """The campaign and the processor seconds it took: one thread, so that others on the machine do not count."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        options = {"norm": given.norm, "eps": given.eps.split(","), "suite": given.suite, **more}
        campaign = certkit.attack(model, data, out=Path(folder), **options)
        return campaign, round(time.process_time() - began, 1)


def plain_loop(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """Foolbox's attacks of the suite, one by one, on every sample at every radius; APGD by its nearest kin there, PGD."""
    import foolbox

    fmodel = foolbox.PyTorchModel(model, bounds=data.box, device="cpu")
    eps = [one.value for one in radii(given.eps.split(","))]
    kin = {"l2": "L2ProjectedGradientDescentAttack", "linf": "LinfProjectedGradientDescentAttack"}
    broken = np.zeros((len(eps), len(data.labels)), np.bool_)
    began = time.process_time()
    for name, settings in SUITES[given.suite][given.norm].items():
        method = method_of(name)
        if name == "Square":
            continue
        kind = method.kind if method.source == "foolbox" else kin[given.norm]
        own = {key: value for key, value in settings.items() if key not in OWN and key != "queries"}
        attack = getattr(foolbox.attacks, kind)(**own)
        for start in range(0, len(data.labels), 64):
            rows = slice(start, start + 64)
            for _ in range(int(settings.get("restarts", 1))):
                _, _, success = attack(fmodel, data.images[rows], data.labels[rows], epsilons=eps)
                broken[:, rows] |= success.numpy()
    found = {text: int((~broken[k]).sum()) for k, text in enumerate(e.text for e in radii(given.eps.split(",")))}
    return {"cpu_seconds": round(time.process_time() - began, 1), "withstand": found}


def autoattack(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """The standard version of the public re-implementation, once per radius."""
    from pyautoattack import AutoAttack

    found, began = {}, time.process_time()
    for eps in radii(given.eps.split(",")):
        attack = AutoAttack(
            model,
            norm={"l2": "L2", "linf": "Linf"}[given.norm],
            eps=eps.value,
            version="standard",
            device="cpu",
            seed=0,
        )
        made = attack.run_standard_evaluation(data.images, data.labels, batch_size=64)
        examples = made[0] if isinstance(made, tuple) else made
        with torch.no_grad():
            found[eps.text] = int((model(examples).argmax(1) == data.labels).sum())
    return {"cpu_seconds": round(time.process_time() - began, 1), "withstand": found}


CAMPAIGN = """
import sys
from pathlib import Path
import benchmarks.attacks as b
if __name__ == "__main__":
    given = b.parsed(sys.argv[2:])
    model, _ = b.load_model(given.checkpoint)
    data = b.load(given.data, "test", limit=given.limit)
    import certkit
    certkit.attack(model, data, norm=given.norm, eps=given.eps.split(","), suite=given.suite, out=Path(sys.argv[1]), workers=2, block=16)
"""


def bytes_of(out: Path) -> dict[str, bytes]:
    folder = out / "campaign"
    files = [folder / "plan.json", folder / "checks.json", *(folder / "shards").glob("*.parquet")]
    return {path.name: path.read_bytes() for path in files}


def kills(given: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """So many SIGKILLs at random moments, then a run to the end, against a campaign that nobody disturbed."""
    draw, landed = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "campaign.py")
        program.write_text(CAMPAIGN)
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}

        def begun(out: Path) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, str(program), str(out), *words], env=environment)

        began = time.monotonic()
        if begun(Path(folder, "calm")).wait():
            raise SystemExit("the undisturbed campaign failed")
        whole, out = time.monotonic() - began, Path(folder, "killed")
        for _ in range(given.kills):
            child = begun(out)
            try:
                child.wait(timeout=draw.uniform(0.2, 1.0) * whole)
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
                landed += 1
        last = begun(out).wait()
        lines = [json.loads(line) for line in (out / "campaign" / "log.jsonl").read_text().splitlines()]
        runs = Counter(line["unit"] for line in lines if line["event"] == "unit")
        campaign = load_campaign(out)
        return {
            "kills": given.kills,
            "landed": landed,
            "last_exit_code": last,
            "units": campaign.units_planned,
            "units_run_twice": sum(count > 1 for count in runs.values()),
            "byte_identical": bytes_of(out) == bytes_of(Path(folder, "calm")),
        }


def workers(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """The same bytes from 1, 2 and 4 workers."""
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2, 4):
            out = Path(folder, str(count))
            certkit.attack(
                model,
                data,
                norm=given.norm,
                eps=given.eps.split(","),
                suite=given.suite,
                out=out,
                workers=count,
                block=16,
            )
            seen.append(bytes_of(out))
    return {"workers": [1, 2, 4], "files": len(seen[0]), "byte_identical": all(one == seen[0] for one in seen)}


def blocks(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """Verdicts over block sizes; where they differ, both distances."""
    campaigns = {size: ours(given, model, data, block=size)[0] for size in (7, 64, 500)}
    differ, total = [], 0
    for eps in campaigns[64].plan.threat.eps:
        robust = {size: campaign.robust(eps.value) for size, campaign in campaigns.items()}
        total += len(data.labels)
        for row in np.flatnonzero((robust[7] != robust[64]) | (robust[500] != robust[64])):
            distances = {str(size): campaign.at(int(row)) for size, campaign in campaigns.items()}
            differ.append({"sample": int(data.indices[row]), "eps": eps.text, "distances": distances})
    return {"sizes": [7, 64, 500], "pairs": total, "equal": 1 - len(differ) / total, "differ": differ}


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--norm", default="l2")
    parser.add_argument("--eps", default="0.1,0.25,0.5,0.75")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only", default=",".join(PARTS))
    return parser.parse_args(words)


def main() -> None:
    words = sys.argv[1:]
    given = parsed(words)
    parts = given.only.split(",")
    model, _ = load_model(given.checkpoint)
    data = load(given.data, "test", limit=given.limit)
    found: dict[str, Any] = {"samples": len(data.labels)}
    with pinned(None) as threads:
        if {"loop", "autoattack"} & set(parts):
            campaign, seconds = ours(given, model, data)
            found["certkit"] = {"cpu_seconds": seconds, "withstand": standing(campaign), "validity": campaign.validity}
        if "loop" in parts:
            found["foolbox_loop"] = plain_loop(given, model, data)
            found["loop_over_certkit"] = round(
                found["foolbox_loop"]["cpu_seconds"] / found["certkit"]["cpu_seconds"], 2
            )
        if "autoattack" in parts:
            found["autoattack"] = autoattack(given, model, data)
        if "kills" in parts:
            found["kills"] = kills(given, words)
        if "workers" in parts:
            found["workers"] = workers(given, model, data)
        if "blocks" in parts:
            found["blocks"] = blocks(given, model, data)
        printed("benchmarks.attacks", found, threads)


if __name__ == "__main__":
    main()
