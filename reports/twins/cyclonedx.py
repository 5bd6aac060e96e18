"""CycloneDX 1.7: the audited network as a component of a machine-learning bill of materials, with its model card."""

from __future__ import annotations

import uuid
from typing import Any

from certkit.errors import one_line
from certkit.files import canonical, digest
from certkit.records import Audit, Rate

from ..claims import Claims
from .text import as_json


def cyclonedx(audit: Audit) -> bytes:
    """One component of type machine-learning-model, named by the digest of its weights, with every rate as a metric.

    ``slice`` names radius, norm and data; the interval is the 95 % Clopper-Pearson interval of the record. The serial
    number follows from the audit, so that one audit has one bill.
    """
    identity = digest(canonical(audit).encode())
    metrics = [_metric("accuracy", audit.clean, audit.data.name)]
    for point, place in zip(audit.curve, Claims.of(audit).executed, strict=True):
        radius = f"{audit.threat.norm}@{point.eps.text} on {audit.data.name}"
        metrics.append(_metric(f"certified accuracy, {one_line(audit.claim)}", point.certified, radius))
        if place is not None:
            executed = audit.execution.certified[place].certified
            metrics.append(_metric(f"certified accuracy, {audit.execution.arithmetic} execution", executed, radius))
        if point.attacked is not None:
            metrics.append(_metric("accuracy under attack (upper bound)", point.attacked, radius))
    component = {
        "type": "machine-learning-model",
        "bom-ref": f"model-{audit.subject.sha256}",
        "name": one_line(audit.subject.architecture) or "model",
        "version": audit.subject.sha256[:16],
        "hashes": [{"alg": "SHA-256", "content": audit.subject.sha256}],
        "modelCard": {
            "modelParameters": {
                "modelArchitecture": one_line(audit.subject.architecture),
                "datasets": [
                    {
                        "type": "dataset",
                        "name": one_line(f"{audit.data.name} ({audit.data.split}), {audit.data.count} samples"),
                        "description": f"evaluation samples, sha256 {audit.data.sha256}",
                    }
                ],
            },
            "quantitativeAnalysis": {"performanceMetrics": metrics},
            "considerations": {"technicalLimitations": [one_line(limit, 1000) for limit in audit.limits]},
        },
        "properties": [
            {"name": "certkit:verdict", "value": audit.verdict},
            {"name": "certkit:claim", "value": audit.claim},
            {"name": "certkit:audit-sha256", "value": identity},
        ],
    }
    return as_json(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.7",
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
            "version": 1,
            "metadata": {
                "timestamp": audit.provenance.created,
                "tools": {
                    "components": [{"type": "application", "name": "certkit", "version": audit.environment.certkit}]
                },
            },
            "components": [component],
        }
    )


def _metric(kind: str, rate: Rate, part: str) -> dict[str, Any]:
    return {
        "type": kind,
        "value": f"{rate.count}/{rate.total}",
        "slice": one_line(part),
        "confidenceInterval": {"lowerBound": repr(rate.low), "upperBound": repr(rate.high)},
    }
