"""Dynamic batching: prompts wait a little for company, and the batch size follows the time that batches take.

Rule: prompts are prefilled once preferred_requests of them wait or the first has waited max_delay_ms; decodes never
wait for that. A batch has at most `cap` tokens, prompts cut to fit; the cap grows by step_tokens when a batch that
filled it took less than target_ms, and shrinks to 0.9 of itself when a batch took longer (additive increase,
multiplicative decrease). target_ms 0 is the TBT target.
Source: the queue is the dynamic batcher of NVIDIA Triton (preferred_batch_size, max_queue_delay_microseconds; its
documentation of batchers), where a delay of 0 dispatches at once; the cap is Crankshaw et al., "Clipper: A Low-Latency
Online Prediction Serving System" (NSDI 2017), with its 10 % (read in abstract and in summaries by others).
There the cap counts queries; here tokens, since they are what a batch's time depends on. Defaults are this project's.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.records import KV_CHUNK, Decision, View, decision, policy

_BACK_OFF = 0.9


def make(
    preferred_requests: int = 4,
    max_delay_ms: float = 100.0,
    target_ms: float = 0.0,
    step_tokens: int = 16,
    first_tokens: int = 64,
    max_tokens: int = 8192,
    max_running: int = 128,
):
    """Dynamic batching.

    Args:
        preferred_requests: prompts that are prefilled without waiting for more.
        max_delay_ms: the longest that a prompt waits for others.
        target_ms: what a batch may take; 0: the TBT target.
        step_tokens: what the cap grows by.
        first_tokens: the first cap.
        max_tokens: the largest cap.
        max_running: most admitted requests.
    """
    whole("preferred_requests", preferred_requests)
    delay_s = number("max_delay_ms", max_delay_ms, 0.0, 1e6) / 1e3
    given_s = number("target_ms", target_ms, 0.0, 1e6) / 1e3
    whole("step_tokens", step_tokens)
    whole("first_tokens", first_tokens)
    whole("max_tokens", max_tokens, first_tokens)
    whole("max_running", max_running)

    @policy
    def decide(view: View) -> Decision:
        cap = abs(view.memory)  # memory: the cap, negative after a hold, which says nothing new of it
        if cap == 0.0:
            cap = float(first_tokens)
        elif view.memory > 0.0:
            target_s = given_s if given_s > 0.0 else view.tbt_target_s
            if view.last_batch_s > target_s + 1e-9:  # rounding of its times
                cap = max(1.0, _BACK_OFF * cap)
            elif view.last_batch_tokens >= int(cap):
                cap = min(float(max_tokens), cap + step_tokens)
        left_s = delay_s - view.head_age_s
        ready = view.num_waiting >= preferred_requests or left_s <= 1e-9
        may_run = view.num_running > 0 or view.num_swapped > 0
        if not ready and not may_run and view.num_waiting > 0:
            return decision(1, hold_s=left_s, memory=-cap)
        return decision(
            int(cap),
            max_running=max_running if ready else 0,
            kv_rule=KV_CHUNK,
            memory=cap,
        )

    return decide
