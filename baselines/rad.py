"""RAD, resource-aware dynamic: alternates between prefilling and decoding, both in whole tiles.

Rule: in prefill mode batches of prompt chunks alone, token_budget rounded down to whole tiles, in order of arrival,
until max_running requests are admitted or no prompt is left; then in decode mode batches of decodes alone, until fewer
than a tile of them are left and a prompt waits. Decodes run in multiples of the tile as long as a tile of them is there
(those first that have waited longest). So work never waits while a resource is free, and no batch pays for tokens of
a tile that it does not use; gaps between tokens are not looked at.
Source: after Bari, Hegde and de Veciana, "Optimal Scheduling Algorithms for LLM Inference: Theory and Practice"
(arXiv:2508.01002, 2025). Only the abstract was read, and two descriptions by others of its Algorithm 1 (two
modes in cycles of at most N prefills; decodes batched by the optimal tile): when a mode ends is this project's reading,
and the paper's proof of throughput optimality is not claimed for it. The tile is 64 tokens, the default service's b0.
"""

from __future__ import annotations

from baselines.parameters import whole
from llm_env.records import KV_CHUNK, NEVER_MIX, Decision, View, decision, policy

_PREFILLING, _DECODING = 0.0, 1.0  # memory: the mode


def make(tile: int = 64, token_budget: int = 512, max_running: int = 128):
    """RAD.

    Args:
        tile: tokens of one tile.
        token_budget: most tokens in a prefill batch.
        max_running: most admitted requests, the N of a cycle.
    """
    whole("tile", tile)
    whole("token_budget", token_budget, tile)
    whole("max_running", max_running)
    tokens = token_budget // tile * tile

    @policy
    def decide(view: View) -> Decision:
        may_admit = view.num_waiting > 0 and view.num_running < min(max_running, view.max_running)
        may_prefill = view.num_partial > 0 or may_admit
        mode = view.memory
        if mode == _PREFILLING and not may_prefill:
            mode = _DECODING
        elif mode == _DECODING and may_prefill and view.num_decodes < tile:
            mode = _PREFILLING
        decodes = view.num_decodes // tile * tile if view.num_decodes >= tile else view.num_decodes
        return decision(
            tokens,
            prefill_tokens=tokens if mode == _PREFILLING or view.num_decodes == 0 else 0,
            max_decodes=decodes,
            max_running=max_running,
            packing=NEVER_MIX,
            kv_rule=KV_CHUNK,
            memory=mode,
        )

    return decide
