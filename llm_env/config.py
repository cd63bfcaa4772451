"""Every setting of a scenario: frozen, typed, checked where it is made; TOML in, TOML out.

Settings carry the units that people type (milliseconds, suffix ``_ms``); the kernel's seconds are made from them in
one place, `llm_env.rollout.new_state`. This file knows no other file of the package but the errors.
"""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from llm_env.errors import InputOutputError, UserError, join_problems

MAX_TOKENS = 1_048_576  # the longest prompt or output that is taken for real
MAX_POINTS = 256  # of a measured service table
Milliseconds = Annotated[float, Field(ge=0, le=1e9)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Share = Annotated[float, Field(ge=0, le=1)]
SLORule = Literal["max", "p99", "deadline"]
Noise = Literal["none", "exponential", "gamma", "lognormal"]
NoiseCV = Annotated[float, Field(gt=0, le=5)]
ServiceForm = Literal["linear", "staircase", "table"]
Point = Annotated[tuple[Tokens, Milliseconds], Field(strict=False)]


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversion of types, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ServiceSettings(Settings):
    """Duration of a batch: a curve of its b tokens, and terms for what its requests attend to.

    The curve (`form`) is linear, setup + per_token * max(0, b - free_tokens); a staircase, setup + step * ceil(b /
    step_tokens); or a table of measured points [tokens, ms], see `llm_env.service.table_seconds`. To it are added
    decode_fixed if the batch holds a decode; kv per 1,000 cached tokens of its decodes; prefill_attention per million
    of chunk tokens x context, summed over its prefill entries. Noise multiplies the setup or the per-token term by
    draws of mean 1 that are indexed by (worker, iteration); `_cv` is their coefficient of variation: gamma draws with
    cv 1/sqrt(k) are Erlang with k phases.

    The defaults are the published fit for Llama-3-70B on 2 x A100 (45.5 ms, 0.30 ms, 64 tokens). In the other forms
    those of the terms that do not belong to them are 0.
    """

    form: ServiceForm = "linear"
    setup_ms: Milliseconds = 45.5
    per_token_ms: Milliseconds = 0.30
    free_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 64
    step_ms: Milliseconds | None = None
    step_tokens: Annotated[int, Field(ge=2, le=MAX_TOKENS)] | None = None
    points: Annotated[tuple[Point, ...], Field(min_length=2, max_length=MAX_POINTS, strict=False)] | None = None
    decode_fixed_ms: Milliseconds = 0.0
    kv_ms_per_1k_cached_tokens: Milliseconds = 0.0
    prefill_attention_ms_per_1m_token_context: Milliseconds = 0.0
    setup_noise: Noise = "none"
    setup_noise_cv: NoiseCV | None = None
    per_token_noise: Noise = "none"
    per_token_noise_cv: NoiseCV | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_line_by_default(cls, data: Any) -> Any:
        unused = {"staircase": {"per_token_ms": 0.0, "free_tokens": 0}}
        unused["table"] = {"setup_ms": 0.0, **unused["staircase"]}
        form = data.get("form") if isinstance(data, dict) else None
        return {**unused[form], **data} if form in ("staircase", "table") else data

    @model_validator(mode="after")
    def _one_form(self) -> ServiceSettings:
        given = [name for name in ("step_ms", "step_tokens", "points") if getattr(self, name) is not None]
        needed = {"linear": [], "staircase": ["step_ms", "step_tokens"], "table": ["points"]}[self.form]
        if given != needed:
            wrong = next(name for name in ("step_ms", "step_tokens", "points") if (name in given) != (name in needed))
            raise ValueError(f"form {self.form!r} {'needs' if wrong in needed else 'has no'} {wrong}")
        line = {"linear": (), "staircase": ("per_token_ms", "free_tokens")}.get(
            self.form, ("setup_ms", "per_token_ms", "free_tokens")
        )
        for name in line:
            if getattr(self, name) != 0:
                raise ValueError(f"form {self.form!r} has no {name}, got {getattr(self, name):g}")
        return self

    @model_validator(mode="after")
    def _takes_time(self) -> ServiceSettings:
        if self.points is not None:
            for (tokens, ms), (more_tokens, more_ms) in pairwise(self.points):
                if more_tokens <= tokens or more_ms < ms:
                    raise ValueError(
                        "points: expected more tokens in each than in the one before and not fewer ms,"
                        f" got [{tokens}, {ms:g}], [{more_tokens}, {more_ms:g}]"
                    )
            if self.points[0][1] <= 0:
                raise ValueError("points: the first cannot take 0 ms: time would stand still")
        elif self.setup_ms + self.per_token_ms + (self.step_ms or 0.0) <= 0:
            raise ValueError("setup_ms and per_token_ms cannot both be 0: time would stand still")
        return self

    @model_validator(mode="after")
    def _noise_has_its_cv(self) -> ServiceSettings:
        for name in ("setup_noise", "per_token_noise"):
            family, cv = getattr(self, name), getattr(self, f"{name}_cv")
            if (family in ("gamma", "lognormal")) != (cv is not None):
                raise ValueError(f"{name} {family!r} {'has no' if cv is not None else 'needs'} {name}_cv")
        return self


class KVSettings(Settings):
    """KV memory of one worker. Without `blocks` it is unlimited. Without `watermark` each policy uses its engine's."""

    blocks: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    block_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    watermark: Annotated[float, Field(ge=0, lt=1)] | None = None


class SystemSettings(Settings):
    """The serving system: equal workers that pull from one queue."""

    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_running: Annotated[int, Field(ge=1, le=16_384)] = 128
    max_hold_ms: Positive = 1000.0
    service: ServiceSettings = ServiceSettings()
    kv: KVSettings = KVSettings()


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


class PoissonArrivals(Settings):
    """Poisson process."""

    kind: Literal["poisson"] = "poisson"


class GammaArrivals(Settings):
    """Renewal process with gamma interarrival times; `cv` is their coefficient of variation (1 = Poisson)."""

    kind: Literal["gamma"] = "gamma"
    cv: Annotated[float, Field(gt=0, le=20)] = 2.0


class MMPP2Arrivals(Settings):
    """Two-state Markov-modulated Poisson process: a quiet and a busy rate.

    The busy state holds `busy_share` of the time at `rate_ratio` times the quiet rate; `cycle_s` is the mean length of
    one quiet plus one busy period. The mean rate is the workload's.
    """

    kind: Literal["mmpp2"] = "mmpp2"
    rate_ratio: Annotated[float, Field(ge=1, le=1000)] = 4.0
    busy_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    cycle_s: Positive = 30.0


Arrivals = Annotated[PoissonArrivals | GammaArrivals | MMPP2Arrivals, Field(discriminator="kind")]


class _Clipped(Settings):
    min_tokens: Tokens = 1
    max_tokens: Tokens = MAX_TOKENS

    @model_validator(mode="after")
    def _ordered(self) -> _Clipped:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


class FixedLength(Settings):
    """Every length the same."""

    kind: Literal["fixed"] = "fixed"
    tokens: Tokens = 128


class LognormalLength(_Clipped):
    """exp(Normal(mu, sigma)) rounded to the nearest token, then clipped to [min_tokens, max_tokens]."""

    kind: Literal["lognormal"] = "lognormal"
    mu: Annotated[float, Field(ge=-10, le=15)]
    sigma: Annotated[float, Field(ge=0, le=5)]
    max_tokens: Tokens = 131_072


class LognormalMixtureLength(_Clipped):
    """A mixture of log-normals with weights `w` that sum to 1, rounded and clipped as `LognormalLength`."""

    kind: Literal["lognormal-mixture"] = "lognormal-mixture"
    w: Annotated[tuple[Share, ...], Field(min_length=1, max_length=8, strict=False)]
    mu: Annotated[tuple[Annotated[float, Field(ge=-10, le=15)], ...], Field(min_length=1, max_length=8, strict=False)]
    sigma: Annotated[tuple[Annotated[float, Field(ge=0, le=5)], ...], Field(min_length=1, max_length=8, strict=False)]
    max_tokens: Tokens = 131_072

    @model_validator(mode="after")
    def _matched(self) -> LognormalMixtureLength:
        if not len(self.w) == len(self.mu) == len(self.sigma):
            raise ValueError(f"w, mu and sigma differ in length: {len(self.w)}, {len(self.mu)}, {len(self.sigma)}")
        if abs(sum(self.w) - 1) > 1e-6:
            raise ValueError(f"the weights w must sum to 1, got {sum(self.w):g}")
        return self


class GeometricLength(Settings):
    """min(Geometric(p), max_tokens): number of trials up to and with the first success."""

    kind: Literal["geometric"] = "geometric"
    p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Tokens = MAX_TOKENS


class ChoiceLength(Settings):
    """One of a few sizes with given probabilities (short, medium, long)."""

    kind: Literal["choice"] = "choice"
    tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=64, strict=False)] = (64, 256, 512)
    probabilities: Annotated[tuple[Share, ...], Field(min_length=1, max_length=64, strict=False)] = (0.5, 0.35, 0.15)

    @model_validator(mode="after")
    def _distribution(self) -> ChoiceLength:
        if len(self.tokens) != len(self.probabilities):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.probabilities)} probabilities")
        if abs(sum(self.probabilities) - 1) > 1e-6:
            raise ValueError(f"the probabilities must sum to 1, got {sum(self.probabilities):g}")
        return self


