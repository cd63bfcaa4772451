"""Pictures of one running system: a text for a terminal and an image for a video. They only read the State.

Drawing libraries are imported when the first image is drawn, never with this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from math import ceil, log10
from typing import Any, NamedTuple, TextIO

import numpy as np

from llm_env.dtypes import FINISHED, MOVING, RUNNING, SWAPPED, SYSTEM, WORKER
from llm_env.records import NUM_BUCKETS, SLACK_EDGES, State
from llm_env.slo import slo_met, ttft_met

HEIGHT, WIDTH = 600, 960  # pixels of the image
MAX_BATCHES = 120  # that History keeps
WINDOW_S = 12.0  # the timeline shows at most this much of the past

# colours that the colour-blind can tell apart: Okabe and Ito, "Color Universal Design" (2008)
_DECODE, _PREFILL, _LATE, _ON_TIME, _KV = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#56B4E9"
_INK, _SOFT, _GRID, _PAPER, _EMPTY = "#222222", "#666666", "#DDDDDD", "#FFFFFF", "#F0F0F0"
_MOST_BUDGETS = 3.0  # SLO budgets: the timeline's tallest bar
_MAX_ROWS = 4  # workers that are drawn one by one
_MAX_ARRIVED = 100_000  # first tokens are looked for among so many of the latest requests

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Window = tuple[float, float]  # first second and length of the time that is shown


class BatchNote(NamedTuple):
    """One batch as the timeline shows it."""

    worker: int
    start_s: float
    end_s: float
    prefill_tokens: int
    decode_tokens: int


class History:
    """The last batches of a system, which its State does not keep. Call `note` after every step, `clear` at a reset."""

    def __init__(self) -> None:
        self.batches: deque[BatchNote] = deque(maxlen=MAX_BATCHES)
        self._iteration: dict[int, int] = {}

    def clear(self) -> None:
        """Forgets everything: a new episode begins."""
        self.batches.clear()
        self._iteration.clear()

    def note(self, state: State, worker: int) -> None:
        """Takes down the batch that the worker began with the last step; nothing if that step was a hold.

        Args:
            state: one system, after the step.
            worker: whose decision the step carried out.
        """
        w = state.workers[worker]
        iteration = int(w["iteration"])
        if self._iteration.get(worker, 0) == iteration:
            return
        self._iteration[worker] = iteration
        prefill = int(w["batch_prefill"])
        decodes = int(w["batch_tokens"]) - prefill
        self.batches.append(BatchNote(worker, float(w["start_s"]), float(w["end_s"]), prefill, decodes))


# ---- what both pictures show ---------------------------------------------------------------------------------------
class _Totals(NamedTuple):
    arrived: int
    finished: int
    on_time: int  # finished and kept their SLO under the scenario's rule
    running: int
    waiting: int
    rejected: int
    evictions: int
    waiting_tokens: int
    resumed: int  # evicted requests at the front of their queues


def _scalars(record: Any, dtype: np.dtype) -> dict[str, Any]:
    return {name: record[name].item() for name in dtype.names or () if not dtype[name].shape}


def _totals(state: State) -> _Totals:
    s = state.system[0]
    arrived = state.requests[: s["next_arrival"]]
    rule = int(s["slo_rule"])
    on_time = sum(slo_met(arrived[i], rule) for i in np.flatnonzero(arrived["status"] == FINISHED))
    running = int(np.isin(arrived["status"], (RUNNING, MOVING, SWAPPED)).sum())
    waiting_tokens, resumed = (int(state.queues[name].sum()) for name in ("waiting_tokens", "num_resumed"))
    counts = (s["num_waiting"], s["num_rejected"], s["num_evictions"], waiting_tokens, resumed)
    return _Totals(len(arrived), int(s["num_finished"]), int(on_time), running, *(int(c) for c in counts))


def _bucket_labels(ttft_target_s: float) -> tuple[str, ...]:
    """The hopeless, then the slack in seconds that each bucket holds."""
    edges = [f"{edge * ttft_target_s:.3g}" for edge in SLACK_EDGES]
    inner = tuple(f"{low} – {high} s" for low, high in pairwise(edges))
    return ("hopeless", *inner, f"≥ {edges[-1]} s")


def _kv_used(state: State, w: int) -> float | None:
    """Share of worker w's KV blocks in use, None if there is no limit."""
    s = state.system[0]
    free = int(state.workers[w]["free_blocks"]) + int(state.workers[w]["cached_blocks"])
    return 1.0 - free / int(s["kv_blocks"]) if s["kv_limited"] else None


