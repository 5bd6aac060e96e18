"""How large the numbers inside a network get on given inputs, measured in float64 by the graph that is certified."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from certkit.engine.execute import CHUNK, MASKED, MASKING, run
from certkit.engine.program import Program
from certkit.errors import Refusal


@dataclass(frozen=True, slots=True)
class Entries:
    """By node: the largest absolute entry of each value, and of each attention's logits, over all inputs."""

    entries: dict[str, float]
    scores: dict[str, float]


def watched(program: Program, inputs: Tensor, *, piece: int = CHUNK) -> Entries:
    """Run the inputs (N, ...) through the graph, ``piece`` at a time, and keep the largest of everything.

    Entries that a mask leaves out are not counted, nor logits of keys that a query does not see. Raises Refusal where the
    run leaves the range of float64.
    """
    entries: dict[str, float] = {}
    scores: dict[str, float] = {}

    def one(x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        seen: dict[str, Tensor] = {}
        watch: dict[str, tuple[Tensor, Tensor]] = {}

        def see(node: Node, value: Tensor) -> None:
            if value.is_floating_point():
                seen[node.name] = _size(node, value)

        logits = run(program, x.unsqueeze(0), watch=watch, see=see)
        visible = {
            name: torch.where(torch.isinf(masked), 0.0, content).abs().amax()
            for name, (content, masked) in watch.items()
        }
        return seen, visible, logits.isnan().any()

    with torch.no_grad():
        for part in torch.split(inputs.cpu(), piece):
            seen, visible, lost = torch.func.vmap(one)(part.double())
            if bool(lost.any()):
                raise Refusal("a sample's activations leave the range of float64; nothing can be said of their size")
            for found, given in ((entries, seen), (scores, visible)):
                for name, sizes in given.items():
                    found[name] = max(found.get(name, 0.0), float(sizes.max()))
    return Entries(entries, scores)


def _size(node: Node, value: Tensor) -> Tensor:
    """The largest absolute entry; of a mask's result, of what it leaves in."""
    if node.target in MASKING:
        value = torch.where(value <= MASKED, 0.0, value)
    return value.abs().amax()
