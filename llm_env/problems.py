"""What is wrong with settings, in the words of somebody who writes TOML. Knows the settings that come in kinds."""

from __future__ import annotations

from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llm_env.arrival_settings import Arrivals, Stationary
from llm_env.errors import join_problems
from llm_env.length_settings import Length

# the values of `kind` that each of these settings may take
_KINDS = {
    field: tuple(kind.model_fields["kind"].default for kind in get_args(get_args(union)[0]))
    for field, union in (
        ("arrivals", Arrivals),
        ("base", Stationary),
        ("prompt", Length),
        ("output", Length),
        ("first_prompt", Length),
    )
}
_WORDS = (
    ("Value error, ", ""),
    ("Input should be ", "expected "),
    ("expected greater than or equal to ", "expected at least "),
    ("expected less than or equal to ", "expected at most "),
    ("expected greater than ", "expected above "),
    ("expected less than ", "expected below "),
)


def _describe(item: ErrorDetails) -> str:
    """The field, what was expected and what was got, in the words of somebody who writes TOML."""
    location, value = list(item["loc"]), item["input"]
    location = [
        part  # without the kinds, which pydantic puts after the settings that have one
        for before, part in zip([None, *location], location, strict=False)
        if not (before in _KINDS and part in _KINDS[str(before)])
    ]
    got = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    match item["type"]:
        case "extra_forbidden":
            message, got = "unknown setting", ""
        case "missing":
            message, got = "missing, it has no default", ""
        case "value_error":
            message, got = item["msg"], ""  # our own, which name the values
        case "too_short" | "too_long":
            bounds = item.get("ctx", {})
            bound = f"at least {bounds['min_length']}" if "min_length" in bounds else f"at most {bounds['max_length']}"
            message, got = f"expected {bound} items", str(len(value))
        case "union_tag_invalid" | "union_tag_not_found":
            got = repr(value["kind"]) if isinstance(value, dict) and "kind" in value else "none"
            message = f"expected one of {', '.join(map(repr, _KINDS[str(location[-1])]))}"
            location.append("kind")
        case "model_type" | "model_attributes_type":
            message = "expected a table of settings"
        case "tuple_type":
            message = "expected a list"
        case _:
            message = item["msg"]
    for old, new in _WORDS:
        message = message.replace(old, new, 1) if message.startswith(old) else message
    field = ".".join(str(part) for part in location) or "settings"
    return f"{field}: {message[0].lower()}{message[1:]}{f', got {got}' if got else ''}"


def describe_problems(error: ValidationError, place: str) -> str:
    """One line a problem: place, field, what was expected, what was got."""
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    return join_problems(
        [
            f"{place}: {_describe(item)}"
            for item in items
            # a list without its wrong items looks too short; the wrong items are the problem
            if item["type"] != "too_short" or not any(p[: len(item["loc"])] == item["loc"] != p for p in places)
        ]
    )
