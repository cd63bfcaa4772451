"""`python -m llm_env workload fit`: what it prints, writes and refuses, and how close it comes to real traces."""

import json
from typing import Any

import numpy as np
import pytest

from llm_env.cli import main
from llm_env.config import MAX_TOKENS, CoxArrivals, WorkloadSettings, read_scenario, scenario_to_toml, with_changes
from llm_env.errors import UserError
from llm_env.files import write_csv
from llm_env.scenarios import load_scenario
from llm_env.workload.fit_sessions import fit_sessions, turns_of
from llm_env.workload.fit_trace import fit_trace
from llm_env.workload.generate import draw_traffic
from llm_env.workload.traffic import Traffic

LIMIT = 0.35  # of the dispersion: what the fit promises for the traces below
GOOD_KS = 0.05


def drawn(seconds: float = 1200.0, changes: dict[str, Any] | None = None) -> Traffic:
    scenario = with_changes(
        load_scenario("chat"),
        {"workload.rate_per_s": 4.0, "episode.arrivals_s": seconds, "episode.horizon_s": seconds, **(changes or {})},
    )
    return draw_traffic(scenario, 0)


def written(path, traffic: Traffic):
    columns = {"arrival_s": traffic.arrival_s, "prompt_tokens": traffic.prompt_tokens}
    columns["output_tokens"] = traffic.output_tokens
    if traffic.session is not None:
        columns["session"] = traffic.session
    write_csv(path, columns)
    return str(path)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    cox = CoxArrivals(sigma=0.5, tau_s=30.0).model_dump()
    return written(tmp_path_factory.mktemp("fit") / "My Trace.csv", drawn(changes={"workload.arrivals": cox}))


def run(*arguments) -> int:
    return main(["workload", "fit", *map(str, arguments)])


def test_a_fitted_scenario_is_incomplete_or_hides_where_it_comes_from(trace, tmp_path, capsys):
    out = tmp_path / "fitted.toml"
    assert run(trace, "--out", out, "--base", "code") == 0
    printed = capsys.readouterr().out
    for word in ("held back", "poisson", "gamma", "cox", "worst", "KS", "peak to mean", "rank correlation"):
        assert word in printed
    scenario, base = read_scenario(out), load_scenario("code")
    assert scenario.name == "my-trace"
    assert (scenario.system, scenario.slo, scenario.episode) == (base.system, base.slo, base.episode)
    assert scenario.workload.load is None
    assert scenario.workload.rate_per_s == pytest.approx(4.0, rel=0.2)
    assert "My Trace.csv" in scenario.source
    assert "every second block of 60 s" in scenario.source
    assert "KS distance" in scenario.source
    assert draw_traffic(scenario, 0).size > 0


def test_the_same_trace_gives_other_bytes(trace, tmp_path, capsys):
    for name in ("a", "b"):
        assert run(trace, "--out", tmp_path / f"{name}.toml", "--json") == 0
    assert (tmp_path / "a.toml").read_bytes() == (tmp_path / "b.toml").read_bytes()
    one, two = capsys.readouterr().out.split("\n}\n")[:2]
    assert one == two
    data = json.loads(one + "\n}")
    assert {row["name"] for row in data["arrivals"]} >= {"poisson", "gamma", "weibull", "cox"}
    assert sum(row["chosen"] for row in data["arrivals"]) == 1


def test_a_file_is_replaced_without_being_told_to(trace, tmp_path, capsys):
    out = tmp_path / "there.toml"
    out.write_text("mine")
    assert run(trace, "--out", out) == 2
    assert "there.toml: exists already; --overwrite replaces it" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert (
        run(trace, "--out", out, "--overwrite", "--name", "other", "--holdout", "last", "--lengths", "lognormal") == 0
    )
    scenario = read_scenario(out)
    assert (scenario.name, scenario.workload.prompt.kind) == ("other", "lognormal")
    assert "the last 30 % of the time" in scenario.source


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "fitted.txt"), "ends with .toml"),
        (("--base", "nothing"), 'unknown name "nothing"'),
        (("--name", "No Name"), "name"),
        (("--sessions",), "column session"),
        (("--block-s", "600"), "expected at least 4"),
    ],
)
def test_wrong_arguments_do_not_end_with_a_line_that_says_why(trace, arguments, words, capsys):
    assert run(trace, *arguments) == 2
    assert words in capsys.readouterr().err


