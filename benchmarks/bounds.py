"""Requests per CPU-second of the upper bound on SLO attainment, 10,000 of them at a load of about 1.1."""

from __future__ import annotations

from benchmarks.kernel import busy_chat
from benchmarks.measure import Effort, Figure, alternate, rate_figure, timed
from llm_env.bounds import slo_bound
from llm_env.config import with_changes
from llm_env.workload import draw_workload


def figures(effort: Effort) -> list[Figure]:
    """The one figure."""
    longer = with_changes(
        busy_chat(), {"workload.load": 1.1, "episode.arrivals_s": 4800.0, "episode.horizon_s": 9600.0}
    )
    requests = draw_workload(longer, 0)[:10_000]

    def bound() -> float:
        slo_bound(requests, longer)
        return len(requests)

    return [rate_figure("bound/slo_bound", "requests", alternate({"bound": timed(bound)}, effort)["bound"])]
