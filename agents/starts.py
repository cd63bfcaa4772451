"""Where a policy of floats begins: at the neutral rule, at the tuned one, or at numbers that were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llm_env.actions import BOX_NAMES
from llm_env.adaptive import NAMES, NEUTRAL, PARAMETERS, to_unit
from llm_env.config import Scenario
from llm_env.errors import UserError
from llm_env.records import MOST_RANKED
from llm_env.tuned import tuned_parameters


def starting_action(form: str, init: str, given: Sequence[str], scenarios: Sequence[Scenario]) -> np.ndarray | None:
    """The action in [-1, 1] that a policy takes everywhere before it has learned, None if it is left to chance.

    With it, a policy of the adaptive or the ranked form decides exactly as the baseline `adaptive` with these numbers.

    Args:
        form: of the action.
        init: "heuristic", "tuned" or "none".
        given: texts like "budget=0.8", parameters of the adaptive rule that are not those of `init`.
        scenarios: whose tuned settings are meant; they must agree on one.

    Raises:
        UserError: this form has no such start, or a text is no parameter.
    """
    if form not in ("adaptive", "ranked"):
        if given or init == "tuned":
            raise UserError(f"{'start' if given else 'init tuned'}: only for --action adaptive or ranked, got {form}")
        return np.zeros(len(BOX_NAMES)) if form == "box" and init == "heuristic" else None
    if init == "none":
        if given:
            raise UserError("start: not with --init none, which begins nowhere in particular")
        return None
    found = dict(zip(NAMES, NEUTRAL, strict=True))
    if init == "tuned":
        found |= _tuned(scenarios)
    found |= _parse(given)
    for p in PARAMETERS:
        if not p.low <= found[p.name] <= p.high:
            raise UserError(f"start: {p.name}: expected {p.low:g} to {p.high:g}, got {found[p.name]:g}")
    numbers = to_unit([found[name] for name in NAMES])
    return np.concatenate([np.zeros(MOST_RANKED), numbers]) if form == "ranked" else numbers


def _tuned(scenarios: Sequence[Scenario]) -> Mapping[str, float]:
    first, *others = [tuned_parameters(scenario.name, "adaptive") for scenario in scenarios]
    if any(other != first for other in others):
        names = ", ".join(scenario.name for scenario in scenarios)
        raise UserError(f"init tuned: {names} have different tuned settings: give one with --start NAME=VALUE ...")
    return {name: float(value) for name, value in first.items()}


def _parse(texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in NAMES:
            raise UserError(f'start: expected NAME=VALUE with one of {", ".join(NAMES)}, got "{text}"')
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f'start: {name}: expected a number, got "{value}"') from None
    return found
