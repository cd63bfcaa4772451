"""Measures agents on workloads of their own while they learn, and keeps the best. Knows nothing of how they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.checkpoint import BEST
from agents.files import read
from agents.forms import Trained
from agents.routing_run import run_trained
from agents.stored import Stored
from llm_env.config import Scenario
from llm_env.metrics import Summary, summarise
from llm_env.systems import Workload

FIRST_VALIDATION_SEED = 1_000_000  # below are those of training, from 2,000,000 on those of reports
SCORE = "weighted_attainment"  # by which agents are compared, of Summary and of an episode's outcome
VALIDATED = (  # fields of llm_env.metrics.Summary
    "weighted_attainment",
    "slo_attainment",
    "ttft_attainment",
    "goodput_per_s",
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p50_s",
    "tbt_p99_s",
    "tbt_max_s",
)
MARGINS = {  # what is left of the tightest target, in targets: 0 at it, below 0 beyond
    f"{what}_p{percent}_margin": (f"{what}_p{percent}_s", f"{what}_ms")
    for what in ("ttft", "tbt")
    for percent in (50, 95, 99)
}


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """The workloads that every validation meets.

    Attributes:
        cases: name of each load and its scenario and workload (None: drawn from the scenario).
        seeds: of each case.
    """

    cases: tuple[tuple[str, Scenario, Workload | None], ...]
    seeds: tuple[int, ...]


def validate(agent: Trained, against: ValidationSet, deterministic: bool = True) -> dict[str, float]:
    """Means over all cases and seeds of the fields VALIDATED and of MARGINS, and attainment by case as
    "slo_attainment_NAME".
    """
    found: dict[str, float] = {}
    summaries, margins = [], []
    for name, scenario, workload in against.cases:
        systems = run_trained(agent, scenario, against.seeds, workload, True, deterministic, np.random.default_rng(0))
        mine = [summarise(systems.state(e), scenario) for e in range(len(against.seeds))]
        found[f"slo_attainment_{name}"] = _mean([s.slo_attainment for s in mine])
        summaries += mine
        margins += [_margins(summary, systems.scenario(e)) for e, summary in enumerate(mine)]
    means = {key: _mean([getattr(s, key) for s in summaries]) for key in VALIDATED}
    return means | {key: _mean([margin[key] for margin in margins]) for key in MARGINS} | found


def _margins(summary: Summary, scenario: Scenario) -> dict[str, float]:
    """MARGINS of one run. Args: scenario: its own, in which nothing varies."""
    return {
        name: 1.0 - 1e3 * getattr(summary, field) / min(getattr(c, target) for c in scenario.slo.classes)
        for name, (field, target) in MARGINS.items()
    }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


class Keeper:
    """Measures the greedy and the sampled policy, and keeps the agent whose greedy attainment is best.

    Of equals the earliest is kept; the last weights need not be the best.

    Args:
        against: what is measured on.

    Attributes:
        mark: called after each measurement with its timesteps and the agent.
        best: the best agent so far, None before the first.
        best_attainment, best_timesteps: its attainment, and after how many decisions it was exported.
        history: timesteps, greedy and sampled attainment of each measurement.
    """

    def __init__(self, against: ValidationSet) -> None:
        self._against = against
        self.mark: Callable[[int, Trained], None] | None = None
        self.best: Trained | None = None
        self.best_attainment, self.best_timesteps = -math.inf, 0
        self.history: list[tuple[int, float, float]] = []

    def measure(self, agent: Trained, timesteps: int, eligible: bool = True, explores: bool = True) -> dict[str, float]:
        """Measures an agent and keeps it if it is the best of those that are eligible.

        Args:
            agent: who is measured.
            timesteps: decisions that it has learned from.
            eligible: it may be kept.
            explores: it draws actions, so that the sampled policy is another one.

        Returns:
            What was found, by the names under which it is logged.
        """
        greedy = validate(agent, self._against)
        sampled = validate(agent, self._against, deterministic=False) if explores else greedy
        attainment = greedy[SCORE]
        self.history.append((timesteps, attainment, sampled[SCORE]))
        score = 0.0 if math.isnan(attainment) else attainment  # NaN: no request was measured
        if eligible and score > self.best_attainment:
            self.best, self.best_attainment, self.best_timesteps = agent, score, timesteps
        if self.mark is not None:
            self.mark(timesteps, agent)
        found = {f"validation/{key}": value for key, value in greedy.items()} | {"validation/attainment": attainment}
        return found | {f"validation_sampled/{key}": value for key, value in sampled.items() if explores}

    def since_best(self) -> int:
        """How many measurements there were after the one of the best agent."""
        return sum(timesteps > self.best_timesteps for timesteps, *_ in self.history)

    def saved(self) -> dict[str, Any]:
        """Results so far; the best agent is kept beside them as files."""
        best = [math.nan if self.best is None else self.best_attainment, self.best_timesteps]
        return {"history": np.array(self.history, np.float64).reshape(-1, 3), "best": np.array(best, np.float64)}

    def restore(self, stored: Stored) -> None:
        """Goes on after these results.

        Raises:
            UserError: they are none.
        """
        history = stored.value("history")
        rows = len(history) if isinstance(history, np.ndarray) and history.ndim == 2 else 1
        history = stored.array("history", np.float64, (rows, 3), finite=False)
        self.history = [(int(steps), greedy, sampled) for steps, greedy, sampled in history.tolist()]
        attainment, steps = stored.array("best", np.float64, (2,), finite=False).tolist()
        if not math.isnan(attainment):
            self.best = read(stored.place / BEST)
            self.best_attainment, self.best_timesteps = attainment, int(steps)
