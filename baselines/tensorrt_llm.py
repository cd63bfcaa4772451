"""TensorRT-LLM: in-flight batching, with or without the guarantee that nobody is evicted.

Rule: requests in order of arrival, decodes and prompts in one batch of at most max_num_tokens tokens; the first that
does not fit ends it. Prompts are whole, or with chunked_context cut to what is left of the batch. Capacity
"guaranteed-no-evict": a request is admitted only if its prompt and all of its declared output fit beside what the
running requests may still generate. "max-utilization": only what the next step needs must be free; where a block is
missing the last request is paused and recomputed.
Source: GuaranteedNoEvictScheduler and MaxUtilizationScheduler in cpp/tensorrt_llm/batch_manager/capacityScheduler.cpp,
MicroBatchScheduler in microBatchScheduler.cpp (chunks first come, first served), and the documentation of
SchedulerConfig, whose default is guaranteed-no-evict. Defaults 8,192 tokens and 2,048 requests: the build defaults of
its tuning guide; chunked_context is off there unless asked for. Differs: chunks are not rounded to KV blocks, and a
prompt longer than max_num_tokens goes alone where the engine rejects it.
"""

from __future__ import annotations

from baselines.parameters import one_of, whole
from llm_env.records import KV_CHUNK, KV_ESTIMATE, LIST_ORDER, UNLIMITED, Decision, View, decision, policy

CAPACITIES = ("guaranteed-no-evict", "max-utilization")


def make(
    capacity: str = "guaranteed-no-evict",
    max_num_tokens: int = 8192,
    max_batch_size: int = 2048,
    chunked_context: bool = False,
):
    """TensorRT-LLM.

    Args:
        capacity: guaranteed-no-evict or max-utilization.
        max_num_tokens: most tokens in a batch.
        max_batch_size: most admitted requests.
        chunked_context: prompts may be cut.
    """
    whole("max_num_tokens", max_num_tokens)
    whole("max_batch_size", max_batch_size)
    kv_rule = KV_ESTIMATE if one_of("capacity", capacity, CAPACITIES) == 0 else KV_CHUNK
    in_whole = int(not chunked_context)

    @policy
    def decide(view: View) -> Decision:
        fits = view.num_decodes == 0 or view.num_decodes + view.head_tokens <= max_num_tokens
        return decision(
            max_num_tokens,
            prefill_tokens=UNLIMITED if fits or in_whole == 0 else 0,
            max_running=max_batch_size,
            packing=LIST_ORDER,
            whole_prompts=in_whole,
            kv_rule=kv_rule,
            reserve_ratio=1.0,
        )

    return decide
