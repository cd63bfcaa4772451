"""Small systems whose times can be worked out by hand, and the invariants that hold in every state of every system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_env.batching import form_batch
from llm_env.build import load, new_states, single
from llm_env.config import EpisodeSettings, KVSettings, Scenario, ServiceSettings, SLOClass, SLOSettings, SystemSettings
from llm_env.core import step
from llm_env.dtypes import (
    ACTIVE,
    FINISHED,
    FUTURE,
    MOVING,
    NOBODY,
    REJECTED,
    ROUTING,
    RUNNING,
    SWAPPED,
    UNDER_WAY,
    WAITING,
)
from llm_env.queue import is_member, member_request, tree_next
from llm_env.records import (
    KEY_PREDICTED,
    KEY_PREFILL,
    KEY_SERVICE,
    KEY_WEIGHT,
    SET_ARRIVAL,
    SET_CLIENT,
    SET_DEADLINE,
    SET_FEASIBLE,
    SET_HEADS,
    SET_HOPELESS,
    SET_LATEST_START,
    SET_PROMPT,
    SLACK_EDGES,
    Decision,
    State,
    snapshot,
)
from llm_env.view import make_view
from llm_env.workload.generate import blank_requests


def toy_scenario(
    workers: int = 1,
    max_running: int = 8,
    blocks: int | None = None,
    block_tokens: int = 4,
    watermark: float | None = None,
    setup_ms: float = 10.0,
    per_token_ms: float = 1.0,
    free_tokens: int = 0,
    noise: str = "none",
    ttft_ms: float = 100.0,
    tbt_ms: float = 20.0,
    rule: str = "max",
    horizon_s: float = 1e6,
    system: dict[str, Any] | None = None,
    kv: dict[str, Any] | None = None,
    **terms: float,
) -> Scenario:
    """By default S(b) = 10 ms + b x 1 ms, targets of 100 ms and 20 ms, hence an SLO budget of 10 tokens.

    KV on a link or on its way to the host takes 1 ms a token. `system` and `kv` are further settings of these,
    `terms` of the service, those beside the curve.
    """
    service = ServiceSettings(
        setup_ms=setup_ms,
        per_token_ms=per_token_ms,
        free_tokens=free_tokens,
        setup_noise=noise,
        per_token_noise=noise,
        setup_noise_cv=0.5 if noise in ("gamma", "lognormal") else None,
        per_token_noise_cv=0.5 if noise in ("gamma", "lognormal") else None,
        **terms,
    )
    memory = {"blocks": blocks, "block_tokens": block_tokens, "watermark": watermark}
    memory |= {"bytes_per_token": 1_000_000, "host_gbytes_per_s": 1.0, **(kv or {})}
    settings = {"link": {"latency_ms": 0.0, "gbytes_per_s": 1.0}, **(system or {})}
    return Scenario(
        system=SystemSettings(
            workers=workers, max_running=max_running, service=service, kv=KVSettings(**memory), **settings
        ),
        slo=SLOSettings(rule=rule, classes=(SLOClass(ttft_ms=ttft_ms, tbt_ms=tbt_ms),)),
        episode=EpisodeSettings(arrivals_s=min(1e3, horizon_s), warmup_s=0.0, horizon_s=horizon_s),
    )


def toy_requests(
    rows: Sequence[tuple[float, int, int]], scenario: Scenario, ttft_s: Sequence[float] | None = None
) -> np.ndarray:
    """REQUEST of (arrival_s, prompt_tokens, output_tokens) in order of arrival, with the first class's targets."""
    requests = blank_requests(len(rows))
    for name, column in zip(("arrival_s", "prompt_tokens", "output_tokens"), zip(*rows, strict=True), strict=True):
        requests[name] = column
    requests["ttft_target_s"] = scenario.slo.classes[0].ttft_ms / 1e3 if ttft_s is None else ttft_s
    requests["tbt_target_s"] = scenario.slo.classes[0].tbt_ms / 1e3
    return requests


