"""The scenario of an episode, where a scenario draws some of its settings (`[[vary]]`) from the seed."""

from __future__ import annotations

from zlib import crc32

from llm_env.config import Scenario, drawn
from llm_env.workload.seeds import VARY, draw_uniform

_KEPT = 4096  # scenarios of episodes that are remembered: an episode asks for its own several times
_known: dict[tuple[int, int], tuple[Scenario, Scenario]] = {}  # id and seed -> the scenario, that of the episode


def concrete(scenario: Scenario, seed: int) -> Scenario:
    """The scenario of the episode of a seed: as it is where nothing varies, else with every entry of `vary` drawn.

    Each entry has a stream of its own, named by its setting or name: another range, another order or one entry less
    does not change what the others draw.

    Raises:
        UserError: the seed is not an integer of at least 0, or two draws do not fit together.
    """
    if not scenario.vary:
        return scenario
    key = (id(scenario), seed)
    known = _known.get(key)
    if known is not None and known[0] is scenario:
        return known[1]
    uniforms = {entry.label: draw_uniform(seed, VARY, crc32(entry.label.encode())) for entry in scenario.vary}
    episode = drawn(scenario, uniforms)
    if len(_known) >= _KEPT:
        _known.clear()
    _known[key] = scenario, episode
    return episode
