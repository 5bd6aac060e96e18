"""The standard suite beside a plain Foolbox loop, beside a public AutoAttack, under kills, workers and block sizes.

    python -m benchmarks.attacks > benchmarks/results/attacks.json
    python -m benchmarks.attacks CHECKPOINT --data digits --norm l2 --eps 0.1,0.25,0.5 --only loop,autoattack

Without a checkpoint: kills, workers and blocks, on a small network with brief attacks, as bytes do not depend on how hard
an attack tries. Kills are SIGKILL at random moments of one campaign; units that run twice are counted from its log. With
one, or with ``cnn`` (trained here, a minute of one core), ``--only`` picks some of: loop, autoattack, kills, workers,
blocks. The plain loop runs the suite's Foolbox attacks as Foolbox's own manual does: every eps from scratch, every restart
on every sample, its success believed; an attack without a random start takes its restarts as steps instead. Square, which
Foolbox lacks, is certkit's alone. AutoAttack is the PyPI package pyautoattack, which the comparison needs and certkit does
not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
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
from certkit.campaign import Campaign
from certkit.commands.loading import load_model
from certkit.data import Dataset, load
from certkit.machine import pinned
from certkit.records import radii

CRASHES = ("kills", "workers", "blocks")
PARTS = ("loop", "autoattack", *CRASHES)
BRIEF = ("DDN:steps=10,restarts=2,bisection=4", "APGD-T:steps=10,restarts=2", "Square:queries=20")


def standing(campaign: Campaign) -> dict[str, int]:
    """How many samples withstand each radius."""
    return {eps.text: int(campaign.robust(eps.value).sum()) for eps in campaign.plan.threat.eps}


def ours(given: argparse.Namespace, model: torch.nn.Module, data: Dataset, **more: Any) -> tuple[Campaign, float]:
    """The campaign and the processor seconds it took: one thread, so that others on the machine do not count."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        options = {"norm": given.norm, "eps": given.eps.split(","), "suite": given.suite, **more}
        campaign = certkit.attack(model, data, out=Path(folder), **options)
        return campaign, time.process_time() - began


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
        restarts = int(settings.get("restarts", 1))
        if method.role == "minimum":
            own, restarts = {**own, "steps": int(own["steps"]) * restarts}, 1
        if name == "HopSkipJump":
            own["init_attack"] = foolbox.attacks.DatasetAttack()
            own["init_attack"].feed(fmodel, data.images)
        attack = getattr(foolbox.attacks, kind)(**own)
        for start in range(0, len(data.labels), 64):
            rows = slice(start, start + 64)
            for _ in range(restarts):
                _, _, success = attack(fmodel, data.images[rows], data.labels[rows], epsilons=eps)
                broken[:, rows] |= success.numpy()
    found = {text: int((~broken[k]).sum()) for k, text in enumerate(e.text for e in radii(given.eps.split(",")))}
    return {"cpu_seconds": time.process_time() - began, "withstand": found}


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


def begun(given: argparse.Namespace, model: torch.nn.Module, data: Dataset, out: Path, **more: Any) -> Campaign:
    """The campaign of the crash tests, in a folder that stays."""
    named = {"suite": given.suite} if given.checkpoint else {"suite": "none", "attacks": BRIEF}
    return certkit.attack(model, data, norm=given.norm, eps=given.eps.split(","), out=out, **{**named, **more})


def bytes_of(out: Path) -> dict[str, bytes]:
    folder = out / "campaign"
    files = [folder / "plan.json", folder / "checks.json", *(folder / "shards").glob("*.parquet")]
    return {path.name: path.read_bytes() for path in files}


def logged(out: Path, event: str) -> list[dict[str, Any]]:
    path = out / "campaign" / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def kills(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """So many SIGKILLs inside one campaign, then a run to the end, against a campaign that nobody disturbed.

    Each life is a fork, so that it spends its time in the campaign and not in imports. It is killed at a random moment of
    the next two units once a random number of units is there; the numbers go from none to all.
    """
    draw, moments = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        calm, out = Path(folder, "calm"), Path(folder, "killed")
        began = time.monotonic()
        begun(given, model, data, calm, block=8)
        seconds, total = time.monotonic() - began, len(bytes_of(calm)) - 2
        for goal in sorted(draw.randrange(total) for _ in range(given.kills)):
            lives = len(logged(out, "start"))
            if (child := os.fork()) == 0:
                begun(given, model, data, out, block=8)
                os._exit(0)
            while len(logged(out, "start")) == lives or len(list((out / "campaign" / "shards").glob("*"))) < goal:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 2 * seconds / total))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                moments.append(len(list((out / "campaign" / "shards").glob("*.parquet"))))
        left = total - moments[-1]
        campaign = begun(given, model, data, out, block=8)
        runs = Counter(entry["unit"] for entry in logged(out, "unit"))
        return {
            "kills": given.kills,
            "landed": len(moments),
            "units_there_at_each_kill": moments,
            "units_left_to_the_last_run": left,
            "seconds_undisturbed": round(seconds, 1),
            "units": campaign.units_planned,
            "units_run_twice": sum(count > 1 for count in runs.values()),
            "units_lost": campaign.units_planned - campaign.units_executed,
            "byte_identical": bytes_of(out) == bytes_of(calm),
        }