def toy_script(
    users: Sequence[Sequence[tuple[float, int, int]]], scenario: Scenario, ttft_s: Sequence[float] | None = None
) -> np.ndarray:
    """The script of a closed loop: for each user (think_s, prompt_tokens, output_tokens) of each request."""
    requests = toy_requests([row for rows in users for row in rows], scenario, ttft_s)
    requests["think_s"] = requests["arrival_s"]
    requests["client"] = np.repeat(np.arange(len(users)), [len(rows) for rows in users])
    requests["arrival_s"][1:][requests["client"][1:] == requests["client"][:-1]] = np.inf
    return requests


def toy_state(
    rows: Sequence[tuple[float, int, int]],
    ttft_s: Sequence[float] | None = None,
    seed: int = 0,
    record: bool = False,
    fields: dict[str, Sequence[Any]] | None = None,
    **settings,
) -> State:
    """One loaded system at its first decision; `settings` are those of `toy_scenario`, `fields` of the requests."""
    scenario = toy_scenario(**settings)
    requests = toy_requests(rows, scenario, ttft_s)
    for name, column in (fields or {}).items():
        requests[name] = column
    return single(load(new_states(scenario, 1, len(rows), record), 0, requests, seed))


def formed(state: State, d: Decision, worker: int = 0) -> list[tuple[int, int]]:
    """(request, tokens) of the batch that a decision would form; the state stays as it is."""
    copy = snapshot(state)
    form_batch(copy, worker, d)
    return batch_of(copy, worker)


def batch_of(state: State, worker: int = 0) -> list[tuple[int, int]]:
    size = int(state.workers[worker]["batch_size"])
    return [(int(i), int(tokens)) for i, tokens in state.batch[worker, :size]]


def running_of(state: State, worker: int = 0) -> list[int]:
    return [int(i) for i in state.running[worker, : state.workers[worker]["num_running"]]]


def run(state: State, decide, max_steps: int = 5000) -> int:
    """Lets a policy decide until the end; how many steps that took. Fails if it takes too many."""
    steps = 0
    while state.system[0]["phase"] == ACTIVE:
        assert steps < max_steps, "the policy does not drain the system"
        step(state, decide(make_view(state)))
        steps += 1
    return steps


# ---- invariants ----------------------------------------------------------------------------------------------------
def members(state: State, which_set: int, q: int = 0) -> list[int]:
    """All members of one of the sets of queue q, in order."""
    found, member = [], tree_next(state.sets[q, which_set], state.levels, 0)
    while member >= 0:
        found.append(int(member))
        member = tree_next(state.sets[q, which_set], state.levels, member + 1)
    return found


def chain(state: State, first: int) -> list[int]:
    """The requests of a linked list, from the first on."""
    found = []
    while first != NOBODY:
        found.append(int(first))
        assert len(found) <= len(state.requests), "a list runs in a circle"
        first = state.requests[first]["next"]
    return found


def resumed_of(state: State, q: int = 0) -> list[int]:
    """The evicted requests at the front of queue q, the first first."""
    queue = state.queues[q]
    resumed = chain(state, queue["front"])[: queue["num_resumed"]]
    assert len(resumed) == queue["num_resumed"]
    return resumed


def transfers_of(state: State) -> np.ndarray:
    """The transfers of KV that are noted."""
    return state.transfers[: state.system[0]["num_transfers"]]


def check_counts(state: State) -> None:
    """Arrivals = finished + running + moving + swapped + waiting + rejected; whoever has a status is where it says."""
    s, n = state.system[0], int(state.system[0]["num_requests"])
    q = state.requests[:n]
    arrived, status = int(s["next_arrival"]), q["status"]
    assert (status[arrived:] == FUTURE).all()
    assert not (status[:arrived] == FUTURE).any()
    counts = {k: int((status == k).sum()) for k in (WAITING, RUNNING, MOVING, SWAPPED, FINISHED, REJECTED)}
    assert sum(counts.values()) == arrived
    assert counts[WAITING] == s["num_waiting"] == state.queues["num_waiting"].sum()
    assert counts[FINISHED] == s["num_finished"]
    assert counts[REJECTED] == s["num_rejected"]
    assert (q["arrival_s"][:arrived] <= s["now_s"]).all()
    later_s = q["arrival_s"][arrived:]
    assert (later_s > s["now_s"]).all() or (s["phase"] == ROUTING and (later_s >= s["now_s"]).all())
    listed = [i for w in range(len(state.workers)) for i in running_of(state, w)]
    assert len(listed) == len(set(listed)), "a request is in two running lists"
    assert sorted(listed) == [int(i) for i in np.flatnonzero((status == RUNNING) | (status == MOVING))]
    swapped = [i for worker in state.workers for i in chain(state, worker["swapped"])]
    assert sorted(swapped) == [int(i) for i in np.flatnonzero(status == SWAPPED)]
    moves = transfers_of(state)[transfers_of(state)["helps"] == 0]
    assert sorted(moves["request"]) == [int(i) for i in np.flatnonzero(status == MOVING)]
    assert (q["emitted_tokens"] <= q["output_tokens"]).all()
    assert (q["computed_tokens"] <= q["prompt_tokens"] + q["output_tokens"] - 1).all()
    assert (q["emitted_tokens"][status == FINISHED] == q["output_tokens"][status == FINISHED]).all()


