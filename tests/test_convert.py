"""`workload convert`: every flag reaches the reader, the report is printed, files are replaced only when asked."""

from __future__ import annotations

import argparse
import gzip
from dataclasses import fields

import pytest
from adversarial_traces import own

from llm_env.cli import main
from llm_env.commands.reading import add_read_arguments, read_options
from llm_env.workload import ReadOptions

ROWS = own("5,30,3", "0,10,5", "1,20,0")


@pytest.fixture
def convert(tmp_path, capsys):
    def convert(*flags: str, content: str = ROWS, out: str = "out.csv") -> tuple[int, str, str]:
        (tmp_path / "trace.csv").write_text(content)
        code = main(["workload", "convert", str(tmp_path / "trace.csv"), "--out", str(tmp_path / out), *flags])
        printed = capsys.readouterr()
        return code, printed.out.replace(f"{tmp_path}/", ""), printed.err.replace(f"{tmp_path}/", "")

    return convert


def test_the_report_is_not_printed(convert, tmp_path):
    assert convert("--time-scale", "2", "--max-prompt-tokens", "25", "--over-length", "clip") == (
        0,
        "trace.csv: own columns, 3 rows, 2 requests\n"
        "dropped 1 request: without output\n"
        "clipped 1 request to the longest allowed\n"
        "sorted by arrival: 1 row arrived before the row above\n"
        "written: out.csv\n",
        "",
    )
    assert (tmp_path / "out.csv").read_bytes() == own("0.0,10,5", "10.0,25,3").encode()


def test_ticks_pass_without_advice(convert):
    content = own(*(f"{k // 10 * 3},1,1" for k in range(400)))
    assert "advice: nearly all arrivals lie on a grid of 3 s" in convert(content=content)[1]
    assert "advice" not in convert("--tick-s", "3", "--overwrite", content=content)[1]


def test_gzip_has_a_time_stamp_or_other_rows(convert, tmp_path):
    for out in ("a.csv.gz", "b.csv.gz"):
        assert convert(out=out)[0] == 0
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()) == own("0.0,10,5", "5.0,30,3").encode()


def test_an_old_file_is_replaced_unasked(convert, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    assert convert() == (2, "", "error: out.csv: exists already; --overwrite replaces it\n")
    assert (tmp_path / "out.csv").read_text() == "old"
    assert convert("--overwrite")[0] == 0
    assert (tmp_path / "out.csv").read_text().startswith("arrival_s")


def test_a_failed_conversion_replaces_an_old_file(convert, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    assert convert("--overwrite", content="x")[0] == 2
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "trace.csv"]


@pytest.mark.parametrize(
    ("flags", "out", "code", "error"),
    [
        ((), "out.txt", 2, "--out: expected a name that ends with .csv or .csv.gz, got 'out.txt'"),
        ((), "trace.csv/out.csv", 3, "trace.csv: is a file or below one, expected a folder"),
        (("--keep", "0"), "out.csv", 2, "--keep: expected a number above 0 and at most 1, got '0'"),
        (("--keep-clients", "nan"), "out.csv", 2, "--keep-clients: expected a number above 0 and at most 1, got 'nan'"),
        (("--start-s", "3", "--end-s", "2"), "out.csv", 2, "end_s: expected more than start_s, 3, got 2"),
        (("--max-prompt-tokens", "1e3"), "out.csv", 2, "--max-prompt-tokens: expected an integer from 1 to 1048576"),
        (("--over-length", "cut"), "out.csv", 2, "--over-length: invalid choice: 'cut'"),
        (("--keep-sessions", "0.5"), "out.csv", 2, "trace.csv: keep_sessions: the trace does not say the session of"),
    ],
)
def test_a_wrong_argument_has_no_clear_error(convert, tmp_path, flags, out, code, error):
    got_code, printed, got = convert(*flags, out=out)
    assert (got_code, printed) == (code, "")
    assert got.replace(f"{tmp_path}/", "").startswith(f"error: {error}")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.csv"]


GIVEN = {
    "timestamp_unit": "ms",
    "zero_output": "error",
    "max_prompt_tokens": 7,
    "max_output_tokens": 8,
    "max_total_tokens": 9,
    "over_length": "drop",
    "tick_s": 3.0,
    "start_s": 1.0,
    "end_s": 2.0,
    "keep": 0.5,
    "keep_clients": 0.25,
    "keep_sessions": 0.75,
    "time_scale": 4.0,
    "seed": 11,
}


def test_an_option_has_no_flag_or_reaches_another_one():
    assert list(GIVEN) == [field.name for field in fields(ReadOptions)]
    parser = argparse.ArgumentParser()
    add_read_arguments(parser)
    assert read_options(parser.parse_args([])) == ReadOptions()
    words = [
        word
        for name, value in GIVEN.items()
        for word in ("--read-seed" if name == "seed" else "--" + name.replace("_", "-"), str(value))
    ]
    assert read_options(parser.parse_args(words)) == ReadOptions(**GIVEN)
