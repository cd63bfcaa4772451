"""Shows how far a training is: a bar in a terminal, elsewhere a plain line a validation."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from agents.validation import Keeper


class Display:
    """A progress bar in a terminal; elsewhere one plain line a validation.

    Args:
        keeper: whose latest result is shown.
        total: how many steps or generations there will be.
        console: where to; standard error by default.
    """

    def __init__(self, keeper: Keeper, total: int, console: Console | None = None) -> None:
        self._keeper, self._total = keeper, total
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0
        self._since: tuple[float, int] | None = None  # when, and how many decisions there were

    def begin(self) -> None:
        """Shows the bar, in a terminal."""
        if self._console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, note="")

    def start_clock(self, decisions: int) -> None:
        """Speed is measured from the first call on: what was before waited for compilation."""
        if self._since is None:
            self._since = (time.perf_counter(), decisions)

    def show(self, done: int, decisions: int) -> None:
        """Shows the state after `done` of the total, and `decisions` decisions."""
        history = self._keeper.history
        steps, greedy, sampled = history[-1]
        rate = 0.0
        if self._since is not None:
            rate = (decisions - self._since[1]) / max(time.perf_counter() - self._since[0], 1e-9)
        if self._bar is not None:
            note = f"{rate:,.0f} steps/s, validation attainment {greedy:.3f}"
            self._bar.update(self._task, completed=min(done, self._total), note=note)
        elif len(history) > self._shown:
            self._shown = len(history)
            self._console.print(
                f"{steps:>11,} steps  {rate:>7,.0f} steps/s  validation attainment: greedy {greedy:.4f}, "
                f"sampled {sampled:.4f}",
                highlight=False,
                soft_wrap=True,
            )

    def stop(self) -> None:
        """Takes the bar away; also after an interruption."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
