"""Warm start by imitation: a policy of levels learns to choose as a teacher does, on what it meets itself.

In each round the student runs, the teacher says what it would do at every decision, and the student is fitted to all
that was said so far. Since it is asked where the student leads, mistakes do not pile up as they do when one learns
from the teacher's own runs. In the first round the teacher's choices are taken, then by halves the student's own.
Source: DAgger: Ross, Gordon and Bagnell, "A reduction of imitation learning and structured prediction to no-regret
online learning" (AISTATS 2011), section 3 and algorithm 3.1, with beta_i = 2^-i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch

from agents.vec_env import ServingVecEnv
from llm_env.actions import (
    BUDGET_LEVELS,
    CHUNK_LEVELS,
    DISCRETE_TABLE,
    MIX_DECODE,
    MIX_FULL,
    MIX_HALF,
    MIX_PREFILL_FIRST,
    MULTIDISCRETE,
    ORDERS,
)
from llm_env.errors import UserError
from llm_env.records import MOORE_HODGSON, PREFILL_FIRST, QUEUE_ORDERS, Decision, State

Levels = tuple[int, int, int, int]  # budget, mix, chunk, order
Teacher = Callable[[State], Levels]  # a system at a decision -> what should be done
NUM_ENVS = 32  # systems in which a round is gathered
_HALF_UP_TO = 0.75  # a prefill share of the budget below this is nearer to half than to all of it


@dataclass(frozen=True, kw_only=True)
class ImitationSettings:
    """A warm start of ppo with multidiscrete or discrete actions."""

    teacher: str = ""
    """Who is imitated before ppo begins: a baseline with its parameters, like adaptive@tuned; none by default."""

    lookahead: bool = False
    """Imitate look-ahead over the 18 combinations of the discrete form, with that baseline as its base: some 10 ms a
    decision, one worker."""

    rounds: int = 4
    """How often the student runs and is fitted."""

    decisions: int = 20_000
    """In each round, on which the teacher is asked."""

    explore: float = 0.02
    """Share of what is learned that is drawn from the policy as it began, so that ppo still finds something to try."""

    epochs: int = 6
    """Passes over all decisions so far, in each round."""

    learning_rate: float = 1e-3
    """Of Adam, while imitating."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("rounds", 1, 1000),
            ("decisions", 1, 10**7),
            ("explore", 0.0, 1.0),
            ("epochs", 1, 1000),
            ("learning_rate", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"imitate.{name.replace('_', '-')}: expected {low:g} to {high:g}, got {value!r}")
        if self.lookahead and not self.teacher:
            raise UserError("imitate.lookahead: needs the base that it looks ahead with: --imitate.teacher POLICY")


# ---- what a Decision is among the levels ---------------------------------------------------------------------------
def nearest_levels(decision: Decision, slo_budget: float) -> Levels:
    """The levels that are most like a decision: budgets and chunks by their ratio, mix and order as they are.

    Args:
        decision: of a policy.
        slo_budget: tau* of the worker, as in the View.

    Raises:
        UserError: its queue order is not among the actions'.
    """
    if decision.order not in ORDERS:
        raise UserError(
            f"imitate.teacher: its queue order is {QUEUE_ORDERS[decision.order]}, expected one of "
            + ", ".join(QUEUE_ORDERS[order] for order in ORDERS)
        )
    wanted = decision.token_budget / max(1.0, slo_budget)
    budget = min(range(len(BUDGET_LEVELS)), key=lambda k: abs(log(wanted / BUDGET_LEVELS[k])))
    chunk = min(range(len(CHUNK_LEVELS)), key=lambda k: abs(log(max(1, decision.chunk_tokens) / CHUNK_LEVELS[k])))
    mix = MIX_FULL
    if decision.packing == PREFILL_FIRST:
        mix = MIX_PREFILL_FIRST
    elif decision.prefill_tokens == 0:
        mix = MIX_DECODE
    elif decision.prefill_tokens < _HALF_UP_TO * decision.token_budget:
        mix = MIX_HALF
    return budget, mix, chunk, ORDERS.index(decision.order)


