"""What gym.make takes: one scenario or several, and parts of a trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_env.config import Scenario, scenario_from_dict, scenario_to_toml
from llm_env.errors import UserError
from llm_env.spaces import resolve_scenarios, traffic_of, workload_of
from llm_env.workload import WHOLE, Windows, draw_load, read_trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{t:.2f},{p},{o}" for t, p, o in zip(rng.random(300) * 400, *rng.integers(1, 500, (2, 300)), strict=True)]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return path


def test_one_scenario_or_several_by_name_file_or_settings(tmp_path):
    mine = scenario_from_dict({"name": "mine"})
    path = tmp_path / "other.toml"
    path.write_text(scenario_to_toml(scenario_from_dict({"name": "other"})))
    for one in ("chat", Path(path), mine):
        assert len(resolve_scenarios(one, None)) == 1
    several = resolve_scenarios(["chat", str(path), mine], None)
    assert [scenario.name for scenario in several] == ["chat", "other", "mine"]
    changed = resolve_scenarios(["chat", mine], {"system.workers": 3})
    assert [scenario.system.workers for scenario in changed] == [3, 3]


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ([], "expected at least one"),
        (["chat", "chat"], 'two of them are called "chat"'),
        ([Scenario(), Scenario()], '"custom"'),
        (["chat", "chatty"], "chatty"),
    ],
)
def test_a_list_that_is_no_mixture_is_one_clear_error(scenario, words):
    with pytest.raises(UserError, match=words):
        resolve_scenarios(scenario, None)


def test_a_trace_in_columns_has_other_requests_than_the_file(trace):
    requests = read_trace(trace, 0.5)
    traffic = traffic_of(trace, 0.5)
    assert traffic is not None
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(traffic, name), requests[name])
    assert traffic.prompt_tokens.dtype == np.int32
    parts = [traffic_of(trace, 0.5, part) for part in ((0, 0.7), (0.7, 1))]
    assert [part.size for part in parts if part] == [
        np.sum(requests["arrival_s"] < 140),
        np.sum(requests["arrival_s"] >= 140),
    ]


def test_settings_of_a_trace_without_a_trace_are_refused():
    assert traffic_of(None, 1.0, WHOLE) is None
    with pytest.raises(UserError, match="time_scale: only for a trace"):
        traffic_of(None, 2.0)
    with pytest.raises(UserError, match="trace_part: only for a trace"):
        traffic_of(None, 1.0, (0.0, 0.5))
    with pytest.raises(UserError, match="trace_part: expected"):
        traffic_of(None, 1.0, (0.5, 0.5))


def test_the_load_of_a_window_is_not_the_one_its_seed_draws(trace):
    scenario = scenario_from_dict({"episode": {"arrivals_s": 20.0, "warmup_s": 1.0, "horizon_s": 40.0}})
    traffic = traffic_of(trace, 1.0)
    assert traffic is not None
    draw = workload_of(scenario, (0.3, 1.5), traffic)
    windows = Windows(traffic, scenario, scalable=True)
    for seed in range(5):
        assert draw(seed).tobytes() == windows.cut(seed, draw_load(seed, 0.3, 1.5)).tobytes()
