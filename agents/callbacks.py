"""What is measured and shown while an agent trains: episodes, validation on seeds of its own, progress."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback

from agents.network import NumpyAgent
from agents.run import run_agent
from llm_env.actions import BOX_NAMES, BUDGET_LEVELS, CHUNK_LEVELS, DISCRETE_TABLE, MIXES, ORDERS, describe
from llm_env.command import check_stopped
from llm_env.config import Scenario
from llm_env.metrics import summarise
from llm_env.records import QUEUE_ORDERS, UNLIMITED
from llm_env.systems import EPISODE_KEYS, SCENARIO_INDEX, Workload

FIRST_VALIDATION_SEED = 1_000_000  # below are those of training, from 2,000,000 on those of reports
VALIDATED = (  # fields of llm_env.metrics.Summary
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
_NOT_NUMBERS = ("stdout", "log", "json", "csv")
_LEVELS = (
    ("budget", tuple(f"{level:g}x" for level in BUDGET_LEVELS)),
    ("mix", MIXES),
    ("chunk", tuple("whole" if c == UNLIMITED else str(c) for c in CHUNK_LEVELS)),
    ("order", tuple(QUEUE_ORDERS[order] for order in ORDERS)),
)


# ---- episodes ------------------------------------------------------------------------------------------------------
class EpisodeMetrics(BaseCallback):
    """Per rollout: means of the episodes that ended, reward terms per step, entropy, and which actions were taken.

    Args:
        action: "multidiscrete", "discrete" or "box".
    """

    def __init__(self, action: str) -> None:
        super().__init__()
        self._action = action
        self._outcomes: dict[str, list[float]] = defaultdict(list)
        self._terms: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._since_s = time.perf_counter()

    def _on_rollout_start(self) -> None:
        self._outcomes.clear()
        self._terms.clear()
        self._steps = 0

    def _on_step(self) -> bool:
        self._steps += len(self.locals["dones"])
        for name, values in self.locals["env"].step_infos.items():
            if name.startswith("reward_") or name == "dt_s":
                self._terms[name] += float(values.sum())
        for e in np.flatnonzero(self.locals["dones"]):
            for key in EPISODE_KEYS:
                if key in self.locals["infos"][e]:
                    self._outcomes[key].append(self.locals["infos"][e][key])
            self._note_scenario(self.locals["infos"][e])
        return True

    def _note_scenario(self, info: dict[str, Any]) -> None:
        """Attainment once more under the scenario's name, if there are several."""
        scenarios = self.locals["env"].scenarios
        if len(scenarios) > 1 and "slo_attainment" in info:
            name = scenarios[int(info[SCENARIO_INDEX])].name
            self._outcomes[f"slo_attainment_{name}"].append(info["slo_attainment"])

    def _on_rollout_end(self) -> None:
        for key, values in self._outcomes.items():
            self.logger.record(f"serve/{key}", float(np.mean(values)))
        for name, total in self._terms.items():
            self.logger.record(f"step/{name}", total / self._steps)
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.logger.record("rollout/entropy", -float(buffer.log_probs.mean()))
        self._record_actions(buffer.actions.reshape(self._steps, -1))
        now_s = time.perf_counter()
        self.logger.record("time/steps_per_s", self._steps / (now_s - self._since_s))
        self._since_s = now_s

    def _record_actions(self, actions: np.ndarray) -> None:
        """Histograms, and shares of the levels; of a box, the means. actions: (steps, dimensions)."""
        if self._action == "box":
            dimensions = tuple((name, ()) for name in BOX_NAMES)
            for k, name in enumerate(BOX_NAMES):
                self.logger.record(f"actions/{name}_mean", float(actions[:, k].mean()))
        elif self._action == "discrete":
            dimensions = (("choice", tuple(describe(entry) for entry in DISCRETE_TABLE)),)
        else:
            dimensions = _LEVELS
        for k, (name, levels) in enumerate(dimensions):
            self.logger.record(f"actions/{name}", torch.as_tensor(actions[:, k]), exclude=_NOT_NUMBERS)
            counts = np.bincount(actions[:, k].astype(np.int64), minlength=len(levels)) if levels else ()
            for level, count in zip(levels, counts, strict=bool(levels)):
                self.logger.record(f"actions/{name}_{level}", float(count) / len(actions))