def _nice(value: float) -> float:
    """The smallest of 1, 2, 5 x 10^k that is at least `value`."""
    power = 10.0 ** ceil(log10(max(value, 1e-9)) - 1e-9)
    return next(step for step in (power / 5, power / 2, power) if step >= value * (1 - 1e-9))


# ---- text ----------------------------------------------------------------------------------------------------------
_BLOCKS = " ▁▂▃▄▅▆▇█"


def _bar(share: float, width: int, full: str = "█", empty: str = "·") -> str:
    filled = min(width, max(0, round(share * width)))
    return full * filled + empty * (width - filled)


def render_ansi(state: State, history: History) -> str:
    """The system in at most 80 columns of text: clock, queue by slack, running batches, KV, last batches."""
    s = _scalars(state.system[0], SYSTEM)
    t = _totals(state)
    lines = [
        f"t = {s['now_s']:.3f} s   arrived {t.arrived}   finished {t.finished} ({t.on_time} on time)"
        f"   rejected {t.rejected}",
        f"waiting {t.waiting} ({t.waiting_tokens} tokens), {t.resumed} evicted in front",
    ]
    buckets = state.buckets.sum(axis=0)
    most = max(1, int(buckets[0].max()))
    for bucket, label in enumerate(_bucket_labels(s["ttft_target_s"])):
        count, tokens = (int(n) for n in buckets[:, bucket])
        lines.append(f"  {label:>14} {_bar(count / most, 24)} {count:5d} requests {tokens:8d} tokens")
    for w in range(min(len(state.workers), 8)):
        worker = _scalars(state.workers[w], WORKER)
        decodes = worker["batch_tokens"] - worker["batch_prefill"]
        used = _kv_used(state, w)
        memory = "KV unlimited" if used is None else f"KV {_bar(used, 10)} {used:4.0%}"
        batch = f"{decodes} decode + {worker['batch_prefill']} prefill {'running' if worker['busy'] else 'ended'}"
        lines.append(f"worker {w}: {batch:<35} {worker['num_running']:4d} admitted  {memory}")
    if len(state.workers) > 8:
        lines.append(f"  and {len(state.workers) - 8} more workers")
    scale = max(s["slo_budget"], *(b.prefill_tokens + b.decode_tokens for b in history.batches), 1)
    last = list(history.batches)[-56:]
    sizes = [_BLOCKS[ceil(8 * (b.prefill_tokens + b.decode_tokens) / scale)] for b in last]
    lines.append(f"last batches: tokens    {''.join(sizes) or '-'}")
    shares = [_BLOCKS[ceil(8 * b.prefill_tokens / max(1, b.prefill_tokens + b.decode_tokens))] for b in last]
    lines.append(f"share of prefill        {''.join(shares)}".rstrip())
    return "\n".join(line[:80] for line in lines) + "\n"


def show_text(text: str, out: TextIO) -> None:
    """Writes a picture of `render_ansi`: over the one before on a terminal, else after it and an empty line."""
    out.write("\x1b[H\x1b[J" + text if out.isatty() else text + "\n")
    out.flush()


# ---- image ---------------------------------------------------------------------------------------------------------
@cache
def _font(size: int, bold: bool = False) -> Any:
    from pathlib import Path

    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


class _Canvas:
    """A few drawing operations in pixels, so that the panels below read as a description."""

    def __init__(self) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: int = 12, color: str = _INK, at: str = "ls", bold=False
    ) -> None:
        """Text whose anchor `at` (PIL: l, m, r and a, m, s) stands at x, y."""
        self.draw.text((round(x), round(y)), text, fill=color, font=_font(size, bold), anchor=at)

    def width(self, text: str, size: int = 12, bold: bool = False) -> float:
        return _font(size, bold).getlength(text)

    def fill(self, left: float, top: float, right: float, bottom: float, color: str) -> None:
        """A rectangle, of at least one pixel if it is not empty."""
        x0, y0, x1, y1 = round(left), round(top), round(right), round(bottom)
        if right > left and bottom > top:
            self.draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=color)

    def line(self, x0: float, y0: float, x1: float, y1: float, color: str = _GRID) -> None:
        self.draw.line((round(x0), round(y0), round(x1), round(y1)), fill=color)

    def dashed(self, x0: float, y0: float, x1: float, y1: float, color: str = _INK) -> None:
        """A horizontal or vertical dashed line, 4 pixels on, 3 off."""
        length = max(x1 - x0, y1 - y0)
        for start in np.arange(0, length, 7):
            end = min(start + 3, length - 1)
            along = (x0 + start, y0, x0 + end, y1) if x1 > x0 else (x0, y0 + start, x1, y0 + end)
            self.line(*along, color)

    def key(self, x: float, y: float, color: str, text: str, dashed: bool = False) -> float:
        """One entry of a legend with its base line at y; returns where the next may begin."""
        if dashed:
            self.dashed(x, y - 4, x + 14, y - 4)
        else:
            self.fill(x, y - 9, x + 11, y + 1, color)
        self.text(x + 17, y, text, 11, _SOFT)
        return x + 17 + self.width(text, 11) + 16


