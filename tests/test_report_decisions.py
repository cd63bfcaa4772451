"""The maps of what is decided when, and the learning curves of the report: they say what was recorded and kept."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import agents
from agents.curves import CURVE, MOST_POINTS, curve_of, learning_of
from agents.files import save
from agents.shipped import card_text, shipped_folder, shipped_names
from llm_env.choices import CHOICE
from llm_env.config import scenario_from_dict
from llm_env.dtypes import BATCH, REQUEST
from llm_env.recorder import ENTRY, SAMPLE, Recording
from llm_env.report import curves, decisions
from llm_env.report.player import Run
from llm_env.report.story import Cast
from llm_env.study import Study, agent_contender


def run_of(rows, batches=(), blocks: int | None = 100):
    """A run that decided these: (time, waiting, KV in use, token budget); the SLO budget is 400."""
    choices = np.zeros(len(rows), CHOICE)
    choices["slo_budget"] = 400.0
    for k, (time_s, waiting, kv, budget) in enumerate(rows):
        choices[k]["time_s"], choices[k]["num_waiting"], choices[k]["kv_used"] = time_s, waiting, kv
        choices[k]["token_budget"] = budget
    log = np.zeros(len(batches), BATCH)
    for k, (start_s, prefill, decode) in enumerate(batches):
        log[k]["start_s"], log[k]["prefill_tokens"], log[k]["decode_tokens"] = start_s, prefill, decode
    scenario = scenario_from_dict({"system": {"kv": {"blocks": blocks}}} if blocks else {})
    recording = Recording(log, np.zeros(0, ENTRY), np.zeros(0, SAMPLE), choices, np.zeros(0, REQUEST), 1.0)
    return Run("x", "hero1", scenario, recording)


def cells(panel):
    """What a map says of each of its cells, by rows and columns in words."""
    return dict(re.findall(r"<title>([^<:]*): ([^<]*?) \(\d+ decisions\)</title>", panel))


# ---- maps ----------------------------------------------------------------------------------------------------------
def test_a_cell_says_another_budget_than_the_median_of_its_decisions():
    low = [(0.1 * k, 0, 0.1, budget) for k, budget in enumerate((400, 400, 400, 100, 100))]
    full = [(1 + 0.1 * k, 5, 0.99, 100) for k in range(5)]
    budgets = cells(decisions.maps([run_of(low + full)])[0][1][0])
    assert budgets == {
        "KV memory in use 0–25 %, 0 requests that wait": "1×",
        "KV memory in use 95–100 %, 4+ requests that wait": "0.25×",
    }


def test_a_cell_with_too_few_decisions_is_shown():
    rows = [(0.1 * k, 0, 0.1, 400) for k in range(5)] + [(1.0 + k, 3, 0.6, 400) for k in range(decisions.FEWEST - 1)]
    panel = decisions.maps([run_of(rows)])[0][1][0]
    assert list(cells(panel)) == ["KV memory in use 0–25 %, 0 requests that wait"]


def test_the_mix_is_not_that_of_the_batches_that_followed():
    rows = [(float(k), 0, 0.96, 400) for k in range(6)]
    batches = [(float(k), 30, 10) for k in range(5)]  # the last decision began none
    assert cells(decisions.maps([run_of(rows, batches)])[0][1][1]) == {
        "KV memory in use 95–100 %, 0 requests that wait": "75"
    }


def test_without_a_limit_of_memory_the_rows_are_not_decodes():
    panel = decisions.maps([run_of([(0.1 * k, 0, 0.0, 400) for k in range(5)], blocks=None)])[0][1][0]
    assert list(cells(panel)) == ["Requests that decode 0, 0 requests that wait"]


def test_memory_that_never_fills_makes_the_rows():
    panel = decisions.maps([run_of([(0.1 * k, 0, 0.2, 400) for k in range(5)])])[0][1][0]
    assert list(cells(panel)) == ["Requests that decode 0, 0 requests that wait"]


def test_holds_are_taken_for_budgets():
    run = run_of([(0.1 * k, 0, 0.1, 400) for k in range(6)])
    run.recording.choices["hold_s"][1:] = 0.5
    assert cells(decisions.maps([run])[0][1][0]) == {}


# ---- curves --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", shipped_names())
def test_the_curve_of_a_shipped_agent_does_not_end_where_its_card_says(name):
    learning = learning_of(name)
    assert learning is not None
    about = agents.load(name).about
    best = max(value for _, value in dict(learning.runs)[learning.chosen])
    assert best <= about["validation_attainment"] + 5e-5  # the card shows some validations, to four digits
    assert f"seed {about['seed']}" == learning.chosen
    assert dict(learning.references) == about["references"]
    assert len(learning.runs) == card_text(name).count("python train.py")


def test_a_run_keeps_no_curve_of_its_own(tmp_path):
    agent = agents.load("chat-bursty")
    history = [(0, 0.5, 0.4), (1000, 0.75, 0.6)]
    save(replace(agent, about=agent.about | {CURVE: curve_of(history)}), tmp_path / "mine")
    learning = learning_of(tmp_path / "mine")
    assert learning is not None
    assert learning.runs == (("seed 4", ((0.0, 0.5), (1000.0, 0.75))),)


def test_a_long_curve_loses_its_ends():
    history = [(k, 0.5, 0.5) for k in range(3 * MOST_POINTS + 2)]
    kept = curve_of(history)
    assert len(kept) <= MOST_POINTS + 1
    assert (kept[0][0], kept[-1][0]) == (0, history[-1][0])


@pytest.mark.parametrize("kept", ["x", [1, 2], [["a", "b"], [0, 2.0], [True, 0.1, 3]], {"a": 1}, [[0, None], [5, 0.5]]])
def test_a_file_with_another_curve_is_trusted(tmp_path, kept):
    with shipped_folder("chat-bursty") as folder:
        shutil.copytree(folder, tmp_path / "odd")
    manifest = json.loads((tmp_path / "odd" / "agent.json").read_text())
    manifest["about"] |= {CURVE: kept, "references": [1]}
    (tmp_path / "odd" / "agent.json").write_text(json.dumps(manifest))
    assert learning_of(tmp_path / "odd") is None


def test_the_picture_leaves_references_or_runs_out():
    contender = agent_contender("chat-bursty", set())
    study = Study(scenario_from_dict({}), (contender,), (), (2_000_000,))
    (panel,) = curves.learning_curves(study, Cast(None, (contender.label,), (contender.label,), (), ()))
    assert panel.count('class="line') == 5
    assert "adaptive@tuned reaches 84.40 %" in panel
    assert "moore-hodgson:slo 82.0" in panel  # told below the axis
