"""One stored adversarial example shown again: the network run on it by itself, the distance measured again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from certkit.campaign import Campaign, distance_up, load_campaign
from certkit.errors import RecordError
from certkit.files import digest, load
from certkit.proof import load_certificate
from certkit.records import Audit, Contradiction
from certkit.shards import Images

if TYPE_CHECKING:
    from torch import nn

    from certkit.data import Dataset
    from certkit.records import Subject


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it. ``stated`` is the campaign's distance, ``distance`` what was measured now, both rounded up.

    ``prediction`` is the network's on the example alone, in its own precision; a tie counts as an error. ``radius`` and
    ``reference_margin`` (float64, rounded down, of the certified class) are None without a certificate; ``refutes``
    is True where the example lies inside the certified radius and is wrong beyond the float64 error.
    """

    sample: int
    label: int
    attack: str
    stated: float
    distance: float
    prediction: int
    radius: float | None
    reference_margin: float | None
    refutes: bool

    @property
    def reproduced(self) -> bool:
        """Whether the example is wrong here too, and no farther away than stated."""
        return self.prediction != self.label and self.distance <= self.stated


def replay(directory: Path, sample: int, model: nn.Module, data: Dataset, *, subject: Subject | None = None) -> Replay:
    """The example that refutes a certificate on this sample, else the nearest of the campaign, run again.

    ``sample`` is its index in the data set. Raises RecordError when network or data are not those of the campaign, and
    when there is no example of this sample.
    """
    from certkit.checkpoint import subject_of
    from certkit.reconcile import reference

    campaign = load_campaign(directory)
    if (subject or subject_of(model)).sha256 != campaign.plan.subject.sha256:
        raise RecordError("the network given is not the one that was attacked: its weights differ")
    if data.record.sha256 != campaign.plan.data.sha256:
        raise RecordError(
            "the samples given are not those that were attacked; name the same --data, --split and --limit"
        )
    found = np.flatnonzero(campaign.index == sample)
    if not len(found):
        raise RecordError(
            f"sample {sample} is none of this campaign's {len(campaign.index)}; "
            f"its indices go from {campaign.index.min()} to {campaign.index.max()}"
        )
    row = int(found[0])
    attack, stated, example = _example(directory, campaign, row)
    threat, label = campaign.plan.threat, int(campaign.label[row])
    image: Images = np.asarray(data.images[row : row + 1], np.float32)
    radius = margin = None
    refutes = False
    distance = float(distance_up(threat.norm, image, example)[0])
    with _evaluating(model):
        prediction = _prediction(model, example, label)
        if (directory / "certificate.json").is_file():
            certificate, table, _ = load_certificate(directory)
            if certificate.subject.sha256 == campaign.plan.subject.sha256 and table.index[row] == sample:
                radius = float(table.radius[row]) if table.correct[row] else 0.0
                logits = reference(certificate, model, example)[0]
                held = int(table.predicted[row])
                margin = float(np.nextafter(logits[held] - np.delete(logits, held).max(), -np.inf))
                same = certificate.threat.norm == threat.norm
                refutes = same and distance < radius and margin < -certificate.pair_error
    return Replay(sample, label, attack, stated, distance, prediction, radius, margin, refutes)


def _example(directory: Path, campaign: Campaign, row: int) -> tuple[str, float, Images]:
    """The attack, the distance it stated, and the example as a batch of one."""
    sample = int(campaign.index[row])
    for one in _contradictions(directory):
        if one.index == sample and one.example is not None:
            data = (directory / one.example.name).read_bytes()
            if digest(data) != one.example.sha256:
                raise RecordError(f"{one.example.name}: is not the example that audit.json names; run the audit again")
            return one.attack, one.distance, np.load(directory / one.example.name, allow_pickle=False)[None]
    name = campaign.attack[row]
    if name is None:
        raise RecordError(f"sample {sample} has no adversarial example: nothing of this campaign broke it")
    return name, float(campaign.distance[row]), campaign.adversarial[row : row + 1]


def _contradictions(directory: Path) -> tuple[Contradiction, ...]:
    path = directory / "audit.json"
    return load(Audit, path).contradictions if path.is_file() else ()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and as it was afterwards."""
    modes = {one: one.training for one in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for one, training in modes.items():
            one.training = training


def _prediction(model: nn.Module, example: Images, label: int) -> int:
    """The label where it beats every other class, else the strongest of the others; one thread, as campaigns run."""
    import torch

    from certkit.machine import pinned

    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with pinned(None), torch.no_grad():
        logits: NDArray[np.float64] = model(torch.from_numpy(example).to(dtype))[0].double().numpy(force=True)
    others = logits.copy()
    others[label] = -np.inf
    return label if logits[label] > others.max() else int(others.argmax())
