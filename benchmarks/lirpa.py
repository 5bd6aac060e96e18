"""auto_LiRPA and randomised smoothing on the networks that certkit certifies, beside certkit's own bound.

    python -m benchmarks.lirpa tanh-vit > benchmarks/results/lirpa-tanh-vit.json
    python -m benchmarks.lirpa mlp > benchmarks/results/lirpa-mlp.json
    python -m benchmarks.lirpa digits-vit CHECKPOINT > benchmarks/results/lirpa-digits-vit.json
    python -m benchmarks.lirpa mnist-vit CHECKPOINT DATA > benchmarks/results/lirpa-mnist-vit.json
    python -m benchmarks.lirpa smoothing CHECKPOINT > benchmarks/results/smoothing-digits.json

Prints, per norm, method and radius, how many samples are verified, samples per second, and the median radius.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import certkit
from benchmarks.common import printed
from certkit.certified import read
from certkit.checkpoint import load_into
from certkit.checkpoint import read as read_checkpoint
from certkit.crosscheck.agreement import against, agreement, verified_radii
from certkit.crosscheck.lirpa import cross_check
from certkit.crosscheck.smooth_attack import attack_smoothed
from certkit.crosscheck.smoothing import smooth
from certkit.data import Dataset, load
from certkit.engine.program import export
from certkit.machine import pinned
from certkit.models import build
from certkit.models.attention import Attention
from certkit.models.layers import Linear, Patches
from certkit.records.crosscheck import MethodName

EPS = {"l2": ("0.02", "0.05", "0.1", "0.25"), "linf": ("0.005", "0.01", "0.02", "0.1")}


class TanhTransformer(nn.Module):
    """A vision transformer for digits whose every non-linearity is smooth: 4 patches, one block, tanh."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches = Patches(2, 4)
        self.embed = Linear(16, width, tokens=4)
        self.attention = Attention(width, heads, torch.zeros(heads, 4, 4), scale=1.0)
        self.up = Linear(width, width, tokens=4)
        self.head = Linear(4 * width, 10)

    def forward(self, x_BCSS: Tensor) -> Tensor:
        x_BTD = torch.tanh(self.embed(self.patches(x_BCSS - 0.5)))
        x_BTD = 0.5 * x_BTD + 0.5 * self.attention(x_BTD)
        logits: Tensor = self.head(torch.tanh(self.up(x_BTD)).flatten(1))
        return logits


class Perceptron(nn.Module):
    """64-64-64-10 with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def trained(make: Callable[[], nn.Module], *, steps: int = 3000, seed: int = 0, cap: float = 1.0) -> nn.Module:
    """The network trained on digits by Adam, in eval mode; each matrix is divided by what its norm exceeds the cap by."""
    torch.manual_seed(seed)
    model, data = make(), load("digits", "train")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        rows = torch.randint(len(data.labels), (128,))
        loss = F.cross_entropy(10 * model(data.images[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 2 and weight.shape != (4, 16):  # biases of tokens are no maps
                    weight.div_(max(1.0, torch.linalg.matrix_norm(weight, 2).item() / cap))
    return model.eval()


def tanh_vit() -> nn.Module:
    """The network on which full CROWN is compared with certkit's own bounds; about a quarter of a minute."""
    return trained(TanhTransformer, steps=1500, cap=2.0)


def perceptron() -> nn.Module:
    """The multilayer perceptron of the comparison."""
    return trained(Perceptron, steps=1500, cap=2.0)


