"""Several trainings of one agent: who belongs together, and that the numbers are those of the statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llm_env.aggregate import AVERAGED, aggregate
from llm_env.config import Scenario
from llm_env.dtypes import SLO_RULES
from llm_env.statistics import improvement_interval, iqm_interval
from llm_env.study import CellResult, Contender, Study
from llm_env.trainings import trainings

SHARES = {
    "agent:seed-0": (0.80, 0.82, 0.70, 0.90),
    "agent:seed-1": (0.84, 0.80, 0.74, 0.88),
    "agent:other": (0.1, 0.2, 0.3, 0.4),
    "x": (0.81, 0.81, 0.71, 0.89),
    "y": (0.5, 0.5, 0.5, 0.5),
}


def study_of(folder, settings, empty=(), scenarios=None):
    """A study of SHARES at two loads.

    Args:
        settings: of the agents' runs.
        empty: seeds without a request.
        scenarios: on which the runs were, where not on "a".
    """
    names = []
    for label in SHARES:
        run = folder / label.removeprefix("agent:")
        if label in settings:
            run.mkdir()
            (run / "settings.json").write_text(settings[label])
            (run / "scenario.toml").write_text((scenarios or {}).get(label, "a"))
        is_agent = label.startswith("agent:")
        names.append(Contender(label, "" if is_agent else "sarathi", (), str(run) if is_agent else ""))
    study = Study(Scenario(), tuple(names), (0.6, 0.9), (0, 1, 2, 3))
    cells = []
    for load in study.loads:
        for label, shares in SHARES.items():
            for seed, share in enumerate(shares):
                summary = dict.fromkeys(AVERAGED, 1.0) | {f"slo_attainment_{rule}": share for rule in SLO_RULES}
                summary |= {"num_requests": 0 if seed in empty else 50, "unstable": False}
                cells.append(CellResult(load, label, seed, summary, {}, np.zeros(0), np.zeros(0), {}))
    return study, aggregate(study, cells), cells


def settings(**changed):
    return json.dumps({"scenario": ["chat"], "timesteps": 100, "seed": 0, "out": "a"} | changed)


TWO = {"agent:seed-0": settings(), "agent:seed-1": settings(seed=1, out="b"), "agent:other": settings(timesteps=200)}


def test_trainings_of_one_agent_are_not_found_or_others_are_taken_for_one(tmp_path):
    found = trainings(*study_of(tmp_path, TWO))
    assert [(each.load, each.agents) for each in found] == [
        (load, ("agent:seed-0", "agent:seed-1")) for load in (0.6, 0.9)
    ]


@pytest.mark.parametrize("text", [None, "no JSON", "[1]", settings(timesteps=5)])
def test_an_agent_of_which_nothing_is_known_is_taken_for_another_training(tmp_path, text):
    known = {k: v for k, v in TWO.items() if k != "agent:seed-1"} | ({} if text is None else {"agent:seed-1": text})
    assert trainings(*study_of(tmp_path, known)) == []


def test_the_same_training_counts_twice(tmp_path):
    assert trainings(*study_of(tmp_path, TWO | {"agent:seed-1": settings(out="b")})) == []


def test_trainings_on_other_scenarios_are_taken_for_one_agent(tmp_path):
    assert trainings(*study_of(tmp_path, TWO, scenarios={"agent:seed-1": "b"})) == []


@pytest.mark.parametrize("empty", [(), (2,)])
def test_the_numbers_are_not_those_of_all_trainings_and_workloads(tmp_path, empty):
    found = trainings(*study_of(tmp_path, TWO, empty))[0]
    kept = [seed for seed in range(4) if seed not in empty]
    scores = np.array([SHARES["agent:seed-0"], SHARES["agent:seed-1"]])[:, kept]
    assert found.reference == "x"
    assert found.iqm == iqm_interval(scores)
    assert found.improvement == improvement_interval(scores, np.array(SHARES["x"])[kept])
    assert found.improvement is not None
    flat = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert flat["iqm"] == found.iqm.value
    assert flat["probability_of_improvement_ci95"] == [found.improvement.low, found.improvement.high]
    assert "2 trainings, agent:seed-0, agent:seed-1: IQM" in found.text()
