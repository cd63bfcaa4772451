"""Systems of several scenarios: every episode is, bit for bit, the one of an environment of its scenario alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llm_env import build
from llm_env.actions import NVEC
from llm_env.config import scenario_from_dict
from llm_env.env import ServingEnv
from llm_env.errors import UserError
from llm_env.indices import _FIELDS
from llm_env.systems import Systems, drawn_from
from llm_env.vector import ServingVectorEnv
from llm_env.workload import draw_scenario

_PLACES = ("running", "batch", "order", "rank", "cursors")
EPISODE = {"arrivals_s": 3.0, "warmup_s": 0.5, "horizon_s": 6.0}
SMALL = scenario_from_dict(
    {
        "name": "small",
        "system": {"max_running": 8, "kv": {"blocks": 300}},
        "slo": {"rule": "max"},
        "episode": EPISODE,
    }
)
SPLIT = scenario_from_dict(
    {
        "name": "split",
        "system": {
            "workers": 3,
            "layout": "disaggregated",
            "prefill_workers": 2,
            "router": "round-robin",
            "max_running": 24,
            "service": {"setup_ms": 20.0, "per_token_ms": 0.1, "free_tokens": 0, "setup_noise": "exponential"},
        },
        "slo": {"classes": [{"ttft_ms": 700.0, "tbt_ms": 60.0}]},
        "workload": {"prompt": {"kind": "fixed", "tokens": 900}},
        "episode": {"arrivals_s": 2.0, "warmup_s": 0.5, "horizon_s": 9.0},
        "reward": {"first_token": 2.0, "token": 0.1, "queue": 0.5},
    }
)
SESSIONS = scenario_from_dict(
    {
        "name": "sessions",
        "system": {"workers": 2, "router": "session-sticky", "kv": {"blocks": 2000, "prefix_cache": True}},
        "workload": {"sessions": {"mean_turns": 3.0, "think_s": 4.0}},
        "episode": EPISODE,
    }
)
PEOPLE = scenario_from_dict(
    {
        "name": "people",
        "system": {"max_running": 16},
        "workload": {"arrivals": {"kind": "closed-loop", "users": 6, "think_s": 1.0}},
        "episode": EPISODE,
    }
)
ALL = (SMALL, SPLIT, SESSIONS)
NOISY = {"system": {"service": {"setup_noise": "exponential"}}, "episode": {**EPISODE, "arrivals_s": 5.0}}


@pytest.mark.parametrize(
    ("action", "scenarios", "load_range"),
    [
        ("multidiscrete", ALL, (0.4, 1.2)),
        ("discrete", (SPLIT, PEOPLE), None),
        ("box", (*ALL, PEOPLE), None),
        ("adaptive", (SMALL, SPLIT), None),
        ("ranked", (SMALL, SPLIT), None),
        ("roles", (SMALL, SPLIT), None),
    ],
)
def test_an_episode_among_other_scenarios_differs_from_one_alone(action, scenarios, load_range):
    """Rows of the arrays are used again by other scenarios and seeds meanwhile, which must leave no trace."""
    num_envs = 5
    mixed = ServingVectorEnv(num_envs, scenarios, action, load_range=load_range)
    alone = [[ServingEnv(each, action, load_range=load_range) for each in scenarios] for _ in range(num_envs)]
    observations, infos = mixed.reset(seed=11)
    mixed.action_space.seed(2)
    met = np.zeros(len(scenarios), int)
    which = np.zeros(num_envs, int)

    def begin(e: int, seed: int) -> np.ndarray:
        which[e] = draw_scenario(int(seed), len(scenarios))
        return alone[e][which[e]].reset(seed=int(seed))[0]

    for e in range(num_envs):
        assert begin(e, infos["episode_seed"][e]).tobytes() == observations[e].tobytes()
    for _ in range(700):
        actions = mixed.action_space.sample()
        observations, rewards, terminated, truncated, infos = mixed.step(actions)
        for e in range(num_envs):
            if infos.get("_episode_seed", np.zeros(num_envs))[e]:
                assert begin(e, infos["episode_seed"][e]).tobytes() == observations[e].tobytes()
                continue
            env = alone[e][which[e]]
            one, reward, ended, cut, info = env.step(actions[e])
            assert one.tobytes() == observations[e].tobytes()
            assert (reward, ended, cut) == (rewards[e], terminated[e], truncated[e])
            if ended or cut:
                assert info.pop("scenario_index") == 0.0
                assert infos["scenario_index"][e] == which[e]
                assert mixed._systems.scenario(e) is scenarios[which[e]]
                mine, theirs = (systems.state(k) for systems, k in ((mixed._systems, e), (env._systems, 0)))
                n = mine.system["num_requests"][0]
                assert mine.requests[:n].tobytes() == theirs.requests[:n].tobytes()
                assert mine.workers.tobytes() == theirs.workers.tobytes()
                met[which[e]] += 1
            for key, value in info.items():
                assert infos[key][e] == value
            if action in ("multidiscrete", "discrete"):
                assert (mixed.action_masks()[e] == env.action_masks()).all()
    assert met.min() >= 2, met


def test_the_single_environment_draws_other_scenarios_than_the_vector_form():
    single, vector = ServingEnv(ALL), ServingVectorEnv(8, ALL)
    vector.reset(seed=50)
    for e in range(8):
        single.reset(seed=50 + e)
        assert single.scenario is ALL[draw_scenario(50 + e, 3)] is vector._systems.scenario(e)
        assert single.discount_horizon_s == vector.discount_horizon_s[e]
    with pytest.raises(AttributeError, match="scenarios"):
        _ = vector.scenario


def test_scenarios_are_not_equally_likely():
    """Of 3,000 draws a third is 1,000 with a standard deviation of sqrt(3000 * 1/3 * 2/3) = 26; five of these: 129."""
    counts = Counter(draw_scenario(seed, 3) for seed in range(3000))
    assert all(abs(counts[k] - 1000) < 129 for k in range(3)), counts
    assert {draw_scenario(seed, 1) for seed in range(20)} == {0}


def test_features_of_a_mixture_leave_their_bounds():
    env = ServingEnv(ALL, load_range=(0.5, 2.0))
    env.action_space.seed(0)
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        for _ in range(60):
            assert env.observation_space.contains(observation)
            observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                break


def test_a_scenario_without_a_rate_is_given_a_load():
    with pytest.raises(UserError, match="load_range"):
        drawn_from(PEOPLE, (0.5, 1.0))


def test_as_many_workloads_as_scenarios_are_not_needed():
    with pytest.raises(ValueError, match="zip"):
        Systems(ALL, 1, workloads=[drawn_from(SMALL)])


def test_noise_that_runs_out_is_not_that_of_the_seed_where_rows_move(monkeypatch):
    """Systems rest while others use up the noise, so more is drawn for rows that do not move; rows grow meanwhile."""
    monkeypatch.setattr(build, "_FIRST_NOISE", 4)
    noisy = tuple(scenario_from_dict({**NOISY, "name": name}) for name in ("one", "two", "three"))
    num_envs = 7
    mixed = Systems(noisy, num_envs)
    rng = np.random.default_rng(0)
    alone: dict[int, Systems] = {}
    rows = len(mixed._parts[0].seeds)
    for episode in range(4):
        for e in range(num_envs):
            seed = 1000 * episode + 2 * e
            mixed.reset(e, seed)
            alone[e] = Systems([noisy[draw_scenario(seed, 3)]], 1)
            alone[e].reset(0, seed)
        actions = np.tile([3, 2, 2, 1], (num_envs, 1))
        mixed.set_actions(actions)
        for system in alone.values():
            system.set_actions(actions[:1])
        for _ in range(60):
            which = (rng.random(num_envs) < 0.5) & mixed.active()
            got = mixed.step(which)
            for e in np.flatnonzero(which).tolist():
                one = alone[e].step(np.ones(1, np.bool_))
                assert got.observations[e].tobytes() == one.observations[0].tobytes()
                assert (got.rewards[e], got.infos["dt_s"][e]) == (one.rewards[0], one.infos["dt_s"][0])
                mine, theirs = mixed.state(e), alone[e].state(0)
                n = theirs.system["num_requests"][0]
                assert mine.requests[:n].tobytes() == theirs.requests[:n].tobytes()
    assert max(len(part.seeds) for part in mixed._parts) > rows
    assert min(part.states.noise.shape[2] for part in mixed._parts) > 4


def test_every_scenario_has_arrays_for_all_systems():
    """Rows go back when a system leaves a scenario: after many episodes there are a few for each system, not 5."""
    scenarios = [scenario_from_dict({**NOISY, "name": f"s{k}"}) for k in range(5)]
    num_envs = 40
    systems = Systems(scenarios, num_envs)
    rng = np.random.default_rng(1)
    most = np.zeros(5, int)
    for seed in range(600):
        systems.reset(int(rng.integers(num_envs)), seed)
        at = [np.sum((systems.scenario_index == k) & (systems._rows >= 0)) for k in range(5)]
        most = np.maximum(most, at)
        for k, part in enumerate(systems._parts):
            mine = systems._rows[(systems.scenario_index == k) & (systems._rows >= 0)].tolist()
            assert sorted(mine + part.free) == list(range(len(part.seeds)))
    rows = [len(part.seeds) for part in systems._parts]
    assert all(8 <= size <= 1.25 * max(8, peak) + 1 for size, peak in zip(rows, most, strict=True))
    assert sum(rows) < 2.5 * num_envs


def test_a_system_that_was_never_started_moves_or_disturbs_others():
    systems, alone = Systems(ALL, 3), ServingEnv(ALL)
    systems.reset(1, 4)
    alone.reset(seed=4)
    assert systems.active().tolist() == [False, True, False]
    systems.set_actions(np.tile([4, 2, 2, 1], (3, 1)))
    for _ in range(20):
        step = systems.step(np.ones(3, np.bool_))
        assert step.observations[1].tobytes() == alone.step(np.array([4, 2, 2, 1]))[0].tobytes()
        assert not step.observations[[0, 2]].any()


# ---- saving --------------------------------------------------------------------------------------------------------
def copied(saved):
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in saved.items()}


def moved(systems, steps, rng):
    """The bytes of all that comes out of so many steps with random actions; ended systems begin anew."""
    everyone, found = np.ones(systems.num_envs, np.bool_), []
    for _ in range(steps):
        systems.set_actions(rng.integers(0, NVEC, (systems.num_envs, 4)))
        step = systems.step(everyone)
        found += [step.observations.tobytes(), step.rewards.tobytes(), *(a.tobytes() for a in step.infos.values())]
        for e in np.flatnonzero(step.terminated | step.truncated):
            found.append((systems.outcome(int(e)), systems.restart(int(e), None)))
    return found


HELPERS = scenario_from_dict(
    {
        "name": "helpers",
        "system": {
            "workers": 3,
            "layout": "parallel-prefill",
            "router": "least-tokens",
            "parallel": {"max_workers": 3, "min_tokens": 64},
            "kv": {"blocks": 250},
            "max_running": 8,
        },
        "workload": {"load": 1.2},
        "episode": EPISODE,
    }
)


VARIES = SMALL.model_validate(
    {
        **SMALL.model_dump(exclude_none=True),
        "name": "varies",
        "vary": [{"setting": "system.kv.blocks", "low": 200, "high": 900}],
    }
)


@pytest.mark.parametrize(
    ("scenarios", "record"),
    [((SMALL,), True), ((SPLIT,), False), ((HELPERS,), False), ((VARIES,), False), ((*ALL, PEOPLE), False)],
)
def test_restored_systems_go_on_otherwise_than_those_that_were_saved(monkeypatch, scenarios, record):
    monkeypatch.setattr(build, "_FIRST_NOISE", 8)  # so that noise, logs and rows have grown before and grow after
    monkeypatch.setattr(build, "_FIRST_LOG", 4)
    systems = Systems(scenarios, 5, record=record)
    for e in range(5):
        systems.restart(e, 10 + e)
    moved(systems, 150, np.random.default_rng(1))
    saved = copied(systems.saved())
    other = Systems(scenarios, 5, record=record)
    for e in range(5):
        other.restart(e, 70 + e)
    moved(other, 20, np.random.default_rng(2))
    other.restore(saved)
    assert moved(other, 200, np.random.default_rng(3)) == moved(systems, 200, np.random.default_rng(3))


@pytest.fixture(scope="module")
def saved():
    """Of systems that wait, run, move and think, after a while."""
    systems = Systems((*ALL, HELPERS, PEOPLE), 10)
    for e in range(10):
        systems.restart(e, 10 + e)
    moved(systems, 200, np.random.default_rng(1))
    return copied(systems.saved())


def spoil(saved, name, field, value):
    """Another copy with a number that is wrong in the last place of an array, or of a field of its records."""
    changed = copied(saved)
    array = changed[name] if field is None else changed[name][field]
    array = array[..., 0] if name.endswith(".batch") else array
    array[..., -1] = value
    return changed


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(("array", "fields"), [*_FIELDS.items(), *((name, {None: None}) for name in _PLACES)])
def test_a_number_that_is_no_place_in_an_array_reaches_compiled_code(saved, k, array, fields):
    systems = Systems((*ALL, HELPERS, PEOPLE), 10)
    systems.restore(saved)
    for field, limit in fields.items():
        for value in (-2, 1 << 40):
            if limit is not None and limit[1] in ("anything", "logs") and value > 0:
                continue
            with pytest.raises(UserError, match=rf"part{k}\.{array}"):
                systems.restore(spoil(saved, f"part{k}.{array}", field, value))


def test_a_tree_whose_bits_stand_for_nothing_reaches_compiled_code(saved):
    systems = Systems((*ALL, HELPERS, PEOPLE), 10)
    levels = saved["part0.levels"][0].tolist()
    for word, bit in ((levels[1] - 1, 31), (levels[1], 31), (levels[-2], 3)):
        changed = copied(saved)
        changed["part0.sets"][0, 0, 0, word] ^= 1 << bit
        with pytest.raises(UserError, match=r"part0\.sets: a bit stands for nothing"):
            systems.restore(changed)
