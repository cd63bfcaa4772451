"""Makes States: from a scenario's settings, in milliseconds, and a workload to the arrays the kernel runs on.

The one place where settings become seconds. Knows the floors below; runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2, log10
from typing import Any

import numpy as np

from llm_env.closed_loop import is_script, start_users
from llm_env.config import Scenario
from llm_env.core import advance
from llm_env.dtypes import (
    ACTIVE,
    BATCH,
    CACHE_LINE,
    CLIENT,
    GAP,
    INF,
    LAYOUTS,
    NEEDS_ROOM,
    NOBODY,
    NOISES,
    QUEUE,
    REQUEST,
    ROLE_BOTH,
    ROLE_DECODE,
    ROLE_PREFILL,
    ROUTERS,
    SLO_RULES,
    SYSTEM,
    TRANSFER,
    WORKER,
)
from llm_env.errors import UserError
from llm_env.jit import IN_PLAIN_PYTHON
from llm_env.orders import WINDOW
from llm_env.queue import clear_queue, tree_levels
from llm_env.records import (
    BY_CLIENT,
    BY_DEADLINE,
    BY_LATEST_START,
    BY_PROMPT,
    NUM_BUCKETS,
    NUM_RANKS,
    NUM_ROWS,
    NUM_SETS,
    UNKNOWN,
    State,
)
from llm_env.roles import role_queue
from llm_env.service import curve_budget, prefill_times, service_curve
from llm_env.worker_load import routing_weights
from llm_env.workload import draw_noise

_GROWING = {"noise": 2, "batch_log": 1, "gap_log": 1}  # axes that `enlarge` widens, where they are not empty
UNLIMITED_BLOCKS = 1 << 40
SLO_BUDGET_CAP = 1 << 20  # tokens; the SLO budget of a system whose batches take no time per token
_FIRST_NOISE = 4096  # iterations of noise drawn at first; more are drawn as they are needed
_FIRST_LOG, _LOG_PER_REQUEST = 4096, 8  # rows; what is not written to takes no memory, a log that grows twice its own


def system_record(scenario: Scenario, record: bool = False) -> np.ndarray:
    """(1,) SYSTEM with the scenario's settings in seconds and everything that runs at its start."""
    settings, service, kv = scenario.system, scenario.system.service, scenario.system.kv
    system = np.zeros(1, SYSTEM)
    s = system[0]
    curve = service_curve(service, 1e3)
    for name in ("setup_s", "per_token_s", "free_tokens", "step_tokens", "num_points"):
        s[name] = getattr(curve, name)
    s["points"][: curve.num_points] = curve.points
    s["decode_fixed_s"] = service.decode_fixed_ms / 1e3
    s["cached_token_s"] = service.kv_ms_per_1k_cached_tokens / 1e6
    s["token_context_s"] = service.prefill_attention_ms_per_1m_token_context / 1e9
    s["setup_noise"] = NOISES.index(service.setup_noise)
    s["setup_noise_cv"] = service.setup_noise_cv or 0.0
    s["per_token_noise"] = NOISES.index(service.per_token_noise)
    s["per_token_noise_cv"] = service.per_token_noise_cv or 0.0
    s["kv_limited"] = kv.blocks is not None
    s["kv_blocks"] = UNLIMITED_BLOCKS if kv.blocks is None else kv.blocks
    s["block_tokens"] = kv.block_tokens
    s["watermark"] = -1.0 if kv.watermark is None else kv.watermark
    s["max_running"] = settings.max_running
    s["max_hold_s"] = settings.max_hold_ms / 1e3
    s["slo_rule"] = SLO_RULES.index(scenario.slo.rule)
    s["ttft_target_s"] = min(c.ttft_ms for c in scenario.slo.classes) / 1e3
    s["tbt_target_s"] = scenario.slo.tightest_tbt_ms / 1e3
    s["largest_weight"] = max(c.weight for c in scenario.slo.classes)
    s["log2_classes"] = log2(len(scenario.slo.classes))
    s["log10_ttft_spread"] = log10(max(c.ttft_ms for c in scenario.slo.classes) / 1e3 / s["ttft_target_s"])
    s["log10_tbt_spread"] = log10(max(c.tbt_ms for c in scenario.slo.classes) / 1e3 / s["tbt_target_s"])
    s["weight_spread"] = min(c.weight for c in scenario.slo.classes) / s["largest_weight"]
    s["fastest"] = max(settings.worker_speeds)
    s["slo_budget"] = curve_budget(curve, s["tbt_target_s"] * s["fastest"], SLO_BUDGET_CAP)
    s["horizon_s"] = scenario.episode.horizon_s
    s["layout"] = LAYOUTS.index(settings.layout)
    s["router"] = ROUTERS.index(settings.router)
    s["routing"] = routing_weights(settings.routing)
    s["num_prefill_workers"] = settings.prefill_workers or settings.workers
    s["prefix_cache"] = kv.prefix_cache
    s["kv_bytes_per_token"] = kv.bytes_per_token
    s["host_bytes_per_s"] = kv.host_gbytes_per_s * 1e9
    s["link_latency_s"] = settings.link.latency_ms / 1e3
    s["link_bytes_per_s"] = INF if settings.link.gbytes_per_s is None else settings.link.gbytes_per_s * 1e9
    s["helpers_max_workers"] = settings.parallel.max_workers
    s["helpers_min_tokens"] = settings.parallel.min_tokens
    s["change_roles"] = settings.roles.change
    s["switch_s"] = settings.roles.switch_ms / 1e3
    s["min_prefill_workers"] = settings.roles.min_prefill_workers
    s["min_decode_workers"] = settings.roles.min_decode_workers
    s["arrivals_s"] = scenario.episode.arrivals_s
    s["record"] = record
    return system


