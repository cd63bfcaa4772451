"""A process that dies at any step of writing a checkpoint leaves a sound one, and the next process goes on from it.

A fork dies by os._exit before the k-th operation on the file system, or in the middle of a write: no `finally` and no
buffer of Python is left to tidy up, as with SIGKILL.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import checkpoint as module
from agents.checkpoint import ARRAYS, FOLDER, POINTER, newest_checkpoint, write_checkpoint

module.made_here()  # once, not in every fork
OPERATIONS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")
DEAD = 77


def state_of(step):
    return {"weights": np.full(50, step, np.float32), "step": step}


def write(run, step):
    write_checkpoint(run, step, {"environment": "e"}, state_of(step), {"progress.csv": b"a,b\n" * step})


def dies_writing(run, step, point):
    """Whether a fork that writes a checkpoint dies at its point-th operation; False: it was done before that."""
    process = os.fork()
    if process == 0:
        count = 0

        def tick():
            nonlocal count
            count += 1
            return count > point

        def wrapped(real):
            def operation(*arguments, **more):
                if tick():
                    os._exit(DEAD)
                return real(*arguments, **more)

            return operation

        def torn(path, data):
            with open(path, "wb") as file:
                if tick():
                    file.write(data[: len(data) // 2])
                    file.flush()
                    os._exit(DEAD)
            write_whole(path, data)

        write_whole = module._write
        module._write = torn
        for name in OPERATIONS:
            setattr(os, name, wrapped(getattr(os, name)))
        try:
            write(run, step)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, DEAD)
    return code == DEAD


def sound_step(run):
    """The step of the newest sound checkpoint, whose content is that of its step; 0 if there is none."""
    found = newest_checkpoint(run, lambda _: None)
    if found is None:
        return 0
    state = state_of(found.step)
    assert found.state.values["step"] == state["step"]
    assert (found.state.values["weights"] == state["weights"]).all()
    assert found.files == {"progress.csv": b"a,b\n" * found.step}
    return found.step


def tidy(run, newest):
    names = sorted(path.name for path in (run / FOLDER).iterdir())
    assert names[-1] == POINTER
    assert all(name.isdecimal() for name in names[:-1])
    assert len(names) <= 3
    assert names[-2] == f"{newest:012d}"


@pytest.mark.parametrize("before", [(), (10,), (10, 20), (10, 20, 30)])
def test_a_death_at_any_step_loses_the_checkpoint_before(tmp_path, before):
    """(10, 20, 30): the newest is damaged, and the run has come to its step again."""
    original = tmp_path / "original"
    original.mkdir()
    for step in before:
        write(original, step)
    if 30 in before:
        (original / FOLDER / f"{30:012d}" / ARRAYS).write_bytes(b"damaged")
    least = max((step for step in before if step < 30), default=0)
    point, alive = 0, False
    while not alive:
        run = tmp_path / f"run-{point}"
        shutil.copytree(original, run)
        alive = not dies_writing(run, 30, point)
        assert sound_step(run) in (least, 30)
        write(run, 40)  # what the next process does, some time later
        assert sound_step(run) == 40
        tidy(run, 40)
        point += 1
    assert point > 20, "the operations were not counted"


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 45), min_size=1, max_size=6))
def test_a_run_that_dies_again_and_again_goes_back_behind_what_was_done(points):
    """Each process goes on from the newest sound checkpoint, writes the next one and perhaps dies over it."""
    with tempfile.TemporaryDirectory() as folder:
        run, reached = Path(folder), 0
        for point in points:
            begins = sound_step(run)
            assert begins >= reached
            if not dies_writing(run, begins + 10, point):
                reached = begins + 10
                tidy(run, reached)
                assert sound_step(run) == reached
            reached = max(reached, begins)
        assert sound_step(run) >= reached
