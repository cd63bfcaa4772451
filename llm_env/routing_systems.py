"""Many seeded episodes side by side in which an agent routes: what the environments, training and evaluation share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm_env.actions import DISCRETE
from llm_env.adaptive import NEUTRAL, PARAMETERS
from llm_env.config import Scenario, with_changes
from llm_env.dtypes import ROUTING
from llm_env.errors import UserError
from llm_env.part import Form, Part
from llm_env.rollout import Exchange
from llm_env.routing_features import num_routing_features
from llm_env.routing_loop import ROUTE, route_all
from llm_env.routing_reward import ROUTING_TERM_NAMES, routing_reward_weights
from llm_env.systems import Systems, Workload

Base = Mapping[str, float]  # parameters of `llm_env.adaptive` by name; those that are not given are neutral


def base_parameters(base: Base | None) -> np.ndarray:
    """(number of parameters,) float64 of the adaptive rule, in its order.

    Raises:
        UserError: an unknown name, or a value outside its range.
    """
    values = dict(zip((p.name for p in PARAMETERS), NEUTRAL, strict=True))
    for name, value in (base or {}).items():
        if name not in values:
            raise UserError(f"base: expected parameters among {', '.join(values)}, got {name!r}")
        parameter = next(p for p in PARAMETERS if p.name == name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not parameter.low <= value <= parameter.high
        ):
            raise UserError(
                f"base: {name}: expected a number from {parameter.low:g} to {parameter.high:g}, got {value!r}"
            )
        values[name] = float(value)
    return np.array(list(values.values()), np.float64)


def pool_size(scenarios: Sequence[Scenario]) -> int:
    """How many workers a request can be given to: those that prefill.

    Raises:
        UserError: not equally many in all scenarios.
    """
    sizes = {scenario.system.prefill_workers or scenario.system.workers for scenario in scenarios}
    if len(sizes) > 1:
        raise UserError(f"scenario: routing needs the same number of workers that prefill in all, got {sorted(sizes)}")
    return sizes.pop()


class RoutingSystems(Systems):
    """`num_envs` systems whose arrivals are routed by actions; the adaptive rule forms the batches.

    Args:
        scenarios: their settings; `system.router` becomes "agent".
        num_envs: how many.
        base: parameters of the adaptive rule.
        workloads: seed -> requests, of each scenario; by default drawn from the scenarios.
        record: keep logs of batches and gaps.

    Attributes:
        num_workers: how many workers there are to choose from.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        num_envs: int,
        base: Base | None = None,
        workloads: Sequence[Workload] | None = None,
        record: bool = False,
    ) -> None:
        self.num_workers, self.kind = pool_size(scenarios), DISCRETE
        self._base = base_parameters(base)
        form = Form(route_all, ROUTE, num_routing_features(self.num_workers), routing_reward_weights)
        asked = [with_changes(scenario, {"system.router": "agent"}) for scenario in scenarios]
        self._make(asked, num_envs, form, workloads, record)

    def set_actions(self, actions: np.ndarray) -> None:
        """Takes the workers that all systems name, (num_envs,) integers.

        Raises:
            ValueError: wrong shape, or no such worker.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(f"action: expected ({self.num_envs},) integers, got {actions!r}")
        if not ((actions >= 0) & (actions < self.num_workers)).all():
            raise ValueError(f"action: expected workers from 0 to {self.num_workers - 1}, got {actions!r}")
        self._exchange.integers[:, 0] = actions
        self._exchange.floats[:, : len(self._base)] = self._base

    def _infos(self, exchange: Exchange) -> dict[str, np.ndarray]:
        _, decisions, rejected, waiting, running = exchange.counts.T.copy()
        _, dt_s, *terms = exchange.results.T.copy()
        infos = {
            "dt_s": dt_s,
            "num_decisions": decisions,
            "num_rejected": rejected,
            "num_waiting": waiting,
            "num_running": running,
        }
        return infos | {f"reward_{name}": term for name, term in zip(ROUTING_TERM_NAMES, terms, strict=True)}

    def masks(self) -> np.ndarray:
        """(num_envs, num_workers) of True: every worker takes every request."""
        return np.ones((self.num_envs, self.num_workers), np.bool_)

    def active(self) -> np.ndarray:
        """(num_envs,) bool: which systems have an arrival to be routed."""
        active = np.zeros(self.num_envs, np.bool_)
        self._in_parts(np.ones(self.num_envs, np.bool_), _note_asked, active)
        return active


def _note_asked(part: Part, mine: np.ndarray, asked: np.ndarray) -> None:
    asked[:] = mine & (part.states.system["phase"][:, 0] == ROUTING)
