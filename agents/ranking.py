"""A policy that ranks the requests that wait: one small scorer, whose weights all of them share.

The features of the system go through a trunk; its output gives the numbers of the adaptive rule, and with the features
of one request the score of that request. So the scores are permuted as the requests are, whoever they are.

Source: shared weights over a set: Zaheer et al., "Deep Sets" (NeurIPS 2017), section 2; scoring each candidate with the
state's embedding: Mao et al., "Learning scheduling algorithms for data processing clusters" (SIGCOMM 2019), section 5.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from llm_env.adaptive import NAMES
from llm_env.features import NUM_FEATURES
from llm_env.ranking import NUM_REQUEST_FEATURES
from llm_env.records import MOST_RANKED

SCORER_WIDTH = 32
SMALL = 0.01  # gain of the last layers at first, as Stable-Baselines3 has it for all actions


class Scorer(nn.Module):
    """Means of the actions and the latent of the value, from observations of the form "ranked".

    Attributes:
        policy_net: the trunk over the features of the system.
        head: from its output to the numbers of the rule.
        scorer: over [features of a request, output of the trunk].
        score: from its output to the score.
        value_net: over the features of the system.
    """

    def __init__(self, hidden: list[int], activation: type[nn.Module]) -> None:
        super().__init__()
        self.policy_net = _network((NUM_FEATURES, *hidden), activation)
        self.head = nn.Linear(hidden[-1], len(NAMES))
        self.scorer = _network((NUM_REQUEST_FEATURES + hidden[-1], SCORER_WIDTH), activation)
        self.score = nn.Linear(SCORER_WIDTH, 1)
        self.value_net = _network((NUM_FEATURES, *hidden), activation)
        self.latent_dim_pi, self.latent_dim_vf = MOST_RANKED + len(NAMES), hidden[-1]

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, actions) means and (n, width) latents of the value."""
        return self.forward_actor(observations), self.forward_critic(observations)

    def forward_actor(self, observations: torch.Tensor) -> torch.Tensor:
        """(n, MOST_RANKED + len(NAMES)) means: scores, 0 where there is no request, then the numbers of the rule."""
        trunk = self.policy_net(observations[:, :NUM_FEATURES])
        requests = observations[:, NUM_FEATURES:].reshape(-1, MOST_RANKED, NUM_REQUEST_FEATURES)
        beside = trunk[:, None, :].expand(-1, MOST_RANKED, -1)
        scores = self.score(self.scorer(torch.cat([requests, beside], dim=2)))[:, :, 0] * requests[:, :, 0]
        return torch.cat([scores, self.head(trunk)], dim=1)

    def forward_critic(self, observations: torch.Tensor) -> torch.Tensor:
        """(n, width)."""
        return self.value_net(observations[:, :NUM_FEATURES])


def _network(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers)


class RankingPolicy(ActorCriticPolicy):
    """An ActorCriticPolicy whose actor is a `Scorer`; `net_arch` is the list of widths of trunk and value."""

    mlp_extractor: Any
    action_net: Any
    optimizer_class: Any

    def _build_mlp_extractor(self) -> None:
        assert isinstance(self.net_arch, list)
        self.mlp_extractor = Scorer([int(width) for width in self.net_arch], self.activation_fn)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the scorer's output is the means already
        for last in (self.mlp_extractor.head, self.mlp_extractor.score):
            self.init_weights(last, SMALL)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def begin_at(self, action: np.ndarray) -> None:
        """It takes one action everywhere. Args: action: (MOST_RANKED + n,), all scores the same."""
        with torch.no_grad():
            for last, bias in ((self.mlp_extractor.score, action[:1]), (self.mlp_extractor.head, action[MOST_RANKED:])):
                last.weight.zero_()
                last.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))