# ---- validation ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """The workloads that every validation meets.

    Attributes:
        cases: name of each load and its scenario and workload (None: drawn from the scenario).
        seeds: of each case.
    """

    cases: tuple[tuple[str, Scenario, Workload | None], ...]
    seeds: tuple[int, ...]


def validate(agent: NumpyAgent, against: ValidationSet, deterministic: bool = True) -> dict[str, float]:
    """Means over all cases and seeds of the fields VALIDATED, and attainment by case as "slo_attainment_NAME"."""
    found: dict[str, float] = {}
    summaries = []
    for name, scenario, workload in against.cases:
        systems = run_agent(agent, scenario, against.seeds, workload, True, deterministic, np.random.default_rng(0))
        mine = [summarise(systems.state(e), scenario) for e in range(len(against.seeds))]
        found[f"slo_attainment_{name}"] = _mean([s.slo_attainment for s in mine])
        summaries += mine
    return {key: _mean([getattr(s, key) for s in summaries]) for key in VALIDATED} | found


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


class Validation(BaseCallback):
    """Before training, every `every` steps and at the end: the greedy and the sampled policy on the validation set.

    Keeps the trained agent whose greedy attainment is best, the earliest of equals, because the last weights need not
    be. The untrained policy is measured for comparison and never kept.

    Args:
        export: makes a NumpyAgent of the present weights.
        against: what it is measured on.
        every: environment steps between validations.
    """

    def __init__(self, export: Callable[[], NumpyAgent], against: ValidationSet, every: int) -> None:
        super().__init__()
        self._export, self._against, self._every = export, against, every
        self.best: NumpyAgent | None = None
        self.best_attainment, self.best_timesteps = -math.inf, 0
        self.history: list[tuple[int, float, float]] = []  # timesteps, greedy and sampled attainment

    def _on_training_start(self) -> None:
        self._measure()
        self.logger.dump(self.num_timesteps)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:  # before the update: the weights that have just been acting
        last = self.num_timesteps >= self.model._total_timesteps  # measured after its update
        if self.num_timesteps - self.history[-1][0] >= self._every and not last:
            self._measure()

    def _on_training_end(self) -> None:
        self._measure()
        self.logger.dump(self.num_timesteps)

    def _measure(self) -> None:
        agent = self._export()
        greedy, sampled = (validate(agent, self._against, deterministic) for deterministic in (True, False))
        for key, value in greedy.items():
            self.logger.record(f"validation/{key}", value)
        for key, value in sampled.items():
            self.logger.record(f"validation_sampled/{key}", value)
        attainment = greedy["slo_attainment"]
        self.history.append((self.num_timesteps, attainment, sampled["slo_attainment"]))
        score = 0.0 if math.isnan(attainment) else attainment  # NaN: no request was measured
        trained = self.model._n_updates > 0  # type: ignore[attr-defined]
        if trained and score > self.best_attainment:
            self.best, self.best_attainment, self.best_timesteps = agent, score, self.num_timesteps


# ---- progress ------------------------------------------------------------------------------------------------------
@dataclass
class _Clock:
    """Steps per second, from the second rollout on: the first waits for compilation."""

    since_s: float = field(default_factory=time.perf_counter)
    steps: int = 0

    def rate(self, steps: int) -> float:
        return (steps - self.steps) / max(time.perf_counter() - self.since_s, 1e-9)


class ProgressLine(BaseCallback):
    """A progress bar in a terminal; elsewhere one plain line a validation.

    Args:
        validation: whose latest result is shown.
        timesteps: how many there will be.
        console: where to; standard error by default.
    """

    def __init__(self, validation: Validation, timesteps: int, console: Console | None = None) -> None:
        super().__init__()
        self._validation, self._timesteps = validation, timesteps
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0
        self._clock: _Clock | None = None

    def _on_training_start(self) -> None:
        if self._console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._timesteps, note="")
        self._show()

    def _on_step(self) -> bool:
        check_stopped()
        if self._clock is None:
            self._clock = _Clock(steps=self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self._show()

    def _on_training_end(self) -> None:
        self._show()
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; also after an interruption."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        history = self._validation.history
        steps, greedy, sampled = history[-1]
        rate = self._clock.rate(self.num_timesteps) if self._clock else 0.0
        if self._bar is not None:
            note = f"{rate:,.0f} steps/s, validation attainment {greedy:.3f}"
            self._bar.update(self._task, completed=min(self.num_timesteps, self._timesteps), note=note)
        elif len(history) > self._shown:
            self._shown = len(history)
            self._console.print(
                f"{steps:>9,} steps  {rate:>7,.0f} steps/s  validation attainment: greedy {greedy:.4f}, "
                f"sampled {sampled:.4f}",
                highlight=False,
                soft_wrap=True,
            )
