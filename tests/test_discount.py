"""Discounts by time: advantages by hand, agreement with SB3 where steps are equally long, and the wrappers."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer

import llm_env  # noqa: F401  (registers the environments)
from agents.discount import TimedMaskableRolloutBuffer, TimedRolloutBuffer, timed_advantages
from llm_env.config import scenario_from_dict
from llm_env.wrappers import TimeDiscount, VectorTimeDiscount

ONE = {"horizons_s": [10.0], "reward_scales": [1.0]}
OBSERVATIONS, ACTIONS = spaces.Box(-1, 1, (3,), np.float32), spaces.MultiDiscrete([2, 3])


def test_advantages_with_unequal_steps_are_those_computed_by_hand():
    rewards = np.array([[1.0], [0.0], [2.0]])
    values = np.array([[0.5], [1.0], [0.25]])
    discounts = np.array([[0.9], [0.5], [0.8]])
    found = timed_advantages(rewards, values, discounts, np.ones((3, 1)), np.array([2.0]), 0.5)
    a2 = 2.0 + 0.8 * 2.0 - 0.25  # 3.35
    a1 = 0.0 + 0.5 * 0.25 - 1.0 + 0.5 * 0.5 * a2  # -0.0375
    a0 = 1.0 + 0.9 * 1.0 - 0.5 + 0.9 * 0.5 * a1  # 1.383125
    assert found[:, 0] == pytest.approx([a0, a1, a2])
    assert a0 == pytest.approx(1.383125)


def test_nothing_flows_back_over_the_end_of_an_episode():
    rewards, values, discounts = np.zeros((2, 1)), np.array([[1.0], [5.0]]), np.full((2, 1), 0.9)
    goes_on = np.array([[0.0], [1.0]])
    found = timed_advantages(rewards, values, discounts, goes_on, np.array([100.0]), 0.95)
    assert found[0, 0] == -1.0


def fill(buffer, env=None, dt_s=None, steps=6, num_envs=2):
    """Adds random steps, the same for every buffer; returns last values and ends."""
    rng = np.random.default_rng(0)
    for t in range(steps):
        reward = rng.normal(size=num_envs).astype(np.float32)
        if env is not None:
            env.dt_s, env.rewards, env.scenario_index = dt_s[t], reward.copy(), np.zeros(num_envs, np.int64)
        starts = rng.random(num_envs) < 0.3
        value, log_prob = torch.as_tensor(rng.normal(size=num_envs)), torch.zeros(num_envs)
        buffer.add(np.zeros((num_envs, 3)), np.zeros((num_envs, 2)), reward, starts, value, log_prob)
    return torch.as_tensor(rng.normal(size=num_envs).astype(np.float32)), rng.random(num_envs) < 0.5


@pytest.mark.parametrize(
    ("plain", "timed"),
    [(RolloutBuffer, TimedRolloutBuffer), (MaskableRolloutBuffer, TimedMaskableRolloutBuffer)],
)
def test_equally_long_steps_give_the_advantages_of_sb3(plain, timed):
    gamma, env = float(np.exp(-0.25 / 10.0)), SimpleNamespace()
    theirs = plain(6, OBSERVATIONS, ACTIONS, "cpu", gae_lambda=0.9, gamma=gamma, n_envs=2)
    ours = timed(6, OBSERVATIONS, ACTIONS, "cpu", gae_lambda=0.9, gamma=1.0, n_envs=2, env=env, **ONE)
    theirs.compute_returns_and_advantage(*fill(theirs))
    ours.compute_returns_and_advantage(*fill(ours, env, np.full((6, 2), 0.25)))
    assert np.allclose(ours.advantages, theirs.advantages, rtol=0, atol=1e-6)
    assert np.allclose(ours.returns, theirs.returns, rtol=0, atol=1e-6)


def test_the_value_at_the_horizon_is_discounted_and_not_scaled():
    env = SimpleNamespace(dt_s=np.array([2.0]), rewards=np.array([3.0], np.float32), scenario_index=np.array([0]))
    of_each = {"horizons_s": [4.0], "reward_scales": [0.1]}
    buffer = TimedRolloutBuffer(1, OBSERVATIONS, ACTIONS, "cpu", n_envs=1, env=env, **of_each)
    value = 7.0  # what SB3 adds to the reward where a time limit ended the episode
    reward = env.rewards + np.float32(value)
    buffer.add(np.zeros((1, 3)), np.zeros((1, 2)), reward, np.ones(1), torch.zeros(1), torch.zeros(1))
    assert buffer.rewards[0, 0] == pytest.approx(0.3 + np.exp(-0.5) * value, rel=1e-6)


def test_every_scenario_has_its_own_horizon_and_scale():
    env = SimpleNamespace(dt_s=np.full(3, 2.0), rewards=np.full(3, 3.0, np.float32), scenario_index=np.array([1, 0, 1]))
    of_each = {"horizons_s": [4.0, 10.0], "reward_scales": [0.1, 0.5]}
    buffer = TimedRolloutBuffer(1, OBSERVATIONS, ACTIONS, "cpu", n_envs=3, env=env, **of_each)
    buffer.add(np.zeros((3, 3)), np.zeros((3, 2)), env.rewards.copy(), np.ones(3), torch.zeros(3), torch.zeros(3))
    assert buffer.rewards[0] == pytest.approx([1.5, 0.3, 1.5])
    assert buffer.discounts[0] == pytest.approx(np.exp([-0.2, -0.5, -0.2]))


def test_a_reset_buffer_forgets_its_discounts():
    env = SimpleNamespace()
    buffer = TimedRolloutBuffer(6, OBSERVATIONS, ACTIONS, "cpu", n_envs=2, env=env, **ONE)
    fill(buffer, env, np.full((6, 2), 5.0))
    buffer.reset()
    assert (buffer.discounts == 1.0).all()


# ---- wrappers ------------------------------------------------------------------------------------------------------
CHANGES = {"episode.arrivals_s": 3.0, "episode.warmup_s": 0.5, "episode.horizon_s": 4.0}


def test_the_wrapper_adds_the_discount_of_each_step():
    env = TimeDiscount(gym.make("llm_env/Serving-v0", scenario="chat", changes=CHANGES), horizon_s=10.0)
    env.reset(seed=0)
    info = env.step(np.array([4, 2, 2, 1]))[4]
    assert info["dt_s"] > 0
    assert info["discount"] == float(np.exp(-info["dt_s"] / 10.0))


def test_the_horizon_is_the_scenarios_by_default():
    changes = CHANGES | {"reward.discount_horizon_s": 25.0}
    assert TimeDiscount(gym.make("llm_env/Serving-v0", changes=changes)).horizon_s == 25.0
    assert VectorTimeDiscount(gym.make_vec("llm_env/Serving-v0", 2, changes=changes)).horizon_s.tolist() == [25.0] * 2


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_each_episode_is_discounted_by_the_horizon_of_its_own_scenario(mode):
    scenarios = [
        scenario_from_dict(
            {
                "name": name,
                "reward": {"discount_horizon_s": horizon_s},
                "episode": {"arrivals_s": 3.0, "warmup_s": 0.5, "horizon_s": 4.0},
            }
        )
        for name, horizon_s in (("near", 5.0), ("far", 50.0))
    ]
    env = VectorTimeDiscount(gym.make_vec("llm_env/Serving-v0", 4, scenario=scenarios, autoreset_mode=mode))
    env.reset(seed=0)
    seen, now = set(), env.horizon_s
    for _ in range(200):
        *_, terminated, truncated, infos = env.step(np.array([[4, 2, 2, 1]] * 4))
        ended, final = terminated | truncated, infos.get("final_info", infos)
        for found in (infos, final):
            taken = found["_discount"]
            assert found["discount"][taken] == pytest.approx(np.exp(-found["dt_s"] / now)[taken])
        for e in np.flatnonzero(ended):
            horizon_s = (5.0, 50.0)[int(final["scenario_index"][e])]
            assert now[e] == horizon_s
            seen.add(horizon_s)
        now = env.horizon_s
    assert seen == {5.0, 50.0}


@pytest.mark.parametrize("horizon_s", [0.0, -1.0, float("nan")])
def test_an_impossible_horizon_is_refused(horizon_s):
    with pytest.raises(ValueError, match="horizon_s"):
        TimeDiscount(gym.make("llm_env/Serving-v0"), horizon_s)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_vector_wrapper_discounts_exactly_the_steps_that_were_taken(mode):
    vector = gym.make_vec("llm_env/Serving-v0", 3, changes=CHANGES, autoreset_mode=mode)
    env = VectorTimeDiscount(vector, horizon_s=10.0)
    env.reset(seed=0)
    ends = 0
    for _ in range(120):
        *_, terminated, truncated, infos = env.step(np.array([[4, 2, 2, 1]] * 3))
        for found in (infos, infos.get("final_info", infos)):
            taken = found["_discount"]
            assert (taken == found["_dt_s"]).all()
            assert found["discount"][taken] == pytest.approx(np.exp(-found["dt_s"][taken] / 10.0))
            assert (found["discount"][~taken] == 0).all()
        ended = terminated | truncated
        ends += ended.sum()
        if mode == AutoresetMode.SAME_STEP and ended.any():
            assert (infos["final_info"]["_discount"] == ended).all()
    assert ends > 0
