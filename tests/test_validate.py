"""python -m llm_env validate: one table, a picture, and exit code 4 if theory and the simulator do not agree."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

import llm_env.validate
from llm_env.cli import main
from llm_env.errors import InputOutputError, UserError
from llm_env.plots import plot_validation
from llm_env.validate import FILES, all_cases
from llm_env.validation_references import REFERENCES, reference_row, request_file
from llm_env.validation_rows import (
    FAILED,
    OK,
    SKIPPED,
    Case,
    Point,
    exact_row,
    fact_row,
    skipped_row,
    statistic_row,
    worst,
)
from llm_env.validation_stationary import CAPACITIES, STATIONARY, Capacity, capacity_row, mm, stationary_rows


# ---- rows ----------------------------------------------------------------------------------------------------------
def test_a_wrong_number_is_called_right_or_a_right_one_wrong():
    assert exact_row("x", [1.0, 2.0], [1.0, 2.0 + 1e-9]).verdict == OK
    assert exact_row("x", [1.0, 2.0], [1.0, 2.0 + 1e-8]).verdict == FAILED
    assert exact_row("x", [1.0, np.nan], [1.0, 2.0]).verdict == FAILED
    assert exact_row("x", [1.0], [1.0, 2.0]).verdict == FAILED
    assert exact_row("x", [], []).verdict == FAILED, "nothing was compared"
    values = np.array([0.99, 1.0, 1.01] * 10)
    error = values.std(ddof=1) / np.sqrt(30)
    assert statistic_row("x", values, 1.0 + 3.9 * error).verdict == OK
    assert statistic_row("x", values, 1.0 + 4.1 * error).verdict == FAILED
    assert statistic_row("x", values, 1.0 - 4.1 * error).verdict == FAILED
    assert statistic_row("x", np.array([0.5, 1.5] * 15), 1.0).verdict == FAILED, "too wide to tell anything"
    assert statistic_row("x", np.full(30, np.nan), 1.0).verdict == FAILED
    assert statistic_row("x", np.ones(30), 2.0).verdict == FAILED
    right, wrong = exact_row("a", 1.0, 1.0), exact_row("b", 1.0, 1.1)
    assert worst("both", [right, wrong, right]) == replace(wrong, case="both")


def test_a_wrong_theory_is_agreed_with(monkeypatch):
    good = mm(4, 0.8)
    label, statistic, value = good.expected[0]
    monkeypatch.setitem(STATIONARY, "M/M/4", lambda: replace(good, expected=((label, statistic, 1.2 * value),), n=4000))
    assert [row.verdict for row in stationary_rows("M/M/4")] == [FAILED]
    joined = replace(good, expected=((label, statistic, value),), n=4000, must_not=("joining", value))
    monkeypatch.setitem(STATIONARY, "M/M/4", lambda: joined)
    assert [row.verdict for row in stationary_rows("M/M/4")] == [OK, FAILED]
    orca = CAPACITIES["Orca"]
    for factor in (0.9, 1.1):
        monkeypatch.setitem(CAPACITIES, "Orca", Capacity(orca.policy, lambda f=factor: f * orca.per_s(), 5000))
        assert capacity_row("Orca").verdict == FAILED, factor


# ---- the command ---------------------------------------------------------------------------------------------------
@pytest.fixture
def few(monkeypatch):
    """Three cases in place of all: one right, one wrong on demand, one that cannot be run; and no curves."""
    wrong = [exact_row("a wrong number", 1.0, 1.0)]

    def cases(references):
        return [
            Case("right", "one", True, lambda: [exact_row("a right number", 2.0, 2.0)]),
            Case("wrong", "two", True, lambda: wrong),
            Case("slow", "two", False, lambda: [fact_row("a slow fact", "true", "true", True)]),
            Case("absent", "three", True, lambda: [skipped_row("an absent run", "no files")]),
        ]

    monkeypatch.setattr(llm_env.validate, "all_cases", cases)
    monkeypatch.setattr(llm_env.validate, "CURVES", ())
    return wrong


def test_all_agree_and_the_exit_code_is_not_0(few, tmp_path, capsys):
    assert main(["validate", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "3 of 4 agree, 0 failed, 1 skipped" in said.out
    assert said.err == ""
    found = json.loads((tmp_path / FILES[0]).read_text())
    assert [row["verdict"] for row in found["rows"]] == [OK, OK, OK, SKIPPED]
    assert (found["rows"][1]["group"], found["fast"]) == ("two", False)
    assert {"versions", "command"} <= set(found)
    assert (tmp_path / FILES[1]).read_bytes().startswith(b"\x89PNG")


def test_a_wrong_case_exits_with_another_code_than_4_or_leaves_no_results(few, tmp_path, capsys):
    few[:] = [exact_row("a wrong number", 1.0, 1.1), statistic_row("another", np.array([0.99, 1.01] * 15), 1.5)]
    assert main(["validate", "--out", str(tmp_path)]) == 4
    said = capsys.readouterr()
    assert "FAILED" in said.out
    assert said.err == "error: validate: 2 of 5 failed: a wrong number; another\n"
    found = json.loads((tmp_path / FILES[0]).read_text())
    assert sum(row["verdict"] == FAILED for row in found["rows"]) == 2
    assert (tmp_path / FILES[1]).exists()


def test_fast_runs_what_is_slow(few, tmp_path, capsys):
    assert main(["validate", "--fast", "--out", str(tmp_path)]) == 0
    assert "a slow fact" not in capsys.readouterr().out


def test_a_folder_without_runs_is_taken(tmp_path, capsys):
    assert main(["validate", "--fast", "--references", str(tmp_path), "--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: holds no reference run")
    assert not (tmp_path / "out").exists()


def test_references_that_are_nowhere_are_called_right(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_env.validation_references.BESIDE", tmp_path / "nowhere")
    (row,) = all_cases(None)[-1].run()
    assert (row.verdict, row.got) == (SKIPPED, "give --references DIR")


@pytest.mark.slow
def test_the_fast_table_fails_or_is_wider_than_the_page(tmp_path, capsys):
    assert main(["validate", "--fast", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    table = text[: text.index(" agree,")]
    assert max(map(len, table.splitlines())) <= 100
    for words in ("case", "expected", "got", "error", "verdict", "Lindley", "M/M/1", "tiny", "SLO bound", "capacity"):
        assert words in table
    cut = [line for line in table.splitlines()[3:-1] if line.strip() and line.split()[-1] not in (OK, SKIPPED)]
    assert cut == [], "a row takes two lines"


def test_the_picture_cannot_be_drawn_with_failures_or_without_rows(tmp_path):
    rows = [exact_row("exact", 1.0, 1.1), statistic_row("off", np.array([0.99, 1.01] * 15), 1.5)]
    points = [Point(0.2, 1.3, 0.01), Point(0.8, 9.0, 0.1)]
    plot_validation({"M/M/1": (points, lambda loads: 1 / (1 - loads))}, rows, tmp_path / "failed.png")
    plot_validation({}, [], tmp_path / "empty.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("failed.png", "empty.png"))


# ---- other engines -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.engine)
def test_a_run_of_another_engine_is_not_reproduced(shared, reference):
    row = reference_row(shared / "reference", reference)
    if row.verdict == SKIPPED:
        pytest.skip(f"{reference.name} is absent")
    assert row.verdict == OK, row


def test_another_policy_reproduces_a_run_too(shared):
    reference = REFERENCES[0]
    if not request_file(shared / "reference", reference).exists():
        pytest.skip(f"{reference.name} is absent")
    row = reference_row(shared / "reference", reference._replace(parameters={"token_budget": 511}))
    assert row.verdict == FAILED
    assert "not the same" in row.got


def test_a_damaged_run_is_a_bug(tmp_path):
    folder = tmp_path / "vidur"
    folder.mkdir()
    path = request_file(tmp_path, REFERENCES[0])
    path.write_bytes(b"no gzip")
    with pytest.raises(InputOutputError, match="cannot be read"):
        reference_row(tmp_path, REFERENCES[0])
    with gzip.open(path, "wt") as file:
        file.write("arrival_s,prompt_tokens\n1,many\n")
    with pytest.raises(UserError, match="not a reference run"):
        reference_row(tmp_path, REFERENCES[0])
