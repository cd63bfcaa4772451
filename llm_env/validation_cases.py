"""What must hold exactly: recursions and identities on sample paths, the best of a tiny instance, and the bound that no
policy passes. Each check is a function that gives a Row; the tests call the same ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from baselines import POLICIES, make_policy
from llm_env import theory
from llm_env.bounds import slo_bound
from llm_env.build import load, new_states, single
from llm_env.config import KVSettings, Scenario, SLOClass, SLOSettings, SystemSettings
from llm_env.core import step
from llm_env.dtypes import ACTIVE, FINISHED, SLO_RULES
from llm_env.metrics import slo_marks
from llm_env.optimum import optimum
from llm_env.records import State
from llm_env.rollout import rollout
from llm_env.simulate import simulate
from llm_env.validation_policies import one_by_one
from llm_env.validation_rows import (
    EXACT,
    FAILED,
    OK,
    SETUP_S,
    STANDARD_ERRORS,
    Case,
    Row,
    exact_row,
    fact_row,
    mixture,
    random_workload,
    seconds,
    system,
    workload,
    worst,
)
from llm_env.view import make_view
from llm_env.workload import draw_noise


# ---- recursions ----------------------------------------------------------------------------------------------------
def lindley(seed: int) -> Row:
    """One request at a time: first tokens and ends of every request."""
    requests = random_workload(3000, 0.6, seed)
    first = seconds(requests["prompt_tokens"])
    service = first + (requests["output_tokens"] - 1) * SETUP_S
    starts = theory.lindley_starts(requests["arrival_s"], service)
    done = simulate(system(), requests, "fcfs").requests
    found = np.concatenate([done["first_token_s"], done["finish_s"]])
    return exact_row("one server, Lindley", found, np.concatenate([starts + first, starts + service]))


def kiefer_wolfowitz(workers: int) -> Row:
    """Several workers, one queue: starts and ends of every request."""
    requests = random_workload(3000, 0.6 * workers, workers)
    service = seconds(requests["prompt_tokens"]) + (requests["output_tokens"] - 1) * SETUP_S
    starts = theory.kiefer_wolfowitz_starts(requests["arrival_s"], service, workers)
    done = simulate(system(workers), requests, "fcfs").requests
    found = np.concatenate([done["first_scheduled_s"], done["finish_s"]])
    return exact_row(f"{workers} workers, Kiefer-Wolfowitz", found, np.concatenate([starts, starts + service]))


def gated() -> Row:
    """Whole prompts in batches of up to 4, one output token: ends of every request."""
    requests, most = random_workload(3000, 12.0, 0), 4
    requests["output_tokens"] = 1
    finish = theory.gated_finishes(requests["arrival_s"], requests["prompt_tokens"], most, seconds)
    done = simulate(system(), requests, "orca", {"max_running": most}).requests
    return exact_row("batches of whole prompts, gated", done["finish_s"], finish)


def tandem_system() -> Scenario:
    """A prefill worker of rate 1 that feeds a decode worker of rate 1.25, exponential; the link takes no time."""
    base = system(workers=1, setup_ms=1000.0, per_token_ms=0.0, setup_noise="exponential", max_running=16_384)
    settings = base.system.model_dump(exclude_none=True)
    settings |= {"workers": 2, "layout": "disaggregated", "prefill_workers": 1, "speeds": (1.0, 1.25)}
    settings["link"] = {"latency_ms": 0.0, "gbytes_per_s": "unlimited"}
    return base.model_copy(update={"system": SystemSettings.model_validate(settings)})


def tandem(seed: int = 0) -> Row:
    """A prefill worker that feeds a decode worker: ends of every request from the ends of its prefill."""
    case, scenario, n = "prefill feeds decode, tandem", tandem_system(), 3000
    rng = np.random.default_rng(seed)
    requests = workload(np.cumsum(rng.exponential(1 / 0.7, n)), 1, 2)
    done = rollout(scenario, one_by_one(scenario.system.max_running), requests, seed).requests[:n]
    second = draw_noise(seed, 1, 0, n)[:, 0] / 1.25
    return exact_row(case, done["finish_s"], theory.tandem_finishes(done["first_token_s"], second))


# ---- identities ----------------------------------------------------------------------------------------------------
def _run(policy: str, workers: int) -> State:
    requests = random_workload(300, 1.5, 5)
    return simulate(system(workers), requests, policy, {"token_budget": 512} if policy == "vllm-v1" else {})


def tokens_and_time(policy: str, workers: int) -> Row:
    """Every token of work is done once, and the time of the batches is S of their tokens."""
    state = _run(policy, workers)
    final, done = state.system[0], state.requests
    log = state.batch_log[: final["num_batches"]]
    work = done["prompt_tokens"] + done["output_tokens"] - 1
    durations = seconds(log["prefill_tokens"] + log["decode_tokens"])
    gaps = state.gap_log["count"][: final["num_gaps"]].sum()
    counted = {
        int(final["prefill_done"] + final["decode_done"]),
        int(log["prefill_tokens"].sum() + log["decode_tokens"].sum()),
    }
    case = f"tokens and busy time, {policy}, {workers} workers"
    if (done["status"] != FINISHED).any() or gaps != (done["output_tokens"] - 1).sum():
        return fact_row(case, "all done", "requests or gaps are missing", False)
    if counted != {int(work.sum())}:
        return fact_row(case, f"{work.sum()} tokens", f"{sorted(counted)} tokens", False)
    if np.abs(log["end_s"] - log["start_s"] - durations).max() > 1e-9:
        return fact_row(case, "S(b) s", "a batch is of another length", False)
    return exact_row(case, final["busy_s"], durations.sum())


def littles_law() -> Row:
    """Integral of the number in the system = sum of the sojourn times.

    Orca runs every admitted request in every batch, so the time in the system is the time in the queue, which the
    kernel adds up step by step, and the time in batches.
    """
    scenario, requests = system(), random_workload(200, 1.5, 6)
    states = load(new_states(scenario, 1, len(requests), record=True), 0, requests, 0)
    state, decide = single(states), make_policy("orca")
    waiting = float(state.system[0]["step_queue"])
    while state.system[0]["phase"] == ACTIVE:
        step(state, decide(make_view(state)))
        waiting += float(state.system[0]["step_queue"])
    done, log = state.requests, state.batch_log[: state.system[0]["num_batches"]]
    running = ((log["end_s"] - log["start_s"]) * log["num_requests"]).sum()
    wanted = [(done["first_scheduled_s"] - done["arrival_s"]).sum(), (done["finish_s"] - done["arrival_s"]).sum()]
    return exact_row("Little's law: queue and system", [waiting, waiting + running], wanted)


def gap_alone() -> Row:
    """Run to completion: every gap is the setup time."""
    state = simulate(system(), random_workload(300, 1.0, 7), "fcfs")
    gaps = state.gap_log["gap_s"][: state.system[0]["num_gaps"]]
    return exact_row("run to completion, every gap is c", gaps, np.full(len(gaps), SETUP_S), tolerance=1e-7)


def longest_gap(budget: int) -> Row:
    """Sarathi with no more decodes than its budget: no gap is longer than a batch of the budget."""
    requests = random_workload(600, 2.0, 8)
    state = simulate(system(max_running=budget), requests, "sarathi", {"token_budget": budget})
    longest = float(state.gap_log["gap_s"][: state.system[0]["num_gaps"]].max())
    limit = float(seconds(budget))
    got, fine = f"{1e3 * longest:.6g} ms", longest <= limit + 1e-9
    return fact_row(f"Sarathi, budget {budget}: longest gap", f"<= {1e3 * limit:.6g} ms", got, fine)


def memory_time() -> Row:
    """KV tokens x seconds of the decodes that run alone: c (L(B-1) + B(B-1)/2) a request, the least of any policy."""
    requests = random_workload(300, 1.0, 9)
    base = system()
    settings = base.system.model_copy(update={"kv": KVSettings(blocks=2000, block_tokens=1)})
    state = simulate(base.model_copy(update={"system": settings}), requests, "fcfs")
    log = state.batch_log[: state.system[0]["num_batches"]]
    decodes = log[log["decode_tokens"] > 0]
    held = ((decodes["end_s"] - decodes["start_s"]) * decodes["kv_used_blocks"]).sum()
    prompt, output = requests["prompt_tokens"], requests["output_tokens"]
    wanted = SETUP_S * (prompt * (output - 1) + output * (output - 1) / 2).sum()
    return exact_row("run to completion, KV of decodes", held, wanted, "token s")


# ---- the best of a tiny instance -----------------------------------------------------------------------------------
TINY_TTFT_MS, TINY_E2E_MS = 470.2, 860.0
TINY_POLICIES = {  # parameters, sums of TTFT and E2E in ms, worked out by hand
    "sarathi": ({"token_budget": 256}, 587.2, 963.3),
    "vllm-v0": ({"max_batched_tokens": 256}, 541.7, 963.3),
    "request-level": ({"token_budget": 256}, 814.7, 1133.2),
}


def tiny_workload() -> np.ndarray:
    """Four requests whose best schedule is known."""
    return workload([0.0, 0.02, 0.06, 0.1], [256, 64, 128, 64], [3, 2, 4, 2])


def tiny_best() -> list[Row]:
    """The search finds the known best."""
    rows = []
    for objective, best_ms in (("ttft", TINY_TTFT_MS), ("e2e", TINY_E2E_MS)):
        found_ms = 1e3 * optimum(tiny_workload(), system(), objective, token_budget=256, quantum=64)
        rows.append(exact_row(f"tiny instance, best sum of {objective.upper()}", found_ms, best_ms, "ms"))
    return rows


def tiny_policy(policy: str) -> Row:
    """A policy's sums of TTFT and E2E on it."""
    parameters, ttft_ms, e2e_ms = TINY_POLICIES[policy]
    found = _sums_s(simulate(system(), tiny_workload(), policy, parameters).requests)
    row = exact_row(f"tiny, {policy}: TTFT, E2E", 1e3 * found, [ttft_ms, e2e_ms])
    return replace(row, expected=f"{ttft_ms}, {e2e_ms} ms", got=f"{1e3 * found[0]:.6g}, {1e3 * found[1]:.6g} ms")


