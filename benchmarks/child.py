"""What must be measured in a process of its own: imports, first steps, peak memory.

`python -m benchmarks.child TASK [FILE]` prints one JSON object. Nothing heavy is imported before its time is taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run_child(task: str, *arguments: str, **environment: str) -> dict[str, float]:
    """Runs a task in a fresh interpreter and returns what it found.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", task, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _import() -> dict[str, float]:
    began = time.process_time()
    import llm_env  # noqa: F401

    return {"cpu_s": time.process_time() - began}


def _first_step() -> dict[str, float]:
    began = time.process_time()
    import gymnasium as gym

    env: Any = gym.make("llm_env:llm_env/Serving-v0")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    return {"cpu_s": time.process_time() - began}


def _trace(path: str) -> dict[str, float]:
    """From a trace file to metrics: Sarathi on the shipped chat scenario, with logs."""
    from llm_env.config import with_changes
    from llm_env.metrics import EVERYTHING, summarise
    from llm_env.scenarios import load_scenario
    from llm_env.simulate import simulate
    from llm_env.workload import draw_workload, read_requests

    chat = load_scenario("chat")
    simulate(chat, draw_workload(chat, 0), "sarathi")  # loads the compiled code
    scenario = with_changes(chat, {"episode.arrivals_s": 1e8, "episode.horizon_s": 2e8})
    clock = [time.process_time()]
    requests, _ = read_requests(path, slo=scenario.slo, workload=scenario.workload)
    clock.append(time.process_time())
    state = simulate(scenario, requests, "sarathi", in_place=True)
    clock.append(time.process_time())
    summary = summarise(state, scenario, *EVERYTHING)
    clock.append(time.process_time())
    assert summary.num_requests == len(requests)
    return {
        "cpu_s": clock[3] - clock[0],
        "read_s": clock[1] - clock[0],
        "run_s": clock[2] - clock[1],
        "summarise_s": clock[3] - clock[2],
        "requests": len(requests),
        "batches": summary.num_batches,
        "peak_mib": _peak_mib(),
    }


def _command(path: str) -> dict[str, float]:
    """All of `python -m llm_env simulate --trace FILE`, imports and loading of compiled code with it."""
    began = time.process_time()
    from llm_env.cli import main as command

    assert command(["simulate", "--trace", path]) == 0
    return {"cpu_s": time.process_time() - began, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """The most memory that this process has held. ru_maxrss would also count what its parent held before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        kib = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kib.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS, which has no /proc, gives bytes


def main() -> None:
    """Runs the task of the command line."""
    task, arguments = sys.argv[1], sys.argv[2:]
    found = {"import": _import, "first-step": _first_step, "trace": _trace, "command": _command}[task](*arguments)
    from benchmarks.measure import calibration  # afterwards: it imports more than the task has

    print(json.dumps(found | {"calibration": calibration(0.2)}))


if __name__ == "__main__":
    main()
