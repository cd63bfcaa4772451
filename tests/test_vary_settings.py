"""Settings that are drawn by episode: what a user gives is not drawn, and what cannot vary is refused."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

import pytest
from vary_cases import SEEDS, varying

from llm_env.bounds import slo_bound
from llm_env.config import read_scenario, scenario_from_dict, scenario_to_toml, with_changes
from llm_env.env import ServingEnv
from llm_env.errors import UserError
from llm_env.study import Study, baseline_contender
from llm_env.systems import drawn_from
from llm_env.workload import capacity_requests_per_s, concrete, draw_load, draw_workload


# ---- what is given is not drawn ------------------------------------------------------------------------------------
def test_a_load_that_is_given_is_drawn_all_the_same():
    scenario = varying()
    given = with_changes(scenario, {"workload.load": 0.6})
    assert "workload.load" not in {entry.label for entry in given.vary}
    for seed in SEEDS:
        one, other = concrete(scenario, seed), concrete(given, seed)
        assert other.workload.load == 0.6
        assert (one.system, one.slo, one.reward) == (other.system, other.slo, other.reward)
    drawn = concrete(scenario, 3)
    rate_per_s = capacity_requests_per_s(drawn) * draw_load(3, 0.2, 0.3)
    expected = draw_workload(drawn, 3, rate_per_s)
    assert drawn_from(scenario, (0.2, 0.3))(3).tobytes() == expected.tobytes()
    assert concrete(with_changes(scenario, {"workload.rate_per_s": 2.0}), 0).workload.rate_per_s == 2.0


def test_a_change_of_a_part_or_of_the_whole_leaves_the_draw():
    scenario = varying()
    whole = with_changes(scenario, {"slo.classes": [{"ttft_ms": 1000.0}]})
    assert not [entry for entry in whole.vary if entry.label.startswith("slo.classes")]
    assert len(whole.vary) == len(scenario.vary) - 3
    part = with_changes(scenario, {"system.service.setup_ms": 45.0})
    device = next(entry for entry in part.vary if entry.label == "device")
    assert device.paths == ("system.speeds",)
    assert {concrete(part, seed).system.service.setup_ms for seed in SEEDS} == {45.0}
    assert [concrete(part, s).system.speeds for s in SEEDS] == [concrete(scenario, s).system.speeds for s in SEEDS]
    with pytest.raises(UserError, match=r"workload\.output\.kind: workload\.output is drawn by 'workload\.output'"):
        with_changes(scenario, {"workload.output.kind": "fixed"})


def test_toml_does_not_bring_the_draws_back():
    scenario = varying()
    text = scenario_to_toml(scenario)
    assert "vary = [" in text or "[[vary]]" in text
    assert "vary = [" not in scenario_to_toml(concrete(scenario, 0))
    assert "[[vary]]" not in scenario_to_toml(concrete(scenario, 0))


def test_a_scenario_that_varies_cannot_be_read_back(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(scenario_to_toml(varying()))
    assert read_scenario(path) == varying()
    assert hash(read_scenario(path)) == hash(varying())


# ---- what cannot vary ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"setting": "system.workers", "choices": [1, 2]}], "system.workers must be the same in all episodes"),
        ([{"setting": "system.max_running", "low": 8, "high": 16}], "system.max_running must be the same"),
        ([{"setting": "system.router", "choices": ["round-robin", "least-tokens"]}], "system.router must be the same"),
        (
            [{"setting": "system", "choices": [{"workers": 3}]}],
            "vary.0.setting: expected a path like slo.classes.0.ttft_ms",
        ),
        (
            [{"name": "l", "choices": [{"system.layout": "disaggregated", "system.prefill_workers": 1}]}],
            "system.layout must be the same",
        ),
        (
            [{"name": "n", "choices": [{"system.service": {"setup_ms": 9.0}}]}],
            "system.service: noise must be the same in all episodes: 'some', got 'none'",
        ),
        ([{"setting": "episode.warmup_s", "low": 0.5, "high": 2.0}], "episode.warmup_s must be the same"),
        (
            [
                {
                    "setting": "workload.arrivals",
                    "choices": [{"kind": "closed-loop", "users": 3, "think_s": 1.0}],
                }
            ],
            "closed loop must be the same",
        ),
        ([{"setting": "name.x", "choices": ["a"]}], "in system, slo, workload, episode or reward, got 'name.x'"),
        ([{"setting": "workload.lod", "low": 0.5, "high": 1.0}], "workload.lod: vary: workload: lod: unknown setting"),
        ([{"setting": "slo.classes.2.ttft_ms", "low": 5.0, "high": 9.0}], "expected a number from 0 to 1"),
        ([{"setting": "workload.load", "low": 0.5, "high": 11.0}], "load: expected at most 10, got 11.0"),
        ([{"setting": "workload.load", "low": 0.0, "high": 1.0}], "load: expected above 0, got 0.0"),
        ([{"setting": "workload.load", "low": 1.0, "high": 1.0}], "low must be below high, got 1 and 1"),
        ([{"setting": "workload.load", "low": 0.0, "high": 1.0, "scale": "log"}], "needs low above 0"),
        ([{"setting": "workload.load", "low": 0.5}], "give low and high, or choices"),
        ([{"setting": "workload.load"}], "give low and high, or choices"),
        ([{"setting": "workload.load", "low": 0.5, "high": 1.0, "choices": [1.0]}], "give low and high, or choices"),
        ([{"setting": "workload.load", "choices": [1.0], "scale": "log"}], "choices have no scale and no of"),
        ([{"setting": "workload.load", "choices": []}], "choices: expected at least 1 items, got 0"),
        ([{"low": 0.5, "high": 1.0}], "give setting, or name"),
        ([{"name": "x", "low": 0.5, "high": 1.0}], "low and high are of one setting"),
        ([{"name": "x", "choices": [{"workload.load": 1.0}, {"reward.queue": 0.0}]}], "must give the same settings"),
        ([{"name": "x", "choices": [1.0]}], "each choice of 'x' must be a table"),
        ([{"setting": "workload.load", "low": 0.5, "high": 1.0, "of": "slo.rule"}], "of: slo.rule is no number"),
        ([{"setting": "workload.load", "low": 0.5, "high": 1.0}] * 2, "workload.load is given twice"),
        ([{"setting": "workload.load", "low": math.inf, "high": math.inf}], "finite number"),
        ([{"setting": "workload.load", "lo": 0.5}], "vary.0.lo: unknown setting"),
        ([{"setting": "workload.load", "choices": [{"times": "x", "of": "slo.rule"}]}], "times: expected a number"),
        # two draws that are fine one by one
        (
            [
                {"setting": "episode.arrivals_s", "choices": [5.0, 20.0]},
                {"setting": "episode.horizon_s", "choices": [30.0, 10.0]},
            ],
            "need warmup_s < arrivals_s <= horizon_s, got 1, 20, 10",
        ),
    ],
)
def test_what_cannot_vary_is_taken(entries, said):
    with pytest.raises(UserError, match=said):
        varying(vary=entries)


def test_a_bound_or_a_trace_takes_a_scenario_that_varies(tmp_path):
    scenario = varying()
    with pytest.raises(UserError, match=r"bound: scenario varying varies .*: take that of one seed"):
        slo_bound(draw_workload(scenario, 0), scenario)
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{k},100,5\n" for k in range(40)))
    with pytest.raises(UserError, match="trace: scenario varying varies"):
        ServingEnv(scenario, trace=trace)
    with pytest.raises(UserError, match="trace: scenario varying varies"):
        Study(scenario, (baseline_contender("fcfs"),), (), (0,), str(trace))


def test_the_example_of_the_page_is_no_scenario():
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    scenario = scenario_from_dict({**tomllib.loads(example), "system": {"kv": {"blocks": 100}}})
    for seed in SEEDS:
        drawn = concrete(scenario, seed)
        setup_ms, horizon = drawn.system.service.setup_ms, drawn.episode.horizon_s / drawn.episode.arrivals_s
        assert (setup_ms, drawn.system.kv.blocks, horizon) in {(38.329, 32050, 2.0), (20.5808, 8711, 3.0)}
        assert drawn.workload.arrivals.kind in ("poisson", "gamma")
