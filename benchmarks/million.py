"""A long trace from file to metrics: CPU time and peak memory of a process that reads, runs and sums it up."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.child import run_child
from benchmarks.measure import Effort, Figure, Sample, rate_figure, time_figure
from llm_env.config import with_changes
from llm_env.scenarios import load_scenario
from llm_env.workload import request_rate, write_traffic
from llm_env.workload.generate import draw_traffic

_FEW = 100  # requests of a trace that is run first, so that what is measured finds compiled code in the cache


def figures(effort: Effort) -> list[Figure]:
    """Requests and seconds in all, the parts, the kernel's batches with logs, memory; and the same of the command."""
    with tempfile.TemporaryDirectory() as folder:
        path, few = Path(folder) / "trace.csv", Path(folder) / "few.csv"
        write_trace(path, effort.trace_requests)
        write_trace(few, _FEW)
        for task in ("trace", "command"):
            run_child(task, str(few))
        found, command = run_child("trace", str(path)), run_child("command", str(path))
    n, speed = int(found["requests"]), found["calibration"]

    def sample(units: float, seconds: str) -> Sample:
        return Sample([units / found[seconds]], [units / found[seconds] / speed])

    parts = ", ".join(f"{part} {found[f'{part}_s']:.1f} s" for part in ("read", "run", "summarise"))
    rate = 1 / command["cpu_s"]
    whole = "python -m llm_env simulate --trace FILE, with its imports"
    return [
        rate_figure("trace/file to metrics", "requests", sample(n, "cpu_s"), parts),
        time_figure(f"trace/{n:,} requests", "s", sample(1, "cpu_s")),
        rate_figure("trace/reading", "requests", sample(n, "read_s")),
        rate_figure("trace/run with logs", "batches", sample(found["batches"], "run_s")),
        rate_figure("trace/summary", "requests", sample(n, "summarise_s")),
        _memory("trace/peak memory", found["peak_mib"], f"{n:,} requests"),
        time_figure("trace/command", "s", Sample([rate], [rate / command["calibration"]]), whole),
        _memory("trace/peak memory of the command", command["peak_mib"], f"{n:,} requests"),
    ]


def _memory(name: str, mib: float, note: str) -> Figure:
    return Figure(name=name, value=mib, unit="MiB", ratio=mib, better="less", note=note)


def write_trace(path: Path, num_requests: int) -> None:
    """A trace of chat at load 0.8: so many requests, or a few more."""
    chat = load_scenario("chat")
    arrivals_s = num_requests / request_rate(chat) * 1.02 + 60.0
    longer = with_changes(chat, {"episode.arrivals_s": arrivals_s, "episode.horizon_s": 2 * arrivals_s})
    write_traffic(path, draw_traffic(longer, 0).take(slice(0, num_requests)))
