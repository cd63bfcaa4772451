"""The player of report.html: its data are the runs of the study, and its controls do what they say in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from llm_env.aggregate import aggregate
from llm_env.config import scenario_from_dict
from llm_env.report import player, recorded
from llm_env.report.page import report
from llm_env.report.story import Cast, cast_of, headline_load
from llm_env.study import CellResult, Study, agent_contender, baseline_contender, run_study, sort_cells

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
SCENARIO = scenario_from_dict(
    {
        "name": "short",
        "system": {"kv": {"blocks": 1200}},
        "workload": {"load": 0.9, "arrivals": {"kind": "mmpp2"}},
        "episode": {"arrivals_s": 70.0, "warmup_s": 4.0, "horizon_s": 120.0},
    }
)
NAMES = ("sarathi:slo", "moore-hodgson", "vllm-v1")
AGENT = "chat-bursty"
Made = tuple[Study, list[CellResult], Cast]


@pytest.fixture(scope="module")
def made() -> Made:
    names = (*map(baseline_contender, NAMES), agent_contender(AGENT, set()))
    study = Study(SCENARIO, names, (0.9,), (2_000_000, 2_000_001))
    cells = sort_cells(study, [cell for _, _, new in run_study(study, 1) for cell in new])
    return study, cells, cast_of(study, aggregate(study, cells), headline_load(study))


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    study, cells, _ = made
    return report(study, aggregate(study, cells), cells, {"git_commit": None, "versions": {}}, ["python"])


@pytest.fixture(scope="module")
def excerpt(made: Made) -> player.Excerpt:
    study, _, cast = made
    found = player.excerpt(recorded.recorded(study, cast))
    assert found is not None
    return found


# ---- data ----------------------------------------------------------------------------------------------------------
def test_the_replayed_runs_are_those_of_the_study(made, excerpt):
    study, cells, _ = made
    data, start = excerpt.data, excerpt.data["start"]
    for run in data["runs"]:
        cell = next(c for c in cells if c.contender == run["name"] and c.seed == study.seeds[0])
        arrivals = np.rint(1e3 * (cell.requests["arrival_s"] - start)).astype(int).tolist()
        first = np.rint(1e3 * (cell.requests["first_token_s"] - start)).astype(int).tolist()
        seen = {(a, f) for a, f in zip(data["arrival"], run["first"], strict=True) if f is not None}
        assert len(seen) > 10
        assert seen <= set(zip(arrivals, first, strict=True))


def test_the_best_agent_stands_beside_the_best_baseline(made, excerpt):
    _, _, cast = made
    assert excerpt.names[:2] == (f"agent:{AGENT}", cast.baselines[0])
    assert len(excerpt.names) == recorded.MOST_RUNS


def test_one_of_the_runs_is_what_many_use(made, excerpt):
    assert {"sarathi:slo", "vllm-v1"} & set(excerpt.names[1:])


def test_what_the_batches_hold_adds_up_to_their_tokens(excerpt):
    for run in excerpt.data["runs"]:
        held = [0] * len(run["batches"])
        prefill = [0] * len(run["batches"])
        for batch, _, tokens in run["chunks"]:
            held[batch] += tokens
            prefill[batch] += tokens
        for _, first, last in run["decodes"]:
            for k in range(first, last + 1):  # one worker: a stretch is every batch between its ends
                held[k] += 1
        assert held == [batch[3] for batch in run["batches"]]
        assert prefill == [batch[4] for batch in run["batches"]]


def test_the_excerpt_is_short_and_in_order(excerpt):
    data = excerpt.data
    assert data["length"] <= 60_000
    assert len(data["arrival"]) <= player.MAX_REQUESTS
    assert data["arrival"] == sorted(data["arrival"])
    for run in data["runs"]:
        assert all(moment is None or moment <= data["length"] for moment in run["finish"])


def test_late_gaps_are_those_of_the_run(made, excerpt):
    study, cells, _ = made
    for run in excerpt.data["runs"]:
        cell = next(c for c in cells if c.contender == run["name"] and c.seed == study.seeds[0])
        late = {
            round(1e3 * (a - excerpt.data["start"])) for a in cell.requests["arrival_s"][cell.requests["late_gaps"] > 0]
        }
        assert {a for a, g in zip(excerpt.data["arrival"], run["gaps"], strict=True) if g is not None} <= late


def test_stretches_of_one_worker_skip_the_batches_of_another():
    who, batch, worker = np.array([0, 0, 0, 1]), np.array([0, 2, 6, 1]), np.array([0, 1, 0, 1, 0, 1, 0])
    assert player._stretches(who, batch, worker) == [[0, 0, 2], [0, 6, 6], [1, 1, 1]]


def test_the_excerpt_is_where_most_requests_arrive():
    calm, burst = np.arange(0, 200, 5.0), np.linspace(100, 120, 200)
    start, end = player.window(np.concatenate([calm, burst]))
    assert start <= 100
    assert end >= 120
    assert player.window(np.array([3.0]))[0] == 0


def test_data_cannot_end_the_element_they_stand_in():
    text = player.as_json({"name": "</script><!--&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": "</script><!--&"}


def test_users_who_wait_for_their_answers_are_not_replayed(made):
    study, _, cast = made
    scenario = scenario_from_dict({"workload": {"arrivals": {"kind": "closed-loop", "users": 4}}})
    assert recorded.recorded(replace(study, scenario=scenario, loads=()), replace(cast, load=None)) == []


def test_a_part_of_a_trace_is_replayed_though_its_rows_do_not_begin_at_0(tmp_path, made):
    path = tmp_path / "trace.csv"
    lines = (f"{0.1 * k:.1f},{100 + k % 90},{2 + k % 5}\n" for k in range(600))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(lines))
    study = replace(made[0], trace=str(path), trace_part=(0.5, 1.0), loads=())
    found = player.excerpt(recorded.recorded(study, replace(made[2], load=None)))
    assert found is not None
    assert len(found.data["prompt"]) == 300
    for run in found.data["runs"]:
        assert sum(tokens for _, _, tokens in run["chunks"]) == sum(found.data["prompt"])


def test_a_report_without_a_player_allows_no_script(made, monkeypatch):
    monkeypatch.setattr(recorded, "_MAX_WORKLOAD", 0)
    study, cells, _ = made
    text = report(study, aggregate(study, cells), cells, {"git_commit": None, "versions": {}}, ["python"])
    assert "script-src 'none'" in text
    assert "<script" not in text


# ---- in a browser --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def path(page, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page, encoding="utf-8")
    return file


TIME = "Number(document.querySelector('#replay input').value)"
CLICK = "document.querySelector('[data-do=\"{}\"]').click()"
PIXELS = "[...document.querySelectorAll('canvas')].map(canvas => canvas.toDataURL()).join()"


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_fits_the_screen_and_the_console_is_silent(browser, path, width, dark):
    browser.open(path, width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.problems() == []
    texts = "[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect())"
    assert browser.run(f"Math.max(...{texts}.map(r => r.right))") <= width + 1
    assert browser.run(f"Math.min(...{texts}.map(r => r.left))") >= -1


@in_browser
def test_scrubbing_and_stepping_change_time_and_picture(browser, path):
    browser.open(path, 1440)
    before = browser.run(PIXELS)
    browser.run(CLICK.format("next"))
    first = browser.run(TIME)
    browser.run(CLICK.format("next"))
    assert browser.run(TIME) > first > 0
    browser.run(CLICK.format("back"))
    assert browser.run(TIME) == first
    browser.run(
        "(() => { const r = document.querySelector('#replay input'); r.value = 40000;"
        " r.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert browser.run("document.querySelector('#replay output').textContent") == "40.0 s"
    assert browser.run(PIXELS) != before
    assert re.match(
        r"40\.0 s\. .*: \d+ waiting, \d+ in prefill", browser.run("document.querySelector('.said').textContent")
    )
    assert browser.problems() == []


@in_browser
@pytest.mark.parametrize("still", [False, True])
def test_the_keyboard_plays_pauses_and_steps(browser, path, still):
    browser.open(path, 390, still=still)
    browser.run("document.querySelector('#replay').focus()")
    browser.key("ArrowRight", "ArrowRight", 39)
    stepped = browser.run(TIME)
    assert stepped > 0
    playing = "document.querySelector('[data-do=\"play\"]').getAttribute('aria-pressed')"
    browser.key(" ", "Space", 32, " ")
    assert browser.run(playing) == "true"
    browser.run(
        "new Promise(done => { let n = 0; const f = () => ++n > 60 ? done() : requestAnimationFrame(f); f(); })"
    )
    browser.key(" ", "Space", 32, " ")
    assert browser.run(playing) == "false"
    assert browser.run(TIME) > stepped
    browser.key("ArrowLeft", "ArrowLeft", 37)
    assert browser.problems() == []


@in_browser
def test_another_run_can_be_chosen_for_a_side(browser, path):
    browser.open(path, 1440)
    assert browser.run("document.querySelector('.stage select').selectedOptions[0].text") == f"agent:{AGENT}"
    before = browser.run(PIXELS)
    browser.run(
        "(() => { const s = document.querySelectorAll('.stage select')[1]; s.value = '2';"
        " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    name = browser.run("document.querySelectorAll('.stage select')[1].selectedOptions[0].text")
    assert name in browser.run("document.querySelectorAll('canvas')[1].getAttribute('aria-label')")
    assert f"{name}: " in browser.run("document.querySelector('.said').textContent")
    assert browser.run(PIXELS) != before
    assert browser.problems() == []


@in_browser
def test_everything_that_is_pressed_is_large_enough_for_a_finger(browser, path):
    browser.open(path, 390)
    sizes = browser.run(
        "[...document.querySelectorAll('#replay button, #replay select, #replay input')]"
        ".map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 44


@in_browser
def test_the_policy_does_not_stop_the_style(browser, path):
    browser.open(path, 1440)
    assert browser.run("getComputedStyle(document.querySelector('h1')).fontSize") == "32px"
