"""Files that are made to go wrong, read as a user does it: the exact error and nothing written, or the exact rows."""

from __future__ import annotations

import gzip
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adversarial_json import ACCEPTED_JSON, BAILIAN, MOONCAKE, REFUSED_JSON, chat, lines
from adversarial_traces import ACCEPTED, BURST2, DAMAGED, REFUSED, VIDUR, azure, own
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_env.cli import main
from llm_env.errors import InputOutputError, UserError
from llm_env.settings import MAX_TOKENS
from llm_env.workload import read_traffic

EVERY_REFUSED = {**REFUSED, **REFUSED_JSON, **DAMAGED}
EVERY_ACCEPTED = {**ACCEPTED, **ACCEPTED_JSON}


def save(folder: Path, content: str | bytes) -> Path:
    path = folder / "trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_stderr(message: str, path: Path) -> str:
    return "".join(f"error: {re.sub('^T:', lambda _: f'{path}:', line)}\n" for line in message.split("\n"))


# ---- as a user does it ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", EVERY_REFUSED)
def test_a_wrong_file_has_another_error_or_leaves_something_behind(tmp_path, capsys, name):
    content, message = EVERY_REFUSED[name]
    path, out = save(tmp_path, content), tmp_path / "out" / "trace.csv"
    code = main(["workload", "convert", str(path), "--out", str(out)])
    printed = capsys.readouterr()
    assert printed.err == as_stderr(message, path)
    assert printed.out == ""
    assert code == (3 if name in DAMAGED else 2)
    assert not out.parent.exists()


@pytest.mark.parametrize("name", EVERY_ACCEPTED)
def test_a_right_file_is_refused_or_becomes_other_rows(tmp_path, capsys, name):
    content, rows = EVERY_ACCEPTED[name]
    path, out = save(tmp_path, content), tmp_path / "out" / "trace.csv"
    assert main(["workload", "convert", str(path), "--out", str(out)]) == 0, capsys.readouterr().err
    assert out.read_bytes() == rows.encode()
    assert [file.name for file in out.parent.iterdir()] == ["trace.csv"]


@pytest.mark.parametrize("name", [*EVERY_REFUSED, *EVERY_ACCEPTED])
def test_what_is_read_depends_on_where_a_block_ends(tmp_path, monkeypatch, name):
    content = (EVERY_REFUSED | EVERY_ACCEPTED)[name][0]
    if len(content) > 10_000 or "bomb" in name:
        pytest.skip("a block for every few bytes takes too long")
    path = save(tmp_path, content)
    whole = outcome(path)
    monkeypatch.setattr("llm_env.workload.trace_text.BLOCK", 16)
    assert outcome(path) == whole


def outcome(path: Path) -> str | list[list[float] | None]:
    try:
        traffic, _ = read_traffic(path)
    except UserError as error:
        return str(error)
    return [None if column is None else column.tolist() for column in traffic]


# ---- files that are no files ---------------------------------------------------------------------------------------
def make_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def make_below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "trace.csv"


NO_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pipe": (make_pipe, "is a pipe, expected a file"),
    "directory": (lambda folder: folder, "is a directory, expected a file"),
    "device": (lambda _: Path("/dev/zero"), "is a device, expected a file"),
    "missing": (lambda folder: folder / "missing.csv", "No such file or directory"),
    "below a file": (make_below_a_file, "Not a directory"),
    "a link to itself": (make_loop, "Too many levels of symbolic links"),
    "a name of 300 characters": (lambda folder: folder / ("x" * 300), "File name too long"),
}


@pytest.mark.parametrize("name", NO_FILES)
def test_what_is_no_file_is_waited_for_or_a_bug(tmp_path, capsys, name):
    make, why = NO_FILES[name]
    path, out = make(tmp_path), tmp_path / "out" / "trace.csv"
    assert main(["workload", "convert", str(path), "--out", str(out)]) == 3
    assert capsys.readouterr().err == f"error: {path}: cannot be read: {why}\n"
    assert not out.parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_bug(tmp_path):
    path = save(tmp_path, own("0,1,1"))
    path.chmod(0)
    with pytest.raises(InputOutputError, match="cannot be read: Permission denied"):
        read_traffic(path)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("change", ["grows", "shrinks", "is touched"])
