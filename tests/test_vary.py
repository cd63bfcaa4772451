"""`[[vary]]`: an episode of a scenario that varies is that of the scenario its seed draws, everywhere, bit for bit."""

from __future__ import annotations

import json
import math

import gymnasium as gym
import numpy as np
import pytest
from vary_cases import SEEDS, varying

import baselines
from llm_env.cli import main as simulate_main
from llm_env.config import read_scenario, scenario_from_dict, scenario_to_toml, with_changes
from llm_env.env import ServingEnv
from llm_env.errors import UserError
from llm_env.evaluation import main as evaluate_main
from llm_env.metrics import block_values, summarise
from llm_env.records import State
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario, preset_names, service_from_text
from llm_env.simulate import simulate
from llm_env.study import Study, baseline_contender, run_unit
from llm_env.systems import Systems
from llm_env.vector import ServingVectorEnv
from llm_env.workload import concrete, draw_workload, slo_budget
from llm_env.wrappers import TimeDiscount

KV = {"setting": "system.kv.blocks", "low": 120, "high": 400}
LOAD = {"setting": "workload.load", "low": 0.4, "high": 1.2}
WEIGHT = {"setting": "slo.classes.1.weight", "choices": [1.0, 4.0]}


def bytes_of(state: State) -> list[bytes]:
    """Requests and what the system counted, to the last bit."""
    n = int(state.system[0]["num_requests"])
    return [np.ascontiguousarray(state.requests[:n]).tobytes(), state.system.tobytes(), state.workers.tobytes()]


# ---- the draw ------------------------------------------------------------------------------------------------------
def test_the_same_seed_draws_another_scenario():
    scenario = varying()
    again = [concrete(varying(), seed) for seed in SEEDS]
    assert [concrete(scenario, seed) for seed in SEEDS] == again
    assert len({each.model_dump_json() for each in again}) == len(SEEDS)
    assert all(each.vary == () and each.name == "varying" for each in again)


def test_a_scenario_without_vary_is_copied():
    scenario = load_scenario("chat")
    assert concrete(scenario, 3) is scenario


def test_a_draw_depends_on_the_other_entries():
    scenario = varying()
    device, ttft, tbt, *others = scenario.vary
    fewer = scenario.model_copy(update={"vary": (*others[::-1], device)})
    assert {ttft.label, tbt.label} == {"slo.classes.0.ttft_ms", "slo.classes.1.tbt_ms"}
    for seed in SEEDS:
        one, other = concrete(scenario, seed), concrete(fewer, seed)
        assert (one.workload, one.system, one.reward) == (other.workload, other.system, other.reward)
        assert one.slo != other.slo


def test_draws_are_not_uniform_on_their_scales():
    scenario = varying()
    found = [concrete(scenario, seed) for seed in range(2000)]
    n, tolerance = 2000, 1.95 / math.sqrt(2000)  # of the Kolmogorov-Smirnov distance, one time in a thousand
    at = (np.arange(n) + 0.5) / n
    for values, low, high in (
        (np.log([s.slo.classes[0].ttft_ms for s in found]), math.log(300), math.log(3000)),
        (np.array([s.slo.classes[1].tbt_ms / s.system.service.setup_ms for s in found]), 1.5, 6.0),
        (np.array([s.workload.load for s in found], np.float64), 0.4, 1.2),
    ):
        assert np.abs(np.sort((values - low) / (high - low)) - at).max() < tolerance
    blocks = [s.system.kv.blocks for s in found]
    assert (min(blocks), max(blocks)) == (120, 400)
    for values in ([s.slo.rule for s in found], [s.system.service.setup_ms for s in found]):
        counts = np.unique(values, return_counts=True)[1]
        assert np.abs(counts / n - 1 / len(counts)).max() < 0.05
    rules, setups = np.array([s.slo.rule == "max" for s in found]), np.array([s.system.service.setup_ms for s in found])
    assert abs(np.corrcoef(rules, setups)[0, 1]) < 0.08  # two entries of one seed have nothing to do with each other


def test_factors_are_not_of_what_the_entries_before_have_made():
    scenario = scenario_from_dict(
        {
            "vary": [
                {"setting": "slo.classes.0.ttft_ms", "choices": [100.0]},
                {
                    "name": "targets",
                    "choices": [
                        {
                            "slo.classes.0.tbt_ms": {"times": 2.0, "of": "slo.classes.0.ttft_ms"},
                            "system.kv.blocks": {"times": 5.4, "of": "slo.classes.0.ttft_ms"},
                        }
                    ],
                },
                {"setting": "episode.horizon_s", "low": 2.0, "high": 2.0000001, "of": "episode.horizon_s"},
            ],
            "system": {"kv": {"blocks": 100}},
        }
    )
    drawn = concrete(scenario, 0)
    assert drawn.slo.classes[0].tbt_ms == 200.0
    assert drawn.system.kv.blocks == 540
    assert drawn.episode.horizon_s == pytest.approx(480.0)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "x"])
