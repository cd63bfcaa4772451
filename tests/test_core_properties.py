"""llm_env/core.py: what holds on every step of every policy on any workload; and compiled code equals plain Python."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config
from toy import batch_of, check_all, toy_state

from baselines import POLICIES, make_policy
from llm_env.core import step
from llm_env.dtypes import ACTIVE, DRAINED, FINISHED, REJECTED
from llm_env.records import snapshot
from llm_env.view import make_view

pytestmark = pytest.mark.kernel

SWAPPING = ("distserve", "fastserve")  # moving KV takes time, and who comes back has kept what was computed
NAMES = tuple(name for name in POLICIES if name not in SWAPPING)
EXAMPLES = 6 if config.DISABLE_JIT else 25

workloads = st.lists(st.tuples(st.floats(0, 0.6), st.integers(1, 60), st.integers(1, 12)), min_size=1, max_size=14).map(
    sorted
)
systems = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 3),
        "max_running": st.integers(1, 6),
        "blocks": st.sampled_from([None, 9, 16, 30]),
        "noise": st.sampled_from(["none", "exponential"]),
        "free_tokens": st.sampled_from([0, 4]),
        "rule": st.sampled_from(["max", "p99", "deadline"]),
    }
)


def checked_step(state, decide, work):
    """One step with every invariant of a step; `work` adds up the tokens computed for each request."""
    before = snapshot(state)
    s, w = state.system[0], int(state.system[0]["worker"])
    step(state, decide(make_view(state)))
    worker = state.workers[w]
    started = worker["iteration"] > before.workers[w]["iteration"]
    assert s["epoch"] == before.system[0]["epoch"] + 1
    assert s["now_s"] >= before.system[0]["now_s"], "the clock ran backwards"
    if started:
        assert worker["batch_size"] > 0
        k, tokens = int(before.workers[w]["iteration"]), int(worker["batch_tokens"])
        setup, per_token = state.noise[w, k] if s["setup_noise"] else (1.0, 1.0)
        seconds = s["setup_s"] * setup + s["per_token_s"] * max(0, tokens - s["free_tokens"]) * per_token
        assert worker["start_s"] == before.system[0]["now_s"]
        assert worker["end_s"] - worker["start_s"] == pytest.approx(seconds, abs=1e-12)
    else:
        moved = s["now_s"] > before.system[0]["now_s"] or worker["batch_evicted"] > 0
        assert moved or s["worker"] != w, "time stands still"
    # tokens: what a batch that ended held is what its requests gained, save those evicted meanwhile
    gained = np.zeros(len(state.requests), np.int64)
    for v in range(len(state.workers)):
        was_busy = before.workers[v]["busy"] or (v == w and started)
        if was_busy and not state.workers[v]["busy"]:
            for i, tokens in batch_of(state, v):
                gained[i] += tokens
                work[i] += tokens
    evicted = state.requests["evictions"] > before.requests["evictions"]
    assert (
        state.requests["computed_tokens"] == np.where(evicted, 0, before.requests["computed_tokens"]) + gained
    ).all()
    emitted = state.requests["emitted_tokens"] - before.requests["emitted_tokens"]
    prompt_done = (gained > 0) & (state.requests["computed_tokens"] >= state.requests["prefill_tokens"])
    assert (emitted == prompt_done).all(), "a token without a batch, or a batch without its token"
    assert s["step_queue"] >= 0
    check_all(state)


@settings(max_examples=EXAMPLES, deadline=None)
@given(rows=workloads, system=systems, name=st.sampled_from(NAMES), seed=st.integers(0, 5))
def check_every_step(rows, system, name, seed):
    decide = make_policy("random", seed=seed) if name == "random" else make_policy(name)
    state = toy_state(rows, seed=seed, **system)
    check_all(state)
    work = np.zeros(len(rows), np.int64)
    steps = 0
    while state.system[0]["phase"] == ACTIVE:
        checked_step(state, decide, work)
        steps += 1
        assert steps < 3000, f"{name} does not drain the system"
    assert state.system[0]["phase"] == DRAINED
    q = state.requests
    assert np.isin(q["status"], (FINISHED, REJECTED)).all()
    done = q[q["status"] == FINISHED]
    needed = done["prompt_tokens"] + done["output_tokens"] - 1
    assert (work[q["status"] == FINISHED] >= needed).all()
    calm = done["evictions"] == 0
    assert (work[q["status"] == FINISHED][calm] == needed[calm]).all()
    assert state.system[0]["prefill_done"] + state.system[0]["decode_done"] == work.sum()
    assert (done["arrival_s"] <= done["first_scheduled_s"]).all()
    assert (done["first_scheduled_s"] < done["first_token_s"]).all()
    assert (done["first_token_s"] <= done["finish_s"]).all()


@pytest.mark.nojit
def test_every_step_of_any_policy_conserves_tokens_memory_and_requests():
    check_every_step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("blocks", [None, 24])
def test_every_baseline_serves_everybody_whom_it_can(name, blocks):
    rng = np.random.default_rng(7)
    rows = sorted((float(t), int(p), int(b)) for t, p, b in zip(*_drawn(rng, 30), strict=True))
    state = toy_state(rows, blocks=blocks, workers=2)
    work = np.zeros(len(rows), np.int64)
    for _ in range(3000):
        if state.system[0]["phase"] != ACTIVE:
            break
        checked_step(state, make_policy(name), work)
    assert state.system[0]["phase"] == DRAINED
    assert (state.requests["status"] == FINISHED).sum() + state.system[0]["num_rejected"] == len(rows)


def _drawn(rng, n):
    return rng.uniform(0, 1.0, n), rng.integers(1, 60, n), rng.integers(1, 20, n)


# ---- compiled code and plain Python --------------------------------------------------------------------------------
def final_hashes():
    """Policy -> SHA-256 of the final requests of a small run with noise, limited memory and two workers."""
    rows = sorted((float(t), int(p), int(b)) for t, p, b in zip(*_drawn(np.random.default_rng(3), 16), strict=True))
    hashes = {}
    for name in NAMES:
        state, decide = toy_state(rows, blocks=24, workers=2, noise="exponential", seed=4), make_policy(name)
        while state.system[0]["phase"] == ACTIVE:
            step(state, decide(make_view(state)))
        hashes[name] = hashlib.sha256(state.requests.tobytes()).hexdigest()
    return hashes


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="compares with compiled code")
def test_compiled_and_plain_python_runs_end_in_the_same_bytes():
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), str(root / "tests")])
    code = "from test_core_properties import final_hashes; print(final_hashes())"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": paths}
    plain = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert plain.stdout.strip() == str(final_hashes())
