"""Settings of the traffic: when requests arrive, how long they are, what is known of them and who sends them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from llm_env.arrival_settings import (
    MAX_STATES,
    Arrivals,
    ClientArrivals,
    ClosedLoopArrivals,
    MMPPArrivals,
    PoissonArrivals,
    SuperposedArrivals,
)
from llm_env.length_settings import Length, LognormalLength, LognormalMixtureLength, PairSettings
from llm_env.settings import Positive, Settings, Share, Tokens


class SessionSettings(Settings):
    """Conversations: the prompt of a later turn is the turn before it, prompt and output, and new tokens of the user.

    The number of turns is geometric with mean `mean_turns`; or after turn k comes another one with the probability
    `more_turns`[k - 1], the last of which holds for all later turns. `first_prompt` is the length of a session's first
    prompt, by default that of all others. From the arrival of a turn to the next one pass `think_s`
    seconds on average, log-normal; `think_sigma` is the standard deviation of their logarithm, 0 makes them equal. A
    session ends before the turn whose prompt and output would exceed `max_context_tokens`; its first turn always comes.

    Source: `think_sigma`: Mooncake's conversation trace has 0.99 between the turns of its sessions. The other defaults
    are round numbers of that size (its gaps have a mean of 197 s and a median of 123 s).
    """

    mean_turns: Annotated[float, Field(ge=1, le=1000)] | None = None
    more_turns: (
        Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1, max_length=256, strict=False)]
        | None
    ) = None
    first_prompt: Length | None = None
    think_s: Positive = 120.0
    think_sigma: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_context_tokens: Tokens = 131_072

    @model_validator(mode="before")
    @classmethod
    def _four_turns_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mean_turns") is None and data.get("more_turns") is None:
            return {**data, "mean_turns": 4.0}
        return data

    @model_validator(mode="after")
    def _one_way(self) -> SessionSettings:
        if self.mean_turns is not None and self.more_turns is not None:
            raise ValueError("give mean_turns or more_turns, not both")
        return self


class ClientSettings(Settings):
    """Who sends the requests: `count` clients, a few of whom may send most of them.

    Client i has a share proportional to 1 / (i + 1)^`skew`; or, with `log_rate_sd`, to exp(log_rate_sd * Z), Z standard
    normal. Lengths may differ between clients: those of one are those of `prompt` and `output` times exp(prompt_sigma *
    Z) and exp(output_sigma * Z'), Z and Z' standard normal with correlation `length_correlation`; then `prompt` and
    `output` must be log-normal or mixtures of log-normals. All of this is drawn from `population`, not from the seed of
    an episode: the clients are the same in every episode.
    """

    count: Annotated[int, Field(ge=1, le=10_000)]
    skew: Annotated[float, Field(ge=0, le=10)] | None = None
    log_rate_sd: Annotated[float, Field(ge=0, le=5)] | None = None
    prompt_sigma: Annotated[float, Field(ge=0, le=5)] = 0.0
    output_sigma: Annotated[float, Field(ge=0, le=5)] = 0.0
    length_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0
    population: Annotated[int, Field(ge=0, le=2**53)] = 0

    @model_validator(mode="before")
    @classmethod
    def _zipf_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("skew") is None and data.get("log_rate_sd") is None:
            return {**data, "skew": 1.0}
        return data

    @model_validator(mode="after")
    def _one_way(self) -> ClientSettings:
        if self.skew is not None and self.log_rate_sd is not None:
            raise ValueError("give skew or log_rate_sd, not both")
        return self


class KindSettings(Settings):
    """One of several kinds of requests, like chat and code, with lengths of its own.

    `shares` are its shares of the requests: one number, or, where the arrivals are of kind "mmpp", one for each of
    their states, so that the mixture changes with the state.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    prompt: Length
    output: Length
    shares: Annotated[tuple[Share, ...], Field(min_length=1, max_length=MAX_STATES, strict=False)]


class WorkloadSettings(Settings):
    """Traffic. The rate is `rate_per_s`, or `load` times `llm_env.workload.capacity_requests_per_s`.

    `prediction_sigma` is the error of the length predictor: it says output_tokens * exp(sigma * Z), Z standard normal;
    0 is a perfect one. `declared_tokens` is the most output that clients allow, or the output itself where that is
    longer; by default the longest that `output` can be. `correlation` is the rank correlation (Spearman's) of prompt
    and output, made by a Gaussian copula that leaves both distributions as they are. With `pairs` both lengths of a
    request are drawn together from measured ones, and `prompt` and `output` are not used; nor are they with `kinds`,
    each of which has its own, and whose shares may follow the state of the arrivals. With `sessions`, `arrivals`
    are those of sessions, `prompt` is what the user adds in a turn, and the rate is still that of requests.
    """

    arrivals: Arrivals = PoissonArrivals()
    prompt: Length = LognormalLength(mu=5.99, sigma=0.9, min_tokens=16, max_tokens=4096)
    output: Length = LognormalLength(mu=4.61, sigma=0.7, min_tokens=1, max_tokens=1024)
    pairs: PairSettings | None = None
    kinds: Annotated[tuple[KindSettings, ...], Field(min_length=1, max_length=16, strict=False)] | None = None
    correlation: Annotated[float, Field(ge=-0.99, le=0.99)] = 0.0
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
            arrivals = data.get("arrivals")
            kind = arrivals.get("kind") if isinstance(arrivals, dict) else getattr(arrivals, "kind", None)
            if kind != "closed-loop":
                return {**data, "load": 0.8}
        return data

    @model_validator(mode="after")
    def _one_rate(self) -> WorkloadSettings:
        if self.load is not None and self.rate_per_s is not None:
            raise ValueError(f"give load or rate_per_s, not both, got {self.load:g} and {self.rate_per_s:g}")
        return self

    @model_validator(mode="after")
    def _fitting_together(self) -> WorkloadSettings:
        if isinstance(self.arrivals, ClosedLoopArrivals):
            if self.load is not None or self.rate_per_s is not None:
                raise ValueError("load and rate_per_s mean nothing where users wait for their answers (closed-loop)")
            if self.sessions is not None or self.clients is not None:
                raise ValueError("closed-loop arrivals have clients of their own, and no sessions or clients besides")
        parts = [part.arrivals for part in self.arrivals.parts] if isinstance(self.arrivals, SuperposedArrivals) else []
        if any(isinstance(process, ClientArrivals) for process in (self.arrivals, *parts)):
            if self.clients is None or self.sessions is not None:
                raise ValueError('arrivals of kind "clients" need clients, and no sessions')
        if self.pairs is not None and (self.correlation != 0 or self.sessions is not None):
            raise ValueError("pairs have their own correlation and no sessions: leave correlation and sessions out")
        if self.clients is not None and (self.clients.prompt_sigma > 0 or self.clients.output_sigma > 0):
            if self.pairs is not None or self.correlation != 0 or self.sessions is not None:
                raise ValueError("lengths that differ between clients: leave pairs, correlation and sessions out")
            for name, sigma in (("prompt", self.clients.prompt_sigma), ("output", self.clients.output_sigma)):
                if sigma > 0 and not isinstance(getattr(self, name), LognormalLength | LognormalMixtureLength):
                    raise ValueError(f"clients.{name}_sigma needs {name} of kind lognormal or lognormal-mixture")
        return self

    @model_validator(mode="after")
    def _kinds(self) -> WorkloadSettings:
        if self.kinds is None:
            return self
        if self.pairs is not None or self.correlation != 0 or self.sessions is not None:
            raise ValueError("kinds have lengths of their own: leave pairs, correlation and sessions out")
        if isinstance(self.arrivals, ClosedLoopArrivals):
            raise ValueError("closed-loop arrivals have no kinds")
        if self.clients is not None and (self.clients.prompt_sigma > 0 or self.clients.output_sigma > 0):
            raise ValueError("kinds have lengths of their own: leave clients.prompt_sigma and output_sigma out")
        names = [kind.name for kind in self.kinds]
        if len(set(names)) != len(names):
            raise ValueError(f"two kinds share one name: {names}")
        states = len(self.arrivals.rates) if isinstance(self.arrivals, MMPPArrivals) else 1
        for kind in self.kinds:
            if len(kind.shares) not in (1, states):
                what = f"one, or one for each of the {states} states of the arrivals" if states > 1 else "one"
                raise ValueError(f"the shares of kind {kind.name!r}: expected {what}, got {len(kind.shares)}")
        for state in range(states):
            total = sum(kind.shares[state % len(kind.shares)] for kind in self.kinds)
            if abs(total - 1) > 1e-6:
                raise ValueError(f"the shares of the kinds must sum to 1 in each state, got {total:g} in state {state}")
        return self
