"""Results appear whole or not at all."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from llm_env.errors import InputOutputError
from llm_env.files import staged_folder, write_csv


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
