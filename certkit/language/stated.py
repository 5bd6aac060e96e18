"""A language audit as its files state it: read, and everything that follows from them derived again and compared. No checkpoint here.

Seals and digests, both ledgers from their evidence, every count, curve, mean and verdict from the rows and the campaign, and
the page from the record.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from certkit import __version__
from certkit.bounds.ledger import Ledger, checked
from certkit.campaign import Campaign, load_campaign
from certkit.engine.floats import assumptions, running
from certkit.errors import CheckpointError, RecordError, Tampered, one_line
from certkit.files import canonical, digest_file, load
from certkit.language import audit, positions
from certkit.language.contradictions import KEPT, RANK
from certkit.language.positions import Moves, Positions
from certkit.language.records import LanguageAudit
from certkit.records import Eps, Subject

NAME, PAGE = "language.json", "report.html"
AGAIN = "run certkit language again"
DIGITS = 1e-9  # two BLAS libraries sum in another order: numbers are compared to so many digits
MOST_NAMED = 20  # files that are no part of the audit


class Findings(Protocol):
    """Where it is written down what was verified, and what could not be."""

    def verified(self, what: str, how: str) -> None: ...

    def open(self, what: str, how: str) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Stated:
    """A language audit as its files state it, after everything that follows from the files was found to follow."""

    record: LanguageAudit
    table: Positions
    ways: tuple[Moves, ...]
    eps: tuple[Eps, ...]
    ledger: Ledger
    deployed: Ledger | None  # None where nothing of the execution could be written down
    campaign: Campaign


def read(directory: Path, found: Findings | None = None) -> Stated:
    """The audit in a folder, everything that follows from its files derived again.

    Raises RecordError for what cannot be read, Tampered, naming the file, for what does not follow.
    """
    path = directory / NAME
    if not path.is_file():
        raise RecordError(f"{one_line(directory.name)}: no {NAME} here; expected a folder that certkit language wrote")
    record = load(LanguageAudit, path)
    if path.read_bytes() != canonical(record).encode():
        raise Tampered(f"{NAME}: says what it must, but not as certkit writes it; {AGAIN}")
    audit.check_seal(record)
    ways, eps = _asked(record)
    table = _table(directory, record, ways, eps)
    ledger, deployed = _ledgers(record)
    for file in (*record.files, *(one.example for one in record.contradictions if one.example is not None)):
        if not _is(directory / file.name, file.sha256):
            raise Tampered(
                f"{one_line(file.name)}: is missing or is not what {NAME} was made from (sha256 differs); {AGAIN}"
            )
    campaign = load_campaign(directory)
    if record.files != audit.files_of(campaign, directory):
        raise Tampered(f"{NAME}: files are not those of the campaign beside it; {AGAIN}")
    _same_campaign(record, table, eps, campaign)
    _follows(record, table, ways, eps, ledger, campaign)
    if found is not None:
        steps = sum(len(one.steps) for one in (ledger, deployed) if one is not None)
        found.verified(
            record.table.name, f"sha256 as stated; {record.positions} rows that do not contradict themselves"
        )
        found.verified("ledgers", f"{steps} steps derived again from their evidence, no difference")
        found.verified("campaign", "every shard is whole and belongs to the plan; checks belong to the shards")
        found.verified(
            NAME, "verdict, curves, medians, counts, means and contradictions follow from rows, ledgers and campaign"
        )
        _page(directory, record, found)
        _others(directory, record, found)
    return Stated(record, table, ways, eps, ledger, deployed, campaign)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and digest_file(path) == sha256


def _asked(record: LanguageAudit) -> tuple[tuple[Moves, ...], tuple[Eps, ...]]:
    """The choices of tokens that move, and the radii, as the curves have them; all radii above 0 must have been tried."""
    if not record.curves or record.curves[0].tokens is not None:
        raise Tampered(f"{NAME}: curves do not start with that of every token; {AGAIN}")
    ways = tuple(dict.fromkeys(Moves(curve.tokens) for curve in record.curves))
    eps = tuple(at.eps for at in record.curves[0].certified)
    if not eps or len({at.text for at in eps}) < len(eps) or not 0 < eps[-1].value == record.slope.reach:
        raise Tampered(f"{NAME}: the radii of the curves are not those of the bounds; {AGAIN}")
    rising = all(a < b for a, b in zip(record.tried, record.tried[1:], strict=False))
    if not rising or not {at.value for at in eps if at.value} <= set(record.tried) or record.tried[-1] > eps[-1].value:
        raise Tampered(f"{NAME}: tried does not hold the radii of the curves in ascending order; {AGAIN}")
    return ways, eps


def _table(directory: Path, record: LanguageAudit, ways: tuple[Moves, ...], eps: tuple[Eps, ...]) -> Positions:
    """The rows, whole and free of contradictions of their own."""
    name = record.table.name
    path = directory / name
    if not path.is_file():
        raise RecordError(f"{name}: missing beside {NAME}; {AGAIN}")
    if digest_file(path) != record.table.sha256:
        raise Tampered(f"{name}: was changed after it was written (sha256 differs); {AGAIN}")
    table = positions.read(path, (record.contexts, record.context), ways, eps)
    everywhere = table.radius[0]
    for says, holds in (
        (
            "a token outside the vocabulary",
            all(((ids >= 0) & (ids < record.data.vocabulary)).all() for ids in (table.token, table.true, table.predicted)),
        ),
        ("a next token that the text does not have", (table.true[:, :-1] == table.token[:, 1:]).all()),
        ("right where another token is predicted", np.array_equal(table.right, table.true == table.predicted)),
        (
            "a number below 0",
            all((values >= 0).all() for values in (table.room, table.radius, table.float_radius, table.attacked, table.changed)),
        ),
        ("a radius that was never tried", np.isin(everywhere, (0.0, *record.tried)).all()),
        ("a radius without room", ((table.radius == 0) | (table.room > 0)).all()),
        ("a radius of few tokens below that of all", (table.radius >= everywhere).all()),
        ("a radius beyond the bounds", (table.radius <= record.slope.reach).all()),
        ("a radius of the execution above that of the function", (table.float_radius <= table.radius).all()),
    ):  # fmt: skip
        if not holds:
            raise Tampered(f"{name}: states {says}; {AGAIN}")
    if record.execution.pair_error is None and table.float_radius.any():
        raise Tampered(f"{name}: states a radius of an execution of which nothing is claimed; {AGAIN}")
    return table


def _ledgers(record: LanguageAudit) -> tuple[Ledger, Ledger | None]:
    """Both ledgers derived again, of one threat, with the errors that the record states.

    Without a ledger of the execution, nothing may be claimed of that.
    """
    ledger = checked(record.ledger)
    deployed = checked(record.execution_ledger) if record.execution_ledger else None
    first, error = ledger.steps[0], record.execution.pair_error
    stated = {
        "ledger": ledger.arithmetic == "float64",
        "threat": first.attributes.get("norm") == "token",
        "context": first.bound.shape[1:-1] == (record.context,),
        "vocabulary": ledger.steps[-1].bound.shape[-1] == record.data.vocabulary,
        "pair_gain": record.pair_gain == tuple(tuple(g.to_float() for g in row) for row in ledger.pairs.gain),
        "pair_error": record.pair_error == ledger.pairs.error.to_float(),
        "execution": error is None or (deployed is not None and error == deployed.pairs.error.to_float()),
    }
    if deployed is not None:
        own = deployed.steps[0]
        stated |= {
            "execution_ledger": deployed.arithmetic == record.execution.arithmetic,
            "execution_ledger's threat": first.attributes == own.attributes,
            "token_size": first.evidence == own.evidence,
        }
    for name, holds in stated.items():
        if not holds:
            raise Tampered(f"{NAME}: {name} is not what its ledgers give; {AGAIN}")
    rests = [] if deployed is None else _rests(deployed)
    if missing := set(rests) - set(record.execution.assumptions):
        raise Tampered(f"{NAME}: execution.assumptions leaves out {one_line(min(missing), 80)!r}; {AGAIN}")
    if missing := set(audit.ASSUMPTIONS) - set(record.assumptions):
        raise Tampered(f"{NAME}: assumptions leaves out {one_line(min(missing), 80)!r}; {AGAIN}")
    return ledger, deployed


def _rests(deployed: Ledger) -> list[str]:
    """What the claim of the execution rests on, but for what only the machine knows that made it."""
    return [text for text in assumptions(deployed, (), running()) if "for torch" not in text]


def _same_campaign(record: LanguageAudit, table: Positions, eps: tuple[Eps, ...], campaign: Campaign) -> None:
    plan = campaign.plan
    stated = {
        "checkpoint": plan.subject.sha256 == record.subject.sha256,
        "threat": plan.threat.norm == "token" and plan.threat.goal == "untargeted" and plan.threat.eps == eps,
        "contexts": plan.data.count == record.contexts and np.array_equal(campaign.label, table.true[:, -1]),
    }
    for what, holds in stated.items():
        if not holds:
            raise Tampered(f"campaign/plan.json: its {what} is not that of {NAME}; {AGAIN}")
    reached = np.where(np.isnan(campaign.distance), np.inf, campaign.distance)
    if (table.attacked[0, :, -1] > reached).any():
        raise Tampered(f"{record.table.name}: an attacked distance is above what the campaign reached; {AGAIN}")


def _follows(
    record: LanguageAudit,
    table: Positions,
    ways: tuple[Moves, ...],
    eps: tuple[Eps, ...],
    ledger: Ledger,
    campaign: Campaign,
) -> None:
    """Every figure that follows from rows, ledger and campaign is the one stated. Raises Tampered naming the first."""
    verdict, reason = audit.judged(record.contradictions, campaign)
    follows: dict[str, Any] = {
        "positions": table.token.size,
        "clean": table.clean,
        "loss": float(np.mean(table.loss)),
        "slope": audit.compared(ledger, record.slope.reach, record.slope.published),
        "curves": table.curves(ways, eps, executed=record.execution.pair_error is not None),
        "losses": table.losses(eps),
        "campaign": audit.attacked_by(campaign),
        "verdict": verdict,
        "verdict_reason": reason,
    }
    for name, value in follows.items():
        if getattr(record, name) != value:
            raise Tampered(f"{NAME}: {name} is not what the files beside it give; {AGAIN}")
    for shown in record.shown:
        if shown.context >= record.contexts or any(
            getattr(shown, name) != value for name, value in audit.figures(table, shown.context).items()
        ):
            raise Tampered(f"{NAME}: context {shown.context} is not shown as {record.table.name} has it; {AGAIN}")
    for one in record.substitutions:
        if one.context >= record.contexts or one.radius != table.radius[0, one.context, -1]:
            raise Tampered(f"{NAME}: a radius of substitutions is not that of {record.table.name}; {AGAIN}")
        if any(table.attacked[place, one.context, -1] > one.distance for place in table.within(ways, one)):
            raise Tampered(
                f"{record.table.name}: context {one.context}: its replaced tokens break it inside its radius, and no row "
                f"says so; {AGAIN}"
            )
    _inside(record, table, ways)


def _inside(record: LanguageAudit, table: Positions, ways: tuple[Moves, ...]) -> None:
    """One contradiction for each position with an example inside a radius, in order, with the radii of that position."""
    where = [(one.context, one.position) for one in record.contradictions]
    if where != [(n, t) for n, t in np.argwhere(table.inside).tolist()]:
        raise Tampered(f"{NAME}: contradictions are not the positions attacked inside their radii; {AGAIN}")
    kept, left = (
        [RANK[one.refutes] for one in record.contradictions if (one.example is None) == missing]
        for missing in (False, True)
    )
    if len(kept) != min(KEPT, len(where)) or (left and min(kept) < max(left)):
        raise Tampered(
            f"{NAME}: the example of a contradiction is left out; the {KEPT} that disprove most are kept; {AGAIN}"
        )
    places = {way.name: place for place, way in enumerate(ways)}
    for one in record.contradictions:
        at = (places.get(one.moves, -1), one.context, one.position)
        fits = (
            at[0] >= 0
            and (one.radius, one.float_radius) == (table.radius[at], table.float_radius[at])
            and table.attacked[at] <= one.distance <= one.radius
            and (one.refutes != "float execution" or one.distance <= one.float_radius > 0)
            and (one.refutes != "exact arithmetic" or one.reference_margin < 0)
        )
        if not fits:
            raise Tampered(
                f"{NAME}: the contradiction of context {one.context}, position {one.position} is not one of "
                f"{record.table.name}; {AGAIN}"
            )


def _page(directory: Path, record: LanguageAudit, found: Findings) -> None:
    """The page is a pure function of the record, of one version of certkit."""
    path = directory / PAGE
    if not path.is_file():
        found.open(PAGE, "is not here")
        return
    if record.environment.certkit != __version__:
        found.open(PAGE, f"was made by certkit {record.environment.certkit}, and this is {__version__}")
        return
    render = importlib.import_module("certkit.reports.language").render  # by name: reports stands above
    if path.read_bytes() != render(record).encode():
        raise Tampered(f"{PAGE}: is not the page of {NAME}; {AGAIN}")
    found.verified(PAGE, f"made again from {NAME}, byte for byte the same")


def _others(directory: Path, record: LanguageAudit, found: Findings) -> None:
    """What else lies in the folder is named."""
    known = {NAME, PAGE, record.table.name, *(file.name for file in record.files)}
    known |= {one.example.name for one in record.contradictions if one.example is not None}
    strange = sorted(
        name
        for path in directory.rglob("*")
        if path.is_file() and (name := path.relative_to(directory).as_posix()) not in known
        if path.stat().st_size or not path.name.startswith(".")
    )
    for name in strange[:MOST_NAMED]:
        found.open(name, "is read by nothing")
    if len(strange) > MOST_NAMED:
        found.open("other files", f"{len(strange) - MOST_NAMED} more are read by nothing")


# --- From the checkpoint ----------------------------------------------------------------------------------------------


def same_subject(record: LanguageAudit, subject: Subject | None) -> None:
    """Raises CheckpointError for another checkpoint than the one that was audited, Tampered for another count of parameters."""
    if subject is None or subject.sha256 != record.subject.sha256:
        given = "no sha256" if subject is None else f"sha256 {subject.sha256[:12]}…"
        raise CheckpointError(
            f"the checkpoint has {given}, the audit is of {record.subject.sha256[:12]}…; give the one that was audited"
        )
    if subject.parameters != record.subject.parameters:
        raise Tampered(
            f"{NAME}: states {record.subject.parameters} parameters, the checkpoint has {subject.parameters}; {AGAIN}"
        )


def elsewhere(record: LanguageAudit) -> str:
    made = record.environment.torch
    return "" if made == torch.__version__ else f" (made with torch {one_line(made, 40)}, this is {torch.__version__})"


def near(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=DIGITS)
