"""Where a policy of floats begins: at the neutral rule, at the tuned one, or at numbers that were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.forms import Deciding, Form, Routing
from llm_env.actions import BOX_NAMES
from llm_env.adaptive import BOX as ADAPTIVE_BOX
from llm_env.boxes import Box
from llm_env.config import Scenario, with_changes
from llm_env.errors import UserError
from llm_env.records import MOST_RANKED
from llm_env.role_rule import BOX as ROLE_BOX
from llm_env.routing_systems import pool_size
from llm_env.tuned import tuned_parameters, tuned_router, tuned_routers

ROUTE = "route"  # in place of a form of action: workers for requests
SCORE_RULE = "score"  # the routing rule that learned ones begin with
# forms of action that are a rule's numbers: the rule, and the baseline that is this rule with fixed numbers
RULES: dict[str, tuple[Box, str]] = {
    "adaptive": (ADAPTIVE_BOX, "adaptive"),
    "ranked": (ADAPTIVE_BOX, "adaptive"),
    "roles": (ROLE_BOX, "role-switch"),
    ROUTE: (ADAPTIVE_BOX, "adaptive"),
}


def starting_action(form: str, init: str, given: Sequence[str], scenarios: Sequence[Scenario]) -> np.ndarray | None:
    """The action in [-1, 1] that a policy takes everywhere before it has learned, None if it is left to chance.

    With it, a policy of a form in RULES decides exactly as its baseline with these numbers.

    Args:
        form: of the action.
        init: "heuristic", "tuned" or "none".
        given: texts like "budget=0.8", parameters of the form's rule that are not those of `init`.
        scenarios: whose tuned settings are meant; they must agree on one.

    Raises:
        UserError: this form has no such start, or a text is no parameter.
    """
    if form not in RULES:
        if given or init == "tuned":
            raise UserError(
                f"{'start' if given else 'init tuned'}: only for --action adaptive, ranked or roles, got {form}"
            )
        return np.zeros(len(BOX_NAMES)) if form == "box" and init == "heuristic" else None
    if init == "none":
        if given:
            raise UserError("start: not with --init none, which begins nowhere in particular")
        return None
    numbers = RULES[form][0].to_unit(list(starting_numbers(form, init, given, scenarios).values()))
    return np.concatenate([np.zeros(MOST_RANKED), numbers]) if form == "ranked" else numbers


def starting_numbers(form: str, init: str, given: Sequence[str], scenarios: Sequence[Scenario]) -> dict[str, float]:
    """All parameters of a form's rule, in its order (arguments as `starting_action` takes them).

    Raises:
        UserError: a text is no parameter, a number is out of range, or the tuned setting is none of this rule.
    """
    box, name = RULES[form]
    found = dict(zip(box.names, box.neutral, strict=True))
    if init == "tuned":
        tuned = _agreed([tuned_parameters(scenario.name, name) for scenario in scenarios], scenarios)
        if not tuned.pop("change", 1.0):
            raise UserError(
                f"init tuned: the tuned {name} changes no roles: say with --start NAME=VALUE where to begin"
            )
        found |= tuned
    found |= _parse(given, box.names)
    for p in box.parameters:
        if not p.low <= found[p.name] <= p.high:
            raise UserError(f"start: {p.name}: expected {p.low:g} to {p.high:g}, got {found[p.name]:g}")
    return found


def starting_form(
    form: str, init: str, given: Sequence[str], scenarios: Sequence[Scenario], learn: Sequence[str] = ()
) -> Form:
    """What is learned by evolution, and with what it begins (arguments and errors as `starting_action`).

    Args:
        learn: names of the numbers that are learned; none for all.
    """
    names = BOX_NAMES if form == "box" else () if form == ROUTE else RULES[form][0].names
    for name in learn:
        if name not in names or learn.count(name) > 1:
            raise UserError(f'es.learn: expected different ones of {", ".join(names) or "none"}, got "{name}"')
    if form == ROUTE:
        return starting_router(init, given, scenarios)
    action = starting_action(form, init, given, scenarios)
    if action is None:
        raise UserError("algo: es needs a place to begin: --init heuristic or tuned")
    return Deciding(tuple(scenarios), form, action, tuple(sorted(names.index(name) for name in learn)))


def starting_router(init: str, given: Sequence[str], scenarios: Sequence[Scenario]) -> Routing:
    """What a router begins as: the rule "score", tuned with --init tuned, and the adaptive rule for the batches.

    Raises:
        UserError: as `starting_numbers`; there is nobody to choose; the scenarios weigh the rule differently.
    """
    if pool_size(scenarios) < 2:
        raise UserError("action route: there is nothing to route with one worker that prefills")
    changed = tuple(scenarios)
    if init == "tuned" and all(SCORE_RULE in tuned_routers(scenario.name) for scenario in scenarios):
        tuned = _agreed([tuned_router(scenario.name, SCORE_RULE) for scenario in scenarios], scenarios)
        changed = tuple(with_changes(scenario, {"system.routing": tuned}) for scenario in scenarios)
    if any(scenario.system.routing != changed[0].system.routing for scenario in changed):
        raise UserError("action route: the scenarios differ in system.routing, the weights of the rule to begin with")
    return Routing(changed, starting_numbers(ROUTE, init, given, scenarios))


def _agreed(settings: Sequence[Mapping[str, Any]], scenarios: Sequence[Scenario]) -> dict[str, float]:
    first, *others = settings
    if any(other != first for other in others):
        names = ", ".join(scenario.name for scenario in scenarios)
        raise UserError(f"init tuned: {names} have different tuned settings: give one with --start NAME=VALUE ...")
    return {name: float(value) for name, value in first.items()}


def _parse(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise UserError(f'start: expected NAME=VALUE with one of {", ".join(names)}, got "{text}"')
        try:
            found[name] = float(value)
        except ValueError:
            raise UserError(f'start: {name}: expected a number, got "{value}"') from None
    return found
