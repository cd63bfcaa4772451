"""Where a policy of floats begins: the numbers that were given, or an error that names them."""

from __future__ import annotations

import numpy as np
import pytest

import agents.starts
from agents.export import agent_from_policy
from agents.ppo import ACTIVATION, PPOSettings, make_ppo
from agents.run import run_agent
from agents.starts import starting_action
from agents.vec_env import ServingVecEnv
from llm_env.adaptive import NAMES, NEUTRAL, adaptive_decision, from_unit, to_unit
from llm_env.errors import UserError
from llm_env.records import policy
from llm_env.role_rule import BOX as ROLE_BOX
from llm_env.rollout import rollout
from llm_env.workload import draw_workload
from tests.test_population import SHORT

GIVEN = ("budget=0.7", "margin=1.3", "fill=0.5")


def begin(form="adaptive", init="heuristic", given=(), scenarios=(SHORT,)):
    return starting_action(form, init, given, scenarios)


def numbers(**changes):
    return [changes.get(name, neutral) for name, neutral in zip(NAMES, NEUTRAL, strict=True)]


def test_it_begins_at_the_neutral_rule_or_at_what_was_given():
    assert (begin() == to_unit(NEUTRAL)).all()
    assert (begin(given=GIVEN) == to_unit(numbers(budget=0.7, margin=1.3, fill=0.5))).all()
    assert (begin("box") == 0).all()
    for form in ("multidiscrete", "discrete"):
        assert begin(form) is None
    assert begin(init="none") is None


def test_tuned_settings_are_the_start_and_given_ones_hold_in_their_place(monkeypatch):
    other = SHORT.model_copy(update={"name": "other"})
    found = {"short": {"budget": 0.8, "kv_high": 0.9}, "other": {"budget": 0.6}}
    monkeypatch.setattr(agents.starts, "tuned_parameters", lambda scenario, _policy: found[scenario])
    assert (begin(init="tuned") == to_unit(numbers(budget=0.8, kv_high=0.9))).all()
    assert (begin(init="tuned", given=("budget=0.5",)) == to_unit(numbers(budget=0.5, kv_high=0.9))).all()
    with pytest.raises(UserError, match="short, other have different tuned settings"):
        begin(init="tuned", scenarios=(SHORT, other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"given": ("speed=1",)}, 'expected NAME=VALUE with one of budget, .* got "speed=1"'),
        ({"given": ("budget",)}, "expected NAME=VALUE"),
        ({"given": ("budget=fast",)}, 'budget: expected a number, got "fast"'),
        ({"given": ("budget=9",)}, "budget: expected 0.2 to 4, got 9"),
        ({"given": ("budget=nan",)}, "budget: expected 0.2 to 4, got nan"),
        ({"given": ("budget=1",), "form": "box"}, "start: only for --action adaptive, ranked or roles, got box"),
        ({"init": "tuned", "form": "multidiscrete"}, "init tuned: only for --action adaptive"),
        ({"given": ("budget=1",), "init": "none"}, "not with --init none"),
        ({"init": "tuned"}, "scenario short: no policy has tuned settings"),
    ],
)
def test_a_wrong_start_is_one_clear_error(arguments, message):
    with pytest.raises(UserError, match=message):
        begin(**arguments)


def test_an_untrained_ppo_agent_decides_as_the_rule_that_it_begins_at():
    start = begin(given=GIVEN)
    env = ServingVecEnv(SHORT, 2, "adaptive")
    model = make_ppo(env, PPOSettings(num_steps=8, minibatch=16), 0, start=start)
    agent = agent_from_policy(model.policy, "adaptive", ACTIVATION, False, {})
    seen = np.random.default_rng(0).normal(size=(5, env.observation_space.shape[0])).astype(np.float32)  # pyright: ignore[reportOptionalSubscript]
    assert (agent.logits(seen) == start.astype(np.float32)).all()
    values = tuple(float(value) for value in from_unit(start.astype(np.float32)))
    assert values == tuple(numbers(budget=0.7, margin=1.3, fill=0.5))

    @policy
    def decide(view):
        return adaptive_decision(view, values)

    systems = run_agent(agent, SHORT, (1, 2))
    for e, seed in enumerate((1, 2)):
        by_rule = rollout(SHORT, decide, draw_workload(SHORT, seed), seed, record=True)
        n = int(by_rule.system["num_requests"][0])
        assert by_rule.requests[:n].tobytes() == systems.state(e).requests[:n].tobytes()


def test_a_rule_for_roles_begins_elsewhere_than_its_baseline(monkeypatch):
    found = {"prefill_tokens": 2014, "hysteresis": 0.1875, "dwell_s": 3.423, "change": True}
    monkeypatch.setattr(agents.starts, "tuned_parameters", lambda _scenario, policy: {"role-switch": found}[policy])
    start = begin("roles", "tuned", ("margin=0.9",))
    assert start is not None
    rule = dict(zip(ROLE_BOX.names, ROLE_BOX.from_unit(start.astype(np.float32)), strict=True))
    assert rule == dict(zip(ROLE_BOX.names, ROLE_BOX.neutral, strict=True)) | {
        "prefill_tokens": 2014,
        "hysteresis": 0.1875,
        "dwell_s": 3.423,
        "margin": 0.9,
    }
    found["change"] = False
    with pytest.raises(UserError, match="the tuned role-switch changes no roles"):
        begin("roles", "tuned")
