"""The audit: certificate and campaign side by side, sample by sample, and what follows for the claim.

    DIR/certificate.json + DIR/certified.parquet + DIR/campaign/  --audit-->  DIR/audit.json

What can be derived is derived again first (``certkit.proof``). The campaign is the falsifier: an adversarial example
inside a certified radius is run once more in float64.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from certkit.bounds.bound import norm_name
from certkit.bounds.ledger import Ledger, Step
from certkit.bounds.rules import why
from certkit.campaign import CLEAN, Campaign, load_campaign
from certkit.certified import Certified
from certkit.crosscheck.view import NAME, load_crosscheck, too_steep, view
from certkit.errors import RecordError, Tampered, one_line
from certkit.files import digest, digest_file, save, write_atomic
from certkit.health.view import NAME as HEALTH
from certkit.health.view import excluded, load_health
from certkit.health.view import view as health_view
from certkit.machine import provenance
from certkit.pictures import pictures
from certkit.proof import load_certificate
from certkit.records import (
    Audit,
    Certificate,
    Check,
    Contradiction,
    CurvePoint,
    Eps,
    File,
    LedgerRow,
    Refutes,
    Sample,
    Subject,
    Verdict,
)
from certkit.shards import shards_digest
from certkit.statistics import rate

if TYPE_CHECKING:
    from torch import nn

    from certkit.data import Dataset

SHOWN = Context(prec=6, rounding=ROUND_CEILING)
SHOWN_DOWN = Context(prec=6, rounding=ROUND_FLOOR)


def audit(
    directory: Path,
    *,
    model: nn.Module | None = None,
    subject: Subject | None = None,
    data: Dataset | None = None,
) -> Audit:
    """Check the certificate in a directory, set the campaign beside it, and write ``audit.json``.

    Without a campaign the verdict is NOT EVALUATED. ``model`` is needed only where the campaign found an example inside a
    certified radius, which is then evaluated again in float64 and saved; it must be the certified checkpoint (``subject``,
    if it was read from a file). ``data``, the samples attacked, are needed only for pictures of them; without, those of the
    audit.json that stands there are kept while they show this campaign's examples. Raises Tampered or RuleViolation when a
    record contradicts itself, RecordError when the two do not speak of the same network, samples and threat.
    """
    directory = Path(directory)
    record, examples = derived(directory, model=model, subject=subject, data=data)
    for name, example in examples.items():
        write_atomic(directory / name, example)
    save(record, directory / "audit.json")
    return record


def derived(
    directory: Path,
    *,
    model: nn.Module | None = None,
    subject: Subject | None = None,
    data: Dataset | None = None,
    stated: Sequence[Contradiction] | None = None,
) -> tuple[Audit, dict[str, bytes]]:
    """The audit that follows from a directory's certificate, campaign and cross-check, and the examples it saves; writes nothing.

    As ``audit``. Where there is no model, what ``stated`` says of each contradiction's float64 margin and of the program's
    error is believed, and nothing else of it. Raises Tampered where it passes over an example inside a certified radius.
    """
    started = time.monotonic()
    certificate, table, ledger = load_certificate(directory)
    campaign = load_campaign(directory) if (directory / "campaign").exists() else None
    if campaign is not None:
        _same_subject(certificate, table, campaign)
    if model is not None:
        _same_model(certificate, model, subject)
    contradictions, examples = (
        ((), {}) if campaign is None else _contradictions(certificate, table, campaign, model, stated)
    )
    cross = load_crosscheck(directory, certificate, table, ledger)
    health = load_health(directory, certificate, ledger)
    verdict, reason = _verdict(
        contradictions,
        campaign,
        () if cross is None else too_steep(cross, ledger),
        () if health is None else excluded(health, ledger),
    )
    found = _distances(campaign, len(table.label))
    slopes = {} if cross is None else {one.node: one.slope for one in cross.slopes}
    radius = np.where(table.correct, table.radius, 0.0)
    known = found[np.isfinite(found)]
    total = len(table.label)
    record = Audit(
        verdict=verdict,
        verdict_reason=reason,
        statement=_statement(certificate),
        subject=certificate.subject,
        data=certificate.data,
        threat=certificate.threat,
        input_shape=certificate.input_shape,
        claim=certificate.claim,
        clean=certificate.clean,
        curve=tuple(
            CurvePoint(
                eps=point.eps,
                certified=point.certified,
                attacked=None if campaign is None else rate(int(campaign.robust(point.eps.value).sum()), total),
            )
            for point in certificate.certified
        ),
        lipschitz=_lipschitz(ledger),
        median_radius=certificate.median_radius,
        without_local=certificate.without_local,
        execution=certificate.execution,
        median_distance=float(np.median(known)) if len(known) else None,
        contradictions=contradictions,
        campaign=campaign.summary() if campaign else None,
        samples=tuple(
            Sample(
                index=int(table.index[i]),
                label=int(table.label[i]),
                predicted=int(table.predicted[i]),
                margin=float(table.margin[i]),
                radius=float(radius[i]),
                distance=float(found[i]) if np.isfinite(found[i]) else None,
                attack=campaign.attack[i] if campaign else None,
            )
            for i in range(total)
        ),
        pictures=pictures(directory, campaign, radius, data),
        ledger=tuple(_row(step, certificate.threat.norm, slopes.get(step.node)) for step in ledger.steps),
        attention=certificate.attention,
        health=None if health is None else health_view(health, ledger),
        crosscheck=None if cross is None else view(cross, ledger, table, _nearest(table, contradictions, found)),
        checks=(*(campaign.checks if campaign else ()), *_own_checks(contradictions, campaign, radius, found)),
        assumptions=certificate.assumptions,
        limits=_limits(certificate, campaign),
        files=_files(directory, certificate, campaign),
        environment=certificate.environment,
        provenance=provenance(started).model_copy(
            update={
                "files": tuple(
                    File(name=name, sha256=digest_file(directory / name))
                    for name, held in (("certificate.json", certificate), (NAME, cross), (HEALTH, health))
                    if held is not None
                )
            }
        ),
    )
    return record, examples


def _same_subject(certificate: Certificate, table: Certified, campaign: Campaign) -> None:
    """Both records must speak of one network, one set of samples and one threat."""
    plan = campaign.plan
    if plan.subject.sha256 != certificate.subject.sha256:
        raise RecordError(
            "the campaign attacked another checkpoint than the certificate is for; run both on one checkpoint"
        )
    same_rows = np.array_equal(campaign.index, table.index) and np.array_equal(campaign.label, table.label)
    if plan.data.sha256 != certificate.data.sha256 or not same_rows:
        raise RecordError("the campaign attacked other samples than the certificate is for; run both on the same data")
    if (plan.threat.norm, plan.threat.box) != (certificate.threat.norm, certificate.threat.box):
        raise RecordError(
            f"the campaign's threat is {plan.threat.norm} on {plan.threat.box}, the certificate's "
            f"{certificate.threat.norm} on {certificate.threat.box}; run both with one norm"
        )
    if plan.threat.goal != "untargeted" or plan.threat.knowledge != "white-box":
        raise RecordError(
            f"the campaign is {plan.threat.goal} with {plan.threat.knowledge} knowledge, and the certificate holds against "
            "any error and any attacker; audit it beside an untargeted white-box campaign"
        )
    tried, claimed = max(plan.threat.eps, key=_value), max(certificate.threat.eps, key=_value)
    if tried.value < claimed.value:
        raise RecordError(
            f"the campaign attacked up to {tried.text}, the certificate speaks of {claimed.text}; run both with one --eps"
        )


def _value(eps: Eps) -> float:
    return eps.value


def _same_model(certificate: Certificate, model: nn.Module, subject: Subject | None) -> None:
    """The model given must be the one that was certified, weight for weight."""
    from certkit.checkpoint import subject_of

    if (subject or subject_of(model)).sha256 != certificate.subject.sha256:
        raise RecordError("the model given is not the checkpoint that was certified: its weights differ")


def _distances(campaign: Campaign | None, total: int) -> NDArray[np.float64]:
    return (
        np.full(total, np.inf) if campaign is None else np.where(np.isnan(campaign.distance), np.inf, campaign.distance)
    )


def _nearest(
    table: Certified, contradictions: tuple[Contradiction, ...], found: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The distances with 0 where a certified sample is wrong as it is: the same contradictions as the verdict knows."""
    return np.where(np.isin(table.index, [one.index for one in contradictions if one.attack == CLEAN]), 0.0, found)


