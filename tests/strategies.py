"""Small valid records and files that tests change: every part that can be there is there, once."""

from __future__ import annotations

from typing import Any

import torch

from certkit import checkpoint
from certkit.bounds.bound import Bound
from certkit.bounds.ledger import Ledger, Pairs, Step, facts_for, pair_gains, to_json
from certkit.bounds.number import Up
from certkit.bounds.rules import derive
from certkit.files import digest
from certkit.records import (
    Ablation,
    Agreement,
    AttackSpec,
    AttackSummary,
    Attention,
    Audit,
    CampaignSummary,
    Certificate,
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
    Pictures,
    Provenance,
    Rate,
    Sample,
    Subject,
    Threat,
    WithoutLocal,
)

RUN_TOML = b"""description = "a run with a key in every section"

[model]
name = "vit"
image_size = 8
patch = 2
residual = 0.25

[data]
name = "digits"

[training]
optimizer = "muon"
learning_rate = 0.05
steps = 3
seed = 7
"""


def a_state() -> dict[str, torch.Tensor]:
    """Tensors of several types and shapes, one without entries."""
    return {
        "head.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        "head.bias": torch.zeros(2, dtype=torch.float64),
        "half": torch.ones(3, 1, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "count": torch.tensor(5),
        "none": torch.zeros(0, 4),
    }


def a_safetensors() -> bytes:
    """A valid file of ``a_state``."""
    return checkpoint.serialized(a_state())


def a_ledger() -> Ledger:
    """A proof of three steps, a linear layer on a flattened image, as the rules themselves derive it."""
    evidence = {
        name: Up.of(value)
        for name, value in {
            "sigma": "0.75",
            "absolute": "1",
            "row_l2": "0.5",
            "row_l1": "0.875",
            "bias_l2": "0.25",
            "bias_linf": "0.125",
        }.items()
    }
    box: dict[str, Any] = {"shape": [1, 1, 2, 2], "norm": "l2", "low": 0.0, "high": 1.0}
    flat: dict[str, Any] = {"shape": [1, 4], "groups": [[[2, 3], [1]]]}
    stated: list[tuple[str, str, str, str, tuple[str, ...], dict[str, Any], dict[str, Up]]] = [
        ("input", "placeholder", "the model", "input", (), box, {}),
        ("view", "aten.view.default", "0", "relabel", ("input",), flat, {}),
        ("linear", "aten.linear.default", "1", "linear", ("view",), {"shape": [1, 2]}, evidence),
    ]
    known: dict[str, Bound] = {}
    steps = []
    for node, op, module, rule, inputs, attributes, measured in stated:
        facts = facts_for("float64", attributes, measured)
        known[node] = derive(rule, [known[name] for name in inputs], facts)
        steps.append(Step(node, op, module, rule, inputs, attributes, measured, known[node]))
    norms = ((Up.of(0), Up.of(0.5)), (Up.of(0.5), Up.of(0)))
    gain, error = pair_gains(known["view"], known["linear"], norms, norms)
    return Ledger("float64", tuple(steps), "linear", Pairs("view", norms, norms, gain, error))


def a_rate(count: int = 3, total: int = 4) -> Rate:
    return Rate(count=count, total=total, low=0.19, high=1.0)


def a_file(name: str) -> File:
    return File(name=name, sha256=digest(name.encode()))


_SUBJECT = Subject(sha256=digest(b"weights"), architecture="vit", parameters=10)
_DATA = Data(name="digits", split="test", count=4, sha256=digest(b"data"), classes=("zero", "one"))
_THREAT = Threat(norm="l2", eps=(Eps.of("0.25"), Eps.of("36/255")), box=(0.0, 1.0))
_ENVIRONMENT = Environment(
    certkit="0.1.0", python="3.11.0", torch="2.10.0", numpy="2.0.0", platform="linux x86_64", device="cpu", threads=1
)
_PROVENANCE = Provenance(created="2025-01-01T00:00:00+00:00", seconds=1.5, files=(a_file("certificate.json"),))
_ATTENTION = Attention(
    ablations=(
        Ablation(name="uniform", clean=a_rate(), certified=(CertifiedAt(eps=Eps.of("0.25"), certified=a_rate(2)),)),
    ),
    largest_logit_spread=2.5,
    largest_content_spread=0.5,
    looks_at_content=True,
    decorative=False,
)

_WITHOUT_LOCAL = WithoutLocal(
    certified=tuple(CertifiedAt(eps=eps, certified=a_rate(1)) for eps in _THREAT.eps), median_radius=0.25, improved=2
)
_EXECUTION = Execution(
    arithmetic="float64",
    pair_error=1e-12,
    certified=tuple(CertifiedAt(eps=eps, certified=a_rate(2)) for eps in _THREAT.eps),
    median_radius=0.3,
    reasons=(),
    assumptions=("the kernels are those that are named",),
)


def a_certificate() -> Certificate:
    """A certificate whose ledger holds: ``certkit.bounds.ledger`` derives it again without a difference."""
    ledger = a_ledger()
    return Certificate(
        subject=_SUBJECT,
        program_sha256=digest(b"program"),
        threat=_THREAT,
        input_shape=(1, 2, 2),
        data=_DATA,
        clean=a_rate(),
        certified=tuple(CertifiedAt(eps=eps, certified=a_rate(2)) for eps in _THREAT.eps),
        pair_gain=tuple(tuple(number.to_float() for number in row) for row in ledger.pairs.gain),
        pair_error=ledger.pairs.error.to_float(),
        median_radius=0.3,
        without_local=_WITHOUT_LOCAL,
        execution=_EXECUTION,
        attention=_ATTENTION,
        agreement=Agreement(samples=4, largest_difference=1e-7, allowed=1e-5),
        assumptions=("exp is accurate to 2 units in the last place",),
        table=a_file("certified.parquet"),
        ledger=to_json(ledger),
        execution_ledger=to_json(ledger),
        environment=_ENVIRONMENT,
        provenance=_PROVENANCE,
    )


def an_audit() -> Audit:
    """An audit of four samples that ends refuted, so that no part of it is empty."""
    spec = AttackSpec(
        name="DDN", library="foolbox", settings={"steps": 100, "gamma": 0.05, "init": "zero", "random_start": False}
    )
    summary = AttackSummary(spec=spec, attacked=3, found=2, best=1)
    return Audit(
        verdict="REFUTED",
        verdict_reason="1 adversarial example lies inside a certified radius.",
        statement="For the 4 samples of digits/test the predicted class is constant within the certified radius.",
        subject=_SUBJECT,
        data=_DATA,
        threat=_THREAT,
        input_shape=(1, 2, 2),
        claim="exact arithmetic",
        clean=a_rate(),
        curve=tuple(CurvePoint(eps=eps, certified=a_rate(2), attacked=a_rate(1)) for eps in _THREAT.eps),
        lipschitz=0.75,
        median_radius=0.3,
        without_local=_WITHOUT_LOCAL,
        execution=_EXECUTION,
        median_distance=0.5,
        contradictions=(
            Contradiction(
                index=1,
                attack="DDN",
                distance=0.2,
                radius=0.3,
                refutes="exact arithmetic",
                reference_margin=-0.01,
                example=a_file("contradictions/1.npz"),
            ),
        ),
        pictures=Pictures(shown=(), broken=1, absent="an input of shape 4 is no image of one channel or three"),
        campaign=CampaignSummary(
            plan_sha256=digest(b"plan"),
            suite="quick",
            seed=0,
            block=4,
            threads=1,
            device="cpu",
            units_planned=1,
            units_executed=1,
            attacks=(summary,),
        ),
        samples=(
            Sample(index=0, label=1, predicted=1, margin=0.4, radius=0.35, distance=None, attack=None),
            Sample(index=1, label=0, predicted=0, margin=0.3, radius=0.3, distance=0.2, attack="DDN"),
            Sample(index=2, label=0, predicted=1, margin=-0.1, radius=0.0, distance=None, attack=None),
            Sample(index=3, label=1, predicted=1, margin=0.2, radius=0.1, distance=0.5, attack="DDN"),
        ),
        ledger=(
            LedgerRow(
                node="linear",
                module="head",
                op="aten.linear.default",
                rule="linear",
                why="x W' + b stretches by at most the largest singular value of W",
                norm="l2",
                size="1.5",
                gain="0.75",
                error="8.7E-16",
                attained="0.5",
            ),
        ),
        attention=_ATTENTION,
        crosscheck=None,
        checks=(Check(id="EV01", name="threat model stated", status="pass", figure="l2", advice="nothing to do"),),
        assumptions=("The exported program is the module.",),
        limits=("Only l2 perturbations were considered.",),
        files=(a_file("certificate.json"), a_file("campaign/plan.json")),
        environment=_ENVIRONMENT,
        provenance=_PROVENANCE,
    )
