"""Who of those that wait has the least key, for orders that have no ranks: keys change, or depend on the moment or on
the decision. Knows the records and the queue's sets only.

Beside each word of a set's bitmap tree stands a bound: the least key of the members below is not less; -inf where
nothing is known. Whoever joins makes the bounds above it unknown, whoever leaves changes none, and keys only grow while
they wait: so a bound is never wrong, and a search that a low one has led to nobody raises it. Each joining, leaving and
growing costs later searches a look at a word of each level, and orders that nobody asks for cost nothing.

A bound is a float64 whose bits lie in a row of State.sets: a State is passed from function to function, and each call
pays for each array in it.
"""

from __future__ import annotations

import numpy as np

from llm_env.dtypes import INF
from llm_env.jit import njit
from llm_env.queue import lowest_bit
from llm_env.records import (
    KEY_PREDICTED,
    KEY_PREFILL,
    KEY_SERVICE,
    KEY_WEIGHT,
    SET_ARRIVAL,
    SET_HEADS,
    State,
)

MAX_LEVEL = 30  # of LEAST_ATTAINED
_ROUNDING = 2.0**-50  # more than the rounding of two response ratios, four times 2**-53


# ---- keys ----------------------------------------------------------------------------------------------------------
@njit
def key_of(state: State, r, key) -> float:
    """A key of REQUEST r, one of KEY_..."""
    if key == KEY_WEIGHT:
        return -r.weight
    if key == KEY_PREDICTED:
        return r.predicted_tokens if r.predicted_tokens >= 0.0 else INF  # NaN: nothing was predicted
    if key == KEY_PREFILL:
        return r.prefill_s
    return state.clients[r.tenant].service


@njit
def skip_join_level(prefill_s, quantum_s) -> int:
    """The first level whose quantum, quantum_s x 2^level, holds a prefill; at most MAX_LEVEL."""
    level = 0
    while level < MAX_LEVEL and quantum_s * (1 << level) < prefill_s:
        level += 1
    return level


@njit(forceinline=True)
def response_ratio(wait_s, service_s) -> float:
    """(waiting + service) / service; inf without service."""
    return (wait_s + service_s) / service_s if service_s > 0.0 else INF


# ---- bounds --------------------------------------------------------------------------------------------------------
@njit(forceinline=True)
def bound_of(bounds, word) -> float:
    """The bound beside a word. Args: bounds: (words,) int64, a row of State.sets."""
    return np.int64(bounds[word]).view(np.float64)


@njit(forceinline=True)
def _set_bound(bounds, word, value) -> None:
    bounds[word] = np.float64(value).view(np.int64)


# ---- the least key -------------------------------------------------------------------------------------------------
@njit
def first_least(state: State, q, key) -> int:
    """The first by arrival of those in queue q with the least key; some request must wait there.

    Under KEY_SERVICE there must be several clients.
    """
    root = state.levels[-1] - 1
    while True:
        i = _first_within(state, q, key, bound_of(state.sets[q, key], root))
        if i >= 0:
            return i


@njit
def first_by_level(state: State, q, quantum_s) -> int:
    """The first by arrival of those in queue q whose prefill stands in the lowest level; some request must wait."""
    root = state.levels[-1] - 1
    while True:
        level = skip_join_level(bound_of(state.sets[q, KEY_PREFILL], root), quantum_s)
        most_s = quantum_s * (1 << level) if quantum_s > 0.0 and level < MAX_LEVEL else INF
        i = _first_within(state, q, KEY_PREFILL, most_s)
        if i >= 0:
            return i


@njit
def _first_within(state: State, q, key, limit) -> int:
    """The first by arrival of those in queue q whose key is not above the limit.

    Returns:
        -1 if there is none: then the bound of the root is above the limit.
    """
    levels, bounds = state.levels, state.sets[q, key]
    tree = state.sets[q, SET_HEADS if key == KEY_SERVICE else SET_ARRIVAL]
    top = levels.shape[0] - 2
    level, word = top, 0
    while True:
        bits, found, bound = tree[levels[level] + word], -1, INF
        while bits != 0:
            child = (word << 5) + lowest_bit(bits)
            if level == 0:
                value = key_of(state, state.requests[child], key)
            else:
                value = bound_of(bounds, levels[level - 1] + child)
            if not value > limit:
                found = child
                break
            bound = min(bound, value)
            bits &= bits - 1
        if found >= 0 and level == 0:
            return found
        if found >= 0:
            level, word = level - 1, found
            continue
        _set_bound(bounds, levels[level] + word, bound)
        if level == top:
            return -1
        level, word = level + 1, word >> 5


