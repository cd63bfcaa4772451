"""llm_env/jit.py: compiled code is kept where it may be kept, and never outlives the source it was made from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from numba import config

from llm_env import jit, units

ROOT = Path(__file__).resolve().parent.parent
find_folder = jit.cache_folder.__wrapped__  # without the memory of the first answer


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two small source folders in place of the package's and the policies'."""
    folders = (tmp_path / "package", tmp_path / "policies")
    for folder in folders:
        (folder / "inner").mkdir(parents=True)
        (folder / "a.py").write_text("A = 1\n")
        (folder / "inner" / "b.py").write_text("B = 1\n")
    monkeypatch.setattr(jit, "CACHED_FOLDERS", folders)
    return folders


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No cache folder is named, HOME is empty, and the temporary folder is a new one."""
    for name in ("LLM_ENV_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return home, temporary


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["a.py", "inner/b.py"])
def test_an_edit_anywhere_changes_the_folder(sources, nowhere, which, name):
    before = find_folder()
    (sources[which] / name).write_text("A = 2\n")
    assert find_folder() != before


def test_a_new_a_removed_and_a_moved_file_change_the_folder(sources):
    seen = [jit.source_hash()]
    (sources[0] / "c.py").write_text("C = 1\n")
    seen.append(jit.source_hash())
    (sources[0] / "c.py").rename(sources[0] / "inner" / "c.py")
    seen.append(jit.source_hash())
    (sources[0] / "a.py").unlink()
    seen.append(jit.source_hash())
    assert len(set(seen)) == 4


def test_unchanged_sources_keep_the_folder(sources, nowhere):
    before = find_folder()
    (sources[0] / "notes.txt").write_text("no source")
    os.utime(sources[0] / "a.py")
    assert find_folder() == before


@pytest.mark.parametrize(("flag", "value"), [("BOUNDSCHECK", 1), ("OPT", 0), ("DEBUGINFO_DEFAULT", 1)])
def test_flags_that_change_the_code_change_the_folder(sources, monkeypatch, flag, value):
    monkeypatch.setattr(config, flag, "something else")
    before = jit.source_hash()
    monkeypatch.setattr(config, flag, value)
    assert jit.source_hash() != before


def test_the_named_folder_comes_first_then_the_users(nowhere, tmp_path, monkeypatch):
    home, _ = nowhere
    assert Path(find_folder()).parent == home / ".cache" / "llm_env"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Path(find_folder()).parent == tmp_path / "xdg" / "llm_env"
    monkeypatch.setenv("LLM_ENV_CACHE_DIR", str(tmp_path / "named"))
    assert Path(find_folder()).parent == tmp_path / "named"


def test_the_folder_is_private(nowhere):
    assert Path(find_folder()).stat().st_mode & 0o077 == 0


def test_without_a_home_a_temporary_folder_is_used(nowhere, monkeypatch):
    def no_home():
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", no_home)
    assert nowhere[1] in Path(find_folder()).parents


def test_with_an_unusable_home_a_temporary_folder_is_used(nowhere, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")  # refused to root too, unlike a folder without write permission
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert nowhere[1] in Path(find_folder()).parents


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_with_a_read_only_home_a_temporary_folder_is_used(nowhere):
    nowhere[0].chmod(0o500)
    assert nowhere[1] in Path(find_folder()).parents


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_a_folder_that_others_may_write_is_not_trusted(nowhere, monkeypatch):
    (nowhere[0] / ".cache").write_text("in the way")
    outer = nowhere[1] / f"llm_env-{os.getuid()}"
    outer.mkdir()
    outer.chmod(0o777)
    assert outer not in Path(find_folder()).parents


def test_other_packages_keep_their_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", "/theirs")
    seen = []
    monkeypatch.setattr(units, "FunctionCache", lambda _: seen.append(config.CACHE_DIR) or Fails())
    monkeypatch.setattr(config, "DISABLE_JIT", 0)
    with pytest.raises(ValueError, match="no cache"):
        jit.njit(lambda x: x)(1)
    assert seen == [jit.cache_folder()]
    assert config.CACHE_DIR == "/theirs"


class Fails:
    @property
    def cache_path(self):
        raise ValueError("no cache")


@pytest.mark.parametrize("filename", ["<string>", "<stdin>", "/no/such/folder/policy.py"])
def test_a_function_without_a_file_still_compiles(filename):
    names: dict = {}
    exec(compile("def double(x):\n    return 2 * x\n", filename, "exec"), names)
    assert jit.njit(names["double"])(21) == 42


@pytest.mark.nojit
def test_the_decorator_works_bare_with_options_and_with_a_signature():
    @jit.njit
    def bare(x):
        return x + 1

    @jit.njit(inline="always")
    def with_options(x):
        return x + 1

    @jit.njit("int64(int64)")
    def with_signature(x):
        return x + 1

    assert bare(1) == with_options(1) == with_signature(1) == 2
    assert np.isinf(jit.njit(lambda x, y: x / y)(np.float64(1), np.float64(2))) == 0


@pytest.mark.nojit
@pytest.mark.skipif(not config.DISABLE_JIT, reason="only with NUMBA_DISABLE_JIT=1")
def test_without_the_compiler_a_function_stays_plain_python():
    assert type(jit.njit(lambda x: x)) is type(lambda: None)


@pytest.mark.kernel
@pytest.mark.skipif(not config.BOUNDSCHECK, reason="only with NUMBA_BOUNDSCHECK=1")
def test_a_read_past_the_end_fails_where_bounds_are_checked():
    @jit.njit
    def last(a):
        return a[len(a)]

    with pytest.raises(IndexError):
        last(np.zeros(3))


MODULE = """
from helper import SCALE, helped
from llm_env.jit import cache_folder, njit

