"""What look-ahead saw and found at each plan, as arrays to learn from: imitation, or regression of advantages.

    python benchmarks/lookahead_labels.py --scenario classes-two --base adaptive --seeds 4 --out labels.npz

Labels of one imagined future are mostly noise: averages over four taught a small network, one did not.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

import baselines
from baselines.lookahead import Label, Lookahead, run_lookahead
from llm_env.command import exit_code
from llm_env.scenarios import load_scenario
from llm_env.study import baseline_contender
from llm_env.trials import CHANGES
from llm_env.workload import capacity_requests_per_s, draw_load, draw_workload


@dataclass(frozen=True)
class Arguments:
    """Labels of a look-ahead planner."""

    scenario: str = "chat-bursty"
    """A shipped scenario's name or a TOML file."""

    base: str = "adaptive"
    """The base policy with its parameters, as evaluate.py takes them."""

    load_range: tuple[float, float] = (0.5, 1.1)
    """Each seed draws its load from this range."""

    seeds: int = 4
    """How many workload seeds."""

    first_seed: int = 0
    """The first of them: below 1,000,000 for training."""

    futures: int = 6
    """Imagined futures in which all changes are tried."""

    out: Path = Path("labels.npz")
    """The file to write: features, differences, chosen, seed and the names of the changes."""


def main(arguments: Arguments) -> int:
    contender = baseline_contender(arguments.base)
    decide = baselines.make_policy(contender.policy, **dict(contender.parameters))
    scenario = load_scenario(arguments.scenario)
    capacity = capacity_requests_per_s(scenario)
    labels: list[Label] = []
    seeds: list[int] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        requests = draw_workload(scenario, seed, capacity * draw_load(seed, *arguments.load_range))
        settings = Lookahead(futures=arguments.futures, more_futures=0, labels=True, seed=seed)
        _, effort = run_lookahead(scenario, decide, requests, seed, settings)
        labels += effort.labels
        seeds += [seed] * len(effort.labels)
        print(f"seed {seed}: {len(effort.labels)} plans, {1e3 * effort.seconds / max(1, effort.plans):.1f} ms each")
    np.savez_compressed(
        arguments.out,
        features=np.array([label.features for label in labels]),
        differences=np.array([label.differences for label in labels]),
        chosen=np.array([label.chosen for label in labels]),
        seed=np.array(seeds),
        changes=np.array([change.name for change in CHANGES]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(tyro.cli(Arguments, description=__doc__))))
