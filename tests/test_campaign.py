"""The campaign on disk: the same bytes whatever happened on the way, nothing run twice, nothing overwritten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from certkit.attacks import attack, probes, suites
from certkit.attacks.probes import Probes
from certkit.attacks.store import encode
from certkit.campaign import Campaign, distance_up, load_campaign, units
from certkit.errors import CertkitError, ConfigError, DataError, Incomplete, RecordError, Tampered
from certkit.files import load
from certkit.machine import environment
from certkit.records import Data, Plan, Subject
from certkit.shards import Shard, read_shard

SUBJECT = Subject(sha256="1" * 64, architecture="test", parameters=51)

# The attacks of the quick suite with fewer steps: what lies on disk does not depend on how hard they try.
BRIEF = {
    "l2": {
        "L2 noise floor": {"repeats": 2},
        "DDN": {"steps": 10, "restarts": 2, "losses": "library, rival 1", "bisection": 4},
        "L2-PGD": {"steps": 3, "rel_stepsize": 0.5, "restarts": 2, "bisection": 4},
    }
}


@dataclass(frozen=True)
class Samples:
    images: Tensor
    labels: Tensor
    indices: Tensor
    record: Data
    box: tuple[float, float] = (0.0, 1.0)


def network() -> nn.Module:
    """A small classifier whose boundaries meet in the middle of the box."""
    torch.manual_seed(0)
    last = nn.Linear(5, 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.GELU(), last).eval()
    with torch.no_grad():
        last.bias -= model(torch.full((1, 1, 2, 2), 0.5))[0]
    return model


def samples(count: int = 20) -> Samples:
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        labels = network()(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    record = Data(name="toy", split="test", count=count, sha256="0" * 64, classes=("a", "b", "c"))
    return Samples(images, labels, torch.arange(count) * 3, record)


def run(out: Path, data: Samples | None = None, model: nn.Module | None = None, **given: Any) -> Campaign:
    options = {"norm": "l2", "eps": ["0.02", "0.1"], "block": 8, **given}
    brief = (patch.object(Probes, "square", lambda self: None), patch.object(probes, "DRAWS", 2))
    with patch.dict(suites.SUITES, quick=BRIEF), brief[0], brief[1]:
        return attack(model or network(), data or samples(), subject=SUBJECT, out=out, **options)


def stored(out: Path) -> dict[str, bytes]:
    """Every file of the campaign but its log and its lock."""
    files = [path for path in (out / "campaign").rglob("*") if path.is_file()]
    return {str(p.relative_to(out)): p.read_bytes() for p in files if p.name not in ("log.jsonl", ".lock")}


def executed(out: Path) -> int:
    """How many units were run, over all runs."""
    lines = (out / "campaign" / "log.jsonl").read_text().splitlines()
    return sum(json.loads(line)["event"] == "unit" for line in lines)


def shards(out: Path) -> list[Path]:
    return sorted((out / "campaign" / "shards").glob("*.parquet"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    campaign = run(out)
    # Something is found by the attacks, something is not, and something was wrong to begin with.
    assert all(summary.attacked > 0 for summary in campaign.summaries)
    assert 0 < campaign.robust(0.1).sum() < campaign.clean_correct.sum() < len(campaign.index)
    return out


UNITS = 3 * (1 + 3)  # blocks of 8, 8 and 4 samples; no attack and three


# The same bytes


def test_two_runs_of_one_plan_give_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    torch.rand(5)  # the state of torch's global stream is no part of a plan
    run(tmp_path)
    assert stored(tmp_path) == stored(undisturbed)
    assert len(shards(tmp_path)) == UNITS


def test_another_seed_gives_other_shards(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path, seed=1)
    assert not {path.name for path in shards(tmp_path)} & {path.name for path in shards(undisturbed)}


def test_a_finished_campaign_runs_nothing_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = stored(tmp_path)
    again = run(tmp_path)
    assert executed(tmp_path) == UNITS == again.units_executed == again.units_planned
    assert stored(tmp_path) == before
    assert np.array_equal(first.distance, again.distance, equal_nan=True)


@pytest.mark.parametrize("keep", range(0, UNITS, 3))
def test_resuming_runs_what_is_missing_and_gives_the_same_bytes(keep: int, undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path)
    for path in shards(tmp_path)[keep:]:
        path.unlink()
    (tmp_path / "campaign" / "checks.json").unlink()
    run(tmp_path)
    assert executed(tmp_path) == UNITS + (UNITS - keep)
    assert stored(tmp_path) == stored(undisturbed)


@pytest.mark.parametrize("after", [1, 4, 6, UNITS - 1])
def test_an_interrupted_campaign_resumes_where_it_stopped(after: int, undisturbed: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=interrupt)
    assert len(shards(tmp_path)) == after
    with pytest.raises(Incomplete) as caught:
        load_campaign(tmp_path)
    folder = tmp_path / "campaign"
    assert str(caught.value) == (
        f"{folder}: {UNITS - after} of {UNITS} parts of the campaign are missing; run the same attack again"
    )
    run(tmp_path)
    assert executed(tmp_path) == UNITS
    assert stored(tmp_path) == stored(undisturbed)


KILLED = """
import importlib.util, json, os, signal, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("laws", sys.argv[1])
laws = sys.modules["laws"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(laws)
out, rename, seen = Path(sys.argv[2]), Path.replace, []
for last in map(int, sys.argv[3:]):
    if (child := os.fork()) == 0:
        renames = 0
        def killed(self, target):
            global renames
            renames += 1
            if renames == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)
        Path.replace = killed
        laws.run(out)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    left = list((out / "campaign").rglob(".*.tmp"))
    seen.append([os.WTERMSIG(status), len(laws.shards(out)), len(left)])
