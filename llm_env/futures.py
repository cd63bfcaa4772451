"""Futures of a running system: copies of its present with what is hidden filled in, imagined or true.

`Imagined` draws what a policy may not see from what it may: outputs that are longer than what has been generated, new
requests at the recent rates, new service noise. `Known` looks it up, for bounds. Both fill the rows of a `Futures`,
which `llm_env.trials` runs. One worker with one queue.
"""

from __future__ import annotations

from math import exp
from typing import Any, NamedTuple

import numpy as np

from llm_env.addresses import addresses
from llm_env.build import new_states
from llm_env.config import Scenario, WorkloadSettings
from llm_env.dtypes import CLIENT, INF, NOBODY, RUNNING, SWAPPED, WAITING
from llm_env.errors import UserError
from llm_env.queue import RATE_FAST_S, RATE_SLOW_S
from llm_env.records import BY_DEADLINE, BY_LATEST_START, BY_PROMPT, State
from llm_env.service import prefill_times
from llm_env.workload import Streams, assign_classes, blank_requests, draw_noise, is_closed
from llm_env.workload.generate import declare_outputs, predict_outputs
from llm_env.workload.lengths import (
    draw_request_lengths,
    largest_output,
    length_cdf,
    length_quantiles,
    normal_correlation,
)
from llm_env.workload.seeds import LOOKAHEAD, stream_bits

RELAXATION_S = 5.0  # in which the arrival rate is thought to return from its 3 s average to its 20 s average
_GRID = np.linspace(0.0, 1.0, 65)  # shares of the horizon at which expected arrivals are counted
_BEHIND = np.int64(1 << 60)  # tokens: ranks what is no request behind all that are


class Drawn(NamedTuple):
    """What is hidden, in M futures of a system in which H requests are unfinished."""

    output_tokens: np.ndarray  # (M, H) int64
    arrivals: np.ndarray  # (M, A) REQUEST in order of arrival; beyond `counts` blank ones at infinity
    counts: np.ndarray  # (M,) int64
    iterations: np.ndarray  # (M,) int64: where in the noise of their rows they begin


def refuse(scenario: Scenario) -> None:
    """Says why there are no futures of a scenario's systems.

    Raises:
        UserError: more than one worker, a closed loop, sessions or clients.
    """
    workload = scenario.workload
    problems = (
        (scenario.system.workers != 1, f"system.workers: expected 1, got {scenario.system.workers}"),
        (is_closed(scenario), "workload.arrivals: expected an open loop, got closed-loop"),
        (workload.sessions is not None, "workload.sessions: expected none"),
        (workload.clients is not None, "workload.clients: expected none"),
    )
    for wrong, problem in problems:
        if wrong:
            raise UserError(f"look-ahead: {problem}")


# ---- the rows ------------------------------------------------------------------------------------------------------
class Futures:
    """Room for the present of a system and `num_futures` futures of it; see the head of `llm_env.trials`.

    Args:
        scenario: of the system.
        num_futures: how many.

    Attributes:
        states: a vectorised State; row 0 is where trials are run, row 1 + m holds future m.
        table: its addresses.

    Raises:
        UserError: as `refuse`.
    """

    def __init__(self, scenario: Scenario, num_futures: int) -> None:
        refuse(scenario)
        self._scenario, self._rows = scenario, 1 + num_futures
        self._make(256)

    def _make(self, capacity: int) -> None:
        noise = self.states.noise if hasattr(self, "states") else None
        self.states: State = new_states(self._scenario, self._rows, capacity)
        if noise is not None:
            self.states.noise[:] = noise
        self.table: Any = addresses(self.states)

    def fill(self, state: State, here: np.ndarray, drawn: Drawn) -> None:
        """Writes the present and what was drawn into the rows; `trials` lines up who waits.

        Args:
            state: the system, at a decision, without a leading axis.
            here: (H,) its unfinished requests, from `unfinished`.
            drawn: what is hidden.
        """
        num_futures, num_here = drawn.output_tokens.shape
        n = num_here + drawn.arrivals.shape[1]
        if n > self.states.requests.shape[1]:
            self._make(2 * n)
        rows = slice(1, 1 + num_futures)
        places = np.full(int(state.system["next_arrival"][0]) + 1, NOBODY)
        places[here] = np.arange(num_here)  # and places[NOBODY] is NOBODY
        requests = self.states.requests[rows, :n]
        requests[:, :num_here] = state.requests[here]
        requests[:, num_here:] = drawn.arrivals
        requests["output_tokens"][:, :num_here] = drawn.output_tokens
        requests["next"][:, :num_here] = places[state.requests["next"][here]]
        self._fill_system(state, rows, places, num_here + drawn.counts, num_here)
        self.states.workers["iteration"][rows, 0] = drawn.iterations
        self._rank(rows, n, num_here + drawn.counts)

    def _fill_system(self, state: State, rows: slice, places: np.ndarray, num_requests: np.ndarray, here: int) -> None:
        states, running = self.states, int(state.workers["num_running"][0])
        states.system[rows] = state.system
        for name, value in (
            ("num_requests", num_requests),
            ("num_ranked", num_requests),
            ("next_arrival", here),
            ("prefill_gap", 0.0),  # that of the real one knows the future
            ("horizon_s", INF),
            ("record", 0),
        ):
            states.system[name][rows, 0] = value
        states.workers[rows] = state.workers
        states.workers["summed"][rows] = 0
        states.workers["swapped"][rows] = places[state.workers["swapped"]]
        states.running[rows, 0, :running] = places[state.running[0, :running]]
        states.queues[rows] = state.queues
        states.queues["front"][rows] = places[state.queues["front"]]
        states.clients[rows, 0] = np.zeros(1, CLIENT)

    def _rank(self, rows: slice, n: int, num_requests: np.ndarray) -> None:
        """Ranks the requests of each row, as `llm_env.build` does those of a workload."""
        requests = self.states.requests[rows, :n]
        beyond = np.arange(n) >= num_requests[:, None]
        prompt = np.where(beyond, _BEHIND, requests["prompt_tokens"])
        due_s = requests["arrival_s"] + requests["ttft_target_s"]
        keys = ((BY_PROMPT, prompt), (BY_DEADLINE, due_s), (BY_LATEST_START, requests["latest_start_s"]))
        for which, key in keys:
            order = np.argsort(key, axis=1, kind="stable")
            self.states.order[rows, which - 1, :n] = order
            rank = np.empty_like(order)
            np.put_along_axis(rank, order, np.broadcast_to(np.arange(n), order.shape), axis=1)
            self.states.rank[rows, which - 1, :n] = rank


