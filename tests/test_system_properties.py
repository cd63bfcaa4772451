"""What holds in every step of every system, whatever its layout, router, KV rules and decisions: `toy.check_all`, time,
tokens and durations. The systems are those in which the kernel is compared with its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numba import config
from toy import batch_of, check_all
from twin_cases import cache_cases, closed_cases, disaggregated_cases, memory_cases, mixed_cases, parallel_cases
from twin_compare import Case, decisions_of, rows_of, scenario_of, settings_of

from llm_env.build import load, new_states, single
from llm_env.core import step
from llm_env.dtypes import ACTIVE, DRAINED, FINISHED, REJECTED
from llm_env.records import State, snapshot

pytestmark = pytest.mark.kernel

EXAMPLES = 4 if config.DISABLE_JIT else 40
few = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def checked_run(case: Case) -> State:
    """Every step with every invariant."""
    scenario = scenario_of(case)
    requests = rows_of(case, scenario)
    state = single(load(new_states(scenario, 1, len(requests), True), 0, requests, case["seed"]))
    decisions = decisions_of(case)
    twin = settings_of(scenario, None)
    plain = not (twin.decode_fixed_s or twin.cached_token_s or twin.token_context_s)
    noisy = scenario.system.service.setup_noise != "none", scenario.system.service.per_token_noise != "none"
    swapped_token_s = twin.bytes_per_token / twin.host_bytes_per_s
    check_all(state)
    s = state.system[0]
    for _ in range(3000):
        if s["phase"] != ACTIVE:
            break
        before, w = snapshot(state), int(s["worker"])
        then = before.workers[w]
        d = decisions[(int(s["epoch"]) + w) % len(decisions)]
        step(state, d)
        check_all(state)
        assert s["now_s"] >= before.system[0]["now_s"], "the clock ran backwards"
        worker = state.workers[w]
        if worker["iteration"] > then["iteration"]:
            assert worker["iteration"] == then["iteration"] + 1
            assert worker["start_s"] == before.system[0]["now_s"]
            placed = [i for i, _ in batch_of(state, w)]
            assert len(placed) == len(set(placed)), "a request is in one batch twice"
            factors = np.where(noisy, state.noise[w, then["iteration"]] if any(noisy) else 1.0, 1.0)
            seconds = twin.curve.seconds(int(worker["batch_tokens"]), *factors.tolist()) / worker["speed"]
            more_s = worker["end_s"] - worker["start_s"] - seconds
            assert more_s >= -1e-9
            if plain and not any(row.swap for row in decisions):
                assert more_s == pytest.approx(0, abs=1e-9)
            elif plain and swapped_token_s > 0:
                tokens = more_s / swapped_token_s
                assert tokens == pytest.approx(round(tokens), abs=1e-3), "S(b) / speed and whole tokens swapped"
        r, old = state.requests, before.requests
        emitted = r["emitted_tokens"] - old["emitted_tokens"]
        assert np.isin(emitted, (0, 1)).all(), "more than one token of a request in one step"
        calm = r["evictions"] == old["evictions"]
        assert (r["computed_tokens"] >= old["computed_tokens"])[calm].all(), "KV is lost without an eviction"
        assert ((r["computed_tokens"] == 0) | (r["computed_tokens"] == old["computed_tokens"]))[~calm].all() or d.swap
    check_the_end(state)
    return state


def check_the_end(state: State) -> None:
    s = state.system[0]
    r = state.requests[: s["num_requests"]]
    if s["phase"] != DRAINED:
        return
    assert np.isin(r["status"], (FINISHED, REJECTED)).all()
    done = r[r["status"] == FINISHED]
    needed = (done["prompt_tokens"] + done["output_tokens"] - 1 - done["hit_tokens"]).sum()
    work = s["prefill_done"] + s["decode_done"]
    assert work >= needed if done["evictions"].any() else work == needed
    assert (state.workers["num_running"] == 0).all()
    assert (state.workers["free_blocks"] + state.workers["cached_blocks"] == s["kv_blocks"]).all()
    assert s["num_transfers"] == 0
    assert (done["first_token_s"] <= done["finish_s"]).all()


@few
@given(memory_cases)
def test_memory_under_any_decisions(case):
    checked_run(case)


@few
@given(cache_cases)
def test_prefix_caches(case):
    checked_run(case)


@few
@given(disaggregated_cases)
def test_pools(case):
    checked_run(case)


@few
@given(parallel_cases)
def test_helpers(case):
    checked_run(case)


@few
@given(mixed_cases)
def test_everything_at_once(case):
    checked_run(case)


@few
@given(closed_cases)
def test_closed_loops(case):
    checked_run(case)
