"""Results appear whole or not at all."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from llm_env.errors import InputOutputError, UserError
from llm_env.files import staged_file, staged_folder, write_csv


def test_files_appear_when_the_work_is_done(tmp_path):
    out = tmp_path / "new" / "out"
    with staged_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not (out / "sub").exists()
    assert (out / "sub" / "a.txt").read_text() == "a"
    assert [path.name for path in out.iterdir()] == ["sub"]


def test_failed_work_leaves_old_files_and_no_new_ones(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("old")

    def fail() -> None:
        with staged_folder(out) as folder:
            (folder / "a.txt").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("a.txt", "old")]


def test_failed_work_leaves_no_empty_folder(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_folder(out):
        raise RuntimeError
    assert not out.exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_way_is_named(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputOutputError, match="file"), staged_folder(tmp_path / where):
        pytest.fail("the work must not begin")
    assert (tmp_path / "file").read_text() == "mine"


def test_csv_keeps_every_digit_and_has_no_time_stamp(tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        write_csv(tmp_path / name, {"x": np.array([0.1 + 0.2, np.nan]), "y": np.array([1, -2]), "z": ["a", "b"]})
    first, second = ((tmp_path / name).read_bytes() for name in ("a.csv.gz", "b.csv.gz"))
    assert first == second
    assert gzip.decompress(first).decode() == "x,y,z\n0.30000000000000004,1,a\n,-2,b\n"


def test_a_file_is_there_before_it_is_whole_or_has_another_name(tmp_path):
    path = tmp_path / "new" / "a.csv.gz"
    with staged_file(path) as staged:
        assert staged.name == path.name
        assert staged.parent.parent == path.parent
        staged.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [file.name for file in path.parent.iterdir()] == ["a.csv.gz"]


def test_a_file_is_replaced_unasked(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(UserError, match="exists already; --overwrite replaces it"), staged_file(path):
        pytest.fail("the work must not begin")
    with staged_file(path, overwrite=True) as staged:
        staged.write_text("new")
    assert path.read_text() == "new"


def test_a_file_that_somebody_else_made_meanwhile_is_replaced(tmp_path):
    path = tmp_path / "a.csv"

    def write() -> None:
        with staged_file(path) as staged:
            staged.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(UserError, match="exists already"):
        write()
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_file_without_a_name_is_a_bug(name):
    with pytest.raises(InputOutputError, match="is no name of a file"), staged_file(name):
        pytest.fail("the work must not begin")


def test_a_folder_is_replaced_by_a_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with (
        pytest.raises(InputOutputError, match="is a folder"),
        staged_file(tmp_path / "a.csv", overwrite=True) as staged,
    ):
        staged.write_text("new")


def test_progress_does_not_end_at_the_last_row(tmp_path):
    done: list[int] = []
    write_csv(tmp_path / "a.csv", {"x": np.arange(250_000)}, done.append)
    assert done == [100_000, 200_000, 250_000]
