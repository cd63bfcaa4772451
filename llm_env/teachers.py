"""Who can be imitated: baselines, and look-ahead over the combinations of the discrete form. Trains nobody itself."""

from __future__ import annotations

from collections.abc import Sequence

import baselines
from agents.imitation import ImitationSettings, Levels, Teacher, nearest_levels
from baselines.lookahead import Lookahead, Planner
from llm_env.actions import DISCRETE_TABLE
from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.futures import refuse
from llm_env.records import State
from llm_env.study import baseline_contender
from llm_env.systems import Systems
from llm_env.trials import KEEP, LEVELS, Change
from llm_env.view import make_view

ENTRIES = (Change("base", KEEP, 0.0), *(Change(f"entry {k}", LEVELS, k) for k in range(len(DISCRETE_TABLE))))


def _some_state(scenario: Scenario) -> State:
    systems = Systems([scenario], 1, "discrete")
    systems.reset(0, 0)
    return systems.state(0)


def make_teacher(settings: ImitationSettings, scenarios: Sequence[Scenario]) -> Teacher:
    """The teacher of some settings.

    It sees what a policy sees. What a policy remembers between decisions (`Decision.memory`) it does not find, since
    the decisions are another's.

    Raises:
        UserError: there is no such baseline, its order is none of the actions', the scenarios are tuned differently,
            or nobody can look ahead in them.
    """
    contenders = [baseline_contender(settings.teacher, scenario.name) for scenario in scenarios]
    if any(each.parameters != contenders[0].parameters for each in contenders):
        raise UserError(f"imitate.teacher: {settings.teacher} is not the same in all scenarios: give its parameters")
    if contenders[0].router:
        raise UserError(f"imitate.teacher: expected a policy alone, got one with a router, {settings.teacher}")
    decide = baselines.make_policy(contenders[0].policy, **dict(contenders[0].parameters))

    def base(state: State) -> Levels:
        view = make_view(state)
        return nearest_levels(decide(view), float(view.slo_budget))

    for scenario in scenarios:
        base(_some_state(scenario))  # so that an order that no action has is known before anything begins
    if not settings.lookahead:
        return base
    scenario, *others = scenarios
    if others or scenario.vary:
        raise UserError("imitate.lookahead: expected one scenario that varies nothing")
    refuse(scenario)
    planner = Planner(scenario, decide, Lookahead(changes=ENTRIES))

    def plan(state: State) -> Levels:
        if state.system[0]["num_waiting"] == 0:
            return base(state)
        chosen = planner.choose(state)
        return base(state) if chosen == 0 else DISCRETE_TABLE[chosen - 1]

    return plan