def workers(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """The same bytes from 1, 2 and 4 workers."""
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2, 4):
            begun(given, model, data, Path(folder, str(count)), workers=count, block=16)
            seen.append(bytes_of(Path(folder, str(count))))
    return {"workers": [1, 2, 4], "files": len(seen[0]), "byte_identical": all(one == seen[0] for one in seen)}


def blocks(given: argparse.Namespace, model: torch.nn.Module, data: Dataset) -> dict[str, Any]:
    """Each block size run twice for its bytes; verdicts over block sizes, and where they differ, both distances."""
    campaigns, again = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for size in (7, 64, 500):
            first, second = Path(folder, f"{size}"), Path(folder, f"{size} again")
            campaigns[size] = begun(given, model, data, first, block=size)
            begun(given, model, data, second, block=size)
            again[str(size)] = bytes_of(first) == bytes_of(second)
    differ, total = [], 0
    for eps in campaigns[64].plan.threat.eps:
        robust = {size: campaign.robust(eps.value) for size, campaign in campaigns.items()}
        total += len(data.labels)
        for row in np.flatnonzero((robust[7] != robust[64]) | (robust[500] != robust[64])):
            distances = {str(size): campaign.at(int(row)) for size, campaign in campaigns.items()}
            differ.append({"sample": int(data.indices[row]), "eps": eps.text, "distances": distances})
    equal = 1 - len(differ) / total
    return {"sizes": [7, 64, 500], "byte_identical_again": again, "pairs": total, "equal": equal, "differ": differ}


def small(given: argparse.Namespace) -> tuple[torch.nn.Module, Dataset]:
    """A network of 43 parameters whose three classes meet in the middle of the box, and samples that it labels itself."""
    torch.manual_seed(0)
    last = torch.nn.Linear(5, 3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.GELU(), last).eval()
    images = torch.rand(given.limit or 520, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        last.bias -= model(torch.full((1, 1, 2, 2), 0.5))[0]
        labels = model(images).argmax(1)
    return model, Dataset.of(images, labels, name="small")


def cnn(data: Dataset) -> torch.nn.Module:
    """Two convolutions and two linear maps with ReLU between them, for images of one channel; trained without defence."""
    torch.manual_seed(0)
    nn, side = torch.nn, data.images.shape[-1] // 4
    windows = [
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
    ]
    model = nn.Sequential(*windows, nn.Flatten(), nn.Linear(32 * side**2, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer, order = torch.optim.Adam(model.parameters(), 2e-3), torch.Generator().manual_seed(0)
    for _ in range(2):
        for rows in torch.randperm(len(data.labels), generator=order).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data.images[rows]), data.labels[rows]).backward()
            optimizer.step()
    return model.eval()


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a folder, or cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--norm", default="l2")
    parser.add_argument("--eps")
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--only")
    given = parser.parse_args(words)
    given.eps = given.eps or ("0.1,0.25,0.5,0.75" if given.checkpoint else "0.02,0.1")
    return given


def main() -> None:
    given = parsed(sys.argv[1:])
    parts = given.only.split(",") if given.only else PARTS if given.checkpoint else CRASHES
    found: dict[str, Any] = {}
    if given.checkpoint:
        data = load(given.data, "test", limit=given.limit)
        if given.checkpoint == "cnn":
            model, found["training"] = cnn(load(given.data, "train")), "two epochs of Adam, learning rate 0.002, seed 0"
        else:
            model = load_model(Path(given.checkpoint))[0]
    elif unknown := sorted({*parts} - {*CRASHES}):
        raise SystemExit(f"{unknown[0]} needs a checkpoint")
    else:
        model, data = small(given)
    found["samples"] = len(data.labels)
    with pinned(None) as threads:
        if {"loop", "autoattack"} & set(parts):
            campaign, seconds = ours(given, model, data)
            found["certkit"] = {
                "cpu_seconds": seconds,
                "withstand": standing(campaign),
                "right": int(campaign.clean_correct.sum()),
                "validity": campaign.validity,
                "not_passed": {one.id: one.figure for one in campaign.checks if one.status != "pass"},
            }
        if "loop" in parts:
            found["foolbox_loop"] = plain_loop(given, model, data)
            found["loop_over_certkit"] = round(
                found["foolbox_loop"]["cpu_seconds"] / found["certkit"]["cpu_seconds"], 2
            )
            for one in ("certkit", "foolbox_loop"):
                found[one]["cpu_seconds"] = round(found[one]["cpu_seconds"], 1)
        if "autoattack" in parts:
            found["autoattack"] = autoattack(given, model, data)
        if "kills" in parts:
            found["kills"] = kills(given, model, data)
        if "workers" in parts:
            found["workers"] = workers(given, model, data)
        if "blocks" in parts:
            found["blocks"] = blocks(given, model, data)
        printed("benchmarks.attacks", found, threads)


if __name__ == "__main__":
    main()