def check_workers(state: State) -> None:
    """KV blocks add up, batches add up, a request is in at most one batch and there at most once."""
    s, q = state.system[0], state.requests[: state.system[0]["num_requests"]]
    expected = np.where(q["status"] == MOVING, 1, 0)  # in_batch
    transfers = transfers_of(state)
    moves = (transfers["helps"] == 0) & (transfers["phase"] == UNDER_WAY)
    away = np.zeros(len(q), np.int64)
    for t in transfers[transfers["helps"] == 1]:
        if q[t["request"]]["evictions"] == t["evictions"]:
            away[t["request"]] += t["tokens"]
    assert (q["away_tokens"] == away).all()
    for w in range(len(state.workers)):
        worker, ids = state.workers[w], running_of(state, w)
        mine = q[ids]
        assert (mine["worker"] == w).all()
        partial = (mine["computed_tokens"] < mine["prefill_tokens"]) & (mine["status"] == RUNNING)
        assert worker["num_partial"] == partial.sum()
        assert worker["num_moving"] == (mine["status"] == MOVING).sum()
        assert worker["num_running"] <= s["max_running"]
        _check_memory(state, w, transfers, moves)
        assert (mine["blocks"] * s["block_tokens"] >= mine["computed_tokens"]).all()
        swapped = chain(state, worker["swapped"])
        assert swapped == sorted(swapped)
        assert len(swapped) == worker["num_swapped"]
        if not worker["busy"]:
            continue
        batch = batch_of(state, w)
        for i, tokens in batch:
            if i not in ids:  # a chunk for another worker's prompt, or of one that was evicted there meanwhile
                assert ((transfers["request"] == i) & (transfers["source"] == w) & (transfers["helps"] == 1)).any()
                continue
            expected[i] += tokens
            left = int(q[i]["prefill_tokens"] - q[i]["computed_tokens"])
            assert 1 <= tokens <= max(1, left), "more than one decode, or more prefill than is left"
            assert q[i]["blocks"] * s["block_tokens"] >= q[i]["computed_tokens"] + tokens
        prefill = [tokens for i, tokens in batch if i not in ids or q[i]["computed_tokens"] < q[i]["prefill_tokens"]]
        assert worker["batch_tokens"] == sum(tokens for _, tokens in batch)
        assert worker["batch_prefill"] == sum(prefill)
        assert worker["batch_prompts"] == len(prefill)
        assert len({i for i, _ in batch}) == len(batch), "a request is in a batch twice"
    assert (q["in_batch"] == expected).all(), "a request is in two batches, or in_batch forgets one"
    assert (q["blocks"][(q["status"] != RUNNING) & (q["status"] != MOVING)] == 0).all()


def _check_memory(state: State, w: int, transfers: np.ndarray, moves: np.ndarray) -> None:
    """Every block of worker w is free, held by a running request, on its way here, held for another, or cached."""
    s, worker, q = state.system[0], state.workers[w], state.requests
    held = q[running_of(state, w)]["blocks"].sum()
    incoming = transfers["blocks"][moves & (transfers["target"] == w)]
    helping = transfers["blocks"][(transfers["helps"] == 1) & (transfers["source"] == w)].sum()
    assert worker["num_incoming"] == len(incoming)
    assert worker["free_blocks"] >= 0
    assert worker["free_blocks"] + held + incoming.sum() + helping + worker["cached_blocks"] == s["kv_blocks"]
    cached = chain(state, worker["cache_first"])
    assert worker["cached_blocks"] == q["cached_blocks"][cached].sum()
    assert (q["cached_blocks"][cached] > 0).all()
    assert (q["status"][cached] == FINISHED).all()


