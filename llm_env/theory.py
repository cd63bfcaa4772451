"""What queueing theory knows: recursions that hold on every sample path, and closed forms of stationary systems.

Plain numpy on arrivals, service times and rates in any one unit of time; knows nothing of the package, so that what
the kernel is compared with is not made from the kernel.

Sources: Lindley (Proc. Cambridge Phil. Soc. 48, 1952); Kiefer and Wolfowitz (Trans. AMS 78, 1955); Kleinrock, "Queueing
Systems" I (1975), sections 3.5, 5.6 and 5.7; Bailey (JRSS B 16, 1954) for batch service; Cobham (Operations Research 2,
1954) for priorities; Whitt (Management Science 35(11), 1989) for the variance of a simulated mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, factorial, log

import numpy as np

LATTICE = 1 << 18


# ---- every sample path ---------------------------------------------------------------------------------------------
def lindley_starts(arrival: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When each customer of a G/G/1 FCFS queue begins: W' = max(0, W + S - A)."""
    wait, waits = 0.0, []
    for gap, work in zip(np.diff(arrival, append=np.inf), service, strict=True):
        waits.append(wait)
        wait = max(0.0, wait + work - gap)
    return arrival + np.array(waits)


def kiefer_wolfowitz_starts(arrival: np.ndarray, service: np.ndarray, servers: int) -> np.ndarray:
    """When each customer of a G/G/k queue with one FCFS line begins: it takes the server that is free first."""
    free, starts = np.zeros(servers), []
    for time, work in zip(arrival, service, strict=True):
        start = max(time, free[0])
        starts.append(start)
        free[0] = start + work
        free.sort()
    return np.array(starts)


def gated_finishes(arrival: np.ndarray, tokens: np.ndarray, most: int, seconds: Callable[[int], float]) -> np.ndarray:
    """When each customer leaves if a server takes up to `most` of those that are there, in order, as one batch.

    start = max(free, next arrival); a batch takes seconds(its tokens).
    """
    finish: list[float] = []
    free = 0.0
    while len(finish) < len(arrival):
        k = len(finish)
        start = max(free, arrival[k])
        members = min(most, int(np.searchsorted(arrival, start, side="right")) - k)
        free = start + seconds(int(tokens[k : k + members].sum()))
        finish += [free] * members
    return np.array(finish)


def tandem_finishes(first_finish: np.ndarray, second_service: np.ndarray) -> np.ndarray:
    """When customers leave the second of two FCFS servers in a row: D2(n) = max(D1(n), D2(n-1)) + S2(n)."""
    last, finish = 0.0, []
    for ready, work in zip(first_finish, second_service, strict=True):
        last = max(ready, last) + work
        finish.append(last)
    return np.array(finish)


# ---- one server ----------------------------------------------------------------------------------------------------
def mm1_sojourn(rate: float, service_rate: float) -> float:
    """Mean time in an M/M/1 queue: 1/(mu - lambda)."""
    return 1 / (service_rate - rate)


def mm1_sojourn_quantile(rate: float, service_rate: float, share: float) -> float:
    """The time in an M/M/1 queue is exponential."""
    return -log(1 - share) / (service_rate - rate)


def mm1_standard_error(rate: float, service_rate: float, customers: float) -> float:
    """Of the mean wait over so many successive customers: sqrt(v/N), v = rho(2+5rho-4rho^2+rho^3)/((1-rho)^4 mu^2)."""
    r = rate / service_rate
    variance = r * (2 + 5 * r - 4 * r**2 + r**3) / ((1 - r) ** 4 * service_rate**2)
    return (variance / customers) ** 0.5


def mg1_wait(rate: float, mean: float, second_moment: float) -> float:
    """Mean wait of an M/G/1 FCFS queue (Pollaczek and Khinchine)."""
    return rate * second_moment / (2 * (1 - rate * mean))


