"""The measurements beside the certificate that they belong to, and what the report shows of them. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from certkit.bounds.ledger import Ledger
from certkit.bounds.number import Up, most
from certkit.errors import RecordError, one_line
from certkit.files import load
from certkit.health.largest import fits, largest_entries, largest_scores, too_large
from certkit.records import Certificate
from certkit.records.health import MAX_PARTS, Health, HealthView, Largest, Seen

NAME = "health.json"
SLACK = 1 + 1e-6  # singular values are computed and rounded, not proved


def load_health(directory: Path, certificate: Certificate, ledger: Ledger) -> Health | None:
    """The measurements in a certificate's folder, None where there are none.

    Raises RecordError for a file that is malformed, that speaks of another network, graph, box or other samples, or that
    contradicts itself. Its figures are as stated: only ``certkit certify`` and ``certkit audit`` come to them again.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    found = load(Health, path)
    pairs: dict[str, tuple[object, object]] = {
        "checkpoint": (found.subject.sha256, certificate.subject.sha256),
        "graph": (found.program_sha256, certificate.program_sha256),
        "samples": (found.data.sha256, certificate.data.sha256),
        "box": (found.box, certificate.threat.box),
    }
    if differ := [what for what, (here, there) in pairs.items() if here != there]:
        raise RecordError(f"{NAME}: is of another {differ[0]} than certificate.json; run certkit audit again")
    known = {step.node for step in ledger.steps}
    for what, listed in (("entries", found.entries), ("scores", found.scores)):
        named = Counter(one.node for one in listed)
        if twice := [node for node, times in named.items() if times > 1]:
            raise RecordError(f"{NAME}: {what}: {one_line(twice[0], 80)!r} stands twice; run certkit audit again")
    if not known & {one.node for one in found.entries}:
        raise RecordError(f"{NAME}: entries: none is of a value of the ledger; run certkit audit again")
    for weight in found.spectra:
        if weight.kind != "convolution" and weight.values and weight.values[0] > weight.proved * SLACK:
            raise RecordError(
                f"{NAME}: {one_line(weight.name, 80)}: a measured {weight.values[0]:.6g} is above the proved "
                f"{weight.proved:.6g}; run certkit audit again"
            )
    return found


def excluded(found: Health, ledger: Ledger) -> tuple[str, ...]:
    """The steps at which something was seen that the ledger excludes: each disproves it."""
    return too_large(ledger, _sizes(found.entries), _sizes(found.scores))


def view(found: Health, ledger: Ledger) -> HealthView:
    """What the report shows: per part what was seen, and what the ledger proves for every input of its domain."""
    entries = largest_entries(ledger, _sizes(found.entries))
    scores = largest_scores(ledger, _sizes(found.entries), _sizes(found.scores))
    every = -(-len(entries) // MAX_PARTS)
    return HealthView(
        samples=found.data.count,
        parts=joined(entries, every),
        joined=every,
        scores=joined(scores, -(-len(scores) // MAX_PARTS)),
        fits=fits(entries),
        too_large=excluded(found, ledger),
        spectra=found.spectra,
        more_weights=found.more_weights,
        training=found.training,
        untold=found.untold,
    )


def joined(parts: Sequence[Largest], every: int) -> tuple[Largest, ...]:
    """``every`` parts in a row as one, with the largest numbers of any."""
    groups = [parts[at : at + every] for at in range(0, len(parts), max(every, 1))]
    return tuple(
        Largest(
            part=group[0].part if len(group) == 1 else f"{group[0].part} to {group[-1].part}",
            measured=max(one.measured for one in group),
            certified=str(most(*(Up.of(one.certified) for one in group))),
        )
        for group in groups
    )


def _sizes(listed: Sequence[Seen]) -> dict[str, float]:
    return {one.node: one.largest for one in listed}
