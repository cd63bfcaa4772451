"""How sure one can be that one scheduler is better than another, from scores on the same workloads. Runs nothing.

Scores are a matrix: a row for each time an agent was trained (one row for a policy that is not trained), a column for
each workload, which everybody met. Both are samples, so intervals resample both. Means and t-intervals are in
`llm_env.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from llm_env.metrics import Interval, paired_ci

EXACT_UP_TO = 12  # pairs: so few signs are all tried
_ROWS_AT_ONCE = 256  # resampled matrices in memory


class Estimate(NamedTuple):
    """A value and its confidence interval, which need not lie around it evenly."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two contenders on the same workloads.

    Attributes:
        difference: mean of first - second with its paired 95 % t-interval.
        wins, ties, losses: workloads where the first is above, within the tolerance of, or below the second.
    """

    difference: Interval
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> Literal["wins", "ties", "loses"]:
        """Of the first: "wins" or "loses" if the interval of the difference leaves zero out, else "ties"."""
        mean, half = self.difference
        if mean - half > 0:
            return "wins"
        return "loses" if mean + half < 0 else "ties"


def compare(first: np.ndarray, second: np.ndarray, tolerance: float = 1e-9) -> Comparison:
    """Two contenders, workload by workload; several rows of one are averaged first.

    Args:
        first, second: (rows, workloads) or (workloads,) float64 of the same workloads.
        tolerance: below it a difference is a tie.

    Raises:
        ValueError: not the same number of workloads.
    """
    a, b = (np.atleast_2d(scores).mean(axis=0) for scores in (first, second))
    difference = paired_ci(a, b)
    gap = a - b
    wins, losses = int(np.sum(gap > tolerance)), int(np.sum(gap < -tolerance))
    return Comparison(difference, wins, gap.size - wins - losses, losses)


def sign_flip_test(differences: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """P value, two-sided, of "each paired difference might as well have the other sign".

    All signs are tried for up to EXACT_UP_TO differences. Of more, `draws` random ones, and the one seen counts among
    them, so that the value is never 0 and the test never too eager.

    Source: Fisher, "The Design of Experiments" (1935), section 21; Phipson and Smyth, "Permutation p-values should
    never be zero" (Statistical Applications in Genetics and Molecular Biology 9(1), 2010).
    """
    x = np.asarray(differences, np.float64).ravel()
    if x.size == 0 or not np.isfinite(x).all():
        return float("nan")
    seen = abs(x.sum()) - 1e-12 * np.abs(x).sum()  # equal sums differ by rounding, those of 0 too
    if x.size <= EXACT_UP_TO:
        bits = np.arange(1 << x.size)[:, None] >> np.arange(x.size) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ x) >= seen))
    rng = np.random.default_rng(seed)
    as_far = sum(int(np.sum(np.abs((1 - 2 * rng.integers(0, 2, (n, x.size))) @ x) >= seen)) for n in _portions(draws))
    return (as_far + 1) / (draws + 1)


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all scores: robust as the median, and not as blind.

    Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (NeurIPS 2021),
    section 4.3.
    """
    return float(_trimmed(np.asarray(scores, np.float64).reshape(1, -1))[0])


def iqm_interval(scores: np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """The interquartile mean and its bootstrap interval over trainings and workloads.

    Args:
        scores: (rows, workloads) float64.

    Source: Agarwal et al. (2021), section 4.1: percentile intervals of the bootstrap. There tasks are few and fixed,
    and runs are resampled within each; here workloads are drawn too, so rows and columns are both resampled (Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007).
    """
    matrix = np.atleast_2d(np.asarray(scores, np.float64))
    return _bootstrap(matrix, lambda many: _trimmed(many.reshape(len(many), -1)), draws, seed, level)


def improvement_interval(
    first: np.ndarray, second: np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Estimate:
    """How probably the first is better than the second on a workload; a tie counts one half.

    Args:
        first: (rows, workloads): the mean over rows and workloads of [first > second] + [first = second] / 2.
        second: (workloads,) of the same workloads: the contender that is not trained.

    Raises:
        ValueError: not the same number of workloads.

    Source: Agarwal et al. (2021), section 4.3: probability of improvement, the Mann-Whitney statistic of each task.
    """
    a, b = np.atleast_2d(np.asarray(first, np.float64)), np.asarray(second, np.float64).ravel()
    if a.shape[1] != b.size:
        raise ValueError(f"cannot pair {a.shape[1]} workloads with {b.size}")
    better = np.where(np.abs(a - b) <= 1e-12, 0.5, (a > b).astype(np.float64))
    return _bootstrap(better, lambda many: many.mean(axis=(1, 2)), draws, seed, level)


# ---- the bootstrap -------------------------------------------------------------------------------------------------
def _bootstrap(
    matrix: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], draws: int, seed: int, level: float
) -> Estimate:
    """Args: statistic: (draws, rows, workloads) -> (draws,)."""
    value = float(statistic(matrix[None])[0])
    rows, workloads = matrix.shape
    if workloads < 2 or not np.isfinite(matrix).all():
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    found = []
    for n in _portions(draws):
        row, column = rng.integers(0, rows, (n, rows, 1)), rng.integers(0, workloads, (n, 1, workloads))
        found.append(statistic(matrix[row, column]))
    low, high = np.quantile(np.concatenate(found), [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high))


def _portions(draws: int) -> list[int]:
    return [min(_ROWS_AT_ONCE, draws - k) for k in range(0, draws, _ROWS_AT_ONCE)]


def _trimmed(many: np.ndarray) -> np.ndarray:
    """(draws, n) -> (draws,): means without the lowest and the highest quarter."""
    from scipy.stats import trim_mean  # takes long to import

    return trim_mean(many, 0.25, axis=1)
