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
    first names that hold no blocks; what all paths begin with is left out. What stands in no such module belongs to the part
    before it. In a graph without modules every operator with a weight begins a part. The last part is called ``logits``.
    """
    paths = {step.node: _path(step) for step in ledger.steps}
    given = [path for path in paths.values() if path]
    shared = _shared(given)
    holders = {path[:end] for path in given if (number := _number(path)) is not None for end in range(number + 1)}
    found: dict[str, str] = {}
    here, weighted = "input", 0
    for step in ledger.steps:
        if step.rule != "constant" and not given and step.rule in WEIGHTED:
            weighted += 1
            here = f"{step.rule} {weighted}"
        elif end := _end(paths[step.node], holders):
            here = ".".join(paths[step.node][shared:end]) or here
        found[step.node] = here
    return {node: "logits" if part == here != "input" else one_line(part, LONGEST) for node, part in found.items()}


def _path(step: Step) -> tuple[str, ...]:
    return () if step.module in ("", "the model") or step.rule == "input" else tuple(step.module.split("."))


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """How many names all paths begin with, none of them a number and none the name of a module that holds no other."""
    held = {path[:end] for path in paths for end in range(len(path))}
    count = 0
    for names in zip(*(path[:-1] for path in paths if path not in held), strict=False):
        if len(set(names)) > 1 or names[0].isdecimal():
            return count
        count += 1
    return count


def _number(path: tuple[str, ...]) -> int | None:
    return next((at for at, name in enumerate(path) if name.isdecimal()), None)


def _end(path: tuple[str, ...], holders: set[tuple[str, ...]]) -> int:
    """How many names of a path name its part; 0 for a module that holds the blocks, and for none."""
    if (number := _number(path)) is not None:
        return number + 1
    return next((end for end in range(1, len(path) + 1) if path[:end] not in holders), 0)
