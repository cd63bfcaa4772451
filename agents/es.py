"""Evolution strategies: a policy is moved along the directions in which its mirrored perturbations earn more.

The two of a pair meet the same episodes (common random numbers), so that what they earn differs by what they do alone.
Source: Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning" (arXiv:1703.03864,
2017), section 2, here with Adam (Kingma and Ba, ICLR 2015); Mania et al., "Simple random search of static linear
policies is competitive for reinforcement learning" (NeurIPS 2018), section 3, for dividing by the spread of what was
earned; Polyak and Juditsky (SIAM Journal on Control and Optimization 30(4), 1992) for the averaged policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agents.population import Earned, Population, Weights
from llm_env.errors import UserError
from llm_env.systems import NUM_TRAINING_SEEDS

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8  # of Adam
AVERAGING = 0.9  # what the averaged policy keeps of itself in a generation


@dataclass(frozen=True, kw_only=True)
class ESSettings:
    """Settings of --algo es."""

    generations: int = 200
    """Steps of the policy."""

    pairs: int = 128
    """Mirrored perturbations in a generation."""

    episodes: int = 1
    """Episodes on which each pair is compared."""

    sigma: float = 0.1
    """Size of the perturbations, of features in standard deviations and actions from -1 to 1."""

    learning_rate: float = 0.01
    """Of Adam; falls linearly to a tenth of it."""

    hidden: tuple[int, ...] = (16,)
    """Widths of the hidden layers; none is a linear policy."""

    learn: tuple[str, ...] = ()
    """Which numbers of a box or adaptive action are learned, like margin fill; the others stay as they begin. All by
    default: leave out those that cost much when they are moved a little past what is good."""

    validate_every: int = 10
    """Generations between validations."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("generations", 1, 1_000_000),
            ("pairs", 1, 65_536),
            ("episodes", 1, 65_536),
            ("sigma", 1e-6, 10.0),
            ("learning_rate", 0.0, 10.0),
            ("validate_every", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"es.{name.replace('_', '-')}: expected {low:g} to {high:g}, got {value!r}")
        if len(self.hidden) > 8 or not all(1 <= width <= 4096 for width in self.hidden):
            raise UserError(f"es.hidden: expected up to 8 widths from 1 to 4096, got {self.hidden!r}")


@dataclass
class ESState:
    """All that a continuation needs.

    Attributes:
        vector: (size,) float64, the policy (see `agents.population.Weights`).
        average: (size,) float64, exponential average of the policies so far, less noisy than the last one: the result.
        first, second: (size,) float64, Adam's averages of the gradient and its square.
        generation: how many are done.
        decisions: taken in them.
    """

    vector: np.ndarray
    average: np.ndarray = field(init=False)
    first: np.ndarray = field(init=False)
    second: np.ndarray = field(init=False)
    generation: int = 0
    decisions: int = 0

    def __post_init__(self) -> None:
        self.average = self.vector.copy()
        self.first, self.second = np.zeros_like(self.vector), np.zeros_like(self.vector)


# ---- one generation ------------------------------------------------------------------------------------------------
def perturbations(size: int, seed: int, generation: int, pairs: Sequence[int]) -> np.ndarray:
    """(pairs, size) float64 standard normal numbers, the same for a pair whoever draws them."""
    return np.stack([np.random.default_rng([seed, generation, pair, 0]).standard_normal(size) for pair in pairs])


def episode_seeds(seed: int, generation: int, pairs: Sequence[int], episodes: int) -> np.ndarray:
    """(pairs, episodes) int64, training seeds that each pair meets."""
    rngs = [np.random.default_rng([seed, generation, pair, 1]) for pair in pairs]
    return np.stack([rng.integers(NUM_TRAINING_SEEDS, size=episodes) for rng in rngs])


def compare_pairs(
    population: Population,
    weights: Weights,
    vector: np.ndarray,
    settings: ESSettings,
    seed: int,
    generation: int,
    pairs: Sequence[int],
) -> Earned:
    """What the policies vector + sigma e and vector - sigma e of some pairs earn.

    Returns:
        scores (2, pairs): means over the episodes of the first and of the second of each pair.
    """
    moved = settings.sigma * perturbations(weights.size, seed, generation, pairs)
    seeds = episode_seeds(seed, generation, pairs, settings.episodes)
    earned = population.earn(
        weights.unpack(np.concatenate([vector + moved, vector - moved])), np.concatenate([seeds, seeds])
    )
    scores = np.nan_to_num(earned.scores).mean(axis=1).reshape(2, len(pairs))  # NaN: nothing arrived, for both
    return Earned(scores, earned.decisions)


Compare = Callable[[np.ndarray, int], Earned]  # vector, generation -> scores (2, pairs)


def next_generation(state: ESState, weights: Weights, settings: ESSettings, seed: int, compare: Compare) -> np.ndarray:
    """Moves the policy once.

    Returns:
        (2, pairs) scores.
    """
    scores, decisions = compare(state.vector, state.generation)
    better = scores[0] - scores[1]
    spread = float(np.sqrt(np.mean(better**2)))
    if spread > 0:
        directions = perturbations(weights.size, seed, state.generation, range(settings.pairs))
        _ascend(state, settings, better / spread @ directions / settings.pairs)
    state.generation += 1
    state.decisions += decisions
    return scores


def _ascend(state: ESState, settings: ESSettings, gradient: np.ndarray) -> None:
    """One step of Adam, upwards."""
    done = state.generation
    rate = settings.learning_rate * (1.0 - 0.9 * done / settings.generations)
    state.first = BETA1 * state.first + (1 - BETA1) * gradient
    state.second = BETA2 * state.second + (1 - BETA2) * gradient**2
    first = state.first / (1 - BETA1 ** (done + 1))
    second = state.second / (1 - BETA2 ** (done + 1))
    state.vector = state.vector + rate * first / (np.sqrt(second) + EPSILON)
    state.average = AVERAGING * state.average + (1 - AVERAGING) * state.vector
