"""Imitation: a student of levels comes to choose as its teacher does, and a teacher says what its policy decides."""

from __future__ import annotations

import numpy as np
import pytest
from play import view_of

import baselines
from agents.export import agent_from_policy
from agents.imitation import ImitationSettings, checked, imitate, nearest_entry, nearest_levels
from agents.network import NumpyAgent
from agents.ppo import ACTIVATION, make_ppo
from agents.training import main
from agents.vec_env import ServingVecEnv
from llm_env.actions import (
    BUDGET_LEVELS,
    CHUNK_LEVELS,
    DISCRETE_TABLE,
    MIX_DECODE,
    MIX_FULL,
    MIX_HALF,
    MIX_PREFILL_FIRST,
    ORDERS,
    decision_from_levels,
)
from llm_env.config import scenario_to_toml
from llm_env.errors import UserError
from llm_env.records import FCFS, LEAST_SLACK, MOORE_HODGSON, SHORTEST_PREFILL, UNLIMITED, decision
from llm_env.teachers import make_teacher
from llm_env.view import make_view
from tests.test_population import SHORT

SPEC = "moore-hodgson:slo"
TAU, WHOLE = BUDGET_LEVELS.index(1.0), CHUNK_LEVELS.index(UNLIMITED)
MH = ORDERS.index(MOORE_HODGSON)


# ---- what a Decision is among the levels ---------------------------------------------------------------------------
@pytest.mark.parametrize("mix", [MIX_DECODE, MIX_HALF, MIX_FULL, MIX_PREFILL_FIRST])
def test_levels_do_not_come_back_from_the_decision_that_they_mean(mix):
    for budget in range(len(BUDGET_LEVELS)):
        for chunk in range(len(CHUNK_LEVELS)):
            for order in range(len(ORDERS)):
                made = decision_from_levels(1000.0, 5, budget, mix, chunk, order)
                assert nearest_levels(made, 1000.0) == (budget, mix, chunk, order)


@pytest.mark.parametrize(
    ("tokens", "budget"), [(1, 0.25), (860, 0.85), (1130, 1.25), (1110, 1.0), (3000, 2.0), (3200, 5.0)]
)
def test_a_budget_is_not_taken_for_the_one_at_the_nearest_ratio(tokens, budget):
    assert BUDGET_LEVELS[nearest_levels(decision(tokens, order=FCFS), 1000.0)[0]] == budget


def test_an_order_that_no_action_has_is_imitated():
    hrrn = baselines.make_policy("hrrn")(view_of())
    with pytest.raises(UserError, match=r"queue order is response-ratio, expected one of fcfs"):
        nearest_levels(hrrn, 100.0)


def test_an_entry_of_the_table_is_not_its_own_nearest():
    for k, levels in enumerate(DISCRETE_TABLE):
        assert nearest_entry(levels) == k
    deadlines = ORDERS.index(LEAST_SLACK)
    assert nearest_entry((TAU, MIX_FULL, 0, deadlines)) == DISCRETE_TABLE.index((TAU, MIX_FULL, WHOLE, MH))
    near = (BUDGET_LEVELS.index(0.25), MIX_FULL, WHOLE, MH)
    assert nearest_entry(near) == DISCRETE_TABLE.index((BUDGET_LEVELS.index(0.5), MIX_FULL, WHOLE, MH))


# ---- the loop ------------------------------------------------------------------------------------------------------
def learned(action: str, settings: ImitationSettings, teacher, seed: int = 0) -> tuple[list[float], NumpyAgent]:
    """The shares of agreement and the student."""
    env = ServingVecEnv(SHORT, 8, action)
    model = make_ppo(env, None, seed)

    def export() -> NumpyAgent:
        return agent_from_policy(model.policy, action, ACTIVATION, False, {})

    rng = np.random.default_rng(seed)

    def act():
        agent = export()
        return lambda observations: agent.act(observations, False, rng)

    systems = ServingVecEnv(SHORT, 8, action, stagger_steps=50)
    systems.seed(5)
    return imitate(model, systems, teacher, settings, seed, act, lambda _: None), export()


BRIEF = ImitationSettings(teacher=SPEC, rounds=3, decisions=600, epochs=20, learning_rate=3e-3, explore=0.0)


@pytest.mark.parametrize("action", ["multidiscrete", "discrete"])
def test_a_student_does_not_come_to_agree_with_its_teacher(action):
    def teacher(state):
        """Shortest first while few wait, in small batches; else Moore-Hodgson."""
        few = state.system[0]["num_waiting"] < 2
        return (1 if few else TAU, MIX_FULL, WHOLE, ORDERS.index(SHORTEST_PREFILL) if few else MH)

    agreed, agent = learned(action, BRIEF, teacher)
    assert agreed[0] < 0.3 < 0.7 < agreed[-1], "drawn actions of a student that has learned"
    again = learned(action, BRIEF, teacher)
    assert again[0] == agreed, "the same seed learned otherwise"
    for mine, theirs in zip(agent.policy, again[1].policy, strict=True):
        assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))