def test_a_file_that_changes_while_it_is_read_is_half_read(tmp_path, monkeypatch, change, compress):
    path = save(tmp_path, compress(own(*["0,1,1"] * 1000).encode()))
    size = path.stat().st_size
    from llm_env.workload import trace_text

    read = trace_text._Source.read

    def read_and_change(self, size: int) -> bytes:
        data = read(self, size)
        if change == "grows":
            with path.open("ab") as file:
                file.write(b"1,1,1\n")
        elif change == "shrinks":
            os.truncate(path, 10)
        else:
            os.utime(path, (0, 0))
        return data

    monkeypatch.setattr(trace_text._Source, "read", read_and_change)
    with pytest.raises(InputOutputError, match=f"changed while it was read \\({size} bytes at first, \\d+ now\\)"):
        read_traffic(path)


def test_the_text_of_a_file_is_held_as_a_whole(tmp_path):
    """160 MB of text in 200 rows, packed to less than 1 MB; what is held is a block of 1 MiB, a few times over."""
    row = b"0,1,1," + b"7 " * 400_000 + b"\n"
    path = save(tmp_path, gzip.compress(own(more=",hash_ids").encode()) + gzip.compress(row) * 200)
    tracemalloc.start()
    try:
        traffic, _ = read_traffic(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert traffic.size == 200


# ---- any bytes -----------------------------------------------------------------------------------------------------
SEEDS = [
    own("0,1,1", "1.5,20,3", "2e1,300,40", more=""),
    own("0,1,1,3,9", "1.5,20,3,,", "2e1,300,40,-1,9", more=",client,session"),
    azure("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"),
    azure("2024-05-12 00:00:00+00:00", "2024-05-12T02:00:01.5+02:00"),
    f"{BURST2}\n5.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n6.0,,2,ChatGPT,36,0,36,API log\n",
    f"{VIDUR}\n0.0,374,44\n4.314579,396,109\n",
    lines(MOONCAKE, MOONCAKE),
    lines(BAILIAN, chat(6, 5, 2.0), chat(7, 6, 3.0)),
]
PIECES = st.one_of(
    st.binary(max_size=3),
    st.sampled_from(
        [b"0", b"9" * 25, b"-", b".", b",", b"\n", b"\r", b"\n\n", b'"', b"{", b"}", b"[", b"]", b":", b" "]
    ),
    st.sampled_from([b"null", b"NaN", b"1e999", b"true", b"+00:00", b"Z", b"\xef\xbb\xbf", b"\xff", b"\0", b"_", b"e"]),
)
CUTS = st.tuples(st.floats(0, 1), st.integers(0, 6), PIECES)


@given(seed=st.sampled_from(SEEDS), cuts=st.lists(CUTS, min_size=1, max_size=4), compress=st.booleans())
@example(seed=SEEDS[0], cuts=[(1.0, 0, b"0,1,1")], compress=True)
@settings(max_examples=1500, deadline=None)
def test_a_file_with_a_few_wrong_bytes_is_a_bug(tmp_path_factory, seed, cuts, compress):
    """Also a check that the bulk conversion and the search for the culprit agree: it is a bug if they do not."""
    content = seed.encode()
    for where, length, piece in cuts:
        start = round(where * len(content))
        content = content[:start] + piece + content[start + length :]
    path = save(tmp_path_factory.getbasetemp(), gzip.compress(content) if compress else content)
    try:
        traffic, report = read_traffic(path)
    except UserError:
        return
    assert report.requests == traffic.size >= 1
    assert np.isfinite(traffic.arrival_s).all()
    assert (np.diff(traffic.arrival_s) >= 0).all()
    for tokens in (traffic.prompt_tokens, traffic.output_tokens):
        assert tokens.min() >= 1
        assert tokens.max() <= MAX_TOKENS
