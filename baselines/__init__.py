"""Schedulers that engines and papers use and strong hand-made ones: one file each, a function from View to Decision.

To add one: a file with a factory `make(...)` that returns a compiled `decide`, and a line in POLICIES.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from baselines import (
    adaptive,
    decode_first,
    distserve,
    dynamic_batch,
    fastserve,
    fcfs,
    fixed_batch,
    hrrn,
    kv_aware,
    moore_hodgson,
    nested_wait,
    orca,
    predicted_shortest,
    priority,
    rad,
    random,
    request_level,
    role_switch,
    sarathi,
    sarathi_spf,
    sglang,
    slack_fill,
    slai,
    splitwise,
    static_chunk,
    tensorrt_llm,
    vllm_v0,
    vllm_v1,
    vtc,
    wait,
)
from llm_env.errors import UserError

POLICIES: dict[str, Callable[..., Any]] = {
    "fcfs": fcfs.make,
    "request-level": request_level.make,
    "orca": orca.make,
    "vllm-v0": vllm_v0.make,
    "vllm-v1": vllm_v1.make,
    "sglang": sglang.make,
    "tensorrt-llm": tensorrt_llm.make,
    "distserve": distserve.make,
    "splitwise": splitwise.make,
    "role-switch": role_switch.make,
    "sarathi": sarathi.make,
    "sarathi-spf": sarathi_spf.make,
    "decode-first": decode_first.make,
    "slack-fill": slack_fill.make,
    "moore-hodgson": moore_hodgson.make,
    "adaptive": adaptive.make,
    "kv-aware": kv_aware.make,
    "slai": slai.make,
    "rad": rad.make,
    "fastserve": fastserve.make,
    "vtc": vtc.make,
    "predicted-shortest": predicted_shortest.make,
    "hrrn": hrrn.make,
    "priority": priority.make,
    "wait": wait.make,
    "nested-wait": nested_wait.make,
    "fixed-batch": fixed_batch.make,
    "dynamic-batch": dynamic_batch.make,
    "static-chunk": static_chunk.make,
    "random": random.make,
}


class Parameter(NamedTuple):
    """A parameter of a policy, as `--list-policies` shows it."""

    name: str
    default: Any
    kind: Any  # int, float, bool, str or "int or slo"


class PolicyInfo(NamedTuple):
    """What is known of a policy: the module's docstring is its rule and source."""

    name: str
    summary: str
    rule: str
    parameters: tuple[Parameter, ...]


def policy_info(name: str) -> PolicyInfo:
    """Rule, source and parameters of a policy.

    Raises:
        UserError: there is no such policy.
    """
    make = _factory(name)
    module = inspect.getmodule(make)
    summary, _, rule = inspect.cleandoc((module and module.__doc__) or "").partition("\n\n")
    hints = get_type_hints(make)
    parameters = tuple(Parameter(p.name, p.default, hints[p.name]) for p in inspect.signature(make).parameters.values())
    return PolicyInfo(name, " ".join(summary.split()), rule, parameters)


def make_policy(name: str, **parameters: Any) -> Any:
    """The compiled `decide` of a policy; equal parameters give the same object.

    Raises:
        UserError: no such policy or parameter, or a value it does not take.
    """
    known = [p.name for p in policy_info(name).parameters]
    for parameter in parameters:
        if parameter not in known:
            allowed = ", ".join(known) if known else "none"
            raise UserError(f"policy {name}: unknown parameter {parameter!r}; it has: {allowed}")
    try:
        return _made(name, tuple(sorted(parameters.items())))
    except UserError as error:
        raise UserError(f"policy {name}: {error}") from None


@cache
def _made(name: str, parameters: tuple[tuple[str, Any], ...]) -> Any:
    return _factory(name)(**dict(parameters))


def parse_parameters(name: str, texts: list[str]) -> dict[str, Any]:
    """Parameters of a policy from "key=value" texts.

    Raises:
        UserError: a text without "=", an unknown or repeated key, or a value of the wrong kind.
    """
    kinds = {p.name: p.kind for p in policy_info(name).parameters}
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"policy {name}: expected key=value, got {text!r}")
        key = key.strip().replace("-", "_")
        if key not in kinds:
            raise UserError(f"policy {name}: unknown parameter {key!r}; it has: {', '.join(kinds) or 'none'}")
        if key in values:
            raise UserError(f"policy {name}: parameter {key!r} is given twice")
        values[key] = _parsed(name, key, value.strip(), kinds[key])
    return values


def _parsed(name: str, key: str, text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"policy {name}: {key}: expected true or false, got {text!r}")
        return text.lower() == "true"
    if kind is str:
        return text
    if kind is not int and kind is not float and text == "slo":
        return text
    digits = text.removeprefix("-")
    if kind is float:
        try:
            if "_" in text:
                raise ValueError
            return float(text)
        except ValueError:
            raise UserError(f"policy {name}: {key}: expected a number, got {text!r}") from None
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        extra = "" if kind is int else ' or "slo"'
        raise UserError(f"policy {name}: {key}: expected an integer{extra}, got {text!r}")
    return int(text)


def _factory(name: str) -> Callable[..., Any]:
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown policy {name!r}{hint}; there are: {', '.join(POLICIES)}")
    return POLICIES[name]