def test_what_is_left_to_explore_is_not_drawn_from_the_beginning():
    _, decided = learned("discrete", BRIEF, make_teacher(BRIEF, [SHORT]))
    settings = ImitationSettings(teacher=SPEC, rounds=3, decisions=600, epochs=20, learning_rate=3e-3, explore=0.5)
    _, undecided = learned("discrete", settings, make_teacher(settings, [SHORT]))
    env = ServingVecEnv(SHORT, 8, "discrete")
    env.seed(9)
    observations = env.reset()

    def most_likely(agent: NumpyAgent) -> float:
        logits = agent.logits(observations).astype(float)
        return float((np.exp(logits).max(axis=1) / np.exp(logits).sum(axis=1)).mean())

    assert most_likely(decided) > 0.9
    assert 0.3 < most_likely(undecided) < 0.75


# ---- teachers ------------------------------------------------------------------------------------------------------
def test_a_teacher_decides_otherwise_than_its_policy():
    teacher = make_teacher(BRIEF, [SHORT])
    decide = baselines.make_policy("moore-hodgson", token_budget="slo")
    env = ServingVecEnv(SHORT, 4, "multidiscrete")
    env.seed(3)
    env.reset()
    for _ in range(40):
        levels = [teacher(env.state(e)) for e in range(4)]
        assert levels == [(TAU, MIX_FULL, WHOLE, MH)] * 4
        assert [decide(make_view(env.state(e))).order for e in range(4)] == [MOORE_HODGSON] * 4
        env.step_async(np.array(levels))
        env.step_wait()


def test_look_ahead_over_the_table_says_always_the_same():
    """In a backlog somewhere another entry than the base's must pay, or nothing is tried."""
    settings = ImitationSettings(teacher="sarathi:slo", lookahead=True)
    teacher = make_teacher(settings, [SHORT])
    env = ServingVecEnv(SHORT, 2, "discrete", stagger_steps=60)
    env.seed(1)
    env.reset()
    said = set()
    for _ in range(60):
        labels = [nearest_entry(teacher(env.state(e))) for e in range(2)]
        said |= set(labels)
        env.step_async(np.array(labels))
        env.step_wait()
    assert len(said) > 1
    assert DISCRETE_TABLE.index((TAU, MIX_FULL, WHOLE, ORDERS.index(FCFS))) in said


@pytest.mark.parametrize(
    ("settings", "scenarios", "message"),
    [
        ({"teacher": "nobody"}, [SHORT], "nobody"),
        ({"teacher": f"{SPEC}/score"}, [SHORT], "imitate.teacher: expected a policy alone"),
        ({"teacher": "hrrn"}, [SHORT], "imitate.teacher: its queue order is response-ratio"),
        ({"teacher": SPEC, "lookahead": True}, [SHORT, SHORT], "imitate.lookahead: expected one scenario"),
    ],
)
def test_who_cannot_teach_is_no_error(settings, scenarios, message):
    with pytest.raises(UserError, match=message):
        make_teacher(ImitationSettings(**settings), scenarios)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "imitate.rounds: expected 1 to 1000, got 0"),
        ({"explore": 1.5}, "imitate.explore: expected 0 to 1, got 1.5"),
        ({"lookahead": True}, "imitate.lookahead: needs the base"),
    ],
)
def test_wrong_settings_are_no_error(wrong, message):
    with pytest.raises(UserError, match=message):
        ImitationSettings(**wrong)


def test_numbers_of_a_rule_imitate():
    with pytest.raises(UserError, match=r"imitate.teacher: only for --algo ppo .* got es with adaptive"):
        checked(BRIEF, "adaptive", "es")
    checked(ImitationSettings(), "adaptive", "es")


def test_the_program_does_not_begin_as_its_teacher(tmp_path, capsys):
    scenario = tmp_path / "short.toml"
    scenario.write_text(scenario_to_toml(SHORT))
    words = ["--scenario", str(scenario), "--timesteps", "512", "--num-envs", "8", "--validation-seeds", "2"]
    words += [
        "--imitate.teacher",
        SPEC,
        "--imitate.rounds",
        "2",
        "--imitate.decisions",
        "500",
        "--imitate.epochs",
        "20",
    ]
    assert main([*words, "--out", str(tmp_path / "run")], teachers=make_teacher) == 0
    out = capsys.readouterr().out
    assert "imitation 2 of 2: had agreed in" in out
    assert (tmp_path / "run" / "agent").is_dir()
    assert main([*words, "--out", str(tmp_path / "other")]) == 2
    assert "there are no teachers here" in capsys.readouterr().err
    assert not (tmp_path / "other").exists(), "something half-written was left"