print(json.dumps(seen))
"""


def test_a_campaign_killed_before_its_renames_loses_no_finished_unit(undisturbed: Path, tmp_path: Path) -> None:
    # The plan is the first file to be renamed; each process dies with its next file written but not yet in place.
    deaths = {1: 0, 2: 0, 4: 3, 3: 5, 5: 9}  # the rename each dies at, and the shards there are then
    command = [sys.executable, "-c", KILLED, __file__, str(tmp_path), *map(str, deaths)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [[signal.SIGKILL, finished, 1] for finished in deaths.values()]
    run(tmp_path)
    assert executed(tmp_path) == UNITS
    assert stored(tmp_path) == stored(undisturbed)


# Reading back


def test_a_campaign_reads_back_as_it_was_returned(tmp_path: Path) -> None:
    returned = run(tmp_path)
    read = load_campaign(tmp_path)
    for name in ("index", "label", "prediction", "clean_correct", "adversarial_prediction"):
        assert np.array_equal(getattr(read, name), getattr(returned, name))
    assert np.array_equal(read.distance, returned.distance, equal_nan=True)
    assert np.array_equal(read.adversarial, returned.adversarial, equal_nan=True)
    assert (read.plan, read.attack, read.checks) == (returned.plan, returned.attack, returned.checks)
    assert read.summary() == returned.summary()
    assert read.index.tolist() == samples().indices.tolist()


def test_reading_a_campaign_needs_no_torch(undisturbed: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from certkit.campaign import load_campaign;"
        "load_campaign(Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(undisturbed)], check=False).returncode == 0


def test_importing_the_package_loads_no_torch() -> None:
    program = "import sys, certkit.attacks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_shard_is_plain_parquet_without_times(undisturbed: Path) -> None:
    table = pq.read_table(shards(undisturbed)[0])
    names = ["index", "label", "attack", "attacked", "found", "silent", "distance", "prediction", "adversarial"]
    assert table.column_names == names
    stored_text = b"".join(path.read_bytes() for path in shards(undisturbed))
    assert b"seconds" not in stored_text
    assert b"seconds" in (undisturbed / "campaign" / "log.jsonl").read_bytes()


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def another(path: Path) -> None:
    path.write_bytes(next(other for other in shards(path.parents[2]) if other != path).read_bytes())


def edited(path: Path) -> None:
    table = pq.read_table(path)
    labels = pa.array([(label + 1) % 3 for label in table["label"].to_pylist()], pa.int64())
    pq.write_table(table.set_column(1, "label", labels), path)


def renamed(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["sample", *table.column_names[1:]]), path)


DAMAGE: dict[str, tuple[Callable[[Path], None], type[CertkitError], str]] = {
    "empty": (nothing, RecordError, "not a readable shard ("),
    "truncated": (truncated, RecordError, "not a readable shard ("),
    "another unit's": (
        another,
        Tampered,
        "it belongs to another part of the campaign; delete this file and run the same attack again",
    ),
    "edited": (
        edited,
        Tampered,
        "its values do not match their digest; delete this file and run the same attack again",
    ),
    "of other columns": (
        renamed,
        Tampered,
        "its columns are not those of a shard; delete this file and run the same attack again",
    ),
}


def without(name: str) -> Callable[[Path], None]:
    """The first value of a column taken away."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        at = table.schema.get_field_index(name)
        values = pa.array([None, *table[name].to_pylist()[1:]], table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), values), path)

    return damage


