"""Look-ahead: tries changes of a base policy's decisions in imagined futures and takes the one that pays.

Rule: when somebody waits, every second decision, each change of `llm_env.trials.CHANGES` is held for 8 decisions in
copies of the system, after which the base decides up to a horizon of 5 s: in 3 futures all of them, in 9 more the base
and the best 3. A change is taken only if its mean cost less the base's, plus one standard error, is below -0.05 lost
requests; else the base decides. All meet the same futures. `clairvoyant` replaces these by the true one: a bound on
what such a planner could gain, and no policy.
Source: rollout algorithms: Bertsekas, "Dynamic Programming and Optimal Control" (4th ed., 2017), vol. 1, section 6.4;
sampled futures for hidden lengths and arrivals: hindsight optimisation, Chong, Givan and Chang, "A framework for
simulation-based network control via hindsight optimization" (CDC 2000).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from baselines.parameters import number, whole
from llm_env.addresses import addresses
from llm_env.build import enlarge, load, new_states, single
from llm_env.config import Scenario
from llm_env.dtypes import ACTIVE, INF, NEEDS_ROOM
from llm_env.errors import UserError
from llm_env.features import NUM_FEATURES, observe
from llm_env.futures import Futures, Imagined, Known, refuse, unfinished
from llm_env.records import State
from llm_env.trials import CHANGES, GO_ON, TRY, UNTIL_WAITING, Change, Terms, look_ahead
from llm_env.workload import concrete

_BASE = 0  # the place in the changes of the one that changes nothing
_AHEAD = 1 << 12  # iterations of noise that the true future has


@dataclass(frozen=True)
class Lookahead:
    """Settings of the planner.

    Attributes:
        changes: what is tried; the first changes nothing.
        horizon_s: how far trials go.
        hold: decisions for which a change is held in a trial.
        every: decisions from one plan to the next while somebody waits; the change that was chosen holds for them.
        futures: in which all changes are tried.
        more_futures: in which the base and the best are tried besides.
        finalists: how many best.
        threshold: lost requests that a change must save, beyond `errors` standard errors.
        errors: see `threshold`.
        work_weight: price of a second of unfinished work, in lost requests.
        budget_ms: stop trying after so long, per decision; then results depend on the machine. None: no clock.
        clairvoyant: one future, the true one. A bound, never a policy.
        labels: keep what each plan saw and found, in `Effort.labels`.
        seed: of the imagined futures.

    Raises:
        UserError: a value out of range.
    """

    changes: tuple[Change, ...] = CHANGES
    horizon_s: float = 5.0
    hold: int = 8
    every: int = 2
    futures: int = 3
    more_futures: int = 9
    finalists: int = 3
    threshold: float = 0.05
    errors: float = 1.0
    work_weight: float = 0.3
    budget_ms: float | None = None
    clairvoyant: bool = False
    labels: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.changes or self.changes[_BASE].kind != 0:
            raise UserError("changes: expected one that changes nothing first")
        number("horizon_s", self.horizon_s, 0.01, 600.0)
        for name in ("hold", "every", "futures", "finalists"):
            whole(name, getattr(self, name), 1, 1000)
        whole("more_futures", self.more_futures, 0, 1000)
        for name in ("threshold", "errors", "work_weight"):
            number(name, getattr(self, name), 0.0, 1000.0)
        if self.budget_ms is not None:
            number("budget_ms", self.budget_ms, 0.0, 1e6)
        whole("seed", self.seed, 0)

    @classmethod
    def bound(cls) -> Lookahead:
        """The clairvoyant form. It is sure of what it sees, so that it looks farther and changes its mind at once."""
        return cls(clairvoyant=True, horizon_s=10.0, every=1, threshold=0.02)

    @property
    def num_futures(self) -> int:
        """How many futures a plan may have."""
        return 1 if self.clairvoyant else self.futures + self.more_futures


class Label(NamedTuple):
    """What one plan saw and found, to learn from."""

    features: np.ndarray  # (NUM_FEATURES,) float32, `llm_env.features`
    differences: np.ndarray  # (num_changes,) float64: mean cost of each change less the base's, where all were tried
    chosen: int


@dataclass
class Effort:
    """What the planning of a run took, and its labels if they were asked for."""

    plans: int = 0
    changes: list[int] = field(default_factory=list)  # how often each was chosen
    simulated: int = 0  # decisions in trials
    seconds: float = 0.0
    longest_s: float = 0.0
    labels: list[Label] = field(default_factory=list)


class Planner:
    """Chooses changes for one run.

    Args:
        scenario: of the system.
        decide: the base, compiled (`llm_env.records.policy`).
        settings: how.

    Attributes:
        effort: what it took so far.
        costs: (num_futures, num_changes) of the last plan; old ones where nothing was tried.

    Raises:
        UserError: a scenario without futures (`llm_env.futures.refuse`).
    """

    def __init__(self, scenario: Scenario, decide: Any, settings: Lookahead) -> None:
        self._decide, self._settings = decide, settings
        self._futures = Futures(scenario, settings.num_futures)
        clairvoyant, seed = settings.clairvoyant, settings.seed
        self._source = Known(self._futures) if clairvoyant else Imagined(scenario, self._futures, seed)
        self._changes = np.array([(change.kind, change.value) for change in settings.changes], np.float64)
        classes = scenario.slo.classes
        self._mean_weight = sum(c.share * c.weight for c in classes) / sum(c.share for c in classes)
        self._mean_weight = self._mean_weight or 1.0  # if all weigh nothing, nothing is lost
        self.costs = np.zeros((settings.num_futures, len(settings.changes)))
        self.effort = Effort(changes=[0] * len(settings.changes))

    def choose(self, state: State) -> int:
        """The place of the change to make now. Args: state: at a decision, without a leading axis."""
        settings, began_s = self._settings, time.perf_counter()
        stop_s = None if settings.budget_ms is None else began_s + settings.budget_ms / 1e3
        end_s = float(state.system["now_s"][0]) + settings.horizon_s
        here = unfinished(state)
        self._futures.fill(state, here, self._source.draw(state, here, end_s))
        first = 1 if settings.clairvoyant else settings.futures
        everybody = np.arange(len(settings.changes))
        tried = self._try(0, first, everybody, end_s, stop_s)
        best, differences = _BASE, np.zeros((1, len(settings.changes)))
        if tried > 0:
            differences = self._differences(tried)
            order = np.argsort(differences.mean(axis=0), kind="stable")
            best_ones = order[order != _BASE][: settings.finalists]
            if tried == first and settings.num_futures > first:
                some = np.concatenate(([_BASE], best_ones))
                tried += self._try(first, settings.num_futures, some, end_s, stop_s)
            best = self._best(best_ones, tried)
        self._note(best, time.perf_counter() - began_s)
        if settings.labels and tried > 0:
            features = np.zeros(NUM_FEATURES, np.float32)
            observe(state, features)
            self.effort.labels.append(Label(features, differences.mean(axis=0), best))
        return best

    def go_on(self, table: Any, k: int, most: int, mode: int = GO_ON) -> int:
        """Takes up to `most` decisions with change k in the system itself; see `llm_env.trials.look_ahead`."""
        terms = Terms(0, 0.0, 1.0, 0.0)
        return look_ahead()(table, self._decide, mode, 0, most, self._changes, np.array([k]), terms, self.costs)

    def _try(self, first: int, last: int, which: np.ndarray, end_s: float, stop_s: float | None) -> int:
        """Tries changes in futures first <= m < last until the clock says `stop_s`; how many futures were finished."""
        run, table, settings = look_ahead(), self._futures.table, self._settings
        terms = Terms(settings.hold, end_s, self._mean_weight, settings.work_weight)
        if stop_s is None:
            steps = run(table, self._decide, TRY, first, last, self._changes, which, terms, self.costs)
            self.effort.simulated += steps
            return last - first
        for m in range(first, last):
            for k in which:
                if time.perf_counter() >= stop_s:
                    return m - first
                one = np.array([k])
                steps = run(table, self._decide, TRY, m, m + 1, self._changes, one, terms, self.costs)
                self.effort.simulated += steps
        return last - first

    def _differences(self, tried: int) -> np.ndarray:
        """(tried, num_changes): what each change costs more than the base, in the same future."""
        return self.costs[:tried] - self.costs[:tried, _BASE, None]

    def _best(self, finalists: np.ndarray, tried: int) -> int:
        """The finalist with the least mean of those that pass the threshold, else the base."""
        settings, best, least = self._settings, _BASE, 0.0
        unknown = 0.0 if settings.clairvoyant else INF  # the error of one future
        for k in finalists:
            values = self._differences(tried)[:, k]
            error = values.std(ddof=1) / np.sqrt(tried) if tried > 1 else unknown
            mean = values.mean()
            if mean + settings.errors * error < -settings.threshold and mean < least:
                best, least = int(k), mean
        return best

    def _note(self, chosen: int, seconds: float) -> None:
        effort = self.effort
        effort.plans += 1
        effort.changes[chosen] += 1
        effort.seconds += seconds
        effort.longest_s = max(effort.longest_s, seconds)


def run_lookahead(
    scenario: Scenario,
    decide: Any,
    requests: np.ndarray,
    seed: int,
    settings: Lookahead | None = None,
    record: bool = False,
) -> tuple[State, Effort]:
    """Runs a planner over a workload to its end, as `llm_env.rollout.rollout` runs a policy.

    Args:
        decide: the base, a compiled policy.
        requests: (n,) REQUEST, not changed.
        seed: of the service noise and of the scenario, where that varies (`llm_env.workload.concrete`); that of the
            imagined futures is `settings.seed`.
        settings: the default ones if None.
        record: also log batches and gaps.

    Returns:
        The final State of the one system, without a leading axis; what the planning took.

    Raises:
        UserError: a scenario without futures (`llm_env.futures.refuse`).
    """
    settings = settings or Lookahead()
    scenario = concrete(scenario, seed)
    refuse(scenario)
    planner = Planner(scenario, decide, settings)
    states = load(new_states(scenario, 1, max(1, len(requests)), record), 0, requests, seed)
    table, chosen, left = addresses(states), _BASE, 0
    while True:
        state = single(states)
        system, iteration = state.system[0], int(state.workers["iteration"][0])
        if system["phase"] == NEEDS_ROOM or 0 < state.noise.shape[1] < iteration + _AHEAD // 2:
            states = enlarge(states, np.array([seed]))
            table = addresses(states)
        elif system["phase"] != ACTIVE:
            return state, planner.effort
        elif left > 0:
            left -= planner.go_on(table, chosen, left)
        elif system["num_waiting"] > 0:
            chosen, left = planner.choose(state), settings.every
        else:
            planner.go_on(table, _BASE, _AHEAD // 4, UNTIL_WAITING)
