"""Every setting of a scenario: frozen, typed, checked where it is made; TOML in, TOML out.

Settings carry the units that people type (milliseconds, suffix ``_ms``); the kernel's seconds are made from them in
one place, `llm_env.rollout.new_state`. Knows the errors and the settings of the parts, `system_settings`,
`workload_settings`, `arrival_settings` and `length_settings`, whose classes are to be had from here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from llm_env.arrival_settings import (
    ArrivalPart,
    Arrivals,
    ClientArrivals,
    ClosedLoopArrivals,
    CoxArrivals,
    FlashCrowdArrivals,
    GammaArrivals,
    MMPP2Arrivals,
    MMPPArrivals,
    OnOffArrivals,
    PoissonArrivals,
    ProfileArrivals,
    Stationary,
    SuperposedArrivals,
    WeibullArrivals,
)
from llm_env.errors import InputOutputError, UserError, join_problems
from llm_env.length_settings import (
    ChoiceLength,
    FixedLength,
    GeometricLength,
    Length,
    LognormalLength,
    LognormalMixtureLength,
    PairSettings,
    QuantileLength,
    UniformLength,
    ZipfLength,
)
from llm_env.settings import MAX_POINTS, MAX_TOKENS, Positive, Settings
from llm_env.system_settings import (
    KVSettings,
    Layout,
    LinkSettings,
    ParallelSettings,
    Router,
    ServiceSettings,
    SystemSettings,
)
from llm_env.workload_settings import ClientSettings, SessionSettings, WorkloadSettings

__all__ = [
    "MAX_POINTS",
    "MAX_TOKENS",
    "ArrivalPart",
    "Arrivals",
    "ChoiceLength",
    "ClientArrivals",
    "ClientSettings",
    "ClosedLoopArrivals",
    "CoxArrivals",
    "EpisodeSettings",
    "FixedLength",
    "FlashCrowdArrivals",
    "GammaArrivals",
    "GeometricLength",
    "KVSettings",
    "Layout",
    "Length",
    "LinkSettings",
    "LognormalLength",
    "LognormalMixtureLength",
    "MMPP2Arrivals",
    "MMPPArrivals",
    "OnOffArrivals",
    "PairSettings",
    "ParallelSettings",
    "PoissonArrivals",
    "ProfileArrivals",
    "QuantileLength",
    "RewardSettings",
    "Router",
    "SLOClass",
    "SLOSettings",
    "Scenario",
    "ServiceSettings",
    "SessionSettings",
    "Settings",
    "SuperposedArrivals",
    "SystemSettings",
    "UniformLength",
    "WeibullArrivals",
    "WorkloadSettings",
    "ZipfLength",
    "describe_problems",
    "read_scenario",
    "scenario_from_dict",
    "scenario_to_toml",
    "with_changes",
]

SLORule = Literal["max", "p99", "deadline"]


class SLOClass(Settings):
    """What one class of requests was promised. `share` is its share of the arrivals."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = "default"
    ttft_ms: Positive = 2000.0
    tbt_ms: Positive = 150.0
    weight: Positive = 1.0
    share: Annotated[float, Field(gt=0, le=1)] = 1.0


class SLOSettings(Settings):
    """SLO classes, and which of the three TBT rules the reward and the headline use (all three are always computed)."""

    rule: SLORule = "p99"
    classes: Annotated[tuple[SLOClass, ...], Field(min_length=1, max_length=16, strict=False)] = (SLOClass(),)

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> SLOSettings:
        total = sum(c.share for c in self.classes)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the classes must sum to 1, got {total:g}")
        names = [c.name for c in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"two classes share one name: {names}")
        return self

    @property
    def tightest_tbt_ms(self) -> float:
        return min(c.tbt_ms for c in self.classes)


class EpisodeSettings(Settings):
    """Arrivals in [0, arrivals_s), of which those from warmup_s on are measured; the clock stops at horizon_s."""

    arrivals_s: Positive = 120.0
    warmup_s: Annotated[float, Field(ge=0, le=1e9)] = 15.0
    horizon_s: Positive = 240.0

    @model_validator(mode="after")
    def _ordered(self) -> EpisodeSettings:
        if not self.warmup_s < self.arrivals_s <= self.horizon_s:
            got = f"{self.warmup_s:g}, {self.arrivals_s:g}, {self.horizon_s:g}"
            raise ValueError(f"need warmup_s < arrivals_s <= horizon_s, got {got}")
        return self


class RewardSettings(Settings):
    """Weights of the named reward terms (see `llm_env.reward`) and the time constant H of the discount exp(-dt/H)."""

    first_token: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    completion: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    token: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    queue: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    discount_horizon_s: Positive = 40.0


class Scenario(Settings):
    """One serving problem: system, promises, traffic, episode and reward."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "custom"
    description: str = ""
    source: str = ""
    system: SystemSettings = SystemSettings()
    slo: SLOSettings = SLOSettings()
    workload: WorkloadSettings = WorkloadSettings()
    episode: EpisodeSettings = EpisodeSettings()
    reward: RewardSettings = RewardSettings()


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


def scenario_from_dict(data: dict[str, Any], place: str = "scenario") -> Scenario:
    """A checked Scenario.

    Raises:
        UserError: names each wrong field, its value and what is allowed.
    """
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise UserError(describe_problems(error, place)) from None


def read_scenario(path: str | Path) -> Scenario:
    """Reads a scenario TOML file.

    Raises:
        InputOutputError: the file cannot be read.
        UserError: it is not UTF-8 TOML, or a setting is wrong.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, a list 1,000 deep
        raise UserError(f"{path}: not valid TOML: {error}") from None
    return scenario_from_dict(data, str(path))


def scenario_to_toml(scenario: Scenario) -> str:
    """The scenario as TOML text that `read_scenario` reads back to an equal Scenario."""
    return tomli_w.dumps(scenario.model_dump(mode="json", exclude_none=True))


_EITHER = (
    ("workload.load", "workload.rate_per_s"),
    ("workload.sessions.mean_turns", "workload.sessions.more_turns"),
    ("workload.clients.skew", "workload.clients.log_rate_sd"),
)


def with_changes(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    """A copy with some settings changed, named by dotted paths ("workload.load"). Checked as a whole.

    Setting workload.load clears workload.rate_per_s, and the other way round; so do the other settings of which only
    one can be given. Closed-loop arrivals clear both. Another `kind` comes without the settings of the old one.

    Raises:
        UserError: an unknown path or a bad value.
    """
    data = scenario.model_dump(mode="python", exclude_none=True)
    for path, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):  # kinds first
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f"scenario: {path}: {key} is not a group of settings")
        if last == "kind" and node.get("kind") != value:
            node.clear()
        for one, other in _EITHER:
            if path in (one, other):
                node.pop((other if path == one else one).rpartition(".")[2], None)
        kind = value.get("kind") if path == "workload.arrivals" and isinstance(value, dict) else None
        if "closed-loop" in (kind, value if path == "workload.arrivals.kind" else None):
            data["workload"].pop("load", None)
            data["workload"].pop("rate_per_s", None)
        node[last] = value
    return scenario_from_dict(data)
