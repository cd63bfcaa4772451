"""The command line: each mistake is one clear error with its exit code and nothing written; output fits the page."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from baselines import POLICIES
from llm_env.cli import main
from llm_env.dtypes import ROUTERS
from llm_env.scenarios import scenario_names

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "day1.csv"
    path.write_text(HEADER + "0.5,100,20\n0.75,200,10\n1.5,50,5\n")
    return path


def failure(arguments, capsys):
    """Exit code and the one line of an error; nothing on stdout."""
    code = main(["simulate", *map(str, arguments)])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return code, line


# ---- mistakes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("arrival_s,prompt_tokens,output_tokens,day\n1,2,3,4\n", ":1:4: ", '"day"'),
        (HEADER + "0.5,100,20\n0.75,-5,10\n", ":3:2: prompt_tokens: ", '"-5"'),
        (HEADER + "nan,100,20\n", ":2:1: arrival_s: ", '"nan"'),
        ("", ":1:1: ", "empty"),
        (HEADER + "2e9,100,20\n", ": arrival_s: ", "less than 1e+09"),
    ],
)
def test_a_wrong_trace_is_run_or_badly_explained(tmp_path, capsys, text, place, words):
    path, out = tmp_path / "day1.csv", tmp_path / "out"
    path.write_text(text)
    code, line = failure(["--trace", path, "--out", out], capsys)
    assert (code, line.startswith(f"error: {path}{place}"), words in line) == (2, True, True), line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "give --trace FILE or --scenario NAME"),
        ("--scenario chta", 'scenario: unknown name "chta" (did you mean "chat"?)'),
        ("--scenario chat --policy sarati", "unknown policy 'sarati' (did you mean 'sarathi'?)"),
        (
            "--scenario chat --set budget=5",
            "unknown parameter 'budget'; it has: token_budget, max_running",
        ),
        ("--scenario chat --set token_budget=0", "policy sarathi: token_budget: expected"),
        ("--scenario chat --set token_budget=many", "got 'many'"),
        ("--scenario chat --set token_budget", "expected key=value, got 'token_budget'"),
        ("--scenario chat --set token_budget=1 --set token_budget=2", "given twice"),
        ("--scenario chat --policy fcfs --set a=1", "it has: none"),
        ("--scenario chat --set max_running=4096", "expected at most 128, the slots of a worker"),
        ("--scenario chat --seed -1", "--seed: expected an integer from 0"),
        ("--scenario chat --seed 1.5", "--seed: expected an integer from 0"),
        ("--scenario chat --seed 1_0", "--seed: expected an integer from 0"),
        ("--scenario chat --kv-blocks 0", "--kv-blocks: expected an integer from 1"),
        ("--scenario chat --kv-watermark 1", "--kv-watermark: expected a number from 0"),
        ("--scenario chat --workers 65", "--workers: expected an integer from 1 to 64, got '65'"),
        ("--scenario chat --load nan", "--load: expected a number above 0"),
        ("--scenario chat --load 0", "--load: expected a number above 0"),
        ("--scenario chat --tbt-ms inf", "--tbt-ms: expected a number above 0"),
        ("--scenario chat --service 1,2", "service: expected setup_ms,per_token_ms,free_tokens"),
        ("--scenario chat --service llama", 'service: unknown name "llama"'),
        ("--scenario chat --service 0,0,1", "service: "),
        ("--scenario chat --time-scale 2", "--time-scale: only for a --trace"),
        ("--trace DAY --load 1", "--load: only for a --scenario"),
        ("--trace DAY --time-scale 0", "--time-scale: expected a number above 0"),
        ("--trace DAY --time-scale 1e9", "arrival_s: expected less than 1e+09 s"),
        ("--trace DAY --change workload.load=0.1", "workload.load: a trace brings its own traffic"),
        ("--scenario chat --polic fcfs", "unrecognized arguments"),
        ("--scenario chat --out", "--out: expected one argument"),
    ],
)
def test_a_wrong_argument_is_taken_or_badly_explained(trace, tmp_path, capsys, arguments, words):
    out = tmp_path / "out"
    given = arguments.replace("DAY", str(trace)).split()
    code, line = failure([*(["--out", out] if "--out" not in given else []), *given], capsys)
    assert (code, words in line) == (2, True), line
    assert not out.exists()


def test_every_problem_of_a_trace_is_told_without_error_before_it(tmp_path, capsys):
    path = tmp_path / "day1.csv"
    path.write_text(HEADER + "0.5,-1,0\n" * 2)
    assert main(["simulate", "--trace", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("error: ") for line in lines)


def test_a_missing_file_is_not_an_input_failure(tmp_path, capsys):
    for arguments in (["--trace", tmp_path / "no.csv"], ["--scenario", tmp_path / "no.toml"]):
        code, line = failure(arguments, capsys)
        assert (code, str(arguments[1]) in line) == (3, True), line


def test_a_file_is_taken_for_the_output_folder(trace, tmp_path, capsys):
    file = tmp_path / "results"
    file.write_text("mine")
    for out in (file, file / "below"):
        code, line = failure(["--trace", trace, "--out", out], capsys)
        assert (code, str(out) in line) == (3, True), line
    assert file.read_text() == "mine"
    folder = tmp_path / "taken"
    (folder / "summary.json").mkdir(parents=True)
    assert failure(["--trace", trace, "--out", folder], capsys)[0] == 3
    assert [path.name for path in folder.iterdir()] == ["summary.json"]


def test_an_unwritable_folder_is_found_after_the_run(trace, tmp_path, capsys, monkeypatch):
    def run(*_):
        raise AssertionError("it ran")

    monkeypatch.setattr("llm_env.cli.simulate", run)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    outs = [locked, locked / "new"]
    if os.geteuid() == 0:  # root may write anywhere but there
        outs = ["/proc/new/deeper"]
    for out in outs:
        code, line = failure(["--trace", trace, "--out", out], capsys)
        assert (code, str(out) in line) == (3, True), line
    assert list(locked.iterdir()) == []


def test_no_command_is_a_traceback(capsys):
    for arguments in ([], ["simulat"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_python_m_llm_env_differs_from_main():
    command = [sys.executable, "-m", "llm_env", "simulate", "--scenario", "chta"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith('error: scenario: unknown name "chta"')


def test_a_reader_who_has_seen_enough_is_an_error():
    command = f"{sys.executable} -m llm_env simulate --list-policies | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["fcfs", "0"], "")


# ---- what is printed -----------------------------------------------------------------------------------------------
def test_the_summary_is_too_wide_or_lacks_a_number(trace, capsys):
    assert main(["simulate", "--trace", str(trace), "--policy", "fcfs", "--time-scale", "2"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for words in ("fcfs", "TTFT", "TBT (every gap)", "SLO met, rule p99 (%)", "utilisation (%)", "seed 0", str(trace)):
        assert words in text
    assert "\x1b" not in text, "colours outside a terminal"


def test_the_summary_as_json_is_no_json(trace, capsys):
    arguments = ["--policy", "moore-hodgson", "--set", "margin=1.5", "max_running=64", "--set", "token_budget=slo"]
    assert main(["simulate", "--trace", str(trace), "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == {"token_budget": "slo", "max_running": 64, "margin": 1.5, "chunk_tokens": 0}
    assert found["summary"]["finished"] == 3
    assert found["summary"]["kv_used_max"] is None


def test_a_flag_does_not_override_the_scenario(capsys):
    found = {}
    for flags in ((), ("--load", "0.2"), ("--workers", "2"), ("--service", "llama3-8b-a100x1"), ("--tbt-ms", "60")):
        assert main(["simulate", "--scenario", "chat", "--json", *flags]) == 0
        found[flags] = json.loads(capsys.readouterr().out)["summary"]
    assert len({json.dumps(summary) for summary in found.values()}) == len(found)
    assert found["--load", "0.2"]["num_requests"] < found[()]["num_requests"]


def test_the_lists_are_too_wide_or_incomplete(capsys):
    assert main(["simulate", "--list-policies", "--list-scenarios"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert {*POLICIES, *scenario_names(), "service presets", "routing rules"} <= set(lines)
    listed = {line.split()[0] for line in lines[lines.index("routing rules") :] if line.strip()}
    assert {rule for rule in ROUTERS if rule != "agent"} <= listed
    assert '  --set token_budget=512  (int or "slo")' in lines
    assert sum(line.startswith("  Source: ") for line in lines) >= 8
    assert sum(line.startswith("  Rule: ") for line in lines) == len(POLICIES)


def test_a_letter_that_the_terminal_lacks_is_a_traceback(trace, tmp_path, monkeypatch):
    path = tmp_path / "día.csv"
    path.write_text(trace.read_text())
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["simulate", "--trace", str(path)]) == 0
    sys.stdout.flush()
    assert b"TTFT" in raw.getvalue()
