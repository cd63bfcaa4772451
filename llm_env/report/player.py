"""The player: runs of the same requests beside each other, batch by batch, as data for the script of the page.

It knows recordings and nothing of studies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_env.build import system_record
from llm_env.config import Scenario
from llm_env.dtypes import LATE_TOLERANCE_S
from llm_env.metrics import slo_marks
from llm_env.recorder import Recording
from llm_env.report.markup import escaped

LENGTH_S = 60.0  # of the excerpt, at most
MAX_REQUESTS = 400  # in it
LATEST_S = 300.0  # it ends by then: a run is recorded from its start
STAGES = 2  # runs that are seen at a time
_NEVER = -1


class Run(NamedTuple):
    """A recorded run.

    Attributes:
        name: whose.
        tone: CSS class of its colour.
        scenario: what it ran in.
        recording: what happened.
    """

    name: str
    tone: str
    scenario: Scenario
    recording: Recording


class Excerpt(NamedTuple):
    """What is shown: runs of the same requests between two times.

    Attributes:
        names: of the runs.
        data: for the script; times are whole milliseconds from the start of the excerpt.
    """

    names: tuple[str, ...]
    data: dict[str, Any]


def excerpt(runs: Sequence[Run]) -> Excerpt | None:
    """The busiest stretch of runs of one workload; None where there is no request in it."""
    start_s, end_s = window(runs[0].recording.requests["arrival_s"])
    recordings = [_by_place(run.recording) for run in runs]
    rows = _present(recordings, start_s, end_s)
    while len(rows) > MAX_REQUESTS:
        end_s = start_s + 0.8 * (end_s - start_s)
        rows = _present(recordings, start_s, end_s)
    if len(rows) == 0:
        return None
    by_row = recordings[0].requests
    slo_budget = float(system_record(runs[0].scenario)[0]["slo_budget"])
    data = {
        "length": round(1e3 * (end_s - start_s)),
        "start": round(start_s, 3),
        "budget": round(slo_budget),
        "workers": runs[0].scenario.system.workers,
        "arrival": _ms(by_row["arrival_s"][rows], start_s),
        "prompt": by_row["prompt_tokens"][rows].tolist(),
        "ttft": np.rint(1e3 * by_row["ttft_target_s"][rows]).astype(int).tolist(),
        "runs": [
            {"name": run.name, "tone": run.tone, **_run(recording, rows, start_s, end_s, run.scenario)}
            for run, recording in zip(runs, recordings, strict=True)
        ],
    }
    return Excerpt(tuple(run.name for run in runs), data)


def _by_place(run: Recording) -> Recording:
    """The recording with places among its requests for rows: those of a part of a trace do not begin at 0."""
    entries = run.entries.copy()
    entries["row"] = np.searchsorted(run.requests["row"], entries["row"])
    return run._replace(entries=entries)


def window(arrival_s: np.ndarray) -> tuple[float, float]:
    """Start and end of the excerpt: from 5 s before the 40 s in which most requests arrive.

    Args:
        arrival_s: (requests,) float64, at least one.
    """
    arrival_s = np.sort(arrival_s)
    starts = np.arange(0.0, max(min(LATEST_S - LENGTH_S, float(arrival_s[-1]) - 40.0), 0.0) + 1.0, 1.0)
    many = np.searchsorted(arrival_s, starts + 40.0) - np.searchsorted(arrival_s, starts)
    start_s = max(0.0, float(starts[int(np.argmax(many))]) - 5.0)
    return start_s, start_s + LENGTH_S


def _present(runs: list[Any], start_s: float, end_s: float) -> np.ndarray:
    """Rows of the requests that are in either system at some time of the excerpt, in order of arrival."""
    present = np.zeros(len(runs[0].requests), bool)
    for run in runs:
        q = run.requests
        present |= (q["arrival_s"] < end_s) & ~((q["finish_s"] >= 0) & (q["finish_s"] < start_s))
    rows = np.flatnonzero(present)
    return rows[np.argsort(runs[0].requests["arrival_s"][rows], kind="stable")]


def _ms(times_s: np.ndarray, start_s: float) -> list[int]:
    """Whole milliseconds from the start of the excerpt; before it they are negative."""
    return np.rint(1e3 * (np.asarray(times_s) - start_s)).astype(int).tolist()


def _moments(times_s: np.ndarray, start_s: float, end_s: float) -> list[int | None]:
    """Milliseconds of each, None for what has not come by the end."""
    return [
        value if 0 <= time <= end_s else None
        for value, time in zip(_ms(times_s, start_s), times_s.tolist(), strict=True)
    ]


def _run(run: Any, rows: np.ndarray, start_s: float, end_s: float, scenario: Scenario) -> dict[str, Any]:
    """One contender's part of the data.

    batches: [start, end, worker, tokens, prefill tokens] of those that end in the excerpt or run at its end;
    chunks: [batch, request, tokens]; decodes: [request, first batch, last batch] of stretches in which a request is in
    each batch of its worker; before: tokens prefilled before the excerpt.
    """
    q, log, entries = run.requests[rows], run.batches, run.entries
    index = np.full(len(run.requests), _NEVER)
    index[rows] = np.arange(len(rows))
    kept = np.flatnonzero((log["end_s"] > start_s) & (log["start_s"] < end_s))
    place = np.full(len(log) + 1, _NEVER)
    place[kept] = np.arange(len(kept))
    held = log[kept]
    columns = (_ms(held["start_s"], start_s), _ms(held["end_s"], start_s), held["worker"])
    batches = np.column_stack([*columns, held["prefill_tokens"] + held["decode_tokens"], held["prefill_tokens"]])
    inside = (place[entries["batch"]] >= 0) & (index[entries["row"]] >= 0)
    chunk = entries[inside & (entries["prefill"] > 0)]
    decode = entries[inside & (entries["decode"] > 0)]
    early = entries[(log["end_s"][entries["batch"]] <= start_s) & (index[entries["row"]] >= 0)]
    before = np.bincount(index[early["row"]], weights=early["prefill"], minlength=len(rows)).astype(int)
    first, last = np.searchsorted(run.samples["time_s"], (start_s, end_s), side="right")
    samples = run.samples[max(0, first - 1) : last]  # with the one that still holds at the start
    return {
        "batches": batches.astype(int).tolist(),
        "chunks": np.column_stack([place[chunk["batch"]], index[chunk["row"]], chunk["prefill"]]).tolist(),
        "decodes": _stretches(index[decode["row"]], place[decode["batch"]], log["worker"][kept]),
        "before": before.tolist(),
        "first": _moments(q["first_token_s"], start_s, end_s),
        "finish": _moments(q["finish_s"], start_s, end_s),
        "kept": slo_marks(q, scenario.slo.rule).astype(int).tolist(),
        "gaps": _late_gaps(run, rows, start_s, end_s),
        "kv": np.column_stack(
            [_ms(samples["time_s"], start_s), np.rint(100 * samples["kv_used"]).astype(int)]
        ).tolist() if scenario.system.kv.blocks is not None else [],
    }  # fmt: skip


def _stretches(who: np.ndarray, batch: np.ndarray, worker: np.ndarray) -> list[list[int]]:
    """[request, first batch, last batch] of consecutive batches of a worker; other workers' batches lie between."""
    turn = np.zeros(len(worker), np.int64)  # the how-manieth of its worker each batch is
    for w in np.unique(worker):
        turn[worker == w] = np.arange(int((worker == w).sum()))
    order = np.lexsort((batch, who))
    found: list[list[int]] = []
    for request, b in zip(who[order].tolist(), batch[order].tolist(), strict=True):
        last = found[-1] if found else None
        if last and last[0] == request and worker[last[2]] == worker[b] and turn[b] == turn[last[2]] + 1:
            last[2] = b
        else:
            found.append([request, b, b])
    return found