RANK = {"float gap": 0, "float execution": 1, "exact arithmetic": 2}  # what an input inside a radius disproves


def _contradictions(
    certificate: Certificate,
    table: Certified,
    campaign: Campaign,
    model: nn.Module | None,
    stated: Sequence[Contradiction] | None,
) -> tuple[tuple[Contradiction, ...], dict[str, bytes]]:
    """Inputs nearer than the certified radius that the deployed program gets wrong, one for each sample that has any, and their files.

    The distance is rounded up and the radius down. Every attack's example counts, not only the nearest: for each sample the
    one that disproves most is kept. The claim about the execution speaks of a CPU and of pinned kernels: what a campaign
    on a CPU finds is run once more under them, one example at a time as the program was exported.
    """
    proved = table.correct & (table.radius > 0)
    pinned_here = campaign.plan.device == "cpu"
    found = {
        int(row): Contradiction(
            index=int(table.index[row]),
            attack=CLEAN,
            distance=0.0,
            radius=float(table.radius[row]),
            # not the exact claim: the certificate's own centre is this very input, and it is right beyond its error
            refutes="float execution" if pinned_here and table.float_radius[row] > 0 else "float gap",
            reference_margin=float(table.margin[row]),
            example=None,
        )
        for row in np.flatnonzero(proved & ~campaign.clean_correct)
    }
    hits = [
        (int(row), attack)
        for attack, distance in campaign.by_attack.items()
        for row in np.flatnonzero(proved & (distance < table.radius))
    ]
    if hits and model is None and stated is None:
        raise RecordError(
            f"{len(hits)} adversarial examples lie inside certified radii and must be evaluated in float64; "
            "run certkit audit, or certkit report with --checkpoint"
        )
    files: dict[str, bytes] = {}
    for row, attack, margin, errs in (
        _believed(hits, table, stated or ()) if model is None else _evaluated(hits, certificate, table, campaign, model)
    ):
        exact = margin < -certificate.pair_error
        refutes: Refutes = "exact arithmetic" if exact else "float execution" if errs else "float gap"
        if row in found and RANK[found[row].refutes] >= RANK[refutes]:
            continue
        buffer = io.BytesIO()
        np.save(buffer, campaign.examples[attack][row], allow_pickle=False)
        name = f"refutations/sample-{int(table.index[row])}.npy"
        files[name] = buffer.getvalue()
        found[row] = Contradiction(
            index=int(table.index[row]),
            attack=attack,
            distance=float(campaign.by_attack[attack][row]),
            radius=float(table.radius[row]),
            refutes=refutes,
            reference_margin=margin,
            example=File(name=name, sha256=digest(buffer.getvalue())),
        )
    if missed := sorted({row for row, _ in hits} - found.keys()):
        raise Tampered(
            f"audit.json: says nothing of sample {int(table.index[missed[0]])}, of which an example lies inside its certified "
            "radius; run certkit report again"
        )
    return tuple(found[row] for row in sorted(found)), files


