"""Compiled policies: what they may do, and that in the disk cache each parameter set stays what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import config
from numba.core.errors import TypingError

from baselines import make_policy
from llm_env.jit import njit
from llm_env.records import View, decision, policy
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import draw_workload

ROOT = Path(__file__).resolve().parent.parent
ASK = """
import sys
import baselines
from llm_env.rollout import rollout
from llm_env.scenarios import load_scenario
from llm_env.workload import draw_workload

chat = load_scenario("chat")
workload = draw_workload(chat, 0)
policies = [baselines.make_policy("sarathi", max_running=int(slots)) for slots in sys.argv[1:]]
print(*(float(rollout(chat, decide, workload, 0).system["busy_s"][0]) for decide in policies))
"""


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_parameter_sets_compiled_by_other_processes_are_told_apart():
    """numba counts its symbols from 1 in each process: both would be `decide$1`, and the last loaded run for both."""

    def busy_s(*slots: str) -> list[float]:
        done = subprocess.run(
            [sys.executable, "-c", ASK, *slots],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        return [float(word) for word in done.stdout.split()]

    busy_s("97")  # from here on the kernel is in the cache: in the next two the policy is the first that is compiled
    alone = [busy_s("3")[0], busy_s("61")[0]]
    assert alone[0] != alone[1]
    assert busy_s("3", "61") == alone


def test_a_policy_that_allocates_does_not_compile():
    @policy
    def dreamer(view: View):
        weights = np.ones(4)
        return decision(int(weights.sum() * 64))

    scenario = load_scenario("chat")
    requests = draw_workload(scenario, 1)[:20]
    met = rollout(scenario, dreamer, requests, 1).requests["finish_s"]
    assert np.array_equal(
        met, rollout(scenario, make_policy("sarathi", token_budget=256), requests, 1).requests["finish_s"]
    )


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_the_kernel_allocates_where_nobody_counts_references():
    @njit(cache=False)
    def wasteful(n):
        return np.zeros(n)

    with pytest.raises(TypingError, match="zeros"):
        wasteful(3)
