"""The SB3 adapter: the same episodes, step by step, as the Gymnasium vector form, told in SB3's conventions."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import VecMonitor

from agents.vec_env import ServingVecEnv
from llm_env.actions import MASK_LENGTH
from llm_env.config import scenario_from_dict
from llm_env.systems import NUM_TRAINING_SEEDS, OUTCOME_KEYS, SCENARIO_INDEX
from llm_env.vector import ServingVectorEnv
from llm_env.workload import Traffic, Windows

SHORT = {"episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 5.0}, "workload": {"load": 0.7}}
DRAINED = {"episode": {"arrivals_s": 4.0, "warmup_s": 0.5, "horizon_s": 500.0}, "workload": {"load": 0.7}}


OTHER = {
    "name": "other",
    "system": {"workers": 2, "max_running": 16},
    "episode": {"arrivals_s": 3.0, "warmup_s": 0.5, "horizon_s": 4.0},
    "reward": {"first_token": 0.5, "token": 0.1},
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("action", ["multidiscrete", "discrete", "box", "adaptive", "ranked", "roles"])
def test_every_step_equals_that_of_the_gymnasium_vector_form(action, mixed):
    scenario = [scenario_from_dict(SHORT), scenario_from_dict(OTHER)] if mixed else scenario_from_dict(SHORT)
    ours = ServingVecEnv(scenario, 3, action)
    theirs = ServingVectorEnv(3, scenario, action, autoreset_mode=AutoresetMode.SAME_STEP)
    ours.seed(40)
    first, infos = theirs.reset(seed=40)
    assert (ours.reset() == first).all()
    assert [info["episode_seed"] for info in ours.reset_infos] == [40, 41, 42] == infos["episode_seed"].tolist()
    theirs.action_space.seed(1)
    ends = 0
    for _ in range(500 if mixed else 250):
        actions = theirs.action_space.sample()
        observations, rewards, dones, infos = ours.step(actions)
        o, r, terminated, truncated, i = theirs.step(actions)
        assert (observations == o).all()
        assert (rewards == r.astype(np.float32)).all()
        assert rewards.dtype == np.float32
        assert (dones == (terminated | truncated)).all()
        for e in range(3):
            if not dones[e]:
                assert infos[e] == {}
                continue
            ends += 1
            assert (infos[e]["terminal_observation"] == i["final_obs"][e]).all()
            assert infos[e]["TimeLimit.truncated"] == truncated[e]
            for key in OUTCOME_KEYS:
                if i["final_info"][f"_{key}"][e]:
                    assert infos[e][key] == i["final_info"][key][e]
        alive = ~dones
        assert (ours.dt_s[alive] == i["dt_s"][alive]).all()
    assert ends > 3
    if action == "multidiscrete":
        assert (ours.action_masks() == theirs.action_masks()).all()


def test_an_episode_reports_its_return_and_length():
    env = ServingVecEnv(scenario_from_dict(DRAINED), 2)
    env.seed(7)
    env.reset()
    actions, sums, lengths, seen = np.array([[4, 2, 2, 1]] * 2), np.zeros(2), np.zeros(2, int), 0
    for _ in range(400):
        _, rewards, dones, infos = env.step(actions)
        sums += rewards
        lengths += 1
        for e in np.flatnonzero(dones):
            assert infos[e]["episode"]["r"] == pytest.approx(sums[e], abs=1e-4)
            assert infos[e]["episode"]["l"] == lengths[e]
            assert infos[e]["episode"]["t"] > 0
            assert infos[e]["TimeLimit.truncated"] is False
            sums[e], lengths[e], seen = 0, 0, seen + 1
    assert seen >= 2


def test_the_horizon_truncates():
    env = ServingVecEnv(scenario_from_dict(SHORT), 2)
    env.seed(7)
    env.reset()
    for _ in range(300):
        *_, dones, infos = env.step(np.array([[0, 0, 0, 0]] * 2))
        if dones.any():
            assert infos[int(np.flatnonzero(dones)[0])]["TimeLimit.truncated"] is True
            return
    pytest.fail("no episode ended")


def test_rewards_that_sb3_changes_in_place_stay_whole_for_the_buffer():
    env = ServingVecEnv(scenario_from_dict(SHORT), 2)
    env.reset()
    _, rewards, *_ = env.step(np.zeros((2, 4), np.int64))
    rewards += 5.0
    assert (env.rewards == rewards - 5.0).all()


def test_masks_are_found_by_maskable_ppo():
    env = ServingVecEnv(scenario_from_dict(SHORT), 3)
    env.reset()
    assert is_masking_supported(env)
    assert get_action_masks(env).shape == (3, MASK_LENGTH)
    assert (get_action_masks(env) == env.action_masks()).all()
    assert (env.get_attr("action_masks", 1)[0]() == env.action_masks()[1]).all()
    assert len(env.env_method("action_masks", indices=[0, 2])) == 2
    assert not is_masking_supported(ServingVecEnv(scenario_from_dict(SHORT), 1, "box"))


def test_it_says_what_it_does_not_have():
    env = ServingVecEnv(scenario_from_dict(SHORT), 2)
    assert not env.has_attr("spec")
    assert env.env_is_wrapped(VecMonitor) == [False, False]  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="render"):
        env.env_method("render")
    with pytest.raises(AttributeError, match="scenario"):
        env.set_attr("scenario", None)
    with pytest.raises(ValueError, match="num_envs"):
        ServingVecEnv(scenario_from_dict(SHORT), 0)


def test_it_can_be_monitored_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = VecMonitor(ServingVecEnv(scenario_from_dict(SHORT), 2))
    env.seed(0)
    env.reset()
    for _ in range(120):
        *_, dones, infos = env.step(np.array([[4, 2, 2, 1]] * 2))
        if dones.any():
            assert infos[int(np.flatnonzero(dones)[0])]["episode"]["l"] > 0


@pytest.mark.parametrize("stagger_steps", [0, 30])
def test_windows_without_requests_break_the_episodes_or_their_means(stagger_steps):
    """Bursts of 1 s every 40 s under episodes of 4 s: about 7 of 8 have no request."""
    scenario = scenario_from_dict(SHORT)
    times = (40.0 * np.arange(50)[:, None] + np.arange(10) / 10).ravel()
    lengths = np.full(times.size, 40, np.int32)
    env = ServingVecEnv(
        scenario, 6, workloads=[Windows(Traffic(times, lengths, lengths), scenario).cut], stagger_steps=stagger_steps
    )
    env.seed(3)
    env.reset()
    empty = full = 0
    for _ in range(200):
        observations, rewards, dones, infos = env.step(np.tile([4, 2, 2, 1], (6, 1)))
        assert np.isfinite(np.asarray(observations)).all()
        assert np.isfinite(rewards).all()
        for e in np.flatnonzero(dones):
            assert not any(isinstance(value, float) and np.isnan(value) for value in infos[e].values())
            if infos[e]["num_requests"] == 0 and infos[e]["episode"]["l"] == 1:
                empty += 1
                assert infos[e]["episode"]["r"] == 0.0
                assert not infos[e]["TimeLimit.truncated"]
                assert set(infos[e]) == {
                    "terminal_observation",
                    "TimeLimit.truncated",
                    "episode",
                    "num_requests",
                    SCENARIO_INDEX,
                }
            full += infos[e]["num_requests"] > 0
    assert empty > 50
    assert full > 5


def test_staggered_episodes_begin_at_different_times_and_the_same_seed_gives_the_same():
    def start(seed):
        env = ServingVecEnv(scenario_from_dict(DRAINED), 8, stagger_steps=40)
        env.seed(seed)
        observations = env.reset()
        return observations, np.array([env._systems.state(e).system["now_s"][0] for e in range(8)])

    (a, times), (b, _), (c, _) = start(3), start(3), start(4)
    assert (a == b).all()
    assert (a != c).any()
    assert times.std() > 0.5


def test_unseeded_episodes_are_training_episodes():
    env = ServingVecEnv(scenario_from_dict(SHORT), 4)
    env.seed(0)
    env.reset()
    env.reset()  # unseeded: drawn
    seeds = [info["episode_seed"] for info in env.reset_infos]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < NUM_TRAINING_SEEDS for seed in seeds)


def test_episodes_of_several_scenarios_are_told_apart():
    """scenario_index is that of the step just taken, also where the next episode, already begun, has another one."""
    env = ServingVecEnv([scenario_from_dict(SHORT), scenario_from_dict(OTHER)], 6)
    env.seed(5)
    env.reset()
    now = [scenario.name for scenario in env.get_attr("scenario")]
    seen, changed = set(), 0
    for _ in range(400):
        _, _, dones, infos = env.step(np.tile([4, 2, 2, 1], (6, 1)))
        assert [env.scenarios[k].name for k in env.scenario_index] == now
        for e in np.flatnonzero(dones):
            assert env.scenarios[int(infos[e]["scenario_index"])].name == now[e]
            seen.add(now[e])
            following = env.get_attr("scenario", int(e))[0].name
            changed += following != now[e]
            now[e] = following
    assert seen == {"custom", "other"}
    assert changed > 2