def render_rgb(state: State, history: History) -> np.ndarray:
    """The system as an image, (HEIGHT, WIDTH, 3) uint8. The same state and history give the same bytes."""
    canvas = _Canvas()
    _draw_header(canvas, state)
    _draw_queue(canvas, state, (24, 92, 440, 262))
    _draw_workers(canvas, state, (500, 92, 936, 262))
    window = _window(state, history)
    x_at = _scale(*window, 72, 936)
    _draw_timeline(canvas, state, history, x_at, (72, 330, 936, 460))
    _draw_first_tokens(canvas, state, x_at, window[0], (72, 506, 936, 560))
    _draw_time_axis(canvas, state, x_at, window, (72, 330, 936, 560))
    return np.asarray(canvas.image).copy()


def _scale(low: float, span: float, first: float, last: float) -> Callable[[float], float]:
    return lambda value: first + (value - low) / span * (last - first)


def _draw_header(c: _Canvas, state: State) -> None:
    s, t = state.system[0], _totals(state)
    c.fill(0, 0, WIDTH, 50, _EMPTY)
    c.text(24, 33, f"t = {s['now_s']:.2f} s", 22, bold=True)
    columns = (
        ("arrived", t.arrived, _INK),
        ("waiting", t.waiting, _INK),
        ("running", t.running, _INK),
        ("finished", t.finished, _INK),
        ("met SLO", t.on_time, _ON_TIME),
        ("missed", t.finished - t.on_time + t.rejected, _LATE),
        ("evictions", t.evictions, _INK),
    )
    for k, (label, count, color) in enumerate(columns):
        x = 936 - 98 * (len(columns) - 1 - k)
        c.text(x, 24, f"{count:,}", 16, color, "rs", bold=True)
        c.text(x, 41, label, 11, _SOFT, "rs")


def _draw_queue(c: _Canvas, state: State, box: Box) -> None:
    """Bars: waiting requests in each slack bucket, the hopeless in red, with counts and prefill tokens."""
    left, top, right, bottom = box
    s = state.system[0]
    c.text(left, top - 14, "Waiting requests by slack", 13, bold=True)
    c.text(right, top - 14, "prefill tokens", 11, _SOFT, "rs")
    labels = _bucket_labels(float(s["ttft_target_s"]))
    bars_left, bars_right = left + 92, right - 120
    buckets = state.buckets.sum(axis=0)
    full = _nice(max(5, int(buckets[0].max())))
    rows = NUM_BUCKETS + 1
    pitch = (bottom - top) / rows
    evicted = int(state.queues["num_resumed"].sum())
    evicted_tokens = int(state.queues["waiting_tokens"].sum()) - int(buckets[1].sum())
    for k in range(rows):
        y = top + pitch * k
        if k < NUM_BUCKETS:
            label, count, tokens = labels[k], int(buckets[0, k]), int(buckets[1, k])
            color = _LATE if k == 0 else _DECODE
        else:
            label, count, tokens, color = "evicted", evicted, evicted_tokens, _SOFT
        middle = y + pitch / 2
        c.text(bars_left - 8, middle, label, 12, _LATE if k == 0 else _INK, "rm")
        c.fill(bars_left, y + 4, bars_right, y + pitch - 4, _EMPTY)
        c.fill(bars_left, y + 4, bars_left + (bars_right - bars_left) * min(1.0, count / full), y + pitch - 4, color)
        c.text(bars_right + 42, middle, f"{count:,}", 12, _INK if count else _SOFT, "rm", bold=count > 0)
        c.text(right, middle, f"{tokens:,}", 12, _INK if tokens else _SOFT, "rm")
    c.text(left, bottom + 14, "slack: time left to start the prefill and meet the TTFT target", 11, _SOFT)


