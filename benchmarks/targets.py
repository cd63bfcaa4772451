"""What the project wants to reach, as limits on the figures of a full run. Knows no figure but by its name."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from benchmarks.measure import Figure


class Target(NamedTuple):
    """A limit on figures. The first that fits a figure's name holds for it."""

    names: str  # pattern of figures' names
    limit: float
    of: str = "value"  # or "peer_ratio"
    better: str = "more"


TARGETS = (
    Target("kernel/sarathi", 1_000_000),
    Target("kernel/order *", float("nan")),  # only a baseline has a target
    Target("kernel/*", 300_000),
    Target("env/Serving-v0*", 1.0, "peer_ratio"),
    Target("vector/1024", 600_000),
    Target("backlog/fcfs, 1,000,000", 1.5, better="less"),
    Target("backlog/*, 1,000,000", 3.0, better="less"),
    Target("trace/1,000,000 requests", 30.0, better="less"),
    Target("trace/peak memory*", 1536.0, better="less"),
    Target("ppo/Serving-v0", 0.8, "peer_ratio"),
    Target("decision/batch 1", 50.0, better="less"),
    Target("startup/first step, cold", 20.0, better="less"),
    Target("startup/first step, warm", 1.5, better="less"),
    Target("startup/import llm_env", 0.6, better="less"),
)


def verdict(figure: Figure) -> tuple[str, bool] | None:
    """The target as text and whether the figure meets it; None where there is none."""
    target = next((t for t in TARGETS if fnmatchcase(figure.name, t.names)), None)
    if target is None or target.limit != target.limit:
        return None
    value = getattr(figure, target.of)
    sign = ">=" if target.better == "more" else "<="
    text = f"{sign} {target.limit:,.10g}" + (" of the peer" if target.of == "peer_ratio" else "")
    return text, value >= target.limit if target.better == "more" else value <= target.limit