def unfinished(state: State) -> np.ndarray:
    """(H,) int64: the requests of a system that are here and not finished, in order of arrival."""
    status = state.requests["status"][: int(state.system["next_arrival"][0])]
    return np.flatnonzero((status == WAITING) | (status == RUNNING) | (status == SWAPPED))


# ---- imagined futures ----------------------------------------------------------------------------------------------
class Imagined:
    """Draws futures from what a policy may know: the present, the laws of lengths and classes, the recent rates.

    Args:
        scenario: whose laws of lengths, classes and noise are taken as known; its arrivals are not.
        futures: their rows, which get service noise of their own.
        seed: of the draws; equal seeds imagine the same at equal presents.
    """

    def __init__(self, scenario: Scenario, futures: Futures, seed: int) -> None:
        self._scenario, self._seed, self._num_futures = scenario, seed, futures.states.noise.shape[0] - 1
        rng = np.random.Generator(stream_bits(seed, LOOKAHEAD))
        noise, system = futures.states.noise, futures.states.system[0, 0]
        self._num_noise = noise.shape[2]
        if self._num_noise:
            setup = int(system["setup_noise"]), float(system["setup_noise_cv"])
            per_token = int(system["per_token_noise"]), float(system["per_token_noise_cv"])
            noise[:] = draw_noise(int(rng.integers(1 << 62)), 0, 0, self._num_noise, setup, per_token)

    def draw(self, state: State, here: np.ndarray, end_s: float) -> Drawn:
        """Futures up to `end_s` of a system at a decision. Args: here: of `unfinished`."""
        system = state.system[0]
        rng = np.random.Generator(stream_bits(self._seed, LOOKAHEAD, int(system["epoch"])))
        workload, num_futures = self._scenario.workload, self._num_futures
        outputs = draw_outputs(workload, state.requests[here], num_futures, rng)
        times_s, counts = draw_arrivals_from_rates(system, end_s, num_futures, rng)
        arrivals = np.repeat(blank_requests(1), times_s.size).reshape(times_s.shape)
        arrivals["arrival_s"] = INF
        come = np.arange(times_s.shape[1]) < counts[:, None]
        new = np.repeat(blank_requests(1), int(counts.sum()))
        new["arrival_s"] = times_s[come]
        streams = Streams(*(rng for _ in Streams._fields))
        new["prompt_tokens"], new["output_tokens"] = draw_request_lengths(workload, new.size, streams)
        assign_classes(new, self._scenario.slo, rng)
        declare_outputs(new, workload, largest_output(workload))
        predict_outputs(new, workload.prediction_sigma, rng)
        new["prefill_tokens"] = new["prompt_tokens"]
        new["prefill_s"] = prefill_times(state.system, new["prompt_tokens"].copy(), np.zeros(new.size))
        new["latest_start_s"] = new["arrival_s"] + new["ttft_target_s"] - new["prefill_s"]
        arrivals["latest_start_s"] = INF
        arrivals[come] = new
        iterations = rng.integers(max(1, self._num_noise), size=num_futures)
        return Drawn(outputs, arrivals, counts, iterations)


