"""The folders that checkpoints are: what comes back, what stays when a write fails, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from agents import checkpoint as module
from agents.checkpoint import (
    ARRAYS,
    FOLDER,
    MANIFEST,
    NUMBERS,
    POINTER,
    has_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from llm_env.dtypes import REQUEST, SYSTEM
from llm_env.errors import InputOutputError, UserError

IDENTITY = {"environment": "e" * 64, "settings": "s" * 64}


def some_state(seed=0):
    rng = np.random.default_rng(seed)
    requests = np.frombuffer(rng.bytes(6 * REQUEST.itemsize), REQUEST).reshape(2, 3)
    return {
        "part0.requests": requests,
        "part0.system": np.frombuffer(rng.bytes(SYSTEM.itemsize), SYSTEM),
        "weights": rng.normal(size=(3, 4)).astype(np.float32),
        "transposed": rng.normal(size=(3, 4)).T,
        "adam.step": np.array(7.0, np.float32),
        "empty": np.zeros((2, 0, 3)),
        "flags": np.array([True, False]),
        "streams": [[2**127 + 1, 3, 0, 5], None],
        "count": 17,
    }


def write(run, step, seed=0, **more):
    run.mkdir(exist_ok=True)
    return write_checkpoint(run, step, IDENTITY, some_state(seed), {"best/agent.json": b"{}", **more})


def refuse(line):
    pytest.fail(f"nothing is damaged: {line}")


# ---- what comes back -----------------------------------------------------------------------------------------------
def test_what_was_written_is_read_to_the_last_byte(tmp_path):
    folder = write(tmp_path / "run", 4096)
    found = newest_checkpoint(tmp_path / "run", refuse)
    assert (found.folder, found.step, found.identity) == (folder, 4096, IDENTITY)
    assert found.files == {"best/agent.json": b"{}"}
    state = some_state()
    assert found.state.values.keys() == state.keys()
    for name, value in state.items():
        mine = found.state.values[name]
        if isinstance(value, np.ndarray):
            assert (mine.dtype, mine.shape, mine.tobytes()) == (value.dtype, value.shape, value.tobytes()), name
        else:
            assert mine == value, name


def test_the_last_two_are_kept_and_leftovers_of_a_killed_process_go(tmp_path):
    run = tmp_path / "run"
    for step in (10, 20, 30):
        write(run, step, step)
        (run / FOLDER / ".writing-000000000999").mkdir()
        (run / FOLDER / ".latest.json").write_text("{")
    write(run, 40)
    names = sorted(path.name for path in (run / FOLDER).iterdir())
    assert names == ["000000000030", "000000000040", POINTER]
    assert newest_checkpoint(run, refuse).step == 40


def test_a_run_without_one_has_none(tmp_path):
    assert newest_checkpoint(tmp_path, refuse) is None
    (tmp_path / FOLDER).mkdir()
    assert newest_checkpoint(tmp_path, refuse) is None
    assert not has_checkpoints(tmp_path)


# ---- a full disk ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", range(9))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails_keeps_the_checkpoint_before(tmp_path, monkeypatch, call, number):
    run, calls, real = tmp_path / "run", [], os.fsync
    write(run, 10)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def fails(handle):
        calls.append(handle)
        if len(calls) == call + 1:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(InputOutputError, match="the checkpoint of step 20 was not written") as error:
        write(run, 20, 1)
    assert "\n" not in str(error.value)
    assert ("the disk is full" in str(error.value)) == (number != errno.EIO)
    monkeypatch.undo()
    for path, content in before.items():
        assert path.name == POINTER or path.read_bytes() == content
    assert not [*(run / FOLDER).glob(".writing*")]
    assert newest_checkpoint(run, refuse).step in (10, 20)  # 20 if only its pointer failed
    write(run, 20, 2)
    assert newest_checkpoint(run, refuse).step == 20


def test_nothing_is_named_before_it_is_on_the_disk(tmp_path, monkeypatch):
    """Contents before names, names before the pointer, the pointer last; then nothing but removals."""
    events: list[str] = []
    real = {"fsync": os.fsync, "rename": module.Path.rename, "replace": module.Path.replace}
    monkeypatch.setattr(
        os,
        "fsync",
        lambda h: (events.append("sync " + Path(f"/proc/self/fd/{h}").readlink().name), real["fsync"](h)),
    )
    for name in ("rename", "replace"):
        monkeypatch.setattr(
            module.Path,
            name,
            lambda path, to, name=name: (events.append(f"{name} {path.name} {to.name}"), real[name](path, to))[1],
        )
    write(tmp_path / "run", 10)
    inside = {"sync .writing-000000000010", "sync best", f"sync {NUMBERS}", f"sync {ARRAYS}", "sync agent.json"}
    inside |= {f"sync {MANIFEST}"}
    renamed = events.index("rename .writing-000000000010 000000000010")
    assert set(events[1:renamed]) == inside
    assert events[renamed + 1 :] == [
        *(f"sync {FOLDER}", f"sync .{POINTER}", f"replace .{POINTER} {POINTER}", f"sync {FOLDER}")
    ]


# ---- damage --------------------------------------------------------------------------------------------------------
def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1) + "\n")


def signed(change):
    """A change of the manifest by somebody who also puts its sha256 right."""

    def apply(path):
        content = json.loads(path.read_text())
        change(content)
        content.pop("sha256", None)
        digest = module._sha256(module._to_json(content))
        path.write_bytes(module._to_json(content | {"sha256": digest}))

    return apply


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "a file is cut off": (ARRAYS, cut, ["bytes: expected", "truncated"]),
    "a bit of the arrays is flipped": (ARRAYS, flip, ["sha256"]),
    "a bit of the numbers is flipped": (NUMBERS, flip, ["sha256"]),
    "the arrays are gone": (ARRAYS, lambda path: path.unlink(), ["is missing"]),
    "the best agent is gone": ("best/agent.json", lambda path: path.unlink(), ["is missing"]),
    "the manifest is gone": (MANIFEST, lambda path: path.unlink(), ["is missing"]),
    "the manifest is cut off": (MANIFEST, cut, ["not valid JSON"]),
    "the manifest is no object": (MANIFEST, lambda path: path.write_text("[1]"), ["expected an object"]),
    "the manifest is deep": (MANIFEST, lambda path: path.write_text("[" * 100_000), ["not valid JSON"]),
    "a field was changed": (MANIFEST, lambda path: edit_json(path, lambda m: m.update(step=5)), ["sha256"]),
    "another format": (MANIFEST, signed(lambda m: m.update(format=2)), ["format: expected 1, got 2"]),
    "the step is another": (MANIFEST, signed(lambda m: m.update(step=5)), ["step: expected"]),
    "a file outside": (MANIFEST, signed(lambda m: m["files"].update({"../x.json": {}})), ["files: '../x.json'"]),
    "a file is not named": (MANIFEST, signed(lambda m: m["files"].pop(NUMBERS)), [f"files: {NUMBERS} is missing"]),
    "objects in an array": (
        MANIFEST,
        signed(lambda m: m["records"]["part0.requests"].update(fields=[["x", "|O8", 0, []]], bytes=8)),
        ["records.part0.requests"],
    ),
    "a layout that does not fit": (
        MANIFEST,
        signed(lambda m: m["records"]["part0.requests"].update(shape=[7, 7])),
        ["records.part0.requests"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_clear_error_or_the_way_back_to_the_one_before(tmp_path, name):
    file, damage, said = DAMAGES[name]
    run, remarks = tmp_path / "run", []
    write(run, 10)
    folder = write(run, 20, 1)
    damage(folder / file)
    with pytest.raises(UserError) as error:
        read_checkpoint(folder)
    for words in (str(folder / file), *said):
        assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert newest_checkpoint(run, remarks.append).step == 10
    assert len(remarks) == 1
    assert remarks[0].startswith(str(error.value))
    assert "going on from the sound checkpoint of step 10" in remarks[0]
    shutil.rmtree(run / FOLDER / "000000000010")
    with pytest.raises(UserError) as alone:
        newest_checkpoint(run, refuse)
    assert str(alone.value) == str(error.value)


@pytest.mark.parametrize(
    ("pointer", "said"),
    [
        ('{"format": 1, "checkpoint": "000000000099"}', "checkpoint: there is no folder 000000000099"),
        ('{"format": 1, "checkpoint": "../../etc"}', "checkpoint: expected twelve digits"),
        ('{"format": 1}', "checkpoint: is missing"),
        ('{"format": 3, "checkpoint": "000000000010"}', "format: expected 1, got 3"),
        ("", "not valid JSON"),
        ("x" * 5000, "expected at most 4096 bytes"),
        (None, "is missing"),
    ],
)
def test_a_pointer_to_nothing_is_remarked(tmp_path, pointer, said):
    run, remarks = tmp_path / "run", []
    folder = write(run, 10)
    place = run / FOLDER / POINTER
    place.unlink() if pointer is None else place.write_text(pointer)
    assert newest_checkpoint(run, remarks.append).step == 10
    assert len(remarks) == 1
    assert f"{place}: {said}" in remarks[0]
    shutil.rmtree(folder)
    if pointer is None:
        assert newest_checkpoint(run, refuse) is None
        return
    with pytest.raises(UserError, match=POINTER):
        newest_checkpoint(run, refuse)


def test_a_damaged_one_is_replaced_when_the_run_comes_there_again(tmp_path):
    run = tmp_path / "run"
    write(run, 10)
    flip(write(run, 20) / ARRAYS)
    assert newest_checkpoint(run, lambda line: None).step == 10
    write(run, 20, 1)
    assert newest_checkpoint(run, refuse).step == 20
    assert sorted(path.name for path in (run / FOLDER).iterdir()) == ["000000000010", "000000000020", POINTER]
