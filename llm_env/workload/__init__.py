"""Where requests come from: drawn from a scenario (`draw_workload`) or read from a trace file (`read_trace`).

Both give an array of REQUEST records in order of arrival; those of a closed loop are the script of its users. Nothing
here knows the kernel or a policy.
"""

from llm_env.workload.arrivals import draw_arrivals
from llm_env.workload.closed_loop import is_closed, refuse_rate
from llm_env.workload.generate import (
    assign_classes,
    blank_requests,
    capacity_requests_per_s,
    capacity_tokens_per_s,
    draw_noise,
    draw_workload,
    estimated_rate,
    request_rate,
    slo_budget,
)
from llm_env.workload.lengths import draw_lengths, mean_length
from llm_env.workload.seeds import Streams, draw_load, draw_scenario, streams
from llm_env.workload.sessions import link_turns, mean_session_turns, mean_work
from llm_env.workload.trace_options import ReadOptions
from llm_env.workload.trace_report import ReadReport
from llm_env.workload.trace_write import write_traffic
from llm_env.workload.traces import read_requests, read_trace, read_traffic
from llm_env.workload.traffic import Traffic
from llm_env.workload.vary import concrete
from llm_env.workload.windows import WHOLE, Windows, at_load, checked_part, checked_trace_settings, part_of, trace_load

__all__ = [
    "WHOLE",
    "ReadOptions",
    "ReadReport",
    "Streams",
    "Traffic",
    "Windows",
    "assign_classes",
    "at_load",
    "blank_requests",
    "capacity_requests_per_s",
    "capacity_tokens_per_s",
    "checked_part",
    "checked_trace_settings",
    "concrete",
    "draw_arrivals",
    "draw_lengths",
    "draw_load",
    "draw_noise",
    "draw_scenario",
    "draw_workload",
    "estimated_rate",
    "is_closed",
    "link_turns",
    "mean_length",
    "mean_session_turns",
    "mean_work",
    "part_of",
    "read_requests",
    "read_trace",
    "read_traffic",
    "refuse_rate",
    "request_rate",
    "slo_budget",
    "streams",
    "trace_load",
    "write_traffic",
]
