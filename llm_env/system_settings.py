"""Settings of the serving system: how long a batch takes, KV memory, workers, how requests reach them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from llm_env.settings import MAX_POINTS, MAX_TOKENS, Milliseconds, Positive, Settings, Tokens

Noise = Literal["none", "exponential", "gamma", "lognormal"]
NoiseCV = Annotated[float, Field(gt=0, le=5)]
ServiceForm = Literal["linear", "staircase", "table"]
Point = Annotated[tuple[Tokens, Milliseconds], Field(strict=False)]
Layout = Literal["replicas", "disaggregated", "parallel-prefill"]
Router = Literal[
    "shared",
    "round-robin",
    "least-tokens",
    "shortest-queue",
    "session-sticky",
    "random",
    "weighted-round-robin",
    "shortest-expected-work",
    "power-of-two",
    "score",
    "agent",
]
ROUTER_MEANINGS: dict[str, str] = {  # of those that a user chooses; sources: `llm_env.router` and docs/routing.md
    "shared": "one queue for all workers",
    "round-robin": "in turn",
    "least-tokens": "fewest outstanding tokens over speed",
    "shortest-queue": "fewest unfinished requests",
    "session-sticky": "where the session's last turn went, else least-tokens",
    "random": "one of all, the same draws for every policy",
    "weighted-round-robin": "in turn, in proportion to speed",
    "shortest-expected-work": "fewest seconds of queued prefill, this prompt with them",
    "power-of-two": "of two at random the one with fewer requests",
    "score": "the least weighted sum of work, memory and misses ahead",
}
Worth = Annotated[float, Field(ge=-1e6, le=1e6)]  # milliseconds
Speed = Annotated[float, Field(gt=0, le=1000)]
MAX_WORKERS = 64


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
    """KV memory of one worker. Without `blocks`, or if that is "unlimited", it is. Without `watermark` each policy uses
    its engine's.

    A token takes `bytes_per_token` on a link between workers and, when a request is swapped out or in, on the host link
    of `host_gbytes_per_s`. The default is Llama-3-70B in 16 bit: 2 x 80 layers x 8 KV heads x 128 x 2 bytes; 25 GB/s is
    what PCIe 4.0 x16 gives in practice. With `prefix_cache` a finished turn of a session leaves its KV on its worker
    for the next turn, until the memory is needed.
    """

    blocks: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    block_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    watermark: Annotated[float, Field(ge=0, lt=1)] | None = None
    bytes_per_token: Annotated[int, Field(ge=0, le=10**9)] = 327_680
    host_gbytes_per_s: Positive = 25.0
    prefix_cache: bool = False

    @model_validator(mode="before")
    @classmethod
    def _unlimited(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("blocks") == "unlimited":
            return {**data, "blocks": None}
        return data


class LinkSettings(Settings):
    """The network that KV moves over from worker to worker; transfers under way share it equally.

    25 GB/s is a 200 Gbit/s network. Without `gbytes_per_s` it is unlimited.
    """

    latency_ms: Milliseconds = 0.1
    gbytes_per_s: Positive | None = 25.0

    @model_validator(mode="before")
    @classmethod
    def _unlimited(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("gbytes_per_s") == "unlimited":
            return {**data, "gbytes_per_s": None}
        return data

    @model_serializer(mode="wrap")
    def _say_unlimited(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), "gbytes_per_s": "unlimited" if self.gbytes_per_s is None else self.gbytes_per_s}


class ParallelSettings(Settings):
    """Parallel prefill: how many workers may be at one prompt, and how much of it must be left for one more to join."""

    max_workers: Annotated[int, Field(ge=2, le=MAX_WORKERS)] = 4
    min_tokens: Tokens = 512


class RoutingSettings(Settings):
    """What the router "score" adds to a worker's seconds of queued prefill, in milliseconds: the least sum wins.

    `running_ms` for each request that runs there, times how much slower the worker is than the fastest; `memory_ms`
    times the share of KV by which what runs and waits there, with the new prompt, exceeds `memory_from`; with
    s = (speed of the fastest) / speed - 1, `long_ms_per_1k_tokens` * s for each 1,000 tokens of the prompt and
    `slow_ms` * s; `kv_ms` times the share of KV in use; `miss_ms` if the first token is thought to come later than
    `miss_from` TTFT targets after the arrival (`llm_env.worker_load`).
    """

    running_ms: Worth = 10.0
    memory_ms: Worth = 4000.0
    memory_from: Annotated[float, Field(ge=0, le=4)] = 0.8
    long_ms_per_1k_tokens: Worth = 500.0
    slow_ms: Worth = 0.0
    kv_ms: Worth = 500.0
    miss_ms: Worth = 1000.0
    miss_from: Annotated[float, Field(gt=0, le=100)] = 0.8


class RoleSettings(Settings):
    """Disaggregated pools whose workers may change role at a decision (`llm_env.roles`).

    A change takes `switch_ms` of a worker that has nothing left to do in its old role. The pools never get smaller than
    the two minima.
    """

    change: bool = False
    switch_ms: Annotated[float, Field(ge=0.001, le=1e9)] = 1000.0
    min_prefill_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    min_decode_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1


class SystemSettings(Settings):
    """The serving system: workers, how they share the work, and how requests reach them.

    Layouts: "replicas" serve whole requests; "disaggregated": the first `prefill_workers` prefill, the others decode,
    and KV moves over the link; "parallel-prefill": idle workers help with long prompts of others and send the KV over
    the link. Routers: "shared" is one queue that idle workers pull from; the others give each arrival to a worker
    (`llm_env.router`), of which "score" has the weights `routing` and "agent" asks whoever steps `llm_env/Routing-v0`.
    `speeds`: one number per worker, its batches take S / speed.
    """

    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    layout: Layout = "replicas"
    prefill_workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None
    router: Router = "shared"
    routing: RoutingSettings = RoutingSettings()
    speeds: Annotated[tuple[Speed, ...], Field(strict=False)] | None = None
    max_running: Annotated[int, Field(ge=1, le=16_384)] = 128
    max_hold_ms: Positive = 1000.0
    service: ServiceSettings = ServiceSettings()
    kv: KVSettings = KVSettings()
    link: LinkSettings = LinkSettings()
    parallel: ParallelSettings = ParallelSettings()
    roles: RoleSettings = RoleSettings()

    @model_validator(mode="after")
    def _pools(self) -> SystemSettings:
        if self.layout == "disaggregated":
            if self.prefill_workers is None:
                raise ValueError("layout 'disaggregated' needs prefill_workers")
            if not self.prefill_workers < self.workers:
                raise ValueError(
                    "layout 'disaggregated' needs a worker that decodes: prefill_workers must be below workers,"
                    f" got {self.prefill_workers} of {self.workers}"
                )
        elif self.prefill_workers is not None:
            raise ValueError(f"layout {self.layout!r} has no prefill_workers")
        if self.layout == "parallel-prefill" and self.workers < 2:
            raise ValueError("layout 'parallel-prefill' needs at least 2 workers, got 1")
        if self.kv.prefix_cache and self.layout != "replicas":
            raise ValueError(f"kv.prefix_cache is for layout 'replicas', got {self.layout!r}")
        return self

    @model_validator(mode="after")
    def _roles_that_change(self) -> SystemSettings:
        if not self.roles.change:
            return self
        if self.prefill_workers is None:
            raise ValueError(f"roles.change is for layout 'disaggregated', got {self.layout!r}")
        if self.router != "shared":
            raise ValueError(
                f"roles.change needs router 'shared', whose queue any worker can pull from, got {self.router!r}"
            )
        for name, least, first in (
            ("min_prefill_workers", self.roles.min_prefill_workers, self.prefill_workers),
            ("min_decode_workers", self.roles.min_decode_workers, self.workers - self.prefill_workers),
        ):
            if least > first:
                raise ValueError(f"roles.{name}: expected at most the {first} there are at the start, got {least}")
        return self

    @model_validator(mode="after")
    def _one_speed_each(self) -> SystemSettings:
        if self.speeds is not None and len(self.speeds) != self.workers:
            raise ValueError(f"speeds: expected one for each of the {self.workers} workers, got {len(self.speeds)}")
        return self

    @property
    def worker_speeds(self) -> tuple[float, ...]:
        """(workers,) the speed of each."""
        return self.speeds or (1.0,) * self.workers
