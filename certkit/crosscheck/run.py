"""The cross-checking job: what independent methods say of a network, beside its certificate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from torch import nn

from certkit.checkpoint import subject_of
from certkit.crosscheck.defaults import ALPHA, DRAWS, METHODS, SAMPLES
from certkit.crosscheck.lirpa import cross_check
from certkit.crosscheck.smooth_attack import attack_smoothed
from certkit.crosscheck.smoothing import smooth
from certkit.data import Dataset
from certkit.engine.interpret import Interpreter
from certkit.engine.program import export
from certkit.engine.slopes import step_slopes
from certkit.errors import ConfigError
from certkit.files import save
from certkit.machine import environment, pinned, provenance
from certkit.records import Norm, Subject, Threat, radii
from certkit.records.crosscheck import AttainedSlope, CrossCheck, MethodName, Timed

STARTS = 4
ROUNDS = 3


def crosscheck(
    model: nn.Module,
    data: Dataset,
    *,
    eps: Sequence[str | float | Fraction],
    norm: Norm = "l2",
    out: Path,
    samples: int = SAMPLES,
    methods: Sequence[MethodName] = METHODS,
    with_radii: bool = True,
    sigma: float | None = None,
    draws: int = DRAWS,
    alpha: float = ALPHA,
    seed: int = 0,
    subject: Subject | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> CrossCheck:
    """Ask the independent methods about the first ``samples`` of the data and write ``out/crosscheck.json``.

    Slopes that are really attained, per operator, from below; auto_LiRPA's bounds, float64 and not rounded outward; and, if
    ``sigma`` is given, randomised smoothing with an attack on the smoothed classifier: statements about another classifier.
    ``out`` may be the folder of a certificate, which the audit then shows beside these. What a method cannot do is in the
    record in its own words. Raises Refusal or NoRule for a network that cannot be bounded, ConfigError for arguments that
    cannot be meant.
    """
    started = time.monotonic()
    if samples < 1:
        raise ConfigError(f"samples must be 1 or more, got {samples}")
    if sigma is not None and norm != "l2":
        raise ConfigError(f"smoothing certifies in l2, and norm is {norm}; leave sigma out, or take l2")
    few = data.first(samples)
    threat = Threat(norm=norm, eps=radii(eps), box=data.box)
    asked = [radius.text for radius in threat.eps]
    identity = subject or subject_of(model)
    with pinned(threads) as count:
        program = export(model, tuple(data.images.shape[1:]))
        ledger = Interpreter(program)(norm, data.box)
        progress("slopes")
        starts = few.images[:STARTS]
        slopes = step_slopes(program, ledger, starts, rounds=ROUNDS)
    progress("auto_LiRPA")
    lirpa = cross_check(program, few, eps=asked, norm=norm, methods=methods, with_radii=with_radii, threads=threads)
    smoothing = None
    if sigma is not None:
        progress("smoothing")
        smoothing = smooth(
            model, few, sigma=sigma, eps=asked, draws=draws, alpha=alpha, seed=seed, out=out, subject=identity, threads=threads
        )  # fmt: skip
        smoothing = attack_smoothed(model, few, smoothing, threads=threads)
    found = CrossCheck(
        subject=identity,
        program_sha256=program.sha256,
        data=data.record,
        threat=threat,
        samples=len(few.labels),
        starts=len(starts),
        slopes=tuple(AttainedSlope(node=node, slope=slope.value) for node, slope in slopes.items()),
        lirpa=lirpa.model_copy(update={"costs": ()}),
        smoothing=smoothing,
        environment=environment("cpu", count),
        provenance=Timed(**dict(provenance(started)), costs=lirpa.costs),
    )
    save(found, Path(out) / "crosscheck.json")
    return found
