"""llm_env/render.py: pictures have their size, show the state they are given, and cost no import."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from toy import toy_state

from llm_env.core import step
from llm_env.dtypes import ACTIVE
from llm_env.records import decision, snapshot
from llm_env.render import HEIGHT, MAX_BATCHES, WIDTH, BatchNote, History, render_ansi, render_rgb, show_text

ROOT = Path(__file__).resolve().parent.parent
RED = (0xD5, 0x5E, 0x00)  # hopeless or late
PREFILL = (0xE6, 0x9F, 0x00)
DECODE = (0x00, 0x72, 0xB2)
KV = (0x56, 0xB4, 0xE9)


def played(steps, rows=((0.0, 40, 30), (0.0, 200, 5), (0.3, 30, 9)), d=None, **settings):
    """State and History after some steps."""
    state, history = toy_state(list(rows), **settings), History()
    for _ in range(steps):
        if state.system[0]["phase"] == ACTIVE:
            w = int(state.system[0]["worker"])
            step(state, decision(10) if d is None else d)
            history.note(state, w)
    return state, history


def count(image, color):
    return int((image == np.array(color, np.uint8)).all(axis=2).sum())


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (0, {}),
        (1, {}),
        (30, {"blocks": 100}),
        (500, {}),  # the end: nothing waits or runs
        (60, {"workers": 2, "blocks": 64}),
        (60, {"workers": 3}),
        (60, {"workers": 20}),
        (5, {"ttft_ms": 1e6, "tbt_ms": 1e6}),
        (5, {"ttft_ms": 0.01, "tbt_ms": 0.01}),
    ],
)
def test_every_state_can_be_drawn(steps, settings):
    state, history = played(steps, **settings)
    image = render_rgb(state, history)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert image.std() > 5, "the picture is blank"
    text = render_ansi(state, history)
    assert text.endswith("\n")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert f"t = {state.system[0]['now_s']:.3f} s" in text


def test_the_same_state_gives_the_same_bytes():
    pictures = [render_rgb(*played(20, blocks=100)) for _ in range(2)]
    assert pictures[0].tobytes() == pictures[1].tobytes()
    assert render_rgb(*played(21, blocks=100)).tobytes() != pictures[0].tobytes()


def test_a_picture_is_a_fresh_array_that_may_be_written():
    state, history = played(5)
    first = render_rgb(state, history)
    kept = first.copy()
    first[:] = 0
    assert (render_rgb(state, history) == kept).all()


def test_drawing_leaves_the_state_as_it_is():
    state, history = played(20, blocks=100)
    before = snapshot(state)
    render_rgb(state, history)
    render_ansi(state, history)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, state, strict=True))


def test_a_hopeless_request_shows_in_red_and_in_words():
    calm, late = played(1, [(0.0, 5, 9), (0.0, 5, 9)]), played(0, [(0.0, 500, 9), (0.0, 500, 9)])
    assert late[0].buckets[0, 0, 0] == 2
    assert count(render_rgb(*late), RED) > 5 * count(render_rgb(*calm), RED)
    assert "hopeless ████████████████████████     2 requests     1000 tokens" in render_ansi(*late)


def test_the_newest_batch_is_split_into_prefill_and_decode():
    state, history = played(1, [(0.0, 5, 9)])
    assert "0 decode + 5 prefill ended" in render_ansi(state, history)
    prefill = render_rgb(state, history)
    step(state, decision(10))
    history.note(state, 0)
    assert "1 decode + 0 prefill ended" in render_ansi(state, history)
    assert count(prefill, PREFILL) > count(render_rgb(state, history), PREFILL)


def test_the_kv_gauge_fills():
    states = [played(3, [(0.0, prompt, 9)], blocks=100, d=decision(400)) for prompt in (20, 300)]
    little, much = (count(render_rgb(*state), KV) for state in states)
    assert 0 < little < much
    assert "KV ████████··" in render_ansi(*states[1])
    assert "KV unlimited" in render_ansi(*played(3))


def test_history_notes_each_batch_once_and_holds_never():
    state, history = played(2, [(0.0, 15, 4)])
    assert list(history.batches) == [
        BatchNote(0, 0.0, pytest.approx(0.020), 10, 0),
        BatchNote(0, pytest.approx(0.020), pytest.approx(0.035), 5, 0),
    ]
    history.note(state, 0)
    step(state, decision(10, hold_s=0.01))
    history.note(state, 0)
    assert len(history.batches) == 2
    step(state, decision(10))
    history.note(state, 0)
    assert history.batches[-1][3:] == (0, 1)


def test_history_keeps_the_last_batches_and_can_be_cleared():
    _, history = played(MAX_BATCHES + 30, [(0.0, 5, 1000)])
    assert len(history.batches) == MAX_BATCHES
    assert history.batches[0].start_s > 0.2
    history.clear()
    assert not history.batches
    fresh, _ = played(1, [(0.0, 5, 1000)])
    history.note(fresh, 0)
    assert len(history.batches) == 1


def test_importing_it_loads_no_drawing_library():
    code = "import sys, llm_env.render; print([m for m in ('matplotlib', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- in a terminal -------------------------------------------------------------------------------------------------
def test_human_rendering_needs_a_call_or_prints_another_picture_than_ansi(capsys):
    changes = {"episode.arrivals_s": 20.0}
    human, ansi = (gym.make("llm_env:llm_env/Serving-v0", changes=changes, render_mode=m) for m in ("human", "ansi"))
    human.reset(seed=5)
    ansi.reset(seed=5)
    pictures = [ansi.render()]
    assert capsys.readouterr().out == f"{pictures[0]}\n"
    for action in ([7, 2, 1, 0], [4, 1, 2, 3], [0, 0, 0, 1]):
        human.step(np.array(action))
        ansi.step(np.array(action))
        pictures.append(ansi.render())
        assert capsys.readouterr().out == f"{pictures[-1]}\n"
    assert len(set(pictures)) == 4
    assert human.render() is None
    assert capsys.readouterr().out == f"{pictures[-1]}\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_pictures_in_a_terminal_run_down_the_screen():
    out = Terminal()
    show_text("one\n", out)
    show_text("two\n", out)
    assert out.getvalue() == "\x1b[H\x1b[Jone\n\x1b[H\x1b[Jtwo\n"


def test_human_rendering_does_not_pass_the_checks_of_gymnasium(capsys):
    env = gym.make("llm_env:llm_env/Serving-v0", changes={"episode.arrivals_s": 20.0}, render_mode="human")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset(seed=1)
        env.step(env.action_space.sample())
    assert env.unwrapped.render_mode == "human"
    assert capsys.readouterr().out.startswith("t = ")
