"""Settings of when requests arrive. Every process has the workload's mean rate; these give the shape of its bursts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm_env.settings import Positive, Settings, Share

MAX_STATES = 16
_CV = Annotated[float, Field(gt=0, le=20)]
_Spread = Annotated[float, Field(ge=0, le=5)]  # standard deviation of a logarithm


class PoissonArrivals(Settings):
    """Poisson process."""

    kind: Literal["poisson"] = "poisson"


class GammaArrivals(Settings):
    """Renewal process with gamma interarrival times; `cv` is their coefficient of variation (1 = Poisson)."""

    kind: Literal["gamma"] = "gamma"
    cv: _CV = 2.0


class WeibullArrivals(Settings):
    """Renewal process with Weibull interarrival times; `cv` is their coefficient of variation (1 = Poisson)."""

    kind: Literal["weibull"] = "weibull"
    cv: _CV = 2.0


class MMPP2Arrivals(Settings):
    """Two-state Markov-modulated Poisson process: a quiet and a busy rate.

    The busy state holds `busy_share` of the time at `rate_ratio` times the quiet rate; `cycle_s` is the mean length of
    one quiet plus one busy period. The mean rate is the workload's.
    """

    kind: Literal["mmpp2"] = "mmpp2"
    rate_ratio: Annotated[float, Field(ge=1, le=1000)] = 4.0
    busy_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    cycle_s: Positive = 30.0


class MMPPArrivals(Settings):
    """Markov-modulated Poisson process with n states.

    `rates` are relative: they are scaled so that the mean over time is the workload's. State i lasts `dwell_s`[i]
    seconds on average, exponentially, and then gives way to state j with probability `following`[i][j]; without
    `following` every other state is equally likely.
    """

    kind: Literal["mmpp"] = "mmpp"
    rates: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1e6)], ...], Field(min_length=2, max_length=MAX_STATES, strict=False)
    ]
    dwell_s: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=MAX_STATES, strict=False)]
    following: (
        Annotated[
            tuple[Annotated[tuple[Share, ...], Field(strict=False)], ...],
            Field(min_length=2, max_length=MAX_STATES, strict=False),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _matched(self) -> MMPPArrivals:
        n = len(self.rates)
        if len(self.dwell_s) != n:
            raise ValueError(f"rates and dwell_s differ in length: {n}, {len(self.dwell_s)}")
        if max(self.rates) <= 0:
            raise ValueError("at least one of the rates must be above 0")
        for i, row in enumerate(self.following or ()):
            if len(row) != n or len(self.following or ()) != n:
                raise ValueError(f"following must have {n} rows of {n} probabilities, one for each of the rates")
            if row[i] != 0:
                raise ValueError(f"following[{i}][{i}] must be 0: a state gives way to another one, got {row[i]:g}")
            if abs(sum(row) - 1) > 1e-6:
                raise ValueError(f"the probabilities of following[{i}] must sum to 1, got {sum(row):g}")
        if self.following is not None:
            for i in range(n):
                if missed := sorted(set(range(n)) - _reached(self.following, i)):
                    raise ValueError(
                        f"following must lead from every state to every other: {i} never leads to {missed[0]}"
                    )
        return self


def _reached(following: tuple[tuple[float, ...], ...], start: int) -> set[int]:
    """States that come after `start` sooner or later, and itself."""
    reached, new = {start}, [start]
    while new:
        new = [j for j, p in enumerate(following[new.pop()]) if p > 0 and j not in reached] + new
        reached.update(new)
    return reached


class OnOffArrivals(Settings):
    """Bursts and silences that last as long as they like: a semi-Markov on/off process.

    A burst has `burst_requests` requests on average, log-normal, `burst_sigma` the standard deviation of the logarithm,
    rounded, at least 1. The gaps within a burst are gamma with coefficient of variation `gap_cv`; the silences between
    bursts log-normal with `off_sigma`. `off_share` is the share of the time from the last request of a burst to the
    first of the next one. Times stretch with the rate, so the pattern is the same at every rate.
    """

    kind: Literal["on-off"] = "on-off"
    burst_requests: Annotated[float, Field(ge=1, le=1e6)] = 50.0
    burst_sigma: _Spread = 1.0
    off_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    off_sigma: _Spread = 1.0
    gap_cv: _CV = 1.0


class CoxArrivals(Settings):
    """Cox process whose log-rate wanders: rate * exp(X(t) - sigma^2 / 2), X an Ornstein-Uhlenbeck process.

    X has the standard deviation `sigma` and forgets itself with the time constant `tau_s`. Given the rate, arrivals
    are a gamma renewal process in operational time with coefficient of variation `cv`; 1 is Poisson.
    """

    kind: Literal["cox"] = "cox"
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.5
    tau_s: Positive = 60.0
    cv: _CV = 1.0


_StationaryKinds = (
    PoissonArrivals | GammaArrivals | WeibullArrivals | MMPP2Arrivals | MMPPArrivals | OnOffArrivals | CoxArrivals
)
Stationary = Annotated[_StationaryKinds, Field(discriminator="kind")]


class ProfileArrivals(Settings):
    """Any stationary process whose rate follows the hour of the day, or any other cycle.

    The cycle of `period_s` seconds is cut into equal parts, each with its multiple of the mean rate; `multipliers` are
    relative. A shorter period than a day is a day in quick motion. An episode begins `start_s` into the cycle, or,
    without it, at a moment drawn for each episode.
    """

    kind: Literal["profile"] = "profile"
    multipliers: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1e6)], ...], Field(min_length=1, max_length=10_080, strict=False)
    ]
    period_s: Positive = 86_400.0
    start_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    base: Stationary = PoissonArrivals()

    @model_validator(mode="after")
    def _some_rate(self) -> ProfileArrivals:
        if max(self.multipliers) <= 0:
            raise ValueError("at least one of the multipliers must be above 0")
        return self


class FlashCrowdArrivals(Settings):
    """Any stationary process with sudden crowds: for a while the rate is a multiple of what it is in calm times.

    Calm times last `every_s` seconds on average, exponentially; then comes a crowd of one of the `multipliers`, each
    equally likely, that lasts uniformly between the two `duration_s`. The mean over time is the workload's rate.
    """

    kind: Literal["flash-crowd"] = "flash-crowd"
    multipliers: Annotated[
        tuple[Annotated[float, Field(ge=1, le=1e4)], ...], Field(min_length=1, max_length=64, strict=False)
    ] = (4.0,)
    every_s: Positive = 600.0
    duration_s: Annotated[tuple[Positive, Positive], Field(strict=False)] = (15.0, 75.0)
    base: Stationary = PoissonArrivals()

    @model_validator(mode="after")
    def _ordered(self) -> FlashCrowdArrivals:
        if self.duration_s[0] > self.duration_s[1]:
            raise ValueError(f"duration_s: the first, {self.duration_s[0]:g}, is above the second")
        return self


class ClientArrivals(Settings):
    """Each client of `workload.clients` is a renewal process of its own, with its share of the rate and its own cv.

    log cv is normal with mean `log_cv_mean` and standard deviation `log_cv_sd`, correlated with the logarithm of the
    client's rate by `rate_cv_correlation`, and cut to [`min_cv`, `max_cv`]. `weibull_share` of the clients have Weibull
    times between requests, the others gamma. Every `window_s` seconds each client's rate is another one: the logarithm
    of its multiple is an autoregressive process of standard deviation `window_sd` and lag-one correlation `window_ac`.

    Source: Xiang et al., "ServeGen", arXiv:2505.09999, section 4 (clients with rates and burstiness of their own).
    """

    kind: Literal["clients"] = "clients"
    log_cv_mean: Annotated[float, Field(ge=-3, le=3)] = 0.8
    log_cv_sd: Annotated[float, Field(ge=0, le=3)] = 0.8
    rate_cv_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.0
    min_cv: _CV = 0.7
    max_cv: _CV = 10.0
    weibull_share: Share = 0.0
    window_s: Positive = 600.0
    window_sd: Annotated[float, Field(ge=0, le=3)] = 0.0
    window_ac: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> ClientArrivals:
        if self.min_cv > self.max_cv:
            raise ValueError(f"min_cv {self.min_cv:g} is above max_cv {self.max_cv:g}")
        return self


_OpenKinds = _StationaryKinds | ProfileArrivals | FlashCrowdArrivals | ClientArrivals


class ArrivalPart(Settings):
    """One of several processes that are laid over each other, with its share of the rate."""

    share: Annotated[float, Field(gt=0, le=1)]
    arrivals: Annotated[_OpenKinds, Field(discriminator="kind")]


class SuperposedArrivals(Settings):
    """Several independent processes laid over each other; their shares of the rate sum to 1."""

    kind: Literal["superposition"] = "superposition"
    parts: Annotated[tuple[ArrivalPart, ...], Field(min_length=1, max_length=64, strict=False)]

    @model_validator(mode="after")
    def _whole(self) -> SuperposedArrivals:
        total = sum(part.share for part in self.parts)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the parts must sum to 1, got {total:g}")
        return self


class ClosedLoopArrivals(Settings):
    """`users` people, each of whom waits for the whole answer, thinks, and asks again.

    Thinking takes `think_s` seconds on average, log-normal, `think_sigma` the standard deviation of the logarithm. Each
    user thinks before the first request too. There is no rate to set: it follows from how fast answers come.

    Source: the closed queueing model of interactive systems, e.g. Lazowska et al., Quantitative System Performance
    (1984), section 5.2; Schroeder et al., "Open versus closed: a cautionary tale", NSDI 2006.
    """

    kind: Literal["closed-loop"] = "closed-loop"
    users: Annotated[int, Field(ge=1, le=100_000)] = 32
    think_s: Positive = 30.0
    think_sigma: Annotated[float, Field(ge=0, le=3)] = 1.0


Arrivals = Annotated[_OpenKinds | SuperposedArrivals | ClosedLoopArrivals, Field(discriminator="kind")]
