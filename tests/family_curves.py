"""Cases of functions applied entry by entry."""

from __future__ import annotations

from typing import Any

from tests.modules import Case

CASES: dict[str, tuple[Case, ...]] = {}
ATTAINED: dict[str, Any] = {}
MUTANTS: list[tuple[Any, str, str, str]] = []
