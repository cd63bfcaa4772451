"""SGLang: prefill first, admission by an estimate of how much of their declared output requests will need.

Rule: prompts that can be admitted form a batch alone, in order of arrival and in chunks of chunked_prefill_tokens in
all; decodes run only if no prompt can go (with mixed_chunk they run beside the chunks and count against them). A
request is admitted if its prompt and its whole remaining declared output, clipped at clip_tokens, fit in free memory
less ratio x the same of every running request. The ratio starts at 0.7 x conservativeness (at most 1), falls in each
decode batch to 0.14 of that within decay_steps batches, and returns to the start when the worker falls idle. Where a
decode finds no memory, requests are retracted and recomputed, those with the fewest output tokens first (of these the
longest prompt), and the ratio becomes (tokens generated + 20 per remaining request) / (their declared sum + 1).
Source: PrefillAdder in python/sglang/srt/managers/schedule_policy.py, NewTokenRatioTracker, Scheduler and
ScheduleBatch.retract_decode there, defaults of environ.py and server_args.py (read at main of 2026; 8,192 is the chunk
of GPUs of 60 to 160 GB). Differs: a retracted request stands at the front of the queue, there at its end.
"""

from __future__ import annotations

from baselines.parameters import number, whole
from llm_env.records import DECODES_FIRST, KV_ESTIMATE, NEVER_MIX, VICTIM_FEWEST, Decision, View, decision, policy

_RETRACT_STEPS = 20  # decode steps that a remaining request is thought to have ahead: SGLANG_RETRACT_DECODE_STEPS
_INIT, _MIN_FACTOR = 0.7, 0.14  # SGLANG_INIT_NEW_TOKEN_RATIO, SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR


def make(
    chunked_prefill_tokens: int = 8192,
    max_prefill_tokens: int = 16384,
    max_running: int = 2048,
    mixed_chunk: bool = False,
    conservativeness: float = 1.0,
    decay_steps: int = 600,
    clip_tokens: int = 4096,
):
    """SGLang.

    Args:
        chunked_prefill_tokens: most prefill tokens in a batch, the last prompt cut to fit; 0: prompts are never cut.
        max_prefill_tokens: most prefill tokens in a batch whatever the chunk.
        max_running: most admitted requests (max_running_requests, whose own default is 2,048 or more).
        mixed_chunk: decodes beside prompt chunks (enable_mixed_chunk).
        conservativeness: factor on the first ratio (schedule_conservativeness).
        decay_steps: decode batches from the first ratio to the least.
        clip_tokens: most output tokens that any request is thought to need.
    """
    whole("chunked_prefill_tokens", chunked_prefill_tokens, 0)
    whole("max_prefill_tokens", max_prefill_tokens)
    whole("max_running", max_running)
    whole("decay_steps", decay_steps)
    whole("clip_tokens", clip_tokens)
    first = min(1.0, _INIT * number("conservativeness", conservativeness, 0.01, 100.0))
    least = first * _MIN_FACTOR
    decay = (first - least) / decay_steps
    in_whole = int(chunked_prefill_tokens == 0)
    tokens = max_prefill_tokens if chunked_prefill_tokens == 0 else min(chunked_prefill_tokens, max_prefill_tokens)
    packing = DECODES_FIRST if mixed_chunk else NEVER_MIX

    @policy
    def decide(view: View) -> Decision:
        ratio = view.memory
        if ratio == 0.0 or (view.num_running == 0 and view.head_age_s == 0.0):  # at first, and after an idle time
            ratio = first
        elif view.last_evicted > 0:
            generated = view.emitted_tokens - view.num_decodes  # without those of the batch that has just ended
            ratio = min(1.0, (generated + _RETRACT_STEPS * view.num_running) / (view.declared_tokens + 1.0))
        elif view.last_batch_tokens > 0 and view.last_prefill_tokens == 0:
            ratio = max(least, ratio - decay)
        return decision(
            tokens,
            max_running=max_running,
            packing=packing,
            whole_prompts=in_whole,
            kv_rule=KV_ESTIMATE,
            reserve_ratio=ratio,
            reserve_tokens=clip_tokens,
            victim=VICTIM_FEWEST,
            memory=ratio,
        )

    return decide