def nearest_entry(levels: Levels) -> int:
    """The entry of the discrete form most like some levels: the mix counts before the order, that before the budget.

    An order that the form does not have is taken for Moore-Hodgson, which goes by deadlines and by length.
    """
    budget, mix, _, order = levels
    if all(order != entry[3] for entry in DISCRETE_TABLE):
        order = ORDERS.index(MOORE_HODGSON)

    def unlike(k: int) -> tuple[bool, bool, float]:
        entry = DISCRETE_TABLE[k]
        return entry[1] != mix, entry[3] != order, abs(log(BUDGET_LEVELS[entry[0]] / BUDGET_LEVELS[budget]))

    return min(range(len(DISCRETE_TABLE)), key=unlike)


# ---- the loop ------------------------------------------------------------------------------------------------------
Act = Callable[[np.ndarray], np.ndarray]  # observations -> actions that are drawn


def imitate(
    model: Any,
    env: ServingVecEnv,
    teacher: Teacher,
    settings: ImitationSettings,
    seed: int,
    act: Callable[[], Act],
    tell: Callable[[str], object],
) -> list[float]:
    """Fits the policy of a learner to a teacher.

    Args:
        model: PPO or MaskablePPO of Stable-Baselines3 with levels; its policy's actor is changed.
        env: systems of its own, whose episodes have been seeded.
        teacher: asked at every decision of every system.
        settings: how.
        seed: of the mixture, and of the order in which decisions are learned.
        act: gives what the present policy does.
        tell: called with a line for each round.

    Returns:
        In each round, the share of the decisions at which the student, before it was fitted, chose as the teacher.
    """
    rng = np.random.default_rng([seed, 1])
    optimiser = torch.optim.Adam(model.policy.parameters(), settings.learning_rate)
    seen: list[np.ndarray] = []
    said: list[np.ndarray] = []
    agreed: list[float] = []
    observations, first = env.reset(), act()
    for k in range(settings.rounds):
        student, same, count = act(), 0, 0
        while count < settings.decisions:
            labels = np.array([_label(teacher, env, e) for e in range(env.num_envs)])
            own = student(observations)
            same += int((own == labels).reshape(len(own), -1).all(axis=1).sum())
            count += len(own)
            seen.append(observations)
            explores = (rng.random(len(own)) < settings.explore).reshape(-1, *[1] * (own.ndim - 1))
            said.append(np.where(explores, first(observations), labels))
            follows = rng.random(len(own)) < 0.5**k
            env.step_async(np.where(follows.reshape(-1, *[1] * (own.ndim - 1)), labels, own))
            observations = env.step_wait()[0]
        agreed.append(same / count)
        error = _fit(model.policy, optimiser, np.concatenate(seen), np.concatenate(said), settings, rng)
        share = f"{100 * same / count:.1f} % of {count:,} decisions"
        tell(f"imitation {k + 1} of {settings.rounds}: had agreed in {share}, loss {error:.3f}")
    return agreed


def _label(teacher: Teacher, env: ServingVecEnv, e: int) -> Any:
    levels = teacher(env.state(e))
    return levels if env.action_kind == MULTIDISCRETE else nearest_entry(levels)


def _fit(
    policy: Any,
    optimiser: torch.optim.Optimizer,
    seen: np.ndarray,
    said: np.ndarray,
    settings: ImitationSettings,
    rng: np.random.Generator,
    minibatch: int = 1024,
) -> float:
    """Maximises the likelihood of what was said. Returns its mean negative logarithm in the last pass."""
    inputs, targets = torch.as_tensor(seen), torch.as_tensor(said)
    total = 0.0
    for _ in range(settings.epochs):
        places, total = rng.permutation(len(seen)), 0.0
        for first in range(0, len(places), minibatch):
            some = torch.as_tensor(places[first : first + minibatch])
            _, likelihood, _ = policy.evaluate_actions(inputs[some], targets[some])
            loss = -likelihood.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(some)
    return total / len(seen)


def checked(settings: ImitationSettings, form: str, algo: str) -> None:
    """Whether there is something to imitate with.

    Raises:
        UserError: another form of action, or another algorithm.
    """
    if settings.teacher and (algo not in ("ppo", "maskable-ppo") or form not in ("multidiscrete", "discrete")):
        raise UserError(
            "imitate.teacher: only for --algo ppo or maskable-ppo with --action multidiscrete or discrete, got "
            f"{algo} with {form}; numbers of a rule begin at a rule with --init tuned"
        )


Teachers = Callable[[ImitationSettings, Sequence[Any]], Teacher]  # settings, scenarios -> who is imitated