def _late_gaps(run: Any, rows: np.ndarray, start_s: float, end_s: float) -> list[int | None]:
    """When the first gap of each request above its TBT target ended, in milliseconds; None if none was."""
    found: list[int | None] = []
    entries, ends = run.entries, run.batches["end_s"]
    decode = entries[entries["decode"] > 0]
    times_of: dict[int, list[float]] = {}
    for row, batch in zip(decode["row"].tolist(), decode["batch"].tolist(), strict=True):
        times_of.setdefault(row, []).append(float(ends[batch]))
    for row in rows.tolist():
        r = run.requests[row]
        tokens = np.unique([float(r["first_token_s"]), *times_of.get(row, [])])
        late = np.flatnonzero(np.diff(tokens) > r["tbt_target_s"] + LATE_TOLERANCE_S)
        moment = float(tokens[late[0] + 1]) if len(late) and r["first_token_s"] >= 0 else -1.0
        found.append(round(1e3 * (moment - start_s)) if 0 <= moment <= end_s else None)
    return found


def as_json(data: dict[str, Any]) -> str:
    """The data as text that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def markup(shown: Excerpt, about: str) -> str:
    """The player's HTML; the script fills it. Args: about: what is shown, a sentence or two before the excerpt's."""
    data = shown.data
    finished = [
        f"{run['name']}: {sum(t is not None for t in run['finish'])} of {len(run['finish'])} requests finish, "
        f"{sum(k for k, t in zip(run['kept'], run['finish'], strict=True) if t is not None)} within their promise"
        for run in data["runs"]
    ]
    begin, end = data["start"], data["start"] + data["length"] / 1e3
    told = f"{about} {begin:g} to {end:g} s: the busiest stretch. Space plays and pauses, arrow keys go batch by batch."
    buttons = (
        '<button type="button" data-do="back" aria-label="One batch back">◂</button>'
        '<button type="button" data-do="play" aria-pressed="false">Play</button>'
        '<button type="button" data-do="next" aria-label="One batch on">▸</button>'
    )
    speeds = "".join(
        f'<option value="{speed}"{" selected" if speed == 1 else ""}>{speed:g} ×</option>'
        for speed in (0.1, 0.25, 1, 4, 16)
    )
    stages = "".join(_stage(data["runs"], k) for k in range(min(STAGES, len(data["runs"]))))
    return (
        f'<p class="note">{escaped(told)}</p><div class="player" id="replay" tabindex="-1">'
        f'<div class="controls">{buttons}<label>Speed <select data-do="speed">{speeds}</select></label>'
        f'<input type="range" min="0" max="{data["length"]}" step="10" value="0" aria-label="Time in the excerpt">'
        f'<output>0.0 s</output></div><p class="legend">{_LEGEND}</p><div class="grid">{stages}</div>'
        '<p class="said" role="status" aria-live="polite"></p></div>'
        f'<p class="note">{escaped("; ".join(finished))}.</p>'
        f'<script type="application/json" id="replay-data">{as_json(data)}</script>'
    )


def _stage(runs: Sequence[dict[str, Any]], k: int) -> str:
    """Where one run is seen; of more runs than stages one is chosen."""
    name = escaped(runs[k]["name"])
    if len(runs) > STAGES:
        options = "".join(
            f'<option value="{r}"{" selected" if r == k else ""}>{escaped(run["name"])}</option>'
            for r, run in enumerate(runs)
        )
        name = f'<select data-do="run" aria-label="{"Left" if k == 0 else "Right"} run">{options}</select>'
    said = f"What happens under {escaped(runs[k]['name'])}; told in the text below"
    return (
        f'<figure class="stage"><figcaption class="{runs[k]["tone"]}">{name}</figcaption>'
        f'<canvas role="img" aria-label="{said}"></canvas><p class="stats"></p></figure>'
    )


_LEGEND = "".join(
    f'<span><i class="mark {kind}"></i>{words}</span> '
    for kind, words in (
        ("wait", "waits, filled as its TTFT target runs out"),
        ("pre", "prefill"),
        ("dec", "decode, pale if not in the batch"),
        ("late", "first token late, or a gap above the TBT target"),
    )
)
