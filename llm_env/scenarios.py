"""The scenarios and service presets that come with the package, by name. Knows only settings, files and errors."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_env.config import Scenario, ServiceSettings, describe_problems, read_scenario, with_changes
from llm_env.errors import UserError
from llm_env.measured import read_table

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # float() takes more than people mean
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_HEARD_WITH_TRACE = ("workload.prediction_sigma", "workload.declared_tokens")
_LINE = ("setup_ms", "per_token_ms", "free_tokens")
_TERMS = (*_LINE, "decode_fixed_ms", "kv_ms_per_1k_cached_tokens", "prefill_attention_ms_per_1m_token_context")


def scenario_names() -> tuple[str, ...]:
    """Names of the scenarios that come with the package, sorted."""
    found = (files("llm_env") / "data" / "scenarios").iterdir()
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in found if entry.name.endswith(".toml")))


def load_scenario(name_or_path: str | Path, changes: Sequence[str] = ()) -> Scenario:
    """A scenario by its name, or from a TOML file, with some of its settings changed.

    Args:
        name_or_path: a path if it is a Path, ends with ``.toml`` or contains a path separator; else a name.
        changes: texts for `parse_changes`.

    Raises:
        UserError: an unknown name (the message lists the known ones), the file is no valid scenario, or a change is
            none.
        InputOutputError: the file cannot be read.
    """
    scenario = _unchanged(name_or_path)
    return with_changes(scenario, parse_changes(changes)) if changes else scenario


def service_like(scenario: Scenario, text: str) -> dict[str, Any]:
    """`system.service` as `service_from_text` reads it, with the noise of the scenario's, for `with_changes`."""
    noise = {name: value for name, value in scenario.system.service if "noise" in name}
    return service_from_text(text).model_copy(update=noise).model_dump(exclude_none=True)


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Changes for `llm_env.config.with_changes` from texts like "system.layout=disaggregated".

    The value is read as in TOML: 4, 0.5, true, [1, 2.5]; what is no TOML value is a text.

    Raises:
        UserError: a text without "=", or a setting twice.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key or not value:
            raise UserError(f'change: expected SETTING=VALUE like system.workers=4, got "{text}"')
        if key in changes:
            raise UserError(f"change: {key} is given twice")
        try:
            changes[key] = tomllib.loads(f"value = {value}")["value"] if "\n" not in value else value
        except (ValueError, RecursionError):
            changes[key] = value
    return changes


def check_changes_of_trace(texts: Sequence[str]) -> None:
    """Checks that changes, as `parse_changes` reads them, are heard where a trace takes the place of drawn traffic.

    Raises:
        UserError: one is of the traffic that is not drawn.
    """
    for path in parse_changes(texts):
        if path.partition(".")[0] == "workload" and path not in _HEARD_WITH_TRACE:
            raise UserError(
                f"change: {path}: a trace brings its own traffic, only {' and '.join(_HEARD_WITH_TRACE)} are used"
            )


def _unchanged(name_or_path: str | Path) -> Scenario:
    if isinstance(name_or_path, Path) or _looks_like_path(name_or_path):
        return read_scenario(name_or_path)
    names = scenario_names()
    if name_or_path not in names:
        raise UserError(f"scenario: {_unknown(name_or_path, names)}; or give the path of a file that ends with .toml")
    with as_file(files("llm_env") / "data" / "scenarios" / f"{name_or_path}.toml") as path:
        return read_scenario(path)


def preset_names() -> tuple[str, ...]:
    """Names of the measured service curves, sorted."""
    return tuple(sorted(_presets()))


def service_from_text(text: str) -> ServiceSettings:
    """The service time that a short text or a file names.

    Args:
        text: ``"setup_ms,per_token_ms,free_tokens"`` such as ``"45.5,0.30,64"``; or the name of a preset, with all
            its terms; or ``"NAME:linear"``, the line that fits it best; or a file: the service of a scenario (.toml)
            or a measured table (.csv, see `llm_env.measured.read_table`).

    Raises:
        UserError: none of these, a number is out of range, or the file is wrong.
        InputOutputError: the file cannot be read.
    """
    if text.endswith(".toml"):
        return read_scenario(text).system.service
    if text.endswith(".csv"):
        return read_table(text)
    if "," not in text:
        presets = _presets()
        name, linear = text.removesuffix(":linear"), text.endswith(":linear")
        if name not in presets:
            raise UserError(
                f"service: {_unknown(name, presets)}; or give setup_ms,per_token_ms,free_tokens or a .toml or .csv file"
            )
        preset, columns = presets[name], _LINE if linear else _TERMS
        return ServiceSettings(**{column: preset[f"linear_{column}" if linear else column] for column in columns})
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3:
        raise UserError(f'service: expected setup_ms,per_token_ms,free_tokens like "45.5,0.30,64", got "{text}"')
    for name, part, pattern in zip(_LINE, parts, (_NUMBER, _NUMBER, _INTEGER), strict=True):
        if not pattern.fullmatch(part):
            what = "an integer" if pattern is _INTEGER else "a number"
            raise UserError(f'service: {name}: expected {what}, got "{part}"')
    try:
        return ServiceSettings(setup_ms=float(parts[0]), per_token_ms=float(parts[1]), free_tokens=int(parts[2]))
    except ValidationError as error:
        raise UserError(describe_problems(error, "service")) from None


@cache
def _presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("llm_env") / "data" / "presets.toml").read_text(encoding="utf-8"))


def _looks_like_path(text: str) -> bool:
    return text.endswith(".toml") or "/" in text or os.sep in text


def _unknown(name: str, known: Iterable[str]) -> str:
    """'unknown name "x" (did you mean "y"?), known: ...'."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f' (did you mean "{close[0]}"?)' if close else ""
    return f'unknown name "{name}"{hint}, known: {", ".join(names)}'
