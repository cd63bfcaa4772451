"""A trained policy as plain numpy arrays: the forward pass of a small network, the choice of an action. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agents.lstm import LSTM
from llm_env.actions import ACTION_KINDS, BOX, DISCRETE, DISCRETE_TABLE, FLOAT_NAMES, NVEC
from llm_env.features import NUM_FEATURES
from llm_env.ranking import NUM_REQUEST_FEATURES
from llm_env.records import MOST_RANKED
from llm_env.systems import Systems

Layer = tuple[np.ndarray, np.ndarray]  # (out, in) weight and (out,) bias, float32
ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0.0)}
OUTPUTS = {"multidiscrete": sum(NVEC), "discrete": len(DISCRETE_TABLE)}
OUTPUTS |= {kind: len(names) for kind, names in FLOAT_NAMES.items()}
_ENDS = np.cumsum(NVEC)
_SLICES = [slice(int(end) - n, int(end)) for end, n in zip(_ENDS, NVEC, strict=True)]


@dataclass(frozen=True, kw_only=True)
class NumpyAgent:
    """A policy: features in, actions out.

    Attributes:
        action: one of `llm_env.actions.ACTION_KINDS`.
        activation: "tanh" or "relu", after every layer but the last.
        policy: layers from features, or from what the LSTM gives, to logits (or the means of floats).
        log_std: (n,) of floats.
        values: layers from features to the value, None if they were not kept.
        scorer: of the form "ranked", layers from [features of a request, output of the policy's last hidden layer] to
            its score; `policy` then gives the numbers of the rule alone.
        lstm: of an agent with memory, from features to the first layer; None of one that decides by what it sees now.
        masked: it was trained with action masks, and `llm_env` runs give them to it.
        about: the metadata of its file.
    """

    action: str
    activation: str
    policy: tuple[Layer, ...]
    log_std: np.ndarray | None = None
    values: tuple[Layer, ...] | None = None
    scorer: tuple[Layer, ...] | None = None
    lstm: LSTM | None = None
    masked: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def memory(self, num_systems: int) -> np.ndarray | None:
        """What an agent with memory knows when episodes begin, None of one without.

        Where an episode ends and another begins, set its row to 0.

        Returns:
            (num_systems, 2 x width of the LSTM) float32.
        """
        return None if self.lstm is None else self.lstm.memory(num_systems)

    def logits(self, observations: np.ndarray, memory: np.ndarray | None = None) -> np.ndarray:
        """(n, number of logits) float32; of floats, the means. Arguments and errors as `act`."""
        if self.lstm is not None:
            if memory is None:
                raise ValueError(
                    "memory: this agent has one: begin with agent.memory(n) and give it at every decision of an episode"
                )
            observations = self.lstm.step(observations, memory)
        elif memory is not None:
            raise ValueError("memory: this agent has none: give None, as agent.memory(n) does")
        if self.scorer is None:
            return self._forward(self.policy, observations)
        trunk = self._hidden(self.policy, observations[:, :NUM_FEATURES])
        requests = observations[:, NUM_FEATURES:].reshape(-1, MOST_RANKED, NUM_REQUEST_FEATURES)
        beside = np.broadcast_to(trunk[:, None, :], (*requests.shape[:2], trunk.shape[1]))
        scores = self._forward(self.scorer, np.concatenate([requests, beside], axis=2))[:, :, 0] * requests[:, :, 0]
        weight, bias = self.policy[-1]
        return np.concatenate([scores, trunk @ weight.T + bias], axis=1)

    def value(self, observations: np.ndarray) -> np.ndarray:
        """(n,) float32 estimates of the discounted reward to come, in the units of the training.

        Raises:
            ValueError: the value layers were not kept.
        """
        if self.values is None:
            raise ValueError("this agent was kept without its value layers")
        return self._forward(self.values, observations[:, :NUM_FEATURES])[:, 0]

    def _hidden(self, layers: tuple[Layer, ...], x: np.ndarray) -> np.ndarray:
        activation = ACTIVATIONS[self.activation]
        for weight, bias in layers[:-1]:
            x = activation(x @ weight.T + bias)
        return x

    def _forward(self, layers: tuple[Layer, ...], x: np.ndarray) -> np.ndarray:
        weight, bias = layers[-1]
        return self._hidden(layers, x) @ weight.T + bias

    def act(
        self,
        observations: np.ndarray,
        deterministic: bool = True,
        rng: np.random.Generator | None = None,
        masks: np.ndarray | None = None,
        memory: np.ndarray | None = None,
    ) -> np.ndarray:
        """Chooses actions.

        Args:
            observations: (n, features) float32.
            deterministic: the most probable action; else one drawn with rng.
            rng: needed to draw.
            masks: (n, number of logits) bool, the levels to choose from.
            memory: of an agent that has one, what `memory` gave, one row a system; changed in place.

        Returns:
            (n, 4) int64 levels, (n,) int64 indices, or (n, number of floats) float64 within [-1, 1].

        Raises:
            ValueError: a draw without rng; an agent with memory without it, or with that of another one.
        """
        if not deterministic and rng is None:
            raise ValueError("rng: a random action needs a generator")
        logits = self.logits(observations, memory)
        kind = ACTION_KINDS.index(self.action)
        if kind >= BOX:
            if rng is not None and self.log_std is not None and not deterministic:
                logits = logits + np.exp(self.log_std) * rng.standard_normal(logits.shape)
            return np.clip(logits.astype(np.float64), -1.0, 1.0)
        if masks is not None:
            logits = np.where(masks, logits, -np.inf)
        if rng is not None and not deterministic:
            logits = logits + rng.gumbel(size=logits.shape)  # the largest of logits + Gumbel noise is a softmax draw
        if kind == DISCRETE:
            return logits.argmax(axis=1)
        return np.stack([logits[:, part].argmax(axis=1) for part in _SLICES], axis=1)

    def deciding(
        self, systems: Systems, deterministic: bool = True, rng: np.random.Generator | None = None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """What it does in systems from the beginning of their episodes on: `act` with their masks and its memory."""
        memory = self.memory(systems.num_envs)
        return lambda observations: self.act(
            observations, deterministic, rng, systems.masks() if self.masked else None, memory
        )
