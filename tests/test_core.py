"""llm_env/core.py: toy traces with every time worked out by hand. S(b) = 10 ms + b x 1 ms unless a test says so."""

from __future__ import annotations

import numpy as np
import pytest
from toy import check_all, running_of, toy_requests, toy_scenario, toy_state

from llm_env.build import enlarge, load, new_states, single
from llm_env.core import step
from llm_env.dtypes import ACTIVE, DRAINED, FINISHED, FUTURE, HORIZON, NEEDS_ROOM, NEVER, RUNNING, WAITING
from llm_env.records import decision, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.nojit]


def drain(state, d, max_steps=200):
    """Repeats a decision until the end; the times of all decisions."""
    times_s = []
    while state.system[0]["phase"] == ACTIVE:
        times_s.append(float(state.system[0]["now_s"]))
        step(state, d)
        check_all(state)
        assert len(times_s) < max_steps
    return times_s


def times(state, name):
    return state.requests[name].tolist()


def test_one_request_alone():
    # t = 1.000: prefill of 5 tokens, S = 15 ms
    # t = 1.015: first token; a decode, S = 11 ms
    # t = 1.026: second token; a decode
    # t = 1.037: third token, finished
    state = toy_state([(1.0, 5, 3)], record=True)
    assert drain(state, decision(100)) == pytest.approx([1.0, 1.015, 1.026])
    r, s = state.requests[0], state.system[0]
    assert s["phase"] == DRAINED
    assert (r["status"], r["emitted_tokens"], r["computed_tokens"]) == (FINISHED, 3, 7)
    assert r["first_scheduled_s"] == 1.0
    assert r["first_token_s"] == pytest.approx(1.015)
    assert r["finish_s"] == r["last_token_s"] == pytest.approx(1.037)
    assert r["max_tbt_s"] == pytest.approx(0.011)
    assert (s["prefill_done"], s["decode_done"]) == (5, 2)  # 5 + 3 - 1 tokens of work
    assert s["busy_s"] == pytest.approx(0.037)
    log = state.batch_log[: s["num_batches"]]
    assert log["start_s"].tolist() == pytest.approx([1.0, 1.015, 1.026])
    assert log["end_s"].tolist() == pytest.approx([1.015, 1.026, 1.037])
    assert log["prefill_tokens"].tolist() == [5, 0, 0]
    assert log["decode_tokens"].tolist() == [0, 1, 1]
    gaps = state.gap_log[: s["num_gaps"]]
    assert np.repeat(gaps["gap_s"], gaps["count"]).tolist() == pytest.approx([0.011, 0.011])


def test_one_output_token_needs_no_decode():
    state = toy_state([(0.0, 5, 1)])
    assert drain(state, decision(100)) == [0.0]
    r = state.requests[0]
    assert r["first_token_s"] == r["finish_s"] == pytest.approx(0.015)
    assert np.isnan(r["max_tbt_s"])


def test_two_requests_in_chunks_of_a_budget_of_6():
    # t =  0: A prefills 6 of 10, S = 16 ms; B arrives at 1 ms and waits
    # t = 16: A 4, B 2 of 8, S = 16 ms
    # t = 32: A's first token; A decodes, B 5, S = 16 ms
    # t = 48: A's second token; A decodes, B 1, S = 12 ms
    # t = 60: A's third and last token, B's first; B decodes, S = 11 ms
    # t = 71: B finished
    state = toy_state([(0.0, 10, 3), (0.001, 8, 2)])
    assert drain(state, decision(6)) == pytest.approx([0.0, 0.016, 0.032, 0.048, 0.060])
    assert times(state, "first_scheduled_s") == pytest.approx([0.0, 0.016])
    assert times(state, "first_token_s") == pytest.approx([0.032, 0.060])
    assert times(state, "finish_s") == pytest.approx([0.060, 0.071])
    assert times(state, "max_tbt_s") == pytest.approx([0.016, 0.011])
    # the queue held one request from 1 to 16 ms; step_queue of the first step is that area
    state = toy_state([(0.0, 10, 3), (0.001, 8, 2)])
    step(state, decision(6))
    assert state.system[0]["step_queue"] == pytest.approx(0.015)


def test_free_tokens_cost_nothing():
    # S(b) = 10 ms + max(0, b - 4) ms: 5 tokens take 11 ms, a decode 10 ms
    state = toy_state([(0.0, 5, 3)], free_tokens=4)
    drain(state, decision(100))
    assert state.requests[0]["finish_s"] == pytest.approx(0.031)