def shaped(shape: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"certkit.shape": shape.encode()}), path)

    return damage


def longer(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table] * 50), path)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    **{
        f"no {name}": (without(name), "a value is missing")
        for name in ("index", "label", "attacked", "found", "silent")
    },
    "more rows": (longer, "it belongs to another part of the campaign"),
    "samples of any size": (shaped("[10000000000000]"), "its examples are not of the shape that it states"),
    "a deep shape": (shaped("[" * 100_000), "not a readable shard ("),
    "no such shape": (shaped("[5]"), "its examples are not of the shape that it states"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shard_that_wants_to_be_misread_is_refused_in_one_line(name: str, undisturbed: Path, tmp_path: Path) -> None:
    damage, message = HOSTILE[name]
    unit = next(units(load(Plan, undisturbed / "campaign" / "plan.json")))[2]
    path = tmp_path / unit.name
    path.write_bytes((undisturbed / "campaign" / "shards" / unit.name).read_bytes())
    damage(path)
    with pytest.raises(RecordError) as caught:
        read_shard(path, unit)
    assert str(caught.value).startswith(f"{unit.name}: {message}")
    assert "\n" not in str(caught.value)


def test_a_clean_shard_of_samples_that_no_memory_holds_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    unit = next(units(load(Plan, undisturbed / "campaign" / "plan.json")))[0]
    path = tmp_path / unit.name
    path.write_bytes((undisturbed / "campaign" / "shards" / unit.name).read_bytes())
    shaped("[10000000000000]")(path)
    with pytest.raises(RecordError, match=r"not a readable shard \(Unable to allocate"):
        read_shard(path, unit)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_refused_when_read_and_run_again_when_resumed(
    name: str, undisturbed: Path, tmp_path: Path
) -> None:
    damage, kind, message = DAMAGE[name]
    run(tmp_path)
    path = shards(tmp_path)[5]
    damage(path)
    with pytest.raises(kind) as caught:
        load_campaign(tmp_path)
    assert str(caught.value).startswith(f"{path.name}: {message}")
    assert "\n" not in str(caught.value)
    run(tmp_path)
    assert executed(tmp_path) == UNITS + 1
    assert stored(tmp_path) == stored(undisturbed)


def test_a_shard_that_claims_an_infinite_distance_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    plan = load(Plan, undisturbed / "campaign" / "plan.json")
    unit = next(units(plan))[2]
    shard = read_shard(undisturbed / "campaign" / "shards" / unit.name, unit)
    path = tmp_path / unit.name
    path.write_bytes(encode(unit, replace(shard, distance=np.where(shard.found, np.inf, np.nan))))
    with pytest.raises(Tampered, match="a distance or an example is not finite"):
        read_shard(path, unit)


def test_a_folder_without_a_plan_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as caught:
        load_campaign(tmp_path)
    folder = tmp_path / "campaign"
    assert str(caught.value) == f"{folder}: no plan.json, so no campaign; run certkit attack with --out {tmp_path}"


def rewritten(out: Path, name: str, change: Callable[[Any], None]) -> None:
    path = out / "campaign" / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_missing_checks_are_no_pass_and_the_next_run_writes_them_again(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path)
    folder = tmp_path / "campaign"
    (folder / "checks.json").unlink()
    with pytest.raises(Incomplete) as caught:
        load_campaign(tmp_path)
    assert str(caught.value) == f"{folder}: the campaign's checks are missing; run the same attack again"
    run(tmp_path)
    assert executed(tmp_path) == UNITS
    assert stored(tmp_path) == stored(undisturbed)


def test_edited_checks_are_refused_and_the_next_run_writes_them_again(undisturbed: Path, tmp_path: Path) -> None:
    run(tmp_path)
    rewritten(tmp_path, "checks.json", lambda held: held["checks"][0].update(status="not evaluated"))
    with pytest.raises(Tampered) as caught:
        load_campaign(tmp_path)
    assert str(caught.value) == (
        "checks.json: these are not the checks of the shards beside it; run the same attack again"
    )
    run(tmp_path)
    assert stored(tmp_path) == stored(undisturbed)


def test_the_checks_of_another_campaign_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    rewritten(tmp_path, "checks.json", lambda held: held.update(plan_sha256="0" * 64))
    with pytest.raises(Tampered, match=r"^checks\.json: belongs to another campaign; run the same attack again$"):
        load_campaign(tmp_path)


def forged(out: Path, number: int, change: Callable[[Shard], Shard]) -> None:
    """Change the first block's ``number``-th shard as one who knows the format would: its digest agrees."""
    unit = next(units(load(Plan, out / "campaign" / "plan.json")))[number]
    path = out / "campaign" / "shards" / unit.name
    path.write_bytes(encode(unit, change(read_shard(path, unit))))


def test_a_shard_with_a_consistent_digest_is_refused_beside_the_checks_of_the_true_one(tmp_path: Path) -> None:
    run(tmp_path, eps=["0"])  # at radius 0 only DDN runs, so that its distances decide of nobody else
    forged(tmp_path, 2, lambda shard: replace(shard, distance=shard.distance * 2))
    with pytest.raises(Tampered, match="these are not the checks of the shards beside it"):
        load_campaign(tmp_path)


def nobody(shard: Shard) -> Shard:
    none = np.zeros(len(shard.index), np.bool_)
    return replace(
        shard, attacked=none, found=none, distance=np.full(len(none), np.nan), prediction=np.full(len(none), -1)
    )


def everybody(shard: Shard) -> Shard:
    return replace(shard, attacked=np.ones(len(shard.index), np.bool_))


@pytest.mark.parametrize("change", [nobody, everybody])
@pytest.mark.parametrize("number", range(1, 4))
def test_a_shard_that_attacked_others_than_the_plan_gives_it_is_refused(
    number: int, change: Callable[[Shard], Shard], tmp_path: Path
) -> None:
    run(tmp_path)
    forged(tmp_path, number, change)
    with pytest.raises(Tampered) as caught:
        load_campaign(tmp_path)
    assert str(caught.value) == (
        f"a shard of {list(BRIEF['l2'])[number - 1]} did not attack the samples that the plan gives it; "
        "run the attack again into an empty folder"
    )


def claimed(shard: Shard, distance: float, to: int) -> Shard:
    """Everyone who was attacked broken there, by a class so far from the label."""
    asked = shard.attacked
    return replace(
        shard,
        found=asked,
        distance=np.where(asked, distance, np.nan),
        prediction=np.where(asked, (shard.label + to) % 3, -1),
        adversarial=np.where(asked.reshape(-1, 1, 1, 1), np.float32(0.5), np.float32(np.nan)),
    )


@pytest.mark.parametrize(("distance", "to"), [(0.05, 0), (0.2, 1)])
def test_a_shard_with_examples_that_do_not_count_is_refused(distance: float, to: int, tmp_path: Path) -> None:
    run(tmp_path)
    forged(tmp_path, 3, lambda shard: claimed(shard, distance, to))
    with pytest.raises(Tampered) as caught:
        load_campaign(tmp_path)
    assert str(caught.value) == (
        "a shard of L2-PGD counts an example that does not count under this threat; "
        "run the attack again into an empty folder"
    )


def test_a_clean_shard_that_claims_to_attack_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    forged(tmp_path, 0, everybody)
    with pytest.raises(Tampered, match="did not attack the samples that the plan gives it"):
        load_campaign(tmp_path)


EDITS: dict[str, Callable[[Any], None]] = {
    "more samples than any folder holds": lambda plan: plan["data"].update(count=10**15),
    "no samples": lambda plan: plan["data"].update(count=0),
    "another seed": lambda plan: plan.update(seed=1),
    "another role": lambda plan: plan.update(roles=["floor"] * 3),
    "another version": lambda plan: plan["environment"].update(torch="0"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_plan_is_refused_before_its_units_are_listed(name: str, tmp_path: Path) -> None:
    run(tmp_path)
    rewritten(tmp_path, "plan.json", EDITS[name])
    with pytest.raises(Tampered) as caught:
        load_campaign(tmp_path)
    assert str(caught.value) == (
        "plan.json: none of the parts beside it belongs to this plan; run the attack again into an empty folder"
    )


def test_a_plan_alone_is_incomplete_however_many_units_it_claims(tmp_path: Path) -> None:
    run(tmp_path)
    for path in shards(tmp_path):
        path.unlink()
    rewritten(tmp_path, "plan.json", lambda plan: plan["data"].update(count=8 * 10**15))
    with pytest.raises(Incomplete, match=r"4000000000000000 of 4000000000000000 parts of the campaign are missing"):
        load_campaign(tmp_path)


def test_a_plan_gives_each_attack_a_role(tmp_path: Path) -> None:
    run(tmp_path)
    rewritten(tmp_path, "plan.json", lambda plan: plan["roles"].pop())
    with pytest.raises(RecordError, match="3 attacks come with 2 roles"):
        load_campaign(tmp_path)


# Refusals: one line, and nothing is overwritten


def test_a_campaign_is_not_resumed_with_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    before = stored(tmp_path)
    upgraded = environment("cpu", 1).model_copy(update={"torch": "99.0"})
    monkeypatch.setattr("certkit.attacks.run.environment", lambda device, threads: upgraded)
    with pytest.raises(ConfigError, match=r"they differ in environment\); choose another --out$"):
        run(tmp_path)
    assert stored(tmp_path) == before


def test_a_store_of_another_plan_is_refused_and_kept(tmp_path: Path) -> None:
    held = run(tmp_path).plan.sha256
    before = stored(tmp_path)
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, seed=1, eps=["0.2"])
    asked = load(Plan, tmp_path / "campaign" / "plan.json")
    threat = asked.threat.model_copy(update={"eps": run(tmp_path / "other", seed=1, eps=["0.2"]).plan.threat.eps})
    this = asked.model_copy(update={"seed": 1, "threat": threat}).sha256
    assert str(caught.value) == (
        f"{tmp_path / 'campaign'}: holds another campaign (plan {held[:12]}, this one is {this[:12]}; "
        "they differ in threat, seed); choose another --out"
    )
    after = {name: data for name, data in stored(tmp_path).items() if name in before}
    assert after == before


def test_a_malformed_plan_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path)
    plan = tmp_path / "campaign" / "plan.json"
    plan.write_text("{}")
    with pytest.raises(RecordError, match=r"plan\.json: subject: Field required"):
        run(tmp_path)
    assert plan.read_text() == "{}"


def test_two_processes_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "campaign").mkdir()
    with (tmp_path / "campaign" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError) as caught:
            run(tmp_path)
    folder = tmp_path / "campaign"
    assert str(caught.value) == (
        f"{folder}: another process is running this campaign; wait for it or choose another --out"
    )
    assert not stored(tmp_path)


