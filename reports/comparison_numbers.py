"""The numbers of a comparison, rounded for readers. No torch here.

What is proved is never overstated: certified accuracy is rounded down, norms are rounded up. So is, upwards, all that
would flatter when it came out small: accuracy under attack, loss, spread, gap. A refuted certificate has no certified
accuracy: the word stands where its number would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

from certkit.comparison import Comparison, Row, Trial, spread
from certkit.errors import one_line
from certkit.records import Eps, Rate, radii

from .rounding import fixed, percent, significant

NONE = "-"
POINTS = 200  # of one curve; a page shows no more of them apart


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it is read, every number rounded.

    ``refutation`` says that an audit refuted a certificate of the row. ``note`` numbers the reason why a certificate is
    missing, ``doubt`` why attacks on one say little. ``loss`` stands where there are no radii.
    """

    name: str
    method: str
    learning_rate: str
    test: str
    steps: str
    gap: str
    spikes: str
    failed: str
    norm: str
    promise: str
    loss: str
    robust: tuple[tuple[str, str], ...]
    refutation: str | None
    note: int | None
    doubt: int | None


def lines(comparison: Comparison) -> tuple[tuple[Line, ...], tuple[str, ...]]:
    """The rows as they are read, and the reasons that their notes count from 1."""
    notes: dict[str, int] = {}

    def numbered(reason: str | None) -> int | None:
        return None if reason is None else notes.setdefault(reason, len(notes) + 1)

    found = []
    for row in comparison.rows:
        ended = finished(row)
        refutation = refuted(row)
        found.append(
            Line(
                name=one_line(row.name),
                method=f"{row.optimizer}, {row.constraint}" if row.constraint != "none" else row.optimizer,
                learning_rate=f"{row.learning_rate:g}" if ended else NONE,
                test=_test(row, ended),
                steps=_steps(row),
                gap=_gap(ended),
                spikes=str(sum(trial.spikes for trial in ended)) if ended else NONE,
                failed=f"{row.failed}/{len(row.trials)}",
                norm=_norm(ended),
                promise=one_line(row.promise),
                loss=_loss(row, ended),
                robust=tuple(robust(row, eps) for eps in radii_of(comparison)),
                refutation=refutation,
                note=numbered(_unproved(comparison, row)),
                doubt=numbered(_doubtful(row)),
            )
        )
    return tuple(found), tuple(notes)


def radii_of(comparison: Comparison) -> tuple[Eps, ...]:
    """The radii as the certificates have them: ascending, each once."""
    return radii(comparison.eps) if comparison.eps else ()


def audited(comparison: Comparison) -> str:
    """How many test samples were certified and attacked, in words: the count that all audits have."""
    counts = {point.certified.total for row in comparison.rows for network in row.proved for point in network}
    return f"{counts.pop()} test samples" if len(counts) == 1 else "the test samples"


def finished(row: Row) -> tuple[Trial, ...]:
    """The trials at the chosen learning rate that came to an end."""
    return tuple(trial for trial in row.best if trial.fault is None)


def shares(row: Row, eps: Eps) -> tuple[tuple[Fraction, Fraction], ...]:
    """Certified and attacked share at a radius, one pair per seed that has them."""
    points = [point for proved in row.proved for point in proved if Eps.of(point.eps).value == eps.value]
    return tuple((_share(point.certified), _share(point.attacked)) for point in points)


def robust(row: Row, eps: Eps) -> tuple[str, str]:
    """Certified accuracy rounded down and accuracy under attack rounded up, each the mean over the seeds.

    For a row with a refuted certificate the first is the word REFUTED.
    """
    found = shares(row, eps)
    if not found:
        return NONE, NONE
    certified, attacked = (mean(side) for side in zip(*found, strict=True))
    shown = "REFUTED" if refuted(row) else percent(certified, "down") + _of(len(found), row)
    return shown, percent(attacked, "up") + _of(len(found), row)


def refuted(row: Row) -> str | None:
    """That audits refuted certificates of the row's networks, and of how many; None where none did."""
    verdicts = _verdicts(row)
    if not (count := verdicts["REFUTED"]):
        return None
    return (
        f"attacks found adversarial examples inside the certified radii of {count} of {verdicts.total()} networks: the "
        f"certificate{' is' if count == 1 else 's are'} wrong. Nothing certified of this row counts as proved; the audits in "
        "its folder name the samples."
    )


def _doubtful(row: Row) -> str | None:
    """Why the silence of the attacks says little, where it does."""
    verdicts = _verdicts(row)
    words = {
        "INCONCLUSIVE": "attacks on {} of {} networks failed their own checks, so that they refuted nothing says little",
        "NOT EVALUATED": "no attack tried to refute the certificate of {} of {} networks",
    }
    found = [
        f"{verdict}: {said.format(verdicts[verdict], verdicts.total())}"
        for verdict, said in words.items()
        if verdicts[verdict]
    ]
    return "; ".join(found) or None


