"""Which part of a network each step of a ledger belongs to, by the path of its module. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

from certkit.bounds.ledger import Ledger, Step
from certkit.errors import one_line

WEIGHTED = ("linear", "convolution")
LONGEST = 80


def parts(ledger: Ledger) -> dict[str, str]:
    """The part of every step, by its name, in the order in which they run: ``input``, blocks, ``logits``.

    A block is a module's path up to its first number, such as ``blocks.3`` or ``vit.encoder.layer.3``, and otherwise its
    first name; what all paths begin with is left out. What stands in no module belongs to the part before it. In a graph
    without modules every operator with a weight begins a part. The last part is called ``logits``.
    """
    paths = {step.node: _path(step) for step in ledger.steps}
    given = [path for path in paths.values() if path]
    shared = _shared(given)
    found: dict[str, str] = {}
    here, weighted = "input", 0
    for step in ledger.steps:
        if step.rule != "constant" and not given and step.rule in WEIGHTED:
            weighted += 1
            here = f"{step.rule} {weighted}"
        elif path := paths[step.node]:
            here = _block(path[shared:]) or here
        found[step.node] = here
    return {node: "logits" if part == here != "input" else one_line(part, LONGEST) for node, part in found.items()}


def _path(step: Step) -> tuple[str, ...]:
    return () if step.module in ("", "the model") or step.rule == "input" else tuple(step.module.split("."))


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """How many names all paths begin with, none of them a number."""
    count = 0
    for names in zip(*paths, strict=False):
        if len(set(names)) > 1 or names[0].isdecimal():
            return count
        count += 1
    return count


def _block(path: tuple[str, ...]) -> str:
    number = next((at for at, name in enumerate(path) if name.isdecimal()), None)
    return ".".join(path[:1] if number is None else path[: number + 1])
