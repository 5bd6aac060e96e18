"""Every rule with less than it may claim: which such mutants the cases by hand and the searches of the tests catch.

    python -m benchmarks.mutants > benchmarks/results/mutants.json

Every rule's gain times 0.9, size and error halved; and in the source of the rules every sum without one of its terms, every
sum and product replaced by the larger operand, every root and every change of norm left out. A mutant counts when it
states a smaller number than the rule somewhere; it is killed when a number that it states is below what was measured.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
import warnings
from collections import Counter
from typing import Any

from benchmarks.common import printed
from certkit.bounds.rules import RULES
from certkit.machine import pinned
from tests.attained import Attained
from tests.mutating import EXTRA, Mutant, Verdict, instances_of, judge, mutants, reached
from tests.table import CASES
from tests.test_attained import ATTAINED

# Survivors that claim a smaller gain or size, by a part of their name.
REASONS = {
    "column_sum * (ONE + rest * 2) + Up.of(rows)": "a part of c', how much of the keys' move an almost one-hot softmax lets "
    "through; the two parts add up from different rows, and no case has both",
    "ONE + rest * 2": "second order in the rest r of a row, beside a term of first order that no case meets so closely",
    "spread.sqrt()": "less only where c' is above 1, and there no case meets the keys' term",
}


def reason(mutant: Mutant, verdict: Verdict) -> str:
    """Why a mutant survived."""
    for part, words in REASONS.items():
        if part in mutant.name:
            return words
    if verdict.fields != ("error",):
        return "no case was found that meets the bound where this claims less"
    if any(word in mutant.old for word in ("smallest", "underflow", "lost")) or verdict.closest == 0:
        return "a charge for underflow: no value of the cases is that small"
    return (
        "a charge for the rounding of the rule itself, an upper bound of a worst order of summation and of worst roundings: "
        f"float32 came to {verdict.closest:.2f} of what is left without it"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="*", help="only these rules' cases and their modules; all unless given")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message="There is a performance drop")
    rules = given.rules or sorted(CASES)
    modules = sorted({inspect.getmodule(RULES[rule]) for rule in rules}, key=lambda module: module.__name__)  # type: ignore[union-attr,arg-type]
    by_hand = [case for rule in rules for case in ATTAINED[rule] if isinstance(case, Attained)]
    counts: Counter[tuple[str, str, str]] = Counter()
    survivors, unreached = list[dict[str, Any]](), list[str]()
    with pinned(given.threads) as threads:
        started = time.process_time()
        instances = instances_of([case for rule in rules for case in CASES[rule]], [*by_hand, *EXTRA])
        lines = reached(instances)
        print(f"{len(instances)} instances, {time.process_time() - started:.0f} s", file=sys.stderr)
        for mutant in mutants(modules):  # type: ignore[arg-type]
            verdict = judge(mutant, instances, lines)
            of = "error alone" if verdict.fields == ("error",) else "gain or size"
            counts[mutant.kind, of, verdict.status] += 1
            if verdict.status == "survived":
                survivors.append(
                    {
                        "mutant": mutant.name,
                        "less": list(verdict.fields),
                        "closest": round(verdict.closest, 4),
                        "why": reason(mutant, verdict),
                    }
                )
            if verdict.status == "unreached":
                unreached.append(mutant.name)
        figures = {
            "rules": len(rules),
            "instances": len(instances),
            "mutants": sum(counts.values()),
            "states_no_less_anywhere": _count(counts, status="no less"),
            "rule_cannot_run": _count(counts, status="refuses"),
            "unreached": unreached,
            "gain_or_size": rate(counts, "gain or size"),
            "error_alone": rate(counts, "error alone"),
            "by_kind": {
                kind: {of: rate(counts, of, kind) for of in ("gain or size", "error alone")}
                for kind in sorted({kind for kind, _, _ in counts})
            },
            "survivors": survivors,
            "cpu_seconds": round(time.process_time() - started),
        }
        printed("benchmarks.mutants", figures, threads)
    return 0


def rate(counts: Counter[tuple[str, str, str]], of: str, kind: str | None = None) -> dict[str, Any]:
    """Killed and survived, among the mutants that state less."""
    killed = _count(counts, of, "killed", kind)
    survived = _count(counts, of, "survived", kind)
    return {"killed": killed, "survived": survived, "rate": round(killed / max(killed + survived, 1), 4)}


def _count(
    counts: Counter[tuple[str, str, str]], of: str | None = None, status: str = "", kind: str | None = None
) -> int:
    return sum(
        n for (k, o, s), n in counts.items() if s == status and (of is None or o == of) and (kind is None or k == kind)
    )


if __name__ == "__main__":
    sys.exit(main())
