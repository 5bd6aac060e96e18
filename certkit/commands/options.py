"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from certkit.commands.output import put

if TYPE_CHECKING:
    from certkit.records import Attention

F = TypeVar("F", bound=Callable[..., Any])

checkpoint = click.argument("checkpoint", type=click.Path(path_type=Path))
out = click.option(
    "--out", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write to."
)
as_json = click.option("--json", is_flag=True, help="Print the result as JSON on stdout.")
data = click.option(
    "--data", default="digits", show_default=True, help="Data set: digits, a Hugging Face name, or a local folder."
)
split = click.option("--split", default="test", show_default=True, help="Split of the data set.")
limit = click.option("--limit", type=click.IntRange(min=1), help="Use the first so many samples only.")
eps = click.option(
    "--eps",
    default="0.1,0.25,0.5",
    show_default=True,
    help="Radii, separated by commas; fractions such as 36/255 are exact.",
)
norm = click.option(
    "--norm",
    type=click.Choice(["l2", "linf"]),
    default="l2",
    show_default=True,
    help="Norm of the threat, over the whole input.",
)
suite = click.option("--suite", default="quick", show_default=True, help="Suite of attacks.")
seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of every random draw."
)
device = click.option("--device", default="cpu", show_default=True, help="Where the model runs, such as cpu or cuda:0.")
threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads to pin; recorded, as they can change the last digit of a sum.  [default: 1]",
)
factory = click.option(
    "--model",
    metavar="PACKAGE.MODULE:FACTORY",
    help="Somebody else's architecture: a function without arguments that returns an nn.Module. Imported and run.",
)
allow_pickle = click.option(
    "--allow-pickle", is_flag=True, help="Read a torch file with torch.load(weights_only=True); prefer safetensors."
)
normalisation = click.option(
    "--normalisation",
    type=click.Choice(["none"]),
    help="Of a Hugging Face image folder: none if the network reads images in [0, 1] as they are.  "
    "[default: preprocessor_config.json]",
)


samples = (data, split, limit)
threat = (eps, norm)
campaign = (suite, seed)
network = (factory, allow_pickle, normalisation)
machine = (device, threads)
result = (out, as_json)


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several options as one decorator, shown in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def radii(text: str) -> list[str]:
    """The radii of ``--eps``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def say(record: Any, lines: list[str], *, json: bool) -> None:
    """The result on stdout: the record as JSON, or lines for people."""
    if json:
        value = record.model_dump(mode="json") if hasattr(record, "model_dump") else record
        put(dumps(value, sort_keys=True, indent=1))
    else:
        put("\n".join(lines))


def share(rate: Any, *, up: bool = False) -> str:
    """A rate as people read it, with its denominator: ``331/360 = 91.9 %``.

    Rounded down, so that what is proved or right is never overstated; ``up`` is for what only bounds the truth from above.
    """
    whole = max(rate.total, 1)
    tenths = -(-1000 * rate.count // whole) if up else 1000 * rate.count // whole
    return f"{rate.count}/{rate.total} = {tenths // 10}.{tenths % 10} %"


def worth(attention: Attention | None) -> list[str]:
    """What the ablations say of attention, where it is less than its name promises."""
    if attention is not None and attention.decorative:
        return ["attention is decorative here: uniform weights or no branch cost less than a point"]
    if attention is not None and not attention.looks_at_content:
        return ["attention mixes positions here: frozen at its mean, it does as well"]
    return []
