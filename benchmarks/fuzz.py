"""Feed spoilt files to every reader and print what happened as one JSON object.

python -m benchmarks.fuzz --cases 1000000 --seed 0
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzzing import case, fault, targets


def main() -> int:
    """Run the cases in turn over the kinds of files; 1 when a reader failed or one case took a second or more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10**6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop early after so long")
    given = parser.parse_args()
    started, slowest, slowest_case, failures, cases = time.monotonic(), 0.0, 0, [], 0
    with tempfile.TemporaryDirectory() as name:
        kinds = targets(Path(name))
        while cases < given.cases and time.monotonic() - started < given.seconds:
            target = kinds[cases % len(kinds)]
            found, seconds = fault(target, case(target, given.seed, cases))
            if found is not None:
                failures.append({"case": cases, "fault": found})
            if seconds > slowest:
                slowest, slowest_case = seconds, cases
            cases += 1
    result = {
        "cases": cases,
        "seed": given.seed,
        "failures": failures[:100],
        "failed": len(failures),
        "slowest_seconds": round(slowest, 4),
        "slowest_case": slowest_case,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result, indent=1))
    return int(bool(failures) or slowest >= 1)


if __name__ == "__main__":
    sys.exit(main())