def test_a_base_whose_users_wait_for_answers_gets_a_rate(trace, tmp_path, capsys):
    closed = tmp_path / "closed.toml"
    scenario = load_scenario("chat", ['workload.arrivals={kind="closed-loop"}'])
    closed.write_text(scenario_to_toml(scenario), encoding="utf-8")
    assert run(trace, "--base", closed) == 2
    assert "has users who wait for answers" in capsys.readouterr().err


def test_times_on_ticks_are_fitted_as_they_are(tmp_path, capsys):
    traffic = drawn()
    ticks = traffic._replace(arrival_s=np.floor(traffic.arrival_s / 3.0) * 3.0)
    path = written(tmp_path / "ticks.csv", ticks)
    assert run(path) == 2
    assert "--tick-s 3" in capsys.readouterr().err
    assert run(path, "--tick-s", "3") == 0


# ---- sessions ------------------------------------------------------------------------------------------------------
MORE = (0.4, 0.6, 0.7)
SESSIONS = {"more_turns": MORE, "think_s": 20.0, "think_sigma": 0.5, "max_context_tokens": 100_000}
SHORT = {"kind": "lognormal", "mu": 4.0, "sigma": 0.5}


def test_sessions_do_not_come_back():
    # 16,000 requests in about 8,000 sessions; the ends of the trace cut some of those that think 20 s
    traffic = drawn(4000.0, {"workload.sessions": SESSIONS, "workload.prompt": SHORT, "workload.output": SHORT})
    found = fit_sessions(turns_of(traffic))
    assert found.more_turns is not None
    for k, p in enumerate(MORE):
        # 0.02 for cut sessions, and five deviations of a share of those that got so far
        reached = 8000 * np.prod(MORE[:k])
        assert found.more_turns[k] == pytest.approx(p, abs=0.02 + 5 * np.sqrt(p * (1 - p) / reached))
    assert found.think_s == pytest.approx(20.0, rel=0.05)
    assert found.think_sigma == pytest.approx(0.5, rel=0.05)


def test_a_trace_of_sessions_gives_a_scenario_without_them(tmp_path):
    traffic = drawn(1500.0, {"workload.sessions": SESSIONS, "workload.prompt": SHORT, "workload.output": SHORT})
    path, out = written(tmp_path / "chats.csv", traffic), tmp_path / "chats.toml"
    assert run(path, "--sessions", "--out", out) == 0
    workload = read_scenario(out).workload
    assert workload.sessions is not None
    assert workload.sessions.first_prompt is not None
    assert workload.rate_per_s == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("blocks", ["fitted", "held back"])
def test_a_context_longer_than_settings_allow_or_held_back_is_passed_on(blocks):
    # four requests a second in sessions of two turns, one of them with a prompt as long as possible
    n, first = 4000, np.arange(4000) % 2 == 0
    arrival_s = np.sort(np.random.default_rng(0).uniform(0.0, 1000.0, n))
    prompt, output = np.where(first, 100, 250), np.full(n, 50)
    start_s = arrival_s[first] - arrival_s[0]
    part = start_s % 120.0 >= 60.0 if blocks == "held back" else (start_s % 120.0 < 60.0) & (start_s > 0)
    prompt[2 * np.flatnonzero(part)[5] + 1] = MAX_TOKENS  # of the second turn
    traffic = Traffic(arrival_s, prompt, output, session=np.arange(n) // 2)
    sessions = fit_trace(traffic, sessions=True).workload.sessions
    assert sessions is not None
    assert sessions.max_context_tokens == (300 if blocks == "held back" else MAX_TOKENS)


def test_sessions_of_one_turn_are_fitted():
    traffic = drawn()._replace(session=np.arange(drawn().size))
    with pytest.raises(UserError, match="no session has a second turn"):
        turns_of(traffic)


# ---- real traces ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["conv", "code"])
def test_generated_traffic_is_not_as_bursty_or_as_long_as_what_was_held_back(name, shared, capsys):
    path = shared / "traces" / "public" / f"azure2023_{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    assert run(path, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    chosen = next(row for row in data["arrivals"] if row["chosen"])
    for generated, held in zip(chosen["dispersion"], data["measured"]["held"], strict=True):
        assert abs(generated / held - 1) <= LIMIT
    for plain in ("poisson", "gamma"):
        row = next(row for row in data["arrivals"] if row["name"] == plain)
        assert row["worst_error"] > 0.9  # neither knows anything of minutes
    for rows in data["lengths"].values():
        assert next(row["held_ks"] for row in rows if row["chosen"]) <= GOOD_KS
    for which in ("prompts", "outputs"):
        assert data["figures"][f"KS distance of {which}"][1] <= GOOD_KS
    assert WorkloadSettings.model_validate(data["scenario"]["workload"]).rate_per_s is not None
