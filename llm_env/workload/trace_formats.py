"""The formats of traces that are read: one table of their columns, and what each kind of column may hold.

A format is told by its columns, never by the name of the file. Knows nothing of files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from llm_env.settings import MAX_TOKENS

SHOWN_CHARACTERS = 40  # of a wrong field

# What a column holds. SECONDS, DATE and JSON_TIME are arrivals; NAME is a session, by any text; CHAT and PARENT make
# sessions of chats.
SECONDS, DATE, JSON_TIME = "seconds", "date", "json time"
PROMPT, OUTPUT = "prompt", "output"
CLIENT, SESSION, NAME = "client", "session", "name"
CHAT, PARENT, IGNORED = "chat", "parent", "ignored"
ARRIVALS = (SECONDS, DATE, JSON_TIME)

# Digits are spelled out: \d, int() and float() also take other scripts' digits, underscores, spaces and "nan".
_COUNT = rb"[0-9]{1,18}+"
_SECONDS = rb"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_DATE = rb"(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}"
_FRACTION_AND_ZONE = rb"(?:\.[0-9]{1,30}+)?(?:Z|[+-][0-9]{2}:[0-9]{2})?"
_IDENTITY = rb"(?:-1|[0-9]{1,18}+)?"
_ANYTHING = rb"[^,\n]*+"
PATTERNS = {
    SECONDS: _SECONDS,
    DATE: _DATE + _FRACTION_AND_ZONE,
    PROMPT: _COUNT,
    OUTPUT: _COUNT,
    CLIENT: _IDENTITY,
    SESSION: _IDENTITY,
    NAME: _ANYTHING,
    IGNORED: _ANYTHING,
}


class Column(NamedTuple):
    """A column of CSV or a key of JSON lines."""

    name: str
    kind: str
    required: bool = True


@dataclass(frozen=True)
class Format:
    """One kind of trace. `columns` in the order in which its authors write them; files may have another."""

    name: str
    columns: tuple[Column, ...]
    is_json: bool = False
    unit: str = "s"  # of JSON_TIME

    def column(self, kind: str) -> Column:
        """The first column of a kind; there is one."""
        return next(column for column in self.columns if column.kind == kind)

    @property
    def arrival(self) -> Column:
        return next(column for column in self.columns if column.kind in ARRIVALS)

    @property
    def header(self) -> str:
        """The required columns."""
        return ",".join(column.name for column in self.columns if column.required)


def _ignored(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, IGNORED, required=False) for name in names)


OWN = Format(
    "own columns",
    (
        Column("arrival_s", SECONDS),
        Column("prompt_tokens", PROMPT),
        Column("output_tokens", OUTPUT),
        Column("client", CLIENT, required=False),
        Column("session", SESSION, required=False),
        *_ignored("turn", "prefix_hit_tokens", "hash_ids", "agent", "think_s", "api_s"),
    ),
)
# Patel et al., "Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM", HPCA 2025; github.com/Azure/AzurePublicDataset
AZURE = Format("Azure", (Column("TIMESTAMP", DATE), Column("ContextTokens", PROMPT), Column("GeneratedTokens", OUTPUT)))
# Wang et al., "BurstGPT", 2024 (arXiv:2401.17644), github.com/HPMLL/BurstGPT; release 2.0 has sessions
BURSTGPT = Format(
    "BurstGPT",
    (
        Column("Timestamp", SECONDS),
        Column("Session ID", NAME, required=False),
        *_ignored("Elapsed time", "Model"),
        Column("Request tokens", PROMPT),
        Column("Response tokens", OUTPUT),
        *_ignored("Total tokens", "Log Type"),
    ),
)
# Agrawal et al., "Vidur", MLSys 2024, github.com/microsoft/vidur, data/processed_traces
VIDUR = Format(
    "Vidur",
    (
        Column("arrived_at", SECONDS),
        Column("num_prefill_tokens", PROMPT),
        Column("num_decode_tokens", OUTPUT),
        *_ignored("num_total_tokens", "pd_ratio", "request_id"),
    ),
)
# Qin et al., "Mooncake", FAST 2025, github.com/kvcache-ai/Mooncake, FAST25-release/traces; `vllm bench serve
# --dataset-name timed_trace` reads the same keys, in the unit that its --timed-trace-sec-multiplier says
MOONCAKE = Format(
    "Mooncake",
    (
        Column("timestamp", JSON_TIME),
        Column("input_length", PROMPT),
        Column("output_length", OUTPUT),
        *_ignored("hash_ids"),
    ),
    is_json=True,
    unit="ms",
)
# Wang et al., "KVCache cache in the wild", ATC 2025, github.com/alibaba-edu/qwen-bailian-usagetraces-anon
BAILIAN = Format(
    "Bailian",
    (
        Column("chat_id", CHAT),
        Column("parent_chat_id", PARENT),
        Column("timestamp", JSON_TIME),
        Column("input_length", PROMPT),
        Column("output_length", OUTPUT),
        *_ignored("type", "turn", "hash_ids"),
    ),
    is_json=True,
)
CSV_FORMATS = (OWN, AZURE, BURSTGPT, VIDUR)
HEADERS = (
    " or ".join(form.header for form in CSV_FORMATS)
    + f" or JSON lines with {MOONCAKE.header} (Mooncake) or {BAILIAN.header} (Bailian)"
)


def find_csv_format(names: list[str]) -> Format | None:
    """The format that the columns of a header belong to: that with most of them, the first of equals; None if none."""
    best = max(CSV_FORMATS, key=lambda form: len({column.name for column in form.columns} & set(names)))
    return best if {column.name for column in best.columns} & set(names) else None


def expected(kind: str, zero_output: str, unit: str = "s") -> str:
    """What a field of this kind should be, for an error."""
    if kind == SECONDS:
        return "a finite number of seconds of at least 0"
    if kind == DATE:
        return "a time like 2023-11-16 18:15:46.6805900"
    if kind == JSON_TIME:
        return f"a finite number of {'seconds' if unit == 's' else 'milliseconds'} of at least 0"
    if kind in (CHAT, PARENT):
        return f"an integer from {'-1' if kind == PARENT else '0'} to {10**18 - 1}"
    least = 0 if kind == OUTPUT and zero_output == "drop" else 1
    return f"an integer from {least} to {MAX_TOKENS}"


def show(field: str) -> str:
    """The field in double quotes, shortened, everything but ASCII escaped so that look-alikes can be told apart."""
    return json.dumps(field if len(field) <= SHOWN_CHARACTERS else field[:SHOWN_CHARACTERS] + "...")
