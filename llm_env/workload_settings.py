"""Settings of the traffic: when requests arrive, how long they are, what is known of them and who sends them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llm_env.settings import MAX_TOKENS, Positive, Settings, Share, Tokens


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


class SessionSettings(Settings):
    """Conversations: the prompt of a later turn is the turn before it, prompt and output, and new tokens of the user.

    The number of turns is geometric with mean `mean_turns`. From the arrival of a turn to the next one pass `think_s`
    seconds on average, log-normal; `think_sigma` is the standard deviation of their logarithm, 0 makes them equal. A
    session ends before the turn whose prompt and output would exceed `max_context_tokens`; its first turn always comes.

    Source: `think_sigma`: Mooncake's conversation trace has 0.99 between the turns of its sessions. The other defaults
    are round numbers of that size (its gaps have a mean of 197 s and a median of 123 s).
    """

    mean_turns: Annotated[float, Field(ge=1, le=1000)] = 4.0
    think_s: Positive = 120.0
    think_sigma: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_context_tokens: Tokens = 131_072


class ClientSettings(Settings):
    """Who sends the requests: `count` clients, of which client i has a share proportional to 1 / (i + 1)^`skew`."""

    count: Annotated[int, Field(ge=1, le=10_000)]
    skew: Annotated[float, Field(ge=0, le=10)] = 1.0


class WorkloadSettings(Settings):
    """Traffic. The rate is `rate_per_s`, or `load` times `llm_env.workload.capacity_requests_per_s`.

    `prediction_sigma` is the error of the length predictor: it says output_tokens * exp(sigma * Z), Z standard normal;
    0 is a perfect one. `declared_tokens` is the most output that clients allow, or the output itself where that is
    longer; by default the longest that `output` can be. With `sessions`, `arrivals` are those of sessions, `prompt` is
    what the user adds in a turn, and the rate is still that of requests.
    """

    arrivals: Arrivals = PoissonArrivals()
    prompt: Length = LognormalLength(mu=5.99, sigma=0.9, min_tokens=16, max_tokens=4096)
    output: Length = LognormalLength(mu=4.61, sigma=0.7, min_tokens=1, max_tokens=1024)
    load: Annotated[float, Field(gt=0, le=10)] | None = None
    rate_per_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    prediction_sigma: Annotated[float, Field(ge=0, le=5)] = 0.5
    declared_tokens: Tokens | None = None
    sessions: SessionSettings | None = None
    clients: ClientSettings | None = None

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
