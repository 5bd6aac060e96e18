"""Example audits for the report's tests and pictures: realistic, whole, and the same on every call."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from scipy.stats import beta

from certkit.crosscheck.agreement import against, agreement
from certkit.files import digest
from certkit.pictures import contrast, levels, png_of
from certkit.records import (
    Ablation,
    AttackSpec,
    AttackSummary,
    Attention,
    Audit,
    CampaignSummary,
    CertifiedAt,
    Check,
    Contradiction,
    CurvePoint,
    Data,
    Environment,
    Eps,
    Execution,
    File,
    LedgerRow,
    Picture,
    Pictures,
    Provenance,
    Rate,
    Sample,
    Subject,
    Threat,
    Verdict,
    WithoutLocal,
)
from certkit.records.crosscheck import Cost, CrossView, Method
from certkit.records.pictures import BUDGET, MOST
from certkit.reports import render

EPS = ("0.1", "0.25", "0.5", "1.0")
REASONS: dict[str, str] = {
    "REFUTED": "1 adversarial example lies inside a certified radius and its float64 margin is below its own error.",
    "NOT REFUTED": "4 attacks on {n} samples found no example inside any certified radius; every planned unit ran.",
    "INCONCLUSIVE": "The campaign's positive control failed (EV17): an attack that fails there proves nothing here.",
    "NOT EVALUATED": "No attack campaign stands beside this certificate.",
}
ATTACKS = ("noise floor", "DDN", "L2-PGD", "L2-PGD restarts")


def rate(count: int, total: int) -> Rate:
    """The share with its two-sided 95 % Clopper-Pearson interval."""
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(0.975, count + 1, total - count))
    return Rate(count=count, total=total, low=low, high=high)


def samples(n: int, *, attacked: bool) -> tuple[Sample, ...]:
    """Samples of a network of 98 % clean accuracy, with radii around 0.35 and attacks at one to three times that."""
    draw = np.random.default_rng(20251123)
    made = []
    for index in range(n):
        label = int(draw.integers(10))
        wrong = bool(draw.random() < 0.018)
        margin = float(draw.gamma(6.0, 0.16)) * (-0.3 if wrong else 1.0)
        radius = 0.0 if wrong else float(np.floor(margin / 2.31 * 2**16) / 2**16)
        distance = radius * float(1.08 + draw.gamma(2.0, 0.35)) + 0.004
        found = attacked and not wrong and distance <= 1.0
        attack = ATTACKS[1 + int(draw.integers(3))] if found else None
        made.append(
            Sample(
                index=index,
                label=label,
                predicted=(label + 5) % 10 if wrong else label,
                margin=margin,
                radius=radius,
                distance=distance if found else None,
                attack=attack,
            )
        )
    return tuple(made)


def pictures(rows: tuple[Sample, ...], shape: tuple[int, int, int] = (1, 8, 8)) -> Pictures:
    """Noise of a shape for the samples with the smallest gap, each moved as far as its distance says, as many as there is room for."""
    broken = sorted(
        (row for row in rows if row.distance is not None),
        key=lambda row: (row.distance - row.radius, row.index),  # type: ignore[operator]
    )
    shown: list[Picture] = []
    for row in broken[:MOST]:
        draw = np.random.default_rng(row.index)
        image, direction = draw.random(shape, np.float32), draw.normal(size=shape)
        moved = image + direction / np.linalg.norm(direction) * (row.distance or 0.0)
        example = np.clip(moved, 0, 1).astype(np.float32)
        difference, factor = contrast(image, example, (0.0, 1.0))
        picture = Picture(
            index=row.index,
            becomes=(row.label + 3) % 10,
            factor=factor,
            input=png_of(levels(image, (0.0, 1.0))),
            adversarial=png_of(levels(example, (0.0, 1.0))),
            difference=png_of(difference),
        )
        if sum(one.length for one in (*shown, picture)) > BUDGET:
            break
        shown.append(picture)
    return Pictures(shown=tuple(shown), broken=len(broken), absent=None if shown else "no attack changed a sample")


def curve(rows: tuple[Sample, ...], *, attacked: bool = True) -> tuple[CurvePoint, ...]:
    correct = [row for row in rows if row.label == row.predicted]
    return tuple(
        CurvePoint(
            eps=eps,
            certified=rate(sum(row.radius >= eps.value for row in correct), len(rows)),
            attacked=rate(sum(row.distance is None or row.distance > eps.value for row in correct), len(rows))
            if attacked
            else None,
        )
        for eps in map(Eps.of, EPS)
    )


def without_local(rows: tuple[Sample, ...]) -> WithoutLocal:
    """The box alone proves a tenth less of every radius."""
    smaller = tuple(row.model_copy(update={"radius": 0.9 * row.radius}) for row in rows)
    return WithoutLocal(
        certified=tuple(CertifiedAt(eps=point.eps, certified=point.certified) for point in curve(smaller)),
        median_radius=float(np.median([row.radius for row in smaller])),
        improved=sum(row.radius > 0 for row in rows),
    )


def execution(rows: tuple[Sample, ...]) -> Execution:
    """Of the float32 program a hundredth less is proved."""
    smaller = tuple(row.model_copy(update={"radius": 0.99 * row.radius}) for row in rows)
    return Execution(
        arithmetic="float32",
        pair_error=0.0021,
        certified=tuple(CertifiedAt(eps=point.eps, certified=point.certified) for point in curve(smaller)),
        median_radius=float(np.median([row.radius for row in smaller])),
        reasons=(),
        assumptions=("the program runs in float32 on a CPU, with the kernels that are named",),
    )


def ledger() -> tuple[LedgerRow, ...]:
    """A transformer of two blocks, step by step, with gains that compose as its rules say."""
    steps = [
        ("x", "", "placeholder", "input", "the box [0, 1] around every sample", "l2", 8.0, 1.0),
        ("patches", "embed.patch", "aten.view.default", "relabel", "a view moves no number", "token", 4.0, 1.0),
        (
            "tokens",
            "embed.project",
            "aten.linear.default",
            "linear",
            "proved spectral norm of the weight",
            "token",
            4.0036,
            1.00091,
        ),
        (
            "positions",
            "embed",
            "aten.add.Tensor",
            "add constant",
            "a constant shifts, it does not stretch",
            "token",
            4.8113,
            1.00091,
        ),
    ]
    size, gain = 4.8113, 1.00091
    for block in range(2):
        where = f"blocks.{block}"
        for name, op, rule, why, factor in (
            ("q", "aten.linear.default", "linear", "proved spectral norm of the weight", 1.00021),
            ("k", "aten.linear.default", "linear", "proved spectral norm of the weight", 1.00017),
            ("v", "aten.linear.default", "linear", "proved spectral norm of the weight", 1.00033),
            (
                "sdpa",
                "aten.scaled_dot_product_attention.default",
                "attention",
                "scores and values move together; 4 heads joined cost sqrt(4)",
                2.26172,
            ),
            ("out", "aten.linear.default", "linear", "proved spectral norm of the weight", 0.50004),
            ("mix", "aten.add.Tensor", "residual", "(1 - a) x + a f(x) with a = 0.25", 1.03241),
            ("up", "aten.linear.default", "linear", "proved spectral norm of the weight", 1.00044),
            ("gelu", "aten.gelu.default", "gelu", "largest slope of GELU is 1.1289042", 1.1289042),
            ("down", "aten.linear.default", "linear", "proved spectral norm of the weight", 0.88604),
            ("mix_1", "aten.add.Tensor", "residual", "(1 - a) x + a f(x) with a = 0.25", 1.00051),
        ):
            gain, size = gain * factor, size * (1.0 + 0.04 * factor)
            module = f"{where}.attention.{name}" if name in {"q", "k", "v", "sdpa", "out"} else f"{where}.mlp.{name}"
            steps.append((f"{name}_{block}", module, op, rule, why, "token", size, gain))
    steps.append(
        (
            "mean",
            "pool",
            "aten.mean.dim",
            "mean",
            "the mean of 16 tokens moves by 1/sqrt(16) of their l2 norm",
            "l2",
            size,
            gain * 1.02,
        )
    )
    steps.append(
        (
            "logits",
            "head",
            "aten.linear.default",
            "linear",
            "proved spectral norm of the weight",
            "l2",
            size * 1.2,
            gain * 1.0204,
        )
    )
    return tuple(
        LedgerRow(
            node=node,
            module=module,
            op=op,
            rule=rule,
            why=why,
            norm=norm,
            size=f"{s:.18f}",
            gain=f"{g:.18f}",
            error=f"{(position + 1) * 3.141e-16:.18E}",
            attained=None if position in (0, 3) else f"{0.8 * g:.6f}",
        )
        for position, (node, module, op, rule, why, norm, s, g) in enumerate(steps)
    )


def crosscheck(rows: tuple[Sample, ...]) -> CrossView:
    """IBP and CROWN-IBP on the first half of the samples; CROWN could not read the network."""
    few = rows[: max(1, len(rows) // 2)]
    radius = np.array([row.radius for row in few])
    other = 0.7 * radius
    nearest = np.array([np.nan if row.distance is None else row.distance for row in few])
    return CrossView(
        version="0.3",
        message=None,
        methods=(
            Method(name="CROWN-IBP", message=None, bounds=(), radii=None, faults=()),
            Method(name="CROWN", message="NotImplementedError: no CROWN for this operator", bounds=(), radii=None, faults=()),
        ),
        against=tuple(
            against(eps, "CROWN-IBP", radius >= eps.value, other >= eps.value) for eps in map(Eps.of, EPS)
        ),
        agreement=agreement(
            [row.index for row in few], certkit=radius, lirpa=other, attack=nearest, method="CROWN-IBP"
        ),
        smoothing=None,
        costs=(Cost(method="CROWN-IBP", calls=4 * len(few), seconds=1.5, per_second=4 * len(few) / 1.5, peak_bytes=None),),
    )  # fmt: skip


def attention(rows: tuple[Sample, ...], *, decorative: bool) -> Attention:
    clean = sum(row.label == row.predicted for row in rows)
    cost = {
        "uniform": 0.004 if decorative else 0.11,
        "removed": 0.006 if decorative else 0.38,
        "frozen": 0.002 if decorative else 0.07,
    }
    return Attention(
        ablations=tuple(
            Ablation(
                name=name,
                clean=rate(round(clean * (1 - loss)), len(rows)),
                certified=tuple(
                    CertifiedAt(
                        eps=point.eps, certified=rate(round(point.certified.count * (1 - 1.4 * loss)), len(rows))
                    )
                    for point in curve(rows)
                ),
            )
            for name, loss in cost.items()
        ),
        largest_logit_spread=0.031 if decorative else 3.47219,
        largest_content_spread=0.017 if decorative else 1.28913,
        decorative=decorative,
        looks_at_content=not decorative,
    )


def campaign(rows: tuple[Sample, ...], *, complete: bool) -> CampaignSummary:
    correct = [row for row in rows if row.label == row.predicted]
    settings: dict[str, dict[str, float | int | str | bool]] = {
        "noise floor": {"repeats": 100},
        "DDN": {"steps": 100, "gamma": 0.05, "init_epsilon": 1.0},
        "L2-PGD": {"steps": 50, "rel_stepsize": 0.025, "random_start": True},
        "L2-PGD restarts": {"steps": 50, "rel_stepsize": 0.025, "random_start": True, "restarts": 5},
    }
    broken = sum(row.distance is not None for row in correct)
    planned = -(-len(rows) // 64) * (1 + len(ATTACKS))  # the unit "clean" and every attack, on each block
    return CampaignSummary(
        plan_sha256=digest(b"plan"),
        suite="standard",
        seed=0,
        block=64,
        threads=2,
        device="cpu",
        units_planned=planned,
        units_executed=planned if complete else planned - 2,
        attacks=tuple(
            AttackSummary(
                spec=AttackSpec(name=name, library="foolbox 3.3.4", settings=settings[name]),
                attacked=len(correct),
                found=0 if name == "noise floor" else broken * (8 + position) // 11,
                best=sum(row.attack == name for row in correct),
            )
            for position, name in enumerate(ATTACKS)
        ),
    )


def checks(*, control: str = "pass") -> tuple[Check, ...]:
    table = [
        ("EV01", "threat model stated", "pass", "norm, eps, box, goal, knowledge", "nothing to do"),
        ("EV02", "clean accuracy on the same samples", "pass", "with its 95 % interval", "nothing to do"),
        ("EV04", "determinism", "pass", "5 forward passes differ by 0.0", "nothing to do"),
        ("EV06", "zero gradients", "pass", "0 of 360 samples", "nothing to do"),
        ("EV09", "monotone over eps", "pass", "0 violations before enforcing", "nothing to do"),
        ("EV10", "accuracy falls to chance at eps that covers the box", "pass", "0.0 % at 8.0", "nothing to do"),
        (
            "EV11",
            "convergence",
            "flag",
            "doubling the steps finds 3 more of 360",
            "raise steps to 100 and run the suite again",
        ),
        ("EV14", "noise is weaker than white-box attacks", "pass", "0 of 360 found by noise", "nothing to do"),
        (
            "EV17",
            "positive control",
            control,
            "the same attacks on an undefended network",
            "mend the attack before reading its result",
        ),
        ("EV18", "binarisation test", "not evaluated", "not part of this suite", "run the suite 'full'"),
        ("EV21", "box and norm measured in float64", "pass", "0 examples rejected", "nothing to do"),
        (
            "EV24",
            "number of samples",
            "flag",
            "360 samples, interval up to 10.3 points wide",
            "evaluate 500 samples or more",
        ),
    ]
    return tuple(Check(id=i, name=n, status=s, figure=f, advice=a) for i, n, s, f, a in table)  # type: ignore[arg-type]


def with_float_gaps(audit: Audit, rows: tuple[int, ...]) -> Audit:
    """The same audit, of a program that errs on these proved samples itself: they were never attacked, yet do not stand."""
    errs = set(rows)
    samples_ = tuple(
        row.model_copy(update={"distance": None, "attack": None}) if row.index in errs else row for row in audit.samples
    )
    standing = [row for row in samples_ if row.label == row.predicted and row.index not in errs]
    return audit.model_copy(
        update={
            "samples": samples_,
            "pictures": pictures(samples_),
            "curve": tuple(
                point.model_copy(
                    update={
                        "attacked": rate(
                            sum(row.distance is None or row.distance > point.eps.value for row in standing),
                            len(samples_),
                        )
                    }
                )
                for point in audit.curve
            ),
            "contradictions": tuple(
                Contradiction(
                    index=row, attack="clean", distance=0.0, radius=audit.samples[row].radius,
                    refutes="float gap", reference_margin=audit.samples[row].margin, example=None,
                )
                for row in rows
            ),
        }
    )  # fmt: skip


def example_audit(n: int = 360, verdict: Verdict = "NOT REFUTED", *, decorative: bool = False) -> Audit:
    """A whole audit of ``n`` samples that ends in ``verdict``; equal arguments give equal audits."""
    attacked = verdict != "NOT EVALUATED"
    rows = samples(n, attacked=attacked)
    contradictions: tuple[Contradiction, ...] = ()
    if verdict == "REFUTED":
        victim = max((row for row in rows if row.distance is not None), key=lambda row: row.radius)
        inside = victim.model_copy(update={"distance": victim.radius * 0.8125, "attack": "DDN"})
        rows = tuple(inside if row.index == victim.index else row for row in rows)
        contradictions = (
            Contradiction(
                index=victim.index,
                attack="DDN",
                distance=victim.radius * 0.8125,
                radius=victim.radius,
                refutes="exact arithmetic",
                reference_margin=-0.0123456789,
                example=File(name=f"refutations/sample-{victim.index}.npy", sha256=digest(b"example")),
            ),
        )
    correct = [row for row in rows if row.label == row.predicted]
    distances = sorted(row.distance for row in correct if row.distance is not None)
    claim = "exact arithmetic"
    return Audit(
        verdict=verdict,
        verdict_reason=REASONS[verdict].format(n=n),
        statement=(
            f"For the {n} samples of digits/test, on the l2 ball around each intersected with the box [0, 1] (domain), the "
            "predicted class is constant (property: stability) within the certified radius of the sample (criterion), "
            "as proved by an incomplete, deterministic, glass-box verifier in exact arithmetic, its own arithmetic "
            "rounded outward."
        ),
        subject=Subject(sha256=digest(b"checkpoint"), architecture="vit-digits", parameters=50_378),
        data=Data(name="digits", split="test", count=n, sha256=digest(b"data"), classes=tuple("0123456789")),
        threat=Threat(norm="l2", eps=tuple(map(Eps.of, EPS)), box=(0.0, 1.0)),
        input_shape=(1, 8, 8),
        claim=claim,
        clean=rate(len(correct), n),
        curve=curve(rows, attacked=attacked),
        lipschitz=2.3100918273645,
        median_radius=float(np.median([row.radius for row in rows])),
        without_local=without_local(rows),
        execution=execution(rows),
        median_distance=distances[len(distances) // 2] if distances else None,
        contradictions=contradictions,
        campaign=campaign(rows, complete=verdict != "INCONCLUSIVE") if attacked else None,
        samples=rows,
        pictures=pictures(rows),
        ledger=ledger(),
        attention=attention(rows, decorative=decorative),
        crosscheck=crosscheck(rows),
        checks=checks(control="fail" if verdict == "INCONCLUSIVE" else "pass") if attacked else (),
        assumptions=(
            "The exported program is the module: they agree on the evaluation set within the stated error.",
            "The checkpoint named here is the one that is deployed.",
        ),
        limits=(
            "Only l2 perturbations of at most 1.0 inside [0, 1] were considered.",
            "The claim is for exact arithmetic; the deployed float32 program was attacked, not certified.",
        ),
        files=(
            File(name="certified.parquet", sha256=digest(b"table")),
            File(name="campaign/plan.json", sha256=digest(b"plan")),
        ),
        environment=Environment(
            certkit="0.1.0",
            python="3.11.7",
            torch="2.13.0",
            numpy="2.4.6",
            platform="Linux x86_64",
            device="cpu",
            threads=2,
        ),
        provenance=Provenance(
            created="2025-11-23T12:00:00Z",
            seconds=41.37,
            files=(File(name="certificate.json", sha256=digest(b"certificate")),),
        ),
    )


@functools.cache
def page_of(verdict: Verdict) -> str:
    return render(example_audit(40, verdict))


def point(certified: int, attacked: int, total: int = 360) -> CurvePoint:
    return CurvePoint(eps=Eps.of("0.25"), certified=rate(certified, total), attacked=rate(attacked, total))


def audit_with(**changes: Any) -> Audit:
    if "samples" in changes:  # a picture is of a sample of its audit
        changes = {"pictures": pictures(changes["samples"]), **changes}
    return example_audit(8).model_copy(update=changes)
