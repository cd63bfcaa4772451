"""A run decision by decision, with what was decided and what every batch held. It only reads the State between two
decisions.

Every layout can be told apart. A decision begins at most one batch, of the worker that was asked, whose entries stay
in `State.batch` until that worker decides again. A worker ends its batches in the order in which it began them, so its
k-th row in the batch log is the k-th that was seen to begin. An entry of a batch prefills if, before the batch, less
was computed of its request than had to be prefilled. That holds for migrated and swapped requests, and for chunks of
prompts of other workers, too. What is not recorded is when KV moves: over the link, or to the host and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from llm_env.build import load, new_states, single
from llm_env.choices import CHOICE, choice_of_action, choice_of_policy
from llm_env.config import Scenario, refuse_varying
from llm_env.dtypes import ACTIVE
from llm_env.errors import UserError
from llm_env.part import Workload
from llm_env.records import State
from llm_env.rollout import Decide, continue_rollout, refuse_agent
from llm_env.systems import Systems

ENTRY = np.dtype([("batch", "i8"), ("row", "i8"), ("prefill", "i8"), ("decode", "i8")])  # row: REQUEST "row"
SAMPLE = np.dtype([("time_s", "f8"), ("num_waiting", "i8"), ("num_running", "i8"), ("kv_used", "f8")])


class Recording(NamedTuple):
    """What happened in a run."""

    batches: np.ndarray  # (n,) BATCH in order of their ends; a batch that the end of the run cut off is not there
    entries: np.ndarray  # (m,) ENTRY by batch, an index into `batches`; within one in the order of being placed
    samples: np.ndarray  # (k,) SAMPLE: at each decision; kv_used: share of all workers' blocks, 0 if unlimited
    choices: np.ndarray  # (k,) CHOICE: the decisions
    requests: np.ndarray  # (r,) REQUEST at the end, by row
    end_s: float  # where the clock stood


def record_run(
    scenario: Scenario, decide: Decide, requests: np.ndarray, seed: int, until_s: float = math.inf
) -> Recording:
    """Runs a policy over a workload and records it. The run is that of `llm_env.rollout.rollout`, bit for bit.

    A decision takes some 0.2 ms, an entry of a batch 32 bytes.

    Args:
        decide: a compiled policy (`llm_env.records.policy`).
        requests: (r,) REQUEST, not changed.
        seed: of the service noise.
        until_s: the run ends before the first decision at or after this time.

    Raises:
        UserError: `llm_env.rollout.refuse_agent`; the scenario varies: take that of the seed
            (`llm_env.workload.concrete`); until_s is not above 0.
    """
    refuse_agent(scenario)
    refuse_varying(scenario, "record_run")
    _check_end(until_s)
    states = load(new_states(scenario, 1, max(1, len(requests)), record=True), 0, requests, seed)
    watch = _Watch(states.workers.shape[1])
    while _goes_on(state := single(states), until_s):
        watch.before(state, choice_of_policy(state, decide))
        states = continue_rollout(states, decide, seed, max_steps=1)
        watch.after(single(states))
    return watch.recording(state)


class Learned(Protocol):
    """A trained agent that forms batches (`agents.NumpyAgent`)."""

    @property
    def action(self) -> str: ...  # one of `llm_env.actions.ACTION_KINDS`
    def deciding(self, systems: Systems) -> Callable[[np.ndarray], np.ndarray]: ...


def record_agent(
    scenario: Scenario, agent: Learned, workload: Workload, seeds: Sequence[int], until_s: float = math.inf
) -> Recording:
    """Runs an agent and records the run of the first seed.

    All seeds run side by side, as `agents.run.run_agent` has them: the size of a matrix product may change the last
    bit of an action, and so the recorded run is the one of a study of these seeds.

    Args:
        agent: decides greedily.
        workload: seed -> requests.
        until_s: as in `record_run`.

    Raises:
        UserError: the scenario asks an agent for routes; until_s is not above 0.
    """
    _check_end(until_s)
    systems = Systems([scenario], len(seeds), agent.action, [workload], record=True)
    for e, seed in enumerate(seeds):
        systems.reset(e, seed)
    watch, act = _Watch(len(systems.state(0).workers)), agent.deciding(systems)
    active = systems.active()
    observations = systems.observe(active)
    while _goes_on(state := systems.state(0), until_s):
        systems.set_actions(act(observations))
        watch.before(state, choice_of_action(state, systems.kind, *systems.action(0)))
        observations = systems.step(active).observations
        watch.after(systems.state(0))
        active = systems.active()
    return watch.recording(state)


def _check_end(until_s: float) -> None:
    if not until_s > 0:
        raise UserError(f"until_s: expected seconds above 0, got {until_s!r}")


def _goes_on(state: State, until_s: float) -> bool:
    system = state.system[0]
    return bool(system["phase"] == ACTIVE and system["now_s"] < until_s)


class _Watch:
    """Takes down one system, before and after each decision. Args: num_workers: of the system."""

    def __init__(self, num_workers: int) -> None:
        self._begun: list[list[np.ndarray]] = [[] for _ in range(num_workers)]  # by worker: (entries, 3) int64
        self._samples: list[tuple[float, int, int, float]] = []
        self._choices: list[np.ndarray] = []
        self._asked = 0, 0  # a worker, and how many batches it had begun

    def before(self, state: State, choice: np.ndarray) -> None:
        """A decision is due. Args: choice: (1,) CHOICE."""
        w = int(state.system[0]["worker"])
        self._asked = w, int(state.workers["iteration"][w])
        self._samples.append(_sample(state))
        self._choices.append(choice)

    def after(self, state: State) -> None:
        """The next decision is due, or the run has ended."""
        w, before = self._asked
        if state.workers["iteration"][w] > before:
            self._begun[w].append(_entries(state, w))

    def recording(self, state: State) -> Recording:
        """All of it. Args: state: at the end."""
        system = state.system[0]
        batches = np.array(state.batch_log[: int(system["num_batches"])])
        ended = [iter(of_worker) for of_worker in self._begun]
        held = [next(ended[w]) for w in batches["worker"].tolist()]
        entries = np.zeros(sum(map(len, held)), ENTRY)
        if held:
            entries["batch"] = np.repeat(np.arange(len(held)), [len(rows) for rows in held])
            for column, name in enumerate(("row", "prefill", "decode")):
                entries[name] = np.concatenate([rows[:, column] for rows in held])
        requests = np.array(state.requests[: int(system["num_requests"])])
        requests = requests[np.argsort(requests["row"], kind="stable")]
        choices = np.concatenate(self._choices) if self._choices else np.zeros(0, CHOICE)
        samples = np.array(self._samples, SAMPLE)
        return Recording(batches, entries, samples, choices, requests, float(system["now_s"]))


def _sample(state: State) -> tuple[float, int, int, float]:
    """A row of SAMPLE."""
    system, workers = state.system[0], state.workers
    kv_used = 0.0
    if system["kv_limited"] == 1:
        free = int(workers["free_blocks"].sum() + workers["cached_blocks"].sum())
        kv_used = 1.0 - free / (int(system["kv_blocks"]) * len(workers))
    return float(system["now_s"]), int(system["num_waiting"]), int(workers["num_running"].sum()), kv_used


def _entries(state: State, w: int) -> np.ndarray:
    """Row, prefill and decode tokens of each entry of the batch that worker w has begun, and may have ended, in the
    last step: (entries, 3) int64.
    """
    worker = state.workers[w]
    batch, requests = state.batch[w, : int(worker["batch_size"])], state.requests
    who, tokens = batch[:, 0], batch[:, 1]
    computed = requests["computed_tokens"][who]
    if worker["busy"] == 0:  # the batch has ended: its tokens are counted, but for what goes to other workers
        computed = computed - tokens
    prefills = computed < requests["prefill_tokens"][who]
    return np.stack([requests["row"][who], np.where(prefills, tokens, 0), np.where(prefills, 0, tokens)], axis=1)
