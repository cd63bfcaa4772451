"""Cells as files: a study goes on where it stopped, and adds what is missing; reruns give the same bytes; --assert."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llm_env import evaluation
from llm_env.cell_store import FOLDER, CellStore
from llm_env.evaluation import Arguments, main, make_study, repeating
from llm_env.study import Study, baseline_contender, run_study
from tests.test_study import ROOT, SHORT


@pytest.fixture
def short(tmp_path: Path) -> str:
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def files_of(out: Path) -> dict[str, bytes]:
    """Every file of a study but the cells."""
    paths = [path for path in out.rglob("*") if path.is_file() and FOLDER not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def run(short: str, out: Path, *more: str, processes: int = 1) -> int:
    words = ["--scenario", short, "--baselines", "sarathi:slo", "fcfs", "--out", str(out), *more]
    return main([*words, "--processes", str(processes)])


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """How many pieces each study has run, in this process."""
    pieces: list[int] = []

    def counting(*arguments):
        pieces.append(0)
        for found in run_study(*arguments):
            pieces[-1] += 1
            yield found

    monkeypatch.setattr(evaluation, "run_study", counting)
    return pieces


def test_a_rerun_computes_nothing_and_gives_the_same_bytes(short, tmp_path, counted, capsys):
    out = tmp_path / "out"
    assert run(short, out, "--seeds", "3", "--loads", "0.5", "0.9") == 0
    first, cells = files_of(out), sorted(path.name for path in (out / FOLDER).iterdir())
    assert len(cells) == 12
    assert "kept from before" not in capsys.readouterr().out
    assert run(short, out, "--seeds", "3", "--loads", "0.5", "0.9") == 0
    assert files_of(out) == first
    assert counted == [8, 0]  # of two contenders at two loads the seeds in two pieces
    assert "12 of them kept from before" in capsys.readouterr().out
    assert sorted(path.name for path in (out / FOLDER).iterdir()) == cells


def test_more_seeds_and_policies_cost_only_what_is_new_and_give_what_a_fresh_study_gives(short, tmp_path, counted):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(short, out, "--seeds", "2") == 0
    assert (
        main(["--scenario", short, "--baselines", "sarathi:slo", "fcfs", "orca", "--seeds", "4", "--out", str(out)])
        == 0
    )
    words = ["--scenario", short, "--baselines", "sarathi:slo", "fcfs", "orca", "--seeds", "4", "--processes", "1"]
    assert main([*words, "--out", str(whole)]) == 0
    assert counted[0] == 4
    assert counted[2] == 6
    for name in ("cells.csv", "requests.csv.gz", "plots/attainment.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    rows = [json.loads((folder / "results.json").read_text())["rows"] for folder in (out, whole)]
    assert rows[0] == rows[1]


def test_one_process_and_two_give_the_same_bytes(short, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_env.processes.ALONE_S", 0.0)
    alone, two = tmp_path / "alone", tmp_path / "two"
    monkeypatch.chdir(tmp_path)
    assert run(short, Path("alone"), "--seeds", "3") == 0
    alone.rename(tmp_path / "kept")
    assert run(short, Path("alone"), "--seeds", "3", processes=2) == 0
    alone.rename(two)
    one, other = files_of(tmp_path / "kept"), files_of(two)
    assert one.keys() == other.keys() >= {"results.json", "repro.sh", "times.json", "cells.csv"}
    assert [name for name in one if one[name] != other[name]] == ["times.json"]


def test_a_killed_study_loses_at_most_the_cells_in_flight(short, tmp_path):
    out = tmp_path / "out"
    words = [
        "--scenario",
        short,
        "--change",
        "episode.arrivals_s=400",
        "episode.horizon_s=800",
        "--loads",
        "0.5",
        "0.7",
    ]
    words += ["--baselines", "fcfs", "sarathi", "orca", "vllm-v1", "sarathi-spf", "--seeds", "8", "--processes", "1"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *words, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob(f"{FOLDER}/*.npz"))) < 6 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = len(list(out.glob(f"{FOLDER}/*.npz")))
    assert 6 <= kept < 80
    assert not (out / "results.json").exists()
    study = make_study(Arguments(**_arguments(words)))
    assert len(CellStore(out / FOLDER, study).found()) == kept
    whole = tmp_path / "whole"
    for folder in (out, whole):
        assert main([*words, "--out", str(folder)]) == 0
    assert (out / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()


def _arguments(words):
    import tyro

    return vars(tyro.cli(Arguments, args=words))


def test_a_cell_is_read_as_it_was_written(short, tmp_path):
    study = Study(
        make_study(Arguments(scenario=short)).scenario, (baseline_contender("fcfs"),), (), (2_000_000, 2_000_001)
    )
    store = CellStore(tmp_path / FOLDER, study)
    cells = [cell for _, _, new in run_study(study, 1, store) for cell in new]
    found = store.found()
    assert len(cells) == len(found) == 2
    for mine, theirs in zip(cells, found, strict=True):
        assert (mine.load, mine.contender, mine.seed) == (theirs.load, theirs.contender, theirs.seed)
        assert json.dumps(mine.summary) == json.dumps(theirs.summary)
        assert {len(mine.summary["workload_sha256"]), len(mine.summary["final_sha256"])} == {16}
        for name, column in mine.requests.items():
            assert column.tobytes() == theirs.requests[name].tobytes()
            assert column.dtype == theirs.requests[name].dtype
        assert mine.gaps.tobytes() == theirs.gaps.tobytes()
        assert mine.batches.tobytes() == theirs.batches.tobytes()
    assert len(found[0].batches) > 10
    assert len(found[1].batches) == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_cell_is_computed_anew(short, tmp_path, capsys, damage):
    out = tmp_path / "out"
    assert run(short, out, "--seeds", "2") == 0
    first = files_of(out)
    path = sorted((out / FOLDER).iterdir())[0]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage is None else damage)
    capsys.readouterr()
    assert run(short, out, "--seeds", "2") == 0
    assert f"{path}: is damaged and computed anew" in capsys.readouterr().err
    after = files_of(out)
    assert [name for name in first if first[name] != after[name]] in ([], ["times.json"])
    assert path.stat().st_size == len(data)


def test_an_array_of_objects_in_a_cell_is_not_unpickled(short, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    out = tmp_path / "out"
    assert run(short, out, "--seeds", "2") == 0
    path = sorted((out / FOLDER).iterdir())[0]
    np.savez(path, head=np.array([Evil()], object), gaps=np.zeros((0, 2)), batches=np.zeros(0))
    assert run(short, out, "--seeds", "2") == 0
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_other_code_settings_or_seeds_have_other_cells(short, tmp_path, monkeypatch):
    def path(scenario=None, seeds=(1,), spec="fcfs", load=None, seed=1):
        study = Study(scenario or base, (baseline_contender(spec),), () if load is None else (load,), seeds)
        return CellStore(tmp_path, study).path(study.contenders[0], load, seed)

    base = make_study(Arguments(scenario=short)).scenario
    changed = base.model_copy(update={"slo": base.slo.model_copy(update={"rule": "max"})})
    names = {path(), path(changed), path(spec="orca"), path(spec="sarathi"), path(spec="sarathi:slo"), path(load=0.5)}
    names |= {path(seed=2), path(load=0.5, seed=2), path(seeds=(3, 1))}
    monkeypatch.setattr("llm_env.cell_store.code_hash", lambda: "other")
    names.add(path())
    assert len(names) == 10
    monkeypatch.undo()
    assert path() == path(seeds=(1, 2, 3))


# ---- what is required ----------------------------------------------------------------------------------------------
def test_a_requirement_that_is_missed_exits_with_4_and_keeps_the_results(short, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--seeds", "2", "--loads", "0.3", "0.9")
    assert run(short, out, *words, "--assert", "fcfs.ttft_p50_s>=0", "sarathi:slo.slo_attainment<=1") == 0
    assert run(short, out, *words, "--assert", "fcfs.slo_attainment>=1.5", "fcfs.utilisation>0") == 4
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("error: assert: fcfs.slo_attainment>=1.5: got 0.")
    assert [line.rsplit(" at ", 1)[1] for line in error] == ["load 0.3", "load 0.9"]
    assert (out / "results.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fcfs", "expected POLICY.MEASURE>=VALUE"),
        ("fcfs.slo_attainment=0.5", "expected POLICY.MEASURE>=VALUE"),
        ("orca.slo_attainment>0.5", 'expected one of sarathi:slo, fcfs, got "orca"'),
        ("fcfs.speed>0.5", 'expected a measure of slo_attainment, .*got "speed"'),
        ("fcfs.slo_attainment>much", 'expected a number, got "much"'),
    ],
)
def test_a_requirement_of_another_form_is_one_clear_error(short, tmp_path, capsys, text, message):
    assert run(short, tmp_path / "out", "--assert", text) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_json_is_the_file_and_nothing_else(short, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(short, out, "--seeds", "2", "--json") == 0
    assert capsys.readouterr().out == (out / "results.json").read_text()


def test_the_script_of_a_study_gives_it_again(short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("short.toml", Path("out"), "--seeds", "2", "--loads", "0.5") == 0
    script = (tmp_path / "out" / "repro.sh").read_text().splitlines()
    assert (
        script[2]
        == "python evaluate.py --baselines sarathi:slo fcfs --scenario short.toml --loads 0.5 --seeds 2 --out out"
    )
    first = files_of(tmp_path / "out")
    assert main([*script[2].split()[2:], "--fresh"]) == 0
    after = files_of(tmp_path / "out")
    assert [name for name in first if first[name] != after[name]] in ([], ["times.json"])
    given = Arguments(require=("a.b>=1",), bound=True, trace_part=(0.0, 0.5))
    assert repeating(given)[2:] == ["--trace-part", "0.0", "0.5", "--bound", "--assert", "a.b>=1"]