def test_a_full_disk_is_one_line_and_the_campaign_resumes(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(CertkitError) as caught:
            run(tmp_path)
    assert str(caught.value).endswith("could not be written (No space left on device); nothing was changed")
    assert len(shards(tmp_path)) == 4
    assert not list((tmp_path / "campaign").rglob(".*.tmp"))
    run(tmp_path)
    assert executed(tmp_path) == UNITS
    assert stored(tmp_path) == stored(undisturbed)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "campaign").write_text("a file")
    with pytest.raises(CertkitError, match="could not be written"):
        run(tmp_path)
    assert (tmp_path / "campaign").read_text() == "a file"


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "negative eps": ({"eps": ["-0.1"]}, "eps -0.1 is negative; a radius is 0 or more"),
    "NaN eps": ({"eps": [float("nan")]}, "eps 'nan' is not a number; expected 0.25 or 36/255"),
    "infinite eps": ({"eps": ["inf"]}, "eps 'inf' is not a number; expected 0.25 or 36/255"),
    "no eps": ({"eps": []}, "no eps was given; expected at least one radius such as 0.25 or 36/255"),
    "eps as one text": (
        {"eps": "0.25"},
        "eps '0.25' is no list; expected radii such as ['0.25', '36/255']",
    ),
    "unknown norm": ({"norm": "l3"}, "norm 'l3' is unknown; expected one of l2, linf, l1, l0, token"),
    "unknown suite": (
        {"suite": "standart"},
        "suite 'standart' is unknown; expected one of quick, standard, full, none; did you mean 'standard'?",
    ),
    "negative seed": ({"seed": -1}, "seed -1 cannot be used; expected a whole number of at least 0"),
    "empty block": ({"block": 0}, "block 0 cannot be used; expected a whole number of at least 1"),
    "no threads": ({"threads": 0}, "threads 0 cannot be used; expected a whole number of at least 1"),
    "half a thread": ({"threads": 0.5}, "threads 0.5 cannot be used; expected a whole number of at least 1"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_cannot_be_meant_is_refused(name: str, tmp_path: Path) -> None:
    options, message = OPTIONS[name]
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, **options)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_radii_are_taken_in_ascending_order_and_each_once(tmp_path: Path) -> None:
    campaign = run(tmp_path, eps=["0.1", "0.02", "0.10", "1/10"])
    assert [eps.value for eps in campaign.plan.threat.eps] == [0.02, 0.1]


