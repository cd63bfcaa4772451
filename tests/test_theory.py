"""What queueing theory knows exactly: recursions on every sample path, identities, and stationary closed forms.

Stationary values: mean over 30 replications with the first tenth deleted, tolerance 4 standard errors of that mean.
Sources: Lindley (1952); Kiefer and Wolfowitz (1955); Kleinrock, "Queueing Systems" I (1975); Little (1961).
"""

from __future__ import annotations

import numpy as np
import pytest

from baselines import make_policy
from llm_env.build import load, new_states, single
from llm_env.config import EpisodeSettings, Scenario, ServiceSettings, SystemSettings
from llm_env.core import step
from llm_env.metrics import EVERYTHING, is_unstable
from llm_env.records import ACTIVE, FINISHED
from llm_env.rollout import rollout
from llm_env.simulate import simulate
from llm_env.view import make_view
from llm_env.workload import blank_requests

SETUP_S, PER_TOKEN_S, FREE_TOKENS = 0.0455, 0.0003, 64
ENDLESS = EpisodeSettings(warmup_s=0.0, arrivals_s=1e9, horizon_s=1e9)


def seconds(tokens):
    return SETUP_S + PER_TOKEN_S * np.maximum(0, np.asarray(tokens) - FREE_TOKENS)


def system(workers=1, max_running=128, **service):
    settings = SystemSettings(workers=workers, max_running=max_running, service=ServiceSettings(**service))
    return Scenario(system=settings, episode=ENDLESS)


def workload(arrival_s, prompt, output):
    requests = blank_requests(len(arrival_s))
    requests["arrival_s"], requests["prompt_tokens"], requests["output_tokens"] = arrival_s, prompt, output
    requests["ttft_target_s"], requests["tbt_target_s"] = 2.0, 0.15
    return requests


def random_workload(n, rate_per_s, seed):
    rng = np.random.default_rng(seed)
    return workload(np.cumsum(rng.exponential(1 / rate_per_s, n)), rng.integers(1, 900, n), rng.integers(1, 60, n))


# ---- every sample path ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_one_server_breaks_lindleys_recursion(seed):
    requests = random_workload(3000, 0.6, seed)
    first = seconds(requests["prompt_tokens"])
    service = first + (requests["output_tokens"] - 1) * SETUP_S
    wait, waits = 0.0, []
    for gap, work in zip(np.diff(requests["arrival_s"], append=np.inf), service, strict=True):
        waits.append(wait)
        wait = max(0.0, wait + work - gap)
    done = simulate(system(), requests, "fcfs").requests
    starts = requests["arrival_s"] + waits
    np.testing.assert_allclose(done["first_token_s"], starts + first, rtol=1e-9)
    np.testing.assert_allclose(done["finish_s"], starts + service, rtol=1e-9)


@pytest.mark.parametrize("workers", [2, 4, 7])
def test_k_servers_break_the_kiefer_wolfowitz_recursion(workers):
    requests = random_workload(3000, 0.6 * workers, workers)
    service = seconds(requests["prompt_tokens"]) + (requests["output_tokens"] - 1) * SETUP_S
    free_s, starts = np.zeros(workers), []
    for arrival, work in zip(requests["arrival_s"], service, strict=True):
        start = max(arrival, free_s[0])
        starts.append(start)
        free_s[0] = start + work
        free_s.sort()
    done = simulate(system(workers), requests, "fcfs").requests
    np.testing.assert_allclose(done["first_scheduled_s"], starts, rtol=1e-9)
    np.testing.assert_allclose(done["finish_s"], np.array(starts) + service, rtol=1e-9)