# ---- the highest response ratio ------------------------------------------------------------------------------------
@njit
def first_by_ratio(state: State, q) -> int:
    """The first by arrival of those in queue q with the highest response ratio; some request must wait there.

    1. Down the highest bounds to a word, and the best in it.
    2. Branch and bound: from the left, every word whose bound is higher, or as high with an earlier arrival.
    """
    tree, levels, bounds = state.sets[q, SET_ARRIVAL], state.levels, state.sets[q, KEY_PREFILL]
    top = levels.shape[0] - 2
    word = 0
    for level in range(top, 0, -1):
        word = _highest_child(state, tree, bounds, level, word)
    best, most = _best_of_word(state, tree, bounds, word, -1, -INF)
    level, word, bits = top, 0, tree[levels[top]]
    while True:
        if level == 0:
            best, most = _best_of_word(state, tree, bounds, word, best, most)
        else:
            child = _promising_child(state, bounds, level, word, bits, best, most)
            if child >= 0:
                level, word = level - 1, child
                bits = tree[levels[level] + word]
                continue
            _raise_bound(tree, levels, bounds, level, word)
        if level == top:
            return best
        done = (word & 31) + 1
        level, word = level + 1, word >> 5
        bits = (tree[levels[level] + word] >> done) << done


@njit
def _ratio_bound(state: State, bounds, level, word) -> float:
    """No response ratio below a word is higher: that of its least service, had it come with the first of its span.

    Rounded ratios fall with the service only where services differ by more than rounding; else the bound is raised.
    """
    system = state.system[0]
    wait_s = system.now_s - state.requests[word << (5 * level + 5)].arrival_s
    service_s = bound_of(bounds, state.levels[level] + word)
    ratio = response_ratio(wait_s, service_s)
    if wait_s > 0.0 and system.prefill_gap * wait_s < _ROUNDING * (wait_s + service_s):
        ratio *= 1.0 + _ROUNDING
    return ratio


@njit
def _highest_child(state: State, tree, bounds, level, word) -> int:
    """The word below a word, the first of equals, that has the highest bound."""
    bits, found, most = tree[state.levels[level] + word], -1, -INF
    while bits != 0:
        child = (word << 5) + lowest_bit(bits)
        bound = _ratio_bound(state, bounds, level - 1, child)
        if bound > most:
            found, most = child, bound
        bits &= bits - 1
    return found


@njit
def _promising_child(state: State, bounds, level, word, bits, best, most) -> int:
    """The first word below a word, of those in `bits`, that may hold somebody who goes before `best`; -1 if none."""
    while bits != 0:
        child = (word << 5) + lowest_bit(bits)
        bound = _ratio_bound(state, bounds, level - 1, child)
        if bound > most or (bound == most and child << (5 * level) < best):
            return child
        bits &= bits - 1
    return -1


@njit
def _best_of_word(state: State, tree, bounds, word, best, most) -> tuple[int, float]:
    """Who goes first of `best`, with the ratio `most`, and the requests of a word, whose bound becomes exact."""
    now_s, bits, bound = state.system[0].now_s, tree[word], INF
    while bits != 0:
        i = (word << 5) + lowest_bit(bits)
        r = state.requests[i]
        bound = min(bound, r.prefill_s)
        ratio = response_ratio(now_s - r.arrival_s, r.prefill_s)
        if ratio > most or (ratio == most and i < best):
            best, most = i, ratio
        bits &= bits - 1
    _set_bound(bounds, word, bound)
    return best, most


@njit
def _raise_bound(tree, levels, bounds, level, word) -> None:
    """The bound of a word becomes the least of those below it."""
    bits, bound = tree[levels[level] + word], INF
    while bits != 0:
        bound = min(bound, bound_of(bounds, levels[level - 1] + (word << 5) + lowest_bit(bits)))
        bits &= bits - 1
    _set_bound(bounds, levels[level] + word, bound)