def draw_outputs(workload: WorkloadSettings, requests: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Output lengths of unfinished requests, given that they are longer than what was generated and not longer than
    what was declared: by inversion, exact for every law.

    With a correlation also given the prompt, whose quantile is uniform among those with that many tokens; of measured
    pairs only the outputs are used. True outputs are not read.

    Args:
        workload: whose law of outputs holds.
        requests: (n,) REQUEST.
        m: draws of each.

    Returns:
        (m, n) int64.
    """
    emitted, most = requests["emitted_tokens"], requests["declared_tokens"]
    u = 1.0 - rng.random((m, requests.size))  # in (0, 1]
    if workload.pairs is not None:
        known = np.sort(np.array(workload.pairs.output_tokens))
        low, high = np.searchsorted(known, emitted, "right"), np.searchsorted(known, most, "right")
        drawn = known[np.clip(low + np.ceil(u * (high - low)).astype(np.int64) - 1, 0, known.size - 1)]
        return np.clip(drawn, emitted + 1, np.maximum(most, emitted + 1))
    below = length_cdf(workload.output)
    low, high = below(emitted.astype(np.float64)), below(most.astype(np.float64))
    if workload.correlation != 0.0:
        u = _given_prompts(workload, requests["prompt_tokens"], low, high, u, rng)
    else:
        u = low + (high - low) * u
    drawn = length_quantiles(workload.output, u.ravel()).reshape(u.shape)
    return np.clip(drawn, emitted + 1, np.maximum(most, emitted + 1))


def _given_prompts(
    workload: WorkloadSettings, prompt: np.ndarray, low: np.ndarray, high: np.ndarray, u: np.ndarray, rng: Any
) -> np.ndarray:
    """Quantiles between `low` and `high`, (m, n), of outputs given prompts; `draw_request_lengths` has the copula."""
    from scipy.special import ndtr, ndtri  # here, because scipy takes long to import

    below = length_cdf(workload.prompt)
    least, most = below(prompt - 1.0), below(prompt.astype(np.float64))
    z = ndtri(np.clip(least + (most - least) * rng.random(u.shape), 1e-12, 1.0 - 1e-12))
    rho = normal_correlation(workload.correlation)
    rest = np.sqrt(1.0 - rho**2)
    first, last = ndtr((ndtri(low) - rho * z) / rest), ndtr((ndtri(high) - rho * z) / rest)
    return ndtr(rho * z + rest * ndtri(first + (last - first) * u))


def draw_arrivals_from_rates(
    system: Any, end_s: float, m: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Poisson arrivals from now to `end_s`, at a rate that goes from the 3 s average of arrivals to that over 20 s.

    It is slow + (fast - slow) exp(-t / RELAXATION_S) after t seconds.

    Args:
        system: a SYSTEM record.
        m: draws.

    Returns:
        (m, most) float64 times in order, infinite beyond the counts; (m,) int64 counts.
    """
    now_s, passed_s = float(system["now_s"]), float(system["now_s"] - system["rate_s"])
    fast = float(system["rate_fast"]) * exp(-passed_s / RATE_FAST_S)
    slow = float(system["rate_slow"]) * exp(-passed_s / RATE_SLOW_S)
    t = _GRID * (end_s - now_s)
    expected = slow * t + (fast - slow) * RELAXATION_S * (1.0 - np.exp(-t / RELAXATION_S))
    counts = rng.poisson(expected[-1], m)
    most = int(counts.max())
    places = rng.random((m, most))
    places[np.arange(most) >= counts[:, None]] = INF
    places.sort(axis=1)
    times_s = now_s + np.interp(places * expected[-1], expected, t, right=INF)
    return times_s, counts


# ---- the true future -----------------------------------------------------------------------------------------------
class Known:
    """Looks the one true future up, for bounds; no policy could.

    Args:
        futures: the row that it fills.
    """

    def __init__(self, futures: Futures) -> None:
        self._noise = futures.states.noise

    def draw(self, state: State, here: np.ndarray, end_s: float) -> Drawn:
        """The future up to `end_s`. Args: here: of `unfinished`."""
        first, last = int(state.system["next_arrival"][0]), int(state.system["num_requests"][0])
        last = first + int(np.searchsorted(state.requests["arrival_s"][first:last], end_s, side="right"))
        begun = int(state.workers["iteration"][0])
        known = state.noise[:, begun : begun + self._noise.shape[2]]
        self._noise[1, :, : known.shape[1]] = known
        return Drawn(
            state.requests["output_tokens"][here][None],
            state.requests[first:last][None],
            np.array([last - first]),
            np.zeros(1, np.int64),
        )
