"""Compiled policies in the disk cache: each parameter set stays what it is, whichever process compiled it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

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