def compared(
    model: nn.Module,
    data: Dataset,
    norm: str,
    methods: Sequence[tuple[MethodName, int]],
    *,
    with_radii: bool,
    batch: int,
) -> dict[str, Any]:
    """certkit and each method on the first so many samples."""
    program = export(model, tuple(data.images.shape[1:]))
    found: dict[str, Any] = {}
    for method, samples in methods:
        part = head(data, samples)
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            certificate = certkit.certify(model, part, eps=EPS[norm], norm=norm, out=Path(folder))  # type: ignore[arg-type]
            seconds = time.monotonic() - started
            table = read(Path(folder) / "certified.parquet")
        result = cross_check(
            program,
            part,
            eps=EPS[norm],
            norm=norm,
            methods=[method],
            with_radii=with_radii,
            batch=batch,  # type: ignore[arg-type]
        )
        if not result.methods:
            found[method] = {"message": result.message}
            continue
        (one,), (cost,) = result.methods, result.costs
        ours = np.where(table.correct, table.radius, 0.0)
        reached = verified_radii(one)
        view = agreement(result.indices, certkit=ours, lirpa=reached if len(reached) else None, method=method)
        found[method] = {
            "version": result.version,
            "message": one.message,
            "samples": samples,
            "rewritten_differs_by": result.difference,
            "faults": len(one.faults),
            "per_eps": {
                b.eps.text: against(
                    b.eps,
                    method,
                    ours >= b.eps.value,
                    np.array([m is not None and m > 0 for m in b.margins]),
                ).model_dump(include={"both", "certkit_only", "lirpa_only"})
                | {"certkit": certified.certified.count, method: b.verified.count}
                for b, certified in zip(one.bounds, certificate.certified, strict=False)
            },
            "larger": {
                name: sum(s.larger == name for s in view.samples) for name in ("certkit", "auto_LiRPA", "equal")
            },
            "median_radius": {rung.name: rung.median for rung in view.rungs[:2]} if with_radii else None,
            "cost": cost.model_dump(exclude={"method"}),
            "certkit_seconds_global": round(seconds, 2),
        }
    return found


def head(data: Dataset, samples: int) -> Dataset:
    """The first samples, under a record of their own."""
    return Dataset.of(
        data.images[:samples],
        data.labels[:samples],
        name=data.record.name,
        split=data.record.split,
        classes=data.record.classes,
    )


def checkpointed(folder: Path) -> nn.Module:
    """The network of a checkpoint, in eval mode."""
    found = read_checkpoint(folder)
    assert found.config is not None
    model, _ = build(found.config)
    load_into(model, found)
    return model.eval()


def smoothed(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """Randomised smoothing of all samples at the numbers of the literature, and the attack on the smoothed classifier."""
    started = time.monotonic()
    result = smooth(model, data, sigma=0.25, eps=("0", "0.1", "0.25", "0.5"), draws=1000, selection=100, alpha=0.001)
    seconds = time.monotonic() - started
    few = result.model_copy(update={"samples": result.samples[:40]})
    attacked = attack_smoothed(model, data, few)
    assert attacked.attacks is not None
    distances = np.array([np.nan if a.distance is None else a.distance for a in attacked.attacks])
    ladder = agreement(
        [s.index for s in few.samples],
        smoothing=np.array([s.radius if s.predicted is not None else np.nan for s in few.samples]),
        smoothing_attack=distances,
    )
    return {
        "claim": result.claim,
        "plan": result.plan.model_dump(exclude={"data", "subject"}),
        "seconds": round(seconds, 1),
        "accurate": result.accurate.count,
        "total": result.accurate.total,
        "abstained": result.abstained,
        "certified": {one.eps.text: one.certified.count for one in result.certified},
        "median_radius": float(np.median([s.radius for s in result.samples])),
        "attacked": {
            "samples": len(distances),
            "found": int(np.isfinite(distances).sum()),
            "rungs": {rung.name: rung.median for rung in ladder.rungs[3:]},
            "contradictions": len(ladder.contradictions),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tanh-vit", "mlp", "digits-vit", "mnist-vit", "smoothing"))
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("data", nargs="?", default="digits")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--slow", type=int, default=16, help="samples of the methods that take seconds each")
    given = parser.parse_args()
    data, found = load(given.data, "test"), {}
    with pinned(None) as threads:
        if given.what == "smoothing":
            found = smoothed(checkpointed(given.checkpoint), data)
        else:
            own = {"tanh-vit": tanh_vit, "mlp": perceptron}
            model = own[given.what]() if given.what in own else checkpointed(given.checkpoint)
            fast: list[tuple[MethodName, int]] = [("IBP", given.samples), ("CROWN-IBP", given.samples)]
            slow: list[tuple[MethodName, int]] = (
                [("CROWN", given.slow), ("alpha-CROWN", 4)] if given.what in own else []
            )
            for norm in ("l2", "linf"):
                found[norm] = compared(model, data, norm, fast, with_radii=True, batch=32)
                found[norm] |= compared(model, data, norm, slow, with_radii=False, batch=4)
        printed("benchmarks.lirpa", {"results": found}, threads)


if __name__ == "__main__":
    main()