def test_an_unknown_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^device 'gpu' cannot be used here; expected one of cpu"):
        run(tmp_path, device="gpu")


def changed(**given: Any) -> Samples:
    return replace(samples(), **given)


DATA: dict[str, tuple[Callable[[], Samples], str]] = {
    "no samples": (
        lambda: changed(images=torch.zeros(0, 1, 2, 2)),
        "no samples were selected; expected at least one image",
    ),
    "bytes": (
        lambda: changed(images=torch.zeros(20, 1, 2, 2, dtype=torch.uint8)),
        "images are uint8 of shape (20, 1, 2, 2); expected float32 (N, C, H, W)",
    ),
    "outside the box": (
        lambda: changed(images=samples().images * 2),
        "20 images leave the box [0.0, 0.5] or are not finite (first: sample 0); scale them into it",
    ),
    "not finite": (
        lambda: changed(images=samples().images.masked_fill(torch.arange(20).reshape(20, 1, 1, 1) == 4, float("nan"))),
        "1 images leave the box [0.0, 1.0] or are not finite (first: sample 12); scale them into it",
    ),
    "a missing label": (
        lambda: changed(labels=samples().labels[1:]),
        "20 images come with 19 labels, 20 indices and a record of 20; expected one of each per image",
    ),
    "an unknown class": (
        lambda: changed(labels=samples().labels + 3 * (torch.arange(20) == 2)),
        "label 3 of sample 6 is none of the model's 3 classes; expected 0 to 2",
    ),
    "a negative class": (
        lambda: changed(labels=samples().labels - 9 * (torch.arange(20) == 2)),
        "of sample 6 is none of the model's 3 classes; expected 0 to 2",
    ),
    "a sample twice": (
        lambda: changed(indices=torch.zeros(20, dtype=torch.int64)),
        "an index stands twice in the selection; expected each sample once",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_is_not_images_with_labels_is_refused(name: str, tmp_path: Path) -> None:
    make, message = DATA[name]
    data = replace(make(), box=(0.0, 0.5)) if name == "outside the box" else make()
    with pytest.raises(DataError) as caught:
        run(tmp_path, data)
    assert str(caught.value).endswith(message)
    assert not list(tmp_path.iterdir())


def test_a_starting_point_does_not_depend_on_who_else_is_attacked(tmp_path: Path) -> None:
    # Each sample alone in its block: leaving samples out changes nothing for the others.
    everyone = run(tmp_path / "all", block=1)
    data = samples()
    few = Samples(
        data.images[5:9], data.labels[5:9], data.indices[5:9], data.record.model_copy(update={"count": 4}), data.box
    )
    assert np.array_equal(everyone.distance[5:9], run(tmp_path / "few", few, block=1).distance, equal_nan=True)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1", "l0", "token"])
def test_no_examples_have_no_distances(norm: Any) -> None:
    """A campaign that finds nothing measures nothing, of whatever shape its inputs are."""
    nothing = np.zeros((0, 3, 4), dtype=np.float32)
    assert distance_up(norm, nothing, nothing).shape == (0,)
