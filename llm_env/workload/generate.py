"""A whole workload from one seed: the rate, the service noise, and the REQUEST array of an episode.

Every episode is drawn before a policy acts, from streams that do not depend on each other, so two policies, or two
settings of one part, meet the same luck. Knows nothing of what the kernel does with the requests.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from llm_env.arrival_settings import ClosedLoopArrivals
from llm_env.config import Scenario, ServiceSettings, SLOSettings, WorkloadSettings
from llm_env.dtypes import EXPONENTIAL, FUTURE, GAMMA, LOGNORMAL, NEVER, NOBODY, REQUEST
from llm_env.errors import UserError
from llm_env.service import curve_budget, mean_seconds, service_curve
from llm_env.workload.arrivals import draw_arrivals_of_clients
from llm_env.workload.clients import draw_clients
from llm_env.workload.closed_loop import draw_script, is_closed, refuse_rate
from llm_env.workload.kinds import draw_kind_lengths, draw_kinds
from llm_env.workload.lengths import draw_request_lengths, largest_output
from llm_env.workload.seeds import NOISE, Streams, history_streams, stream_bits, streams
from llm_env.workload.sessions import draw_sessions, link_turns, mean_work
from llm_env.workload.traffic import Traffic
from llm_env.workload.vary import concrete

MAX_BUDGET = 1 << 20  # tokens: no batch is thought to be larger


def draw_noise(
    seed: int,
    worker: int,
    start: int,
    count: int,
    setup: tuple[int, float] = (EXPONENTIAL, 1.0),
    per_token: tuple[int, float] = (EXPONENTIAL, 1.0),
) -> np.ndarray:
    """Iterations [start, start + count) of the endless service noise of a worker.

    Each draw uses exactly one step of the generator (inversion instead of the ziggurat), so any stretch can be
    reached at once and a longer table extends a shorter one. Every family is a monotone function of the same
    exponential draws: a slow iteration is slow under all of them.

    Args:
        seed: of the noise.
        worker: whose.
        start: the first iteration.
        count: how many.
        setup: family (EXPONENTIAL, GAMMA or LOGNORMAL) and coefficient of variation of column 0; only the last two
            read it. Under NO_NOISE the draws are exponential and the kernel does not look at them.
        per_token: the same of column 1.

    Returns:
        float64[count, 2] of mean 1: column 0 for the setup, column 1 for the per-token term.

    Raises:
        UserError: the seed is not an integer of at least 0.
    """
    bits = stream_bits(seed, NOISE, worker)
    bits.advance(2 * start)
    noise = np.random.Generator(bits).standard_exponential((count, 2), method="inv")
    return np.stack([_of_family(noise[:, 0], *setup), _of_family(noise[:, 1], *per_token)], axis=1)


def _of_family(exponential: np.ndarray, family: int, cv: float) -> np.ndarray:
    """The draws of another family with the same probability above them, exp(-draw); mean 1, the cv given."""
    if family not in (GAMMA, LOGNORMAL):
        return exponential
    from scipy.special import gammainccinv, ndtri_exp  # here, because scipy takes long to import

    if family == GAMMA:
        shape = 1.0 / cv**2
        return gammainccinv(shape, np.exp(-exponential)) / shape
    variance = np.log1p(cv**2)  # of the logarithm
    return np.exp(-np.sqrt(variance) * ndtri_exp(-exponential) - variance / 2.0)


def slo_budget(service: ServiceSettings, tbt_ms: float, max_running: int, speed: float = 1.0) -> float:
    """The largest batch, in tokens, that is done within the TBT target: `llm_env.service.curve_budget`.

    At least 1, also where the target is below the setup time and no batch can meet it. Where a token costs nothing
    (per_token_ms = 0) it is `max_running`: any batch is equally long, and at most that many requests decode at once.
    A worker of another `speed` takes curve(b) / speed.
    """
    curve = service_curve(service)
    cap = max_running if curve.per_token_s == 0.0 else MAX_BUDGET
    return curve_budget(curve, tbt_ms * speed, cap)


def capacity_tokens_per_s(scenario: Scenario) -> float:
    """Tokens per second at load 1.0: every worker runs its largest batch within the tightest TBT target.

    capacity = the sum over the workers of tau * speed / S(tau), where tau is `slo_budget` of the tightest class at the
    worker's speed and S(tau) the time of such a batch at speed 1 by its tokens alone. A worker none of whose batches
    meets the target counts for nothing. KV memory and the terms for decodes, cached tokens and prefill attention are
    not considered: where they bind, less than load 1.0 can be served. Nor is the layout: all workers count as if each
    served whole requests.

    Raises:
        UserError: a batch of tau tokens takes no time, or none meets the target, so there is no such rate.
    """
    system, service = scenario.system, scenario.system.service
    curve, tbt_ms = service_curve(service), scenario.slo.tightest_tbt_ms
    capacity, fastest_ms = 0.0, float("inf")
    for speed, workers in Counter(system.worker_speeds).items():
        tau = slo_budget(service, tbt_ms, system.max_running, speed)
        batch_ms = mean_seconds(curve, tau) / speed
        if batch_ms <= 0.0:
            raise UserError(
                f"scenario: workload.load: a batch of {tau:g} tokens takes no time, so the capacity is unbounded:"
                " give workload.rate_per_s instead"
            )
        fastest_ms = min(fastest_ms, batch_ms)
        if batch_ms <= tbt_ms * (1 + 1e-9):
            capacity += workers * (tau / (batch_ms / 1000.0))
    if capacity == 0.0:
        raise UserError(
            f"scenario: workload.load: no batch meets a TBT target of {tbt_ms:g} ms, the smallest takes"
            f" {fastest_ms:g} ms, so load has no meaning: give workload.rate_per_s instead"
        )
    return capacity


def capacity_requests_per_s(scenario: Scenario) -> float:
    """The request rate that is called load 1.0: `capacity_tokens_per_s` / (E[prompt] + E[output] - 1).

    A request is prompt + output - 1 tokens of work: the last output token is never computed on. In sessions the prompt
    holds all earlier turns, and E[prompt] is its mean over all turns (`llm_env.workload.sessions.mean_work`).
    """
    return capacity_tokens_per_s(scenario) / mean_work(scenario.workload)


def request_rate(scenario: Scenario) -> float:
    """Mean arrivals per second: `workload.rate_per_s`, or `workload.load` times the capacity.

    Raises:
        UserError: a closed loop, which has no rate before a run, or a load without a capacity.
    """
    refuse_rate(scenario, "scenario: rate")
    workload = scenario.workload
    if workload.rate_per_s is not None:
        return workload.rate_per_s
    if workload.load is None:
        raise UserError("scenario: workload: give load or rate_per_s")
    return workload.load * capacity_requests_per_s(scenario)


def estimated_rate(scenario: Scenario) -> float:
    """`request_rate`; for a closed loop about what it will be, min(users / (think_s + 1 / capacity), capacity).

    That is the asymptotic bound: no answer comes sooner than a request's share of the system's time, and no more
    requests leave than load 1.0. Without a capacity it is users / think_s.

    Source: Lazowska et al., Quantitative System Performance (1984), section 5.2 (asymptotic bounds).
    """
    arrivals = scenario.workload.arrivals
    if not isinstance(arrivals, ClosedLoopArrivals):
        return request_rate(scenario)
    try:
        capacity = capacity_requests_per_s(scenario)
    except UserError:
        return arrivals.users / arrivals.think_s
    return min(arrivals.users / (arrivals.think_s + 1.0 / capacity), capacity)


def draw_workload(scenario: Scenario, seed: int, rate_per_s: float | None = None) -> np.ndarray:
    """The requests of one episode. The same scenario and seed give the same bytes.

    Request k has the same lengths, class, client and error of prediction at every load, and a class or a length
    distribution can be changed without changing the arrivals. With sessions that holds session by session, see
    `llm_env.workload.sessions`; their turns have one class and one client.

    Args:
        scenario: lengths, arrivals, classes and duration; where it varies, those of the seed.
        seed: of all streams.
        rate_per_s: mean arrivals per second in place of the scenario's.

    Returns:
        REQUEST[n] in order of arrival, as they are before the run (see `blank_requests`). It may be empty. Of a closed
        loop it is the script: all that the users could ask, grouped by user, with `think_s`, the times of thought;
        arrival_s is known of the first request of each user, and infinite for the others.

    Raises:
        UserError: the seed is not an integer of at least 0, the episode would be too large, or a closed loop is given
            a rate.
    """
    rngs = streams(seed)
    scenario = concrete(scenario, seed)
    workload = scenario.workload
    thoughts_s = None
    if is_closed(scenario) and rate_per_s is None:
        (traffic, thoughts_s), leader = draw_script(workload, scenario.episode.arrivals_s, seed, rngs), None
    else:
        traffic, leader = _draw(scenario, seed, rate_per_s, rngs)
    requests = requests_of(traffic)
    if thoughts_s is not None:
        requests["think_s"] = thoughts_s
    assign_classes(requests, scenario.slo, rngs.classes)
    if leader is not None:
        for name in ("slo_class", "ttft_target_s", "tbt_target_s", "weight"):
            requests[name] = requests[name][leader]
    declare_outputs(requests, workload, largest_output(workload))
    predict_outputs(requests, workload.prediction_sigma, rngs.prediction)
    return requests


def draw_traffic(scenario: Scenario, seed: int, rate_per_s: float | None = None) -> Traffic:
    """The columns of `draw_workload` without classes, targets and predictions, in a tenth of the memory.

    Raises:
        UserError: as `draw_workload`, and for a closed loop, whose arrivals follow from a run.
    """
    return _draw(concrete(scenario, seed), seed, rate_per_s, streams(seed))[0]


def _draw(scenario: Scenario, seed: int, rate_per_s: float | None, rngs: Streams) -> tuple[Traffic, np.ndarray | None]:
    """The requests, and the first turn of the session of each, None without sessions."""
    workload = scenario.workload
    refuse_rate(scenario, "workload: arrivals before a run")
    rate = request_rate(scenario) if rate_per_s is None else rate_per_s
    duration_s = scenario.episode.arrivals_s
    if workload.sessions is not None:
        turns = draw_sessions(workload, rate, duration_s, rngs, history_streams(seed))
        client = None
        if workload.clients is not None:
            client = draw_clients(workload.clients, turns.session.size, rngs.clients)[turns.leader]
        return Traffic(turns.arrival_s, turns.prompt_tokens, turns.output_tokens, client, turns.session), turns.leader
    arrivals, client = draw_arrivals_of_clients(workload, rate, duration_s, rngs)
    if workload.kinds is not None:
        kind = draw_kinds(workload, arrivals, duration_s, seed)
        prompt, output = draw_kind_lengths(workload.kinds, kind, rngs)
    else:
        prompt, output = draw_request_lengths(workload, arrivals.size, rngs, client)
    return Traffic(arrivals, prompt, output, client), None


def requests_of(traffic: Traffic) -> np.ndarray:
    """REQUEST[n] of columns, turns linked; without classes, targets, declared and predicted outputs."""
    requests = blank_requests(traffic.size)
    for name, column in zip(Traffic._fields, traffic, strict=True):
        if column is not None:
            requests[name] = column
    if traffic.session is not None:
        link_turns(requests)
    return requests


def declare_outputs(requests: np.ndarray, workload: WorkloadSettings, default_tokens: int) -> None:
    """Fills in `declared_tokens`: that of the settings, else the default, and nowhere less than the output."""
    declared = default_tokens if workload.declared_tokens is None else workload.declared_tokens
    requests["declared_tokens"] = np.maximum(requests["output_tokens"], declared)


def predict_outputs(requests: np.ndarray, sigma: float, rng: np.random.Generator) -> None:
    """Fills in `predicted_tokens`: output_tokens * exp(sigma * Z), Z standard normal. Its median is the output."""
    requests["predicted_tokens"] = requests["output_tokens"] * np.exp(sigma * rng.standard_normal(requests.size))


def blank_requests(n: int) -> np.ndarray:
    """REQUEST[n] that have not arrived: status FUTURE, no worker, times NEVER, max_tbt_s and predicted_tokens NaN,
    client, session, previous turn and links -1, row = index, weight 1, everything else 0, declared_tokens too.
    """
    requests = np.repeat(_BLANK, n)
    requests["row"] = np.arange(n)
    return requests


def _blank() -> np.ndarray:
    request = np.zeros(1, REQUEST)
    request["status"] = FUTURE
    for field in ("worker", "client", "session", "previous", "home", "next", "before"):
        request[field] = NOBODY
    for field in ("latest_start_s", "first_scheduled_s", "first_token_s", "last_token_s", "finish_s", "think_s"):
        request[field] = NEVER
    for field in ("max_tbt_s", "predicted_tokens"):
        request[field] = np.nan
    request["weight"] = 1.0
    return request


_BLANK = _blank()  # all of a REQUEST but its row


def assign_classes(requests: np.ndarray, slo: SLOSettings, rng: np.random.Generator) -> None:
    """Draws the SLO class of each request by the classes' shares and fills in its targets (seconds) and weight."""
    if len(slo.classes) > 1:
        steps = np.cumsum([c.share for c in slo.classes])
        drawn = np.searchsorted(steps / steps[-1], rng.random(requests.size), side="right")
    else:
        drawn = np.zeros(requests.size, np.int64)
    requests["slo_class"] = drawn
    requests["ttft_target_s"] = np.array([c.ttft_ms / 1000.0 for c in slo.classes])[drawn]
    requests["tbt_target_s"] = np.array([c.tbt_ms / 1000.0 for c in slo.classes])[drawn]
    requests["weight"] = np.array([c.weight for c in slo.classes])[drawn]
