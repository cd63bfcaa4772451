"""Costs: what is paid, what for, and that nothing is no price."""

from __future__ import annotations

import csv
import json
import math

import pytest

from llm_env.evaluation import main
from llm_env.prices import COSTS, Price, costs
from tests.test_study import SHORT

RATES = {"output_tokens_per_s": 1000.0, "tokens_per_s": 5000.0, "goodput_per_s": 2.0}


def test_costs_are_not_the_price_over_the_rate():
    price = Price(2.5, 4)
    assert price.per_hour(3) == 30.0
    found = costs(36.0, RATES)  # a cent a second
    assert found == pytest.approx(
        {
            "cost_per_hour": 36.0,
            "cost_per_million_output_tokens": 10.0,
            "cost_per_million_tokens": 2.0,
            "cost_per_thousand_good": 5.0,
        }
    )
    assert tuple(found) == COSTS


def test_a_thousand_requests_of_which_none_is_good_have_a_price():
    found = costs(36.0, RATES | {"goodput_per_s": 0.0, "tokens_per_s": math.nan})
    assert math.isnan(found["cost_per_thousand_good"])
    assert math.isnan(found["cost_per_million_tokens"])
    assert found["cost_per_million_output_tokens"] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--price", "-1"], "price: expected 0 to 1e+06, got -1"),
        (["--price", "nan"], "price: expected 0 to 1e+06, got nan"),
        (["--price", "2", "--gpus-per-worker", "0"], "gpus-per-worker: expected 1 to 10000, got 0"),
        (["--gpus-per-worker", "2"], "gpus-per-worker: only with --price"),
        (["--assert", "sarathi.cost_per_thousand_good<=2"], "costs need --price"),
    ],
)
def test_a_price_that_makes_no_sense_is_taken(tmp_path, capsys, words, message):
    assert main(["--baselines", "sarathi", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_costs_of_cells_and_rows_disagree_or_change_the_cells(tmp_path, capsys):
    (tmp_path / "short.toml").write_text(SHORT)
    words = ["--scenario", str(tmp_path / "short.toml"), "--baselines", "sarathi:slo", "fcfs", "--loads", "0.9"]
    words += ["--seeds", "2", "--processes", "1", "--change", "system.workers=2", "slo.classes.0.ttft_ms=600"]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out)]) == 0
    assert "cost_per_hour" not in (out / "cells.csv").read_text()
    assert "cost_per_hour" not in json.loads((out / "results.json").read_text())["rows"][0]
    capsys.readouterr()
    more = ["--price", "2.5", "--gpus-per-worker", "4", "--assert", "sarathi:slo.cost_per_million_tokens>0"]
    assert main([*words, "--out", str(out), *more]) == 0
    said = capsys.readouterr().out
    assert "at 2.5 per GPU-hour, 4 GPUs a worker" in said
    assert "4 cells in" in said
    assert "4 of them kept from before" in said, "no run depends on the price"
    assert max(len(line) for line in said.splitlines() if str(out) not in line) <= 100
    rows = {row["policy"]: row for row in json.loads((out / "results.json").read_text())["rows"]}
    row = rows["sarathi:slo"]
    assert row["cost_per_hour"] == 2 * 4 * 2.5
    assert row["cost_per_thousand_good"] == pytest.approx(20.0 / 3.6 / row["goodput_per_s"])
    assert rows["fcfs"]["goodput_per_s"] == 0
    assert rows["fcfs"]["cost_per_thousand_good"] is None
    assert "n/a" in next(line for line in said.splitlines()[::-1] if line.startswith(" fcfs"))
    cells = list(csv.DictReader((out / "cells.csv").open()))
    for cell in cells:
        assert float(cell["cost_per_million_tokens"]) == pytest.approx(20.0 / 0.0036 / float(cell["tokens_per_s"]))
