"""Rows of the validation table, and the small systems and workloads that its cases run. Compares; knows no policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm_env.config import EpisodeSettings, Scenario, ServiceSettings, SLOSettings, SystemSettings
from llm_env.workload import blank_requests

SETUP_S, PER_TOKEN_S, FREE_TOKENS = 0.0455, 0.0003, 64  # S(b) of every case that does not say otherwise
EXACT = 1e-9  # relative: what holds on every sample path
STANDARD_ERRORS = 4.0  # what is stationary
WIDE = 0.03  # a standard error above this share of the mean tells nothing
ENDLESS = EpisodeSettings(warmup_s=0.0, arrivals_s=1e9, horizon_s=1e9)
OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: what was compared.
        expected, got: texts with units.
        error: of what was got, as text.
        verdict: OK, FAILED or SKIPPED.
        share: of the tolerance that the error takes; above 1 it failed. NaN where there is no such number.
        standard_errors: (got - expected) / standard error; NaN for what is exact.
    """

    case: str
    expected: str
    got: str
    error: str
    verdict: str
    share: float = float("nan")
    standard_errors: float = float("nan")


@dataclass(frozen=True)
class Case:
    """Something to run. `fast`: seconds at most, what --fast and the quick tests run."""

    name: str
    group: str
    fast: bool
    run: Callable[[], list[Row]]


@dataclass(frozen=True)
class Point:
    """A simulated mean time in the system at a load, with its standard error (seconds)."""

    load: float
    mean_s: float
    error_s: float


# ---- rows ----------------------------------------------------------------------------------------------------------
def exact_row(case: str, found: Any, wanted: Any, unit: str = "s", tolerance: float = EXACT) -> Row:
    """Equal up to a relative error, element by element; the table shows the means."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape or not found.size or not np.isfinite(found).all():
        return Row(case, f"{wanted.size} numbers", f"{np.isfinite(found).sum()} numbers", "", FAILED, np.inf)
    scale = np.maximum(np.abs(wanted), 1e-300)
    error = float(np.max(np.abs(found - wanted) / scale))
    verdict = OK if error <= tolerance else FAILED
    expected, got = (f"{values.mean():.6g} {unit}".strip() for values in (wanted, found))
    return Row(case, expected, got, f"{error:.0e} rel.", verdict, error / tolerance)


def statistic_row(case: str, values: np.ndarray, expected: float, factor: float = 1.0, unit: str = "s") -> Row:
    """The mean of independent replications within STANDARD_ERRORS of the expected value.

    Fails also where the standard error is so wide that nothing could fail.
    """
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    off = (mean - expected) / error if error > 0 else np.inf * np.sign(mean - expected or 0.0)
    off = 0.0 if np.isnan(off) else float(off)
    fine = abs(off) <= STANDARD_ERRORS and error < WIDE * abs(mean)
    got = f"{factor * mean:.6g} ±{factor * error:.2g} {unit}".strip()
    share = abs(off) / STANDARD_ERRORS
    return Row(
        case, f"{factor * expected:.6g} {unit}".strip(), got, f"{off:+.1f} s.e.", OK if fine else FAILED, share, off
    )


def fact_row(case: str, expected: str, got: str, fine: bool, error: str = "") -> Row:
    """A statement that is true or not."""
    return Row(case, expected, got, error, OK if fine else FAILED)


def skipped_row(case: str, reason: str) -> Row:
    """What cannot be run here, and why."""
    return Row(case, "-", reason, "", SKIPPED)


def worst(case: str, rows: Sequence[Row]) -> Row:
    """One row for many of a kind: that with the largest error, under another name."""
    return replace(max(rows, key=lambda row: (row.verdict == FAILED, row.share)), case=case)


# ---- systems and workloads -----------------------------------------------------------------------------------------
def seconds(tokens: Any) -> Any:
    """S(b) in seconds, one number or an array, written down once more so that it is not the kernel's."""
    return SETUP_S + PER_TOKEN_S * np.maximum(0, np.asarray(tokens) - FREE_TOKENS)


def system(workers: int = 1, max_running: int = 128, slo: SLOSettings | None = None, **service: Any) -> Scenario:
    """A system that runs until it is empty; `service` are settings of the service time."""
    settings = SystemSettings(workers=workers, max_running=max_running, service=ServiceSettings(**service))
    return Scenario(system=settings, episode=ENDLESS, slo=slo or SLOSettings())


def workload(arrival_s: Any, prompt: Any, output: Any, ttft_s: float = 2.0, tbt_s: float = 0.15) -> np.ndarray:
    """REQUESTs of these arrivals (seconds), lengths (tokens) and targets (seconds)."""
    requests = blank_requests(len(arrival_s))
    requests["arrival_s"], requests["prompt_tokens"], requests["output_tokens"] = arrival_s, prompt, output
    requests["ttft_target_s"], requests["tbt_target_s"] = ttft_s, tbt_s
    return requests


def random_workload(n: int, rate_per_s: float, seed: int) -> np.ndarray:
    """Poisson arrivals, prompts of 1 to 899 and outputs of 1 to 59 tokens."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, n))
    return workload(arrival_s, rng.integers(1, 900, n), rng.integers(1, 60, n))


MIXTURE_PROMPTS, MIXTURE_SHARES = (64, 256, 512), (0.5, 0.35, 0.15)
MIXTURE_STOP, MIXTURE_MOST = 0.1, 32  # output tokens: min(Geometric(0.1), 32)


def mixture(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens of n requests of the mixture of the reference cases."""
    prompts = rng.choice(MIXTURE_PROMPTS, n, p=MIXTURE_SHARES)
    return prompts, np.minimum(rng.geometric(MIXTURE_STOP, n), MIXTURE_MOST)