def worker_records(scenario: Scenario) -> np.ndarray:
    """(num_workers,) WORKER with what is set of each: role, queue, speed and SLO budget."""
    settings = scenario.system
    workers = np.zeros(settings.workers, WORKER)
    curve = service_curve(settings.service, 1e3)
    for w, speed in enumerate(settings.worker_speeds):
        prefills = settings.prefill_workers is None or w < settings.prefill_workers
        workers[w]["role"] = ROLE_PREFILL if prefills else ROLE_DECODE
        if settings.prefill_workers is None:
            workers[w]["role"] = ROLE_BOTH
        workers[w]["first_role"] = workers[w]["role"]
        if settings.router == "shared":
            workers[w]["queue"] = role_queue(workers[w]["role"])
        else:
            workers[w]["queue"] = w
        workers[w]["speed"] = speed
        limit_s = scenario.slo.tightest_tbt_ms / 1e3 * speed
        workers[w]["slo_budget"] = curve_budget(curve, limit_s, SLO_BUDGET_CAP)
    return workers


def new_states(scenario: Scenario, num_envs: int, capacity: int, record: bool = False) -> State:
    """Empty systems with a leading axis of `num_envs`, with room for `capacity` requests each."""
    workers, running = scenario.system.workers, scenario.system.max_running
    noisy = {scenario.system.service.setup_noise, scenario.system.service.per_token_noise} != {"none"}
    levels = tree_levels(capacity)
    worker = worker_records(scenario)
    num_queues = int(worker["queue"].max()) + 1
    transfers = 1 if scenario.system.layout == "replicas" else workers * (running + 1)
    log_rows = _FIRST_LOG + 4 * workers * running + _LOG_PER_REQUEST * capacity if record else 0
    states = State(
        requests=_aligned((num_envs, capacity), REQUEST),
        system=np.repeat(system_record(scenario, record)[None], num_envs, axis=0),
        workers=np.repeat(worker[None], num_envs, axis=0),
        running=np.zeros((num_envs, workers, running), np.int64),
        batch=np.zeros((num_envs, workers, running, 2), np.int64),
        order=np.zeros((num_envs, NUM_RANKS, capacity), np.int64),
        rank=np.zeros((num_envs, NUM_RANKS, capacity), np.int64),
        queues=np.zeros((num_envs, num_queues), QUEUE),
        sets=np.zeros((num_envs, num_queues, NUM_ROWS, levels[-1]), np.int64),
        levels=np.repeat(levels[None], num_envs, axis=0),
        buckets=np.zeros((num_envs, num_queues, 2, NUM_BUCKETS), np.int64),
        cursors=np.zeros((num_envs, NUM_BUCKETS - 1), np.int64),
        transfers=np.zeros((num_envs, transfers), TRANSFER),
        clients=np.zeros((num_envs, capacity), CLIENT),
        noise=np.ones((num_envs, workers, _FIRST_NOISE if noisy else 0, 2), np.float64),
        scratch=np.zeros((num_envs, 6, running + WINDOW), np.float64),
        batch_log=np.zeros((num_envs, log_rows), BATCH),
        gap_log=np.zeros((num_envs, log_rows), GAP),
    )
    return _readable(states)


