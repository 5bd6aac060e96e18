"""The float64 logits of a program, and the module that it was exported from beside it: the one unproved link."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from certkit.bounds.ledger import Ledger
from certkit.data import Dataset
from certkit.engine.execute import centres
from certkit.engine.program import Program
from certkit.errors import Refusal, one_line
from certkit.records import Agreement

BATCH = 256


def logits_of(program: Program, data: Dataset) -> NDArray[np.float64]:
    """The float64 logits (N, classes) of every sample. Raises Refusal unless they are finite and one per class, of two at least."""
    logits = centres(program, data.images)
    classes = len(data.record.classes)
    if classes < 2:
        raise Refusal("the data set names one class only; there is nothing that a prediction could change to")
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise Refusal(
            f"the model gives {tuple(logits.shape[1:])} numbers per sample; expected one logit for each of {classes} classes"
        )
    if not bool(torch.isfinite(logits).all()):
        raise Refusal("the model's logits are NaN or infinite on some samples; nothing can be certified there")
    return logits.numpy()


def agreement_of(
    model: nn.Module,
    program: Program,
    ledger: Ledger,
    deployed: Ledger,
    data: Dataset,
    logits: NDArray[np.float64],
) -> Agreement:
    """The user's module beside the exported program: the difference must be explained by rounding alone.

    ``ledger`` bounds the error of the float64 centre, ``deployed`` that of the module in its own arithmetic. Raises Refusal.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        images = torch.split(data.images, BATCH)
        try:
            own = torch.cat([model(piece.to(device, program.dtype)).cpu().double() for piece in images]).numpy()
        except Exception as error:  # noqa: BLE001 - the user's own forward may raise anything
            reason = one_line((str(error).splitlines() or [type(error).__name__])[0], 160)
            raise Refusal(f"the model cannot read a batch of {len(images[0])} samples ({reason})") from None
    allowed = deployed.pairs.error.to_float() / 2 + ledger.pairs.error.to_float() / 2
    if own.shape != logits.shape:
        raise Refusal(f"the module gives {own.shape} on {len(logits)} samples; expected one row of logits for each")
    difference = float(np.abs(own - logits).max(initial=0.0))
    if not difference <= allowed:
        worst = int(np.abs(own - logits).max(axis=1).argmax())
        raise Refusal(
            f"the module and its exported graph differ by {difference:.3g} on sample {worst}, more than {deployed.arithmetic} rounding "
            f"explains ({allowed:.3g}); the graph is not the function that runs (a frozen branch, or TF32), so no certificate"
        )
    return Agreement(samples=len(own), largest_difference=difference, allowed=allowed)
