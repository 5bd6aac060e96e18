"""What every benchmark says of itself: the command, the commit and the machine beside its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from certkit.machine import environment


def commit() -> str:
    """The commit of the checkout, with a plus sign where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def printed(module: str, found: dict[str, Any], threads: int) -> None:
    """The figures as JSON on stdout."""
    words = " ".join(["python", "-m", module, *sys.argv[1:]])
    machine = environment("cpu", threads).model_dump()
    print(json.dumps({"command": words, "commit": commit(), "environment": machine, **found}, indent=1))
