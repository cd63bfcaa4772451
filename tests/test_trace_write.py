"""What is written is what is read, bit by bit, and equal traffic is equal bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_env.workload import Traffic, read_traffic, write_traffic

TOKENS = st.integers(1, 1_048_576)
IDENTITY = st.integers(-1, 2**31 - 1)
ROWS = st.lists(st.tuples(st.floats(0, 1e12), TOKENS, TOKENS, IDENTITY, IDENTITY), min_size=1, max_size=30)


def as_traffic(rows: list[tuple], clients: bool, sessions: bool) -> Traffic:
    arrival, prompt, output, client, session = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    counts = (np.array(column, np.int32) for column in (prompt, output, client, session))
    prompt, output, client, session = counts
    return Traffic(np.array(arrival) + 0.0, prompt, output, client if clients else None, session if sessions else None)


@given(rows=ROWS, clients=st.booleans(), sessions=st.booleans(), ending=st.sampled_from([".csv", ".csv.gz"]))
@settings(max_examples=150, deadline=None)
def test_what_was_written_is_not_what_is_read(tmp_path_factory, rows, clients, sessions, ending):
    traffic = as_traffic(rows, clients, sessions)
    path = tmp_path_factory.getbasetemp() / f"written{ending}"
    write_traffic(path, traffic)
    again, report = read_traffic(path)
    for wrote, read in zip(traffic, again, strict=True):
        assert (wrote is None) == (read is None)
        assert wrote is None or (wrote.tobytes() == read.tobytes() and wrote.dtype == read.dtype)
    assert (report.unsorted_rows, report.dropped, report.notes) == (0, {}, ())


def test_the_bytes_of_a_file_differ(tmp_path):
    traffic = as_traffic([(0.1 + 0.2, 1, 2, -1, 3), (1e-9, 3, 4, 0, -1), (1e9, 5, 6, 1, 7)], True, True)
    done: list[int] = []
    write_traffic(tmp_path / "a.csv", traffic, done.append)
    assert (tmp_path / "a.csv").read_bytes() == (
        b"arrival_s,prompt_tokens,output_tokens,client,session\n"
        b"1e-09,3,4,0,-1\n0.30000000000000004,1,2,-1,3\n1000000000.0,5,6,1,7\n"
    )
    assert done == [3]
