"""What a user requires of a study's results: "POLICY.MEASURE>=VALUE". Runs nothing."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llm_env.aggregate import AVERAGED, Row
from llm_env.dtypes import SLO_RULES
from llm_env.errors import UserError
from llm_env.prices import COSTS
from llm_env.study import Study

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"(?P<label>.+)\.(?P<measure>\w+)(?P<sign>>=|<=|>|<)(?P<value>[^<>=]+)")
ATTAINMENT = "slo_attainment"  # under the scenario's rule
MEASURES = (ATTAINMENT, "weighted_attainment", *(f"{ATTAINMENT}_{rule}" for rule in SLO_RULES), *AVERAGED)


class Requirement(NamedTuple):
    """One that holds if measure SIGN value at every load. Attributes: text: as it was given."""

    text: str
    label: str
    measure: str
    sign: str
    value: float


def parse_requirement(text: str, study: Study) -> Requirement:
    """A checked requirement. The label is a contender's, or an agent's without "agent:".

    Raises:
        UserError: it has another form, or names a contender or a measure that the study does not have.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UserError(f'assert: expected POLICY.MEASURE>=VALUE (or <=, >, <), got "{text}"')
    labels = [contender.label for contender in study.contenders]
    label = next((known for known in labels if known in (match["label"], f"agent:{match['label']}")), None)
    if label is None:
        raise UserError(f'assert: {text}: expected one of {", ".join(labels)}, got "{match["label"]}"')
    measures = MEASURES if study.price is None else (*MEASURES, *COSTS)
    if match["measure"] not in measures:
        hint = ": costs need --price" if match["measure"] in COSTS else ""
        raise UserError(f'assert: {text}: expected a measure of {", ".join(measures)}, got "{match["measure"]}"{hint}')
    try:
        value = float(match["value"])
    except ValueError:
        raise UserError(f'assert: {text}: expected a number, got "{match["value"]}"') from None
    return Requirement(text, label, match["measure"], match["sign"], value)


def missed_requirements(requirements: Sequence[Requirement], rows: Sequence[Row]) -> list[str]:
    """A message for each requirement and load where it does not hold; what cannot be measured does not."""
    missed = []
    for each in requirements:
        for row in rows:
            if row.contender != each.label:
                continue
            found = _measure(row, each.measure)
            if found is None or not _OPERATORS[each.sign](found, each.value):
                at = "" if row.load is None else f" at load {row.load:g}"
                missed.append(f"assert: {each.text}: got {'nothing' if found is None else f'{found:.6g}'}{at}")
    return missed


def _measure(row: Row, measure: str) -> float | None:
    flat = row.to_dict()
    if measure == ATTAINMENT:
        measure = f"{ATTAINMENT}_{row.slo_rule}"
    if measure == "weighted_attainment" and measure not in flat:
        return _measure(row, ATTAINMENT)  # all classes weigh the same
    return flat[measure]