def test_whole_prompts_in_batches_break_the_gated_recursion():
    requests = random_workload(3000, 12.0, 0)
    requests["output_tokens"], most = 1, 4
    arrival, finish, k, free_s = requests["arrival_s"], [], 0, 0.0
    while k < len(requests):
        start = max(free_s, arrival[k])
        members = min(most, int(np.searchsorted(arrival, start, side="right")) - k)
        free_s = start + seconds(requests["prompt_tokens"][k : k + members].sum())
        finish += [free_s] * members
        k += members
    done = simulate(system(), requests, "orca", {"max_running": most}).requests
    np.testing.assert_allclose(done["finish_s"], finish, rtol=1e-9)


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [
        ("fcfs", {}),
        ("request-level", {}),
        ("orca", {}),
        ("vllm-v0", {}),
        ("vllm-v1", {"token_budget": 512}),
        ("sarathi", {}),
        ("sarathi-spf", {}),
        ("decode-first", {}),
        ("slack-fill", {}),
        ("moore-hodgson", {}),
        ("random", {}),
    ],
)
@pytest.mark.kernel
@pytest.mark.parametrize("workers", [1, 3])
def test_tokens_or_busy_time_are_lost_or_made_up(policy, parameters, workers):
    requests = random_workload(300, 1.5, 5)
    state = simulate(system(workers), requests, policy, parameters)
    final, done = state.system[0], state.requests
    log = state.batch_log[: final["num_batches"]]
    assert (done["status"] == FINISHED).all()
    work = done["prompt_tokens"] + done["output_tokens"] - 1
    assert final["prefill_done"] + final["decode_done"] == work.sum()
    assert log["prefill_tokens"].sum() + log["decode_tokens"].sum() == work.sum()
    assert state.gap_log["count"][: final["num_gaps"]].sum() == (done["output_tokens"] - 1).sum()
    durations = seconds(log["prefill_tokens"] + log["decode_tokens"])
    np.testing.assert_allclose(log["end_s"] - log["start_s"], durations, rtol=0, atol=1e-9)
    assert final["busy_s"] == pytest.approx(durations.sum(), rel=1e-9)


def test_littles_law_fails():
    # Orca runs every admitted request in every batch, so the time in the system is the time in the queue, which the
    # kernel adds up step by step, and the time in batches.
    scenario, requests = system(), random_workload(200, 1.5, 6)
    states = load(new_states(scenario, 1, len(requests), record=True), 0, requests, 0)
    state, decide, waiting = single(states), make_policy("orca"), 0.0
    waiting += state.system[0]["step_queue"]
    while state.system[0]["phase"] == ACTIVE:
        step(state, decide(make_view(state)))
        waiting += state.system[0]["step_queue"]
    done = state.requests
    log = state.batch_log[: state.system[0]["num_batches"]]
    assert waiting == pytest.approx((done["first_scheduled_s"] - done["arrival_s"]).sum(), rel=1e-9)
    running = ((log["end_s"] - log["start_s"]) * log["num_requests"]).sum()
    assert waiting + running == pytest.approx((done["finish_s"] - done["arrival_s"]).sum(), rel=1e-9)


def test_a_gap_of_a_request_that_runs_alone_is_not_the_setup_time():
    state = simulate(system(), random_workload(300, 1.0, 7), "fcfs")
    gaps = state.gap_log["gap_s"][: state.system[0]["num_gaps"]]
    np.testing.assert_allclose(gaps, SETUP_S, rtol=0, atol=1e-9)


@pytest.mark.parametrize("budget", [128, 512])
def test_a_gap_under_sarathi_is_longer_than_a_batch_of_the_budget(budget):
    requests = random_workload(600, 2.0, 8)
    state = simulate(system(max_running=budget), requests, "sarathi", {"token_budget": budget})
    assert state.gap_log["gap_s"][: state.system[0]["num_gaps"]].max() <= seconds(budget) + 1e-9


@pytest.mark.kernel
@pytest.mark.nojit
@pytest.mark.parametrize(
    ("policy", "parameters", "ttft_ms", "e2e_ms"),
    [
        ("sarathi", {"token_budget": 256}, 587.2, 963.3),
        ("vllm-v0", {"max_batched_tokens": 256}, 541.7, 963.3),
        ("request-level", {"token_budget": 256}, 814.7, 1133.2),
    ],
)
def test_the_tiny_instance_comes_out_differently(policy, parameters, ttft_ms, e2e_ms):
    requests = workload([0.0, 0.02, 0.06, 0.1], [256, 64, 128, 64], [3, 2, 4, 2])
    done = simulate(system(), requests, policy, parameters).requests
    assert 1e3 * (done["first_token_s"] - done["arrival_s"]).sum() == pytest.approx(ttft_ms, abs=1e-6)
    assert 1e3 * (done["finish_s"] - done["arrival_s"]).sum() == pytest.approx(e2e_ms, abs=1e-6)


# ---- stationary ----------------------------------------------------------------------------------------------------
UNIT = {"setup_ms": 0.0, "per_token_ms": 1000.0, "free_tokens": 0}  # one second a token
BATCH = {"setup_ms": 1000.0, "per_token_ms": 0.0}  # one second a batch
EXPONENTIAL_TOKENS, EXPONENTIAL_SETUP = {"per_token_noise": "exponential"}, {"setup_noise": "exponential"}


def one_token(rng, n):
    return 1, 1


def mixture(rng, n):
    return rng.choice((64, 256, 512), n, p=(0.5, 0.35, 0.15)), np.minimum(rng.geometric(0.1, n), 32)


def sojourn(done):
    return done["finish_s"] - done["arrival_s"]


