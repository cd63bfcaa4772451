"""KV on its way between workers: requests that move from prefill to decode, and helpers' chunks that are gathered.

All transfers share one link: after its latency each gets an equal share of the bandwidth (processor sharing). Here are
the transfers alone; what follows when one ends is in `llm_env.core`. Knows records, KV blocks and the router.

Source: Zhong et al., "DistServe" (OSDI 2024), section 4.3: decode workers pull KV when they have room, and prefill
workers keep it until then; Patel et al., "Splitwise" (ISCA 2024), section 4.
"""

from __future__ import annotations

from llm_env.dtypes import COMPUTING, INF, LINED_UP, MOVING, NOBODY, ROUTE_SHARED, UNDER_WAY
from llm_env.jit import njit
from llm_env.kv import blocks_for
from llm_env.records import KV_DECLARED, KV_RESERVE, State
from llm_env.router import decode_worker_with_room, has_room, route_decode


@njit
def add_transfer(state: State, i, source, target, phase, tokens, helps, blocks) -> None:
    """Notes that `tokens` of request i's KV are to go from one worker to another; there must be a row left."""
    system = state.system[0]
    t = state.transfers[system.num_transfers]
    system.num_transfers += 1
    t.request = i
    t.source = source
    t.target = target
    t.phase = phase
    t.tokens = tokens
    t.helps = helps
    t.blocks = blocks
    t.evictions = state.requests[i].evictions
    t.data_s = INF
    t.bytes_left = 0.0


@njit
def drop_transfer(state: State, k) -> None:
    """Row k is done with; the others keep their order."""
    system = state.system[0]
    system.num_transfers -= 1
    for j in range(k, system.num_transfers):
        state.transfers[j] = state.transfers[j + 1]


@njit
def depart(state: State, k) -> None:
    """Transfer k starts now."""
    t, system = state.transfers[k], state.system[0]
    t.phase = UNDER_WAY
    t.data_s = system.now_s + system.link_latency_s
    t.bytes_left = t.tokens * system.kv_bytes_per_token if system.link_bytes_per_s < INF else 0.0


@njit
def send_chunks(state: State, w) -> None:
    """Helper w has ended its batch: what it computed for others goes to them."""
    for k in range(state.system[0].num_transfers):
        t = state.transfers[k]
        if t.phase == COMPUTING and t.source == w:
            depart(state, k)


@njit
def line_up_move(state: State, w, i) -> None:
    """Request i of worker w is to decode elsewhere; until it has got there it stays as it is."""
    r = state.requests[i]
    r.status = MOVING
    r.in_batch = 1
    state.workers[w].num_moving += 1
    add_transfer(state, i, w, route_decode(state, i), LINED_UP, r.computed_tokens, 0, 0)


@njit(forceinline=True)
def blocks_to_move(system, r) -> int:
    """Blocks that REQUEST r takes where it goes: for its KV and one token, or what was reserved for it."""
    blocks = blocks_for(r.computed_tokens + 1, system.block_tokens)
    return max(blocks, r.blocks) if r.kv_rule == KV_RESERVE or r.kv_rule == KV_DECLARED else blocks


@njit
def start_moves(state: State) -> bool:
    """Starts the moves that find room, first come first served for each target. True if one started."""
    system, started, k = state.system[0], False, 0
    full = 0  # bit w: somebody waits for room on worker w
    while k < system.num_transfers:
        t = state.transfers[k]
        if t.phase == LINED_UP:
            blocks = blocks_to_move(system, state.requests[t.request])
            if system.router == ROUTE_SHARED:
                t.target = decode_worker_with_room(state, blocks)
                if t.target == NOBODY:
                    return started
            elif (full >> t.target) & 1 or not has_room(state, t.target, blocks):
                full |= 1 << t.target
                k += 1
                continue
            target = state.workers[t.target]
            target.free_blocks -= blocks
            target.num_incoming += 1
            t.blocks = blocks
            depart(state, k)
            started = True
        k += 1
    return started


# ---- the passing of time -------------------------------------------------------------------------------------------
@njit
def _sharing(state: State) -> int:
    """Transfers that share the bandwidth now."""
    system, count = state.system[0], 0
    for k in range(system.num_transfers):
        t = state.transfers[k]
        if t.phase == UNDER_WAY and t.data_s <= system.now_s and t.bytes_left > 0.0:
            count += 1
    return count


@njit(forceinline=True)
def _end_s(t, system, sharing) -> float:
    """When transfer t would end if nothing changed; the end of its latency if that is still to come."""
    if t.data_s > system.now_s:
        return t.data_s
    return system.now_s + t.bytes_left * sharing / system.link_bytes_per_s if t.bytes_left > 0.0 else system.now_s


@njit
def next_transfer_s(state: State) -> float:
    """When the next transfer ends or a latency does; infinite if none is under way."""
    system, sharing, next_s = state.system[0], _sharing(state), INF
    for k in range(system.num_transfers):
        t = state.transfers[k]
        if t.phase == UNDER_WAY:
            next_s = min(next_s, _end_s(t, system, sharing))
    return next_s


@njit
def pass_link(state: State, time_s) -> None:
    """Moves data until time_s, before which no transfer and no latency ends; the clock is still at the last event."""
    system, sharing = state.system[0], _sharing(state)
    for k in range(system.num_transfers):
        t = state.transfers[k]
        if t.phase == UNDER_WAY and t.data_s <= system.now_s and t.bytes_left > 0.0:
            if _end_s(t, system, sharing) <= time_s:
                t.bytes_left = 0.0
            else:
                t.bytes_left -= (time_s - system.now_s) * system.link_bytes_per_s / sharing


@njit
def arrived_transfer(state: State) -> int:
    """The first transfer that has ended by now, -1 if none has."""
    system = state.system[0]
    for k in range(system.num_transfers):
        t = state.transfers[k]
        if t.phase == UNDER_WAY and t.data_s <= system.now_s and t.bytes_left == 0.0:
            return k
    return -1
