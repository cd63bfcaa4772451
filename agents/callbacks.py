"""What SB3 calls while it learns: means of episodes, validation, progress."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from agents.curriculum import Course
from agents.network import NumpyAgent
from agents.progress import Display
from agents.validation import Keeper
from llm_env.actions import BUDGET_LEVELS, CHUNK_LEVELS, DISCRETE_TABLE, FLOAT_NAMES, MIXES, ORDERS, describe
from llm_env.command import check_stopped
from llm_env.records import QUEUE_ORDERS, UNLIMITED
from llm_env.systems import EPISODE_KEYS, SCENARIO_INDEX

_NOT_NUMBERS = ("stdout", "log", "json", "csv")
_LEVELS = (
    ("budget", tuple(f"{level:g}x" for level in BUDGET_LEVELS)),
    ("mix", MIXES),
    ("chunk", tuple("whole" if c == UNLIMITED else str(c) for c in CHUNK_LEVELS)),
    ("order", tuple(QUEUE_ORDERS[order] for order in ORDERS)),
)


class Advance(BaseCallback):
    """Tells a Course how far the training is. Args: timesteps: how many there will be."""

    def __init__(self, course: Course, timesteps: int) -> None:
        super().__init__()
        self._course, self._timesteps = course, timesteps

    def _on_rollout_start(self) -> None:
        self._course.done = self.num_timesteps / self._timesteps

    def _on_step(self) -> bool:
        return True


# ---- episodes ------------------------------------------------------------------------------------------------------
class EpisodeMetrics(BaseCallback):
    """Per rollout: means of the episodes that ended, reward terms per step, entropy, and which actions were taken.

    Args:
        action: one of `llm_env.actions.ACTION_KINDS`.
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
        """Histograms, and shares of the levels; of floats, the means. actions: (steps, dimensions)."""
        if self._action in FLOAT_NAMES:
            dimensions = tuple((name, ()) for name in FLOAT_NAMES[self._action])
            for k, (name, _) in enumerate(dimensions):
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


# ---- validation and progress ---------------------------------------------------------------------------------------
class Validation(BaseCallback):
    """Lets a Keeper measure before training, every `every` steps and at the end.

    Args:
        export: makes a NumpyAgent of the present weights.
        keeper: measures them.
        every: environment steps between validations.
        keep_start: the policy before training may be kept as the best.
        patience: the training stops after so many validations without a better one; 0: never.
    """

    def __init__(
        self, export: Callable[[], NumpyAgent], keeper: Keeper, every: int, keep_start: bool, patience: int = 0
    ) -> None:
        super().__init__()
        self._export, self._keeper, self._every, self._keep_start = export, keeper, every, keep_start
        self._patience = patience

    def _on_training_start(self) -> None:
        if not self._keeper.history:  # of a run that goes on they are known
            self._measure()
            self.logger.dump(self.num_timesteps)

    def _on_step(self) -> bool:
        return not 0 < self._patience <= self._keeper.since_best()

    def _on_rollout_end(self) -> None:  # before the update: the weights that have just been acting
        last = self.num_timesteps >= self.model._total_timesteps  # measured after its update
        if self.num_timesteps - self._keeper.history[-1][0] >= self._every and not last:
            self._measure()

    def _on_training_end(self) -> None:
        self._measure()
        self.logger.dump(self.num_timesteps)

    def _measure(self) -> None:
        trained = self.model._n_updates > 0  # type: ignore[attr-defined]
        found = self._keeper.measure(self._export(), self.num_timesteps, trained or self._keep_start)
        for name, value in found.items():
            self.logger.record(name, value)


class ProgressLine(BaseCallback):
    """Keeps a Display up to date.

    Args:
        keeper: whose latest result is shown.
        timesteps: how many there will be.
        console: where to; standard error by default.
    """

    def __init__(self, keeper: Keeper, timesteps: int, console: Console | None = None) -> None:
        super().__init__()
        self._display = Display(keeper, timesteps, console)

    def _on_training_start(self) -> None:
        self._display.begin()
        self._show()

    def _on_step(self) -> bool:
        check_stopped()
        self._display.start_clock(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self._show()

    def _on_training_end(self) -> None:
        self._show()
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; also after an interruption."""
        self._display.stop()

    def _show(self) -> None:
        self._display.show(self.num_timesteps, self.num_timesteps)