def rebuild(scenario: Scenario, saved: Mapping[str, np.ndarray], record: bool = False) -> State:
    """The systems whose arrays were saved, by name of the State's field; in memory of their own.

    Raises:
        UserError: one is missing or has another dtype or shape than systems of this scenario; names the array.
    """
    requests = saved.get("requests")
    if requests is None or requests.ndim != 2 or 0 in requests.shape:
        raise UserError("requests: expected an array of systems by requests")
    states = new_states(scenario, requests.shape[0], requests.shape[1], record)
    arrays = []
    for name, fresh in zip(State._fields, states, strict=True):
        array, shape = saved.get(name), list(fresh.shape)
        if array is None:
            raise UserError(f"{name}: is missing")
        if array.dtype != fresh.dtype:
            raise UserError(f"{name}: expected an array of {_described(fresh.dtype)}, got {_described(array.dtype)}")
        if name in _GROWING and array.ndim == fresh.ndim and shape[_GROWING[name]]:
            shape[_GROWING[name]] = max(shape[_GROWING[name]], array.shape[_GROWING[name]])
        if array.shape != tuple(shape):
            raise UserError(f"{name}: expected shape {tuple(shape)}, got {array.shape}")
        mine = _aligned(array.shape, array.dtype)
        mine[...] = array
        arrays.append(mine)
    if not np.array_equal(arrays[State._fields.index("levels")], states.levels):
        raise UserError("levels: are not those of bitmap trees of this size")
    return _readable(State(*arrays))


def _described(dtype: np.dtype) -> str:
    return f"records of {len(dtype.names)} fields, {dtype.itemsize} bytes" if dtype.names else str(dtype)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin with a cache line, which those of numpy need not."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def _readable(states: State) -> State:
    """In plain Python (NUMBA_DISABLE_JIT) records need attribute access, which numpy gives to recarrays only."""
    if not IN_PLAIN_PYTHON:
        return states
    return State(*(a.view(np.recarray) if a.dtype.names and not isinstance(a, np.recarray) else a for a in states))


def single(states: State, e: int = 0) -> State:
    """The e-th system, as views without the leading axis."""
    return State(*(array[e] for array in states))


def adopt(states: State, requests: np.ndarray) -> State:
    """The one, unused system of `states` with these REQUESTs as its own records in place of room for a copy of them.

    Where they are then loaded, they change with the run. A script of a closed loop has too little room and is copied.
    """
    if len(requests) == 0 or is_script(requests):
        return states
    return _readable(states._replace(requests=np.ascontiguousarray(requests)[None]))


def with_capacity(states: State, capacity: int) -> State:
    """The same systems with room for at least `capacity` requests each; the same object if there is room already."""
    if states.requests.shape[1] >= capacity:
        return states
    capacity = max(capacity, 2 * states.requests.shape[1])
    levels = tree_levels(capacity)
    num_envs = states.requests.shape[0]
    old_levels = states.levels[0]
    sets = np.zeros((num_envs, states.queues.shape[1], NUM_ROWS, levels[-1]), np.int64)
    for level in range(len(old_levels) - 1):
        size = old_levels[level + 1] - old_levels[level]
        old = states.sets[..., old_levels[level] : old_levels[level + 1]]
        sets[..., levels[level] : levels[level] + size] = old
    for level in range(len(old_levels) - 1, len(levels) - 1):  # the old root's word and the new words above it
        below = sets[..., levels[level - 1]] != 0
        sets[..., levels[level]] = below
    sets[:, :, NUM_SETS:] = UNKNOWN
    return _readable(
        states._replace(
            requests=_widened(states.requests, 1, capacity),
            order=_widened(states.order, 2, capacity),
            rank=_widened(states.rank, 2, capacity),
            clients=_widened(states.clients, 1, capacity),
            sets=sets,
            levels=np.repeat(levels[None], num_envs, axis=0),
        )
    )


