"""Where requests come from: drawn from a scenario (`draw_workload`) or read from a trace file (`read_trace`).

Both give an array of REQUEST records in order of arrival. Nothing here knows the kernel or a policy.
"""

from llm_env.workload.arrivals import draw_arrivals
from llm_env.workload.generate import (
    assign_classes,
    blank_requests,
    capacity_requests_per_s,
    capacity_tokens_per_s,
    draw_noise,
    draw_workload,
    request_rate,
    slo_budget,
)
from llm_env.workload.lengths import draw_lengths, mean_length
from llm_env.workload.seeds import Streams, draw_load, streams
from llm_env.workload.sessions import link_turns, mean_session_turns, mean_work
from llm_env.workload.traces import read_trace
from llm_env.workload.windows import at_load, cut_window, trace_load

__all__ = [
    "Streams",
    "assign_classes",
    "at_load",
    "blank_requests",
    "capacity_requests_per_s",
    "capacity_tokens_per_s",
    "cut_window",
    "draw_arrivals",
    "draw_lengths",
    "draw_load",
    "draw_noise",
    "draw_workload",
    "link_turns",
    "mean_length",
    "mean_session_turns",
    "mean_work",
    "read_trace",
    "request_rate",
    "slo_budget",
    "streams",
    "trace_load",
]
