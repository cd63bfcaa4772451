"""The View of a State, which policies see. It reads and does not write.

No true output length is read here: a request shows what it has generated, never what is left.
"""

from __future__ import annotations

from math import exp

from llm_env.batching import next_helpable
from llm_env.dtypes import DISAGGREGATED, FAR, PARALLEL_PREFILL
from llm_env.jit import njit
from llm_env.placing import left_tokens
from llm_env.queue import RATE_FAST_S, RATE_SLOW_S, head, member_request, tree_next
from llm_env.records import SET_ARRIVAL, SET_FEASIBLE, State, View
from llm_env.roles import no_pools, pools_of
from llm_env.sums import running_sums


@njit
def make_view(state: State) -> View:
    """The View of the worker whose decision is due. Cost: at most one pass over its running requests."""
    system = state.system[0]
    w = system.worker
    worker = state.workers[w]
    q, queue = worker.queue, state.queues[worker.queue]
    sums = running_sums(state, w)
    head_tokens, head_age_s = 0, 0.0
    if queue.num_waiting > 0:
        r = state.requests[head(state, q, SET_ARRIVAL)]
        head_tokens = r.prefill_tokens
        head_age_s = system.now_s - r.arrival_s
    first, second = _two_most_urgent(state, q)
    urgent_slack_s, urgent_tokens = _slack(state, first)
    second_slack_s, second_tokens = _slack(state, second)
    passed = system.now_s - system.rate_s
    fast, slow = exp(-passed / RATE_FAST_S), exp(-passed / RATE_SLOW_S)
    free_blocks, kv_used = worker.free_blocks + worker.cached_blocks, 0.0
    if system.kv_limited == 1:
        kv_used = 1.0 - free_blocks / system.kv_blocks
    num_running = worker.num_running - worker.num_moving
    help_tokens = _help_tokens(state, w) if system.layout == PARALLEL_PREFILL else 0
    pools = pools_of(state) if system.layout == DISAGGREGATED else no_pools()
    return View(
        system.now_s,
        system.epoch,
        w,
        state.workers.shape[0],
        system.setup_s / worker.speed,
        system.per_token_s / worker.speed,
        system.free_tokens,
        system.ttft_target_s,
        system.tbt_target_s,
        worker.slo_budget,
        system.max_running,
        queue.num_waiting,
        queue.waiting_tokens,
        queue.num_resumed,
        state.buckets[q, 0, 0],
        state.buckets[q, 1, 0],
        head_tokens,
        head_age_s,
        urgent_slack_s,
        urgent_tokens,
        second_slack_s,
        second_tokens,
        system.rate_fast * fast,
        system.rate_slow * slow,
        num_running,
        num_running - sums.num_partial,
        sums.num_partial,
        sums.partial_tokens,
        sums.context_tokens,
        min(FAR, sums.due_s - system.now_s),
        sums.num_clean,
        system.kv_blocks,
        free_blocks,
        system.block_tokens,
        kv_used,
        worker.end_s - worker.start_s,
        worker.last_batch_tokens,
        worker.role,
        worker.speed,
        worker.num_moving,
        worker.num_swapped,
        worker.last_batch_prefill,
        worker.batch_evicted,
        sums.emitted_tokens,
        sums.declared_tokens,
        help_tokens,
        worker.memory,
        (system.decode_fixed_s + system.cached_token_s * sums.context_tokens) / worker.speed,
        worker.next_role,
        pools.prefill_workers,
        pools.live_tokens,
        pools.decodes,
        pools.kv_used,
        pools.num_lined_up,
        system.prompt_rate_slow * slow,
        system.output_rate_slow * slow,
    )


@njit
def _help_tokens(state: State, w) -> int:
    """Tokens of prompts on other workers that worker w may help to prefill."""
    tokens, i = 0, next_helpable(state, w, -1)
    while i >= 0:
        r = state.requests[i]
        tokens += left_tokens(r) - r.in_batch
        i = next_helpable(state, w, i)
    return tokens


@njit
def _two_most_urgent(state: State, q) -> tuple[int, int]:
    """The two feasible waiting requests with the earliest TTFT deadlines, -1 where there is none."""
    members, levels = state.sets[q, SET_FEASIBLE], state.levels
    member = tree_next(members, levels, 0)
    if member < 0:
        return -1, -1
    first = member_request(state, SET_FEASIBLE, member)
    member = tree_next(members, levels, member + 1)
    return first, member_request(state, SET_FEASIBLE, member) if member >= 0 else -1


@njit
def _slack(state: State, i) -> tuple[float, int]:
    """Slack and prefill tokens of waiting request i; (FAR, 0) if i is -1."""
    if i < 0:
        return FAR, 0
    r = state.requests[i]
    return r.latest_start_s - state.system[0].now_s, r.prefill_tokens
