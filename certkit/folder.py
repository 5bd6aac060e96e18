"""Every file in the folder of an audit, held against what it was made from.

    certificate.json, certified.parquet, campaign/, crosscheck.json, health.json  --sha256-->  audit.json  -->  report.html and its twins

``audit.json`` names what it was made from by digest, and follows from it: it is derived anew. The page and the twins are
pure functions of ``audit.json``: they are made anew, and compared byte by byte. What else lies in the folder is named.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from certkit import __version__
from certkit.campaign import Campaign, load_campaign, units
from certkit.certified import Certified
from certkit.crosscheck.view import NAME as CROSSCHECK
from certkit.errors import RecordError, Tampered, one_line
from certkit.files import canonical, digest_file, load
from certkit.health.view import NAME as HEALTH
from certkit.pictures import check
from certkit.reconcile import derived
from certkit.records import Audit, Certificate, File, Plan, Record
from certkit.rounding import NAME as PRECISION
from certkit.rounding import load_precision
from certkit.shards import read_shard, shards_digest, shards_in

if TYPE_CHECKING:
    from torch import nn

    from certkit.data import Dataset
    from certkit.records import Subject

AUDIT = "audit.json"
PAGE = "report.html"
SHARDS = "campaign/shards"  # a folder, whose files share one digest
LOG = "campaign/log.jsonl"
LOCKS = {"campaign/.lock", "campaign/.workers"}  # empty: processes hold them while they write
MOST_NAMED = 20  # files that are no part of an audit; beyond, they are counted
DIGITS = 1e-9  # two BLAS libraries sum in another order: what is computed again is compared to so many digits
AGAIN = "run certkit report again, and compare"


class Statement(Record):
    """One thing that was checked, or was not: ``how`` says by what, or why not."""

    what: str
    how: str


class Findings:
    """What was found so far, in order."""

    def __init__(self) -> None:
        self.yes: list[Statement] = []
        self.no: list[Statement] = []

    def verified(self, what: str, how: str) -> None:
        self.yes.append(Statement(what=one_line(what), how=one_line(how, 1000)))

    def open(self, what: str, how: str) -> None:
        self.no.append(Statement(what=one_line(what), how=one_line(how, 1000)))


def stated(directory: Path) -> Audit | None:
    """The audit as it stands in the folder, None where there is none; every file that it names has the digest that it gives.

    This comes first: what one byte in a file breaks is then said of that file, and not of what was read from it. Raises
    Tampered, or RecordError for an audit that cannot be read, or that another version of certkit made.
    """
    path = directory / AUDIT
    if not path.is_file():
        if (directory / PAGE).exists():
            raise Tampered(f"{AUDIT}: missing, and {PAGE} shows it; {AGAIN}")
        return None
    audit = load(Audit, path)
    if audit.environment.certkit != __version__:
        raise RecordError(
            f"{AUDIT}: made by certkit {one_line(audit.environment.certkit, 40)}, and this is {__version__}, which may word and "
            f"draw it otherwise; verify it with that version, or {AGAIN}"
        )
    for file in (*audit.files, *audit.provenance.files):
        if file.name == SHARDS:
            _same_shards(directory, file)
            continue
        if not (directory / file.name).is_file():
            raise Tampered(f"{one_line(file.name)}: missing, and {AUDIT} was made from it; {AGAIN}")
        if digest_file(directory / file.name) != file.sha256:
            raise Tampered(f"{one_line(file.name)}: is not what {AUDIT} was made from (sha256 differs); {AGAIN}")
    return audit


def _same_shards(directory: Path, file: File) -> None:
    """Raises Tampered, naming a shard where one can be told, unless the shards have the one digest that the audit gives."""
    folder = directory / SHARDS
    if shards_digest(folder) == file.sha256:
        return
    plan = load(Plan, directory / "campaign" / "plan.json")
    encode = importlib.import_module("certkit.attacks.store").encode  # by name: attacks stands above
    present = {path.name for path in shards_in(folder)}
    other: list[str] = []
    listed = 0
    # A plan can claim any number of samples: no more units are asked for than there are files, and some for those deleted.
    for unit in islice(chain.from_iterable(units(plan)), 2 * len(present) + 1000):
        listed += 1
        path = folder / unit.name
        if unit.name not in present:
            raise Tampered(f"{SHARDS}/{unit.name}: missing, and {AUDIT} was made from it; {AGAIN}")
        present.discard(unit.name)
        if encode(unit, read_shard(path, unit)) != path.read_bytes():
            other.append(unit.name)
    if present:
        raise Tampered(
            f"{SHARDS}/{one_line(min(present))}: is no part of the campaign that {AUDIT} was made from; {AGAIN}"
        )
    if 0 < len(other) < listed:  # all of them: another pyarrow wrote these, or reads them here
        raise Tampered(f"{SHARDS}/{other[0]}: is not what {AUDIT} was made from (its bytes differ); {AGAIN}")
    raise Tampered(f"{SHARDS}: its files are not those that {AUDIT} was made from (sha256 differs); {AGAIN}")


def beside(
    directory: Path,
    certificate: Certificate,
    table: Certified,
    audit: Audit | None,
    found: Findings,
    *,
    model: nn.Module | None = None,
    subject: Subject | None = None,
    data: Dataset | None = None,
) -> None:
    """Campaign, audit, page and twins, where they stand beside the certificate, and whatever else does.

    Raises Tampered, naming the file, for one that does not follow from what it was made from.
    """
    known = {"certificate.json", certificate.table.name, CROSSCHECK, HEALTH}
    known |= {name for name in LOCKS if (directory / name).is_file() and not (directory / name).stat().st_size}
    campaign = load_campaign(directory) if (directory / "campaign").exists() else None
    if campaign is not None:
        if campaign.plan.subject.sha256 != certificate.subject.sha256:
            raise Tampered("campaign/plan.json: attacked another checkpoint than certificate.json is for; attack again")
        known |= {"campaign/plan.json", "campaign/checks.json", LOG}
        known |= {f"{SHARDS}/{unit.name}" for unit in chain.from_iterable(units(campaign.plan))}
        found.verified("campaign", "every shard is whole and belongs to the plan; checks belong to the shards")
        found.open("attacks", "distances are as the campaign measured them; certkit replay runs examples again")
        found.open(LOG, "when and how long: nothing is made from it")
    if audit is None:
        found.open(AUDIT, "is not here; certkit report writes it")
    else:
        known |= {AUDIT} | {one.example.name for one in audit.contradictions if one.example is not None}
        follows(directory, audit, found)
        if campaign is not None:
            _as_the_network(directory, audit, found, model, subject)
            _as_the_samples(audit, campaign, np.where(table.correct, table.radius, 0.0), found, data)
        known |= _made_of(directory, audit, found)
    if (directory / PRECISION).is_file():
        known |= {PRECISION, _precision(directory, certificate, found)}
    strange = [name for name in _contents(directory) if name not in known]
    for name in strange[:MOST_NAMED]:
        found.open(name, "is no part of the audit")
    if len(strange) > MOST_NAMED:
        found.open("other files", f"{len(strange) - MOST_NAMED} more are no part of the audit")


def follows(directory: Path, audit: Audit, found: Findings) -> None:
    """Raises Tampered unless the audit, as ``stated``, is the one that follows from the files beside it, to the last byte."""
    fresh, examples = derived(directory, stated=audit.contradictions)
    times = {name: getattr(audit.provenance, name) for name in ("created", "seconds")}
    fresh = fresh.model_copy(update={"provenance": fresh.provenance.model_copy(update=times)})
    for name in Audit.model_fields:
        if getattr(audit, name) != getattr(fresh, name):
            raise Tampered(f"{AUDIT}: {name} is not what the files beside it give; {AGAIN}")
    if (directory / AUDIT).read_bytes() != canonical(fresh).encode():
        raise Tampered(f"{AUDIT}: says what it must, but not as certkit writes it; {AGAIN}")
    for name, example in examples.items():
        if not _holds(directory / name, example):
            raise Tampered(f"{name}: is missing, or not the example that the campaign found; {AGAIN}")
    files = len(audit.files) + len(audit.provenance.files)
    found.verified(
        AUDIT,
        f"verdict, figures and sentences follow from {files} digests of files, which are as stated; byte for byte",
    )
    found.open("names and times", "of data, classes, network and machine, and when it was made: as stated")


def _as_the_network(
    directory: Path, audit: Audit, found: Findings, model: nn.Module | None, subject: Subject | None
) -> None:
    """Raises Tampered unless the network does on the examples inside certified radii what the audit says."""
    examples = [one for one in audit.contradictions if one.example is not None]
    if not examples:
        return
    if model is None:
        how = f"the float64 margins of {len(examples)} examples are as stated: give --checkpoint to evaluate them again"
        found.open("contradictions", how)
        return
    fresh, _ = derived(directory, model=model, subject=subject)
    judged = {one.index: one for one in fresh.contradictions}
    for one in audit.contradictions:
        own = judged[one.index]
        close = math.isclose(one.reference_margin, own.reference_margin, rel_tol=DIGITS, abs_tol=DIGITS)
        if one.refutes != own.refutes or (one.attack == own.attack and not close):
            raise Tampered(
                f"{AUDIT}: sample {one.index}: the network's float64 margin on its example is {own.reference_margin:.6g} "
                f"({own.refutes}), not the stated {one.reference_margin:.6g} ({one.refutes}); {AGAIN}"
            )
    found.verified("contradictions", f"the network does on {len(examples)} examples what is stated")


def _as_the_samples(
    audit: Audit, campaign: Campaign, radius: NDArray[np.float64], found: Findings, data: Dataset | None
) -> None:
    """Raises Tampered unless what is shown of the samples is what the samples are."""
    shown = check(audit.pictures, campaign, radius, data)
    if shown and data is None:
        found.open("pictures", f"{shown} adversarial examples are the campaign's; the samples beside them, as stated")
    elif shown:
        found.verified("pictures", f"of {shown} samples and their adversarial examples, drawn again")


def _precision(directory: Path, certificate: Certificate, found: Findings) -> str:
    """The name of the table beside precision.json. Raises RecordError or Tampered unless both are whole and of this network."""
    record, _ = load_precision(directory)
    pairs = {
        "checkpoint": (record.subject.sha256, certificate.subject.sha256),
        "graph": (record.program_sha256, certificate.program_sha256),
    }
    if differ := [what for what, (here, there) in pairs.items() if here != there]:
        raise RecordError(f"{PRECISION}: is of another {differ[0]} than certificate.json; run certkit precision again")
    table = record.table.name
    found.verified(f"{PRECISION}, {table}", "speak of this network; every count and column follows from the logits")
    found.open(PRECISION, "logits and how far they drift are as stated; certkit precision comes to them again")
    return table


def _made_of(directory: Path, audit: Audit, found: Findings) -> set[str]:
    """The names of page and twins, of which those that are there are exactly what the audit gives. Raises Tampered."""
    page: Any = importlib.import_module("certkit.reports")  # by name: reports stands above
    twins: Any = importlib.import_module("certkit.reports.twins")
    makers = {one.file: one.make for one in twins.TWINS.values()}
    makers[PAGE] = lambda whole: page.render(whole).encode()
    here = [name for name in makers if (directory / name).exists()]
    for name in here:
        if not _holds(directory / name, makers[name](audit)):
            raise Tampered(
                f"{name}: is not what certkit {__version__} makes of {AUDIT}: one of the two was changed or is older, or other "
                "versions of matplotlib or pyarrow made it; run certkit report --format all again, and compare"
            )
    if here:
        found.verified(", ".join(here), f"made of {AUDIT} again, byte for byte")
    if absent := [name for name in makers if name not in here]:
        found.open(", ".join(absent), "not here; certkit report writes them")
    return set(makers)


def _holds(path: Path, data: bytes) -> bool:
    """Whether these bytes are the file's, which is not read where it is of another size."""
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _contents(directory: Path) -> Iterator[str]:
    """Every file in the folder by its path from there, and every link, which is not followed; in order."""
    for folder, inner, files in os.walk(directory):
        inner.sort()
        at = Path(folder)
        links = [name for name in inner if (at / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (at / name).relative_to(directory).as_posix()