def mg1_wait_quantile(
    rate: float, service: np.ndarray, weight: np.ndarray, share: float, own: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
    """A quantile of the wait of an M/G/1 FCFS queue, or of wait + something of one's own.

    The wait is a geometric sum of residual services (Kleinrock, section 5.7), whose law is put on a lattice and summed
    by FFT. Error: of the order of the lattice step, a 250,000th of the longest wait that matters, squared.

    Args:
        rate: of arrivals.
        service, weight: the values of the service time and their probabilities.
        share: of the quantile.
        own: values and probabilities of what is added to the wait, independent of it; None for nothing.
    """
    mean = float(service @ weight)
    rho = rate * mean
    step = 40 * mg1_wait(rate, mean, float(service**2 @ weight)) / rho / LATTICE
    edges = step * (np.arange(LATTICE + 1) - 0.5)
    below = np.array([np.minimum(service, max(edge, 0.0)) @ weight for edge in edges[: int(service.max() / step) + 3]])
    residual = np.zeros(LATTICE)  # P(residual service rounds to this point) = integral of P(S > y)/E[S]
    residual[: len(below) - 1] = np.diff(below) / mean
    transform = np.fft.rfft(residual)
    wait = np.fft.irfft((1 - rho) / (1 - rho * transform), LATTICE)
    at, reached = edges[1:], np.cumsum(wait)  # P(wait <= edge)
    values, weights = own if own is not None else (np.zeros(1), np.ones(1))

    together = np.zeros(LATTICE)  # P(wait + own <= edge)
    for value, p in zip(values, weights, strict=True):
        together += p * np.where(at < value, 0.0, np.interp(at - value, at, reached))
    return float(np.interp(share, together, at))


def cobham_waits(rates: Sequence[float], means: Sequence[float], second_moments: Sequence[float]) -> list[float]:
    """Mean waits of the classes of a non-preemptive M/G/1 priority queue, the first class the highest."""
    rest = sum(r * m for r, m in zip(rates, second_moments, strict=True)) / 2
    loads = np.cumsum([0.0] + [r * m for r, m in zip(rates, means, strict=True)])
    return [float(rest / ((1 - high) * (1 - low))) for high, low in pairwise(loads)]


# ---- several servers -----------------------------------------------------------------------------------------------
def erlang_c(rate: float, service_rate: float, servers: int) -> float:
    """Probability that a customer of an M/M/k queue must wait."""
    offered = rate / service_rate
    busy = offered**servers / factorial(servers) / (1 - offered / servers)
    return busy / (sum(offered**n / factorial(n) for n in range(servers)) + busy)


def mmk_sojourn(rate: float, service_rate: float, servers: int) -> float:
    """Mean time in an M/M/k queue."""
    return erlang_c(rate, service_rate, servers) / (servers * service_rate - rate) + 1 / service_rate


def tandem_sojourn_quantile(rate: float, first_rate: float, second_rate: float, share: float) -> float:
    """A quantile of the time in two M/M/1 queues in a row, whose sojourns are independent exponentials (Burke)."""
    a, b = first_rate - rate, second_rate - rate
    low, high = 0.0, 100 / min(a, b)
    while high - low > 1e-12 * high:
        x = (low + high) / 2
        above = (b * exp(-a * x) - a * exp(-b * x)) / (b - a)
        low, high = (x, high) if above > 1 - share else (low, x)
    return low


# ---- batch service -------------------------------------------------------------------------------------------------
def batch_sojourn(rate: float, most: int, seconds: Callable[[int], float], exponential: bool = False) -> float:
    """Mean time in a queue with Poisson arrivals whose server takes up to `most` customers at once.

    A server that is free takes whom it finds, an idle one the next arrival alone; nobody joins a batch in service. The
    numbers left behind by departures are a Markov chain, solved on its first states; then Little's law.

    Args:
        rate: of arrivals.
        most: customers in a batch.
        seconds: (mean) service time of a batch of so many.
        exponential: the service time is exponential, else fixed.
    """
    law, mean = _left_behind(rate, most, lambda n: seconds(min(max(n, 1), most)), exponential)
    second_moment = mean**2 * (2 if exponential else 1)
    begun = np.maximum(np.arange(len(law)), 1)
    in_system = law @ (begun * mean + rate * second_moment / 2)  # integral of the number over a service
    length = law @ mean + law[0] / rate
    return float(in_system / length / rate)


def accessible_batch_sojourn(rate: float, most: int, service_rate: float) -> float:
    """The textbook's other queue, where arrivals join a batch in service while it has room: geometric queue lengths.

    With z the root in (0, 1) of mu z^(K+1) - (lambda + mu) z + lambda = 0 the mean time is 1/(lambda (1 - z)/z)
    (Kleinrock I, section 4.6; Gross and Harris, "Fundamentals of Queueing Theory", section 3.2, partial batches).
    """
    low, high = 0.0, 1.0 - 1e-9
    while high - low > 1e-15:
        z = (low + high) / 2
        low, high = (z, high) if service_rate * z ** (most + 1) - (rate + service_rate) * z + rate > 0 else (low, z)
    return low / (1 - low) / rate


def _left_behind(
    rate: float, most: int, seconds: Callable[[int], float], exponential: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Law of the number that waits when a batch ends, and the mean time of the batch after each number.

    The batch that follows n takes seconds(n) and serves min(n, most) of them.
    """
    states = 40 * most
    while True:
        mean = np.array([seconds(n) for n in range(states)])
        chain = np.zeros((states, states))
        for n in range(states):
            left = max(0, n - most)
            chain[n, left:] = _arrivals(rate * mean[n], states - left, exponential)
        chain[:, -1] += 1 - chain.sum(axis=1)
        equations = np.vstack([chain.T - np.eye(states), np.ones(states)])
        law = np.linalg.lstsq(equations, np.append(np.zeros(states), 1.0), rcond=None)[0]
        if law[-most:].sum() < 1e-13:
            return law, mean
        states *= 2


def _arrivals(mean: float, states: int, exponential: bool) -> np.ndarray:
    """P(n arrivals during a service), n < states: Poisson, or geometric if the service is exponential."""
    if exponential:
        return (mean / (1 + mean)) ** np.arange(states) / (1 + mean)
    log_factorial = np.cumsum(np.log(np.maximum(np.arange(states), 1)))
    return np.exp(np.arange(states) * np.log(mean) - mean - log_factorial)


# ---- capacity, in requests per unit of time ------------------------------------------------------------------------
def mixed_capacity(budget: int, seconds: Callable[[int], float], work_tokens: float) -> float:
    """Work-conserving mixed batches (Sarathi, Orca): b/S(b) tokens a second over E[L] + E[B] - 1 tokens a request."""
    return budget / seconds(budget) / work_tokens


def alternating_capacity(budget: int, seconds: Callable[[int], float], prompt: int, output: int) -> float:
    """Prefill-only batches while anybody waits, else decode-only ones (vLLM v0), both of at most `budget` tokens.

    The root of lambda (B - 1) = b f_decode(lambda), where f_decode is decode batches a second beside Poisson arrivals:
    the number that waits at the end of a batch is a Markov chain, and a decode batch follows where it is 0. A formula
    for a scheduler that decodes at most b requests a batch; vLLM v0 itself decodes all that run.
    """
    most = budget // prompt  # whole prompts of a batch

    def spare_tokens_per_s(rate: float) -> float:
        law, mean = _left_behind(rate, most, lambda n: seconds(min(n, most) * prompt) if n else seconds(budget))
        return budget * law[0] / (law @ mean) - rate * (output - 1)

    low, high = 0.0, mixed_capacity(budget, seconds, prompt + output - 1)  # mixed batches fill every batch
    while high - low > 1e-7 * high:
        rate = (low + high) / 2
        low, high = (rate, high) if spare_tokens_per_s(rate) > 0 else (low, rate)
    return low


def request_level_capacity(budget: int, seconds: Callable[[int], float], prompt: int, output: int) -> float:
    """Batches that nobody joins or leaves (FasterTransformer): n/(S(nL) + (B-1) S(n)), n = floor(b/L)."""
    n = budget // prompt
    return n / (seconds(n * prompt) + (output - 1) * seconds(n))


def run_to_completion_capacity(seconds: Callable[[int], float], prompt: int, output: int) -> float:
    """One request at a time: 1/(S(L) + (B-1) S(1))."""
    return 1 / (seconds(prompt) + (output - 1) * seconds(1))
