"""llm_env/Routing-v0: one environment = one of many = what the compiled rule gives; spaces, errors, episode ends."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import baselines
from agents.routing_run import ScoreRule, run_routes
from llm_env import ROUTING_ENVIRONMENT, build
from llm_env.config import with_changes
from llm_env.errors import UserError
from llm_env.rollout import rollout
from llm_env.routing_env import RoutingEnv
from llm_env.routing_features import GLOBAL_FEATURES, NUM_WORKER_FEATURES, WORKER_FEATURES
from llm_env.routing_systems import RoutingSystems
from llm_env.scenarios import load_scenario
from llm_env.slo import judged
from llm_env.workload import blank_requests, draw_workload

SHORT = {"episode.arrivals_s": 8.0, "episode.warmup_s": 1.0, "episode.horizon_s": 30.0, "system.kv.blocks": 700}
SCENARIO = with_changes(load_scenario("unequal-workers"), SHORT)
ID = f"llm_env:{ROUTING_ENVIRONMENT}"


def make(**arguments):
    return gym.make(ID, **{"scenario": SCENARIO, **arguments})


@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_wrong():
    check_env(make().unwrapped, skip_render_check=True)


def test_stable_baselines3_finds_nothing_wrong():
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    sb3_check_env(make().unwrapped, skip_render_check=True)


def test_a_sub_environment_is_a_single_one():
    rng = np.random.default_rng(0)
    many = gym.make_vec(ID, num_envs=3, scenario=SCENARIO)
    alone = [make() for _ in range(3)]
    seen, _ = many.reset(seed=11)
    single = [env.reset(seed=11 + e)[0] for e, env in enumerate(alone)]
    ended = np.zeros(3, np.bool_)
    for _ in range(150):
        assert seen.tobytes() == np.stack(single).tobytes()
        actions = rng.integers(0, 4, 3)
        seen, rewards, terminated, truncated, _ = many.step(actions)
        for e, env in enumerate(alone):
            if ended[e]:
                single[e], ended[e] = env.reset()[0], False
                continue
            single[e], reward, *ends, _ = env.step(actions[e])
            assert (reward, *ends) == (rewards[e], terminated[e], truncated[e])
            ended[e] = ends[0] or ends[1]
    assert seen.dtype == np.float32


def test_whoever_follows_the_rule_gets_its_bytes():
    decide = baselines.make_policy("moore-hodgson")
    systems = run_routes(ScoreRule(), SCENARIO, (3, 4))
    for e, seed in enumerate((3, 4)):
        ruled = rollout(SCENARIO, decide, draw_workload(SCENARIO, seed), seed)
        for name in ("home", "finish_s", "first_token_s", "status"):
            assert systems.state(e).requests[name][: len(ruled.requests)].tolist() == ruled.requests[name].tolist()


def test_the_base_policy_is_the_adaptive_rule():
    decide = baselines.make_policy("adaptive", margin=1.4, fill=0.5)
    state = run_routes(ScoreRule(), SCENARIO, (3,), {"margin": 1.4, "fill": 0.5}).state(0)
    ruled = rollout(SCENARIO, decide, draw_workload(SCENARIO, 3), 3)
    assert state.requests["finish_s"][: len(ruled.requests)].tolist() == ruled.requests["finish_s"].tolist()


def test_running_out_of_room_changes_nothing(monkeypatch):
    noise = {"system.service.setup_noise": "exponential"}
    scenario = with_changes(SCENARIO, noise)
    plenty = run_routes(ScoreRule(), scenario, (3, 4), record=True)
    monkeypatch.setattr(build, "_FIRST_NOISE", 8)
    monkeypatch.setattr(build, "_FIRST_LOG", 1)
    monkeypatch.setattr(build, "_LOG_PER_REQUEST", 0)
    scarce = run_routes(ScoreRule(), scenario, (3, 4), record=True)
    for e in range(2):
        assert scarce.state(e).requests.tobytes() == plenty.state(e).requests.tobytes()
        assert scarce.outcome(e) == plenty.outcome(e)


def test_an_episode_pays_for_all_its_misses():
    env = make()
    _, info = env.reset(seed=5)
    assert info == {"episode_seed": 5}
    total, steps, seconds, ended = 0.0, 0, 0.0, False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(steps % 4)
        ended = terminated or truncated
        assert env.observation_space.contains(observation)
        assert reward == info["reward_miss"] + info["reward_backlog"]
        total, steps, seconds = total + reward, steps + 1, seconds + info["dt_s"]
    requests = env.unwrapped._systems.state(0).requests
    requests = requests[requests["arrival_s"] > 0]
    assert steps == len(draw_workload(SCENARIO, 5))
    assert total == pytest.approx(-float((~judged(requests)[:, 2]).sum()))
    assert seconds == pytest.approx(
        float(env.unwrapped._systems.state(0).system["now_s"][0] - requests["arrival_s"][0])
    )
    assert not observation.any()
    assert {"slo_attainment", "num_requests", "ttft_p50_s"} <= set(info)


def test_the_weights_of_the_reward_are_the_scenarios():
    env = make(changes={"reward.miss": 0.0, "reward.backlog": 2.0})
    env.reset(seed=5)
    rewards = [env.step(0)[4] for _ in range(5)]
    assert all(info["reward_miss"] == 0 for info in rewards)
    assert any(info["reward_backlog"] < 0 for info in rewards)


def test_an_episode_without_a_request_ends_at_once():
    systems = RoutingSystems([SCENARIO], 1, workloads=[lambda seed: blank_requests(0)])
    systems.reset(0, 0)
    systems.set_actions(np.array([3]))
    step = systems.step(np.ones(1, np.bool_))
    assert (step.rewards[0], step.terminated[0], step.truncated[0]) == (0, True, False)


@pytest.mark.parametrize("action", [4, -1, 1.0, [1], None])
def test_a_wrong_action_is_refused(action):
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^action: expected"):
        env.step(action)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"base": {"speed": 1.0}}, "base: expected parameters among budget, fill"),
        ({"base": {"margin": 7.0}}, "base: margin: expected a number from 0.5 to 2, got 7.0"),
        ({"base": {"margin": True}}, "base: margin: expected a number"),
        ({"scenario": [SCENARIO, "chat"]}, r"scenario: routing needs the same number of workers .* got \[1, 4\]"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(UserError, match=text):
        make(**arguments)


def test_only_the_workers_that_prefill_are_routed_to():
    changes = {"system.layout": "disaggregated", "system.prefill_workers": 3}
    env = make(changes=changes)
    assert env.action_space.n == 3
    env.reset(seed=1)
    for k in range(10):
        env.step(k % 3)
    assert env.unwrapped.feature_names[NUM_WORKER_FEATURES] == "live_1"


def test_the_page_describes_every_feature():
    page = RoutingEnv.__doc__ or ""
    for name, *_ in (*WORKER_FEATURES, *GLOBAL_FEATURES):
        assert f"| {name} |" in page


def test_several_scenarios_of_one_size_take_turns():
    other = with_changes(SCENARIO, {"name": "other", "workload.load": 0.3})
    many = gym.make_vec(ID, num_envs=6, scenario=[SCENARIO, other])
    many.reset(seed=0)
    index = many.unwrapped._systems.scenario_index
    assert set(index.tolist()) == {0, 1}
    for e in range(6):
        env = make(scenario=[SCENARIO, other][int(index[e])])
        first, _ = env.reset(seed=e)
        assert env.step(1)[0].tobytes() != first.tobytes()
