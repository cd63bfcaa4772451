"""Kernel, environments and CartPole in one run, per CPU-second, beside a calibration loop. `--json FILE` keeps it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

import baselines
from llm_env.bounds import slo_bound
from llm_env.config import Scenario, with_changes
from llm_env.provenance import provenance
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import draw_workload

SECONDS = 1.5  # of CPU time per figure
ACTION = np.array([4, 2, 2, 4])


def rate(work: Callable[[], int]) -> float:
    """Units of work per CPU-second; the first call only warms up."""
    work()
    began, done = time.process_time(), 0
    while time.process_time() - began < SECONDS:
        done += work()
    return done / (time.process_time() - began)


def calibration() -> int:
    """A pure-Python loop: how fast this machine is just now."""
    x = 1
    for _ in range(100_000):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return 100_000


def kernel(policy: str, scenario: Scenario) -> Callable[[], int]:
    """Batches of a policy over a drawn workload; drawing it is not timed."""
    requests = draw_workload(scenario, 0)
    decide = baselines.make_policy(policy)
    return lambda: int(rollout(scenario, decide, requests, 0).workers["iteration"].sum())


def bound(scenario: Scenario) -> Callable[[], int]:
    """Requests that the upper bound on attainment is worked out for, 10,000 of them at a load of about 1.1."""
    longer = with_changes(scenario, {"workload.load": 1.1, "episode.arrivals_s": 4800.0})
    requests = draw_workload(longer, 0)[:10_000]

    def work() -> int:
        slo_bound(requests, longer)
        return len(requests)

    return work


def single(env_id: str, action: object, **kwargs: object) -> Callable[[], int]:
    """Steps of one environment made by gym.make without the passive checker."""
    env = gym.make(env_id, disable_env_checker=True, **kwargs)
    env.reset(seed=0)

    def work() -> int:
        for _ in range(500):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return 500

    return work


def vector(num_envs: int) -> Callable[[], int]:
    """Steps of the native vector environment, with observations, rewards, infos and resets."""
    envs = gym.make_vec("llm_env/Serving-v0", num_envs=num_envs, scenario="chat-bursty")
    envs.reset(seed=0)
    actions = np.tile(ACTION, (num_envs, 1))

    def work() -> int:
        for _ in range(16):
            envs.step(actions)
        return 16 * num_envs

    return work


def main() -> None:
    """Prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chat = with_changes(
        load_scenario("chat"), {"workload.load": 0.8, "episode.arrivals_s": 600.0, "episode.horizon_s": 5000.0}
    )
    works: dict[str, Callable[[], int]] = {"calibration loop, iterations": calibration}
    for name in baselines.POLICIES:
        works[f"kernel {name}, batches"] = kernel(name, chat)
    works |= {
        "upper bound, requests": bound(chat),
        "Serving-v0, gym.make, steps": single("llm_env/Serving-v0", ACTION, scenario="chat-bursty"),
        "CartPole-v1, gym.make, steps": single("CartPole-v1", 1),
    }
    for num_envs in (1, 64, 1024):
        works[f"Serving-v0, gym.make_vec, {num_envs}, steps"] = vector(num_envs)
    rates = {name: rate(work) for name, work in works.items()}
    base = rates["calibration loop, iterations"]
    table = Table("what", "per CPU-second", "ratio to calibration", title="one run, one process")
    for name, value in rates.items():
        table.add_row(name, f"{value:,.0f}", f"{value / base:.4f}")
    Console(width=100).print(table)
    if arguments.json:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
        arguments.json.write_text(json.dumps({"rates": rates, **machine, **provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
