"""Every setting of a scenario: frozen, typed, checked where it is made; TOML in, TOML out.

Settings carry the units that people type (milliseconds, suffix ``_ms``); the kernel's seconds are made from them in
one place, `llm_env.rollout.new_state`. Knows the errors and the settings of the parts, `system_settings`,
`workload_settings`, `arrival_settings` and `length_settings`, whose classes are to be had from here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

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
from llm_env.changes import EITHER, changed
from llm_env.errors import InputOutputError, UserError
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
from llm_env.problems import describe_problems
from llm_env.settings import MAX_POINTS, MAX_TOKENS, Positive, Settings
from llm_env.system_settings import (
    KVSettings,
    Layout,
    LinkSettings,
    ParallelSettings,
    RoleSettings,
    Router,
    RoutingSettings,
    ServiceSettings,
    SystemSettings,
)
from llm_env.vary_settings import VarySettings
from llm_env.workload_settings import ClientSettings, KindSettings, SessionSettings, WorkloadSettings

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
    "KindSettings",
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
    "RoleSettings",
    "Router",
    "RoutingSettings",
    "SLOClass",
    "SLOSettings",
    "Scenario",
    "ServiceSettings",
    "SessionSettings",
    "Settings",
    "Stationary",
    "SuperposedArrivals",
    "SystemSettings",
    "UniformLength",
    "VarySettings",
    "WeibullArrivals",
    "WorkloadSettings",
    "ZipfLength",
    "describe_problems",
    "drawn",
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
    def weighted(self) -> bool:
        """True if a request of one class counts for more than one of another."""
        return len({c.weight for c in self.classes}) > 1

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
    """Weights of the named reward terms and the time constant H of the discount exp(-dt/H).

    `miss` and `backlog` are those of llm_env/Routing-v0 (see `llm_env.routing_reward`), the others of the environments
    that form batches (`llm_env.reward`).
    """

    first_token: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    completion: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    token: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    queue: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    miss: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    backlog: Annotated[float, Field(ge=-1e6, le=1e6)] = 0.0
    discount_horizon_s: Positive = 40.0


class Scenario(Settings):
    """One serving problem: system, promises, traffic, episode and reward; and what of it each episode draws anew."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = "custom"
    description: str = ""
    source: str = ""
    system: SystemSettings = SystemSettings()
    slo: SLOSettings = SLOSettings()
    workload: WorkloadSettings = WorkloadSettings()
    episode: EpisodeSettings = EpisodeSettings()
    reward: RewardSettings = RewardSettings()
    vary: Annotated[tuple[VarySettings, ...], Field(max_length=64, strict=False)] = ()

    @model_validator(mode="after")
    def _draws_are_valid(self) -> Scenario:
        if self.vary:
            _check_draws(self)
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key != "vary" or value}


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


def with_changes(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    """A copy with some settings changed, named by dotted paths ("workload.load", "slo.classes.0.weight"). Checked as a
    whole.

    Setting workload.load clears workload.rate_per_s, and the other way round; so do the other settings of which only
    one can be given. Closed-loop arrivals clear both. Another `kind` comes without the settings of the old one. What is
    changed no longer varies.

    Raises:
        UserError: an unknown path or a bad value.
    """
    data = scenario.model_dump(mode="python", exclude_none=True)
    given = {path for pair in EITHER for path in pair if changes.keys() & set(pair)} | changes.keys()
    if scenario.vary and "vary" not in changes:
        left: list[VarySettings | None] = list(scenario.vary)
        for path in given:
            left = [entry and entry.without(path) for entry in left]
        data["vary"] = [entry.model_dump(exclude_none=True) for entry in left if entry is not None]
    return scenario_from_dict(changed(data, changes))


def drawn(scenario: Scenario, uniforms: Mapping[str, float]) -> Scenario:
    """The scenario of an episode: every entry of `vary` applied, in their order, each setting checked again.

    Args:
        uniforms: in [0, 1], by the entries' labels.

    Raises:
        UserError: two draws do not fit together.
    """
    data = _settings_of(scenario)
    for entry in scenario.vary:
        data = entry.applied(data, uniforms[entry.label])
    made: dict[str, Any] = {"vary": ()}
    for name in {path.partition(".")[0] for entry in scenario.vary for path in entry.paths}:
        try:
            made[name] = type(getattr(scenario, name)).model_validate(data[name])
        except ValidationError as error:
            raise UserError(describe_problems(error, f"vary: {name}")) from None
    return scenario.model_copy(update=made)


def _settings_of(scenario: Scenario) -> dict[str, Any]:
    """The nested tables of what may vary, made once for each scenario: a tenth of a reset."""
    known = _TABLES.get(id(scenario))
    if known is None or known[0] is not scenario:
        if len(_TABLES) >= _MAX_TABLES:
            _TABLES.clear()
        names = {"system", "slo", "workload", "episode", "reward"}
        known = scenario, scenario.model_dump(mode="python", exclude_none=True, include=names)
        _TABLES[id(scenario)] = known
    return known[1]


_TABLES: dict[int, tuple[Scenario, dict[str, Any]]] = {}  # by identity: hashing a scenario takes longer
_MAX_TABLES = 64


def _shape(scenario: Scenario) -> dict[str, Any]:
    """What all episodes of a scenario have in common: the arrays' shapes, who routes, and what is measured."""
    system = scenario.system
    fixed = {f"system.{name}": getattr(system, name) for name in FIXED_OF_SYSTEM}
    noises = (system.service.setup_noise, system.service.per_token_noise)
    return {
        **fixed,
        "system.service: noise": "none" if set(noises) == {"none"} else "some",
        "workload.arrivals: closed loop": isinstance(scenario.workload.arrivals, ClosedLoopArrivals),
        "episode.warmup_s": scenario.episode.warmup_s,
    }


FIXED_OF_SYSTEM = ("workers", "max_running", "layout", "prefill_workers", "router")


def _check_draws(scenario: Scenario) -> None:
    """Every alternative of every draw, and of every two that meet in one group of settings.

    Raises:
        ValueError: one of them is no valid scenario, or has other shapes than the scenario itself.
    """
    labels = [entry.label for entry in scenario.vary]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    groups = [{path.partition(".")[0] for path in entry.paths} for entry in scenario.vary]
    first = {entry.label: entry.alternatives[0] for entry in scenario.vary}
    shape = _shape(scenario)
    for i, one in enumerate(scenario.vary):
        for j, other in enumerate(scenario.vary[: i + 1]):
            if not groups[i] & groups[j]:
                continue
            for u, v in product(one.alternatives, other.alternatives):
                if i == j and u != v:
                    continue
                try:
                    found = _shape(drawn(scenario, {**first, one.label: u, other.label: v}))
                except UserError as error:
                    raise ValueError(f"{one.label}: {error}") from None
                different = next((name for name in shape if shape[name] != found[name]), None)
                if different is not None:
                    raise ValueError(
                        f"{one.label}: {different} must be the same in all episodes: {shape[different]!r}, got"
                        f" {found[different]!r}"
                    )


def refuse_varying(scenario: Scenario, what: str) -> None:
    """Raises: UserError: the scenario varies and `what` is of one episode, or knows no seeds."""
    if scenario.vary:
        labels = ", ".join(entry.label for entry in scenario.vary)
        raise UserError(
            f"{what}: scenario {scenario.name} varies ({labels}): take that of one seed, see llm_env.workload.concrete"
        )
