"""A million attempts to break the bounds of the rules, over all cases of the tests, guided by gradients.

    python -m benchmarks.violations > benchmarks/results/violations.json

One trial is a pair of inputs of one program under one threat (l2 or linf), with weights of its own seed. It climbs STEPS
steps along the gradient of its quotient, or of the size of a value, at an operator drawn by chance; at the end it is
compared with every number that the ledger states for every operator: how far the pair moved apart with the gain, both
values with size and range, and float32 beside float64 with the error. ``closest`` is the largest measured / stated per
rule; 1 is a bound that was met. Exits with 1 when anything went beyond its bound.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

from benchmarks.common import printed
from certkit.machine import pinned
from tests.searching import Found, plan, search
from tests.table import CASES

PAIRS, STEPS = 128, 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10**6)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message="There is a performance drop")
    cases = [(rule, case) for rule, several in CASES.items() for case in several]
    found, broken, seeds = Found(), list[dict[str, Any]](), set[int]()
    with pinned(given.threads) as threads:
        started = time.process_time()
        for rule, case, seed, norm in plan(cases, given.trials, PAIRS):
            one = search(case, seed, norm, PAIRS, STEPS)
            found.add(one)
            seeds.add(seed)
            where = {"rule": rule, "case": case.name, "seed": seed, "norm": norm}
            broken += [
                {**where, "field": v.field, "node": v.node, "axes": v.axes, "ratio": v.ratio} for v in one.violations
            ]
        figures = {
            "trials": found.trials,
            "comparisons": found.comparisons,
            "violations": len(broken),
            "broken": broken[:100],
            "cases": len(cases),
            "rules": len(CASES),
            "seeds": len(seeds),
            "pairs_per_batch": PAIRS,
            "steps": STEPS,
            "cpu_seconds": round(time.process_time() - started),
            "closest": {
                rule: {name: round(n, 4) for name, n in of.items()} for rule, of in sorted(found.closest.items())
            },
        }
        printed("benchmarks.violations", figures, threads)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
