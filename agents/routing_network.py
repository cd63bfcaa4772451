"""A router as plain numpy arrays: one small network that scores every worker in the same way. No torch.

The score of worker w is made of its own features, those of the request and the pool, and the mean of all workers'
features; so the number of workers is free, and renumbering them renumbers the choice. The network's output is added to
the rule "score", with which it begins: as the last layer is zero at first, an untrained router is the rule.
Source: Zaheer et al., "Deep sets" (NeurIPS 2017), section 3.1, permutation equivariance by a shared network and a
pooled context; Silver et al., "Residual policy learning" (arXiv:1812.06298, 2018), learning on top of a rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.network import ACTIVATIONS, Layer
from llm_env.routing_features import (
    GLOBAL_FEATURE_NAMES,
    NUM_GLOBAL_FEATURES,
    NUM_WORKER_FEATURES,
    WORKER_FEATURE_NAMES,
)

INPUTS = 2 * NUM_WORKER_FEATURES + NUM_GLOBAL_FEATURES  # of the shared network
SCORE, CHOICE = WORKER_FEATURE_NAMES.index("score"), WORKER_FEATURE_NAMES.index("choice")
FEATURES = (*WORKER_FEATURE_NAMES, *GLOBAL_FEATURE_NAMES)


def split_observations(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The features of the workers, (n, num_workers, NUM_WORKER_FEATURES), and the global ones, as views.

    Args:
        observations: (n, num_workers * NUM_WORKER_FEATURES + NUM_GLOBAL_FEATURES), of any number of workers.
    """
    n, length = observations.shape
    num_workers = (length - NUM_GLOBAL_FEATURES) // NUM_WORKER_FEATURES
    ends = num_workers * NUM_WORKER_FEATURES
    return observations[:, :ends].reshape(n, num_workers, NUM_WORKER_FEATURES), observations[:, ends:]


def network_inputs(observations: np.ndarray) -> np.ndarray:
    """(n, num_workers, INPUTS) float32: what the shared network sees of each worker."""
    workers, pool = split_observations(observations)
    mean = np.broadcast_to(workers.mean(axis=1, keepdims=True), workers.shape)
    shared = np.broadcast_to(pool[:, None], (*workers.shape[:2], NUM_GLOBAL_FEATURES))
    return np.concatenate([workers, mean, shared], axis=2)


def rule_logits(observations: np.ndarray, rule_weight: float, choice_weight: float) -> np.ndarray:
    """(n, num_workers) float32: what the rule says of each worker (weights: see `NumpyRouter`)."""
    workers, _ = split_observations(observations)
    return choice_weight * workers[:, :, CHOICE] - rule_weight * workers[:, :, SCORE]


@dataclass(frozen=True, kw_only=True)
class NumpyRouter:
    """A router: observations of `llm_env/Routing-v0` in, workers out.

    Attributes:
        activation: "tanh" or "relu", after every layer but the last.
        layers: from INPUTS to 1, of the shared network.
        rule_weight: logits per TTFT target of score: what the rule says counts -rule_weight * score.
        choice_weight: logits for the rule's choice.
        routing: `[system.routing]` settings, the weights of the rule that it builds on.
        base: parameters of the adaptive rule that formed batches while it was trained.
        about: the metadata of its file.
    """

    activation: str
    layers: tuple[Layer, ...]
    rule_weight: float
    choice_weight: float
    routing: dict[str, float] = field(default_factory=dict)
    base: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def logits(self, observations: np.ndarray) -> np.ndarray:
        """(n, num_workers) float32. Args: observations: (n, length) float32."""
        x = network_inputs(observations)
        activation = ACTIVATIONS[self.activation]
        for weight, bias in self.layers[:-1]:
            x = activation(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return (x @ weight.T + bias)[:, :, 0] + rule_logits(observations, self.rule_weight, self.choice_weight)

    def act(
        self, observations: np.ndarray, deterministic: bool = True, rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """Chooses workers, (n,) int64: the most probable, or one drawn with rng.

        Raises:
            ValueError: a draw without rng.
        """
        logits = self.logits(observations)
        if not deterministic:
            if rng is None:
                raise ValueError("rng: a random action needs a generator")
            logits = logits + rng.gumbel(size=logits.shape)  # the largest of logits + Gumbel noise is a softmax draw
        return logits.argmax(axis=1)
