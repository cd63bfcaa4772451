"""Many seeded episodes side by side, of one scenario or of several: what Env, VectorEnv, training and evaluation share.

Holds the arrays, loads workloads and calls `step_all`. Knows nothing of Gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_env.actions import (
    ACTION_KINDS,
    BOX,
    DISCRETE,
    DISCRETE_TABLE,
    FLOAT_NAMES,
    MASK_LENGTH,
    MULTIDISCRETE,
    NVEC,
    is_allowed,
)
from llm_env.build import single
from llm_env.config import Scenario
from llm_env.dtypes import ACTIVE, DRAINED, HORIZON, SLO_RULES
from llm_env.errors import UserError
from llm_env.part import Form, Part, Workload, generator_of, stream_of
from llm_env.ranking import observed
from llm_env.records import State
from llm_env.reward import TERM_NAMES, reward_weights
from llm_env.rollout import Exchange, new_exchange, refuse_agent, step_all
from llm_env.slo import judged, met_share
from llm_env.workload import (
    capacity_requests_per_s,
    concrete,
    draw_load,
    draw_scenario,
    draw_workload,
    refuse_rate,
)

NUM_TRAINING_SEEDS = 1_000_000  # 0 ... 999,999; episodes that nobody seeds draw from these


def checked_load_range(load_range: tuple[float, float]) -> tuple[float, float]:
    """(low, high) if 0 < low <= high <= 10.

    Raises:
        UserError: it is no such pair.
    """
    try:
        low, high = (float(value) for value in load_range)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not 0 < low <= high <= 10:
        raise UserError(f"load_range: expected (low, high) with 0 < low <= high <= 10, got {load_range!r}")
    return low, high


def drawn_from(scenario: Scenario, load_range: tuple[float, float] | None = None) -> Workload:
    """Workloads of a scenario; with a load range each seed also draws its load, uniformly, in place of the scenario's.

    Raises:
        UserError: the range is not 0 < low <= high, or the scenario is a closed loop and has no load.
    """
    if load_range is None:
        return lambda seed: draw_workload(scenario, seed)
    low, high = checked_load_range(load_range)
    refuse_rate(scenario, "load_range")
    known = None if scenario.vary else capacity_requests_per_s(scenario)

    def workload(seed: int) -> np.ndarray:
        episode = concrete(scenario, seed)
        capacity = capacity_requests_per_s(episode) if known is None else known
        return draw_workload(episode, seed, capacity * draw_load(seed, low, high))

    return workload


class Step(NamedTuple):
    """What one call of `Systems.step` gives; arrays of the environments, new at each call."""

    observations: np.ndarray  # (num_envs, number of features) float32
    rewards: np.ndarray  # (num_envs,) float64
    terminated: np.ndarray  # (num_envs,) bool: drained
    truncated: np.ndarray  # (num_envs,) bool: the horizon came first
    infos: dict[str, np.ndarray]  # (num_envs,) each


class Systems:
    """`num_envs` systems of one scenario, or of several: then each episode draws its own, all equally likely.

    Args:
        scenarios: their settings; the seed of an episode draws its scenario (`llm_env.workload.draw_scenario`).
        num_envs: how many.
        action: one of ACTION_KINDS.
        workloads: seed -> requests, of each scenario; by default drawn from the scenarios.
        record: keep logs of batches and gaps.

    Attributes:
        scenario_index: (num_envs,) int64, the place in `scenarios` of each present episode's.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        num_envs: int,
        action: str = "multidiscrete",
        workloads: Sequence[Workload] | None = None,
        record: bool = False,
    ) -> None:
        if action not in ACTION_KINDS:
            raise UserError(f"action: expected one of {', '.join(ACTION_KINDS)}, got {action!r}")
        for scenario in scenarios:
            refuse_agent(scenario)
        self.kind = ACTION_KINDS.index(action)
        self._num_floats = len(FLOAT_NAMES.get(action, ()))
        form = Form(step_all, self.kind, len(observed(action)), reward_weights)
        self._make(scenarios, num_envs, form, workloads, record)

    def _make(
        self,
        scenarios: Sequence[Scenario],
        num_envs: int,
        form: Form,
        workloads: Sequence[Workload] | None,
        record: bool,
    ) -> None:
        """Makes the arrays. Args: form: of a step; the others are those of the class."""
        self.scenarios = tuple(scenarios)
        self.num_envs = num_envs
        self._num_features = form.num_features
        workloads = [drawn_from(scenario) for scenario in scenarios] if workloads is None else workloads
        rows = -(-num_envs // len(self.scenarios))  # as many as are at a scenario on average
        self._parts = [
            Part(scenario, workload, rows, form, record)
            for scenario, workload in zip(self.scenarios, workloads, strict=True)
        ]
        self.scenario_index = np.zeros(num_envs, np.int64)
        self._rows = np.arange(num_envs)  # of each system in the arrays of its scenario
        if len(self._parts) > 1:
            self._rows[:] = _NO_ROW
        self._varies = any(scenario.vary for scenario in self.scenarios)
        self._horizons_s = np.array([scenario.reward.discount_horizon_s for scenario in self.scenarios])
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        lone = len(self._parts) == 1  # then row e is that of system e
        self._exchange = self._parts[0].exchange if lone else new_exchange(num_envs, form.weights(scenarios[0].reward))

    # ---- starting episodes -----------------------------------------------------------------------------------------
    def reset(self, e: int, seed: int) -> None:
        """Starts a new episode in system e with the scenario, the workload and the noise of a seed."""
        k = draw_scenario(seed, len(self._parts))
        part = self._parts[k]
        if len(self._parts) > 1:
            if self._rows[e] != _NO_ROW:
                self._parts[self.scenario_index[e]].free.append(int(self._rows[e]))
            self._rows[e] = part.take_row()
        self.scenario_index[e] = k
        part.load(int(self._rows[e]), seed)

    def restart(self, e: int, seed: int | None) -> int:
        """Starts an episode as `ServingEnv.reset` does: with a seed, that workload, and a new stream of episodes.

        Without a seed the workload's seed is the next one of system e's stream, from 0 to NUM_TRAINING_SEEDS - 1.

        Returns:
            The seed of the workload.
        """
        rng = self._rngs[e]
        if seed is not None or rng is None:
            rng = self._rngs[e] = np.random.default_rng(seed)  # the generator that gymnasium.Env has
        episode_seed = int(rng.integers(NUM_TRAINING_SEEDS)) if seed is None else int(seed)
        self.reset(e, episode_seed)
        return episode_seed

    def observe(self, which: np.ndarray) -> np.ndarray:
        """Features of the systems in the mask `which`, (num_envs, number of features) float32, zero elsewhere."""
        observations = np.zeros((self.num_envs, self._num_features), np.float32)
        self._in_parts(which, Part.observe, observations)
        return observations

    def _in_parts(self, which: np.ndarray, act: Callable[..., object], *arrays: np.ndarray) -> None:
        """Calls act(part, mine, *arrays) for each scenario that systems of the mask `which` are at.

        A lone scenario gets the arrays themselves and a copy of the mask. One of several gets copies in the order of
        its rows, and what it writes into those of its systems is put back.

        Args:
            arrays: (num_envs, ...) each.
        """
        if len(self._parts) == 1:
            act(self._parts[0], which.copy(), *arrays)
            return
        for k, part in enumerate(self._parts):
            here = np.flatnonzero(which & (self.scenario_index == k) & (self._rows != _NO_ROW))
            if here.size == 0:
                continue
            rows, size = self._rows[here], len(part.seeds)
            mine = np.zeros(size, np.bool_)
            mine[rows] = True
            own = [np.zeros((size, *array.shape[1:]), array.dtype) for array in arrays]
            for array, copy in zip(arrays, own, strict=True):
                copy[rows] = array[here]
            act(part, mine, *own)
            for array, copy in zip(arrays, own, strict=True):
                array[here] = copy[rows]

    # ---- moving ----------------------------------------------------------------------------------------------------
    def set_actions(self, actions: np.ndarray) -> None:
        """Takes the actions of all systems: (num_envs, 4) levels, (num_envs,) indices or (num_envs, n) floats.

        Raises:
            ValueError: wrong shape, or a level outside its range (a float outside [-1, 1] is clipped, NaN refused).
        """
        actions = np.asarray(actions)
        shape = (self.num_envs,) if self.kind == DISCRETE else (self.num_envs, self._num_floats or 4)
        if actions.shape != shape:
            raise ValueError(f"action: expected shape {shape} with the systems first, got {actions.shape}")
        if self.kind < BOX and actions.dtype.kind not in "iu":
            raise ValueError(f"action: expected integers, got {actions!r}")
        integers, floats = self._exchange.integers, self._exchange.floats
        if self.kind >= BOX:
            floats[:, : self._num_floats] = actions
            if np.isnan(floats).any():
                raise ValueError(f"action: NaN in {actions!r}")
            return
        if self.kind == DISCRETE:
            integers[:, 0] = actions
            good = ((integers[:, 0] >= 0) & (integers[:, 0] < len(DISCRETE_TABLE))).all()
        else:
            integers[:] = actions
            good = ((integers >= 0) & (integers < _NVEC)).all()
        if not good:
            raise ValueError(f"action: expected {_ALLOWED[self.kind]}, got {actions!r}")

    def step(self, which: np.ndarray) -> Step:
        """One decision, with the actions set before, in every system of the mask `which`, (num_envs,) bool."""
        exchange, lone = self._exchange, len(self._parts) == 1
        observations = np.empty((self.num_envs, self._num_features), np.float32)
        if not (lone and which.all()):
            observations[:], exchange.results[:], exchange.counts[:] = 0.0, 0.0, 0
        if lone:
            exchange.todo[:] = which
            self._parts[0].step(observations)
        else:
            self._in_parts(which, _step_part, *exchange[:2], observations, exchange.results, exchange.counts)
        phase = exchange.counts[:, 0].copy()
        ended, up = which & (phase == DRAINED), which & (phase == HORIZON)
        return Step(observations, exchange.results[:, 0].copy(), ended, up, self._infos(exchange))

    def _infos(self, exchange: Exchange) -> dict[str, np.ndarray]:
        """What a step tells beside its reward, (num_envs,) each."""
        _, tokens, prefill, waiting, running = exchange.counts.T.copy()
        _, dt_s, *terms = exchange.results.T.copy()
        infos = {
            "dt_s": dt_s,
            "batch_tokens": tokens,
            "prefill_share": prefill / np.maximum(tokens, 1),
            "num_waiting": waiting,
            "num_running": running,
        }
        return infos | {f"reward_{name}": term for name, term in zip(TERM_NAMES, terms, strict=True)}

    def step_alone(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """`set_actions` and `step` of the only system, with as little around the compiled call as can be.

        Args:
            action: (4,) levels, () index or (n,) floats.

        Returns:
            (features,) float32, reward, terminated, truncated, and the infos as Python numbers.

        Raises:
            ValueError: as `set_actions`.
        """
        part = self._parts[self.scenario_index[0]]
        exchange = part.exchange
        action = np.asarray(action)
        if not is_allowed(action, self.kind):
            self.set_actions(action[None])  # which says what is wrong
        if self.kind == MULTIDISCRETE:
            exchange.integers[0] = action
        elif self.kind == DISCRETE:
            exchange.integers[0, 0] = action
        else:
            exchange.floats[0, : self._num_floats] = action
        exchange.todo[0] = True
        observation = np.zeros((1, self._num_features), np.float32)
        part.step(observation)
        reward, dt_s, first_token, completion, token, queue = exchange.results.tolist()[0]
        phase, tokens, prefill, waiting, running = exchange.counts.tolist()[0]
        info = {  # as in `step`; written out, since this is a fifth of the time of a step
            "dt_s": dt_s,
            "batch_tokens": tokens,
            "prefill_share": prefill / (tokens or 1),
            "num_waiting": waiting,
            "num_running": running,
            "reward_first_token": first_token,
            "reward_completion": completion,
            "reward_token": token,
            "reward_queue": queue,
        }
        return observation[0], reward, phase == DRAINED, phase == HORIZON, info

    def masks(self) -> np.ndarray:
        """Which actions make a difference now (`llm_env.actions.mask_actions`), bool.

        Returns:
            (num_envs, MASK_LENGTH) of the MultiDiscrete levels; (num_envs, 18) of the Discrete combinations, allowed
            where all their levels are; (num_envs, n) of True for n floats.
        """
        if self.kind >= BOX:
            return np.ones((self.num_envs, self._num_floats), np.bool_)
        masks = np.ones((self.num_envs, MASK_LENGTH), np.bool_)
        everywhere = np.ones(self.num_envs, np.bool_)
        self._in_parts(everywhere, Part.mask, masks)
        if self.kind == DISCRETE:
            return np.all(masks[:, _DISCRETE_LEVELS], axis=2)
        return masks

    # ---- saving ----------------------------------------------------------------------------------------------------
    def saved(self) -> dict[str, Any]:
        """All that the steps and episodes to come depend on: views on arrays, and of each system's stream of episodes
        the generator's state as JSON (None before its first).
        """
        streams = [None if rng is None else stream_of(rng) for rng in self._rngs]
        values = {"scenario_index": self.scenario_index, "rows": self._rows, "streams": streams}
        parts = (part.saved() for part in self._parts)
        return values | {f"part{k}.{name}": array for k, part in enumerate(parts) for name, array in part.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes over what systems of the same scenarios had saved: they go on as those would have, bit for bit.

        Raises:
            UserError: something is missing or does not fit; names it. The systems are of no use then.
        """
        for k, part in enumerate(self._parts):
            prefix = f"part{k}."
            mine = {name.removeprefix(prefix): saved[name] for name in saved if name.startswith(prefix)}
            try:
                part.restore(mine)
            except UserError as error:
                raise UserError(f"{prefix}{error}") from None
        for name in ("scenario_index", "rows"):
            array = saved.get(name)
            if not (isinstance(array, np.ndarray) and array.dtype == np.int64 and array.shape == (self.num_envs,)):
                raise UserError(f"{name}: expected {self.num_envs} whole numbers")
        index, rows, streams = saved["scenario_index"], saved["rows"], saved.get("streams")
        lone = len(self._parts) == 1
        for k, part in enumerate(self._parts):
            taken = rows[(index == k) & (rows != _NO_ROW)].tolist() + ([] if lone else part.free)
            if sorted(taken) != list(range(len(part.seeds))) or (lone and taken != sorted(taken)):
                raise UserError(f"rows: those of part{k} and its free ones are not all that there are")
        if not ((index >= 0) & (index < len(self._parts))).all():
            raise UserError(f"scenario_index: expected 0 to {len(self._parts) - 1}")
        if not isinstance(streams, list) or len(streams) != self.num_envs:
            raise UserError(f"streams: expected {self.num_envs} of them")
        self._rngs = [None if stream is None else generator_of(stream) for stream in streams]
        self.scenario_index, self._rows = index.copy(), rows.copy()
        if lone:
            self._exchange = self._parts[0].exchange

    # ---- looking ---------------------------------------------------------------------------------------------------
    def state(self, e: int) -> State:
        """System e as views on its arrays."""
        return single(self._parts[self.scenario_index[e]].states, self._rows[e])

    def action(self, e: int) -> tuple[np.ndarray, np.ndarray]:
        """What system e was last told to do, as `llm_env.actions.to_decision` takes it: integers and floats."""
        return self._exchange.integers[e], self._exchange.floats[e]

    def scenario(self, e: int) -> Scenario:
        """That of the present episode of system e; what of it varies is drawn."""
        return self._parts[self.scenario_index[e]].scenarios[self._rows[e]]

    def discount_horizons_s(self) -> np.ndarray:
        """(num_envs,) reward.discount_horizon_s of the present episodes' scenarios."""
        if not self._varies:
            return self._horizons_s[self.scenario_index]
        return np.array([self.scenario(e).reward.discount_horizon_s for e in range(self.num_envs)])

    def active(self) -> np.ndarray:
        """(num_envs,) bool: which systems have a decision due."""
        active = np.zeros(self.num_envs, np.bool_)
        self._in_parts(np.ones(self.num_envs, np.bool_), _note_active, active)
        return active

    def outcome(self, e: int) -> dict[str, float]:
        """Scalars of the episode in system e, over the requests of its measured window (see `OUTCOME_KEYS`)."""
        state, scenario = self.state(e), self.scenario(e)
        requests = state.requests[: state.system["num_requests"][0]]
        arrivals = requests["arrival_s"]
        requests = requests[(arrivals >= scenario.episode.warmup_s) & (arrivals < scenario.episode.arrivals_s)]
        return {SCENARIO_INDEX: float(self.scenario_index[e]), **episode_outcome(requests, scenario)}


def _step_part(part: Part, mine, integers, floats, observations, results, counts) -> None:
    """Steps the systems of a scenario that the mask `mine` names; the arrays have one row a system of it."""
    exchange = part.exchange
    exchange.integers[:], exchange.floats[:], exchange.todo[:] = integers, floats, mine
    part.step(observations)
    results[:], counts[:] = exchange.results, exchange.counts


def _note_active(part: Part, mine: np.ndarray, active: np.ndarray) -> None:
    active[:] = mine & (part.states.system["phase"][:, 0] == ACTIVE)


_NO_ROW = -1  # of a system that has had no episode
_NVEC = np.array(NVEC)
_ALLOWED = {MULTIDISCRETE: f"levels below {NVEC}", DISCRETE: f"0 to {len(DISCRETE_TABLE) - 1}"}
_DISCRETE_LEVELS = np.array(DISCRETE_TABLE) + np.concatenate([[0], np.cumsum(NVEC)[:-1]])  # places in the masks
EPISODE_KEYS = (
    *("num_requests", "slo_attainment", "weighted_attainment", "ttft_attainment"),
    *("goodput_per_s", "ttft_p50_s", "ttft_p99_s"),
)
SCENARIO_INDEX = "scenario_index"  # which scenario an episode had
OUTCOME_KEYS = (SCENARIO_INDEX, *EPISODE_KEYS)  # of `Systems.outcome`


def episode_outcome(requests: np.ndarray, scenario: Scenario) -> dict[str, float]:
    """Scalars of an episode for `info`: shares of all requests given, percentiles of those with a first token.

    Args:
        requests: (n,) REQUEST, the measured ones. With none, only num_requests is returned: NaN has no place in info.
    """
    n = len(requests)
    if n == 0:
        return {"num_requests": 0.0}
    started = requests["emitted_tokens"] > 0
    ttft_s = requests["first_token_s"] - requests["arrival_s"]
    verdicts = judged(requests)
    on_time, good = verdicts[:, 0], verdicts[:, 1 + SLO_RULES.index(scenario.slo.rule)]
    window_s = scenario.episode.arrivals_s - scenario.episode.warmup_s
    outcome = {
        "num_requests": float(n),
        "slo_attainment": float(good.mean()),
        "weighted_attainment": met_share(good, requests["weight"]),
        "ttft_attainment": float(on_time.mean()),
        "goodput_per_s": float(good.sum() / window_s),
    }
    if started.any():
        p50, p99 = np.quantile(ttft_s[started], (0.5, 0.99))
        outcome |= {"ttft_p50_s": float(p50), "ttft_p99_s": float(p99)}
    return outcome
