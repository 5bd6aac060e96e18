"""What is known of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from certkit.training.tasks import Judged

SPIKE = 2.0  # a loss this many times the median of those before it counts as a spike
RECENT = 50  # losses that the median is taken of

Line = dict[str, Any]


@dataclass(slots=True)
class History:
    """What is known of a run so far; saved and restored with it.

    step           steps made, and ``saved`` of them when the last state was written
    norm_over_cap  the largest proved norm of a weight as a share of its cap, over all measurements
    activation     the largest absolute entry of any block's output on the probe, over all measurements
    spikes         how many losses were beyond ``SPIKE`` times the median of the ``RECENT`` before
    seconds        spent in the loop, interruptions left out
    lines          metrics that no file holds yet; ``written`` lines stand in the file
    """

    step: int = 0
    saved: int = 0
    norm_over_cap: float = 0.0
    activation: float = 0.0
    spikes: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    gain: list[list[float]] | None = None
    written: int = 0
    lines: list[Line] = field(default_factory=list)
    held: Judged | None = None

    def saw(self, loss: float) -> None:
        """Count a step's loss."""
        if len(self.recent) == RECENT and loss > SPIKE * median(self.recent):
            self.spikes += 1
        self.recent = [*self.recent[1 - RECENT :], loss]
