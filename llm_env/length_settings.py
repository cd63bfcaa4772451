"""Settings of how long prompts and outputs are."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llm_env.settings import MAX_TOKENS, Settings, Share, Tokens

MAX_KNOTS = 1024  # of a quantile table
MAX_PAIRS = 65_536
_MU = Annotated[float, Field(ge=-15, le=15)]
_SIGMA = Annotated[float, Field(ge=0, le=5)]


class _Clipped(Settings):
    min_tokens: Tokens = 1
    max_tokens: Tokens = MAX_TOKENS

    @model_validator(mode="after")
    def _ordered(self) -> _Clipped:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self


def _finite(value: Any) -> float:
    """The number, NaN if it is none or infinite."""
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if plain else math.nan


class FixedLength(Settings):
    """Every length the same."""

    kind: Literal["fixed"] = "fixed"
    tokens: Tokens = 128


class UniformLength(_Clipped):
    """Every length from min_tokens to max_tokens equally likely."""

    kind: Literal["uniform"] = "uniform"
    max_tokens: Tokens = 1024


class LognormalLength(_Clipped):
    """exp(Normal(mu, sigma)) rounded to the nearest token, then clipped to [min_tokens, max_tokens].

    Give `mu` and `sigma`, or the `mean` and the `median` of the log-normal before it is rounded and clipped: then mu =
    log(median) and sigma = sqrt(2 log(mean / median)).
    """

    kind: Literal["lognormal"] = "lognormal"
    mu: _MU
    sigma: _SIGMA
    max_tokens: Tokens = 131_072

    @model_validator(mode="before")
    @classmethod
    def _from_mean_and_median(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not {"mean", "median"} & set(data):
            return data
        given = {name: data[name] for name in ("mean", "median", "mu", "sigma") if name in data}
        mean, median = (_finite(given.get(name)) for name in ("mean", "median"))
        if set(given) != {"mean", "median"} or not mean >= median > 0:
            shown = ", ".join(f"{name} = {value!r}" for name, value in given.items())
            raise ValueError(f"give mu and sigma, or mean and median with mean >= median > 0, got {shown}")
        rest = {name: value for name, value in data.items() if name not in given}
        return {**rest, "mu": math.log(median), "sigma": math.sqrt(2.0 * math.log(mean / median))}


class LognormalMixtureLength(_Clipped):
    """A mixture of log-normals with weights `w` that sum to 1, rounded and clipped as `LognormalLength`."""

    kind: Literal["lognormal-mixture"] = "lognormal-mixture"
    w: Annotated[tuple[Share, ...], Field(min_length=1, max_length=8, strict=False)]
    mu: Annotated[tuple[_MU, ...], Field(min_length=1, max_length=8, strict=False)]
    sigma: Annotated[tuple[_SIGMA, ...], Field(min_length=1, max_length=8, strict=False)]
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


class QuantileLength(Settings):
    """A measured distribution as a table of quantiles: length `tokens`[k] at probability `p`[k], linear in between.

    `p` rises from 0 to 1, `tokens` never falls; a stretch of equal tokens is an atom. Lengths are rounded to the
    nearest token. Without `p` the knots are equally spaced.
    """

    kind: Literal["quantiles"] = "quantiles"
    tokens: Annotated[tuple[Tokens, ...], Field(min_length=2, max_length=MAX_KNOTS, strict=False)]
    p: Annotated[tuple[Share, ...], Field(min_length=2, max_length=MAX_KNOTS, strict=False)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> QuantileLength:
        if any(b < a for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("tokens must not fall from one knot to the next")
        if self.p is None:
            return self
        if len(self.p) != len(self.tokens):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.p)} probabilities p")
        if self.p[0] != 0 or self.p[-1] != 1 or any(b <= a for a, b in zip(self.p, self.p[1:], strict=False)):
            raise ValueError("p must rise from 0 to 1")
        return self


class ZipfLength(_Clipped):
    """k in [min_tokens, max_tokens] with a probability proportional to k^-exponent."""

    kind: Literal["zipf"] = "zipf"
    exponent: Annotated[float, Field(ge=0, le=10)] = 1.2
    max_tokens: Tokens = 8192


Length = Annotated[
    FixedLength
    | UniformLength
    | LognormalLength
    | LognormalMixtureLength
    | GeometricLength
    | ChoiceLength
    | QuantileLength
    | ZipfLength,
    Field(discriminator="kind"),
]


class PairSettings(Settings):
    """Measured pairs: request by request one of them is drawn, each equally likely, prompt and output together."""

    prompt_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=MAX_PAIRS, strict=False)]
    output_tokens: Annotated[tuple[Tokens, ...], Field(min_length=1, max_length=MAX_PAIRS, strict=False)]

    @model_validator(mode="after")
    def _matched(self) -> PairSettings:
        if len(self.prompt_tokens) != len(self.output_tokens):
            raise ValueError(f"{len(self.prompt_tokens)} prompt_tokens but {len(self.output_tokens)} output_tokens")
        return self
