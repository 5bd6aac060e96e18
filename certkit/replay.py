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
from certkit.records import Audit, Contradiction, Refutes
from certkit.shards import Images

if TYPE_CHECKING:
    from torch import nn

    from certkit.data import Dataset
    from certkit.records import Subject


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of it. ``stated`` is the campaign's distance, ``distance`` what was measured now, both rounded up.

    ``prediction`` is the network's on the example alone, in its own precision, by the kernels and threads of the campaign;
    a tie counts as an error. ``radius`` and ``reference_margin`` (float64, rounded down, of the certified class) are None
    without a certificate of this sample. ``disproves`` names the claim that the example refutes: about exact arithmetic,
    where it lies inside the certified radius and is wrong beyond the float64 error; about the float execution, where it
    lies inside the radius of that claim and the program errs. None where it refutes neither.
    """

    sample: int
    label: int
    attack: str
    stated: float
    distance: float
    prediction: int
    radius: float | None
    reference_margin: float | None
    disproves: Refutes | None
    target: int | None = None

    @property
    def refutes(self) -> bool:
        """Whether a claim of the certificate is refuted."""
        return self.disproves is not None

    @property
    def reproduced(self) -> bool:
        """Whether the example does here what it was found for, and lies no farther away than stated."""
        hit = self.prediction != self.label if self.target is None else self.prediction == self.target
        return hit and self.distance <= self.stated


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
    disproves: Refutes | None = None
    distance = float(distance_up(threat.norm, image, example)[0])
    with _evaluating(model):
        prediction = _prediction(model, example, label, campaign.plan.threads)
        if (directory / "certificate.json").is_file():
            certificate, table, _ = load_certificate(directory)
            of_this = (certificate.subject.sha256, certificate.data.sha256)
            if of_this == (campaign.plan.subject.sha256, campaign.plan.data.sha256):
                radius = float(table.radius[row]) if table.correct[row] else 0.0
                logits = reference(certificate, model, example)[0]
                held = int(table.predicted[row])
                margin = float(np.nextafter(logits[held] - np.delete(logits, held).max(), -np.inf))
                if certificate.threat.norm == threat.norm and distance < radius:
                    if margin < -certificate.pair_error:
                        disproves = "exact arithmetic"
                    elif distance < table.float_radius[row] and prediction != label:
                        disproves = "float execution"
    return Replay(sample, label, attack, stated, distance, prediction, radius, margin, disproves, threat.target)


def _example(directory: Path, campaign: Campaign, row: int) -> tuple[str, float, Images]:
    """The attack, the distance it stated, and the example as a batch of one."""
    sample = int(campaign.index[row])
    for one in _contradictions(directory):
        if one.index == sample and one.example is not None:
            path = directory / one.example.name
            if not path.is_file():
                raise RecordError(
                    f"{one.example.name}: audit.json names this example and it is missing; run the audit again"
                )
            data = path.read_bytes()
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


def _prediction(model: nn.Module, example: Images, label: int, threads: int) -> int:
    """The label where it beats every other class, else the strongest of the others; as campaigns on a CPU run it."""
    import torch

    from certkit.engine.kernels import deployed
    from certkit.machine import pinned

    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with pinned(threads), deployed(), torch.no_grad():
        logits: NDArray[np.float64] = model(torch.from_numpy(example).to(dtype))[0].double().numpy(force=True)
    others = logits.copy()
    others[label] = -np.inf
    return label if logits[label] > others.max() else int(others.argmax())
