"""First come, first served, run to completion: one request at a time, whole prompt, then its decodes.

Rule: nobody is admitted while a request runs. Every gap is exactly c, and the queue is a G/G/1 (Lindley, "The theory
of queues with a single server", 1952). The weakest sensible scheduler, and the one that theory solves.
"""

from __future__ import annotations

from llm_env.records import KV_PROMPT, UNLIMITED, Decision, View, decision, policy


def make():
    """No parameters."""

    @policy
    def decide(view: View) -> Decision:
        return decision(UNLIMITED, max_running=1, whole_prompts=1, kv_rule=KV_PROMPT)

    return decide
