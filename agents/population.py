"""Many small policies at once: weights as flat vectors, one batched forward pass, and what each earns on its episodes.

An episode is worth its SLO attainment, the very number that is reported, so nothing has to be shaped or discounted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from agents.forms import Form
from agents.network import Layer
from agents.validation import SCORE
from llm_env.systems import NUM_TRAINING_SEEDS, Workload


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
        form: what the policies decide.
        workloads: seed -> requests, of each of its scenarios.
        policies: how many at once.
        episodes: of each.
    """

    def __init__(self, form: Form, workloads: Sequence[Workload], policies: int, episodes: int) -> None:
        self._form, self._shape = form, (policies, episodes)
        self._drawn: list[dict[int, np.ndarray]] = [{} for _ in workloads]
        kept = [self._kept(k, workload) for k, workload in enumerate(workloads)]
        self._systems = form.systems(policies * episodes, kept)

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
        systems, form = self._systems, self._form
        for drawn in self._drawn:
            drawn.clear()
        for e, seed in enumerate(seeds.ravel()):
            systems.reset(e, int(seed))
        active = systems.active()
        observations, decisions = systems.observe(active), 0
        while active.any():
            seen = form.seen(observations)
            outputs = forward(layers, seen.reshape(self._shape[0], -1, seen.shape[-1]))
            systems.set_actions(form.actions(outputs.reshape(*seen.shape[:-1], -1), observations))
            decisions += int(active.sum())
            step = systems.step(active)
            observations = step.observations
            active &= ~(step.terminated | step.truncated)
        scores = [systems.outcome(e).get(SCORE, np.nan) for e in range(systems.num_envs)]
        return Earned(np.array(scores).reshape(self._shape), decisions)


STATISTICS_EPISODES = 32
LEAST_SCALE = 0.05  # of a feature that hardly changes here, or a little change elsewhere would be a huge one


def feature_statistics(form: Form, workloads: Sequence[Workload], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each input, (inputs,) float32, under the policy that everything begins with.

    Args:
        form, workloads: as `Population` takes them.
        seed: of the episodes.
    """
    systems = form.systems(STATISTICS_EPISODES, workloads)
    for e, episode in enumerate(np.random.default_rng([seed, 2]).integers(NUM_TRAINING_SEEDS, size=systems.num_envs)):
        systems.reset(e, int(episode))
    active = systems.active()
    observations = systems.observe(active)
    count, total, squares = 0, np.zeros(form.inputs), np.zeros(form.inputs)
    while active.any():
        seen = form.seen(observations)
        rows = seen[active].reshape(-1, form.inputs).astype(np.float64)
        count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + (rows**2).sum(axis=0)
        systems.set_actions(form.actions(np.tile(form.bias, (*seen.shape[:-1], 1)), observations))
        step = systems.step(active)
        observations = step.observations
        active &= ~(step.terminated | step.truncated)
    if count == 0:
        return total.astype(np.float32), np.ones(len(total), np.float32)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean.astype(np.float32), np.maximum(deviation, LEAST_SCALE).astype(np.float32)
