"""certkit train: a Lipschitz network from one TOML file or a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from certkit.commands import options
from certkit.errors import ConfigError


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--preset", help="A run by name; certkit presets lists them.")
@click.option("--set", multiple=True, metavar="A.B=VALUE", help="Change one key, such as training.steps=400.")
@options.together(options.device, options.threads, options.out, options.as_json)
def train(run: Path | None, preset: str | None, **given: Any) -> None:
    """Train what RUN (a TOML file) or --preset describes; writes model.safetensors and config.json to --out."""
    import certkit
    from certkit import config
    from certkit.machine import usable

    if (run is None) == (preset is None):
        raise ConfigError("give either a run file or --preset NAME; certkit presets lists the names")
    chosen = config.load_run(run) if run is not None else config.preset(preset or "")
    chosen = config.override(chosen, given["set"])
    out: Path = given["out"]
    result = certkit.train(chosen, out=out, device=usable(given["device"]), threads=given["threads"])
    lines = [
        f"clean accuracy  {options.share(result.clean)} on {result.data.name} {result.data.split}",
        f"largest weight norm / cap  {result.largest_norm_over_cap:.9f} (proved every {chosen.training.refresh} steps and at the end)",
        f"trained in {result.provenance.seconds:.1f} s",
        f"wrote {out / 'model.safetensors'}",
    ]
    options.say(result, lines, json=given["json"])
