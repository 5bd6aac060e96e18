"""certkit replay: show one adversarial example again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from certkit.commands import options
from certkit.errors import EvaluationInvalid, Refuted


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.argument("sample", type=click.IntRange(min=0))
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="The network that was attacked.")
@options.together(*options.samples, *options.network, options.as_json)
def replay(directory: Path, sample: int, checkpoint: Path, **given: Any) -> None:
    """Run the network again on the adversarial example of SAMPLE that a campaign or an audit left in DIRECTORY.

    SAMPLE is its index in the data set, or the number, from 0, of a contradiction of a language audit. Exits with 4 when the
    example refutes the certificate, and with 3 when it does not come out again as it is recorded.
    """
    if (directory / "language.json").is_file():
        from certkit.commands.language import replayed

        replayed(directory, sample, checkpoint, json=given["json"])
        return
    from certkit.commands.loading import load_inputs
    from certkit.replay import replay as run

    inputs = load_inputs(checkpoint, given)
    found = run(directory, sample, inputs.model, inputs.data, subject=inputs.subject)
    lines = [
        f"sample {found.sample}, label {found.label}, broken by {found.attack}",
        f"distance    stated {found.stated:.9g}, now {found.distance:.9g} (both rounded up)",
        f"prediction  {found.prediction}",
    ]
    if found.radius is not None:
        lines += [f"certified   {found.radius:.9g}", f"margin      {found.reference_margin:.6g} in float64"]
    told = {**asdict(found), "reproduced": found.reproduced, "refutes": found.refutes}
    options.say(told, lines, json=given["json"])
    if found.refutes:
        wrong = "is wrong in float64" if found.disproves == "exact arithmetic" else "the program errs on it"
        raise Refuted(f"sample {found.sample}: the example lies inside the certified radius and {wrong}")
    if not found.reproduced:
        raise EvaluationInvalid(f"sample {found.sample}: the example does not come out here as it is recorded")
