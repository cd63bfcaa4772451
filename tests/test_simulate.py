"""One run and its files: exact columns and bytes, all or nothing, and the reference runs through the command line."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

import llm_env.cli
from llm_env.cli import main
from llm_env.config import Scenario, read_scenario, with_changes
from llm_env.errors import UserError
from llm_env.files import staged_folder, write_csv
from llm_env.simulate import FILES, batch_columns, request_columns, simulate
from llm_env.validation_references import REFERENCES
from llm_env.workload import blank_requests, draw_workload, read_trace

NOISY = """
name = "noisy"
[system]
workers = 2
[system.service]
setup_noise = "exponential"
[workload]
rate_per_s = 2.0
[episode]
arrivals_s = 20.0
warmup_s = 2.0
horizon_s = 25.0
"""


def read_columns(path):
    """Column name -> texts, and nothing is guessed."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())


def floats(texts):
    return np.array([float(text) if text else math.nan for text in texts])


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.toml"
    path.write_text(NOISY)
    return str(path)


# ---- files ---------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_other_bytes_or_another_seed_the_same(noisy, tmp_path):
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["simulate", "--scenario", noisy, "--seed", seed, "--out", str(tmp_path / out)]) == 0
    for name in FILES:
        a, b, c = ((tmp_path / out / name).read_bytes() for out in "abc")
        assert a == b, name
        assert name == "scenario.toml" or a != c, name
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)


@pytest.mark.nojit
def test_a_run_in_place_is_another_run_or_holds_the_requests_twice(noisy):
    scenario = read_scenario(noisy)
    given, handed_over = draw_workload(scenario, 3), draw_workload(scenario, 3)
    copied = simulate(scenario, given, "vllm-v1", seed=3).requests
    in_place = simulate(scenario, handed_over, "vllm-v1", seed=3, in_place=True).requests
    assert given.tobytes() == draw_workload(scenario, 3).tobytes()
    assert in_place.tobytes() == copied.tobytes()
    assert np.shares_memory(in_place, handed_over)
    assert len(simulate(scenario, given[:0], "vllm-v1", in_place=True).requests) == 1  # room, and nobody in it


def test_a_script_of_a_closed_loop_is_run_in_place():
    loop = {"workload.arrivals": {"kind": "closed-loop", "users": 4, "think_s": 1.0}, "episode.arrivals_s": 20.0}
    scenario = with_changes(Scenario(), loop)
    given, handed_over = draw_workload(scenario, 3), draw_workload(scenario, 3)
    copied = simulate(scenario, given, "sarathi").requests
    assert simulate(scenario, handed_over, "sarathi", in_place=True).requests.tobytes() == copied.tobytes()
    assert handed_over.tobytes() == given.tobytes()


def test_columns_or_values_of_the_files_are_not_the_states(noisy, tmp_path):
    scenario = read_scenario(noisy)
    state = simulate(scenario, draw_workload(scenario, 3), "vllm-v1", {"token_budget": 256}, 3)
    write_csv(tmp_path / "r.gz", request_columns(state))
    write_csv(tmp_path / "b.gz", batch_columns(state))
    table, q = read_columns(tmp_path / "r.gz"), state.requests
    assert ",".join(table) == "request,arrival_s,prompt_tokens,output_tokens,first_token_s,finish_s,max_tbt_s,evictions"
    assert [int(text) for text in table["request"]] == list(range(len(q)))
    for name in ("prompt_tokens", "output_tokens", "evictions"):
        assert [int(text) for text in table[name]] == q[name].tolist()
    for name in ("arrival_s", "first_token_s", "finish_s"):  # to the last bit
        np.testing.assert_array_equal(floats(table[name]), np.where(q[name] == -1.0, math.nan, q[name]))
    gaps = np.where(q["emitted_tokens"] == 1, 0.0, q["max_tbt_s"])
    np.testing.assert_array_equal(floats(table["max_tbt_s"]), gaps)
    assert "" in table["finish_s"], "the horizon should have cut something off"
    batches = read_columns(tmp_path / "b.gz")
    log = state.batch_log[: state.system[0]["num_batches"]]
    assert ",".join(batches) == "batch,worker,start_s,end_s,num_requests,prefill_tokens,decode_tokens"
    assert [int(text) for text in batches["batch"]] == list(range(len(log)))
    order = list(zip(floats(batches["start_s"]), map(int, batches["worker"]), strict=True))
    assert order == sorted(order)
    assert sorted(zip(order, floats(batches["end_s"]), strict=True)) == sorted(
        zip(zip(log["start_s"].tolist(), log["worker"].tolist(), strict=True), log["end_s"].tolist(), strict=True)
    )