def _draw_workers(c: _Canvas, state: State, box: Box) -> None:
    """Per worker: its newest batch split into decode and prefill tokens against the SLO budget, and its KV gauge."""
    left, top, right, bottom = box
    num_workers = len(state.workers)
    rows = min(num_workers, _MAX_ROWS)
    more = f" (first {rows} of {num_workers} workers)" if num_workers > rows else ""
    c.text(left, top - 14, f"Newest batch and KV memory{more}", 13, bold=True)
    budget = float(state.system[0]["slo_budget"])
    full = max(1.25 * budget, *(1.02 * float(state.workers[w]["batch_tokens"]) for w in range(rows)))
    first = left + (34 if num_workers > 1 else 0)
    x_at = _scale(0, full, first, right)
    pitch = (bottom - top) / rows
    bar = (36, 26, 16, 12)[rows - 1]
    for w in range(rows):
        y = top + pitch * w + 10
        worker = _scalars(state.workers[w], WORKER)
        tokens, prefill = worker["batch_tokens"], worker["batch_prefill"]
        if num_workers > 1:
            c.text(left, y, f"w{w}", 12, _SOFT, bold=True)
        c.text(first, y, _batch_words(worker), 12)
        c.text(right, y, f"{worker['num_running']} running", 12, _SOFT, "rs")
        y += 7
        c.fill(first, y, right, y + bar, _EMPTY)
        c.fill(first, y, x_at(tokens - prefill), y + bar, _DECODE)
        c.fill(x_at(tokens - prefill), y, x_at(tokens), y + bar, _PREFILL)
        c.dashed(x_at(budget), y - 3, x_at(budget), y + bar + 3)
        gap, text = ((28, True), (6, True), (4, False), (4, False))[rows - 1]
        _draw_kv(c, state, w, (first, round(y + bar + gap), right, round(y + bar * 1.7 + gap)), text)
    x = c.key(left, bottom + 14, _DECODE, "decode")
    x = c.key(x, bottom + 14, _PREFILL, "prefill")
    x = c.key(x, bottom + 14, _INK, f"SLO budget {budget:,.0f} tokens", dashed=True)
    c.key(x, bottom + 14, _KV, "KV in use")


def _batch_words(worker: dict[str, Any]) -> str:
    if worker["iteration"] == 0:
        return "no batch yet"
    decodes = worker["batch_tokens"] - worker["batch_prefill"]
    duration_ms = 1e3 * (worker["end_s"] - worker["start_s"])
    state = "running" if worker["busy"] else "ended"
    return f"{decodes} decode + {worker['batch_prefill']:,} prefill tokens, {duration_ms:.0f} ms, {state}"


def _draw_kv(c: _Canvas, state: State, w: int, box: Box, with_text: bool) -> None:
    left, top, right, bottom = box
    used = _kv_used(state, w)
    c.fill(left, top, right, bottom, _EMPTY)
    if used is not None:
        c.fill(left, top, left + (right - left) * used, bottom, _KV)
    if not with_text:
        return
    text = "KV memory unlimited"
    if used is not None:
        blocks = int(state.system[0]["kv_blocks"])
        taken = blocks - int(state.workers[w]["free_blocks"])
        text = f"KV {used:.0%}: {taken:,} of {blocks:,} blocks of {int(state.system[0]['block_tokens'])} tokens"
    c.text(left, bottom + 14, text, 12)


# ---- the timeline --------------------------------------------------------------------------------------------------
def _window(state: State, history: History) -> Window:
    """First second and length of the time that is shown: the last WINDOW_S, less if History does not reach so far."""
    now_s = float(state.system[0]["now_s"])
    end_s = max(now_s, *(b.end_s for b in history.batches), 0.0) if history.batches else now_s
    start_s = end_s - WINDOW_S
    if len(history.batches) == MAX_BATCHES:
        start_s = max(start_s, history.batches[0].start_s)
    start_s = max(0.0, start_s)
    return start_s, max(end_s - start_s, 1e-3 if history.batches else 1.0)