def wait(done):
    return done["first_scheduled_s"] - done["arrival_s"]


def ttft(done):
    return done["first_token_s"] - done["arrival_s"]


def mean(values):
    return values.mean()


def p95(values):
    return np.quantile(values, 0.95)


def replications(scenario, policy, parameters, rate_per_s, lengths, measures, n, count=30):
    """(count, measures) float64: each measure of each replication, the first tenth of its requests left out."""
    decide, rows = make_policy(policy, **parameters), []
    for seed in range(count):
        rng = np.random.default_rng(seed + 1000)
        arrival = np.cumsum(rng.exponential(1 / rate_per_s, n))
        done = rollout(scenario, decide, workload(arrival, *lengths(rng, n)), seed).requests[n // 10 :]
        rows.append([statistic(times(done)) for statistic, times in measures])
    return np.array(rows)


CASES = {
    "M/M/1": (system(**UNIT, **EXPONENTIAL_TOKENS), "fcfs", {}, 0.7, one_token, 20_000, {
        (mean, sojourn): 1 / 0.3, (p95, sojourn): 9.98577}),
    "M/D/1": (system(**UNIT), "fcfs", {}, 0.7, one_token, 20_000, {
        (mean, sojourn): 2.16667, (p95, wait): 4.10290}),
    "M/M/2": (system(2, **UNIT, **EXPONENTIAL_TOKENS), "fcfs", {}, 1.6, one_token, 20_000, {(mean, sojourn): 2.77778}),
    "M/M/4": (system(4, **UNIT, **EXPONENTIAL_TOKENS), "fcfs", {}, 3.2, one_token, 20_000, {(mean, sojourn): 1.74554}),
    "batches of 2, exponential": (system(**BATCH, **EXPONENTIAL_SETUP), "orca", {"max_running": 2}, 1.6, one_token,
        20_000, {(mean, sojourn): 4.53499}),
    "batches of 4, exponential": (system(**BATCH, **EXPONENTIAL_SETUP), "orca", {"max_running": 4}, 3.2, one_token,
        20_000, {(mean, sojourn): 4.18062}),
    "batches of 2, fixed": (system(**BATCH), "orca", {"max_running": 2}, 1.6, one_token, 20_000, {
        (mean, sojourn): 2.31926}),
    "batches of 4, fixed": (system(**BATCH), "orca", {"max_running": 4}, 3.2, one_token, 20_000, {
        (mean, sojourn): 1.87954}),
    "batches of 400 tokens": (system(), "request-level", {"token_budget": 400}, 16.40465, lambda rng, n: (100, 1),
        20_000, {(mean, sojourn): 0.119209}),
    "run to completion": (system(), "fcfs", {}, 1.459255, mixture, 8_000, {
        (mean, ttft): 0.994567, (mean, sojourn): 1.388444, (p95, ttft): 3.4209}),
    "two exponential terms": (system(**EXPONENTIAL_SETUP, **EXPONENTIAL_TOKENS), "fcfs", {}, 7.759457,
        lambda rng, n: (256, 1), 20_000, {(mean, sojourn): 0.413820}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_stationary_value_is_more_than_four_standard_errors_off(name):
    scenario, policy, parameters, rate, lengths, n, expected = CASES[name]
    found = replications(scenario, policy, parameters, rate, lengths, list(expected), n)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert (error < 0.03 * found.mean(axis=0)).all(), "too wide to tell anything"
    assert (np.abs(found.mean(axis=0) - list(expected.values())) <= 4 * error).all(), (found.mean(axis=0), error)
    if name == "batches of 2, exponential":  # somebody joins a batch in service: the textbook's other queue
        assert abs(found.mean() - 3.84398) > 4 * error[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "parameters", "capacity_per_s", "n"),
    [
        ("sarathi", {"token_budget": 512, "max_running": 2048}, 11.1173, 20_000),
        ("request-level", {"token_budget": 512}, 0.66623, 20_000),
        ("fcfs", {}, 0.16982, 10_000),
    ],
)
def test_the_backlog_grows_below_capacity_or_not_above_it(policy, parameters, capacity_per_s, n):
    # n/S(n) and so on from L = 128, B = 129. Not here: vLLM v0's 10.2460, which holds if a batch decodes at most 512
    # requests while any number runs; v0 has no such limit, it bounds the running requests.
    for factor in (0.97, 1.03):
        arrival = np.arange(n) / (factor * capacity_per_s)
        state = simulate(system(max_running=2048), workload(arrival, 128, 129), policy, parameters)
        assert is_unstable(state, Scenario(), *EVERYTHING) == (factor > 1)