def test_a_field_is_filled_where_a_time_never_came(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n0,5000,2\n")
    arguments = ["simulate", "--trace", str(trace), "--kv-blocks", "100", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    table = read_columns(tmp_path / "out" / "requests.csv.gz")
    assert table["max_tbt_s"] == ("0.0", "")  # one token, no gap: 0, as engines report it
    assert table["finish_s"] == ("0.0455", "")  # the second can never fit
    assert table["first_token_s"] == ("0.0455", "")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["summary"]["rejected"] == 1


def test_requests_are_written_in_order_of_arrival_instead_of_input(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n3.5,30,3\n0.1,10,1\n2,20,2\n0.1,11,1\n")
    assert main(["simulate", "--trace", str(trace), "--out", str(tmp_path / "out"), "--policy", "fcfs"]) == 0
    table = read_columns(tmp_path / "out" / "requests.csv.gz")
    assert table["request"] == ("0", "1", "2", "3")
    assert table["arrival_s"] == ("3.5", "0.1", "2.0", "0.1")
    assert table["prompt_tokens"] == ("30", "10", "20", "11")
    np.testing.assert_allclose(floats(table["finish_s"]), [3.5 + 3 * 0.0455, 0.1455, 2 + 2 * 0.0455, 0.191], atol=1e-9)


def test_the_scenario_beside_the_results_is_not_what_was_run(noisy, tmp_path):
    out = tmp_path / "out"
    overrides = ["--workers", "3", "--kv-blocks", "500", "--kv-watermark", "0.05", "--service", "10,0.1,8"]
    targets = ["--ttft-ms", "750", "--tbt-ms", "90"]
    assert main(["simulate", "--scenario", noisy, *overrides, *targets, "--out", str(out)]) == 0
    system, slo = read_scenario(out / "scenario.toml").system, read_scenario(out / "scenario.toml").slo
    assert (system.workers, system.kv.blocks, system.kv.watermark) == (3, 500, 0.05)
    assert (system.service.setup_ms, system.service.per_token_ms, system.service.free_tokens) == (10.0, 0.1, 8)
    assert system.service.setup_noise == "exponential", "--service sets the curve, not the noise"
    assert [(c.ttft_ms, c.tbt_ms) for c in slo.classes] == [(750.0, 90.0)]
    again = tmp_path / "again"
    assert main(["simulate", "--scenario", str(out / "scenario.toml"), "--out", str(again)]) == 0
    assert (again / "requests.csv.gz").read_bytes() == (out / "requests.csv.gz").read_bytes()


def test_a_trace_is_cut_off_or_not_measured_in_full(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n5,10,1\n100000,10,2\n")
    assert main(["simulate", "--trace", str(trace), "--time-scale", "3", "--out", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["summary"]
    assert (summary["num_requests"], summary["finished"]) == (2, 2)
    assert summary["window_s"] == 300_000 - 15
    assert summary["tpot_mean_s"] == pytest.approx(0.0455)
    assert summary["kv_used_max"] is None


# ---- all or nothing ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError(28, "No space left on device"), 3)])
def test_a_run_that_stops_halfway_leaves_something_behind(noisy, tmp_path, monkeypatch, capsys, error, code):
    def stop(folder, *_):
        (folder / "requests.csv.gz").write_bytes(b"half")
        raise error

    monkeypatch.setattr(llm_env.cli, "write_run", stop)
    out = tmp_path / "deep" / "out"
    assert main(["simulate", "--scenario", noisy, "--out", str(out)]) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "deep").exists()


def test_a_bug_is_hidden_or_leaves_something_behind(noisy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(llm_env.cli, "summarise", lambda *_: 1 / 0)
    assert main(["simulate", "--scenario", noisy, "--out", str(tmp_path / "out")]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failed_run_damages_the_results_of_the_one_before(tmp_path):
    out = tmp_path / "out"
    with staged_folder(out) as folder:
        for name in FILES:
            (folder / name).write_text("old")
    (out / "notes.txt").write_text("mine")

    def fail_halfway():
        with staged_folder(out) as folder:
            (folder / FILES[0]).write_text("new")
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        fail_halfway()
    assert sorted(path.name for path in out.iterdir()) == sorted((*FILES, "notes.txt"))
    assert {(out / name).read_text() for name in FILES} == {"old"}


def test_more_requests_run_than_there_are_slots():
    with pytest.raises(UserError, match=r"sarathi: max_running: expected at most 128.*got 129"):
        simulate(Scenario(), blank_requests(0), "sarathi", {"max_running": 129})


# ---- reference runs ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("engine", "name", "policy", "parameters", "blocks"), REFERENCES)
def test_a_reference_run_is_not_reproduced(shared: Path, tmp_path, engine, name, policy, parameters, blocks):
    path = shared / "reference" / (f"{name}_requests.csv.gz" if name.startswith("vidur") else f"{name}.csv.gz")
    if not path.exists():
        pytest.skip(f"{path} is absent")
    wanted = read_columns(path)
    columns = ("arrival_s", "prompt_tokens", "output_tokens")
    lines = [",".join(columns), *map(",".join, zip(*(wanted[column] for column in columns), strict=True))]
    (tmp_path / "trace.csv").write_text("\n".join(lines) + "\n")
    arguments = ["simulate", "--trace", str(tmp_path / "trace.csv"), "--service", "45.5,0.30,64", "--policy", policy]
    texts = [f"{key}={str(value).lower()}" for key, value in parameters.items()]
    arguments += ["--set", *texts, "--kv-blocks", str(blocks), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    found = read_columns(tmp_path / "out" / "requests.csv.gz")
    for column in ("request", "prompt_tokens", "output_tokens"):
        assert found[column] == wanted[column], column
    assert found["evictions"] == wanted.get("restarts", ("0",) * len(wanted["request"]))
    for column in ("arrival_s", "first_token_s", "finish_s", "max_tbt_s"):
        np.testing.assert_allclose(floats(found[column]), floats(wanted[column]), rtol=0, atol=1e-6, err_msg=column)
    if name.startswith("vidur"):
        batches = read_columns(tmp_path / "out" / "batches.csv.gz")
        wanted = read_columns(shared / "reference" / f"{name}_batches.csv.gz")
        for column in ("batch", "worker", "num_requests", "prefill_tokens", "decode_tokens"):
            assert batches[column] == wanted[column], column
        for column in ("start_s", "end_s"):
            np.testing.assert_allclose(floats(batches[column]), floats(wanted[column]), rtol=0, atol=1e-6)


def test_simulate_changes_its_input(tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,3\n")
    requests = read_trace(trace)
    before = requests.tobytes()
    simulate(Scenario(), requests, "sarathi")
    assert requests.tobytes() == before


def test_requests_of_a_trace_that_are_not_run_go_unsaid(tmp_path, capsys):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,3\n1,10,0\n")
    assert main(["simulate", "--trace", str(trace), "--policy", "fcfs"]) == 0
    assert capsys.readouterr().err == f"{trace}: dropped 1 request: without output\n"
