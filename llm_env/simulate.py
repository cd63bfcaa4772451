"""One run of one policy, and its files: requests.csv.gz, batches.csv.gz, summary.json and scenario.toml.

The same inputs give the same bytes. Files appear in the output folder only when all of them are complete.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from baselines import make_policy, policy_info
from llm_env.build import adopt, load, new_states, single
from llm_env.config import Scenario, scenario_to_toml
from llm_env.dtypes import ACTIVE, NEVER
from llm_env.errors import UserError
from llm_env.files import write_csv
from llm_env.metrics import Summary
from llm_env.records import State
from llm_env.rollout import continue_rollout, refuse_agent
from llm_env.workload import concrete

FILES = ("requests.csv.gz", "batches.csv.gz", "summary.json", "scenario.toml")
_STEPS = 200_000  # decisions between two chances for a signal to be heard: a fraction of a second


def simulate(
    scenario: Scenario,
    requests: np.ndarray,
    policy_name: str,
    parameters: dict[str, Any] | None = None,
    seed: int = 0,
    in_place: bool = False,
) -> State:
    """Runs a policy over a workload to its end, with logs.

    Args:
        requests: (n,) REQUEST in order of arrival.
        parameters: of the policy, its defaults where not given. A default max_running above the system's slots is
            cut to them.
        seed: of the service noise, and of what of the scenario varies.
        in_place: the requests become the State's own records and change with the run; else they are copied. A long
            trace takes half the memory for them.

    Returns:
        The final State, without a leading axis.

    Raises:
        UserError: no such policy or parameter, a value it does not take, or more running requests than the system has
            slots for.
    """
    scenario = concrete(scenario, seed)
    decide = checked_policy(scenario, policy_name, parameters or {})
    states = new_states(scenario, 1, max(1, len(requests)), record=True)
    states = load(adopt(states, requests) if in_place else states, 0, requests, seed)
    while states.system["phase"][0, 0] == ACTIVE:
        states = continue_rollout(states, decide, seed, _STEPS)
    return single(states)


def checked_policy(scenario: Scenario, policy_name: str, parameters: dict[str, Any]) -> Any:
    """The compiled `decide` of a policy that the scenario's system can run. Raises: see `simulate`."""
    refuse_agent(scenario)
    decide = make_policy(policy_name, **parameters)
    slots = scenario.system.max_running
    if parameters.get("max_running", 0) > slots:
        raise UserError(
            f"policy {policy_name}: max_running: expected at most {slots}, the slots of a worker"
            f" (system.max_running), got {parameters['max_running']}"
        )
    return decide


def all_parameters(policy_name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The policy's parameters with their defaults filled in."""
    return {p.name: parameters.get(p.name, p.default) for p in policy_info(policy_name).parameters}


# ---- files ---------------------------------------------------------------------------------------------------------
def write_run(folder: Path, state: State, scenario: Scenario, summary: Summary, run: dict[str, Any]) -> None:
    """Writes FILES into a folder. Args: run: what was run (policy, parameters, seed, ...), for summary.json."""
    write_csv(folder / "requests.csv.gz", request_columns(state))
    write_csv(folder / "batches.csv.gz", batch_columns(state))
    (folder / "summary.json").write_text(summary_json(summary, run) + "\n", encoding="utf-8")
    (folder / "scenario.toml").write_text(scenario_to_toml(scenario), encoding="utf-8")


def summary_json(summary: Summary, run: dict[str, Any]) -> str:
    """The run and its summary as JSON text; null where a measure does not exist."""
    known = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in summary.to_dict().items()}
    return json.dumps({**run, "summary": known}, indent=2, allow_nan=False, ensure_ascii=False)


def request_columns(state: State) -> dict[str, np.ndarray]:
    """Columns of requests.csv.gz in input order, times in seconds: NaN where one never came.

    max_tbt_s is 0 for a request that has one token only, as engines report it.
    """
    q = state.requests[: int(state.system[0]["num_requests"])]
    q = q[np.argsort(q["row"], kind="stable")]
    times = {name: np.where(q[name] == NEVER, np.nan, q[name]) for name in ("first_token_s", "finish_s")}
    max_tbt_s = np.where(q["emitted_tokens"] == 1, 0.0, q["max_tbt_s"])
    return {
        "request": q["row"],
        **{name: q[name] for name in ("arrival_s", "prompt_tokens", "output_tokens")},
        **times,
        "max_tbt_s": max_tbt_s,
        "evictions": q["evictions"],
    }


def batch_columns(state: State) -> dict[str, np.ndarray]:
    """Columns of batches.csv.gz in order of start, then worker. A batch that the horizon cut off is not there."""
    log = state.batch_log[: int(state.system[0]["num_batches"])]
    log = log[np.lexsort((log["worker"], log["start_s"]))]
    names = ("worker", "start_s", "end_s", "num_requests", "prefill_tokens", "decode_tokens")
    return {"batch": np.arange(len(log)), **{name: log[name] for name in names}}
