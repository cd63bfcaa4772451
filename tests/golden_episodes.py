"""The episodes whose hashes `test_golden` keeps: environments on a trace made of integers, with random actions.

Of each step the observation (to 5 digits: it holds logarithms), the reward and what info says (to 9 digits), the ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from golden_runs import LATER, TICK_S, hash_of, integers, rounded

import llm_env  # noqa: F401 - registers the environments
from llm_env.actions import ACTION_KINDS, DISCRETE_TABLE, FLOAT_NAMES, NVEC
from llm_env.config import Scenario, with_changes

STEPS = 700  # a few episodes
CHANGES: dict[str, Any] = {
    "episode.arrivals_s": 6.0,
    "episode.warmup_s": 0.5,
    "episode.horizon_s": 9.5,
    "system.kv.blocks": 900,
    "reward.completion": 0.5,
    "reward.token": 0.125,
    "reward.queue": 0.25,
}
VARIED: dict[str, dict[str, Any]] = {
    "one worker": {},
    "two workers": {"system.workers": 2, "system.router": "least-tokens", "system.kv.blocks": 300},
    "disaggregated": {"system.workers": 3, "system.layout": "disaggregated", "system.prefill_workers": 1},
}


def scenario_of(name: str) -> Scenario:
    return with_changes(Scenario(name=name.replace(" ", "-")), {**CHANGES, **VARIED[name]})


def write_trace(path: Path) -> None:
    """800 requests, five a second."""
    draw, ticks = integers(5), 0
    lines = ["arrival_s,prompt_tokens,output_tokens"]
    for _ in range(800):
        ticks += next(draw) % 410
        lines.append(f"{ticks * TICK_S!r},{1 + next(draw) % 900},{1 + next(draw) % 80}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def actions(kind: str, count: int) -> np.ndarray:
    """(STEPS, count, ...) random actions of a kind."""
    draw = integers(6 + ACTION_KINDS.index(kind))
    if kind == "discrete":
        return np.array([[next(draw) % len(DISCRETE_TABLE) for _ in range(count)] for _ in range(STEPS)])
    if kind in FLOAT_NAMES:
        drawn = [[[next(draw) % 2049 - 1024 for _ in FLOAT_NAMES[kind]] for _ in range(count)] for _ in range(STEPS)]
        return np.array(drawn, np.float32) / 1024
    return np.array([[[next(draw) % n for n in NVEC] for _ in range(count)] for _ in range(STEPS)])


class Tape:
    """Hashes what it is told, step by step."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def note(self, observations: Any, info: dict[str, Any], *rest: Any) -> None:
        parts = [hash_of(rounded(observations, 5)), hash_of(*(rounded(each, 9) for each in rest))]
        self._digest.update("".join([*parts, *self._of_info(info)]).encode())

    def _of_info(self, info: dict[str, Any]) -> Iterator[str]:
        for name in sorted(info):
            if name.removeprefix("_") in LATER:
                continue
            value = info[name]
            if isinstance(value, dict):
                yield from self._of_info(value)
            elif isinstance(value, np.ndarray) and value.dtype == object:  # last observations, None where there is none
                yield from (hash_of(name, rounded(each, 5)) for each in value if each is not None)
            else:
                yield hash_of(name, rounded(value, 9))

    def hash(self) -> str:
        return self._digest.hexdigest()[:16]


def single_episodes(name: str, kind: str, trace: Path) -> str:
    """`gym.make`: STEPS steps with the masks before each, a new episode after each end."""
    env: Any = gym.make("llm_env/Serving-v0", scenario=scenario_of(name), action=kind, trace=trace)
    tape = Tape()
    observation, info = env.reset(seed=11)
    tape.note(observation, info)
    for k, action in enumerate(actions(kind, 1)[:, 0]):
        masks = env.unwrapped.action_masks()
        observation, reward, terminated, truncated, info = env.step(action)
        tape.note(observation, info, reward, terminated, truncated, masks)
        if terminated or truncated:
            tape.note(*env.reset(seed=100 + k))
    return tape.hash()


def vector_episodes(names: list[str], kind: str, autoreset: str, trace: Path) -> str:
    """`gym.make_vec`: three environments, which begin anew by themselves."""
    envs: Any = gym.make_vec(
        "llm_env/Serving-v0",
        num_envs=3,
        scenario=[scenario_of(name) for name in names],
        action=kind,
        trace=trace,
        autoreset_mode=autoreset,
    )
    tape = Tape()
    tape.note(*envs.reset(seed=11))
    for chosen in actions(kind, 3):
        observations, rewards, terminated, truncated, infos = envs.step(chosen)
        tape.note(observations, infos, rewards, terminated, truncated)
    return tape.hash()


def episode_hashes(trace: Path) -> dict[str, str]:
    """Every kind of action with `gym.make` and `gym.make_vec`, on one system and on all."""
    write_trace(trace)
    found = {f"make, {name}, {kind}": single_episodes(name, kind, trace) for name in VARIED for kind in ACTION_KINDS}
    for k, kind in enumerate(ACTION_KINDS):
        autoreset = ("NextStep", "SameStep")[k % 2]
        found[f"make_vec, one worker, {kind}"] = vector_episodes(["one worker"], kind, autoreset, trace)
    found["make_vec, every system"] = vector_episodes(list(VARIED), "multidiscrete", "SameStep", trace)
    return found