def _evaluated(
    hits: Sequence[tuple[int, str]], certificate: Certificate, table: Certified, campaign: Campaign, model: nn.Module
) -> Iterator[tuple[int, str, float, bool]]:
    """Each example with its float64 margin, rounded down, and whether the program errs on it within the radius of its claim."""
    if not hits:
        return
    examples = np.stack([campaign.examples[attack][row] for row, attack in hits])
    claimed = np.array([campaign.by_attack[attack][row] < table.float_radius[row] for row, attack in hits])
    errs = claimed & misclassified(model, examples, table.label[[row for row, _ in hits]])
    for (row, attack), logits, wrong in zip(hits, reference(certificate, model, examples), errs, strict=True):
        held = int(table.predicted[row])
        yield row, attack, float(np.nextafter(logits[held] - np.delete(logits, held).max(), -np.inf)), bool(wrong)


def _believed(
    hits: Sequence[tuple[int, str]], table: Certified, stated: Sequence[Contradiction]
) -> Iterator[tuple[int, str, float, bool]]:
    """The same, as an audit states it of the one example per sample that it names."""
    known = {(one.index, one.attack): one for one in stated}
    for row, attack in hits:
        if (one := known.get((int(table.index[row]), attack))) is not None:
            yield row, attack, one.reference_margin, one.refutes == "float execution"


