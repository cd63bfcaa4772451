"""Fixed-size batches: wait until a batch is full, or its first request has waited long enough.

Rule: a batch is full when batch_requests requests wait or their prompts have batch_tokens tokens, whichever is given
and first; it is also taken when its first request has waited timeout_ms. Until then an idle worker holds. The batch
takes so many requests (and prompts within batch_tokens), whole, in order of arrival. With join = false it runs to
its end before the next is looked at (static batching); with join = true full batches join the running decodes, which
never wait.
Source: the bulk service queue of Bailey, "On queueing processes with bulk service" (JRSS B 16(1), 1954), with the
timeout that serving front ends add. Static batching is the baseline of Yu et al., "Orca" (OSDI 2022), section 2.
Defaults are this project's.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.errors import UserError
from llm_env.records import KV_PROMPT, UNLIMITED, Decision, View, decision, policy


def make(
    batch_requests: int = 8,
    batch_tokens: int = 0,
    timeout_ms: float = 500.0,
    join: bool = False,
    max_running: int = 128,
):
    """Fixed-size batches.

    Args:
        batch_requests: requests of a full batch; 0: no matter how many.
        batch_tokens: prompt tokens of a full batch; 0: no matter how many.
        timeout_ms: the longest that the first request waits for others.
        join: full batches join the running ones.
        max_running: most admitted requests.
    """
    whole("batch_requests", batch_requests, 0)
    whole("batch_tokens", batch_tokens, 0)
    if batch_requests == 0 and batch_tokens == 0:
        raise UserError("batch_requests and batch_tokens: one of them must be above 0")
    whole("max_running", max_running)
    timeout_s = number("timeout_ms", timeout_ms, 0.001, 1e6) / 1e3
    size = batch_requests if batch_requests > 0 else max_running
    tokens = batch_tokens if batch_tokens > 0 else UNLIMITED
    joins = bool(join)

    @policy
    def decide(view: View) -> Decision:
        slots = min(max_running, view.max_running)
        most = min(size, slots)
        left_s = timeout_s - view.head_age_s
        full = (batch_requests > 0 and view.num_waiting >= most) or view.waiting_tokens >= tokens
        ready = view.num_waiting > 0 and (full or left_s <= 1e-9)
        idle = view.num_running == 0 and view.num_swapped == 0
        if idle and not ready and view.num_waiting > 0:
            return decision(1, hold_s=left_s)
        return decision(
            UNLIMITED,
            prefill_tokens=tokens if ready and (idle or joins) else 0,
            max_running=min(slots, view.num_running + most),
            whole_prompts=1,
            kv_rule=KV_PROMPT,
        )

    return decide
