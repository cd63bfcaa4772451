"""Animations for notebooks: the page of the player in a frame, for any policies and agents."""

from __future__ import annotations

import html
import json
import re

import pytest
from browser import CHROMIUM, Browser

import agents
from baselines import make_policy
from llm_env.animation import MOST_RUNS, Animation, animate
from llm_env.config import scenario_from_dict
from llm_env.errors import UserError
from llm_env.workload import draw_workload
from tests.conftest import ROOT

SCENARIO = scenario_from_dict(
    {
        "name": "short",
        "system": {"kv": {"blocks": 1200}},
        "workload": {"load": 0.9},
        "episode": {"arrivals_s": 30.0, "warmup_s": 0.0, "horizon_s": 60.0},
    }
)


@pytest.fixture(scope="module")
def animation() -> Animation:
    players = {"mine": agents.load("chat-bursty"), "<vllm>": make_policy("vllm-v1"), "fcfs": make_policy("fcfs")}
    return animate(SCENARIO, players, seed=3)


def data_of(animation):
    text = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', animation.page, re.S)
    assert text is not None
    return json.loads(text[1])


def test_a_player_is_left_out_or_has_another_workload(animation):
    data = data_of(animation)
    assert [run["name"] for run in data["runs"]] == ["mine", "<vllm>", "fcfs"]
    assert all(len(run["finish"]) == len(data["arrival"]) > 10 for run in data["runs"])
    wanted = draw_workload(SCENARIO, 3)["prompt_tokens"][: len(data["prompt"])].tolist()
    assert data["prompt"] == wanted


def test_the_frame_holds_another_page_or_gives_it_more_than_its_script(animation):
    frame = animation._repr_html_()
    assert frame.count("<iframe") == 1
    assert re.findall(r'sandbox="([^"]*)"', frame) == ["allow-scripts"]
    assert [html.unescape(text) for text in re.findall(r'srcdoc="([^"]*)"', frame)] == [animation.page]
    assert "http" not in animation.page.replace("http-equiv", "")
    assert "<vllm>" not in animation.page


def test_the_same_arguments_give_another_page(animation, tmp_path):
    players = {"mine": agents.load("chat-bursty"), "<vllm>": make_policy("vllm-v1"), "fcfs": make_policy("fcfs")}
    again = animate(SCENARIO, players, seed=3, requests=draw_workload(SCENARIO, 3))
    assert again == animation
    for _ in range(2):  # a file of that name is replaced
        again.save(tmp_path / "new" / "animation.html")
    assert (tmp_path / "new" / "animation.html").read_text(encoding="utf-8") == again.page


@pytest.mark.parametrize(
    ("count", "requests", "words"),
    [
        (0, slice(None), "players: expected 1 to 6, got 0"),
        (MOST_RUNS + 1, slice(None), "players: expected 1 to 6, got 7"),
        (1, slice(0, 0), "requests: there is none to be seen"),
    ],
)
def test_what_cannot_be_shown_is_badly_explained(count, requests, words):
    players = {str(k): make_policy("fcfs") for k in range(count)}
    with pytest.raises(UserError, match=words):
        animate(SCENARIO, players, 3, draw_workload(SCENARIO, 3)[requests])


def test_the_example_of_the_documentation_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"), re.S)
    exec(compile(example, "docs/report.md", "exec"), {})
    assert (tmp_path / "animation.html").stat().st_size < 100_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_a_frame_in_a_notebook_is_empty_or_complains(animation, tmp_path):
    note = tmp_path / "note.html"
    note.write_text("<!doctype html><meta charset=utf-8><p>a cell</p>" + animation._repr_html_(), encoding="utf-8")
    page = tmp_path / "page.html"
    animation.save(page)
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(page, 1000)
        assert re.match(
            r"[\d.]+ s\. mine: \d+ waiting.* <vllm>: \d+ waiting",
            browser.run("document.querySelector('.said').textContent"),
        )
        assert browser.problems() == []
        browser.open(note, 1000)
        assert browser.run("document.querySelector('iframe').clientHeight") > 600
        assert browser.problems() == []
    finally:
        browser.close()


def test_a_name_is_played_as_a_policy():
    with pytest.raises(UserError, match=r"players: a: expected a compiled policy or an agent .* got 'fcfs'"):
        animate(SCENARIO, {"a": "fcfs"}, 3)