def _verdicts(row: Row) -> Counter[str]:
    """How many of the row's networks have which verdict."""
    return Counter(verdict for network in row.proved for verdict in {point.verdict for point in network})


def _of(count: int, row: Row) -> str:
    """Of how many seeds a number is, where it is not of all."""
    return "" if count == len(row.best) else f" ({count}/{len(row.best)})"


def _unproved(comparison: Comparison, row: Row) -> str | None:
    """Why certificates are missing, in the certificate's own words where it has any."""
    if not comparison.eps or (row.unproved is None and len(row.proved) == len(row.best)):
        return None
    if row.unproved is not None:
        return f"no certificate: {one_line(row.unproved)}"
    return "runs that failed have no certificate" if row.proved else "no run at any learning rate has a result"


def _share(rate: Rate) -> Fraction:
    return Fraction(rate.count, rate.total) if rate.total else Fraction(0)


def mean(values: Sequence[Fraction]) -> Fraction:
    """The exact mean."""
    return sum(values, Fraction(0)) / len(values)


def _counted(share: float) -> Fraction:
    """The share of a count, which was rounded to a float when it was recorded: 0.95 is 19/20, not a little less."""
    return Fraction(share).limit_denominator(10**6)


def _test(row: Row, ended: Sequence[Trial]) -> str:
    rates = [_share(trial.test) for trial in ended if trial.test is not None]
    if not rates:
        return NONE
    _, deviation = spread([float(rate) for rate in rates])
    shown = percent(mean(rates), "down")
    if len(rates) > 1:  # one seed says nothing of how far another would fall
        shown += f" ± {percent(deviation, 'up')}"
    return shown + _of(len(rates), row)


def _loss(row: Row, ended: Sequence[Trial]) -> str:
    losses = [trial.test_loss for trial in ended if trial.test_loss is not None]
    if not losses:
        return NONE
    _, deviation = spread(losses)
    exact = mean([Fraction(loss) for loss in losses])
    nearest = float(exact)
    shown = fixed(nearest if nearest >= exact else math.nextafter(nearest, math.inf), "up", 3)
    if len(losses) > 1:
        shown += f" ± {fixed(deviation, 'up', 3)}"
    return shown + _of(len(losses), row)


def _steps(row: Row) -> str:
    reached = [trial.reached for trial in row.best if trial.reached is not None]
    if not reached:
        return "never" if finished(row) else NONE
    return str(math.ceil(median(reached))) + _of(len(reached), row)


def _gap(ended: Sequence[Trial]) -> str:
    """Training minus validation accuracy in points."""
    gaps = [_share(trial.training) - _counted(trial.validation) for trial in ended if trial.training is not None]
    return f"{math.ceil(mean(gaps) * 1000) / 10:.1f}" if gaps else NONE


def _norm(ended: Sequence[Trial]) -> str:
    largest = max((trial.norm_over_cap for trial in ended if trial.norm_over_cap is not None), default=None)
    if largest is None:
        return NONE
    # Just above 1 the digits tell float rounding from a weight that left its cap.
    return significant(largest, "up", 8 if 1 < largest < 1.01 else 4)


@dataclass(frozen=True, slots=True)
class Band:
    """Mean, least and greatest of a share over the seeds at one place."""

    at: float
    mean: Fraction
    low: Fraction
    high: Fraction

    @classmethod
    def of(cls, at: float, values: Sequence[Fraction]) -> Band:
        return cls(at, mean(values), min(values), max(values))


def course(row: Row) -> tuple[Band, ...]:
    """Validation accuracy against step at the chosen learning rate, at no more than 200 of the measured steps."""
    held: dict[int, list[Fraction]] = {}
    for trial in finished(row):
        for point in trial.curve:
            if point.validation is not None:
                held.setdefault(point.step, []).append(_counted(point.validation))
    every = sorted(held)
    kept = every[:: -(-len(every) // POINTS) or 1]
    if every and kept[-1] != every[-1]:
        kept.append(every[-1])
    return tuple(Band.of(step, held[step]) for step in kept)


@dataclass(frozen=True, slots=True)
class Tried:
    """One learning rate of a row: validation accuracy of the runs that ended, and how many did not."""

    learning_rate: float
    band: Band | None
    failed: int
    runs: int
    chosen: bool


def tried(row: Row) -> tuple[Tried, ...]:
    """The learning rates of a row in ascending order."""
    found = []
    for rate in sorted({trial.learning_rate for trial in row.trials}):
        runs = [trial for trial in row.trials if trial.learning_rate == rate]
        ended = [_counted(trial.validation) for trial in runs if trial.fault is None]
        band = Band.of(rate, ended) if ended else None
        found.append(Tried(rate, band, len(runs) - len(ended), len(runs), bool(ended) and rate == row.learning_rate))
    return tuple(found)