def _sums_s(done: np.ndarray) -> np.ndarray:
    return np.array([(done[name] - done["arrival_s"]).sum() for name in ("first_token_s", "finish_s")])


def small_workload(seed: int) -> tuple[Scenario, np.ndarray]:
    """Three requests of a few tokens on a slow machine, so that every policy's chunks are among those tried."""
    rng = np.random.default_rng(seed)
    slo = SLOSettings(rule="deadline", classes=(SLOClass(ttft_ms=120.0, tbt_ms=60.0),))
    scenario = system(slo=slo, setup_ms=20.0, per_token_ms=10.0, free_tokens=1)
    arrival_s = np.sort(rng.uniform(0.0, 0.15, 3))
    return scenario, workload(arrival_s, rng.integers(1, 5, 3), rng.integers(1, 4, 3), 0.12, 0.06)


def never_beaten(seed: int) -> Row:
    """No policy does better than the best of a random instance, in sums of times or in misses, or passes the bound."""
    scenario, requests = small_workload(seed)
    best = [optimum(requests, scenario, objective) for objective in ("ttft", "e2e", "misses")]
    bounds = [slo_bound(requests, scenario, rule).num_met for rule in SLO_RULES]
    beaten, least = [], np.full(3, np.inf)
    for policy in POLICIES:
        for parameters in _parameters(policy):
            done = simulate(scenario, requests, policy, parameters).requests
            met = [int(slo_marks(done, rule).sum()) for rule in SLO_RULES]
            found = np.array([*_sums_s(done), len(requests) - max(met)])
            least = np.minimum(least, found)
            if (found < np.array(best) - EXACT).any() or any(m > b for m, b in zip(met, bounds, strict=True)):
                beaten.append(policy)
    if len(requests) - best[2] > min(bounds):
        beaten.append("the search passes the bound")
    texts = [f"{1e3 * a:.4g}, {1e3 * b:.4g} ms, {c:.0f}" for a, b, c in (best, least.tolist())]
    case = f"random instance {seed}, best of all policies"
    return fact_row(case, f">= {texts[0]}", texts[1], not beaten, ", ".join(dict.fromkeys(beaten)))


