"""Rewards less a reference's: an agent that acts as the reference gets nothing, and episodes sum up exactly."""

from __future__ import annotations

import numpy as np
import pytest

from agents.paired import PairedVecEnv, moore_hodgson_action
from agents.vec_env import ServingVecEnv
from llm_env.adaptive import BUDGET, NEUTRAL, to_unit
from llm_env.systems import Systems
from tests.test_population import SHORT

START = to_unit(NEUTRAL)


def small():
    found = np.array(NEUTRAL)
    found[BUDGET] = 0.3
    return to_unit(found)


def play(env, action, steps=400, seed=5):
    """Rewards (steps, envs), ends, and the infos of the episodes that ended."""
    env.seed(seed)
    env.reset()
    actions = np.tile(action, (env.num_envs, *([1] * np.ndim(action))))
    rewards, ends, infos = [], [], []
    for _ in range(steps):
        _, reward, ended, info = env.step(actions)
        rewards.append(reward)
        ends.append(ended)
        infos.append(info)
    return np.array(rewards), np.array(ends), infos


@pytest.mark.parametrize("stagger", [0, 40])
def test_the_reference_itself_earns_nothing(stagger):
    rewards, ends, infos = play(PairedVecEnv(SHORT, 3, "adaptive", None, stagger, START), START)
    plain, *_ = play(ServingVecEnv(SHORT, 3, "adaptive", stagger_steps=stagger), START)
    assert ends.any()
    after = ends.argmax(axis=0).max() + 1  # staggered episodes began with other actions
    assert (rewards[after if stagger else 0 :] == 0).all()
    assert np.abs(plain).sum() > 10
    e = int(ends.any(axis=0).argmax())
    end = int(ends[:, e].argmax())
    assert infos[end][e]["episode"]["r"] != 0  # what an episode tells of itself is the agent's own


def test_the_differences_of_an_episode_sum_up_to_that_of_the_returns():
    env = PairedVecEnv(SHORT, 2, "adaptive", None, 0, START)
    rewards, ends, infos = play(env, small())
    reference = Systems([SHORT], 1, "adaptive")
    for e in range(2):
        end = int(ends[:, e].argmax())
        assert ends[end, e]
        reference.reset(0, 5 + e)
        total, active = 0.0, reference.active()
        reference.set_actions(START[None])
        while active.any():
            step = reference.step(active)
            total += float(step.rewards[0])
            active = reference.active()
        expected = infos[end][e]["episode"]["r"] - total
        assert abs(expected) > 0.5
        assert rewards[: end + 1, e].sum() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("form", ["multidiscrete", "discrete"])
def test_levels_are_compared_with_moore_hodgson(form):
    reference = moore_hodgson_action(form)
    rewards, ends, _ = play(PairedVecEnv(SHORT, 2, form, None, 0, reference), reference, 300)
    assert ends.any()
    assert (rewards == 0).all()


def test_the_noise_of_the_traffic_cancels_out():
    """Returns of episodes differ by their requests; differences to a reference hardly do."""
    near = np.array(NEUTRAL)
    near[BUDGET] = 0.95
    own, paired = [], []
    env = PairedVecEnv(SHORT, 8, "adaptive", None, 0, START)
    rewards, ends, infos = play(env, to_unit(near))
    for e in range(8):
        end = int(ends[:, e].argmax())
        own.append(infos[end][e]["episode"]["r"])
        paired.append(rewards[: end + 1, e].sum())
    assert np.std(paired) < 0.5 * np.std(own)
