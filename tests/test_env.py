"""The environments against Gymnasium's and SB3's own checkers, and against each other and the rollout, bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import llm_env
from llm_env.actions import DISCRETE_TABLE, NVEC, decision_from_levels
from llm_env.config import RewardSettings
from llm_env.env import ServingEnv
from llm_env.errors import UserError
from llm_env.records import policy
from llm_env.reward import TERM_NAMES
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.vector import ServingVectorEnv
from llm_env.workload import draw_workload

IDS = tuple(llm_env.ENVIRONMENTS)
SHORT = {"episode.arrivals_s": 12.0, "episode.warmup_s": 2.0, "episode.horizon_s": 30.0}
CLOSED = SHORT | {"workload.arrivals": {"kind": "closed-loop", "users": 15, "think_s": 2.0}}
RESERVED = {"episode", "final_obs", "final_info", "terminal_observation", "TimeLimit.truncated", "is_success"}


def make_single(env_id: str = IDS[0], **kwargs):
    return gym.make(env_id, changes=kwargs.pop("changes", SHORT), **kwargs)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize(
    ("scenario", "changes"),
    [("chat-bursty", SHORT), ("code", SHORT), ("chat", CLOSED), (["chat-bursty", "code", "long-context"], SHORT)],
)
def test_gymnasium_finds_nothing_to_complain_about(env_id, scenario, changes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make_single(env_id, scenario=scenario, changes=changes).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("scenario", ["chat-bursty", ["chat-bursty", "code", "long-context"]])
def test_stable_baselines_finds_nothing_to_complain_about(env_id, scenario):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(make_single(env_id, scenario=scenario, load_range=(0.4, 1.2)).unwrapped)


def test_an_id_works_without_importing_the_package_first():
    assert gym.make("llm_env:llm_env/Serving-v0").unwrapped.scenario.name == "chat"


def test_registering_twice_does_no_harm():
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(llm_env)


def test_the_spec_survives_json():
    spec = gym.spec("llm_env/Serving-v0")
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec


def random_actions(env, count: int, seed: int) -> np.ndarray:
    env.action_space.seed(seed)
    return np.array([env.action_space.sample() for _ in range(count)])


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"scenario": "chat-bursty", "changes": SHORT, "load_range": (0.5, 1.1)},
        {"scenario": "chat-bursty", "changes": CLOSED},
        {"scenario": ["chat-bursty", "code"], "changes": SHORT, "load_range": (0.5, 1.1)},
    ],
    ids=["open", "closed", "mixed"],
)
def test_vector_env_is_n_single_envs_bit_for_bit(env_id, arguments):
    num_envs, steps = 3, 700
    vector = gym.make_vec(env_id, num_envs=num_envs, **arguments)
    singles = [make_single(env_id, **arguments) for _ in range(num_envs)]
    observations, _ = vector.reset(seed=70)
    for e, env in enumerate(singles):
        assert observations[e].tobytes() == env.reset(seed=70 + e)[0].tobytes()
    actions = random_actions(vector, steps, 5)
    ended = np.zeros(num_envs, bool)
    episodes = 0
    for action in actions:
        observations, rewards, terminated, truncated, infos = vector.step(action)
        for e, env in enumerate(singles):
            if ended[e]:
                got = (*env.reset(), 0.0, False, False)
                got = (got[0], got[2], got[3], got[4], got[1])
            else:
                got = env.step(action[e])
            assert observations[e].tobytes() == got[0].tobytes()
            assert (rewards[e], terminated[e], truncated[e]) == got[1:4]
            assert {k for k in got[4] if not k.startswith("_")} == {
                k for k in infos if not k.startswith("_") and infos[f"_{k}"][e]
            }
            for key, value in got[4].items():
                assert infos[key][e] == value
            ended[e] = got[2] or got[3]
        episodes += int(ended.sum())
    assert episodes >= num_envs  # or nothing of autoreset was seen


def test_same_step_autoreset_hands_over_the_last_observation():
    kwargs = {"num_envs": 2, "scenario": "chat-bursty", "changes": SHORT}
    next_step = ServingVectorEnv(**kwargs)
    same_step = ServingVectorEnv(**kwargs, autoreset_mode=AutoresetMode.SAME_STEP)
    action = np.tile([4, 2, 2, 4], (2, 1))
    next_step.reset(seed=3)
    same_step.reset(seed=3)
    for _ in range(2000):
        left, right = next_step.step(action), same_step.step(action)
        ended = left[2] | left[3]
        if ended.any():
            e = int(np.flatnonzero(ended)[0])
            assert right[4]["final_obs"][e].tobytes() == left[0][e].tobytes()
            assert right[4]["final_info"]["slo_attainment"][e] == left[4]["slo_attainment"][e]
            assert right[4]["_final_info"][e]
            assert right[0][e].tobytes() == next_step.step(action)[0][e].tobytes()
            return
        assert left[0].tobytes() == right[0].tobytes()
    pytest.fail("no episode ended")


def test_disabled_autoreset_waits_for_a_reset():
    env = ServingVectorEnv(2, "chat-bursty", changes=SHORT, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=3)
    action = np.tile([4, 2, 2, 4], (2, 1))
    for _ in range(2000):
        _, _, terminated, truncated, _ = env.step(action)
        if (terminated | truncated).any():
            break
    with pytest.raises(ValueError, match="reset_mask"):
        env.step(action)
    env.reset(seed=9, options={"reset_mask": terminated | truncated})
    env.step(action)


@pytest.mark.parametrize(("scenario", "changes"), [("chat-bursty", SHORT), ("long-context", SHORT), ("chat", CLOSED)])
def test_env_is_the_rollout_bit_for_bit(scenario, changes):
    """The same random levels, once as actions and once as a policy that reads them from a table."""
    settings = load_scenario(scenario)
    env = ServingEnv(settings, changes=changes)
    env.reset(seed=11)
    levels = np.random.default_rng(0).integers(0, NVEC, (6000, 4))
    steps, total = 0, 0.0
    for action in levels:
        _, reward, terminated, truncated, _ = env.step(action)
        steps, total = steps + 1, total + reward
        if terminated or truncated:
            break
    else:
        pytest.fail("no episode ended")

    @policy
    def from_table(view):
        b, m, c, o = levels[view.epoch]
        return decision_from_levels(view.slo_budget, view.num_decodes, b, m, c, o)

    state = rollout(env.scenario, from_table, draw_workload(env.scenario, 11), 11)
    mine = env._systems.state(0)
    assert state.system["epoch"][0] == steps
    n = state.system["num_requests"][0]
    assert state.requests[:n].tobytes() == mine.requests[:n].tobytes()
    assert np.isfinite(total)


def test_reward_is_the_sum_of_its_named_terms():
    weights = RewardSettings(first_token=1.0, completion=0.5, token=0.01, queue=0.02)
    scenario = load_scenario("chat-bursty").model_copy(update={"reward": weights})
    env = ServingEnv(scenario, changes=SHORT)
    env.reset(seed=0)
    seen = dict.fromkeys(TERM_NAMES, 0.0)
    while True:
        _, reward, terminated, truncated, info = env.step(np.array([4, 2, 2, 4]))
        terms = [info[f"reward_{name}"] for name in TERM_NAMES]
        assert reward == pytest.approx(sum(terms), abs=1e-12)
        for name, value in zip(TERM_NAMES, terms, strict=True):
            seen[name] += abs(value)
        if terminated or truncated:
            break
    assert all(value > 0 for value in seen.values()), seen


def test_first_token_term_adds_up_to_the_kept_promises():
    """Over a whole episode +1 and -1 leave the requests whose first token was on time and whose TBT was kept."""
    env = ServingEnv("chat-bursty", changes=SHORT)
    env.reset(seed=2)
    total = 0.0
    while True:
        _, _, terminated, truncated, info = env.step(np.array([4, 2, 2, 4]))
        total += info["reward_first_token"]
        if terminated or truncated:
            break
    requests = env._systems.state(0).requests[: env._systems.state(0).system["num_requests"][0]]
    kept = (requests["credit"] == 1).sum()
    assert terminated
    assert total == kept > 0
    on_time = requests["first_token_s"] - requests["arrival_s"] <= requests["ttft_target_s"]
    late = requests["late_gaps"] > (requests["output_tokens"] - 1) // 100
    assert kept == (on_time & ~late).sum()


def test_same_seed_same_bytes_and_another_seed_another_episode():
    def run(seed: int) -> bytes:
        env = ServingEnv("chat-bursty", changes=SHORT)
        first, _ = env.reset(seed=seed)
        parts = [first.tobytes()]
        for action in random_actions(env, 150, 1):
            observation, reward, *_ = env.step(action)
            parts += [observation.tobytes(), np.float64(reward).tobytes()]
        return b"".join(parts)

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_horizon_truncates_and_draining_terminates():
    slow = {"episode.arrivals_s": 10.0, "episode.warmup_s": 0.0, "episode.horizon_s": 10.0}
    for changes, ends in ((slow, (False, True)), (SHORT | {"workload.load": 0.2}, (True, False))):
        env = ServingEnv("chat-bursty", changes=changes)
        env.reset(seed=1)
        while True:
            *_, terminated, truncated, info = env.step(np.array([4, 2, 2, 0]))
            if terminated or truncated:
                break
        assert (terminated, truncated) == ends
        assert 0 <= info["slo_attainment"] <= 1


def test_info_has_no_reserved_keys_and_no_nan():
    env = ServingEnv("chat-bursty", changes=SHORT)
    env.reset(seed=1)
    for action in random_actions(env, 2000, 0):
        *_, terminated, truncated, info = env.step(action)
        assert not RESERVED & set(info)
        assert all(value == value for value in info.values())
        if terminated or truncated:
            return


def test_an_episode_without_requests_ends_at_once():
    env = ServingEnv("chat", changes=SHORT | {"workload.rate_per_s": 1e-6})
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    _, reward, terminated, truncated, info = env.step(np.array([0, 0, 0, 0]))
    assert (reward, terminated, truncated, info["num_requests"]) == (0.0, True, False, 0.0)


@pytest.fixture
def bursts(tmp_path) -> Path:
    """A trace with bursts of 3 s every 40 s: of windows of 12 s most hold no request."""
    path = tmp_path / "bursts.csv"
    rows = [f"{40 * burst + k / 4},{100 + k},{1 + k % 3}" for burst in range(30) for k in range(12)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return path


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("scenario", ["chat", ["chat", "code"]])
def test_windows_without_requests_break_the_vector_form(env_id, mode, scenario, bursts):
    """Each step is compared with single environments, which end an empty episode with their first step."""
    arguments = {"scenario": scenario, "changes": SHORT, "trace": bursts}
    vector = gym.make_vec(env_id, num_envs=4, autoreset_mode=mode.value, **arguments)
    singles = [make_single(env_id, **arguments) for _ in range(4)]
    observations, _ = vector.reset(seed=5)
    for e, env in enumerate(singles):
        assert env.reset(seed=5 + e)[0].tobytes() == observations[e].tobytes()
    empty, full, ended = 0, 0, np.zeros(4, bool)
    for action in random_actions(vector, 150, 5):
        observations, rewards, terminated, truncated, infos = vector.step(action)
        assert np.isfinite(observations).all()
        for e, env in enumerate(singles):
            if ended[e]:  # NEXT_STEP: this was the step that resets
                assert env.reset()[0].tobytes() == observations[e].tobytes()
                ended[e] = False
                continue
            observation, reward, done, cut, info = env.step(action[e])
            assert (reward, done, cut) == (rewards[e], terminated[e], truncated[e])
            if not done and not cut:
                assert observation.tobytes() == observations[e].tobytes()
                continue
            final = infos["final_info"] if mode == AutoresetMode.SAME_STEP else infos
            assert final["num_requests"][e] == info["num_requests"]
            assert final["_slo_attainment"][e] == ("slo_attainment" in info)
            assert all(value == value for value in info.values())
            none = env.unwrapped._systems.state(0).system["num_requests"][0] == 0
            empty, full = empty + none, full + (not none)
            if none:
                assert (reward, done, info["num_requests"], info["dt_s"]) == (0.0, True, 0.0, 0.0)
            if mode == AutoresetMode.SAME_STEP:
                assert infos["final_obs"][e].tobytes() == observation.tobytes()
                assert env.reset()[0].tobytes() == observations[e].tobytes()
            ended[e] = mode == AutoresetMode.NEXT_STEP
        over = terminated | truncated
        if mode == AutoresetMode.DISABLED and over.any():
            observations, _ = vector.reset(options={"reset_mask": over})
            for e in np.flatnonzero(over):
                assert singles[e].reset()[0].tobytes() == observations[e].tobytes()
    assert empty > 20
    assert full > 2


@pytest.mark.parametrize("action", [[8, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 5], [0, 0, 0], [0.5, 0, 0, 0]], ids=str)
def test_an_action_outside_the_space_is_refused(action):
    env = ServingEnv("chat", changes=SHORT)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action|broadcast"):
        env.step(np.array(action))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"scenario": "chatty"}, "chatty"),
        ({"action": "continuous"}, "action"),
        ({"changes": {"workload.load": -1.0}}, "workload.load"),
        ({"changes": {"workload.lod": 1.0}}, "workload.lod"),
        ({"load_range": (1.0, 0.5)}, "load_range"),
        ({"trace": "missing.csv"}, "missing.csv"),
        ({"trace_part": (0.0, 0.5)}, "trace_part: only for a trace"),
        ({"scenario": ["chat", "chat"]}, "two of them are called"),
    ],
)
def test_a_wrong_argument_is_named(kwargs, words):
    with pytest.raises(UserError, match=words):
        ServingEnv(**({"scenario": "chat"} | kwargs))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 4), (3, 1), (3, 5), (2, 4)])
def test_actions_of_a_wrong_shape_are_not_spread_over_the_systems(shape):
    envs = gym.make_vec(IDS[0], num_envs=3, changes=SHORT)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        envs.step(np.zeros(shape, int))
    envs.step(np.zeros((3, 4), int))


def test_the_documented_autoreset_argument_works():
    envs = gym.make_vec("llm_env:llm_env/Serving-v0", num_envs=2, autoreset_mode="SameStep")
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


@pytest.mark.parametrize("load_range", [(2, 1), (0, 0), (float("nan"), 1), (-1, -0.5), (0.5, 100), 0.5, (0.5,)])
@pytest.mark.parametrize("with_trace", [False, True])
def test_a_bad_load_range_is_refused_at_once(load_range, with_trace, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,2\n9,10,2\n")
    with pytest.raises(UserError, match="load_range"):
        ServingEnv("chat", load_range=load_range, trace=path if with_trace else None)


def test_a_trace_gives_episodes_of_real_arrivals(tmp_path):
    path = tmp_path / "trace.csv"
    rows = [f"{k * 0.4},{100 + k},{5 + k % 7}" for k in range(200)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    env = ServingEnv("chat", trace=path, changes=SHORT)
    env.reset(seed=0)
    requests = env._systems.state(0).requests[: env._systems.state(0).system["num_requests"][0]]
    assert len(requests) == 30  # 12 s of it
    assert np.diff(requests["arrival_s"]) == pytest.approx(0.4)
    assert (np.diff(requests["prompt_tokens"]) == 1).all()


def test_windows_of_a_part_of_a_trace_leave_it(tmp_path):
    path = tmp_path / "trace.csv"
    rows = [f"{k * 0.4},{100 + k},{5 + k % 7}" for k in range(200)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    for part, low, high in (((0, 0.7), 100, 239), ((0.7, 1), 240, 299)):  # 0.7 of 79.6 s is the 139.3rd gap
        env = ServingEnv(["chat", "code"], trace=path, trace_part=part, changes=SHORT, load_range=(0.05, 0.2))
        seen = []
        for seed in range(30):
            env.reset(seed=seed)
            state = env._systems.state(0)
            seen += state.requests["prompt_tokens"][: state.system["num_requests"][0]].tolist()
        assert min(seen) >= low
        assert max(seen) <= high


def test_feature_names_and_docs_agree_with_the_observation():
    env = make_single().unwrapped
    assert len(env.feature_names) == env.observation_space.shape[0] == len(set(env.feature_names))
    for name in env.feature_names:
        assert f"| {name} |" in ServingEnv.__doc__
    for heading in ("Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End"):
        assert f"## {heading}" in ServingEnv.__doc__


def test_discrete_masks_follow_from_those_of_their_levels():
    levels, table = (ServingEnv("chat-bursty", action=form, changes=SHORT) for form in ("multidiscrete", "discrete"))
    levels.reset(seed=3)
    table.reset(seed=3)
    start = np.concatenate([[0], np.cumsum(NVEC)[:-1]])
    seen = set()
    for _ in range(200):
        mask = levels.action_masks()
        expected = [all(mask[start + np.array(entry)]) for entry in DISCRETE_TABLE]
        assert table.action_masks().tolist() == expected
        assert any(expected)
        seen.add(sum(expected))
        levels.step(np.array(DISCRETE_TABLE[8]))
        table.step(np.array(8))
    assert len(seen) > 1
    assert ServingEnv("chat", action="box").action_masks().all()
