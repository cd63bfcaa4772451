"""Horizontal lines beside the curve of training: what others reach on the validation workloads. Runs nobody itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from agents.run_state import Events
from agents.validation import ValidationSet

Rivals = Callable[[ValidationSet], Mapping[str, float]]  # names and the attainment that each reaches
TAG = "validation/attainment"


class ReferenceLines:
    """A TensorBoard run for each rival, with a point of the same height at every validation.

    Args:
        folder: of the events of the training.
        reached: attainment by name.
        first_step: of a run that goes on, the first of the points to come: later ones of before are no longer shown.
    """

    def __init__(self, folder: Path, reached: Mapping[str, float], first_step: int | None = None) -> None:
        self._lines = [
            (Events(folder / f"reference-{re.sub(r'[^A-Za-z0-9.=-]+', '-', name)}", first_step), value)
            for name, value in reached.items()
        ]

    def mark(self, step: int) -> None:
        """A point at a step."""
        for line, value in self._lines:
            line.write({TAG: value}, {TAG: ()}, step)

    def close(self) -> None:
        """Closes the files."""
        for line, _ in self._lines:
            line.close()
