"""Runs as an animation for a notebook: the player of the report (docs/report.md), on a page of its own in a frame.

It needs no network, no widget and no video: the page holds its data and its script.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.files import staged_file
from llm_env.recorder import record_agent, record_run
from llm_env.report.document import document
from llm_env.report.player import LATEST_S, Run, excerpt, markup
from llm_env.workload import concrete, draw_workload

MOST_RUNS = 6
HEIGHT = 820  # pixels of the frame
_TONES = ("hero1", "rival")


@dataclass(frozen=True)
class Animation:
    """Runs beside each other; the last expression of a notebook's cell shows them.

    Attributes:
        page: HTML text of the whole page, which loads nothing.
    """

    page: str

    def _repr_html_(self) -> str:
        """A frame that may run the page's own script and nothing else: it has no access to the notebook."""
        page = html.escape(self.page, quote=True)
        look = f'title="Runs, batch by batch" width="100%" height="{HEIGHT}" frameborder="0"'
        return f'<iframe sandbox="allow-scripts" {look} srcdoc="{page}"></iframe>'

    def save(self, path: str | Path) -> None:
        """Writes the page as a file for a browser; one of that name is replaced.

        Raises:
            InputOutputError: it cannot be written.
        """
        with staged_file(path, overwrite=True) as staged:
            staged.write_text(self.page, encoding="utf-8", newline="\n")


def animate(scenario: Scenario, players: Mapping[str, Any], seed: int, requests: np.ndarray | None = None) -> Animation:
    """The busiest minute of runs of one workload, of the first 300 s.

    Args:
        scenario: the system; what of it varies is drawn with the seed.
        players: by name, compiled policies (`llm_env.records.policy`) or agents that form batches (`agents.load`).
        seed: of the workload and the service noise.
        requests: (n,) REQUEST in place of those that the scenario draws.

    Raises:
        UserError: none or more than MOST_RUNS players, one that is neither, a workload without requests, or a
            scenario that cannot be recorded (`llm_env.recorder`).
    """
    if not 1 <= len(players) <= MOST_RUNS:
        raise UserError(f"players: expected 1 to {MOST_RUNS}, got {len(players)}")
    episode = concrete(scenario, seed)
    workload = draw_workload(episode, seed) if requests is None else requests
    if len(workload) == 0:
        raise UserError("requests: there is none to be seen")
    runs = []
    for k, (name, player) in enumerate(players.items()):
        if hasattr(player, "deciding"):
            recording = record_agent(episode, player, lambda _: workload, [seed], LATEST_S)
        elif not callable(player):
            raise UserError(
                f"players: {name}: expected a compiled policy or an agent that forms batches, got {player!r}"
            )
        else:
            recording = record_run(episode, player, workload, seed, LATEST_S)
        runs.append(Run(name, _TONES[k] if k < len(_TONES) else "other", episode, recording))
    shown = excerpt(runs)
    if shown is None:
        raise UserError("requests: none arrives in the first 300 s")
    names = " and ".join(players) if len(players) <= 2 else f"{len(players)} schedulers"
    body = f"<main>{markup(shown, f'The same requests under {names}, seed {seed},')}</main>"
    return Animation(document(f"{names} on {scenario.name}", body, ["player.js"]))