Length = Annotated[
    FixedLength | LognormalLength | LognormalMixtureLength | GeometricLength | ChoiceLength,
    Field(discriminator="kind"),
]


class WorkloadSettings(Settings):
    """Traffic. The rate is `rate_per_s`, or `load` times `llm_env.workload.capacity_requests_per_s`."""

    arrivals: Arrivals = PoissonArrivals()
    prompt: Length = LognormalLength(mu=5.99, sigma=0.9, min_tokens=16, max_tokens=4096)
    output: Length = LognormalLength(mu=4.61, sigma=0.7, min_tokens=1, max_tokens=1024)
    load: Annotated[float, Field(gt=0, le=10)] | None = None
    rate_per_s: Annotated[float, Field(gt=0, le=1e6)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _load_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("load") is None and data.get("rate_per_s") is None:
            return {**data, "load": 0.8}
        return data

    @model_validator(mode="after")
    def _one_rate(self) -> WorkloadSettings:
        if self.load is not None and self.rate_per_s is not None:
            raise ValueError(f"give load or rate_per_s, not both, got {self.load:g} and {self.rate_per_s:g}")
        return self


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
    for field, union in (("arrivals", Arrivals), ("prompt", Length), ("output", Length))
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
    if len(location) > 2 and location[0] == "workload" and location[1] in _KINDS:
        del location[2]  # pydantic puts the kind there, which is no setting
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


def with_changes(scenario: Scenario, changes: dict[str, Any]) -> Scenario:
    """A copy with some settings changed, named by dotted paths ("workload.load"). Checked as a whole.

    Setting workload.load clears workload.rate_per_s, and the other way round.

    Raises:
        UserError: an unknown path or a bad value.
    """
    data = scenario.model_dump(mode="python", exclude_none=True)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = data
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f"scenario: {path}: {key} is not a group of settings")
        if parents == ["workload"] and last in ("load", "rate_per_s"):
            node.pop("rate_per_s" if last == "load" else "load", None)
        node[last] = value
    return scenario_from_dict(data)