@njit
def f(x):
    return helped(x) + SCALE
"""
HELPER = """
from llm_env.jit import njit
SCALE = {scale}

@njit
def helped(x):
    return 100 * {scale} * x
"""
PROGRAM = """
import sys, pathlib
from llm_env import jit, units
here = pathlib.Path(sys.argv[1])
jit.CACHED_FOLDERS = (here,)
sys.path.insert(0, str(here))
import module
print(module.f(2), sum(module.f.stats.cache_hits.values()))
"""


def start(folder: Path, **more: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    environment |= {"LLM_ENV_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)} | more
    command = [sys.executable, "-B", "-c", PROGRAM, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen) -> list[str]:
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out.split()


@pytest.fixture
def program(tmp_path):
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "helper.py").write_text(HELPER.format(scale=1))
    return tmp_path


def test_processes_that_begin_at_once_with_an_empty_cache_all_compute_and_leave_one_file(program):
    at_once = [start(program) for _ in range(4)]
    assert [output(process)[0] for process in at_once] == ["201"] * 4
    kept = [path for path in (program / "cache").rglob("*") if path.is_file()]
    assert len(kept) == 1, kept  # of f; helped is a part of it
    assert output(start(program)) == ["201", "1"]  # compiled before, loaded now


def test_an_edit_of_an_imported_file_is_noticed(program):
    assert output(start(program)) == ["201", "0"]
    (program / "helper.py").write_text(HELPER.format(scale=2))
    assert output(start(program)) == ["402", "0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    ],
    ids=["empty", "truncated", "last bit", "a bit of the code"],
)
def test_damaged_code_is_compiled_again(program, damage):
    assert output(start(program)) == ["201", "0"]
    (code,) = (program / "cache").rglob("*.nbi-*")
    code.write_bytes(damage(code.read_bytes()))
    assert output(start(program)) == ["201", "0"]
    assert output(start(program)) == ["201", "1"]  # and what was damaged is replaced


def test_a_process_that_is_killed_leaves_nothing_broken(program):
    killed = start(program)
    for _ in range(600):
        if (program / "cache").exists():
            break
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    (folder,) = (program / "cache").iterdir()
    (folder / "half.nbi-01.tmp.23").write_bytes(b"half")
    assert output(start(program))[0] == "201"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
def test_a_read_only_install_without_home_works(program):
    (program / "cache").write_text("in the way")
    temporary = program / "tmp"
    temporary.mkdir()
    read_only = [program / "module.py", program / "helper.py", program]
    modes = {path: path.stat().st_mode for path in read_only}
    for path in read_only:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        nowhere = {"HOME": str(program / "cache"), "TMPDIR": str(temporary), "XDG_CACHE_HOME": ""}
        assert output(start(program, **nowhere)) == ["201", "0"]
        assert output(start(program, **nowhere)) == ["201", "1"]
    finally:
        for path in reversed(read_only):
            path.chmod(modes[path])
    assert list(temporary.rglob("*.nbi-*"))


def test_no_module_left_out_of_the_hash_is_within_reach_of_compiled_code():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in jit.PACKAGE.glob("*.py")}
    sources |= {f"{path.parent.name}.{path.stem}": path.read_text() for path in jit.PACKAGE.glob("*/*.py")}
    sources |= {f"baselines.{p.stem}": p.read_text() for p in (jit.PACKAGE.parent / "baselines").glob("*.py")}
    stems = {name: name.removeprefix("baselines.") for name in sources}
    assert set(stems.values()) >= jit.SHELLS
    for name, source in sources.items():
        if stems[name] in jit.SHELLS or name.split(".")[0] in jit.SHELL_FOLDERS:
            assert "njit" not in source, name
            assert "@policy" not in source, name
        elif "njit" in source or "@policy" in source:
            reached = set(re.findall(r"from (?:llm_env|baselines)\.(\w+) import", source))
            assert not reached & (jit.SHELLS | jit.SHELL_FOLDERS), name


@pytest.mark.skipif(jit.IN_PLAIN_PYTHON, reason="nothing is compiled")
def test_a_numba_that_is_built_otherwise_is_of_no_use():
    """Units rest on parts of numba that may change; without them numba compiles in its own way."""
    code = """
import sys
sys.modules["llm_env.units"] = None
from llm_env.jit import compile_unit, njit
from llm_env.queue import lowest_bit
assert compile_unit is None
@njit("int64(int64)")
def doubled(x):
    return 2 * lowest_bit(x)
print(doubled(8))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "6", done.stderr