def test_a_hold_ends_with_an_arrival_or_when_it_is_over():
    state = toy_state([(0.0, 5, 1), (0.2, 5, 1)])
    hold = decision(100, hold_s=0.5)
    asked = []
    for _ in range(3):
        step(state, hold)
        asked.append(float(state.system[0]["now_s"]))
    assert asked == pytest.approx([0.2, 0.7, 1.2])  # the arrival, then twice the hold itself
    assert not state.workers[0]["busy"]
    step(state, decision(100))  # both at once: S(10) = 20 ms
    assert times(state, "first_token_s") == pytest.approx([1.22, 1.22])


def test_a_hold_is_cut_at_the_systems_limit():
    state = toy_state([(0.0, 5, 1)])  # max_hold is 1 s
    step(state, decision(100, hold_s=50.0))
    assert state.system[0]["now_s"] == pytest.approx(1.0)


def test_a_decision_that_dispatches_nothing_is_a_hold_to_the_limit():
    state = toy_state([(0.0, 5, 1), (0.4, 5, 1)])
    step(state, decision(100, prefill_tokens=0))
    assert state.system[0]["now_s"] == pytest.approx(0.4)
    step(state, decision(100, prefill_tokens=0))
    assert state.system[0]["now_s"] == pytest.approx(1.4)
    assert state.system[0]["epoch"] == 2


def test_a_hold_ends_with_another_workers_completion():
    # t =  0: worker 0 prefills A (10 tokens, S = 20 ms); worker 1 holds with B waiting
    # t = 20: A is done; worker 1 is asked too, as its hold ends with the completion
    state = toy_state([(0.0, 10, 1), (0.0, 5, 1)], workers=2)
    step(state, decision(100, max_running=1))
    assert (state.system[0]["worker"], state.system[0]["now_s"]) == (1, 0.0)
    step(state, decision(100, hold_s=0.9))
    assert state.system[0]["now_s"] == pytest.approx(0.020)
    asked = int(state.system[0]["worker"])
    step(state, decision(100, hold_s=0.9))
    assert {asked, int(state.system[0]["worker"])} == {0, 1}
    assert state.system[0]["now_s"] == pytest.approx(0.020)


def test_two_workers_pull_from_one_queue():
    # t =  0: worker 0 takes A (10 tokens, 20 ms), worker 1 takes B (20 tokens, 30 ms); C waits
    # t = 20: worker 0 takes C (5 tokens, 15 ms), finished at 35 ms
    state = toy_state([(0.0, 10, 1), (0.0, 20, 1), (0.0, 5, 1)], workers=2)
    assert drain(state, decision(100, max_running=1)) == pytest.approx([0.0, 0.0, 0.020])
    assert times(state, "worker") == [0, 1, 0]
    assert times(state, "finish_s") == pytest.approx([0.020, 0.030, 0.035])
    assert state.workers["iteration"].tolist() == [2, 1]


def test_eviction_and_recomputation():
    # 3 blocks of 4 tokens; A needs 4 + 5 - 1 = 8 tokens, B 4 + 4 - 1 = 7 tokens: 2 blocks each
    # t =  0: both prefill 4 tokens, 1 block each, S(8) = 18 ms
    # t = 18: A's fifth token of KV takes the last block; B finds none and is evicted with 1 token made. S(1) = 11 ms
    # t = 29, 40, 51: A decodes alone: B's 5 tokens to prefill again want 2 blocks, 1 is free
    # t = 62: A finished with 5 tokens; B prefills 5 tokens again, S(5) = 15 ms
    # t = 77: that emits B's second token, a gap of 77 - 18 = 59 ms; then 88 and 99 ms
    state = toy_state([(0.0, 4, 5), (0.0, 4, 4)], blocks=3)
    asked = drain(state, decision(100))
    assert asked == pytest.approx([0.0, 0.018, 0.029, 0.040, 0.051, 0.062, 0.077, 0.088])
    assert times(state, "first_token_s") == pytest.approx([0.018, 0.018])
    assert times(state, "finish_s") == pytest.approx([0.062, 0.099])
    assert times(state, "max_tbt_s") == pytest.approx([0.011, 0.059])
    assert times(state, "evictions") == [0, 1]
    assert times(state, "first_scheduled_s") == [0.0, 0.0]
    s = state.system[0]
    assert (s["num_evictions"], s["prefill_done"], s["decode_done"]) == (1, 4 + 4 + 5, 4 + 2)


