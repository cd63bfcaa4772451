"""What holds in the long run: stationary means and quantiles, capacities, and curves of waiting against load.

A stationary value is the mean of REPLICATIONS independent runs with their first tenth deleted, and may be off by
STANDARD_ERRORS of that mean (Law, "Simulation Modeling and Analysis", 5th ed., 2015, section 9.5.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines import make_policy
from llm_env import theory
from llm_env.config import Scenario
from llm_env.metrics import EVERYTHING, is_unstable
from llm_env.rollout import rollout
from llm_env.validation_cases import tandem_system
from llm_env.validation_policies import alternating, one_by_one, priority
from llm_env.validation_rows import (
    MIXTURE_MOST,
    MIXTURE_PROMPTS,
    MIXTURE_SHARES,
    MIXTURE_STOP,
    PER_TOKEN_S,
    SETUP_S,
    STANDARD_ERRORS,
    Case,
    Point,
    Row,
    fact_row,
    mixture,
    seconds,
    statistic_row,
    system,
    workload,
)

REPLICATIONS = 30
Lengths = Callable[[np.random.Generator, int], tuple[Any, Any]]
Statistic = Callable[[np.ndarray], float]  # of REQUESTs


# ---- statistics of a run -------------------------------------------------------------------------------------------
def mean_sojourn(done: np.ndarray) -> float:
    return float((done["finish_s"] - done["arrival_s"]).mean())


def p95_sojourn(done: np.ndarray) -> float:
    return float(np.quantile(done["finish_s"] - done["arrival_s"], 0.95))


def mean_wait(done: np.ndarray) -> float:
    return float((done["first_scheduled_s"] - done["arrival_s"]).mean())


def p95_wait(done: np.ndarray) -> float:
    return float(np.quantile(done["first_scheduled_s"] - done["arrival_s"], 0.95))


def mean_ttft(done: np.ndarray) -> float:
    return float((done["first_token_s"] - done["arrival_s"]).mean())


def p95_ttft(done: np.ndarray) -> float:
    return float(np.quantile(done["first_token_s"] - done["arrival_s"], 0.95))


def mean_decoding(done: np.ndarray) -> float:
    return float((done["finish_s"] - done["first_token_s"]).mean())


def of_prompts(tokens: int) -> Statistic:
    """Mean wait of the requests with prompts of this length."""
    return lambda done: mean_wait(done[done["prompt_tokens"] == tokens])


# ---- systems -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stationary:
    """A system under Poisson arrivals and what theory says of it.

    Attributes:
        decide: makes the compiled policy.
        rate_per_s: of arrivals.
        lengths: draws prompt and output tokens.
        expected: name, statistic of a run, value by theory (seconds).
        n: requests of a replication.
        ms: show milliseconds.
        must_not: a value by another theory from which the first statistic has to be told apart, with its name.
    """

    scenario: Scenario
    decide: Callable[[], Any]
    rate_per_s: float
    lengths: Lengths
    expected: tuple[tuple[str, Statistic, float], ...]
    n: int = 20_000
    ms: bool = False
    must_not: tuple[str, float] | None = None


def one_token(rng: np.random.Generator, n: int) -> tuple[int, int]:
    return 1, 1


def prompts_of(tokens: int) -> Lengths:
    return lambda rng, n: (tokens, 1)


UNIT: dict[str, Any] = {"setup_ms": 0.0, "per_token_ms": 1000.0, "free_tokens": 0}  # one second a token
BATCH: dict[str, Any] = {"setup_ms": 1000.0, "per_token_ms": 0.0}  # one second a batch
TOKEN_NOISE: dict[str, Any] = {"per_token_noise": "exponential"}
SETUP_NOISE: dict[str, Any] = {"setup_noise": "exponential"}


def mm(servers: int, load: float) -> Stationary:
    """M/M/k: one token of exponential length per request."""
    rate = load * servers
    expected = [("sojourn", mean_sojourn, theory.mmk_sojourn(rate, 1.0, servers))]
    if servers == 1:
        expected.append(("P95 sojourn", p95_sojourn, theory.mm1_sojourn_quantile(rate, 1.0, 0.95)))
    scenario = system(servers, **UNIT, **TOKEN_NOISE)
    return Stationary(scenario, lambda: make_policy("fcfs"), rate, one_token, tuple(expected))


def md1(load: float) -> Stationary:
    """M/D/1: one token of a fixed length per request."""
    one = np.ones(1)
    expected = (
        ("sojourn", mean_sojourn, theory.mg1_wait(load, 1.0, 1.0) + 1.0),
        ("P95 wait", p95_wait, theory.mg1_wait_quantile(load, one, one, 0.95)),
    )
    return Stationary(system(**UNIT), lambda: make_policy("fcfs"), load, one_token, expected)


def batches(most: int, load: float, exponential: bool) -> Stationary:
    """Batches of up to `most`, a second each on average; whoever comes during a batch waits for the next."""
    rate = load * most
    value = theory.batch_sojourn(rate, most, lambda n: 1.0, exponential)
    scenario = system(**BATCH, **(SETUP_NOISE if exponential else {}))
    other = ("joining", theory.accessible_batch_sojourn(rate, most, 1.0))
    return Stationary(
        scenario,
        lambda: make_policy("orca", max_running=most),
        rate,
        one_token,
        (("sojourn", mean_sojourn, value),),
        must_not=other if exponential and most == 2 else None,
    )


def token_batches() -> Stationary:
    """Prompts of 100 tokens, at most 400 tokens a batch."""
    rate = 16.40465
    value = theory.batch_sojourn(rate, 4, lambda n: float(seconds(100 * n)))
    decide = lambda: make_policy("request-level", token_budget=400)  # noqa: E731
    expected = (("sojourn", mean_sojourn, value),)
    return Stationary(system(), decide, rate, prompts_of(100), expected, ms=True)


def run_to_completion() -> Stationary:
    """The mixture of the reference cases, one request at a time."""
    rate, output = 1.459255, np.arange(1, MIXTURE_MOST + 1)
    first, share = seconds(np.array(MIXTURE_PROMPTS)), np.array(MIXTURE_SHARES)
    weight = MIXTURE_STOP * (1 - MIXTURE_STOP) ** (output - 1)
    weight[-1] = (1 - MIXTURE_STOP) ** (MIXTURE_MOST - 1)
    service = (first[:, None] + (output - 1) * SETUP_S).ravel()
    weights = np.outer(share, weight).ravel()
    wait = theory.mg1_wait(rate, service @ weights, service**2 @ weights)
    expected = (
        ("mean TTFT", mean_ttft, float(wait + first @ share)),
        ("mean E2E", mean_sojourn, float(wait + service @ weights)),
        ("P95 TTFT", p95_ttft, theory.mg1_wait_quantile(rate, service, weights, 0.95, (first, share))),
    )
    return Stationary(system(), lambda: make_policy("fcfs"), rate, mixture, expected, n=8_000, ms=True)


def two_noises() -> Stationary:
    """Exponential setup and exponential time per token, drawn per batch: M/G/1 with their sum."""
    rate, c, a = 7.759457, SETUP_S, PER_TOKEN_S * (256 - 64)
    value = theory.mg1_wait(rate, c + a, 2 * (c * c + c * a + a * a)) + c + a
    scenario = system(**SETUP_NOISE, **TOKEN_NOISE)
    expected = (("sojourn", mean_sojourn, value),)
    return Stationary(scenario, lambda: make_policy("fcfs"), rate, prompts_of(256), expected, ms=True)


def cobham() -> Stationary:
    """Two classes of prompts, one request a batch, the short ones first."""
    rates, sizes = (8.0, 4.0), (64, 260)
    means = [float(seconds(size)) for size in sizes]
    waits = theory.cobham_waits(rates, means, [mean**2 for mean in means])
    share = rates[0] / sum(rates)
    expected = tuple((f"wait, {n} tokens", of_prompts(n), w) for n, w in zip(sizes, waits, strict=True))
    return Stationary(
        system(), priority, sum(rates), lambda rng, n: (np.where(rng.random(n) < share, *sizes), 1), expected, ms=True
    )


def tandem() -> Stationary:
    """A prefill worker of rate 1 that feeds a decode worker of rate 1.25; None without such a layout."""
    scenario, rate = tandem_system(), 0.7
    expected = (
        ("mean TTFT", mean_ttft, theory.mm1_sojourn(rate, 1.0)),
        ("mean decoding", mean_decoding, theory.mm1_sojourn(rate, 1.25)),
        ("P95 E2E", p95_sojourn, theory.tandem_sojourn_quantile(rate, 1.0, 1.25, 0.95)),
    )
    decide = lambda: one_by_one(scenario.system.max_running)  # noqa: E731
    return Stationary(scenario, decide, rate, lambda rng, n: (1, 2), expected)


STATIONARY: dict[str, Callable[[], Stationary]] = {
    "M/M/1": lambda: mm(1, 0.7),
    "M/D/1": lambda: md1(0.7),
    "M/M/2": lambda: mm(2, 0.8),
    "M/M/4": lambda: mm(4, 0.8),
    "tandem M/M/1": tandem,
    "batches of 2, exp.": lambda: batches(2, 0.8, True),
    "batches of 4, exp.": lambda: batches(4, 0.8, True),
    "batches of 2, fixed": lambda: batches(2, 0.8, False),
    "batches of 4, fixed": lambda: batches(4, 0.8, False),
    "batches of 400 tokens": token_batches,
    "run to completion": run_to_completion,
    "two exponential terms": two_noises,
    "Cobham priority": cobham,
}


def replications(model: Stationary, n: int, count: int = REPLICATIONS) -> np.ndarray:
    """(count, statistics) float64: each statistic of each replication, the first tenth of its requests left out."""
    decide, rows = model.decide(), []
    for seed in range(count):
        rng = np.random.default_rng(seed + 1000)
        arrival_s = np.cumsum(rng.exponential(1 / model.rate_per_s, n))
        requests = workload(arrival_s, *model.lengths(rng, n))
        done = rollout(model.scenario, decide, requests, seed).requests[n // 10 : n]
        rows.append([statistic(done) for _, statistic, _ in model.expected])
    return np.array(rows)


def stationary_rows(name: str) -> list[Row]:
    """One row per statistic of a system, and one for the theory that it must not agree with."""
    model = STATIONARY[name]()
    factor, unit = (1e3, "ms") if model.ms else (1.0, "s")
    found = replications(model, model.n)
    rows = [
        statistic_row(f"{name}: {label}", found[:, k], value, factor, unit)
        for k, (label, _, value) in enumerate(model.expected)
    ]
    if model.must_not is not None:
        label, value = model.must_not
        away = statistic_row("", found[:, 0], value, factor, unit)
        fine = abs(away.standard_errors) > STANDARD_ERRORS
        rows.append(fact_row(f"{name}: no {label}", f"not {away.expected}", away.got, fine, away.error))
    return rows


# ---- capacity ------------------------------------------------------------------------------------------------------
PROMPT, OUTPUT, BUDGET = 128, 129, 512
_SLOTS = 16_384


def _seconds(tokens: int) -> float:
    return float(seconds(tokens))


@dataclass(frozen=True)
class Capacity:
    """A policy and the request rate that it can just serve; the backlog is looked at after a quarter of the run."""

    policy: Callable[[], Any]
    per_s: Callable[[], float]
    n: int
    poisson: bool = False
    max_running: int = 2048


def _mixed() -> float:
    return theory.mixed_capacity(BUDGET, _seconds, PROMPT + OUTPUT - 1)


CAPACITIES = {
    "Sarathi": Capacity(lambda: make_policy("sarathi", token_budget=BUDGET, max_running=2048), _mixed, 20_000),
    # 258 slots, each with 256 tokens in 129 batches: 512 tokens a batch on average
    "Orca": Capacity(lambda: make_policy("orca", max_running=258), _mixed, 20_000),
    "vLLM v0 within its budget": Capacity(
        lambda: alternating(BUDGET, _SLOTS),
        lambda: theory.alternating_capacity(BUDGET, _seconds, PROMPT, OUTPUT),
        20_000,
        poisson=True,
        max_running=_SLOTS,
    ),
    "request-level": Capacity(
        lambda: make_policy("request-level", token_budget=BUDGET),
        lambda: theory.request_level_capacity(BUDGET, _seconds, PROMPT, OUTPUT),
        20_000,
    ),
    "run to completion": Capacity(
        lambda: make_policy("fcfs"), lambda: theory.run_to_completion_capacity(_seconds, PROMPT, OUTPUT), 10_000
    ),
}
FACTORS = (0.97, 1.03)


def capacity_row(name: str) -> Row:
    """The backlog stays flat at 0.97 of the capacity and grows at 1.03 of it."""
    model = CAPACITIES[name]
    per_s, said = model.per_s(), []
    for factor in FACTORS:
        gaps = np.random.default_rng(1).exponential(1.0, model.n) if model.poisson else np.ones(model.n)
        arrival_s = np.cumsum(gaps) / (factor * per_s)
        scenario = system(max_running=model.max_running)
        state = rollout(scenario, model.policy(), workload(arrival_s, PROMPT, OUTPUT), 0, record=True)
        from_s = float(arrival_s[model.n // 4]) if model.poisson else EVERYTHING[0]
        said.append("grows" if is_unstable(state, scenario, from_s, EVERYTHING[1]) else "flat")
    expected = f"{per_s:.5g}/s ±3 %"
    return fact_row(f"capacity, {name}", expected, ", ".join(said), said == ["flat", "grows"])


# ---- curves for the picture ----------------------------------------------------------------------------------------
CURVES: dict[str, Callable[[float], Stationary]] = {
    "M/M/1": lambda load: mm(1, load),
    "M/D/1": md1,
    "M/M/4": lambda load: mm(4, load),
    "batches of 2, exp.": lambda load: batches(2, load, True),
}
LOADS = (0.2, 0.35, 0.5, 0.65, 0.8)
FAST_LOADS = LOADS[::2]


def curve_points(name: str, fast: bool) -> list[Point]:
    """The simulated points of a curve, each from REPLICATIONS runs."""
    points, n = [], 4_000 if fast else 20_000
    for load in FAST_LOADS if fast else LOADS:
        found = replications(CURVES[name](load), n)[:, 0]
        points.append(Point(load, float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found)))))
    return points


def curve_theory(name: str, loads: np.ndarray) -> np.ndarray:
    """The mean sojourn (seconds) by theory at each load."""
    return np.array([CURVES[name](float(load)).expected[0][2] for load in loads])


# ---- all of them ---------------------------------------------------------------------------------------------------
def long_run_cases() -> list[Case]:
    """The cases of this file, in the order of the table."""
    cases = [Case(name, "stationary", name in FAST, lambda name=name: stationary_rows(name)) for name in STATIONARY]
    return cases + [
        Case(f"capacity {name}", "capacity", name in FAST, lambda name=name: [capacity_row(name)])
        for name in CAPACITIES
    ]


FAST = ("M/M/1", "M/D/1", "M/M/4", "tandem M/M/1", "batches of 2, exp.", "Cobham priority", "Sarathi", "Orca")