def _draw_timeline(c: _Canvas, state: State, history: History, x_at: Callable[[float], float], box: Box) -> None:
    """Batches as bars from start to end, decode tokens below prefill tokens; one lane per worker."""
    left, top, right, bottom = box
    lanes = min(len(state.workers), _MAX_ROWS)
    budget = float(state.system[0]["slo_budget"])
    shown = [b for b in history.batches if x_at(b.end_s) > left and b.worker < lanes]
    largest = max((b.prefill_tokens + b.decode_tokens for b in shown), default=0)
    full = min(max(1.25 * budget, 1.05 * largest), _MOST_BUDGETS * budget)  # larger ones are cut and say their size
    more = "" if lanes == len(state.workers) else f" (first {lanes} of {len(state.workers)} workers)"
    c.text(24, top - 12, f"Last batches: tokens over time{more}", 13, bold=True)
    pitch = (bottom - top) / lanes
    for lane in range(lanes):
        base = top + pitch * (lane + 1) - 2
        y_at = _scale(0, full, base, top + pitch * lane + 2)
        c.line(left, base, right, base)
        for b in (b for b in shown if b.worker == lane):
            x0, x1 = max(left, x_at(b.start_s)), x_at(b.end_s)
            gap = 1 if x1 - x0 > 4 else 0  # so that neighbours can be told apart
            total = b.decode_tokens + b.prefill_tokens
            c.fill(x0, y_at(min(full, b.decode_tokens)), x1 - gap, base, _DECODE)
            c.fill(x0, y_at(min(full, total)), x1 - gap, y_at(min(full, b.decode_tokens)), _PREFILL)
            label = f"{total:,}"
            if total > full and x1 - x0 > c.width(label, 10) + 6:
                c.text((x0 + x1) / 2, y_at(full) + 2, label, 10, _INK, "ma")
        c.dashed(left, y_at(budget), right, y_at(budget))
        if lanes < 3:
            c.text(left - 8, y_at(budget), f"{budget:,.0f}", 11, _SOFT, "rm")
            c.text(left - 8, base + 1, "0", 11, _SOFT, "rs")
        if lanes > 1:
            c.text(24, (y_at(0) + y_at(full)) / 2, f"w{lane}", 12, _SOFT, "lm", bold=True)


def _draw_first_tokens(c: _Canvas, state: State, x_at: Callable[[float], float], start_s: float, box: Box) -> None:
    """A dot per first token: its TTFT in units of the request's target, late ones in red and at most 2 high."""
    left, top, right, bottom = box
    c.text(24, top - 12, "First tokens: TTFT / target", 13, bold=True)
    y_at = _scale(0.0, 2.0, bottom, top)
    c.line(left, bottom, right, bottom)
    c.dashed(left, y_at(1.0), right, y_at(1.0))
    for value, label in ((0, "0"), (1, "1"), (2, "≥ 2")):
        c.text(left - 8, y_at(value), label, 11, _SOFT, "rm")
    arrived = int(state.system[0]["next_arrival"])
    recent = state.requests[max(0, arrived - _MAX_ARRIVED) : arrived]
    for i in np.flatnonzero(recent["first_token_s"] >= start_s):
        r = recent[i]
        ratio = float((r["first_token_s"] - r["arrival_s"]) / r["ttft_target_s"])
        x, y = x_at(float(r["first_token_s"])), y_at(min(ratio, 2.0))
        if x >= left:
            c.draw.ellipse((round(x) - 3, round(y) - 3, round(x) + 3, round(y) + 3), _ON_TIME if ttft_met(r) else _LATE)
    x = c.key(left + 170, top - 12, _ON_TIME, "on time")
    c.key(x, top - 12, _LATE, "late")


def _draw_time_axis(c: _Canvas, state: State, x_at: Callable[[float], float], window: Window, box: Box) -> None:
    """Ticks below both timelines, and a line through them where the clock stands."""
    left, top, right, bottom = box
    start_s, span_s = window
    now = x_at(float(state.system[0]["now_s"]))
    c.line(now, top - 4, now, bottom - 96, _SOFT)
    c.line(now, bottom - 58, now, bottom, _SOFT)
    step = _nice(span_s / 8)
    for k in range(ceil(start_s / step - 1e-9), int((start_s + span_s) / step + 1e-9) + 1):
        x = x_at(k * step)
        c.line(x, bottom, x, bottom + 4, _SOFT)
        c.text(x, bottom + 18, f"{k * step:g}", 11, _SOFT, "ms")
    c.text((left + right) / 2, bottom + 33, "time (s)", 11, _SOFT, "ms")