def all_never_beaten(instances: int) -> Row:
    """One row for so many random instances."""
    rows = [never_beaten(seed) for seed in range(instances)]
    wrong = [row for row in rows if row.verdict != OK]
    got = f"{len(wrong)} times" if wrong else "never"
    case = f"{instances} random instances: best beaten"
    return fact_row(case, "never", got, not wrong, wrong[0].error if wrong else "")


def _parameters(policy: str) -> list[dict]:
    if policy == "random":
        return [{"seed": seed} for seed in range(4)]
    if policy in ("vllm-v1", "sarathi", "sarathi-spf", "moore-hodgson"):
        return [{}, {"token_budget": 3}, {"token_budget": "slo"}]
    return [{}]


# ---- the bound -----------------------------------------------------------------------------------------------------
BOUND_RATES = {10.0: 0.9998, 12.0: 0.9956, 15.0: 0.9678}  # requests/s: the value of one sample, TTFT 1 s, gap 0.2 s
BOUND_REQUESTS, BOUND_SAMPLES = 10_000, 20
BOUND_POLICIES = {"sarathi": {}, "sarathi-spf": {}, "moore-hodgson": {"token_budget": 512}}


def bound_values(rate_per_s: float) -> list[Row]:
    """The bound on samples of the mixture: the known value is one more of them, and no policy of budget 512 is above.

    The known value is of one sample: it is compared with the spread of samples, not with the error of their mean.
    """
    slo = SLOSettings(rule="max", classes=(SLOClass(ttft_ms=1000.0, tbt_ms=200.0),))
    scenario, expected, shares, best = system(max_running=512, slo=slo), BOUND_RATES[rate_per_s], [], []
    for seed in range(BOUND_SAMPLES):
        rng = np.random.default_rng(seed)
        arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, BOUND_REQUESTS))
        requests = workload(arrival_s, *mixture(rng, BOUND_REQUESTS), 1.0, 0.2)
        shares.append(slo_bound(requests, scenario, max_batch_tokens=512).share)
        if seed < 2:
            ends = [rollout(scenario, make_policy(p, **k), requests, 0).requests for p, k in BOUND_POLICIES.items()]
            best.append(max(slo_marks(done, "max").mean() for done in ends))
    spread = float(np.std(shares, ddof=1))
    off = (np.mean(shares) - expected) / (spread * np.sqrt(1 + 1 / BOUND_SAMPLES))
    name = f"SLO bound at {rate_per_s:g}/s"
    got = f"{np.mean(shares):.4f}, s.d. {spread:.4f}"
    share = abs(off) / STANDARD_ERRORS
    value = Row(name, f"{expected:.4f}", got, f"{off:+.1f} s.d.", OK if share <= 1 else FAILED, share, float(off))
    fine = all(b <= s for b, s in zip(best, shares, strict=False))
    return [value, fact_row(f"best of 3 policies at {rate_per_s:g}/s", f"<= {shares[0]:.4f}", f"{best[0]:.4f}", fine)]


