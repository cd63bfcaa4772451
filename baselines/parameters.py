"""Checks shared by the policy factories: a wrong parameter is one clear error. Knows the records and errors only."""

from __future__ import annotations

from typing import Literal

from llm_env.errors import UserError
from llm_env.records import QUEUE_ORDERS

TokenBudget = int | Literal["slo"]
MAX_COUNT = 1 << 30


def whole(name: str, value: int, least: int = 1, most: int = MAX_COUNT) -> int:
    """The value, if it is an integer in [least, most].

    Raises:
        UserError: names the parameter, the range and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name}: expected an integer from {least} to {most}, got {value!r}")
    return value


def number(name: str, value: float, least: float, most: float) -> float:
    """The value as float, if it is a number in [least, most].

    Raises:
        UserError: names the parameter, the range and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise UserError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r}")
    return float(value)


def budget(value: TokenBudget, name: str = "token_budget") -> int:
    """A token budget; 0 stands for "slo", the largest batch within the TBT target (`View.slo_budget`).

    Raises:
        UserError: neither "slo" nor a positive integer.
    """
    if value == "slo":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise UserError(f'{name}: expected "slo" or an integer from 1 to {MAX_COUNT}, got {value!r}')
    return value


def one_of(name: str, value: str, choices: tuple[str, ...]) -> int:
    """The place of a value among the choices.

    Raises:
        UserError: lists the choices.
    """
    if value not in choices:
        raise UserError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return choices.index(value)


def queue_order(value: str, name: str = "order") -> int:
    """The number of a queue order.

    Raises:
        UserError: lists the orders.
    """
    return one_of(name, value, QUEUE_ORDERS)
