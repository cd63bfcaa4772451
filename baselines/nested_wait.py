"""Nested WAIT: prompts start in groups of a threshold, few enough that unknown outputs do not overflow the memory.

Rule: a request that has made gate_tokens tokens stands at the gate to the second segment of the decode until gate_count
of them stand there (or nobody else could run); the other decodes always run. Prompts are prefilled, whole and in order
of arrival, only once `threshold` of them wait (or as many as there are slots), at most so many in a batch, and only
while `buffer` of the KV memory stays free: the safety buffer against outputs that turn out long. A prompt that has
waited timeout_ms goes without a group.
Source: Ao, Luo, Simchi-Levi and Wang, "Optimizing LLM Inference: Fluid-Guided Online Scheduling with Memory
Constraints" (arXiv:2504.11320, 2025); read in abstract and in the code of its authors, vidur_or:
general_nested_booking_limit_replica_scheduler.py. Differs: two segments, where the source has one for each decode
length of its request types, and decodes inside a segment run even while nobody enters it. All numbers are this
project's; the source takes thresholds that fall from segment to segment by the share of requests that go on.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.records import KV_PROMPT, UNLIMITED, Decision, View, decision, policy


def make(
    threshold: int = 4,
    gate_tokens: int = 128,
    gate_count: int = 2,
    max_running: int = 128,
    buffer: float = 0.05,
    timeout_ms: float = 500.0,
):
    """Nested WAIT.

    Args:
        threshold: prompts that must wait before they are prefilled, and the most in a batch.
        gate_tokens: output tokens of the first segment; 0: no gate.
        gate_count: requests that must stand at the gate before they go on.
        max_running: most admitted requests.
        buffer: share of the KV memory that an admission must leave free.
        timeout_ms: the longest that a prompt waits for others.
    """
    whole("threshold", threshold)
    whole("gate_tokens", gate_tokens, 0)
    whole("gate_count", gate_count)
    whole("max_running", max_running)
    kept = number("buffer", buffer, 0.0, 0.9)
    timeout_s = number("timeout_ms", timeout_ms, 0.001, 1e6) / 1e3

    @policy
    def decide(view: View) -> Decision:
        slots = min(max_running, view.max_running)
        needed = min(threshold, slots - view.num_running)
        left_s = timeout_s - view.head_age_s
        ready = view.num_waiting >= needed or left_s <= 1e-9
        if not ready and view.num_running == 0 and view.num_swapped == 0 and view.num_waiting > 0:
            return decision(1, hold_s=left_s)
        return decision(
            UNLIMITED,
            prefill_tokens=UNLIMITED if ready else 0,
            max_running=min(slots, view.num_running + threshold),
            whole_prompts=1,
            kv_rule=KV_PROMPT,
            watermark=kept,
            gate_tokens=gate_tokens,
            gate_count=gate_count,
        )

    return decide
