"""certkit train: one network, or a comparison of several ways to train, from one TOML file or a preset."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.errors import ConfigError, Refuted

if TYPE_CHECKING:
    from certkit.config import Run
    from certkit.training.train import Trained


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--preset", help="A run by name; certkit presets lists them.")
@click.option("--set", multiple=True, metavar="A.B=VALUE", help="Change one key, such as training.steps=400.")
@click.option("--tensorboard", is_flag=True, help="Write metrics for TensorBoard as well.")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Trials of a comparison at a time."
)
@options.together(options.device, options.threads, options.out, options.as_json)
def train(run: Path | None, preset: str | None, **given: Any) -> None:
    """Train what RUN (a TOML file) or --preset describes; writes model.safetensors and config.json to --out.

    A run with a [compare] section trains every row with every learning rate and seed and writes comparison.json, .md and
    .html. The same command goes on after an interruption. Under torchrun the processes share each batch.
    """
    from certkit import config

    if (run is None) == (preset is None):
        raise ConfigError("give either a run file or --preset NAME; certkit presets lists the names")
    chosen = config.load_run(run) if run is not None else config.preset(preset or "")
    chosen = config.override(chosen, given["set"])
    if chosen.compare is not None:
        _compare(chosen, preset or (run.stem if run else ""), given)
    else:
        _train(chosen, given)


def _train(run: Run, given: dict[str, Any]) -> None:
    import certkit
    from certkit.machine import usable

    if given["workers"] != 1:
        raise ConfigError("--workers is for comparisons; one network is shared among processes by torchrun")
    out: Path = given["out"]
    device = usable(
        f"cuda:{os.environ['LOCAL_RANK']}"
        if given["device"] == "cuda" and "LOCAL_RANK" in os.environ
        else given["device"]
    )
    result = certkit.train(run, out=out, device=device, threads=given["threads"], tensorboard=given["tensorboard"])
    if int(os.environ.get("RANK", "0")) == 0:
        options.say(result, lines(result, run.training.refresh, out), json=given["json"])


def lines(trained: Trained, refresh: int, out: Path) -> list[str]:
    """What came of a run, in a few lines."""
    what = "clean accuracy" if hasattr(trained.data, "classes") else "next token right"
    norm = f"largest weight norm / cap  {trained.largest_norm_over_cap:.9f}"
    promise = {
        "provable": "proved to hold after every step",
        "approximate": "the constraint is approximate: it may exceed 1",
        "none": "no constraint",
    }[trained.promise]
    found = [f"{what}  {options.share(trained.clean)} on {trained.data.name} {trained.data.split}"]
    if what != "clean accuracy":
        found.append(f"loss  {trained.test_loss:.4f} per token")
    return [
        *found,
        f"{norm} (proved every {refresh} steps and at the end; {promise})",
        f"largest activation entry  {trained.largest_entry:.4g} (on the first training samples)",
        f"trained in {trained.provenance.seconds:.1f} s, {trained.spikes} loss spikes",
        f"wrote {out / 'model.safetensors'}",
    ]


def _compare(run: Run, name: str, given: dict[str, Any]) -> None:
    import certkit
    from certkit.machine import usable

    if given["tensorboard"]:
        raise ConfigError("--tensorboard is for single runs; a comparison writes its own plots")
    out: Path = given["out"]
    found = certkit.compare(
        run, out=out, device=usable(given["device"]), threads=given["threads"], workers=given["workers"], name=name
    )
    page = importlib.import_module("certkit.reports.comparison")  # by name: reports stand above
    paths = page.write(found, out)
    try:
        options.say(found, [page.table(found), *(f"wrote {path}" for path in paths)], json=given["json"])
    finally:
        if refuted := [
            row.name for row in found.rows for one in row.proved if any(p.verdict == "REFUTED" for p in one)
        ]:
            raise Refuted(
                f"row {refuted[0]!r}: an adversarial example lies inside a certified radius; its audit is kept"
            )
