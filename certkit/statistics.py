"""Shares with their uncertainty."""

from __future__ import annotations

from certkit.records import Rate

CONFIDENCE = 0.95


def rate(count: int, total: int) -> Rate:
    """count / total with its two-sided 95 % Clopper-Pearson interval; [0, 1] when nothing was counted.

    The interval covers the share of the population that the samples were drawn from; for the samples themselves the
    count is exact.
    """
    from scipy.stats import beta

    if not 0 <= count <= total:
        raise ValueError(f"a share needs 0 <= count <= total, got {count} of {total}")
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count > 0 else 0.0
    high = float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return Rate(count=count, total=total, low=low, high=high)
