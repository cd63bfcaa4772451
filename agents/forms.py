"""What a policy of flat weights decides: numbers for the batches of a worker, or which worker gets a request.

For `agents.population`, which runs many of them, and for whoever makes an agent of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from agents.network import Layer, NumpyAgent
from agents.routing_network import INPUTS, NumpyRouter, network_inputs, rule_logits
from llm_env.config import Scenario
from llm_env.features import NUM_FEATURES
from llm_env.routing_systems import RoutingSystems
from llm_env.systems import Systems, Workload

Trained = NumpyAgent | NumpyRouter
NO_NOISE = -20.0  # log of an exploration that rounds to nothing
RULE_WEIGHT = 0.1  # logits per TTFT target of the rule's score: what perturbations of the size of ESSettings can turn
TIES = 0.01  # logits for the rule's choice, which alone knows the better of two scores beyond the features' bounds


class Form(Protocol):
    """One kind of decisions.

    Attributes:
        inputs, outputs: of the network.
        bias: (outputs,) float64, what its last layer begins with.
    """

    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def bias(self) -> np.ndarray: ...

    def systems(self, num_envs: int, workloads: Sequence[Workload]) -> Systems:
        """Systems of the scenarios that are learned."""
        ...

    def seen(self, observations: np.ndarray) -> np.ndarray:
        """What the network is shown, (n, ..., inputs). Args: observations: (n, features) of systems."""
        ...

    def actions(self, outputs: np.ndarray, observations: np.ndarray) -> np.ndarray:
        """Actions of n systems. Args: outputs: (n, ..., outputs) of the network for what `seen` gave."""
        ...

    def agent(self, layers: tuple[Layer, ...], about: dict[str, Any]) -> Trained:
        """The agent that decides as these layers do."""
        ...


@dataclass(frozen=True)
class Deciding:
    """Numbers of a form of action that is a box, by a network that sees all features.

    Attributes:
        scenarios: what is learned.
        action: the form.
        start: (numbers,) the action that it begins with everywhere.
        learned: places of the numbers that the network gives; the others stay as they are. Empty: all.
    """

    scenarios: tuple[Scenario, ...]
    action: str
    start: np.ndarray
    learned: tuple[int, ...] = ()

    @property
    def _places(self) -> list[int]:
        return list(self.learned or range(len(self.start)))

    @property
    def inputs(self) -> int:
        return NUM_FEATURES

    @property
    def outputs(self) -> int:
        return len(self._places)

    @property
    def bias(self) -> np.ndarray:
        return self.start[self._places]

    def systems(self, num_envs: int, workloads: Sequence[Workload]) -> Systems:
        return Systems(self.scenarios, num_envs, self.action, workloads)

    def seen(self, observations: np.ndarray) -> np.ndarray:
        return observations

    def actions(self, outputs: np.ndarray, observations: np.ndarray) -> np.ndarray:
        if not self.learned:
            return outputs
        actions = np.tile(self.start.astype(outputs.dtype), (len(outputs), 1))
        actions[:, self._places] = outputs
        return actions

    def agent(self, layers: tuple[Layer, ...], about: dict[str, Any]) -> NumpyAgent:
        weight, bias = layers[-1]
        whole, all_biases = np.zeros((len(self.start), weight.shape[1]), np.float32), self.start.astype(np.float32)
        whole[self._places], all_biases[self._places] = weight, bias
        return NumpyAgent(
            action=self.action,
            activation="tanh",
            policy=(*layers[:-1], (whole, all_biases)),
            log_std=np.full(len(self.start), NO_NOISE, np.float32),
            about=about,
        )


@dataclass(frozen=True)
class Routing:
    """Workers, by a network that scores each of them, beside the rule "score" with which it begins.

    Attributes:
        scenarios: what is learned; the rule's weights are the same in all.
        base: parameters of the adaptive rule that forms the batches.
    """

    scenarios: tuple[Scenario, ...]
    base: Mapping[str, float]

    @property
    def inputs(self) -> int:
        return INPUTS

    @property
    def outputs(self) -> int:
        return 1

    @property
    def bias(self) -> np.ndarray:
        return np.zeros(1)

    def systems(self, num_envs: int, workloads: Sequence[Workload]) -> RoutingSystems:
        return RoutingSystems(self.scenarios, num_envs, self.base, workloads)

    def seen(self, observations: np.ndarray) -> np.ndarray:
        return network_inputs(observations)

    def actions(self, outputs: np.ndarray, observations: np.ndarray) -> np.ndarray:
        logits = outputs[..., 0] + rule_logits(observations, RULE_WEIGHT, TIES)
        return logits.argmax(axis=1)

    def agent(self, layers: tuple[Layer, ...], about: dict[str, Any]) -> NumpyRouter:
        return NumpyRouter(
            activation="tanh",
            layers=layers,
            rule_weight=RULE_WEIGHT,
            choice_weight=TIES,
            routing=self.scenarios[0].system.routing.model_dump(),
            base=dict(self.base),
            about=about,
        )
