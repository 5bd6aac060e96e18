"""The job: from a network, its samples and its certificate to health.json."""

from __future__ import annotations

import time
from pathlib import Path

from torch import nn

from certkit.bounds.ledger import checked
from certkit.checkpoint import subject_of
from certkit.data import Dataset
from certkit.engine.program import export
from certkit.errors import RecordError
from certkit.files import load, save
from certkit.health.activations import watched
from certkit.health.spectra import spectra
from certkit.health.training import training_of
from certkit.health.view import NAME
from certkit.machine import environment, pinned, provenance
from certkit.records import Certificate, Subject
from certkit.records.health import Health, Seen


def measure(
    model: nn.Module,
    data: Dataset,
    *,
    out: Path,
    checkpoint: Path | None = None,
    cap: float | None = None,
    subject: Subject | None = None,
    threads: int | None = None,
) -> Health:
    """Measure the network of ``out/certificate.json`` on the samples of that certificate; write ``out/health.json``.

    Largest entries and attention logits of the samples, in float64; the spectra of the weights; and what metrics.jsonl and
    trained.json in ``checkpoint``, its folder, tell of the run. ``cap`` multiplies the caps that the layers declare, None
    where training capped nothing. Raises RecordError where the certificate is of another network or other samples.
    """
    started = time.monotonic()
    out = Path(out)
    certificate, own = load(Certificate, out / "certificate.json"), subject or subject_of(model)
    with pinned(threads) as count:
        program = export(model, certificate.input_shape)
        if (certificate.subject.sha256, certificate.program_sha256) != (own.sha256, program.sha256):
            raise RecordError("certificate.json is of another network; certify this one first")
        if certificate.data.sha256 != data.record.sha256:
            raise RecordError("certificate.json is of other samples; certify these first")
        seen = watched(program, data.images)
        found, more = spectra(model, program, checked(certificate.ledger), cap=cap)
    training, untold = (
        (None, "The network did not come from a folder, so that nothing is known of its training.")
        if checkpoint is None
        else training_of(checkpoint, own.sha256)
    )
    health = Health(
        subject=own,
        program_sha256=program.sha256,
        data=data.record,
        box=data.box,
        entries=_seen(seen.entries),
        scores=_seen(seen.scores),
        spectra=found,
        more_weights=more,
        training=training,
        untold=untold,
        environment=environment("cpu", count),
        provenance=provenance(started),
    )
    save(health, out / NAME)
    return health


def _seen(sizes: dict[str, float]) -> tuple[Seen, ...]:
    return tuple(Seen(node=name, largest=size) for name, size in sizes.items())