def test_a_bad_seed_is_taken(seed):
    with pytest.raises(UserError, match="seed: expected an integer of at least 0"):
        concrete(varying(), seed)


# ---- an episode is that of the drawn scenario ----------------------------------------------------------------------
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rollout_differs_from_that_of_the_drawn_scenario(seed):
    scenario, plain = varying(), concrete(varying(), seed)
    assert draw_workload(scenario, seed).tobytes() == draw_workload(plain, seed).tobytes()
    decide = baselines.make_policy("moore-hodgson")
    with pytest.raises(UserError, match=r"rollout: scenario .* varies"):
        rollout(scenario, decide, draw_workload(scenario, seed), seed)
    state = rollout(plain, decide, draw_workload(plain, seed), seed, record=True)
    again = simulate(scenario, draw_workload(scenario, seed), "moore-hodgson", seed=seed)
    assert bytes_of(again) == bytes_of(state)
    # a summary needs no seed: the rule and the last arrival are the run's
    assert str(summarise(state, scenario)) == str(summarise(state, plain))
    assert block_values(state, scenario, 4).tolist() == block_values(state, plain, 4).tolist()


def play(env: gym.Env, seed: int) -> list:
    observation, info = env.reset(seed=seed)
    rng, said = np.random.default_rng(0), [observation.tobytes(), info]
    ended = False
    while not ended:
        observation, reward, terminated, truncated, info = env.step(rng.integers(env.action_space.nvec))
        said.append((observation.tobytes(), reward, terminated, truncated, info))
        ended = terminated or truncated
    return said


@pytest.mark.parametrize("load_range", [None, (0.5, 1.0)])
def test_an_environment_differs_from_that_of_the_drawn_scenario(load_range):
    scenario = varying()
    env = TimeDiscount(ServingEnv(scenario, load_range=load_range))
    for seed in SEEDS:  # one environment for all episodes: nothing of one is left in the next
        plain = concrete(scenario, seed)
        alone = TimeDiscount(ServingEnv(plain, load_range=load_range))
        assert play(env, seed) == play(alone, seed)
        assert env.unwrapped.scenario == plain
        assert env.unwrapped.discount_horizon_s == plain.reward.discount_horizon_s


def test_a_vector_environment_differs_from_single_ones():
    """Sub-environments of one vector have scenarios of their own, and change them at every reset."""
    scenario, n = varying(), 3
    vector = ServingVectorEnv(n, scenario, autoreset_mode="SameStep")
    singles = [ServingEnv(scenario) for _ in range(n)]
    observations, _ = vector.reset(seed=4)
    lone = [env.reset(seed=4 + e)[0] for e, env in enumerate(singles)]
    rng, ended = np.random.default_rng(1), 0
    while ended <= 2 * n:
        np.testing.assert_array_equal(observations, lone)
        np.testing.assert_array_equal(vector.discount_horizon_s, [env.discount_horizon_s for env in singles])
        actions = rng.integers(vector.single_action_space.nvec, size=(n, 4))
        observations, rewards, terminated, truncated, _ = vector.step(actions)
        for e, env in enumerate(singles):
            lone[e], reward, *ends, _ = env.step(actions[e])
            assert (reward, *ends) == (rewards[e], terminated[e], truncated[e])
            if any(ends):
                ended += 1
                lone[e] = env.reset()[0]


def test_among_several_scenarios_rows_keep_the_settings_of_others():
    """Systems of two scenarios, one of which varies: rows are handed on and the arrays grow."""
    one = varying()
    other = with_changes(load_scenario("chat"), {"name": "other", "episode.arrivals_s": 20.0, "episode.warmup_s": 1.0})
    systems, n = Systems([one, other], 6), 6
    for start in range(0, 30, n):
        seeds = range(start, start + n)
        for e, seed in enumerate(seeds):
            systems.reset(e, seed)
        for e, seed in enumerate(seeds):
            expected = concrete((one, other)[systems.scenario_index[e]], seed)
            assert systems.scenario(e) == expected
            alone = Systems([expected], 1)
            alone.reset(0, seed)
            everybody = np.ones(n, np.bool_)
            np.testing.assert_array_equal(systems.observe(everybody)[e], alone.observe(np.ones(1, np.bool_))[0])
            actions = np.zeros((n, 4), np.int64)
            systems.set_actions(actions)
            alone.set_actions(actions[:1])
            mine = np.arange(n) == e
            step, lone = systems.step(mine), alone.step(np.ones(1, np.bool_))
            assert step.rewards[e] == lone.rewards[0]
            np.testing.assert_array_equal(step.observations[e], lone.observations[0])


