"""PPO, MaskablePPO and RecurrentPPO of Stable-Baselines3 with settings for this problem: large batches, timed discount.

Source: Schulman et al., "Proximal policy optimization algorithms" (arXiv:1707.06347, 2017); masks: Huang and Ontañón,
"A closer look at invalid action masking in policy gradient algorithms" (FLAIRS 2022). RecurrentPPO has an LSTM each for
policy and value, and begins a sequence with the memory that was stored when it was collected: Kapturowski et al.,
"Recurrent experience replay in distributed reinforcement learning" (ICLR 2019), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule

from agents.discount import TimedMaskableRolloutBuffer, TimedRecurrentRolloutBuffer, TimedRolloutBuffer
from agents.lstm import MAX_HIDDEN
from agents.ranking import RankingPolicy
from agents.vec_env import ServingVecEnv
from llm_env.actions import (
    BOX,
    BUDGET_LEVELS,
    CHUNK_LEVELS,
    MIX_FULL,
    MIX_PREFILL_FIRST,
    MULTIDISCRETE,
    NVEC,
    ORDERS,
    RANKED,
)
from llm_env.errors import UserError
from llm_env.records import MOORE_HODGSON, UNLIMITED
from llm_env.workload import estimated_rate

ACTIVATION = "tanh"
BOX_LOG_STD = -1.5  # a box explores within about a fifth of its range
# What a multidiscrete policy that begins with a heuristic adds to its logits, and the share of draws that this gives
ABOVE_TARGET = -6.0  # each budget above the TBT target: 0.05 %
PREFILL_FIRST = -4.0  # prefill ahead of decodes: 0.2 %
FULL_MIX = 2.0  # 78 %
WHOLE_PROMPTS = 5.0  # 99 %
MOORE_HODGSON_ORDER = 1.0  # 40 %


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Hyperparameters of learning."""

    num_steps: int = 64
    """Steps of each environment between updates."""

    minibatch: int = 4096
    """Samples per gradient step."""

    epochs: int = 4
    """Passes over the samples of a rollout."""

    learning_rate: float = 1.5e-3
    """Of Adam; falls linearly to a tenth of it."""

    horizon_s: float | None = 15.0
    """H of the discount exp(-dt / H) that learning uses; None: the scenario's reward.discount_horizon_s. A shorter one
    has less noise."""

    gae_lambda: float = 0.95
    """Weight of later steps in the advantages."""

    entropy: float = 0.001
    """Bonus for undecided policies."""

    clip: float = 0.2
    """How far a probability may move per update, as a ratio."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of policy and value."""

    lstm_hidden: int = 64
    """Width of the memory of policy and of value, ahead of these layers; of recurrent-ppo."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_steps", 1, 100_000),
            ("minibatch", 1, 1 << 24),
            ("epochs", 1, 1000),
            ("learning_rate", 0.0, 1.0),
            ("gae_lambda", 0.0, 1.0),
            ("entropy", 0.0, 10.0),
            ("clip", 1e-6, 10.0),
            ("lstm_hidden", 1, MAX_HIDDEN),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"{name.replace('_', '-')}: expected {low:g} to {high:g}, got {value!r}")
        if self.horizon_s is not None and not (self.horizon_s > 0 and math.isfinite(self.horizon_s)):
            raise UserError(f"horizon-s: expected above 0, got {self.horizon_s!r}")
        if not 1 <= len(self.hidden) <= 8 or not all(1 <= width <= 4096 for width in self.hidden):
            raise UserError(f"hidden: expected 1 to 8 widths from 1 to 4096, got {self.hidden!r}")


def make_ppo(
    env: ServingVecEnv,
    settings: PPOSettings | None = None,
    seed: int = 0,
    masked: bool = False,
    start: np.ndarray | None = None,
    undecided: bool = False,
    recurrent: bool = False,
) -> PPO | MaskablePPO | RecurrentPPO:
    """A learner on one torch thread of the CPU, where these networks are fastest.

    Rewards are divided by the requests of one discount horizon, so that values are of order 1 at any scale. Of several
    scenarios each has its own horizon, unless the settings give one, and its own divisor.

    Args:
        env: what it learns on; seeded with `seed`, so call `env.seed` afterwards for other episodes.
        settings: hyperparameters.
        seed: of the weights, the drawn actions and the minibatches.
        masked: MaskablePPO in place of PPO, for multidiscrete actions.
        start: (actions,) the action that a policy of floats begins with everywhere; None: left to chance.
        undecided: a multidiscrete policy begins with no preference.
        recurrent: RecurrentPPO in place of PPO, for all forms of actions but the ranked ones.
    """
    settings = settings or PPOSettings()
    torch.set_num_threads(1)
    horizons_s = [settings.horizon_s or scenario.reward.discount_horizon_s for scenario in env.scenarios]
    policy_kwargs: dict[str, Any] = {"net_arch": list(settings.hidden), "activation_fn": torch.nn.Tanh}
    if env.action_kind >= BOX:
        policy_kwargs["log_std_init"] = BOX_LOG_STD
    policy: Any = RankingPolicy if env.action_kind == RANKED else "MlpPolicy"
    samples = settings.num_steps * env.num_envs
    timed: dict[str, Any] = {
        "env": env,
        "horizons_s": horizons_s,
        "reward_scales": [
            1.0 / (estimated_rate(scenario) * horizon_s)
            for scenario, horizon_s in zip(env.scenarios, horizons_s, strict=True)
        ],
    }
    learner: Any = MaskablePPO if masked else PPO
    buffer: dict[str, Any] = {
        "rollout_buffer_class": TimedMaskableRolloutBuffer if masked else TimedRolloutBuffer,
        "rollout_buffer_kwargs": timed,
    }
    if recurrent:
        learner, policy, buffer = RecurrentPPO, "MlpLstmPolicy", {}  # which makes its buffer by itself
        policy_kwargs["lstm_hidden_size"] = settings.lstm_hidden
    model = learner(
        policy,
        env,
        n_steps=settings.num_steps,
        batch_size=_divisor(samples, settings.minibatch),
        n_epochs=settings.epochs,
        learning_rate=LinearSchedule(settings.learning_rate, settings.learning_rate / 10, 1.0),
        gamma=1.0,  # the buffer discounts by time
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.entropy,
        vf_coef=1.0,
        clip_range=settings.clip,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device="cpu",
        **buffer,
    )
    if recurrent:
        own = model.rollout_buffer
        model.rollout_buffer = TimedRecurrentRolloutBuffer(
            own.buffer_size,
            own.observation_space,
            own.action_space,
            own.hidden_state_shape,
            own.device,
            gae_lambda=own.gae_lambda,
            gamma=own.gamma,
            n_envs=own.n_envs,
            **timed,
        )
    if env.action_kind == MULTIDISCRETE and not undecided:
        _begin_within_promises(model.policy.action_net)
    if start is not None and isinstance(model.policy, RankingPolicy):
        model.policy.begin_at(start)
    elif start is not None:
        begin_at(model.policy.action_net, start)
    return model


def begin_at(last: Any, action: np.ndarray) -> None:
    """A policy of floats takes one action everywhere. Args: last: its last layer, changed in place; action: (n,)."""
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.as_tensor(action, dtype=torch.float32))


def _divisor(samples: int, most: int) -> int:
    """The largest minibatch up to `most` that leaves no remainder."""
    return next(size for size in range(min(most, samples), 0, -1) if samples % size == 0)


def _begin_within_promises(last: Any) -> None:
    """Starts a multidiscrete policy among the choices that keep an iteration within the TBT target.

    From an undecided start nearly every request has its TBT promise broken by one of the exploring batches, so nothing
    that is done about TTFT is ever rewarded: in trials such runs had learned nothing after 400,000 steps.

    Args:
        last: linear layer with sum(NVEC) outputs; its bias is changed in place.
    """
    budgets, mixes, chunks, orders = np.split(np.arange(sum(NVEC)), np.cumsum(NVEC)[:-1])
    with torch.no_grad():
        last.bias[budgets[np.array(BUDGET_LEVELS) > 1.0]] += ABOVE_TARGET
        last.bias[mixes[MIX_PREFILL_FIRST]] += PREFILL_FIRST
        last.bias[mixes[MIX_FULL]] += FULL_MIX
        last.bias[chunks[CHUNK_LEVELS.index(UNLIMITED)]] += WHOLE_PROMPTS
        last.bias[orders[ORDERS.index(MOORE_HODGSON)]] += MOORE_HODGSON_ORDER