def _widened(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    shape = list(array.shape)
    shape[axis] = size
    wide = _aligned(tuple(shape), array.dtype)
    wide[tuple(slice(0, n) for n in array.shape)] = array
    return wide


def load(states: State, e: int, requests: np.ndarray, seed: int) -> State:
    """Puts a workload into system e and moves it to its first decision; see `prepare`."""
    states = prepare(states, e, requests, seed)
    advance(single(states, e))
    return states


def prepare(states: State, e: int, requests: np.ndarray, seed: int) -> State:
    """Puts a workload into system e, whose clock has still to be moved to the first decision (`core.advance`).

    Args:
        requests: (n,) REQUEST as `llm_env.workload` makes it, copied: in order of arrival, or the script of a closed
            loop, grouped by user.
        seed: of the service noise.

    Returns:
        The states, reallocated if there was not room enough.
    """
    n, closed = len(requests), is_script(requests)
    states = with_capacity(states, max(1, 2 * n if closed else n))
    state = single(states, e)
    system = state.system[0]
    _restart_system(state, n)
    targets = state.requests[n : 2 * n] if closed else state.requests[:n]
    targets[:] = requests
    targets["prefill_tokens"] = targets["prompt_tokens"]
    targets["declared_tokens"] = np.maximum(targets["declared_tokens"], targets["output_tokens"])
    clients, targets["tenant"], counts = np.unique(targets["client"], return_inverse=True, return_counts=True)
    system["num_clients"] = len(clients)
    state.clients[:] = np.zeros(1, CLIENT)[0]
    state.clients["first"][: len(clients)] = np.cumsum(counts) - counts
    targets["prefill_s"] = prefill_times(state.system, targets["prompt_tokens"], np.zeros(n))
    system["prefill_gap"] = _least_gap(targets["prefill_s"])
    clear_queue(state)
    if closed:
        start_users(state, n)
    else:
        ttft_due = targets["arrival_s"] + targets["ttft_target_s"]
        targets["latest_start_s"] = ttft_due - targets["prefill_s"]
        _rank(state, targets, ttft_due)
    state.workers["free_blocks"] = system["kv_blocks"]
    if state.noise.shape[1]:
        for w in range(state.noise.shape[0]):
            state.noise[w] = draw_noise(seed, w, 0, state.noise.shape[1], *_families(system))
    return states


def _least_gap(seconds: np.ndarray) -> float:
    """The least difference of two unequal times over the largest time; 1 if all are equal."""
    steps = np.diff(np.sort(seconds))
    steps = steps[steps > 0]
    return float(steps.min() / seconds.max()) if len(steps) else 1.0


def _rank(state: State, requests: np.ndarray, ttft_due_s: np.ndarray) -> None:
    """Ranks all requests of an open loop, once. Args: ttft_due_s: (n,) their TTFT deadlines."""
    n = len(requests)
    keys = ((BY_PROMPT, requests["prompt_tokens"]), (BY_DEADLINE, ttft_due_s))
    if state.system["num_clients"][0] > 1:
        keys = (*keys, (BY_CLIENT, requests["tenant"]))
    for which, key in (*keys, (BY_LATEST_START, requests["latest_start_s"])):
        order = np.argsort(key, kind="stable")
        state.order[which - 1, :n] = order
        state.rank[which - 1, order] = np.arange(n)
    state.system["num_ranked"], state.system["num_users"] = n, 0


def _families(system: Any) -> tuple[tuple[int, float], tuple[int, float]]:
    """Family and cv of the noise of the setup and of the per-token term. Args: system: a SYSTEM record."""
    setup = int(system["setup_noise"]), float(system["setup_noise_cv"])
    return setup, (int(system["per_token_noise"]), float(system["per_token_noise_cv"]))


def _restart_system(state: State, num_requests: int) -> None:
    names = SYSTEM.names
    assert names is not None
    for name in names[names.index("now_s") : names.index("points")]:
        state.system[name] = 0
    state.system["num_requests"] = num_requests
    state.system["phase"] = ACTIVE
    state.system["last_client"] = NOBODY
    state.system["named"] = NOBODY
    names = WORKER.names
    assert names is not None
    for name in names[names.index("busy") :]:
        state.workers[name] = NOBODY if name in ("swapped", "cache_first", "cache_last") else 0
    if state.system["change_roles"][0]:
        for w, role in enumerate(state.workers["first_role"]):
            state.workers["role"][w], state.workers["queue"][w] = role, role_queue(role)


def enlarge(states: State, seeds: np.ndarray) -> State:
    """Doubles the room for noise and log rows of every system; those that had stopped for it may go on.

    Args:
        seeds: (num_envs,) the seeds that the systems were loaded with.
    """
    if states.system["record"].any():
        states = states._replace(
            batch_log=_widened(states.batch_log, 1, 2 * states.batch_log.shape[1]),
            gap_log=_widened(states.gap_log, 1, 2 * states.gap_log.shape[1]),
        )
    have = states.noise.shape[2]
    if have:
        noise = _widened(states.noise, 2, 2 * have)
        for e, w in np.ndindex(noise.shape[:2]):
            noise[e, w, have:] = draw_noise(int(seeds[e]), w, have, have, *_families(states.system[e, 0]))
        states = states._replace(noise=noise)
    phase = states.system["phase"]
    phase[phase == NEEDS_ROOM] = ACTIVE
    return _readable(states)
