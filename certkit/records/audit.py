"""The audit: certificate and campaign side by side, and everything else that the report shows. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from certkit.records.base import (
    Count,
    Data,
    Environment,
    Eps,
    File,
    Provenance,
    Rate,
    Record,
    Refutes,
    Subject,
    Threat,
    Verdict,
)
from certkit.records.campaign import CampaignSummary, Check
from certkit.records.certificate import Attention, Execution, WithoutLocal
from certkit.records.crosscheck import CrossView
from certkit.records.health import HealthView
from certkit.records.pictures import Pictures


class Contradiction(Record):
    """An input inside a certified radius that the deployed program gets wrong.

    It refutes the exact claim when its reference float64 margin is below minus the margin's own error, and the claim about
    the float execution when the program, run as that claim says, errs within its radius. Otherwise it is a float gap: a
    program errs where the exact function does not, and none was claimed not to. ``attack`` is ``clean`` and ``example`` None
    where the program errs on the sample itself, at distance 0.
    """

    index: Count
    attack: str
    distance: float
    radius: float
    refutes: Refutes
    reference_margin: float
    example: File | None


class Sample(Record):
    """One row of the reconciliation. ``distance`` is None when no attack succeeded; ``radius`` is 0 if none is proved."""

    index: Count
    label: Count
    predicted: Count
    margin: float
    radius: Annotated[float, Field(ge=0)]
    distance: Annotated[float, Field(ge=0)] | None
    attack: str | None


class CurvePoint(Record):
    """Robust accuracy at one radius: at least ``certified``, at most ``attacked`` (None without a campaign)."""

    eps: Eps
    certified: Rate
    attacked: Rate | None


class LedgerRow(Record):
    """One step of the ledger as people read it; numbers are decimal texts, rounded up, in the threat's norm.

    ``attained`` is a slope that was really seen, rounded down, where the cross-check looked for one in that norm.
    """

    node: str
    module: str
    op: str
    rule: str
    why: str
    norm: str
    size: str
    gain: str
    error: str
    attained: str | None


class Audit(Record):
    """Everything the report shows and nothing else; report.html is a pure function of it."""

    format: Literal[1] = 1
    kind: Literal["certkit.audit"] = "certkit.audit"
    verdict: Verdict
    verdict_reason: str
    statement: str
    subject: Subject
    data: Data
    threat: Threat
    input_shape: tuple[int, ...]
    claim: str
    clean: Rate
    curve: tuple[CurvePoint, ...]
    lipschitz: float | None
    median_radius: Annotated[float, Field(ge=0)]
    without_local: WithoutLocal
    execution: Execution
    median_distance: Annotated[float, Field(ge=0)] | None
    contradictions: tuple[Contradiction, ...]
    campaign: CampaignSummary | None
    samples: tuple[Sample, ...]
    pictures: Pictures
    ledger: tuple[LedgerRow, ...]
    attention: Attention | None
    health: HealthView | None = None
    crosscheck: CrossView | None
    checks: tuple[Check, ...]
    assumptions: tuple[str, ...]
    limits: tuple[str, ...]
    files: tuple[File, ...]
    environment: Environment
    provenance: Provenance

    @model_validator(mode="after")
    def _shows_samples_of_its_own(self) -> Audit:
        """A picture is of a sample that an attack changed, and of the shape of the inputs."""
        changed = {one.index for one in self.samples if one.distance is not None}
        for picture in self.pictures.shown:
            if picture.index not in changed or picture.shape != self.input_shape:
                raise ValueError(f"the picture of sample {picture.index} is none of an attacked sample of this audit")
        return self
