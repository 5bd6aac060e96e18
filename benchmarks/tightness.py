"""How much of a certified slope is really attained: a lower bound beside the upper one, and beside the product of norms.

    python -m benchmarks.tightness --digits CHECKPOINT --mnist CHECKPOINT > benchmarks/results/tightness.json

``attained`` is the quotient of an actual pair of inputs, rounded down, that power iteration on the Jacobian and gradient
ascent over the domain found; ``certified`` is the gain of the ledger, rounded up; both in l2 from the input to the named
value. ``product`` multiplies what is written on each layer without looking at the graph: norms of weights, 1.13 for GELU,
1 / sqrt(eps) for layer norm, and for attention of radius R the global bound of Castin, Ablin and Peyré 2024.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import printed
from certkit.bounds.ledger import Ledger
from certkit.commands.loading import load_model
from certkit.data import load
from certkit.engine.execute import run
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.engine.slopes import attained_slope
from certkit.machine import pinned
from tests.modules import MultiHead

MNIST = "ylecun/mnist"
Box = tuple[float, float]


def beside(module: nn.Module, starts: Tensor, box: Box, product: float, rounds: int = 30) -> dict[str, float]:
    """Attained, certified and plain product for one network, from these starts (N, ...)."""
    program = export(module, tuple(starts.shape[1:]))
    return compared(program, Interpreter(program)("l2", box), starts, box, product, rounds)


def compared(
    program: Program, ledger: Ledger, starts: Tensor, box: Box, product: float, rounds: int
) -> dict[str, float]:
    """The same for a program that is proved already."""
    output = next(step.bound for step in ledger.steps if step.node == ledger.output)
    reach = output.within(output.axes)
    found = attained_slope(
        lambda x: run(program, x), starts, "l2", box=box, error=reach.error.to_float(), rounds=rounds
    )
    certified = reach.gain.to_float()
    return {
        "attained": round(found.value, 6),
        "certified": round(certified, 6),
        "ratio": round(found.value / certified, 4),
        "product": round(product, 6),
        "ratio_of_product": round(found.value / product, 8),
    }


def clusters(tokens: int, width: int, count: int, seed: int) -> Tensor:
    """Tokens on two opposite sides of a centre in [-1, 1]^width: where scores move the most mass, values apart."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.randn(count, 1, width, generator=generator, dtype=torch.float64)
    axis = axis / axis.abs().amax(2, keepdim=True)
    side = 2.0 * torch.randint(0, 2, (count, tokens, 1), generator=generator).double() - 1
    reach = torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)
    return torch.cat([side * axis, side * axis * reach])


def castin(tokens: int, scale: float, radius: float) -> float:
    """sqrt(3) |V| sqrt(|A|² R⁴ (4n + 1) + n), attention's slope on tokens of length at most R."""
    return math.sqrt(3) * math.sqrt(scale**2 * radius**4 * (4 * tokens + 1) + tokens)


def attention(tokens: int, width: int, scale: float) -> dict[str, float]:
    """One head with identity weights on [-1, 1]: queries, keys and values are the input."""
    starts = clusters(tokens, width, 64, 0)
    product = castin(tokens, scale, math.sqrt(width))
    return beside(MultiHead(1, scale=scale), starts, (-1.0, 1.0), product)


