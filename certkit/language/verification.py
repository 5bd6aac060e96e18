"""A language audit checked from its files, and from checkpoint and text: what was proved is proved again, and compared.

What follows from the files alone is ``certkit.language.stated``'s. With the checkpoint: the graph is exported, every norm
measured and no stated one may be less, some contexts drawn by a seed are proved again, examples inside radii are judged
again. With the text: that its tokens are those of the rows.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from certkit.bounds.ledger import Ledger, from_json, to_json
from certkit.data import fingerprint
from certkit.errors import DataError, Tampered
from certkit.language import audit
from certkit.language.certificate import Bounded, agreement, bounded, proof
from certkit.language.contradictions import replayed
from certkit.language.execution import execution
from certkit.language.positions import Positions
from certkit.language.published import published_bound
from certkit.language.records import LanguageAudit, Text
from certkit.language.stated import AGAIN, DIGITS, NAME, Findings, Stated, elsewhere, near, read, same_subject
from certkit.machine import pinned
from certkit.models.gpt import LanguageModel
from certkit.records import Subject
from certkit.text.tokens import Tokens

NoLess = Callable[[str, Ledger, Ledger, str], int]  # raises Tampered for evidence that is below what was measured


def verify_language(
    directory: Path,
    found: Findings,
    no_less: NoLess,
    *,
    model: LanguageModel | None = None,
    subject: Subject | None = None,
    text: Tokens | None = None,
    samples: int,
    seed: int | None = None,
) -> LanguageAudit:
    """Check the folder of a language audit, write down what was found, and return its record.

    ``samples`` contexts are proved again; without a ``seed`` nobody can know beforehand which. Raises Tampered or
    RuleViolation for what contradicts itself or the network, CheckpointError for another checkpoint, DataError for another
    text, RecordError for what cannot be read.
    """
    stated = read(directory, found)
    if model is None:
        found.open("evidence", "norms and other measurements are as stated: give --checkpoint to measure them again")
        found.open("radii and losses", "need the checkpoint")
        if stated.record.contradictions:
            found.open(
                "contradictions", "what the examples disprove is as stated: give --checkpoint to judge them again"
            )
    else:
        same_subject(stated.record, subject)
        found.verified("checkpoint", f"sha256 {stated.record.subject.sha256}")
        with pinned(min(max(stated.record.environment.threads, 1), os.cpu_count() or 1)):
            given = _measured(stated, model, no_less, found)
            _contexts(stated, given, model, samples, secrets.randbits(32) if seed is None else seed, found)
            _judged(directory, stated, given, model, found)
    if text is None:
        found.open("text", "tokens are as stated: give --data to read them again")
    else:
        _same_text(stated, text, found)
    found.open("attacks", "distances, and the tokens that were replaced, are as stated; certkit language attacks again")
    found.open("names and times", "of network, text and machine, and when it was made: as stated")
    for assumption in (*stated.record.assumptions, *stated.record.execution.assumptions):
        found.open("assumption", assumption)
    return stated.record


# --- From the files alone ---------------------------------------------------------------------------------------------


def _measured(stated: Stated, model: LanguageModel, no_less: NoLess, found: Findings) -> Bounded:
    """The bounds as this machine makes them: of the same graph, and no evidence stated below what is measured."""
    record, hint = stated.record, elsewhere(stated.record)
    given = bounded(model, record.context, record.slope.reach)
    if given.program.sha256 != record.program_sha256:
        raise Tampered(f"{NAME}: program_sha256 is not that of the network's graph{hint or f'; {AGAIN}'}")
    found.verified("graph", f"exported again, program_sha256 {record.program_sha256}")
    for name, claimed, fresh in (
        ("ledger", stated.ledger, given.everywhere),
        ("execution_ledger", stated.deployed, given.deployed),
    ):
        if claimed is None:
            found.open(name, "is none, as nothing is claimed of the execution")
            continue
        if fresh is None:
            raise Tampered(f"{NAME}: {name} states a proof where this machine finds none{hint or f'; {AGAIN}'}")
        numbers = no_less(name, claimed, from_json(json.loads(json.dumps(to_json(fresh)))), hint)
        found.verified(name, f"{numbers} measurements made again from the weights: none was stated too small")
    words = audit.words(_embeddings(model))
    for name in ("longest", "rms", "nearest"):
        if not math.isclose(getattr(words, name), getattr(record.words, name), rel_tol=DIGITS):
            raise Tampered(f"{NAME}: words.{name} is not that of the network's embeddings; {AGAIN}")
    published = published_bound(model)
    if not near(published, record.slope.published):
        raise Tampered(f"{NAME}: slope.published is not what the formula gives for this network; {AGAIN}")
    vectors = _embeddings(model)[torch.from_numpy(stated.table.token)].float().contiguous()
    labels = torch.from_numpy(stated.table.true[:, -1].copy())
    if fingerprint(vectors, labels) != stated.campaign.plan.data.sha256:
        raise Tampered(f"campaign/plan.json: attacked other embeddings than those of {record.table.name}; {AGAIN}")
    return given


def _embeddings(model: LanguageModel) -> Tensor:
    rows = model.embed.weight
    assert isinstance(rows, Tensor)
    return rows.detach()


def _contexts(stated: Stated, given: Bounded, model: LanguageModel, samples: int, seed: int, found: Findings) -> None:
    """Some contexts proved again, at the radii that were tried: nothing stated may be better than what is proved here."""
    record, table = stated.record, stated.table
    rows = np.sort(np.random.default_rng(seed).permutation(record.contexts)[:samples])
    x, y = table.token[rows], table.true[rows]
    embedded = _embeddings(model)[torch.from_numpy(x)]
    again = proof(given, embedded, record.tried, steps=0)
    own = execution(given, again, embedded)
    if record.execution.pair_error is not None and not own.claim.holds:
        raise Tampered(
            f"{NAME}: it claims what its program's execution cannot be claimed to do: {own.claim.reasons[0]}"
            f"{elsewhere(record)}"
        )
    if record.execution.pair_error is None and own.claim.holds:
        found.open("execution", "could be claimed of here, and is not")
    fresh = audit.positions(again, own, x, y, stated.ways, stated.eps)
    _compare(stated, fresh, rows)
    difference = agreement(given, model, embedded, again)
    found.verified(
        "radii and losses",
        f"of all {record.context} positions of {len(rows)} contexts proved again: none was better than here",
    )
    found.verified("agreement", f"module and graph differ by {difference:.3g} on the same contexts")
    if len(rows) < record.contexts:
        how = f"of {record.contexts - len(rows)} contexts that were not drawn (by seed {seed}): give --samples"
        found.open("other radii and losses", how)


def _compare(stated: Stated, fresh: Positions, rows: np.ndarray) -> None:
    table = stated.table

    def wrong(name: str, where: np.ndarray, how: str) -> None:
        if where.any():
            n, t = np.argwhere(where)[0].tolist()
            raise Tampered(
                f"{stated.record.table.name}: context {int(rows[n])}, position {t}: its stated {name} is {how} here"
                f"{elsewhere(stated.record)}"
            )

    wrong("predicted", table.predicted[rows] != fresh.predicted, "not the one that is computed")
    off = np.abs(table.loss[rows] - fresh.loss)
    wrong("loss", off > DIGITS * np.maximum(fresh.loss, 1.0), "not the one that is computed")
    wrong("room", table.room[rows] > fresh.room * (1 + DIGITS), "larger than what is proved")
    for place, way in enumerate(stated.ways):
        for name in ("radius", "float_radius"):
            claimed, own = getattr(table, name)[place][rows], getattr(fresh, name)[place]
            wrong(f"{name}_{way.column}", claimed > own * (1 + DIGITS), "larger than what is proved")
    for place, at in enumerate(stated.eps):
        for name in ("lost", "changed"):
            claimed, own = getattr(table, name)[place][rows], getattr(fresh, name)[place]
            with np.errstate(invalid="ignore"):
                less = claimed < own - DIGITS * np.maximum(np.where(np.isfinite(own), own, 0.0), 1.0)
            wrong(f"{name}_{at.text}", less, "smaller than what is proved")


def _judged(directory: Path, stated: Stated, given: Bounded, model: LanguageModel, found: Findings) -> None:
    """Every example that was kept disproves here what it is said to disprove of the exact function."""
    kept = [one for one in stated.record.contradictions if one.example is not None]
    if not stated.record.contradictions:
        return
    for one in kept:
        again = replayed(directory, one, stated.table, given, model)
        where = f"{NAME}: the contradiction of context {one.context}, position {one.position}"
        if again.distance > one.distance * (1 + DIGITS):
            raise Tampered(f"{where} lies at {again.distance:.9g}, farther away than stated; {AGAIN}")
        if (again.refutes == "exact arithmetic") != (one.refutes == "exact arithmetic"):
            raise Tampered(f"{where} disproves here: {again.refutes}, and not: {one.refutes}; {AGAIN}")
        if again.refutes != one.refutes:
            found.open(
                "execution", f"context {one.context}, position {one.position}: a {again.refutes} on this machine"
            )
    found.verified("contradictions", f"{len(kept)} examples judged again in float64: they disprove what is stated")
    if len(kept) < len(stated.record.contradictions):
        found.open(
            "contradictions", f"{len(stated.record.contradictions) - len(kept)} without a kept example, as stated"
        )


# --- From the text ----------------------------------------------------------------------------------------------------


def _same_text(stated: Stated, text: Tokens, found: Findings) -> None:
    record, table = stated.record, stated.table
    given = Text(**text.record.model_dump()).model_copy(update={"name": record.data.name})  # it may bear another name
    if given != record.data:
        raise DataError(
            f"the text has sha256 {given.sha256[:12]}…, the audit is of {record.data.sha256[:12]}…; give the one that was audited"
        )
    x, y = text.windows(record.context, record.contexts)
    if not (np.array_equal(x.numpy(), table.token) and np.array_equal(y.numpy(), table.true)):
        raise Tampered(f"{record.table.name}: a token is not that of the text; {AGAIN}")
    for shown in record.shown:
        n = shown.context
        told = (shown.tokens, shown.true, shown.predicted)
        if told != tuple(audit.spelled(text, ids[n]) for ids in (table.token, table.true, table.predicted)):
            raise Tampered(f"{NAME}: context {n} is not spelled as its tokens are; {AGAIN}")
    for one in record.contradictions:
        until = table.token[one.context, : one.position + 1]
        spelled = audit.spelled(text, until[max(0, len(until) - len(one.text)) :])
        if one.text != spelled or one.predicted != text.decode([int(table.predicted[one.context, one.position])]):
            raise Tampered(
                f"{NAME}: context {one.context}, position {one.position} is not spelled as its tokens are; {AGAIN}"
            )
    for replaced in record.substitutions:
        if replaced.before != audit.spelled(text, table.token[replaced.context]):
            raise Tampered(f"{NAME}: a text of substitutions is not that of its context; {AGAIN}")
    found.verified("text", f"{record.contexts} contexts of {record.data.split}, sha256 {record.data.sha256}")
