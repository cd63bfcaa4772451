"""Learning to route: labels, regression, validation, and the folder that is left behind.

Rounds of: gather labels while the present router drives, fit the network to all labels so far, and keep the router that
is best on validation seeds. That is dataset aggregation (Ross, Gordon and Bagnell, "A reduction of imitation learning
and structured prediction to no-regret online learning", AISTATS 2011) with advantages in place of an expert's actions.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.files import save
from agents.routing_fit import FitSettings, fit_advantages
from agents.routing_labels import Labels, LabelSettings, gather_labels, together
from agents.routing_network import NumpyRouter
from agents.routing_run import Routes, ScoreRule, run_routes
from llm_env.command import check_stopped
from llm_env.config import Scenario, scenario_to_toml, with_changes
from llm_env.errors import UserError
from llm_env.files import staged_folder
from llm_env.metrics import paired_ci
from llm_env.provenance import git_commit, versions
from llm_env.routing_systems import Base

FIRST_VALIDATION_SEED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RoutingArguments:
    """Learns to route: which worker gets each arrival."""

    rounds: int = 3
    """Times that labels are gathered and the network is fitted."""

    labels: int = 20_000
    """Arrivals labelled in each round."""

    loads: tuple[float, ...] = (0.5, 0.7, 0.9)
    """Loads of the validation."""

    validation_seeds: int = 16
    """Workloads of each load."""

    margins: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15)
    """Missed requests by which another worker must look better than the rule's choice; validation chooses one."""

    gather: LabelSettings = field(default_factory=LabelSettings)
    fit: FitSettings = field(default_factory=FitSettings)


def train_router(
    scenario: Scenario,
    out: str | Path,
    seed: int = 0,
    base: Base | None = None,
    arguments: RoutingArguments | None = None,
) -> NumpyRouter:
    """Trains a router on a scenario and leaves it in a folder that `agents.load` reads.

    Writes agent/ (the router that was best in validation), settings.json, scenario.toml and history.json. The same
    arguments give the same weights.

    Args:
        scenario: what it learns on; its `[system.routing]` is the rule that it starts from.
        out: the folder, which must be new or a former run's.
        seed: of weights, labelled arrivals and training episodes.
        base: parameters of the adaptive rule that forms the batches.
        arguments: of learning.

    Raises:
        UserError: the scenario has one worker, or an argument is out of range.
        InputOutputError: the folder cannot be written.
    """
    arguments = arguments or RoutingArguments()
    if (scenario.system.prefill_workers or scenario.system.workers) < 2:
        raise UserError("scenario: there is nothing to route with one worker")
    if arguments.rounds < 1 or arguments.labels < 100:
        raise UserError(f"rounds, labels: expected at least 1 and 100, got {arguments.rounds}, {arguments.labels}")
    torch.set_num_threads(1)
    with staged_folder(out) as folder:
        router, history = _learn(scenario, seed, dict(base or {}), arguments)
        save(router, folder / "agent")
        (folder / "scenario.toml").write_text(scenario_to_toml(scenario), encoding="utf-8")
        settings = {"seed": seed, "base": router.base, **dataclasses.asdict(arguments)}
        settings |= {"git_commit": git_commit(), "versions": versions()}
        (folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (folder / "history.json").write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    return router


def _learn(
    scenario: Scenario, seed: int, base: dict[str, float], arguments: RoutingArguments
) -> tuple[NumpyRouter, list[dict[str, Any]]]:
    """The best router of all rounds, and what each round gave."""
    began = time.perf_counter()
    rule = validate(ScoreRule(), scenario, base, arguments)
    driver: Routes = ScoreRule()
    gathered: list[Labels] = []
    history: list[dict[str, Any]] = []
    best, best_value = None, -np.inf
    for k in range(arguments.rounds):
        check_stopped()
        gathered.append(gather_labels(scenario, driver, arguments.labels, 1000 * seed + k, base, arguments.gather))
        fit = fit_advantages(together(gathered), arguments.fit, 1000 * seed + k)
        for margin in arguments.margins:
            router = _router(scenario, fit.layers, margin, base)
            value = validate(router, scenario, base, arguments)
            history.append(_note(k, margin, fit.explained, value, rule, time.perf_counter() - began))
            sys.stderr.write(_line(history[-1]) + "\n")
            if value.mean() > best_value:
                best, best_value = router, value.mean()
                driver = router
    assert best is not None
    about = {"scenario": scenario.name, "seed": seed, "labels": arguments.rounds * arguments.labels}
    about |= {"validation": round(float(best_value), 5), "validation_rule": round(float(rule.mean()), 5)}
    return dataclasses.replace(best, about=about), history


def _router(scenario: Scenario, layers: Any, margin: float, base: dict[str, float]) -> NumpyRouter:
    return NumpyRouter(
        activation="tanh",
        layers=layers,
        rule_weight=0.0,
        choice_weight=margin,
        routing=scenario.system.routing.model_dump(),
        base=base,
    )


def _note(
    k: int, margin: float, explained: float, value: np.ndarray, rule: np.ndarray, seconds: float
) -> dict[str, Any]:
    gain = paired_ci(value.mean(axis=0), rule.mean(axis=0))
    return {
        "round": k + 1,
        "margin": margin,
        "explained": round(explained, 4),
        "attainment": round(float(value.mean()), 5),
        "rule": round(float(rule.mean()), 5),
        "gain": round(gain.mean, 5),
        "gain_half_width": round(gain.half_width, 5),
        "seconds": round(seconds, 1),
    }


def _line(note: dict[str, Any]) -> str:
    return (
        f"round {note['round']}  {note['seconds']:>6.0f} s  explained {note['explained']:.3f}  margin "
        f"{note['margin']:g}"
        f"  validation attainment {note['attainment']:.4f}  over the rule {note['gain']:+.4f} +- "
        f"{note['gain_half_width']:.4f}"
    )


def validate(router: Routes, scenario: Scenario, base: Base, arguments: RoutingArguments) -> np.ndarray:
    """(loads, seeds) SLO attainment on the validation workloads."""
    seeds: Sequence[int] = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + arguments.validation_seeds)
    rows = []
    for load in arguments.loads:
        systems = run_routes(router, with_changes(scenario, {"workload.load": load}), seeds, base, record=False)
        rows.append([systems.outcome(e).get("slo_attainment", np.nan) for e in range(len(seeds))])
    return np.array(rows)
