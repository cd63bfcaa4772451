"""Candidates for the next batch, one by one: what an agent that ranks them sees of each, and where its scores go.

They are the prompts that are partly prefilled on the worker, in list order, and then the waiting requests with the
earliest TTFT deadlines among those that can still be on time; MOST_RANKED in all. `llm_env.orders` lets them change
places in Moore-Hodgson order by their scores. Reads the State; writes candidates and scores only.
"""

from __future__ import annotations

from math import isnan, log1p, log10

from llm_env.features import FEATURES
from llm_env.jit import njit
from llm_env.kv import blocks_for
from llm_env.orders import due_s
from llm_env.placing import left_tokens
from llm_env.queue import member_request, tree_next
from llm_env.records import CANDIDATES, MOST_RANKED, SCORES, SET_FEASIBLE, State
from llm_env.service import mean_seconds

# name, least and greatest value, meaning; the order is that of `observe_candidates`
REQUEST_FEATURES: tuple[tuple[str, float, float, str], ...] = (
    ("present", 0, 1, "1 if there is such a candidate; without one all are 0"),
    ("place", 0, 1, "its place among the candidates / how many there can be"),
    ("partial", 0, 1, "share of its prompt that is prefilled"),
    ("tokens", 0, 2, "log1p(tokens left to prefill) / 12"),
    ("seconds", 0, 4, "time to prefill them at the SLO budget / its TTFT target"),
    ("slack", -1, 2, "what is then left until its deadline / its TTFT target"),
    ("age", 0, 4, "time since it arrived / its TTFT target"),
    ("ahead", 0, 4, "time to prefill it and the candidates before it / time until its deadline"),
    ("weight", 0, 1, "its SLO weight / largest of the classes"),
    ("declared", 0, 2, "log1p(output tokens that its client allows) / 12"),
    ("predicted", 0, 2, "log1p(predicted output tokens) / 12, 0 if there is no prediction"),
    ("ttft_target", 0, 4, "log10(its TTFT target / tightest of the classes)"),
    ("tbt_target", 0, 4, "log10(its TBT target / tightest of the classes)"),
    ("kv", 0, 4, "KV blocks that its prompt still needs / free blocks, 0 if unlimited"),
)
NUM_REQUEST_FEATURES = len(REQUEST_FEATURES)
CANDIDATE_FEATURES = tuple(
    (f"request_{c}_{name}", low, high, text) for c in range(MOST_RANKED) for name, low, high, text in REQUEST_FEATURES
)
_COUNT = 12.0  # log1p of tokens is divided by it


def observed(action: str) -> tuple[tuple[str, float, float, str], ...]:
    """What an observation holds under a form of action: FEATURES, and those of the candidates if it ranks them."""
    return FEATURES + CANDIDATE_FEATURES if action == "ranked" else FEATURES


@njit
def _clip(value, low, high) -> float:
    return min(max(value, low), high)


@njit
def observe_candidates(state: State, out) -> None:
    """Writes the features of the worker's candidates into out, (MOST_RANKED x NUM_REQUEST_FEATURES,) float32."""
    system = state.system[0]
    worker = state.workers[system.worker]
    free_blocks = worker.free_blocks + worker.cached_blocks
    budget = int(worker.slo_budget)
    token_s = mean_seconds(system, budget) / budget / worker.speed
    cursor, k, tokens = 0, 0, 0
    for c in range(MOST_RANKED):
        i, cursor = _next_candidate(state, cursor)
        if i < 0:
            out[k : k + NUM_REQUEST_FEATURES] = 0.0
            k += NUM_REQUEST_FEATURES
            continue
        r = state.requests[i]
        left = left_tokens(r)
        tokens += left
        due_in_s = due_s(r) - system.now_s
        predicted = 0.0 if isnan(r.predicted_tokens) else log1p(max(r.predicted_tokens, 0.0))
        blocks = max(0, blocks_for(r.prefill_tokens, system.block_tokens) - r.blocks)
        out[k] = 1.0
        out[k + 1] = c / MOST_RANKED
        out[k + 2] = 1.0 - left / r.prefill_tokens
        out[k + 3] = min(log1p(left) / _COUNT, 2.0)
        out[k + 4] = min(left * token_s / r.ttft_target_s, 4.0)
        out[k + 5] = _clip((due_in_s - left * token_s) / r.ttft_target_s, -1.0, 2.0)
        out[k + 6] = _clip((system.now_s - r.arrival_s) / r.ttft_target_s, 0.0, 4.0)
        out[k + 7] = min(tokens * token_s / max(due_in_s, 1e-9), 4.0)
        out[k + 8] = min(r.weight / system.largest_weight, 1.0)
        out[k + 9] = min(log1p(r.declared_tokens) / _COUNT, 2.0)
        out[k + 10] = min(predicted / _COUNT, 2.0)
        out[k + 11] = _clip(log10(r.ttft_target_s / system.ttft_target_s), 0.0, 4.0)
        out[k + 12] = _clip(log10(r.tbt_target_s / system.tbt_target_s), 0.0, 4.0)
        out[k + 13] = min(blocks / max(free_blocks, 1), 4.0) if system.kv_limited == 1 else 0.0
        k += NUM_REQUEST_FEATURES


@njit
def _next_candidate(state: State, cursor) -> tuple[int, int]:
    """The next candidate of the worker whose decision is due, -1 if there is none, and where to go on from.

    Args:
        cursor: 0 for the first: a place in the running list, and beyond its end a member of the feasible set.
    """
    w = state.system[0].worker
    worker = state.workers[w]
    while worker.num_partial > 0 and cursor < worker.num_running:
        i = state.running[w, cursor]
        cursor += 1
        if state.requests[i].in_batch == 0 and left_tokens(state.requests[i]) > 0:
            return i, cursor
    cursor = max(cursor, worker.num_running)
    member = tree_next(state.sets[worker.queue, SET_FEASIBLE], state.levels, cursor - worker.num_running)
    if member < 0:
        return -1, cursor
    return member_request(state, SET_FEASIBLE, member), worker.num_running + member + 1


@njit
def write_scores(state: State, scores) -> None:
    """Notes who the candidates are, and their scores, clipped to [-1, 1]. Args: scores: at least MOST_RANKED floats."""
    cursor = 0
    for c in range(MOST_RANKED):
        i, cursor = _next_candidate(state, cursor)
        state.scratch[CANDIDATES, c] = i
        state.scratch[SCORES, c] = _clip(scores[c], -1.0, 1.0)