def test_a_batch_that_only_evicted_is_asked_for_again_at_once():
    # 4 blocks of 4 tokens. Request 0 gets 8 of its 14 prompt tokens (2 blocks), request 1 all 8 (2 blocks): 26 ms.
    # Then request 1 wants a block to decode, finds none and evicts itself; nothing may be prefilled. The worker is
    # idle with work at hand, so it must not sleep until the hold limit.
    state = toy_state([(0.0, 14, 2), (0.0, 8, 3)], blocks=4)
    step(state, decision(100, chunk_tokens=8))
    assert running_of(state) == [0, 1]
    step(state, decision(100, prefill_tokens=0))
    assert state.requests[1]["status"] == WAITING
    assert state.system[0]["now_s"] == pytest.approx(0.026)
    assert state.system[0]["phase"] == ACTIVE


def test_the_horizon_stops_the_clock_in_the_middle_of_a_batch():
    # tokens at 15, 26, 37 and 48 ms; the next would come at 59 ms. Request 1 arrives at 49 ms, request 2 too late.
    state = toy_state([(0.0, 5, 100), (0.049, 5, 1), (0.060, 5, 1)], horizon_s=0.050)
    drain(state, decision(100))
    s = state.system[0]
    assert s["phase"] == HORIZON
    assert s["now_s"] == 0.050
    assert times(state, "status") == [RUNNING, WAITING, FUTURE]
    assert state.requests[0]["emitted_tokens"] == 4
    assert state.requests[0]["last_token_s"] == pytest.approx(0.048)
    assert times(state, "first_token_s")[1:] == [NEVER, NEVER]


def test_an_empty_workload_is_drained_before_the_first_decision():
    scenario = toy_scenario()
    state = single(load(new_states(scenario, 1, 1), 0, toy_requests([(0.0, 1, 1)], scenario)[:0], 0))
    assert state.system[0]["phase"] == DRAINED


def test_the_clock_starts_at_the_first_arrival():
    state = toy_state([(3.0, 1, 1)])
    assert (state.system[0]["now_s"], state.system[0]["num_waiting"]) == (3.0, 1)


def test_an_arrival_during_a_batch_does_not_interrupt_it():
    # t = 0: A, S(20) = 30 ms; B arrives at 10 ms and starts at 30 ms
    state = toy_state([(0.0, 20, 1), (0.010, 5, 1)])
    drain(state, decision(100))
    assert times(state, "first_scheduled_s") == pytest.approx([0.0, 0.030])


# ---- room, snapshots, seeds ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("short", ["noise", "log"])
def test_a_step_without_room_does_nothing_and_goes_on_when_there_is_some(short):
    scenario = toy_scenario(noise="exponential" if short == "noise" else "none", workers=2)
    requests = toy_requests([(0.01 * k, 7, 6) for k in range(12)], scenario)

    def run(cut):
        states = load(new_states(scenario, 1, 12, record=True), 0, requests, 5)
        if cut and short == "noise":
            states = states._replace(noise=states.noise[:, :, :3].copy())
        elif cut:
            states = states._replace(batch_log=states.batch_log[:, :4].copy())
        stops = 0
        while single(states).system[0]["phase"] == ACTIVE:
            before = snapshot(single(states))
            step(single(states), decision(10))
            if single(states).system[0]["phase"] == NEEDS_ROOM:
                stops += 1
                assert all(
                    np.array_equal(a, b)
                    for name, a, b in zip(before._fields, before, single(states), strict=True)
                    if name not in ("system", "requests")  # NaN is not equal to itself
                )
                states = enlarge(states, np.array([5]))
        return stops, single(states)

    (stops, cut), (no_stops, whole) = run(True), run(False)
    assert stops > 0
    assert no_stops == 0
    assert cut.requests.tobytes() == whole.requests.tobytes()
    count = whole.system[0]["num_batches"]
    assert cut.batch_log[:count].tobytes() == whole.batch_log[:count].tobytes()


def test_continuing_from_a_snapshot_gives_the_same_bytes():
    state = toy_state([(0.01 * k, 3 + 5 * (k % 4), 9) for k in range(20)], blocks=16, workers=2, noise="exponential")
    for _ in range(15):
        step(state, decision(12, order=4))
    copy = snapshot(state)
    drain(state, decision(12, order=4))
    assert copy.system[0]["phase"] == ACTIVE, "the run changed its snapshot"
    drain(copy, decision(12, order=4))
    for name, one, other in zip(state._fields, state, copy, strict=True):
        assert one.tobytes() == other.tobytes(), name


def test_noise_depends_on_the_seed_and_on_nothing_else():
    rows = [(0.01 * k, 6, 5) for k in range(10)]
    ends = [toy_state(rows, seed=seed, noise="exponential") for seed in (1, 1, 2)]
    for state in ends:
        drain(state, decision(10))
    one, same, other = (state.requests.tobytes() for state in ends)
    assert one == same
    assert one != other