# ---- all of them ---------------------------------------------------------------------------------------------------
def exact_cases() -> list[Case]:
    """The cases of this file, in the order of the table."""

    def tokens() -> list[Row]:
        rows = [tokens_and_time(policy, workers) for policy in POLICIES for workers in (1, 3)]
        return [worst(f"tokens and busy time, {len(POLICIES)} policies", rows)]

    path, tiny, bound = "sample paths", "tiny instance", "bound"
    return [
        Case("lindley", path, True, lambda: [worst("one server, Lindley, 3 seeds", [lindley(k) for k in range(3)])]),
        Case("kiefer-wolfowitz", path, True, lambda: [kiefer_wolfowitz(k) for k in (2, 4, 7)]),
        Case("gated", path, True, lambda: [gated()]),
        Case("tandem", path, True, lambda: [tandem()]),
        Case("tokens", path, True, tokens),
        Case("little", path, True, lambda: [littles_law()]),
        Case("gap alone", path, True, lambda: [gap_alone()]),
        Case("longest gap", path, True, lambda: [longest_gap(budget) for budget in (128, 512)]),
        Case("memory", path, True, lambda: [memory_time()]),
        Case("tiny best", tiny, True, tiny_best),
        Case("tiny policies", tiny, True, lambda: [tiny_policy(policy) for policy in TINY_POLICIES]),
        Case("never beaten", tiny, True, lambda: [all_never_beaten(20)]),
        *(Case(f"bound {r:g}", bound, r == 15.0, lambda r=r: bound_values(r)) for r in BOUND_RATES),
    ]
