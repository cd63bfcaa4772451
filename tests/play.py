"""Small runs of a policy, batch by batch, in which the rule that its source states can be followed by hand.

The system is the toy one: S(b) = 10 ms + b x 1 ms, targets of 100 ms and 20 ms, blocks of 4 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from toy import formed, toy_requests, toy_scenario

import baselines
from llm_env.build import load, new_states, single
from llm_env.config import Scenario, with_changes
from llm_env.core import step
from llm_env.dtypes import ACTIVE, FINISHED
from llm_env.records import State, View
from llm_env.view import make_view

Entries = list[tuple[int, int]]  # (request, tokens)


class Played(NamedTuple):
    """One decision: when it was taken, by which worker, and the batch; no entries are a hold."""

    ms: float
    worker: int
    entries: Entries


class Play(NamedTuple):
    """A run to its end."""

    state: State
    steps: list[Played]

    @property
    def batches(self) -> list[Entries]:
        """The batches in order of their start, without the holds."""
        return [played.entries for played in self.steps if played.entries]

    @property
    def starts_ms(self) -> list[float]:
        """When each batch starts, to the microsecond."""
        return [round(played.ms, 3) for played in self.steps if played.entries]

    def of_worker(self, worker: int) -> list[Entries]:
        """The batches of one worker."""
        return [played.entries for played in self.steps if played.entries and played.worker == worker]


def loaded(
    rows: Sequence[tuple[float, int, int]],
    changes: Mapping[str, Any] | None = None,
    columns: Mapping[str, Sequence[float]] | None = None,
    **settings: Any,
) -> State:
    """A system at its first decision.

    Args:
        rows: (arrival in ms, prompt_tokens, output_tokens) of each request, in order of arrival.
        changes: of the scenario, by dotted name.
        columns: further columns of REQUEST; declared_tokens is output_tokens unless given.
        settings: of `toy_scenario`.
    """
    scenario = toy_scenario(**settings)
    if changes:
        scenario = with_changes(scenario, dict(changes))
    requests = toy_requests([(ms / 1e3, prompt, output) for ms, prompt, output in rows], scenario)
    requests["declared_tokens"] = requests["output_tokens"]
    for name, column in (columns or {}).items():
        requests[name] = column
    return single(load(new_states(scenario, 1, len(rows)), 0, requests, 0))


def play(
    policy: str,
    rows: Sequence[tuple[float, int, int]],
    changes: Mapping[str, Any] | None = None,
    columns: Mapping[str, Sequence[float]] | None = None,
    max_steps: int = 500,
    parameters: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Play:
    """Runs a policy to the end, which it must reach with every request finished. Args: see `loaded`."""
    state = loaded(rows, changes, columns, **settings)
    decide = baselines.make_policy(policy, **(parameters or {}))
    steps: list[Played] = []
    while state.system[0]["phase"] == ACTIVE:
        assert len(steps) < max_steps, f"{policy} does not drain the system: {steps[-5:]}"
        d = decide(make_view(state))
        worker, ms = int(state.system[0]["worker"]), float(state.system[0]["now_s"]) * 1e3
        steps.append(Played(ms, worker, [] if d.hold_s > 0 else formed(state, d, worker)))
        step(state, d)
    assert (state.requests["status"][: len(rows)] == FINISHED).all()
    return Play(state, steps)


def view_of(**fields: Any) -> View:
    """The View of a toy system with one waiting request, with some fields replaced."""
    return make_view(loaded([(0, 8, 4)]))._replace(**fields)


def chat_scenario(scenario: Scenario, seconds: float, **changes: Any) -> Scenario:
    """A scenario whose arrivals end after `seconds` and whose clock goes on until all are served."""
    return with_changes(
        scenario, {"episode.arrivals_s": seconds, "episode.warmup_s": 0.0, "episode.horizon_s": 1e6, **changes}
    )