def mlp(width: int, depth: int, seed: int) -> dict[str, float]:
    """Linear maps at random, GELU between them, at the weights that torch starts from."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.GELU()]
    module = nn.Sequential(*layers[:-1]).eval()
    starts = 2 * torch.rand(64, width, generator=torch.Generator().manual_seed(seed)) - 1
    product = 1.1289042 ** (depth - 1) * spectral_product(module)
    return beside(module, starts, (-1.0, 1.0), product)


def layer_norm_block(width: int, seed: int) -> dict[str, float]:
    """x + W2 gelu(W1 layer_norm(x)) with the default eps, from near a token of equal entries, where it is steepest."""
    torch.manual_seed(seed)
    norm, wide, narrow = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.wide, self.narrow = norm, wide, narrow

        def forward(self, x: Tensor) -> Tensor:
            moved: Tensor = x + self.narrow(F.gelu(self.wide(self.norm(x))))
            return moved

    starts = 1e-3 * torch.randn(64, width, generator=torch.Generator().manual_seed(seed))
    product = 1 + spectral_product(nn.Sequential(wide, narrow)) * 1.1289042 / math.sqrt(norm.eps)
    return beside(Block().eval(), torch.cat([torch.zeros(1, width), starts]), (-1.0, 1.0), product)


def spectral_product(module: nn.Module) -> float:
    """The norms of all matrices of linear layers, multiplied."""
    norms = [
        float(torch.linalg.matrix_norm(part.weight.detach().double(), ord=2))
        for part in module.modules()
        if isinstance(getattr(part, "weight", None), Tensor) and part.weight.ndim == 2
    ]
    return math.prod(norms)


def network(checkpoint: Path, data: str, count: int, rounds: int) -> dict[str, Any]:
    """A trained transformer end to end, from images of its test split; logits together, and each pair of classes."""
    model, subject = load_model(checkpoint)
    images = load(data, "test", limit=count)
    program = export(model, tuple(images.images.shape[1:]))
    ledger = Interpreter(program)("l2", images.box)
    product = spectral_product(model) * by_attention(model, program, ledger)
    whole = compared(program, ledger, images.images, images.box, product, rounds)
    ratios = []
    classes = len(ledger.pairs.gain)
    for i in range(classes):
        j = (i + 3) % classes
        found = attained_slope(
            lambda x, i=i, j=j: run(program, x)[:, i : i + 1] - run(program, x)[:, j : j + 1],  # type: ignore[misc]
            images.images[:16],
            "l2",
            box=images.box,
            error=ledger.pairs.error.to_float(),
            rounds=max(rounds // 4, 2),
        )
        ratios.append(found.value / ledger.pairs.gain[i][j].to_float())
    ratios.sort()
    pairs = {"ratio_of_pairs": {"least": round(ratios[0], 4), "median": round(ratios[classes // 2], 4), "most": round(ratios[-1], 4)}}  # fmt: skip
    return {"subject": subject.sha256, **whole, **pairs}


def by_attention(model: nn.Module, program: Program, ledger: Ledger) -> float:
    """What the attention layers add to the product of norms, by Castin's bound on the sizes that the ledger proves.

    Their four matrices stand in the product already: three of them in parallel there count one after another, at norms
    of 1 or more a factor in favour of no one.
    """
    factor = 1.0
    steps = {step.node: step for step in ledger.steps}
    for step in ledger.steps:
        if step.rule == "attention":
            q = steps[step.inputs[0]].bound
            tokens, last = q.shape[-2], frozenset({len(q.shape) - 1})
            scale = step.evidence["scale"].to_float()
            factor *= castin(tokens, scale, q.within(last).size.to_float())
    return factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help="a checkpoint of the preset digits-vit")
    parser.add_argument("--mnist", type=Path, help="a checkpoint of the preset mnist-vit")
    parser.add_argument("--mnist-data", default=MNIST)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for tokens, width in ((2, 1), (4, 1), (4, 2), (8, 2)):
        for scale in (0.1, 0.25, 0.5, 1.0, 2.0):
            name = f"attention, {tokens} tokens of width {width}, scale {scale}, two clusters"
            jobs[name] = lambda t=tokens, w=width, s=scale: attention(t, w, s)  # type: ignore[misc]
    jobs |= {f"mlp of {depth} layers, width 32": lambda d=depth: mlp(32, d, 0) for depth in (2, 4)}  # type: ignore[misc]
    jobs["layer norm block, width 16"] = lambda: layer_norm_block(16, 0)
    jobs["digits-vit"] = lambda: network(given.digits, "digits", 64, 30)
    if given.mnist is not None:
        jobs["mnist-vit"] = lambda: network(given.mnist, given.mnist_data, 16, 8)
    results: dict[str, dict[str, Any]] = {}
    with pinned(given.threads) as threads:
        for name, job in jobs.items():
            results[name] = job()
            print(name, results[name], file=sys.stderr)
        printed("benchmarks.tightness", {"results": results}, threads)


if __name__ == "__main__":
    main()
