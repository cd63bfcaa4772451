"""Reads anyone's request trace: CSV or JSON lines, plain or gzip, strictly. See docs/traces.md for the formats.

Nothing is guessed, skipped or repaired: a row that is not exactly as expected is an error with its line and column. The
text is never held as a whole: it is read, checked and turned into columns of numbers a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from llm_env.config import SLOSettings, WorkloadSettings
from llm_env.errors import MAX_REPORTED, InputOutputError, UserError, join_problems
from llm_env.workload.generate import assign_classes, declare_outputs, predict_outputs, requests_of
from llm_env.workload.seeds import streams
from llm_env.workload.trace_changes import Rows, change
from llm_env.workload.trace_chats import number_sessions
from llm_env.workload.trace_csv import CsvReader, read_header
from llm_env.workload.trace_formats import CHAT, CLIENT, DATE, HEADERS, NAME, OUTPUT, PARENT, PROMPT, SESSION, Format
from llm_env.workload.trace_json import JsonReader, find_json_format
from llm_env.workload.trace_options import ReadOptions
from llm_env.workload.trace_report import ReadReport, detect_tick
from llm_env.workload.trace_text import Block, read_blocks
from llm_env.workload.traffic import Traffic
from llm_env.workload.windows import WHOLE, part_of

MAX_ROWS = 50_000_000  # 24 bytes each, a few times over while they are sorted
MAX_REQUESTS = 10_000_000  # as REQUEST records: 3.6 GB
_INT32 = np.iinfo(np.int32)


def read_traffic(path: str | Path, options: ReadOptions | None = None) -> tuple[Traffic, ReadReport]:
    """Reads a trace file as columns.

    The formats are told by the header or the first line, never by the name of the file: own columns, Azure, BurstGPT
    and Vidur as CSV, Mooncake and Bailian as JSON lines. Lines end with LF or CRLF, the last one may lack it. Rows need
    not be in order of arrival. Times are as in the file, but for dates, which become seconds since the earliest one.

    Args:
        path: the file, plain or gzip.
        options: what is changed on the way; None changes nothing but drops requests without output.

    Returns:
        The requests in order of arrival, equal times in the order of the file; and what was done to them.

    Raises:
        InputOutputError: the file cannot be read or decompressed, or changes while it is read.
        UserError: its content is wrong; up to 20 problems, each ``path:line:column: field: expected ..., got ...``.
    """
    return _read(path, options or ReadOptions())[:2]


def read_trace(
    path: str | Path,
    time_scale: float = 1.0,
    slo: SLOSettings | None = None,
    seed: int = 0,
    workload: WorkloadSettings | None = None,
    options: ReadOptions | None = None,
    part: Sequence[float] = WHOLE,
) -> np.ndarray:
    """Reads a trace file as requests for a run: `read_requests` without its report."""
    return read_requests(path, time_scale, slo, seed, workload, options, part)[0]


def read_requests(
    path: str | Path,
    time_scale: float = 1.0,
    slo: SLOSettings | None = None,
    seed: int = 0,
    workload: WorkloadSettings | None = None,
    options: ReadOptions | None = None,
    part: Sequence[float] = WHOLE,
) -> tuple[np.ndarray, ReadReport]:
    """Reads a trace file as requests for a run: `read_traffic` with classes, predictions and links between turns.

    Args:
        path: the file, plain or gzip.
        time_scale: multiplies arrival times: 2 halves the rate.
        slo: classes are drawn from its shares, one class with the default targets if None.
        seed: of that draw and of the predicted lengths.
        workload: its `prediction_sigma` and `declared_tokens` are used, nothing else of it. A trace does not say what
            its clients allowed: without `declared_tokens` it is the largest output of the trace, for all.
        options: see `read_traffic`; with a `time_scale` of its own, the one above must be 1.
        part: (from, to), shares of its time: nothing else of it is used (see `llm_env.workload.windows.part_of`).

    Returns:
        REQUEST[n], sorted stably by arrival (seconds), `row` the place in the file counted from 0. With sessions,
        `previous` and `shared_tokens` are those of `llm_env.workload.sessions.link_turns`. And what was done to them.

    Raises:
        InputOutputError: see `read_traffic`.
        UserError: see `read_traffic`; or more than 10,000,000 requests are left.
    """
    options = options or ReadOptions()
    if time_scale != 1.0:
        if options.time_scale != 1.0:
            raise UserError("time_scale: given twice, as an argument and in the options")
        options = replace(options, time_scale=time_scale)
    rngs = streams(seed)
    traffic, report, row = _read(path, options)
    which = part_of(traffic.arrival_s, part)
    traffic, row = traffic.take(which), row[which]
    if traffic.size > MAX_REQUESTS:
        raise UserError(
            f"{path}: {traffic.size} requests are too many for a run, at most {MAX_REQUESTS} are possible: read a"
            " part of it (trace_part; start_s, end_s) or a share (keep_clients, keep_sessions, keep)"
        )
    requests = requests_of(traffic)
    requests["row"] = row
    assign_classes(requests, slo or SLOSettings(), rngs.classes)
    workload = workload or WorkloadSettings()
    declare_outputs(requests, workload, int(requests["output_tokens"].max()))
    predict_outputs(requests, workload.prediction_sigma, rngs.prediction)
    return requests, report


def _read(path: str | Path, options: ReadOptions) -> tuple[Traffic, ReadReport, np.ndarray]:
    """The requests, the report, and the place of each request in the file."""
    path = str(path)
    form, rows, notes = _rows(path, options)
    changed = change(rows, options)
    report = ReadReport(
        path=path,
        format=form.name,
        rows=rows.traffic.size,
        requests=changed.traffic.size,
        dropped=changed.dropped,
        clipped=changed.clipped,
        unsorted_rows=changed.unsorted_rows,
        tick_s=detect_tick(changed.traffic.arrival_s),
        notes=tuple(notes),
    )
    return changed.traffic, report, changed.row


# ---- blocks to columns ---------------------------------------------------------------------------------------------
def _rows(path: str, options: ReadOptions) -> tuple[Format, Rows, list[str]]:
    blocks = read_blocks(path)
    first = next(blocks, None)
    if first is None:
        raise UserError(f"{path}:1:1: empty file: expected the header {HEADERS}")
    header, rest = first.text.split(b"\n", 1)
    if header.startswith(b"{"):
        form = find_json_format(path, header)
        reader = JsonReader(path, form, options.zero_output, options.timestamp_unit)
        names, first_line = [column.name for column in form.columns], 1
        blocks = chain([first], blocks)
    else:
        form, names = read_header(path, header)
        if options.timestamp_unit is not None:
            raise UserError(f"{path}: timestamp_unit: only for JSON lines, this is {form.name}")
        reader, first_line = CsvReader(path, form, names, options.zero_output), 2
        blocks = chain([Block(2, rest)] if rest else [], blocks)
    columns, num_rows = _columns(path, reader, blocks)
    if not num_rows:
        raise UserError(f"{path}:2:1: no requests after the header")
    traffic, notes = _traffic(path, columns, first_line)
    prompt, output = (form.column(kind).name for kind in (PROMPT, OUTPUT))
    places = f"{names.index(prompt) + 1}: {prompt}", f"{names.index(output) + 1}: {output}"
    return form, Rows(path, traffic, first_line, places), reader.notes + notes


def _columns(path: str, reader: CsvReader | JsonReader, blocks: Iterator[Block]) -> tuple[dict[str, np.ndarray], int]:
    """All blocks as columns by kind, and the number of rows."""
    chunks: dict[str, list[np.ndarray]] = {}
    num_rows, end = 0, ""
    try:
        for block in blocks:
            if len(reader.problems) > MAX_REPORTED:
                end = f"\nthe file was not read further, from line {block.first_line} on"
                break
            num_rows += block.text.count(b"\n")
            if num_rows > MAX_ROWS:
                raise UserError(f"{path}: more than {MAX_ROWS} rows")
            found = reader.read(block)
            if found is not None and not reader.problems:
                for kind, column in found.items():
                    chunks.setdefault(kind, []).append(_narrowed(column))
    except InputOutputError:
        raise
    except UserError as error:  # of the text, after problems in lines before
        raise UserError(join_problems([*reader.problems, str(error)])) from None
    if reader.problems:
        raise UserError(join_problems(reader.problems) + end)
    count = max(map(len, chunks.values()), default=0)
    whole = {}
    for kind in list(chunks):  # one after the other, so that the memory of the chunks is free for the next
        found_in = chunks.pop(kind)
        if len(found_in) == count:  # not a column that turned out to hold something else
            whole[kind] = np.concatenate(found_in)
    return whole, num_rows


def _narrowed(column: np.ndarray) -> np.ndarray:
    """int64 as int32 if that holds it."""
    if column.dtype == np.int64 and _INT32.min <= column.min() and column.max() <= _INT32.max:
        return column.astype(np.int32)
    return column


def _traffic(path: str, columns: dict[str, np.ndarray], first_line: int) -> tuple[Traffic, list[str]]:
    """The rows in the order of the file, and what is to be said of them."""
    notes = []
    arrival = next(columns.pop(kind) for kind in ("seconds", DATE, "json time") if kind in columns)
    if arrival.dtype != np.float64:
        arrival = (arrival.astype(np.int64) - arrival.min()) / 1e9
    session = columns.get(SESSION, columns.get(NAME))
    if CHAT in columns:
        sessions = number_sessions(path, columns.pop(CHAT), columns.pop(PARENT), first_line)
        session = sessions.number
        if sessions.num_torn:
            notes.append(f"sessions begun by a chat whose parent is not in the file: {sessions.num_torn}")
    client = columns.get(CLIENT)
    if client is not None:
        client = _numbered(client, "client", notes)
    if session is not None:
        session = _numbered(session, "session", notes)
    return Traffic(arrival, columns[PROMPT], columns[OUTPUT], client, session), notes


def _numbered(column: np.ndarray, name: str, notes: list[str]) -> np.ndarray:
    """The numbers themselves if int32 holds them, else their ranks."""
    if column.size and column.max() > _INT32.max:
        notes.append(f"column {name}: numbers above {_INT32.max}, so they are numbered anew in their order")
        known = column >= 0
        column = column.copy()
        column[known] = np.unique(column[known], return_inverse=True)[1]
    return column.astype(np.int32, copy=False)