def check_queue(state: State) -> None:
    """Sets, slack buckets and sums of every queue equal what a look at every request says."""
    s, n = state.system[0], int(state.system[0]["num_requests"])
    q = state.requests[:n]
    slack_s = q["latest_start_s"] - s["now_s"]
    edges = np.array(SLACK_EDGES) * s["ttft_target_s"]
    for k in range(len(state.queues)):
        waiting = [int(i) for i in np.flatnonzero((q["status"] == WAITING) & (q["queue"] == k))]
        resumed = resumed_of(state, k)
        assert len(set(resumed)) == len(resumed)
        assert set(resumed) <= set(waiting)
        assert state.queues[k]["num_waiting"] == len(waiting)
        assert state.queues[k]["waiting_tokens"] == q["prefill_tokens"][waiting].sum()
        plain = [i for i in waiting if i not in resumed]
        feasible = [i for i in plain if slack_s[i] >= 0]
        for which_set, expected, key in (
            (SET_ARRIVAL, plain, np.arange(n)),
            (SET_HOPELESS, [i for i in plain if slack_s[i] < 0], np.arange(n)),
            (SET_PROMPT, plain, q["prompt_tokens"]),
            (SET_DEADLINE, plain, q["arrival_s"] + q["ttft_target_s"]),
            (SET_LATEST_START, plain, q["latest_start_s"]),
            (SET_FEASIBLE, feasible, q["arrival_s"] + q["ttft_target_s"]),
        ):
            found = [int(member_request(state, which_set, member)) for member in members(state, which_set, k)]
            assert found == sorted(expected, key=lambda i: (key[i], i))
        tenants = q["tenant"][plain]
        many = s["num_clients"] > 1
        heads = sorted(plain[int(place)] for place in np.unique(tenants, return_index=True)[1]) if many else []
        of_clients = sorted(plain, key=lambda i: (q["tenant"][i], i)) if many else []
        assert members(state, SET_HEADS, k) == heads
        if s["num_users"] == 0:  # in a closed loop clients stand as in the script
            assert [int(member_request(state, SET_CLIENT, m)) for m in members(state, SET_CLIENT, k)] == of_clients
        _check_bounds(state, k, plain, heads)
        buckets = np.zeros_like(state.buckets[k])
        for i in plain:
            bucket = sum(bool(q[i]["latest_start_s"] >= s["now_s"] + edge) for edge in edges)
            buckets[:, bucket] += (1, q[i]["prefill_tokens"])
        assert (state.buckets[k] == buckets).all()
        tight = [i for i in feasible if q[i]["ttft_target_s"] <= s["ttft_target_s"]]
        assert state.queues[k]["tight_waiting"] == len(tight)
        assert state.queues[k]["tight_tokens"] == q["prefill_tokens"][tight].sum()
        assert state.queues[k]["weight_millionths"] == np.rint(q["weight"][feasible] * 1e6).sum()


def _check_bounds(state: State, q: int, plain: list[int], heads: list[int]) -> None:
    """No bound beside a set's tree is above a key below it; above a word without a bound none is known."""
    r, predicted = state.requests, state.requests["predicted_tokens"]
    keys = {
        KEY_WEIGHT: (SET_ARRIVAL, plain, -r["weight"]),
        KEY_PREDICTED: (SET_ARRIVAL, plain, np.where(np.isnan(predicted), np.inf, predicted)),
        KEY_PREFILL: (SET_ARRIVAL, plain, r["prefill_s"]),
        KEY_SERVICE: (SET_HEADS, heads, state.clients["service"][r["tenant"]]),
    }
    for key, (which_set, expected, values) in keys.items():
        tree, least, levels = state.sets[q, which_set], state.sets[q, key].view(np.float64), state.levels
        for i in expected:
            bounds = [least[levels[level] + (i >> (5 * level + 5))] for level in range(len(levels) - 1)]
            assert (np.array(bounds) <= values[i]).all()
            assert bounds == sorted(bounds, reverse=True)
            assert is_member(tree, i)


def check_all(state: State) -> None:
    check_counts(state)
    check_workers(state)
    check_queue(state)
