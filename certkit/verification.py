"""A certificate or audit checked from its files, and from the checkpoint: what was proved is proved again, and compared.

From the files alone the ledgers are derived again from their evidence, and radii and counts from the ledgers. That the
evidence belongs to the network takes the checkpoint: the graph is exported, every norm measured, and what is stated must be
at least what is measured. A sample of rows, drawn by a seed, gets its float64 logits and its radii anew.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from certkit.bounds.elementary import MEASURED, Build
from certkit.bounds.ledger import Ledger, Matrix, Step, checked, from_json, to_json
from certkit.bounds.number import Up
from certkit.certified import Certified
from certkit.checkpoint import subject_of
from certkit.crosscheck.view import NAME as CROSSCHECK
from certkit.crosscheck.view import load_crosscheck, too_steep
from certkit.data import Dataset
from certkit.engine.certify import proved_rows
from certkit.engine.execute import centres
from certkit.engine.floats import assumptions, float_claim, folded
from certkit.engine.interpret import Interpreter
from certkit.engine.program import Program, export
from certkit.errors import CheckpointError, ConfigError, DataError, Tampered, one_line
from certkit.files import digest_file
from certkit.folder import DIGITS, Findings, Statement, beside, stated
from certkit.health.view import NAME as HEALTH
from certkit.health.view import excluded, load_health
from certkit.language import verification as language
from certkit.language.stated import NAME as LANGUAGE
from certkit.machine import pinned
from certkit.proof import load_certificate
from certkit.records import Certificate, Record, Sha256, Subject

SAMPLES = 16
ELSEWHERE = Build("*", "*")  # a torch and a machine that nobody measured
UNNAMED, NAMED = "torch * with *", r"torch [\w.+-]+ with [\w ]+"


class Verification(Record):
    """What of a certificate or audit was verified. Nothing that contradicts it is in here: that is an error."""

    format: Literal[1] = 1
    kind: Literal["certkit.verification"] = "certkit.verification"
    certificate: Sha256
    subject: Subject
    verified: tuple[Statement, ...]
    not_verified: tuple[Statement, ...]


def verify(
    directory: Path,
    *,
    model: nn.Module | None = None,
    subject: Subject | None = None,
    data: Dataset | None = None,
    samples: int = SAMPLES,
    seed: int | None = None,
) -> Verification:
    """Check a folder of ``certify`` or ``audit``; with ``model`` against the network, with ``data`` against the samples.

    ``subject`` is the identity of the file that the model was read from; without it, that of the file it would be written to.
    ``samples`` rows are proved again; without a ``seed`` nobody can know beforehand which. ConfigError for a count below 1.
    Raises Tampered or RuleViolation for what contradicts itself or the network, CheckpointError for another checkpoint,
    DataError for other samples, RecordError for what cannot be read.
    """
    directory = Path(directory)
    if samples < 1 or (seed is not None and seed < 0):
        raise ConfigError(f"samples must be 1 or more and seed 0 or more, got {samples} and {seed}")
    audit = stated(directory)
    certificate, table, ledger = load_certificate(directory)
    deployed = checked(certificate.execution_ledger)
    found = Findings()
    found.verified(
        "certified.parquet", "sha256 as stated; margins, global radii and counts follow from logits and ledger"
    )
    steps = len(ledger.steps) + len(deployed.steps)
    found.verified("ledgers", f"{steps} steps derived again from their evidence, no difference")
    _assumes(certificate, deployed)
    if model is not None:
        subject = subject or subject_of(model)
        _same_subject(certificate, subject, found)
    beside(directory, certificate, table, audit, found, model=model, subject=subject, data=data)
    if (cross := load_crosscheck(directory, certificate, table, ledger)) is not None:
        found.verified(CROSSCHECK, "speaks of this certificate; its counts are those of its samples")
        how = "slopes, auto_LiRPA's bounds and draws are as stated; certkit crosscheck comes to them again"
        if steep := too_steep(cross, ledger):
            how = f"a slope stated at {one_line(steep[0], 80)} would disprove the ledger; {how}"
        found.open(CROSSCHECK, how)
    if (health := load_health(directory, certificate, ledger)) is not None:
        found.verified(HEALTH, "speaks of this certificate")
        how = "largest numbers, singular values and training record are as stated; certkit certify measures them again"
        if beyond := excluded(health, ledger):
            how = f"a number stated at {one_line(beyond[0], 80)} would disprove the ledger; {how}"
        found.open(HEALTH, how)
    if model is None:
        found.open("evidence", "norms and other measurements are as stated: give --checkpoint to measure them again")
        found.open("logits and local radii", "need the checkpoint")
    else:
        with pinned(min(max(certificate.environment.threads, 1), os.cpu_count() or 1)):
            fresh = _Fresh(certificate, model)
            fresh.compare(ledger, deployed, found)
            fresh.claims()
            if data is None:
                found.open("logits and local radii", "need the samples: give --data")
            else:
                _same_data(certificate, table, data, found)
                seed = secrets.randbits(32) if seed is None else seed
                rows = np.sort(np.random.default_rng(seed).permutation(len(table.label))[:samples])
                fresh.rows(model, table, data, rows, found)
                if len(rows) < len(table.label):
                    how = f"{len(table.label) - len(rows)} samples were not drawn (by seed {seed}): give --samples"
                    found.open("other logits and local radii", how)
    if certificate.attention is not None:
        found.open("attention", "the ablations are as stated; certify again to repeat them")
    for assumption in (*certificate.assumptions, *certificate.execution.assumptions):
        found.open("assumption", assumption)
    return Verification(
        certificate=digest_file(directory / "certificate.json"),
        subject=certificate.subject,
        verified=tuple(found.yes),
        not_verified=tuple(found.no),
    )


def verify_language(directory: Path, **given: Any) -> Verification:
    """Check a folder of ``certkit language``: see ``certkit.language.verification``, which takes what is given here."""
    found = Findings()
    record = language.verify_language(directory, found, _no_less, **given)
    return Verification(
        certificate=digest_file(directory / LANGUAGE),
        subject=record.subject,
        verified=tuple(found.yes),
        not_verified=tuple(found.no),
    )


def _assumes(certificate: Certificate, deployed: Ledger, computed: Sequence[str] = ()) -> None:
    """Raises Tampered unless the claim about the execution names all that its ledger says it rests on.

    Which functions were measured is told of the machine that certified: the wording for any that certkit knows will do, and
    the one for a machine that it does not know. What is named beyond that weakens the claim, and is no forgery.
    """
    for here in (*MEASURED, ELSEWHERE):
        texts = (re.escape(text).replace(re.escape(UNNAMED), NAMED) for text in assumptions(deployed, computed, here))
        if all(any(re.fullmatch(text, one) for one in certificate.execution.assumptions) for text in texts):
            return
    raise Tampered(
        "certificate.json: execution.assumptions leaves out what the claim rests on by its ledger; certify again"
    )


def allowance(ledger: Ledger, deployed: Ledger) -> float:
    """How far a logit of the module may be from one of the graph, each off by its own rounding."""
    return deployed.pairs.error.to_float() / 2 + ledger.pairs.error.to_float() / 2


def _same_subject(certificate: Certificate, subject: Subject, found: Findings) -> None:
    if subject.sha256 != certificate.subject.sha256:
        raise CheckpointError(
            f"the checkpoint has sha256 {subject.sha256[:12]}…, the certificate is for {certificate.subject.sha256[:12]}…; "
            "give the one that was certified"
        )
    if subject.parameters != certificate.subject.parameters:
        raise Tampered(
            f"certificate.json: states {certificate.subject.parameters} parameters, the checkpoint has {subject.parameters}"
        )
    found.verified("checkpoint", f"sha256 {subject.sha256}")


def _same_data(certificate: Certificate, table: Certified, data: Dataset, found: Findings) -> None:
    record = certificate.data
    if data.record.sha256 != record.sha256 or data.record.classes != record.classes:
        raise DataError(
            f"the samples of {one_line(data.record.name, 80)!r} have sha256 {data.record.sha256[:12]}…, the certificate is for "
            f"{record.sha256[:12]}…; give the data set that was certified"
        )
    if data.box != certificate.threat.box:
        raise Tampered(f"certificate.json: its box {certificate.threat.box} is not that of the samples, {data.box}")
    if not (np.array_equal(data.indices.numpy(), table.index) and np.array_equal(data.labels.numpy(), table.label)):
        raise Tampered(f"{certificate.table.name}: an index or a label is not that of the samples; certify again")
    read = data.record  # the same samples may bear another name
    found.verified("samples", f"{read.count} of {read.name}/{read.split}, sha256 {read.sha256}")


class _Fresh:
    """The proof as this machine makes it from the network: graph and both ledgers."""

    def __init__(self, certificate: Certificate, model: nn.Module) -> None:
        self.certificate = certificate
        self.program: Program = export(model, certificate.input_shape)
        if self.program.sha256 != certificate.program_sha256:
            raise Tampered(
                "certificate.json: program_sha256 is not that of the network's graph"
                + self.elsewhere("; certify the checkpoint again")
            )
        interpret = Interpreter(self.program)
        norm, box = certificate.threat.norm, certificate.threat.box
        self.ledger = interpret(norm, box)
        self.deployed = interpret(norm, box, arithmetic=self.program.arithmetic)
        self.claim = float_claim(self.program, self.deployed)

    def claims(self) -> None:
        """Raises Tampered where more is claimed of the execution than can be, or less is said of what it rests on."""
        execution = self.certificate.execution
        if execution.pair_error is not None and not self.claim.holds:
            raise Tampered(
                f"certificate.json: it claims what its program's execution cannot be claimed to do: {self.claim.reasons[0]}"
                f"{self.elsewhere('')}"
            )
        if execution.pair_error is None and execution.reasons != self.claim.reasons:
            raise Tampered(
                f"certificate.json: execution.reasons is not what this network gives{self.elsewhere('; certify again')}"
            )
        _assumes(self.certificate, self.deployed, folded(self.program, self.deployed.arithmetic))

    def elsewhere(self, otherwise: str) -> str:
        """What a difference may come from: the torch that made the certificate, or else what to do."""
        made = self.certificate.environment.torch
        return otherwise if made == torch.__version__ else f" (made with torch {made}, this is {torch.__version__})"

    def compare(self, ledger: Ledger, deployed: Ledger, found: Findings) -> None:
        """Raises Tampered unless each ledger is of this graph and states no evidence below what is measured here."""
        found.verified("graph", f"exported again, program_sha256 {self.program.sha256}")
        for name, claimed, fresh in (("ledger", ledger, self.ledger), ("execution_ledger", deployed, self.deployed)):
            numbers = _no_less(name, claimed, from_json(json.loads(json.dumps(to_json(fresh)))), self.elsewhere(""))
            found.verified(name, f"{numbers} measurements made again from the weights: none was stated too small")

    def rows(self, model: nn.Module, table: Certified, data: Dataset, rows: NDArray[np.int64], found: Findings) -> None:
        """Logits and radii of some samples, from their images. Raises Tampered for one that is not as stated."""
        images = data.images[torch.from_numpy(rows)]
        logits = centres(self.program, images).numpy()
        off = np.abs(logits - table.logits[rows]).max(axis=1)
        if bad := rows[off > DIGITS * np.maximum(np.abs(logits).max(axis=1), 1.0)].tolist():
            raise Tampered(f"{self._row(table, bad[0])} its stated logits are not those of the network")
        proved = proved_rows(
            self.program,
            (self.ledger, self.deployed),
            self.claim,
            images,
            logits,
            index=table.index[rows],
            label=table.label[rows],
        )
        for column in ("radius", "global_radius", "float_radius"):
            stated, fresh = getattr(table, column)[rows], getattr(proved, column)
            if bad := rows[stated > fresh * (1 + DIGITS)].tolist():
                raise Tampered(f"{self._row(table, bad[0])} its stated {column} is larger than what is proved here")
        found.verified(
            "logits and radii", f"of {len(rows)} samples proved again; the logits differ by at most {off.max():.3g}"
        )
        with torch.no_grad():
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            own = model(images.to(device, self.program.dtype)).cpu().double().numpy()
        difference = float(np.abs(own - logits).max())
        if not difference <= (allowed := allowance(self.ledger, self.deployed)):
            raise Tampered(
                f"certificate.json: on these samples module and graph differ by {difference:.3g}, more than rounding explains "
                f"({allowed:.3g})"
            )
        found.verified(
            "agreement", f"module and graph differ by {difference:.3g} on the same samples, allowed {allowed:.3g}"
        )

    def _row(self, table: Certified, row: int) -> str:
        return f"{self.certificate.table.name}: sample {int(table.index[row])}:"


def _no_less(name: str, stated: Ledger, fresh: Ledger, elsewhere: str) -> int:
    """How many numbers of evidence were compared: each stated one is at least the one measured. Raises Tampered."""
    if stated.arithmetic != fresh.arithmetic:
        raise Tampered(f"{name}: it is of {stated.arithmetic} arithmetic, but this one must be of {fresh.arithmetic}")
    if len(stated.steps) != len(fresh.steps) or stated.output != fresh.output:
        raise Tampered(
            f"{name}: {len(stated.steps)} steps, but the network's graph gives {len(fresh.steps)}{elsewhere}"
        )
    count = 0
    for step, own in zip(stated.steps, fresh.steps, strict=True):
        for part in ("node", "op", "module", "rule", "inputs", "attributes"):
            if getattr(step, part) != getattr(own, part):
                raise Tampered(
                    f"{name}: {one_line(own.node)}: the stated {part} are not those of the network{elsewhere}"
                )
        count += _evidence(name, step, own, elsewhere)
    pairs = stated.pairs, fresh.pairs
    if pairs[0].node != pairs[1].node or any(
        (a is None) != (b is None) for a, b in zip(*map(_norms, pairs), strict=True)
    ):
        raise Tampered(f"{name}: the logits are not read where the network reads them{elsewhere}")
    for a, b in zip(*map(_norms, pairs), strict=True):
        for high, low in zip(_flat(a), _flat(b), strict=True):
            count += 1
            if not high >= low:
                raise Tampered(f"{name}: the stated norm of a pair of logits is below the one measured{elsewhere}")
    return count


def _norms(pairs: object) -> tuple[Matrix | None, Matrix | None]:
    return pairs.l2, pairs.l1  # type: ignore[attr-defined]


def _flat(matrix: Matrix | None) -> list[Up]:
    return [] if matrix is None else [number for row in matrix for number in row]


def _evidence(name: str, step: Step, own: Step, elsewhere: str) -> int:
    if step.evidence.keys() != own.evidence.keys():
        raise Tampered(f"{name}: {one_line(own.node)}: its evidence is not what rule {own.rule!r} reads{elsewhere}")
    for key, measured in own.evidence.items():
        if not step.evidence[key] >= measured:
            raise Tampered(
                f"{name}: {one_line(own.node)}: the stated {key} {one_line(step.evidence[key], 30)} is below the "
                f"{one_line(measured, 30)} measured from the weights: forged, or another network{elsewhere}"
            )
    return len(own.evidence)