def test_a_study_differs_from_those_of_the_drawn_scenarios():
    scenario = varying()
    contender = baseline_contender("moore-hodgson")
    for load in (None, 0.7):
        study = Study(scenario, (contender,), () if load is None else (load,), tuple(SEEDS))
        cells = run_unit(study, contender, load, tuple(SEEDS))
        for seed, cell in zip(SEEDS, cells, strict=True):
            plain = concrete(scenario, seed)
            (alone,) = run_unit(Study(plain, (contender,), study.loads, (seed,)), contender, load, (seed,))
            assert str(cell.summary) == str(alone.summary)
            for name, column in cell.requests.items():
                np.testing.assert_array_equal(column, alone.requests[name])


def test_evaluate_and_simulate_do_not_take_a_scenario_that_varies(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(scenario_to_toml(varying(system={"kv": {"blocks": 300}}, vary=[KV, LOAD, WEIGHT])))
    out = tmp_path / "out"
    arguments = ["--scenario", str(path), "--baselines", "sarathi:slo", "moore-hodgson", "--seeds", "3", "--bound"]
    assert evaluate_main([*arguments, "--processes", "1", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Drawn for each seed" in said
    assert "system.kv.blocks, workload.load, slo.classes.1.weight" in said
    assert "by weight" in said
    assert read_scenario(out / "scenario.toml") == read_scenario(path)
    row = json.loads((out / "results.json").read_text())["rows"][0]
    study = Study(read_scenario(path), (baseline_contender("sarathi:slo"),), (), (2_000_000, 2_000_001, 2_000_002))
    cells = run_unit(study, study.contenders[0], None, study.seeds)
    assert row["weighted_attainment"] == pytest.approx(np.mean([c.summary["weighted_attainment"] for c in cells]))
    run = tmp_path / "run"
    assert (
        simulate_main(["simulate", "--scenario", str(path), "--policy", "fcfs", "--seed", "5", "--out", str(run)]) == 0
    )
    assert read_scenario(run / "scenario.toml") == concrete(read_scenario(path), 5)


# ---- the generalist ------------------------------------------------------------------------------------------------
def test_the_generalist_draws_what_its_description_does_not_say():
    scenario = load_scenario("generalist")
    assert scenario.system.workers == 1
    drawn = [concrete(scenario, seed) for seed in range(400)]
    presets = {(s.setup_ms, s.per_token_ms) for s in (service_from_text(f"{n}:linear") for n in preset_names())}
    devices = {(s.system.service.setup_ms, s.system.service.per_token_ms) for s in drawn}
    assert len(devices) == 6
    assert devices <= presets
    assert 31 <= min(s.slo.tightest_tbt_ms for s in drawn) < 40
    assert 400 < max(s.slo.tightest_tbt_ms for s in drawn) <= 472.2
    beyond = [slo_budget(s.system.service, s.slo.tightest_tbt_ms, 256) - s.system.service.free_tokens for s in drawn]
    assert 97 <= min(beyond) < 120
    ttft = [s.slo.classes[0].ttft_ms for s in drawn]
    assert 500 <= min(ttft) < 550
    assert 9000 < max(ttft) <= 10_000
    loads = [s.workload.load for s in drawn if s.workload.load is not None]
    assert 0.4 <= min(loads) < 0.42
    assert 1.18 < max(loads) <= 1.2
    assert {s.workload.prompt.max_tokens for s in drawn} == {14050, 7437, 16384, 4046}  # type: ignore[union-attr]
    assert {s.workload.arrivals.rate_ratio for s in drawn} == {1.0, 4.0, 9.0}  # type: ignore[union-attr]
    assert {s.slo.weighted for s in drawn} == {False, True}
    for s in drawn:
        longest = s.workload.prompt.max_tokens + s.workload.output.max_tokens  # type: ignore[union-attr]
        assert longest <= 16 * (s.system.kv.blocks or 0) <= 512_800
        assert s.episode.horizon_s == 4 * s.episode.arrivals_s
        assert 4 * s.workload.arrivals.cycle_s == s.episode.arrivals_s  # type: ignore[union-attr]
        assert 21 <= s.episode.arrivals_s <= 870
    sizes = [draw_workload(scenario, seed).size for seed in range(200)]
    assert np.mean(sizes) == pytest.approx(225, rel=0.15)
    assert min(sizes) >= 25
    assert max(sizes) < 1000
