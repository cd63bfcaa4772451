"""What comes of each choice, as targets for learning to route: arrivals as they are seen, and the costs of all workers.

The costs come from `llm_env.routing_lookahead`: what really happens next, the same for each worker. One future is
a noisy label, but a true sample of the conditional law: a regression on many arrivals averages over futures, where
several sampled futures for each arrival would take as many times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agents.routing_network import CHOICE, SCORE, split_observations
from agents.routing_run import Routes
from llm_env.config import Scenario
from llm_env.routing_lookahead import LookAhead
from llm_env.routing_systems import Base, RoutingSystems, base_parameters
from llm_env.systems import NUM_TRAINING_SEEDS, drawn_from


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How arrivals are gathered and labelled."""

    num_envs: int = 24
    """Systems side by side, each in an episode of its own."""

    share: float = 0.12
    """Share of the arrivals that are labelled; neighbours tell much the same."""

    follow: float = 0.6
    """Share of the arrivals that go where the present router says; the others are drawn from a softmax of the rule's
    scores, so that states off the router's path are seen too."""

    temper: float = 8.0
    """Of that softmax: logits per TTFT target of score."""

    ahead_s: float = 12.0
    """Seconds to look ahead."""

    backlog_price: float = 0.5
    """What a second of queued live prefill at the end of the look counts, in missed requests."""

    loads: tuple[float, float] = (0.45, 1.0)
    """Each episode draws its load from here."""


class Labels(NamedTuple):
    """n arrivals."""

    observations: np.ndarray  # (n, length) float32
    costs: np.ndarray  # (n, num_workers) float64, missed requests


def together(labels: Sequence[Labels]) -> Labels:
    """All of them, in order."""
    return Labels(*(np.concatenate(column) for column in zip(*labels, strict=True)))


def gather_labels(
    scenario: Scenario,
    router: Routes,
    count: int,
    seed: int,
    base: Base,
    settings: LabelSettings,
    tell: Callable[[int], None] = lambda done: None,
) -> Labels:
    """Labels of `count` arrivals in training episodes.

    Args:
        router: whom the systems follow for the most part.
        seed: of the episodes, the arrivals that are labelled and the choices that are not the router's.
        base: parameters of the adaptive rule that forms the batches.
        tell: called with the number of labels so far.
    """
    rng, num_envs = np.random.default_rng(seed), settings.num_envs
    systems = RoutingSystems([scenario], num_envs, base, [drawn_from(scenario, settings.loads)])
    look = LookAhead(systems.num_workers, base_parameters(base), settings.ahead_s, settings.backlog_price)
    seeds = [systems.restart(e, int(rng.integers(NUM_TRAINING_SEEDS))) for e in range(num_envs)]
    everyone = np.ones(num_envs, np.bool_)
    observations = systems.observe(everyone)
    seen: list[np.ndarray] = []
    costs: list[np.ndarray] = []
    while len(seen) < count:
        for e in np.flatnonzero(systems.active() & (rng.random(num_envs) < settings.share)):
            seen.append(observations[e].copy())
            costs.append(look.costs(systems.state(int(e)), seeds[e]))
        systems.set_actions(_choices(router, observations, settings, rng))
        step = systems.step(everyone)
        observations, ended = step.observations, step.terminated | step.truncated
        if ended.any():
            for e in np.flatnonzero(ended):
                seeds[e] = systems.restart(int(e), None)
            observations = np.where(ended[:, None], systems.observe(ended), observations)
        tell(len(seen))
    return Labels(np.array(seen[:count]), np.array(costs[:count]))


def _choices(router: Routes, observations: np.ndarray, settings: LabelSettings, rng: np.random.Generator) -> np.ndarray:
    """(num_envs,) workers: the router's, or drawn from a softmax of the rule's scores."""
    scores = split_observations(observations)[0][:, :, SCORE]
    drawn = (rng.gumbel(size=scores.shape) - settings.temper * scores).argmax(axis=1)
    return np.where(rng.random(len(scores)) < settings.follow, router.act(observations), drawn)


def gain_over_rule(labels: Labels, choices: np.ndarray) -> float:
    """Mean of missed requests per arrival that the choices, (n,) workers, save against the rule "score"."""
    rows = np.arange(len(choices))
    rule = split_observations(labels.observations)[0][:, :, CHOICE].argmax(axis=1)
    return float((labels.costs[rows, rule] - labels.costs[rows, choices]).mean())
