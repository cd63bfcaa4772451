"""The benchmark of families: results are saved once, and every figure and sentence of the page follows from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.export import MANIFEST
from baselines.search import SEARCH
from benchmarks import families
from benchmarks.families import FAMILIES, PLANNER_SEEDS, REFERENCES, SEEDS, by_length, main, weighted_bound
from benchmarks.family_page import PAGE, FamilyTable, page
from benchmarks.family_results import RESULTS, Kind, Result, load, load_all, path_of, rounded, save
from llm_env.bounds import slo_bound
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario, scenario_names
from llm_env.study import CellResult, Contender, Study
from llm_env.workload import draw_workload

PLANNERS = ("bound:clairvoyant(", "lookahead(")  # labels of those that run on fewer workloads
LUCK = np.random.default_rng(0).uniform(0.6, 0.9, (1, 2, 12))  # (trainings, loads, workloads)


def result(label: str, kind: Kind, gain: float, trainings: int = 1, family: str = "chat", noise: float = 0.0) -> Result:
    """Everywhere `gain` above the luck of the workloads, give or take some noise of its own."""
    own = np.random.default_rng(len(label)).normal(0, noise, (trainings, 1, 12)) if noise else 0.0
    return Result(
        family=family,
        label=label,
        kind=kind,
        settings=label,
        loads=(0.6, 1.0),
        first_seed=2_000_000,
        seeds=12,
        attainment=rounded(np.repeat(LUCK, trainings, axis=0) + gain + own),
        ttft_p99_s=[1.0, 2.0],
        by_length=[1.0, 0.9, 0.8, 0.5],
        training_s=[120.0] * trainings if kind == "agent" else [],
        key="k",
        code="c",
    )


def test_a_saved_result_is_read_back_and_in_its_own_file(tmp_path):
    one = result("sarathi:max_running=8@tuned", "literature", 0.0)
    missing = replace(one, label="x", attainment=[[[None, *one.attainment[0][0][1:]], one.attainment[0][1]]])
    for r in (one, missing):
        save(tmp_path, r)
        assert load(path_of(tmp_path, r.family, r.label)) == r
    assert [r.label for r in load_all(tmp_path, ["nothing", "chat"])] == [one.label, "x"]
    assert missing.scores()[0, 0] == pytest.approx(one.attainment[0][1][0])  # the other load alone


@pytest.mark.parametrize(
    ("old", "new"), [('"seeds": 12', '"seeds": 13'), ('"kind": "agent"', '"kind": "hero"'), ("{", "[")]
)
def test_a_wrong_file_is_one_clear_error(tmp_path, old, new):
    save(tmp_path, result("a", "agent", 0.0))
    path = path_of(tmp_path, "chat", "a")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=r"a\.json"):
        load(path)


def test_winners_are_the_strongest_and_differences_are_paired():
    table = FamilyTable(
        [
            result("fcfs", "literature", -0.5),
            result("sarathi", "literature", -0.3),
            result("adaptive", "reference", 0.0),
            result("moore-hodgson", "reference", -0.01),
            result("agent", "agent", 0.02, trainings=3),
        ]
    )
    assert (table.reference.label, table.literature.label) == ("adaptive", "sarathi")
    found = table.versus(table.agents[0], table.reference)
    assert found.difference == pytest.approx((0.02, 0.0), abs=1e-4)
    assert (found.wins, found.losses, found.verdict) == (12, 0, "wins")
    assert table.versus(table.reference, table.reference) is None


def test_a_planner_that_ran_less_is_compared_with_what_others_did_elsewhere():
    agent, planner = result("agent", "agent", 0.0), result("lookahead", "clairvoyant", 0.08)
    gains = np.where(np.arange(12) < 5, 0.04, -0.4)  # by which it would seem to be far behind
    agent = replace(agent, attainment=rounded(LUCK + gains))
    few = replace(planner, seeds=5, attainment=rounded(LUCK[:, :, :5] + 0.08))
    table = FamilyTable([result("adaptive", "reference", 0.0), agent, few])
    assert table.gap_closed(agent) == pytest.approx(0.5, abs=1e-3)
    assert "*lookahead (sees the future; on 5 workloads)*" in table.text()


def test_the_gap_closed_is_the_share_of_the_way_to_who_sees_the_future():
    table = FamilyTable(
        [
            result("adaptive", "reference", 0.0),
            result("agent", "agent", 0.02),
            result("lookahead", "clairvoyant", 0.08),
            result("any policy", "bound", 0.1),
        ]
    )
    assert table.gap_closed(table.agents[0]) == pytest.approx(0.25, abs=1e-3)
    text = table.text()
    row = next(line for line in text.splitlines() if line.startswith("| **agent**"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    ceiling = 100 * (LUCK.mean() + 0.02) / (LUCK.mean() + 0.1)
    assert cells[1].startswith(f"{100 * (LUCK.mean() + 0.02):.1f} ±")
    assert cells[2:] == ["+2.00 ±0.00", "-", "1.5", "100 90 80 50", f"{ceiling:.1f}", "25.0"]


def test_the_page_says_where_learning_wins_ties_and_loses():
    results = []
    for family, gain, noise in (("a", 0.02, 0.0), ("b", 0.0, 0.03), ("c", -0.02, 0.0)):
        results += [
            result("adaptive", "reference", 0.0, family=family),
            result("orca", "literature", -0.4, family=family),
        ]
        results.append(result("agent", "agent", gain, trainings=2, family=family, noise=noise))
        results.append(result("lookahead", "clairvoyant", 0.03 if family == "a" else 0.0, family=family))
    text = page(results)
    assert "**Learning wins** against the strongest tuned reference: `agent` in a (+2.00 ±0.00 to `adaptive`)." in text
    assert "**It ties** (the interval holds zero): `agent` in b (" in text
    assert "**It loses**: `agent` in c (-2.00 ±0.00 to `adaptive`)." in text
    found = "A planner that sees the future, with its base and its changes, finds no headroom"
    assert f"{found}: b (+0.00 ±0.00); c (+0.00 ±0.00)." in text
    assert text == page(results)
    assert "| agent | 2 |" in text
    assert "2.0 min" in text


def test_without_agents_the_page_says_so():
    text = page([result("adaptive", "reference", 0.0), result("orca", "literature", -0.4)])
    assert "No agent's results are saved yet" in text
    assert "wins" not in text


def test_a_policy_that_has_been_tuned_since_is_shown_tuned_alone():
    results = [
        result("orca", "literature", 0.1),
        result("orca@tuned", "literature", 0.0),
        result("fcfs", "literature", 0),
    ]
    assert [r.label for r in FamilyTable(results).rivals] == ["fcfs", "orca@tuned"]


def test_an_agent_that_is_not_above_literature_is_named():
    results = [result("adaptive", "reference", -0.5), result("orca", "literature", 0.1), result("agent", "agent", 0.0)]
    assert "`agent` in chat (-10.00 ±0.00 to `orca`, literature)" in page(results)


def test_quarters_are_of_the_measured_prompts_by_length():
    scenario = load_scenario("chat-bursty")
    start = scenario.episode.warmup_s
    requests = {
        "arrival_s": np.array([start - 1] + [start + k for k in range(8)]),
        "prompt_tokens": np.array([9999, 1, 2, 3, 4, 5, 6, 7, 8]),
        "slo_met": np.array([False, True, True, True, False, True, False, False, False]),
    }
    cell = CellResult(0.8, "x", 0, {}, requests, np.zeros((0, 2)), np.zeros(0), {})
    assert by_length(cell, scenario).tolist() == [1.0, 0.5, 0.5, 0.0]


def test_the_bound_by_weight_is_the_bound_where_weights_are_equal():
    scenario = load_scenario("chat-bursty", ["episode.arrivals_s=30.0"])
    requests = draw_workload(scenario, 2_000_000)
    assert weighted_bound(requests, scenario) == slo_bound(requests, scenario).share
    heavy = requests.copy()
    heavy["weight"][::2] = 3.0
    parts = [slo_bound(heavy[heavy["weight"] == w], scenario) for w in (1.0, 3.0)]
    expected = (parts[0].num_met + 3 * parts[1].num_met) / (parts[0].num_requests + 3 * parts[1].num_requests)
    assert weighted_bound(heavy, scenario) == pytest.approx(expected)


def test_a_shipped_agent_that_changes_keeps_its_saved_result(tmp_path, monkeypatch):
    study = Study(load_scenario("chat-bursty"), (), (0.6,), (0, 1))
    keys = []
    for weights in (b"old", b"new"):
        folder = tmp_path / weights.decode() / "mine"
        folder.mkdir(parents=True)
        for name in (MANIFEST, "agent.safetensors"):
            (folder / name).write_bytes(weights)
        monkeypatch.setattr("agents.shipped._home", lambda home=folder.parent: home)
        keys.append(families.result_key(study, families.Rival("a", "agent", "mine", (Contender("a", "", (), "mine"),))))
    assert keys[0] != keys[1]


def test_what_is_saved_is_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(families.FAMILIES, "chat-bursty", (0.6,))
    arguments = ["--families", "chat-bursty", "--policies", "sarathi", "--processes", "1"]
    arguments += ["--results", str(tmp_path), "--page", str(tmp_path / "page.md")]
    assert main([*arguments, "--seeds", "2"]) == 0
    path = path_of(tmp_path, "chat-bursty", "sarathi")
    first = load(path)
    assert first.kind == "literature"
    assert np.array(first.attainment).shape == (1, 1, 2)
    written, text = path.stat().st_mtime_ns, (tmp_path / "page.md").read_text()
    assert "sarathi (literature)" in text
    assert main([*arguments, "--seeds", "2"]) == 0
    assert path.stat().st_mtime_ns == written
    assert main([*arguments, "--seeds", "3"]) == 0
    assert load(path).attainment[0][0][:2] == first.attainment[0][0]
    assert load(path).key != first.key
    capsys.readouterr()
    assert main([*arguments[:3], "nobody", *arguments[4:]]) == 2
    assert "unknown policy" in capsys.readouterr().err


def test_the_shipped_page_is_that_of_the_shipped_results():
    results = list(load_all(RESULTS, list(FAMILIES)))
    if not results:
        pytest.skip("no results are saved")
    assert PAGE.read_text(encoding="utf-8") == page(results)


def test_shipped_results_are_of_reported_seeds():
    for one in load_all(RESULTS, list(FAMILIES)):
        assert one.first_seed >= 2_000_000
        assert one.seeds >= (PLANNER_SEEDS if one.label.startswith(PLANNERS) else SEEDS)


def test_references_are_policies_and_results_of_families_lie_where_they_are_looked_for():
    assert set(REFERENCES) <= set(SEARCH)
    assert {p.name for p in Path(RESULTS).iterdir() if p.is_dir()} <= set(FAMILIES)
    assert "chat-bursty" in scenario_names()
