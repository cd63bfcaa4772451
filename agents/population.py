"""Many small policies at once: weights as flat vectors, one batched forward pass, and what each earns on its episodes.

An episode is worth its SLO attainment, the very number that is reported, so nothing has to be shaped or discounted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agents.network import Layer
from agents.validation import SCORE
from llm_env.config import Scenario
from llm_env.systems import NUM_TRAINING_SEEDS, Systems, Workload


# ---- weights -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Weights:
    """How a flat vector is a tanh network from features to actions in [-1, 1].

    A step of one size is meant to move the actions alike wherever it is made, so weights are stored times the root of
    their layer's inputs, and features are measured in standard deviations.
    Source: Salimans et al., "Evolution strategies as a scalable alternative to reinforcement learning"
    (arXiv:1703.03864, 2017), section 2.2, and Mania et al., "Simple random search of static linear policies is
    competitive for reinforcement learning" (NeurIPS 2018), section 3, for the features.

    Attributes:
        widths: of all layers, features first, actions last.
        mean, scale: (features,) float32 that features are centred and divided by.
    """

    widths: tuple[int, ...]
    mean: np.ndarray
    scale: np.ndarray
    _ends: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = [size for a, b in self._pairs() for size in (a * b, b)]
        object.__setattr__(self, "_ends", [int(end) for end in np.cumsum(sizes)])

    def _pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.widths[:-1], self.widths[1:], strict=True))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self._ends[-1]

    def start(self, bias: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(size,) float64: random hidden layers and a last one that gives `bias`, (actions,), whatever is seen."""
        vector = rng.standard_normal(self.size)
        vector[self._ends[-3] if len(self._ends) > 2 else 0 :] = 0.0
        vector[self._ends[-2] :] = bias
        return vector

    def unpack(self, vectors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each layer's (n, in, out) weights and (n, 1, out) biases as float32. Args: vectors: (n, size)."""
        parts = np.split(vectors, self._ends[:-1], axis=1)
        layers = []
        for k, (a, b) in enumerate(self._pairs()):
            weight = (parts[2 * k] / np.sqrt(a)).astype(np.float32).reshape(-1, a, b)
            layers.append((weight, parts[2 * k + 1].astype(np.float32)[:, None, :]))
        weight, bias = layers[0]
        weight = weight / self.scale[None, :, None]
        layers[0] = (weight, bias - np.matmul(self.mean[None, None, :], weight))
        return layers

    def layers(self, vector: np.ndarray) -> tuple[Layer, ...]:
        """What a NumpyAgent holds of one vector; features are centred and scaled by its first layer."""
        return tuple(
            (np.ascontiguousarray(weight[0].T), bias[0, 0].copy()) for weight, bias in self.unpack(vector[None])
        )


def forward(layers: Sequence[tuple[np.ndarray, np.ndarray]], observations: np.ndarray) -> np.ndarray:
    """Actions of n policies. Args: layers: of `Weights.unpack`; observations: (n, episodes, features) float32.

    Returns:
        (n, episodes, actions) float32, not clipped.
    """
    x = observations
    for weight, bias in layers[:-1]:
        x = np.tanh(np.matmul(x, weight) + bias)
    weight, bias = layers[-1]
    return np.matmul(x, weight) + bias


# ---- episodes ------------------------------------------------------------------------------------------------------
class Earned(NamedTuple):
    """What a population earned."""

    scores: np.ndarray  # (n, episodes) float64, NaN where no request was measured
    decisions: int


class Population:
    """Runs policies on seeded episodes; its systems are made once and used for one generation after the other.

    Args:
        scenarios, workloads: as `llm_env.systems.Systems` takes them.
        action: form of the action, one that is a box.
        policies: how many at once.
        episodes: of each.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        workloads: Sequence[Workload],
        action: str,
        policies: int,
        episodes: int,
    ) -> None:
        self._shape = (policies, episodes)
        self._drawn: list[dict[int, np.ndarray]] = [{} for _ in scenarios]
        kept = [self._kept(k, workload) for k, workload in enumerate(workloads)]
        self._systems = Systems(scenarios, policies * episodes, action, kept)

    def _kept(self, k: int, workload: Workload) -> Workload:
        """The workload of a seed is drawn once for all policies that meet it."""

        def draw(seed: int) -> np.ndarray:
            if seed not in self._drawn[k]:
                self._drawn[k][seed] = workload(seed)
            return self._drawn[k][seed].copy()

        return draw

    def earn(self, layers: Sequence[tuple[np.ndarray, np.ndarray]], seeds: np.ndarray) -> Earned:
        """Lets every policy run its episodes.

        Args:
            layers: of `Weights.unpack`, one row a policy.
            seeds: (policies, episodes) int64.
        """
        systems = self._systems
        for drawn in self._drawn:
            drawn.clear()
        for e, seed in enumerate(seeds.ravel()):
            systems.reset(e, int(seed))
        active = systems.active()
        observations, decisions = systems.observe(active), 0
        while active.any():
            actions = forward(layers, observations.reshape(*self._shape, -1))
            systems.set_actions(actions.reshape(len(observations), -1))
            decisions += int(active.sum())
            step = systems.step(active)
            observations = step.observations
            active &= ~(step.terminated | step.truncated)
        scores = [systems.outcome(e).get(SCORE, np.nan) for e in range(systems.num_envs)]
        return Earned(np.array(scores).reshape(self._shape), decisions)


STATISTICS_EPISODES = 32
LEAST_SCALE = 0.05  # of a feature that hardly changes here, or a little change elsewhere would be a huge one


def feature_statistics(
    scenarios: Sequence[Scenario], workloads: Sequence[Workload], action: str, start: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, (features,) float32, under one fixed action.

    Args:
        scenarios, workloads, action: as `Systems` takes them.
        start: (actions,) the action.
        seed: of the episodes.
    """
    systems = Systems(scenarios, STATISTICS_EPISODES, action, workloads)
    for e, episode in enumerate(np.random.default_rng([seed, 2]).integers(NUM_TRAINING_SEEDS, size=systems.num_envs)):
        systems.reset(e, int(episode))
    active = systems.active()
    observations = systems.observe(active)
    systems.set_actions(np.tile(start, (systems.num_envs, 1)))
    count, total, squares = 0, np.zeros(observations.shape[1]), np.zeros(observations.shape[1])
    while active.any():
        seen = observations[active].astype(np.float64)
        count, total, squares = count + len(seen), total + seen.sum(axis=0), squares + (seen**2).sum(axis=0)
        step = systems.step(active)
        observations = step.observations
        active &= ~(step.terminated | step.truncated)
    if count == 0:
        return total.astype(np.float32), np.ones(len(total), np.float32)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean.astype(np.float32), np.maximum(deviation, LEAST_SCALE).astype(np.float32)
