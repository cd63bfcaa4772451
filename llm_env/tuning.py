"""The search for a policy's best parameters on a scenario: Optuna asks, this project's own loop evaluates and tells.

A setting is worth the mean attainment over loads and tuning seeds, on the same workloads for every setting of every
policy. Trials are asked for in batches of a fixed size and told in their order, so that the result does not depend on
the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

import baselines
from baselines.search import ROUTERS, SEARCH, STARTS, Choices, Integers, Space
from llm_env.config import RoutingSettings, Scenario, with_changes
from llm_env.errors import UserError
from llm_env.jit import short_lived
from llm_env.metrics import weighted_attainment
from llm_env.processes import worker_pool
from llm_env.provenance import git_commit, versions
from llm_env.rollout import rollout
from llm_env.tuned import FIRST_TUNING_SEED, LAST_TUNING_SEED, Tuned
from llm_env.workload import concrete, draw_workload

BATCH = 8  # trials that are asked for before the first of them is told
START_UP = 10  # settings drawn at random before a model of the others proposes them: Optuna's default
STEP, FLIP = 0.15, 0.4  # of a move near the best: largest standard deviation, in ranges; chance of a special value

Parameters = dict[str, Any]
Server = tuple[str, tuple[tuple[str, Any], ...]]  # a policy and its parameters


@dataclass(frozen=True)
class Problem:
    """What settings are tried on.

    Attributes:
        scenario: with all changes.
        change: those changes as texts, to be told.
        loads: of the scenario; none for its own.
        first_seed, seeds: of the workloads, tuning seeds all.
        server: if routing rules are tuned: the policy that serves, and its parameters; else None.
    """

    scenario: Scenario
    loads: tuple[float, ...]
    first_seed: int
    seeds: int
    change: tuple[str, ...] = ()
    server: Server | None = None

    def __post_init__(self) -> None:
        last = self.first_seed + self.seeds - 1
        if self.seeds < 1:
            raise UserError(f"seeds: expected at least 1, got {self.seeds}")
        if self.first_seed < FIRST_TUNING_SEED or last > LAST_TUNING_SEED:
            raise UserError(
                f"seeds: tuning uses those from {FIRST_TUNING_SEED} to {LAST_TUNING_SEED} alone, so that training and"
                f" reported results stay apart; got {self.first_seed} to {last}"
            )


class Evaluation:
    """Runs settings on a problem whose workloads are drawn once."""

    def __init__(self, problem: Problem) -> None:
        scenario = problem.scenario
        scenarios = [with_changes(scenario, {"workload.load": load}) for load in problem.loads] or [scenario]
        seeds = range(problem.first_seed, problem.first_seed + problem.seeds)
        self._server = problem.server
        self._cells = [(concrete(one, seed), seed, draw_workload(one, seed)) for one in scenarios for seed in seeds]
        if not any(
            ((one.episode.warmup_s <= q["arrival_s"]) & (q["arrival_s"] < one.episode.arrivals_s)).any()
            for one, _, q in self._cells
        ):
            raise UserError("no tuning seed has a measured request: a higher load or a longer episode has some")

    def attainment(self, name: str, parameters: Parameters) -> float:
        """Mean attainment, by SLO weight, over loads and seeds. Seeds without a measured request are left out.

        Args:
            name: of a policy; if routing rules are tuned, of a rule.
        """
        policy, given = (name, parameters) if self._server is None else (self._server[0], dict(self._server[1]))
        with short_lived():
            decide = baselines.make_policy(policy, **given)
        values = []
        for scenario, seed, requests in self._cells:
            if self._server is not None:
                scenario = with_changes(scenario, {"system.router": name, "system.routing": parameters})
            values.append(weighted_attainment(rollout(scenario, decide, requests, seed), scenario))
        return float(np.nanmean(values))


# ---- processes -----------------------------------------------------------------------------------------------------
_mine: Evaluation | None = None


def _begin(problem: Problem) -> None:
    global _mine
    _mine = Evaluation(problem)


def _evaluate_elsewhere(policy: str, parameters: Parameters) -> float:
    assert _mine is not None
    return _mine.attainment(policy, parameters)


Evaluate = Callable[[str, list[Parameters]], list[float]]


@contextmanager
def evaluator(problem: Problem, processes: int) -> Iterator[Evaluate]:
    """A function from a policy's settings to their attainments, by one process or several.

    Raises:
        UserError: a process died.
    """
    here = Evaluation(problem)
    if processes <= 1:
        yield lambda policy, settings: [here.attainment(policy, setting) for setting in settings]
        return
    with worker_pool(processes, _begin, (problem,)) as pool:
        warm = False

        def evaluate(policy: str, settings: list[Parameters]) -> list[float]:
            nonlocal warm
            first = [] if warm else [here.attainment(policy, s) for s in settings[:1]]  # compiles for the children
            warm = True
            jobs = [pool.submit(_evaluate_elsewhere, policy, s) for s in settings[len(first) :]]
            return first + [job.result() for job in jobs]

        yield evaluate


# ---- the search ----------------------------------------------------------------------------------------------------
def tune(
    problem: Problem,
    policy: str,
    trials: int,
    seed: int,
    evaluate: Evaluate,
    progress: Callable[[int, float], None] = lambda done, best: None,
) -> Tuned:
    """The best of `trials` settings of a policy (or routing rule, if the problem has a server), of which the first is
    the default. Without a search space: that one.

    Args:
        seed: of the choice of settings.
        evaluate: of `evaluator`.
        progress: is told how many settings have been evaluated, and the best attainment so far.

    Raises:
        UserError: no such policy or rule, or Optuna is not installed.
    """
    space, defaults = search_space(policy, problem.server is not None)
    trials = trials if space else 1
    values: dict[str, float] = {}  # attainment by setting: a setting that comes again is not run again
    default, best, best_value = None, {}, -1.0
    study = _study(seed, [_clipped(space, defaults | start) for start in ({}, *STARTS.get(policy, ()))])
    moves = np.random.default_rng(seed)
    for begin in range(0, trials, BATCH):
        asked = []
        for number in range(begin, min(begin + BATCH, trials)):
            if number >= START_UP and number % 3:
                study.enqueue_trial(_moved(study.best_trial.params, space, moves))
            asked.append(study.ask())
        settings = [_suggested(trial, space) for trial in asked]
        if begin == 0:
            settings[0] = {}  # the default as it is, also where it lies outside of the ranges
        new = {text: s for s in settings if (text := json.dumps(s, sort_keys=True)) not in values}
        values |= zip(new, evaluate(policy, list(new.values())), strict=True)
        for trial, setting in zip(asked, settings, strict=True):
            value = values[json.dumps(setting, sort_keys=True)]
            study.tell(trial, value)
            default = value if default is None else default
            if value > best_value:  # of equals the first: the default is not left for nothing
                best, best_value = setting, value
        progress(min(begin + BATCH, trials), best_value)
    assert default is not None
    return Tuned(
        attainment=round(best_value, 6),
        default_attainment=round(default, 6),
        loads=problem.loads,
        first_seed=problem.first_seed,
        seeds=problem.seeds,
        trials=trials,
        search_seed=seed,
        change=problem.change,
        policy=_spec(problem.server) if problem.server else "",
        key=search_key(problem, policy, trials, seed),
        code=code_version(),
        parameters=best,
    )


def search_space(name: str, router: bool = False) -> tuple[dict[str, Space], Parameters]:
    """What may be tuned of a policy or a routing rule, and all defaults.

    Raises:
        UserError: there is no such policy, or no such rule with weights.
    """
    if not router:
        return SEARCH.get(name, {}), {p.name: p.default for p in baselines.policy_info(name).parameters}
    if name not in ROUTERS:
        raise UserError(f"router: expected one with weights to tune: {', '.join(ROUTERS)}, got {name!r}")
    return ROUTERS[name], RoutingSettings().model_dump()


def _spec(server: Server) -> str:
    given = ",".join(f"{name}={str(value).lower()}" for name, value in server[1])
    return f"{server[0]}:{given}" if given else server[0]


def search_key(problem: Problem, policy: str, trials: int, seed: int) -> str:
    """A hash of all that decides what a search finds, but for the code: scenario, seeds, search space and trials."""
    space = search_space(policy, problem.server is not None)[0]
    what = {
        "scenario": problem.scenario.model_dump(mode="json", exclude_defaults=True),
        "workloads": [problem.loads, problem.first_seed, problem.seeds],
        "space": {name: [type(s).__name__, *s] for name, s in space.items()},
        "search": [policy, trials if space else 1, seed, BATCH, START_UP, STEP, FLIP],
        "starts": STARTS.get(policy, ()),
    }
    if problem.server is not None:
        what["server"] = problem.server
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def code_version() -> str:
    """Version and commit of what runs, with that of Optuna."""
    return " ".join(filter(None, (versions().get("llm-env"), git_commit(), f"optuna {_optuna().__version__}")))


def _optuna() -> Any:
    try:
        import optuna  # takes a second, and is not needed to run what was found
    except ImportError:
        raise UserError("tune: needs Optuna: pip install 'llm-env[tune]'") from None
    return optuna


def _study(seed: int, first: list[dict[str, Any]]) -> Any:
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of how `group` is spelt
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=START_UP, multivariate=True, group=True, constant_liar=True
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for setting in first:
        study.enqueue_trial(setting)
    return study


_DIGITS = 4  # of a number that is found: more are noise
_SPECIAL = "{}:special"  # a search variable: whether the parameter has its special value


def _suggested(trial: Any, space: dict[str, Space]) -> Parameters:
    setting: Parameters = {}
    for name, values in space.items():
        if isinstance(values, Choices):
            setting[name] = trial.suggest_categorical(name, list(values.values))
        elif values.special is not None and trial.suggest_categorical(_SPECIAL.format(name), [False, True]):
            setting[name] = values.special
        elif isinstance(values, Integers):
            setting[name] = trial.suggest_int(name, values.low, values.high, log=values.log)
        else:
            drawn = trial.suggest_float(name, values.low, values.high, log=values.log)
            setting[name] = float(f"{drawn:.{_DIGITS}g}")
    return setting


def _moved(best: dict[str, Any], space: dict[str, Space], rng: np.random.Generator) -> dict[str, Any]:
    """Search variables near the best ones: about two parameters moved, by some hundredths of their range."""
    names = list(space)
    chosen = {name for name in names if rng.random() < 2.0 / len(names)} or {names[rng.integers(len(names))]}
    step = STEP * rng.random()
    moved: dict[str, Any] = {}
    for name, values in space.items():
        flip, away, anywhere = rng.random() < FLIP, rng.normal(0.0, step), rng.random()
        if isinstance(values, Choices):
            moved[name] = values.values[int(anywhere * len(values.values))] if name in chosen else best[name]
            continue
        if values.special is not None:
            special = best[_SPECIAL.format(name)] ^ (name in chosen and flip)
            moved[_SPECIAL.format(name)] = special
            if special:
                continue
        if name in best and name not in chosen:
            moved[name] = best[name]
            continue
        low, high = (math.log(v) if values.log else v for v in (values.low, values.high))
        value = low + anywhere * (high - low)
        if name in best:
            value = (math.log(best[name]) if values.log else best[name]) + away * (high - low)
        value = min(max(math.exp(value) if values.log else value, values.low), values.high)
        moved[name] = round(value) if isinstance(values, Integers) else value
    return moved


def _clipped(space: dict[str, Space], setting: Parameters) -> dict[str, Any]:
    """A setting as search variables, moved into the ranges, so that the model can learn from it."""
    first: dict[str, Any] = {}
    for name, values in space.items():
        value = setting[name]
        if isinstance(values, Choices):
            first[name] = value
            continue
        if values.special is not None:
            first[_SPECIAL.format(name)] = value == values.special
            if value == values.special:
                continue
        first[name] = min(max(value, values.low), values.high)
    return first
