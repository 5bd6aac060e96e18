"""What a cross-check asks for unless told otherwise. The commands print these numbers, so no torch here."""

from __future__ import annotations

from certkit.records.crosscheck import MethodName

SAMPLES = 100
METHODS: tuple[MethodName, ...] = ("IBP", "CROWN-IBP")
DRAWS = 1000
ALPHA = 0.001
