"""The runs that the report shows decision by decision: a few contenders on the first seed, made once more and recorded.

They are those of the study, bit for bit. Who looks ahead branches the kernel and who routes does not form batches:
neither can be recorded, and neither is shown.
"""

from __future__ import annotations

import numpy as np

import agents
import baselines
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.recorder import record_agent, record_run
from llm_env.report.player import LATEST_S, Run
from llm_env.report.story import FAMILIAR, Cast
from llm_env.study import Contender, Study, at_this_load
from llm_env.workload import concrete, draw_workload, is_closed

MOST_RUNS = 4
_MAX_WORKLOAD = 200_000  # requests; more take long to load once more


def recorded(study: Study, cast: Cast) -> list[Run]:
    """The runs, at the load of the headline: the best agent and the best baseline first.

    None where users wait for their answers, the workload is long, or the recorder cannot tell a system apart.
    """
    if is_closed(study.scenario):
        return []
    base, trace = at_this_load(study, cast.load)
    seeds = study.seeds if trace is None else study.seeds[:1]

    def workload(seed: int) -> np.ndarray:
        return draw_workload(base, seed) if trace is None else trace

    if not 0 < len(workload(seeds[0])) <= _MAX_WORKLOAD:
        return []
    runs = []
    for contender in shown(study, cast):
        scenario = _with_router(base, contender)
        try:
            if contender.agent:
                agent = agents.load(contender.agent, contender.trusted)
                if not isinstance(agent, agents.NumpyAgent):
                    continue
                recording = record_agent(scenario, agent, workload, seeds, LATEST_S)
            else:
                decide = baselines.make_policy(contender.policy, **dict(contender.parameters))
                recording = record_run(concrete(scenario, seeds[0]), decide, workload(seeds[0]), seeds[0], LATEST_S)
        except UserError:  # a system that the recorder cannot tell apart
            return []
        runs.append(Run(contender.label, cast.tone(contender.label), concrete(scenario, seeds[0]), recording))
    return runs


def shown(study: Study, cast: Cast) -> list[Contender]:
    """The best agent and the best baseline that can be recorded, what many run, and the next best of both."""
    found = {c.label: c for c in study.contenders if not c.ahead}
    learned = [name for name in cast.agents if name in found]
    rules = [name for name in cast.baselines if name in found]
    familiar = next((name for name in FAMILIAR if name in rules[1:]), None)
    wanted = [*learned[:1], *rules[:1], familiar, *learned[1:2], *rules[1:2]]
    return [found[name] for name in dict.fromkeys(wanted) if name is not None][:MOST_RUNS]


def _with_router(scenario: Scenario, contender: Contender) -> Scenario:
    if contender.router:
        scenario = with_changes(scenario, {"system.router": contender.router})
    if contender.weights is not None:
        scenario = with_changes(scenario, {"system.routing": dict(contender.weights)})
    return scenario
