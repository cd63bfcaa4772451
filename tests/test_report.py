"""report.html: it says what the numbers say and no more, loads nothing, and is the same bytes each time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from llm_env.aggregate import AVERAGED, aggregate
from llm_env.config import scenario_from_dict
from llm_env.dtypes import SLO_RULES
from llm_env.metrics import Interval
from llm_env.report import figures
from llm_env.report.markup import Axis, number, plus_minus, shortened, spread, steps
from llm_env.report.page import report
from llm_env.report.story import cast_of, headline, headline_load, told_points, verdict
from llm_env.study import CellResult, Contender, Study, baseline_contender, run_study, sort_cells

RESULTS = {"git_commit": "0123abc", "versions": {"python": "3.11.0", "numpy": "2.0"}}
COMMAND = ["python", "evaluate.py", "--seeds", "3"]
HOSTILE = "</script><script>alert('1')</script>\"<!--&\x00"
SCENARIO = scenario_from_dict(
    {
        "name": "short",
        "system": {"kv": {"blocks": 1200}},
        "workload": {"load": 0.8, "arrivals": {"kind": "mmpp2"}},
        "episode": {"arrivals_s": 20.0, "warmup_s": 4.0, "horizon_s": 60.0},
    }
)


def contender(label: str, agent: bool = False, ahead: str = "") -> Contender:
    return Contender(label, "" if agent else "sarathi", (), "folder" if agent else "", ahead=ahead)


def told(attainment: dict[str, list[float]], agents: tuple[str, ...] = (), loads: tuple[float, ...] = (0.8,)):
    """The headline of a study in which these shares of promises were kept, workload by workload."""
    names = tuple(contender(name, name in agents) for name in attainment)
    seeds = tuple(range(len(next(iter(attainment.values())))))
    study = Study(SCENARIO, names, loads, seeds)
    cells = []
    for load in loads:
        for name, shares in attainment.items():
            for seed, share in zip(seeds, shares, strict=True):
                summary = dict.fromkeys(AVERAGED, 1.0) | {f"slo_attainment_{rule}": share for rule in SLO_RULES}
                summary |= {"num_requests": 50, "unstable": False}
                empty = np.zeros(0)
                cells.append(CellResult(load, name, seed, summary, {}, empty, empty, {}))
    rows = aggregate(study, cells)
    return headline(study, rows, cells, cast_of(study, rows, headline_load(study)))


# ---- the headline --------------------------------------------------------------------------------------------------
def test_an_agent_whose_interval_leaves_zero_out_leads():
    found = told({"agent:a": [0.80, 0.82, 0.81], "x": [0.7, 0.73, 0.71], "y": [0.1, 0.1, 0.2]}, ("agent:a",))
    assert found.verdict == "leads"
    assert found.sentence == (
        "agent:a keeps 81.0 % of its promises at load 0.8, 9.7 ±1.4 points more than the best baseline, x"
        " (paired over 3 workloads)."
    )


def test_an_agent_whose_interval_holds_zero_ties_and_is_not_said_to_lead():
    found = told({"agent:a": [0.9, 0.7, 0.8], "x": [0.8, 0.75, 0.8]}, ("agent:a",))
    assert found.verdict == "ties"
    assert "ties with the best baseline, x" in found.sentence
    assert "more" not in found.sentence


def test_an_agent_that_loses_is_said_to_keep_fewer():
    found = told({"agent:a": [0.6, 0.61, 0.62], "x": [0.8, 0.8, 0.82]}, ("agent:a",))
    assert found.verdict == "trails"
    assert "19.7 ±1.4 points fewer than the best baseline, x" in found.sentence


def test_one_workload_gives_no_verdict():
    found = told({"agent:a": [0.9], "x": [0.1]}, ("agent:a",))
    assert found.verdict == ""
    assert found.sentence.endswith("x, keeps 10.0 %: on 1 workload there is no interval, so no verdict.")


def test_without_agents_the_best_baseline_is_compared_with_the_second():
    found = told({"low": [0.1, 0.12, 0.1], "second": [0.5, 0.52, 0.51], "first": [0.7, 0.7, 0.71]})
    assert found.sentence.startswith("first, the best baseline here, keeps 70.3 % of its promises at load 0.8, 19.3 ±")
    assert "the second-best baseline, second (paired" in found.sentence


def test_one_contender_alone_is_compared_with_nobody():
    assert (
        told({"only": [0.5, 0.6]}).sentence == "only, the best baseline here, keeps 55.0 % of its promises at load 0.8."
    )


def test_equal_contenders_tie():
    assert told({"agent:a": [0.5, 0.5], "x": [0.5, 0.5]}, ("agent:a",)).verdict == "ties"


def test_the_headline_is_of_the_highest_load_up_to_one_and_the_others_are_told_beside_it():
    found = told({"agent:a": [0.8, 0.82], "x": [0.7, 0.73]}, ("agent:a",), (0.6, 1.0, 1.4))
    assert "at load 1," in found.sentence
    assert [text.split(" it ")[0] for text in found.others] == ["At load 0.6", "At load 1.4"]


def test_a_contender_that_knows_the_future_is_never_the_best():
    names = (contender("x"), contender("bound:clairvoyant(x)", ahead="clairvoyant"))
    study = Study(SCENARIO, names, (0.8,), (0, 1))
    cells = []
    for name, share in (("x", 0.5), ("bound:clairvoyant(x)", 0.9)):
        for seed in (0, 1):
            summary = dict.fromkeys(AVERAGED, 1.0) | {f"slo_attainment_{rule}": share for rule in SLO_RULES}
            summary |= {"num_requests": 50, "unstable": False}
            cells.append(CellResult(0.8, name, seed, summary, {}, np.zeros(0), np.zeros(0), {}))
    cast = cast_of(study, aggregate(study, cells), 0.8)
    assert (cast.reference, cast.ranked, cast.bounds) == ("x", ("x",), ("bound:clairvoyant(x)",))


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(0.1, 0.1), "ties"),
        (Interval(0.0, 0.0), "ties"),
        (Interval(0.1, 0.09), "leads"),
        (Interval(-0.1, 0.09), "trails"),
        (Interval(0.5, math.nan), ""),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(interval, word):
    assert verdict(interval) == word


def test_a_difference_shows_on_which_side_of_its_interval_zero_lies():
    assert told_points(Interval(-0.0142, 0.0138)) == "−1.42 ±1.38"
    assert told_points(Interval(-0.042, 0.013)) == "−4.2 ±1.3"
    assert told_points(Interval(0.011814, 0.011786)) == "+1.181 ±1.179"
    assert told_points(Interval(0.0, 0.0)) == "0.0 ±0.0"


# ---- the page ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def made() -> tuple[Study, list[CellResult]]:
    names = tuple(baseline_contender(spec) for spec in ("sarathi:slo", "moore-hodgson", "vllm-v1"))
    study = Study(SCENARIO, names, (0.6, 0.9), (2_000_000, 2_000_001, 2_000_002))
    cells = [cell for _, _, new in run_study(study, 1) for cell in new]
    return study, sort_cells(study, cells)


def written(study: Study, cells: list[CellResult]) -> str:
    return report(study, aggregate(study, cells), cells, RESULTS, COMMAND)


@pytest.fixture(scope="module")
def page(made) -> str:
    return written(*made)


class Reader(HTMLParser):
    """Checks that tags are closed in order, and collects text, ids, links and attributes."""

    VOID = frozenset({"meta", "br", "input"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def test_every_tag_is_closed_and_every_link_leads_to_a_section(page):
    read = Reader(page)
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = {value.removeprefix("#") for tag, name, value in read.attributes if (tag, name) == ("a", "href")}
    assert links <= set(ids)
    assert {"table", "load", "waiting", "differences", "prompts", "time", "run"} <= set(ids)


def test_no_number_is_missing_in_text_or_drawing(page):
    read = Reader(page)
    shown = " ".join([*read.texts, *(value for _, _, value in read.attributes)])
    assert not re.search(r"\b(nan|NaN|inf|Infinity|None|undefined)\b", shown)


def test_nothing_is_loaded_and_nothing_styled_or_run_past_the_policy(page):
    assert "http" not in page.replace("http-equiv", "")
    read = Reader(page)
    assert not [entry for entry in read.attributes if entry[1] == "style" or entry[1].startswith("on")]
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(read.seen)


def test_the_policy_names_what_is_in_the_page(page):
    policy = next(value for _, name, value in Reader(page).attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    inside = re.findall(r"<style>(.*?)</style>|<script>(.*?)</script>", page, re.S)
    there = {base64.b64encode(hashlib.sha256("".join(each).encode()).digest()).decode() for each in inside}
    assert allowed == there


def test_the_same_study_gives_the_same_bytes(made, page):
    assert written(*made) == page


def test_every_picture_says_in_words_what_it_shows(page):
    pictures = re.findall(r'<svg viewBox="0 0 480[^>]*role="img".*?</svg>', page, re.S)
    assert len(pictures) >= 12
    for picture in pictures:
        assert re.search(r"<title>\S.*?</title><desc>\S.*?</desc>", picture)


def test_a_hostile_name_is_text_and_nothing_else(made):
    study, cells = made
    names = tuple(c._replace(label=HOSTILE) if c.label == "vllm-v1" else c for c in study.contenders)
    changed = [replace(c, contender=HOSTILE) if c.contender == "vllm-v1" else c for c in cells]
    text = report(
        replace(study, contenders=names),
        aggregate(replace(study, contenders=names), changed),
        changed,
        RESULTS,
        [*COMMAND, HOSTILE],
    )
    read = Reader(text)
    assert "alert('1')" in " ".join(read.texts)
    for script in re.findall(r"<script[^>]*>(.*?)</script>", text, re.S):
        assert "alert('1')</script>" not in script
    assert text.count("<script>alert") == 0
    assert "\x00" not in text


def test_one_load_has_no_figure_over_loads(made):
    study, cells = made
    one = replace(study, loads=(0.9,))
    text = written(one, [c for c in cells if c.load == 0.9])
    assert 'id="load"' not in text
    assert 'id="waiting"' in text


def test_one_contender_and_one_workload_still_make_a_report(made):
    study, cells = made
    alone = replace(study, contenders=study.contenders[1:2], loads=(0.9,), seeds=study.seeds[:1])
    kept = [c for c in cells if c.load == 0.9 and c.contender == "moore-hodgson" and c.seed == study.seeds[0]]
    text = written(alone, kept)
    Reader(text)
    assert 'id="differences"' not in text


def test_figures_of_the_table_are_those_of_the_rows(made, page):
    study, cells = made
    row = next(r for r in aggregate(study, cells) if r.load == 0.9 and r.contender == "moore-hodgson")
    cell = plus_minus(100 * row.headline.mean, 100 * row.headline.half_width)
    assert f"<td>{cell}<svg" in page


def test_only_measured_requests_are_counted_by_prompt_length(made):
    study, cells = made
    for cell in cells:
        assert figures.measured(study, cell).sum() == cell.summary["num_requests"]


# ---- the parts -----------------------------------------------------------------------------------------------------
def test_numbers_have_a_true_minus_and_no_minus_zero():
    assert [number(-1.26), number(-0.01), number(2, 0, True), number(math.nan)] == ["−1.3", "0.0", "+2", "–"]


def test_places_are_kept_apart_within_the_ends_and_in_order():
    placed = spread([50, 10, 11, 12, 99], 10, 0, 100)
    order = np.argsort([50, 10, 11, 12, 99])
    assert (np.diff(np.array(placed)[order]) >= 10 - 1e-9).all()
    assert min(placed) >= 0
    assert max(placed) <= 100
    assert spread([20.0, 60.0], 10, 0, 100) == [20.0, 60.0]


@pytest.mark.parametrize("high", [0.003, 0.9, 1.0, 17, 100, 2048, 54_321])
def test_ticks_are_few_and_reach_the_highest_value(high):
    ticks = steps(high)
    assert ticks[0] == 0
    assert ticks[-1] >= high * (1 - 1e-9)
    assert 3 <= len(ticks) <= 6


def test_an_axis_cuts_what_lies_outside():
    assert [Axis(1, 100, 0, 200, log=True)(v) for v in (0, 1, 10, 1e9)] == pytest.approx([0, 0, 100, 200])


def test_a_long_name_keeps_its_ends():
    assert shortened("agent:a-very-long-name-7") == "agent:a-very…me-7"


def test_evaluate_leaves_a_report_of_the_same_bytes_on_a_rerun(tmp_path: Path):
    from llm_env.evaluation import main

    arguments = ["--scenario", "chat", "--agents", "chat-bursty", "--baselines", "sarathi:slo", "--seeds", "2"]
    arguments += ["--change", "episode.arrivals_s=20", "--processes", "1", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    first = (tmp_path / "out" / "report.html").read_bytes()
    assert main(arguments) == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == first
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert f"{100 * max(row['slo_attainment_p99'] for row in rows):.1f} %" in first.decode().replace("\u00a0", " ")