def misclassified(model: nn.Module, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which inputs (N, ...) the program itself gets wrong, one at a time, under the kernels that its claim names.

    As everywhere a tie is wrong, whichever class stands first, and so is a logit that is no number.
    """
    import torch

    from certkit.engine.kernels import deployed

    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad(), deployed():
        rows = [model(torch.from_numpy(image)[None].to(dtype)).double() for image in images]
    logits: NDArray[np.float64] = torch.cat(rows).numpy()
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return np.asarray((own > logits).sum(axis=1) < logits.shape[1] - 1)


def reference(certificate: Certificate, model: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """The exact function's logits at some inputs, in float64 by the certified graph."""
    import torch

    from certkit.engine.execute import centres
    from certkit.engine.program import export
    from certkit.machine import pinned

    with pinned(certificate.environment.threads):
        program = export(model, certificate.input_shape)
        if program.sha256 != certificate.program_sha256:
            raise RecordError("the model given is not the one that was certified: its exported graph differs")
        logits: NDArray[np.float64] = centres(program, torch.from_numpy(images)).numpy()
    return logits


def _verdict(
    contradictions: tuple[Contradiction, ...],
    campaign: Campaign | None,
    too_steep: tuple[str, ...],
    too_large: tuple[str, ...],
) -> tuple[Verdict, str]:
    if refuting := [c for c in contradictions if c.refutes == "exact arithmetic"]:
        return "REFUTED", (
            f"{len(refuting)} adversarial example{'s lie' if len(refuting) > 1 else ' lies'} inside a certified radius: "
            "the certificate is wrong"
        )
    if too_steep:  # after what the examples show: crosscheck.json is as stated, and must not hide them
        return "REFUTED", (
            f"{NAME} states a slope at {too_steep[0]} that the ledger's gain forbids: if it was attained, the certificate is "
            "wrong; certkit crosscheck measures it again"
        )
    if too_large:
        return "REFUTED", (
            f"{HEALTH} states a number at {one_line(too_large[0], 80)} that the ledger's size forbids: if it was seen, the "
            "certificate is wrong; certkit audit measures it again"
        )
    if refuting := [c for c in contradictions if c.refutes == "float execution"]:
        return "REFUTED", (
            f"the program errs on {len(refuting)} sample{'s' if len(refuting) > 1 else ''} inside the radius that is claimed "
            "of its own execution: that claim is wrong; the one about exact arithmetic stands"
        )
    if campaign is None:
        return "NOT EVALUATED", "no attack campaign was run, so nothing has tried to refute the certificate"
    if failed := [check.id for check in campaign.checks if check.status == "fail"]:
        return "INCONCLUSIVE", f"the campaign failed its own checks ({', '.join(failed)}), so its silence means little"
    tried = f"{len(campaign.plan.attacks)} attacks on {int(campaign.clean_correct.sum())} correctly classified samples"
    if contradictions:
        return "NOT REFUTED", (
            f"{tried} found nothing that refutes a claim, but on {len(contradictions)} certified "
            "samples the deployed program errs inside the radius (float gaps)"
        )
    return "NOT REFUTED", f"{tried} found no adversarial example inside a certified radius"


def _statement(certificate: Certificate) -> str:
    """The sentence that ISO/IEC 24029-2:2023 asks for: domain, property, criterion, verifier class, arithmetic."""
    shape = " x ".join(str(n) for n in certificate.input_shape)
    low, high = certificate.threat.box
    return (
        f"Domain: inputs of shape {shape} with entries in [{low:g}, {high:g}], within eps of a sample in {certificate.threat.norm}. "
        "Property: stability of the predicted class. Criterion: for every input of the domain the class predicted for the "
        "sample keeps the one largest logit. Verifier: incomplete, deterministic, glass-box. Arithmetic: the claim is about "
        "the function in real arithmetic; every bound is computed with outward rounding."
    )


def _lipschitz(ledger: Ledger) -> float | None:
    """The bound from the threat's norm to the logits in l2, or None beyond float64."""
    bound = next(step.bound for step in ledger.steps if step.node == ledger.output)
    gain = bound.within(bound.axes).gain.to_float()
    return gain if np.isfinite(gain) else None


def _row(step: Step, norm: str, slope: float | None) -> LedgerRow:
    axes = step.bound.axes if norm == "l2" else frozenset[int]()
    reach = step.bound.within(axes)
    size, gain, error = (str(SHOWN.plus(number.value)) for number in (reach.size, reach.gain, reach.error))
    return LedgerRow(
        node=step.node,
        module=step.module,
        op=step.op,
        rule=step.rule,
        why=why(step.rule),
        norm=norm_name(step.bound.shape, axes),
        size=size,
        gain=gain,
        error=error,
        attained=None if slope is None or axes != step.bound.axes else str(SHOWN_DOWN.create_decimal(slope)),
    )


def _own_checks(
    contradictions: tuple[Contradiction, ...],
    campaign: Campaign | None,
    radius: NDArray[np.float64],
    found: NDArray[np.float64],
) -> tuple[Check, ...]:
    """The two checks that need both records: soundness and the gap."""
    if campaign is None:
        return ()
    exact, execution = (
        sum(c.refutes == what for c in contradictions) for what in ("exact arithmetic", "float execution")
    )
    gaps = len(contradictions) - exact - execution
    broken = np.isfinite(found)
    gap = f"median {np.median(found[broken] - radius[broken]):.3g} over {int(broken.sum())} broken samples"
    return (
        Check(
            id="EV22",
            name="no adversarial example inside a certified radius",
            status="fail" if exact or execution else "flag" if contradictions else "pass",
            figure=f"{exact} refute the exact claim, {execution} that of the execution, {gaps} are float gaps",
            advice="every example inside a certified radius is evaluated again in float64: certkit replay shows it again",
        ),
        Check(
            id="EV23",
            name="distance between certified radius and smallest attack",
            status="pass" if broken.any() else "not evaluated",
            figure=gap if broken.any() else "no sample was broken",
            advice="the truth lies between the two; a stronger attack or a tighter bound narrows the gap",
        ),
    )


def _limits(certificate: Certificate, campaign: Campaign | None) -> tuple[str, ...]:
    """What the audit does not show, from its own settings."""
    execution = certificate.execution
    limits = [
        f"The first claim is about the function in real arithmetic; that of its {execution.arithmetic} execution stands apart."
        if execution.pair_error is not None
        else f"The certificate is about the function in real arithmetic. Nothing is claimed of its {execution.arithmetic} "
        f"execution: {execution.reasons[0]}.",
        f"Only changes of at most eps in {certificate.threat.norm} are covered; a rotation or a blur is not.",
        f"The figures are about the {certificate.data.count} samples named; the intervals, about where they came from.",
        "A sample that is not certified need not be vulnerable: the bound is sound and not exact.",
    ]
    if campaign is None:
        limits.append("No attack campaign was run.")
    else:
        limits.append("Attacked accuracy is an upper bound: a stronger attack may find more.")
    if certificate.attention is not None and certificate.attention.decorative:
        limits.append(
            "Attention is decorative here: neither uniform attention weights nor removing the branch costs a point."
        )
    elif certificate.attention is not None and not certificate.attention.looks_at_content:
        limits.append(
            "Attention mixes positions here and hardly looks at the content: frozen at its mean, it does as well."
        )
    return tuple(limits)


def _files(directory: Path, certificate: Certificate, campaign: Campaign | None) -> tuple[File, ...]:
    """The digests of what was read; all shards of a campaign share one."""
    files = [certificate.table]
    if campaign is not None:
        folder = directory / "campaign"
        files += [
            File(name=f"campaign/{name}", sha256=digest_file(folder / name))
            for name in ("plan.json", "checks.json")
            if (folder / name).is_file()
        ]
        files.append(File(name="campaign/shards", sha256=shards_digest(folder / "shards")))
    return tuple(files)
