"""WAIT, waiting for accumulated inference threshold: no batch before enough prompts wait to fill its first stage.

Rule: a batch runs once `threshold` prompts wait, or fewer if fewer slots are free; it takes just these, whole, in order
of arrival, and one decode of every running request. Until then the worker holds, decodes too. So each decode stage is
as full as the others, and the load of the memory stays level. threshold 0 is the fluid equilibrium: the arrivals of one
iteration, from the 20 s rate and the last batch, at least 1. After timeout_ms the worker goes on with what there is.
Source: Ao, Luo, Simchi-Levi and Wang, "Optimizing LLM Inference: Fluid-Guided Online Scheduling with Memory
Constraints" (arXiv:2504.11320, 2025); read in abstract and in the code of its authors, vidur_or:
modified_booking_limit_replica_scheduler.py. Differs: one type of requests for all lengths, where the source has a
threshold for each; the timeout is this project's (the source drops what is left at the end), or nothing would drain.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.dtypes import ROLE_DECODE
from llm_env.records import KV_PROMPT, UNLIMITED, Decision, View, decision, policy


def make(threshold: int = 0, max_running: int = 128, timeout_ms: float = 100.0):
    """WAIT.

    Args:
        threshold: prompts that must wait before a batch runs; 0: the arrivals of one iteration.
        max_running: most admitted requests.
        timeout_ms: the longest hold before a batch.
    """
    whole("threshold", threshold, 0)
    whole("max_running", max_running)
    timeout_s = number("timeout_ms", timeout_ms, 0.001, 1e6) / 1e3

    @policy
    def decide(view: View) -> Decision:
        slots = min(max_running, view.max_running)
        needed = threshold
        if needed == 0:
            needed = max(1, int(view.rate_slow_per_s * view.last_batch_s / view.num_workers))
        needed = min(needed, slots - view.num_running)
        since_s = view.memory - 1.0 if view.memory > 0.0 else view.now_s  # memory: 1 + when this hold began, 0 if none
        left_s = since_s + timeout_s - view.now_s
        if view.num_waiting < needed and view.role != ROLE_DECODE and view.num_swapped == 0 and left_s > 1e-9:
            return decision(1, hold_s=left_s, memory=1.0 + since_s)
        return decision(
            UNLIMITED,
            max_running=min(slots, view.num_running + max(needed, 1)),
            whole_prompts=1,
            kv_rule=KV_PROMPT,
        )

    return decide
