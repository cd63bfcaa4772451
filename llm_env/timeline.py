"""A `llm_env.recorder.Recording` as a timeline in the Trace Event Format, which Perfetto and chrome://tracing open.

Times are whole microseconds of the simulated clock. The same recording gives the same bytes. docs/timeline.md says what
each track means. Knows recordings only: no policy and no scenario.

Source: "Trace Event Format" (Google, 2016): phases X, b, e, C, i and M.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_env.dtypes import FINISHED, LATE_TOLERANCE_S, REJECTED
from llm_env.errors import UserError
from llm_env.files import staged_file
from llm_env.recorder import Recording

ENDINGS = (".json", ".json.gz")
MAX_BYTES = 100_000_000  # of the text, before gzip: more is slow to open
LEAST_BYTES = 10_000  # for events: a file with fewer shows nothing
_SPARE_BYTES = 256  # by which the names of tracks may be longer once it is known what is shown
WORKERS, REQUESTS, SYSTEM = 1, 2, 3  # pid
_MISSES, _COUNTERS = 1, 1  # tid

Line = tuple[int, bytes]  # ts in µs, an event as JSON text


class Shown(NamedTuple):
    """What of a recording is in a file."""

    until_s: float  # nothing after this is there
    every: int  # requests whose row is a multiple of this have spans and misses; 0: none has
    num_requests: int  # of these
    num_bytes: int  # of the text, before gzip

    @property
    def sampling(self) -> str:
        """Which requests have spans, in words."""
        if self.every == 1:
            return "all requests"
        return f"requests whose row is a multiple of {self.every}" if self.every else "no requests: there is no room"


def check_name(name: str) -> None:
    """Raises: UserError: the name does not end as timelines do."""
    if not name.endswith(ENDINGS):
        raise UserError(f"timeline: expected a name that ends with {' or '.join(ENDINGS)}, got {name!r}")


def write_timeline(
    path: str | Path, recording: Recording, run: dict[str, Any], max_bytes: int = MAX_BYTES, overwrite: bool = False
) -> Shown:
    """Writes a timeline, as gzip if the name ends with .gz. What does not fit is left out, see `timeline_text`.

    Args:
        run: what was run (policy, seed, ...): JSON values, kept in the file's "otherData".

    Raises:
        UserError: `check_name`, `timeline_text`, or the file exists and `overwrite` is False.
        InputOutputError: it cannot be written.
    """
    check_name(str(path))
    with staged_file(path, overwrite) as staged:
        return fill_timeline(staged, recording, run, max_bytes)


def fill_timeline(path: Path, recording: Recording, run: dict[str, Any], max_bytes: int = MAX_BYTES) -> Shown:
    """`write_timeline` where the caller has staged the file."""
    chunks, shown = timeline_text(recording, run, max_bytes)
    with path.open("wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                packed.writelines(chunks)
        else:
            file.writelines(chunks)
    return shown


def timeline_text(recording: Recording, run: dict[str, Any], max_bytes: int = MAX_BYTES) -> tuple[list[bytes], Shown]:
    """The JSON text of a timeline, in pieces.

    If all does not fit into `max_bytes`: batches and counters may take half of them, and the time after what fits is
    cut off; of the requests that arrived by then those are shown whose row is a multiple of the smallest number for
    which they fit. The file says so, in "otherData" and in the names of its tracks.

    Raises:
        UserError: max_bytes is too small for anything.
    """
    room = max_bytes - len(_head(run, recording, Shown(recording.end_s, 1, 0, 0))) - _SPARE_BYTES
    if room < LEAST_BYTES:
        raise UserError(f"max_bytes: expected at least {max_bytes - room + LEAST_BYTES}, got {max_bytes!r}")
    until_s = recording.end_s
    recording = _first_seconds(recording, until_s)  # without requests that have not arrived
    base, spans = _base(recording), _spans(recording)
    if _size(base) + sum(map(_size, spans)) > room and _size(base) > room // 2:
        until_s = _fitting_s(base, room // 2)
        recording = _first_seconds(recording, until_s)
        base, spans = _base(recording), _spans(recording)
    rows = recording.requests["row"]
    every = _sampling(rows, np.array([_size(lines) for lines in spans], np.int64), room - _size(base))
    kept = [lines for row, lines in zip(rows.tolist(), spans, strict=True) if every and row % every == 0]
    lines = base + [line for of_request in kept for line in of_request]
    lines.sort(key=lambda line: line[0])  # stable: of one moment, what was made first stays first
    shown = Shown(until_s, every, len(kept), 0)
    chunks = [_head(run, recording, shown), *(b",\n" + text for _, text in lines), b"\n]}\n"]
    return chunks, shown._replace(num_bytes=sum(map(len, chunks)))


# ---- what fits -----------------------------------------------------------------------------------------------------
def _size(lines: Iterable[Line]) -> int:
    """Bytes of the lines in a file, with what stands between them."""
    return sum(len(text) + 2 for _, text in lines)


def _fitting_s(lines: list[Line], room: int) -> float:
    """The last second of which all lines, of this moment and before, have room."""
    ts = np.array([ts for ts, _ in lines])
    order = np.argsort(ts, kind="stable")
    size = np.cumsum(np.array([len(text) + 2 for _, text in lines])[order])
    first_out = int(ts[order][np.searchsorted(size, room, side="right")])
    return max(0, first_out - 1) / 1e6


def _first_seconds(recording: Recording, until_s: float) -> Recording:
    """What is known of a run at `until_s`: no batch that ended later, no later arrival."""
    batches, samples, requests = recording.batches, recording.samples, recording.requests
    num_batches = int(np.searchsorted(batches["end_s"], until_s, side="right"))
    return Recording(
        batches[:num_batches],
        recording.entries[: np.searchsorted(recording.entries["batch"], num_batches)],
        samples[samples["time_s"] <= until_s],
        recording.choices[recording.choices["time_s"] <= until_s],
        requests[requests["arrival_s"] <= until_s],
        until_s,
    )


def _sampling(rows: np.ndarray, sizes: np.ndarray, room: int) -> int:
    """The smallest number of whose multiples among the rows all have room; 0 if not even row 0 has."""
    if len(rows) == 0:
        return 1
    for every in range(max(1, int(sizes.sum()) // (2 * max(1, room))), int(rows.max()) + 2):
        if sizes[rows % every == 0].sum() <= room:
            return every
    return 0


# ---- events --------------------------------------------------------------------------------------------------------
def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _line(ts: int, **fields: Any) -> Line:
    text = json.dumps({"ts": ts, **fields}, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return ts, text.encode()


def _head(run: dict[str, Any], recording: Recording, shown: Shown) -> bytes:
    """The file up to its first event that has happened: what it shows, and names."""
    about = {
        "run": run,
        "shown": {
            "until_s": shown.until_s,
            "batches": len(recording.batches),
            "requests": shown.num_requests,
            "requests_by_then": len(recording.requests),
            "sampling": shown.sampling,
        },
    }
    text = json.dumps(about, separators=(",", ":"), allow_nan=False)
    names = b",\n".join([line for _, line in _names(recording, shown)])
    return b'{"displayTimeUnit":"ms","otherData":' + text.encode() + b',"traceEvents":[\n' + names


def _names(recording: Recording, shown: Shown) -> list[Line]:
    """Names of processes and threads."""
    requests = "requests" if shown.every == 1 else f"requests ({shown.sampling})"
    workers = range(int(recording.batches["worker"].max()) + 1 if len(recording.batches) else 1)
    threads = [(WORKERS, w + 1, f"worker {w}") for w in workers] + [(REQUESTS, _MISSES, "SLO misses")]
    lines = []
    for pid, name in ((WORKERS, "workers"), (REQUESTS, requests), (SYSTEM, f"system, until {shown.until_s:.6g} s")):
        lines.append(_line(0, ph="M", name="process_name", pid=pid, tid=0, args={"name": name}))
        lines.append(_line(0, ph="M", name="process_sort_index", pid=pid, tid=0, args={"sort_index": pid}))
    lines += [_line(0, ph="M", name="thread_name", pid=p, tid=t, args={"name": name}) for p, t, name in threads]
    return lines


def _base(recording: Recording) -> list[Line]:
    """Batches and counters."""
    return [*_batch_lines(recording), *_counter_lines(recording.samples)]


def _batch_lines(recording: Recording) -> Iterator[Line]:
    """A slice for each batch; within it one for its prefill and one for its decodes, as long as their share of its
    tokens.
    """
    entries = recording.entries
    edges = np.searchsorted(entries["batch"], np.arange(len(recording.batches) + 1))
    for k, b in enumerate(recording.batches):
        tid, start, end = int(b["worker"]) + 1, _us(b["start_s"]), _us(b["end_s"])
        prefill, decode = int(b["prefill_tokens"]), int(b["decode_tokens"])
        tokens = {"requests": int(b["num_requests"]), "prefill_tokens": prefill, "decode_tokens": decode}
        kv = {"kv_used_blocks": int(b["kv_used_blocks"])}
        name = "mixed batch" if prefill and decode else "prefill batch" if prefill else "decode batch"
        batch = {"ph": "X", "pid": WORKERS, "tid": tid, "cat": "batch"}
        yield _line(start, dur=end - start, name=name, args={"batch": k, **tokens, **kv}, **batch)
        mine = entries[edges[k] : edges[k + 1]]
        chunks = mine[mine["prefill"] > 0]
        middle = start + (end - start) * prefill // max(1, prefill + decode)
        if prefill:
            of = {str(row): n for row, n in zip(chunks["row"].tolist(), chunks["prefill"].tolist(), strict=True)}
            args = {"tokens": prefill, "requests": of}
            yield _line(start, dur=middle - start, name="prefill", args=args, **batch)
        if decode:
            rows = mine["row"][mine["decode"] > 0].tolist()
            args = {"tokens": decode, "requests": ",".join(map(str, rows))}
            yield _line(middle, dur=end - middle, name="decode", args=args, **batch)


def _counter_lines(samples: np.ndarray) -> Iterator[Line]:
    """A step of each counter where it changes; of one microsecond the last."""
    ts = np.round(samples["time_s"] * 1e6).astype(np.int64)
    last = np.append(ts[1:] != ts[:-1], True)[: len(ts)]
    counters: tuple[tuple[str, str, Any], ...] = (
        ("waiting", "requests", samples["num_waiting"]),
        ("running", "requests", samples["num_running"]),
        ("KV used", "percent", np.round(100 * samples["kv_used"], 2)),
    )
    for name, unit, values in counters:
        times, steps = ts[last], values[last]
        changes = np.append(True, steps[1:] != steps[:-1])[: len(steps)]
        for when, value in zip(times[changes].tolist(), steps[changes].tolist(), strict=True):
            yield _line(when, ph="C", pid=SYSTEM, tid=_COUNTERS, name=name, args={unit: value})


# ---- requests ------------------------------------------------------------------------------------------------------
class _Span(NamedTuple):
    """A phase of a request."""

    name: str
    start_s: float
    end_s: float


def _spans(recording: Recording) -> list[list[Line]]:
    """The events of each request, in order of row."""
    entries, requests = recording.entries, recording.requests
    entries = entries[np.argsort(entries["row"], kind="stable")]  # of one request by the end of the batch
    starts, ends = (recording.batches[name][entries["batch"]] for name in ("start_s", "end_s"))
    edges = np.searchsorted(entries["row"], np.stack([requests["row"], requests["row"] + 1]))
    found = []
    for r, low, high in zip(requests, *edges.tolist(), strict=True):
        mine = slice(low, high)
        prefills = entries["prefill"][mine] > 0
        found.append(_request_lines(r, starts[mine], ends[mine], prefills, recording.end_s))
    return found


def _request_lines(r: Any, starts: np.ndarray, ends: np.ndarray, prefills: np.ndarray, end_s: float) -> list[Line]:
    """The span of one request with its phases, and its misses.

    Args:
        starts, ends, prefills: (n,) of its entries, in order of their ends.
        end_s: nothing is known after this.
    """
    row, arrival_s = int(r["row"]), float(r["arrival_s"])
    if r["status"] == REJECTED:
        return [_instant(arrival_s, "rejected", {"request": row})]
    finished = r["status"] == FINISHED and r["finish_s"] <= end_s
    last_s = float(r["finish_s"]) if finished else end_s
    tokens_s = _token_times(float(r["first_token_s"]), ends, prefills, last_s, finished)
    about = {name: int(r[name]) for name in ("prompt_tokens", "output_tokens", "evictions", "worker", "slo_class")}
    span = {"pid": REQUESTS, "tid": _MISSES, "cat": "request", "id": str(row)}
    name = f"request {row}"
    lines = [_line(_us(arrival_s), ph="b", name=name, args=about, **span)]
    for phase in _phases(r, tokens_s, starts, prefills, last_s):
        lines.append(_line(_us(phase.start_s), ph="b", name=phase.name, **span))
        lines.append(_line(_us(phase.end_s), ph="e", name=phase.name, **span))
    lines.append(_line(_us(last_s), ph="e", name=name, **span))
    lines += _misses(r, tokens_s if finished or not tokens_s else [*tokens_s, end_s], end_s)
    return lines


def _token_times(
    first_token_s: float, ends: np.ndarray, prefills: np.ndarray, last_s: float, finished: bool
) -> list[float]:
    """When each token was there, as well as entries tell.

    After the first at the end of each decode, and of each prefill that a decode follows or with which it finished.
    """
    if not 0 <= first_token_s <= last_s:
        return []
    emits = ~prefills
    emits[:-1] |= ~prefills[1:]
    emits |= finished & (ends == last_s)
    return [first_token_s, *ends[emits & (ends > first_token_s)].tolist()]


def _phases(r: Any, tokens_s: list[float], starts: np.ndarray, prefills: np.ndarray, last_s: float) -> list[_Span]:
    """queued, prefill and decode, without gaps from arrival to `last_s`.

    An eviction is seen where a prefill follows a token: the request counts as queued again from its last token on.
    """
    arrival_s, since_s = float(r["arrival_s"]), float(r["first_scheduled_s"])
    if not 0 <= since_s <= last_s:
        return [_Span("queued", arrival_s, last_s)]
    phases, prefilling, token = [_Span("queued", arrival_s, since_s)], True, 0
    for start_s, prefill in zip([*starts.tolist(), last_s], [*prefills.tolist(), False], strict=True):
        if prefilling and token < len(tokens_s) and tokens_s[token] <= start_s:
            phases.append(_Span("prefill", since_s, tokens_s[token]))
            since_s, prefilling = tokens_s[token], False
        while token < len(tokens_s) and tokens_s[token] <= start_s:
            token += 1
        if prefill and not prefilling and start_s >= tokens_s[token - 1]:
            phases += [_Span("decode", since_s, tokens_s[token - 1]), _Span("queued", tokens_s[token - 1], start_s)]
            since_s, prefilling = start_s, True
    phases.append(_Span("prefill" if prefilling else "decode", since_s, last_s))
    return [phase for phase in phases if phase.end_s > phase.start_s]


def _misses(r: Any, times_s: list[float], end_s: float) -> Iterator[Line]:
    """Instants at which a first token became late, and at which a gap between two tokens became too long.

    Args:
        times_s: of its tokens; then `end_s` if another was to come.
    """
    about, arrival_s = {"request": int(r["row"])}, float(r["arrival_s"])
    target_s, due_s = float(r["tbt_target_s"]), arrival_s + float(r["ttft_target_s"])
    if (times_s[0] if times_s else end_s) > due_s + LATE_TOLERANCE_S:
        took = {"ttft_ms": 1e3 * (times_s[0] - arrival_s)} if times_s else {}
        yield _instant(due_s, "TTFT missed", {**about, "target_ms": 1e3 * float(r["ttft_target_s"]), **took})
    for before_s, time_s in pairwise(times_s):
        if time_s - before_s > target_s + LATE_TOLERANCE_S:
            args = {**about, "target_ms": 1e3 * target_s, "gap_ms": 1e3 * (time_s - before_s)}
            yield _instant(before_s + target_s, "TBT missed", args)


def _instant(time_s: float, name: str, args: dict[str, Any]) -> Line:
    args = {key: round(value, 3) if isinstance(value, float) else value for key, value in args.items()}
    return _line(_us(time_s), ph="i", s="t", pid=REQUESTS, tid=_MISSES, cat="miss", name=name, args=args)
