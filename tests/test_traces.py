"""The trace reader: good files exactly, bad files with their place, and no other exception on any bytes."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_env.config import SLOClass, SLOSettings, WorkloadSettings
from llm_env.errors import InputOutputError, UserError
from llm_env.workload import ReadOptions, read_trace, read_traffic
from llm_env.workload.trace_formats import HEADERS

HEADER = "arrival_s,prompt_tokens,output_tokens"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
STAMP = "2023-11-16 18:15:46.6805900"


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "trace.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read_or_message(path):
    try:
        return read_trace(path), ""
    except UserError as error:
        return None, str(error)


def problem(path, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        read_trace(path, **kwargs)
    return str(caught.value).replace(str(path), "T")


# ---- good files ----------------------------------------------------------------------------------------------------
def test_rows_are_not_read_as_they_stand(write):
    requests = read_trace(write(f"{HEADER}\n3.5,10,1\n3.5,20,2\n1e1,1048576,3\n"))
    assert requests["arrival_s"].tolist() == [3.5, 3.5, 10.0]
    assert requests["prompt_tokens"].tolist() == [10, 20, 1_048_576]
    assert requests["output_tokens"].tolist() == [1, 2, 3]
    assert requests["ttft_target_s"].tolist() == [2.0] * 3
    assert requests["client"].tolist() == [-1] * 3


def test_unsorted_rows_lose_their_order_or_place(write):
    requests = read_trace(write(f"{HEADER}\n5,1,1\n2,2,1\n5,3,1\n0,4,1\n2,5,1\n"))
    assert requests["arrival_s"].tolist() == [0.0, 2.0, 2.0, 5.0, 5.0]
    assert requests["prompt_tokens"].tolist() == [4, 2, 5, 1, 3]
    assert requests["row"].tolist() == [3, 1, 4, 0, 2]


def test_time_scale_does_not_stretch_the_arrivals(write):
    path = write(f"{HEADER}\n1,1,1\n4,1,1\n")
    assert read_trace(path, time_scale=2.0)["arrival_s"].tolist() == [2.0, 8.0]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_line_ends_bom_or_compression_change_what_is_read(write, ending, last, bom, compress):
    text = ending.join([HEADER, "0.5,10,2", "1.5,20,4"]) + (ending if last else "")
    requests = read_trace(write(compress(bom + text.encode()), "misleading.txt"))
    assert requests["arrival_s"].tolist() == [0.5, 1.5]
    assert requests["output_tokens"].tolist() == [2, 4]


def test_format_is_told_by_the_name_of_the_file(write):
    assert read_trace(write(f"{HEADER}\n1,1,1\n", "AzureLLMInferenceTrace_conv.csv.gz")).size == 1


def test_azure_times_lose_their_fractions_or_start(write):
    rows = ["2023-11-16 23:59:59.9999999,100,10", "2023-11-17 00:00:01.0000000,200,20", "2023-11-16 23:59:59.5,300,30"]
    requests = read_trace(write("\r\n".join([AZURE, *rows])))
    np.testing.assert_allclose(requests["arrival_s"], [0.0, 0.4999999, 1.5], rtol=0, atol=1e-12)
    assert requests["prompt_tokens"].tolist() == [300, 100, 200]
    assert requests["row"].tolist() == [2, 0, 1]


def test_columns_are_read_by_place_instead_of_name(write):
    text = "session,output_tokens,hash_ids,arrival_s,client,prompt_tokens,turn,prefix_hit_tokens\n"
    requests = read_trace(write(text + "7,2,0 14-27,0.5,3,10,0,0\n,4,,1.5,,20,1,512\n"))
    assert requests["prompt_tokens"].tolist() == [10, 20]
    assert requests["output_tokens"].tolist() == [2, 4]
    assert requests["client"].tolist() == [3, -1]
    assert requests["session"].tolist() == [7, -1]


def test_clients_with_names_are_half_read(write):
    requests = read_trace(write(f"{HEADER},client\n0,1,1,5\n1,1,1,alice\n"))
    assert requests["client"].tolist() == [-1, -1]


def test_negative_zero_seconds_stay_negative(write):
    arrival = read_trace(write(f"{HEADER}\n-0.0,1,1\n"))["arrival_s"]
    assert not np.signbit(arrival[0])


def test_classes_are_not_drawn_from_the_seed(write):
    slo = SLOSettings(classes=(SLOClass(name="a", share=0.5), SLOClass(name="b", ttft_ms=9000.0, share=0.5)))
    path = write(HEADER + "\n" + "".join(f"{i},1,1\n" for i in range(200)))
    first, again, other = (
        read_trace(path, slo=slo, seed=1),
        read_trace(path, slo=slo, seed=1),
        read_trace(path, slo=slo),
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert set(first["ttft_target_s"].tolist()) == {2.0, 9.0}
    assert first["slo_class"].mean() == pytest.approx(0.5, abs=0.2)


def test_turns_of_unsorted_sessions_are_linked_wrongly(write):
    rows = ["9,36,4,1", "0,10,5,1", "3,20,5,2", "4,20,5,1", "5,25,5,2", "6,7,1,", "9,90,4,1"]
    requests = read_trace(write(f"{HEADER},session\n" + "\n".join(rows)))
    assert requests["row"].tolist() == [1, 2, 3, 4, 5, 0, 6]
    assert requests["previous"].tolist() == [-1, -1, 0, 1, -1, 2, 5]
    assert requests["shared_tokens"].tolist() == [0, 0, 15, 0, 0, 25, 40]  # 25 = 20 + 5: no longer than the turn before


def test_traces_without_sessions_have_turns(write):
    requests = read_trace(write(f"{HEADER}\n0,10,5\n1,20,5\n"))
    assert requests["previous"].tolist() == [-1, -1]
    assert requests["shared_tokens"].tolist() == [0, 0]


def test_clients_of_a_trace_allow_less_than_they_got_or_not_the_setting(write):
    path = write(f"{HEADER}\n0,1,10\n1,1,300\n2,1,20\n")
    assert read_trace(path)["declared_tokens"].tolist() == [300, 300, 300]
    said = read_trace(path, workload=WorkloadSettings(declared_tokens=15))
    assert said["declared_tokens"].tolist() == [15, 300, 20]


def test_predictions_of_a_trace_are_not_drawn_from_the_seed(write):
    path = write(HEADER + "\n" + "".join(f"{i},1,{i + 1}\n" for i in range(200)))
    first, again, other = read_trace(path, seed=1), read_trace(path, seed=1), read_trace(path, seed=2)
    assert first.tobytes() == again.tobytes()
    assert (first["predicted_tokens"] != other["predicted_tokens"]).all()
    perfect = read_trace(path, seed=1, workload=WorkloadSettings(prediction_sigma=0.0))
    np.testing.assert_array_equal(perfect["predicted_tokens"], perfect["output_tokens"])


def test_rows_without_output_are_kept_or_lose_their_count(write):
    path = write(f"{HEADER}\n0,1,1\n1,0,0\n2,2,0\n3,4,5\n")
    traffic, report = read_traffic(path)
    assert traffic.prompt_tokens.tolist() == [1, 4]
    assert report.rows == 4
    assert report.dropped == {"without output": 2}
    assert read_trace(path)["row"].tolist() == [0, 3]
    strict = problem(path, options=ReadOptions(zero_output="error"))
    assert strict == "\n".join(
        [
            f'T:3:2: prompt_tokens: {COUNT} "0"',
            f'T:3:3: output_tokens: {COUNT} "0"',
            f'T:4:3: output_tokens: {COUNT} "0"',
        ]
    )


def test_columns_take_more_memory_than_they_need(write):
    traffic, _ = read_traffic(write(f"{HEADER},client,session\n0,1,1,2,3\n"))
    assert [column.dtype.str for column in traffic] == ["<f8", "<i4", "<i4", "<i4", "<i4"]


def test_numbers_of_clients_overflow(write):
    traffic, report = read_traffic(write(f"{HEADER},client\n0,1,1,99999999999\n1,1,1,\n2,1,1,7\n"))
    assert traffic.client.tolist() == [1, -1, 0]
    assert report.notes == ("column client: numbers above 2147483647, so they are numbered anew in their order",)


@pytest.mark.parametrize(
    ("name", "rows", "prompt_mean"),
    [
        ("azure2023_conv", 13_556, 1208.11),
        ("azure2023_code", 6_173, 2043.40),
        ("mooncake_conversation", 8_423, 12307.82),
    ],
)
def test_public_traces_are_refused_or_misread(shared, name, rows, prompt_mean):
    path = shared / "traces" / "public" / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is absent")
    requests = read_trace(path)
    assert requests.size == rows
    assert requests["prompt_tokens"].mean() == pytest.approx(prompt_mean, abs=0.01)
    assert (np.diff(requests["arrival_s"]) >= 0).all()
    assert (requests["session"].max() > 0) == (name == "mooncake_conversation")
    later = requests["previous"] >= 0
    assert later.any() == (name == "mooncake_conversation")
    if later.any():
        assert (requests["shared_tokens"][later] > 0).mean() == pytest.approx(0.89, abs=0.01)


# ---- bad content ---------------------------------------------------------------------------------------------------
COUNT = "expected an integer from 1 to 1048576, got"
OUTPUT = "expected an integer from 0 to 1048576, got"
TIME = "expected a finite number of seconds of at least 0, got"
BAD_ROWS = {
    "negative": ("0,-5,1", f'T:3:2: prompt_tokens: {COUNT} "-5"'),
    "zero": ("0,0,1", f'T:3:2: prompt_tokens: {COUNT} "0"'),
    "negative output": ("0,1,-1", f'T:3:3: output_tokens: {OUTPUT} "-1"'),
    "above the limit": ("0,1048577,1", f'T:3:2: prompt_tokens: {COUNT} "1048577"'),
    "above int64": ("0,99999999999999999999,1", f'T:3:2: prompt_tokens: {COUNT} "99999999999999999999"'),
    "fraction": ("0,10.5,1", f'T:3:2: prompt_tokens: {COUNT} "10.5"'),
    "whole fraction": ("0,10.0,1", f'T:3:2: prompt_tokens: {COUNT} "10.0"'),
    "exponent": ("0,1e3,1", f'T:3:2: prompt_tokens: {COUNT} "1e3"'),
    "underscore": ("0,1_000,1", f'T:3:2: prompt_tokens: {COUNT} "1_000"'),
    "hexadecimal": ("0,0x10,1", f'T:3:2: prompt_tokens: {COUNT} "0x10"'),
    "full-width digits": ("0,１２,1", f'T:3:2: prompt_tokens: {COUNT} "\\uff11\\uff12"'),
    "arabic digits": ("0,١,1", f'T:3:2: prompt_tokens: {COUNT} "\\u0661"'),
    "plus sign": ("0,+5,1", f'T:3:2: prompt_tokens: {COUNT} "+5"'),
    "space": ("0, 5,1", f'T:3:2: prompt_tokens: {COUNT} " 5"'),
    "empty field": ("0,,1", f'T:3:2: prompt_tokens: {COUNT} ""'),
    "quotes": ('0,"5",1', f'T:3:2: prompt_tokens: {COUNT} "\\"5\\""'),
    "carriage return inside": ("0,5\r,1", f'T:3:2: prompt_tokens: {COUNT} "5\\r"'),
    "long field": (f"0,{'9' * 5000},1", f'T:3:2: prompt_tokens: {COUNT} "{"9" * 40}..."'),
    "negative time": ("-1,1,1", f'T:3:1: arrival_s: {TIME} "-1"'),
    "nan": ("nan,1,1", f'T:3:1: arrival_s: {TIME} "nan"'),
    "infinity": ("inf,1,1", f'T:3:1: arrival_s: {TIME} "inf"'),
    "overflow": ("1e400,1,1", f'T:3:1: arrival_s: {TIME} "1e400"'),
    "underscore in a time": ("1_0,1,1", f'T:3:1: arrival_s: {TIME} "1_0"'),
    "space in a time": (" 1,1,1", f'T:3:1: arrival_s: {TIME} " 1"'),
    "decimal comma": ("0,5,1,1", "T:3:4: too many fields: expected 3, got 4"),
    "too few fields": ("0,1", "T:3:3: too few fields: expected 3, got 2"),
    "blank line": ("", "T:3:1: blank line"),
    "line of spaces": ("  \t", "T:3:1: blank line"),
    "semicolons": ("0;1;1", "T:3:2: too few fields: expected 3, got 1"),
    "two bad fields": ("x,y,1", f'T:3:1: arrival_s: {TIME} "x"\nT:3:2: prompt_tokens: {COUNT} "y"'),
    "NUL": ("0,1\0,1", "T:3:2: a NUL byte: this is not a text file"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_bad_row_has_no_exact_place(write, row, message, compress):
    text = f"{HEADER}\n0,1,1\n{row}\n9,1,1\n"
    assert problem(write(compress(text.encode()))) == message


BAD_FILES = {
    "empty": ("", f"T:1:1: empty file: expected the header {HEADERS}"),
    "only a BOM": (b"\xef\xbb\xbf", "T:1:1: empty file"),
    "only a carriage return": ("\r", f'T:1:1: header: expected {HEADERS}, got ""'),
    "header only": (f"{HEADER}\n", "T:2:1: no requests after the header"),
    "header without newline": (HEADER, "T:2:1: no requests after the header"),
    "no header": ("0,1,1\n", f'T:1:1: header: expected {HEADERS}, got "0,1,1"'),
    "blank first line": (f"\n{HEADER}\n0,1,1\n", "T:1:1: header: expected"),
    "blank last line": (f"{HEADER}\n0,1,1\n\n", "T:3:1: blank line"),
    "missing column": ("arrival_s,prompt_tokens\n0,1\n", "T:1:3: output_tokens: column missing"),
    "duplicate column": (f"{HEADER},arrival_s\n0,1,1,0\n", "T:1:4: arrival_s: a second column of this name"),
    "unknown column": (f"{HEADER},model\n0,1,1,x\n", 'T:1:4: unknown column "model": expected arrival_s, '),
    "misspelt column": ("arrival_s,prompt_token,output_tokens\n0,1,1\n", 'T:1:2: unknown column "prompt_token"'),
    "space in the header": (
        "arrival_s, prompt_tokens,output_tokens\n0,1,1\n",
        'T:1:2: unknown column " prompt_tokens"',
    ),
    "two formats": (f"{AZURE},client\n{STAMP},1,1,1\n", 'T:1:4: unknown column "client": expected TIMESTAMP, '),
    "not UTF-8": (HEADER.encode() + b"\n0,\xff,1\n", "T:2:2: not UTF-8 text (byte 0xff)"),
    "UTF-16": (HEADER.encode("utf-16"), "T:1:1: a NUL byte: this is not a text file"),
    "old Mac line ends": (f"{HEADER}\r0,1,1\r", "T:1:3: unknown column"),
    "nothing but rows without output": (
        f"{AZURE}\r\n{STAMP},5,0",
        "T: no request is left of 1 (1 dropped: without output)",
    ),
    "Azure time in seconds": (
        f"{AZURE}\n0.5,5,1",
        "T:2:1: TIMESTAMP: expected a time like 2023-11-16 18:15:46.6805900",
    ),
    "Azure, no such day": (f"{AZURE}\n2023-02-30 00:00:00.0,5,1", "T:2:1: TIMESTAMP: expected a time like"),
    "Azure, no such hour": (f"{AZURE}\n2023-02-03 24:00:00.0,5,1", "T:2:1: TIMESTAMP: expected a time like"),
    "Azure, leap second": (f"{AZURE}\n2016-12-31 23:59:60.0,5,1", "T:2:1: TIMESTAMP: expected a time like"),
    "Azure, no such second field": (f"{AZURE}\n2016-12-31 23:59,5,1", "T:2:1: TIMESTAMP: expected a time like"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_has_no_clear_error(write, content, message):
    assert problem(write(content)).startswith(message)


def test_more_than_twenty_problems_are_all_printed(write):
    lines = problem(write(HEADER + "\n" + "0,0,1\n" * 50)).split("\n")
    assert len(lines) == 21
    assert lines[19].startswith("T:21:2: ")
    assert lines[20] == "and 30 more problems"


@pytest.mark.parametrize("time_scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_time_scale_is_used(write, time_scale):
    assert problem(write(f"{HEADER}\n0,1,1\n"), time_scale=time_scale).startswith(
        "time_scale: expected a finite number"
    )


def test_scaled_times_overflow_silently(write):
    assert "overflow" in problem(write(f"{HEADER}\n1e300,1,1\n"), time_scale=1e300)


def test_the_time_scale_is_applied_twice(write):
    path = write(f"{HEADER}\n1,1,1\n")
    assert read_trace(path, options=ReadOptions(time_scale=2.0))["arrival_s"].tolist() == [2.0]
    assert problem(path, time_scale=2.0, options=ReadOptions(time_scale=2.0)).startswith("time_scale: given twice")


def test_more_requests_than_memory_holds_become_records(write, monkeypatch):
    monkeypatch.setattr("llm_env.workload.traces.MAX_REQUESTS", 2)
    path = write(f"{HEADER}\n" + "0,1,1\n" * 3)
    assert problem(path).startswith("T: 3 requests are too many for a run, at most 2 are possible")
    assert read_traffic(path)[0].size == 3


def test_a_bad_seed_is_used(write):
    assert problem(write(f"{HEADER}\n0,1,1\n"), seed=-1).startswith("seed: ")


# ---- files that cannot be read -------------------------------------------------------------------------------------
def test_an_unreadable_path_is_a_bug(tmp_path):
    for path in (tmp_path / "absent.csv", tmp_path, "a\0b"):
        with pytest.raises(InputOutputError, match="cannot be read"):
            read_trace(path)


def test_damaged_gzip_is_a_bug_or_half_read(write):
    whole = gzip.compress((HEADER + "\n" + "0,1,1\n" * 1000).encode())
    for data in (whole[:2], whole[:20], whole[:-4], whole + b"rest", whole[:30] + b"\xff\x00" + whole[32:]):
        with pytest.raises(InputOutputError, match="gzip"):
            read_trace(write(data))


def test_a_file_that_expands_without_end_fills_the_memory(write, monkeypatch):
    monkeypatch.setattr("llm_env.workload.trace_text.MAX_BYTES", 1 << 20)
    assert "larger than 1 MiB" in problem(write(gzip.compress(HEADER.encode() + b"\n" + b"0,1,1\n" * (1 << 18))))
    monkeypatch.setattr("llm_env.workload.traces.MAX_ROWS", 10)
    assert "more than 10 rows" in problem(write(HEADER + "\n" + "0,1,1\n" * 11))


# ---- any bytes -----------------------------------------------------------------------------------------------------
FIELD = st.one_of(
    st.from_regex(r"[0-9]{1,5}", fullmatch=True),
    st.from_regex(r"[+-]?[0-9]{0,3}\.?[0-9]{0,3}(e[+-]?[0-9]{1,3})?", fullmatch=True),
    st.from_regex(r"20[0-9]{2}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{1,9})?", fullmatch=True),
    st.text(max_size=6),
)
ROW = st.lists(FIELD, min_size=1, max_size=5).map(",".join)
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda header, rows, end: end.join([header, *rows]).encode("utf-8", "replace"),
        st.sampled_from([HEADER, AZURE, f"{HEADER},client,hash_ids"]),
        st.lists(ROW, max_size=4),
        st.sampled_from(["\n", "\r\n", "\n\n"]),
    ),
)


@given(content=CONTENT, compressed=st.booleans())
@example(content=b"\x1f\x8b\x08", compressed=False)
@settings(max_examples=400, deadline=None)
def test_some_bytes_raise_another_exception(tmp_path_factory, content, compressed):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(gzip.compress(content) if compressed else content)
    requests, message = read_or_message(path)
    assert message.strip() if requests is None else requests.size >= 1 and np.isfinite(requests["arrival_s"]).all()


@given(
    stamp=st.builds(
        "{:04d}-{:02d}-{:02d}{}{:02d}:{:02d}:{:02d}{}".format,
        st.integers(1900, 2099),
        st.integers(0, 13),
        st.integers(0, 32),
        st.sampled_from(" T"),
        st.integers(0, 25),
        st.integers(0, 61),
        st.integers(0, 61),
        st.from_regex(r"(\.[0-9]{1,9})?", fullmatch=True),
    )
)
@settings(max_examples=300, deadline=None)
def test_a_wrong_date_is_found_in_bulk_but_not_named(tmp_path_factory, stamp):
    """The bulk conversion and the search for the culprit must agree on what a date is."""
    path = tmp_path_factory.getbasetemp() / "dates.csv"
    path.write_text(f"{AZURE}\n{stamp},1,1\n")
    requests, message = read_or_message(path)
    assert ":2:1: TIMESTAMP: expected a time like" in message if requests is None else requests["arrival_s"][0] == 0.0


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1e12), st.integers(1, 1_048_576), st.integers(1, 1_048_576)), min_size=1, max_size=20
    )
)
@settings(max_examples=100, deadline=None)
def test_what_was_written_is_not_what_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round.csv"
    path.write_text(HEADER + "\n" + "".join(f"{a!r},{p},{o}\n" for a, p, o in rows))
    requests = read_trace(path)
    got = requests[np.argsort(requests["row"])]
    assert list(zip(*(got[f].tolist() for f in ("arrival_s", "prompt_tokens", "output_tokens")), strict=True)) == rows
