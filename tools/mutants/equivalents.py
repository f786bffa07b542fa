"""Mutants that no input can tell from the original, each with the reason; the keys are what a report shows."""

from __future__ import annotations

# (source, its changed lines) -> the reason why no input can tell
EQUIVALENT: dict[tuple[str, str], str] = {}
