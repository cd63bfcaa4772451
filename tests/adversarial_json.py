"""Traces in JSON lines that are made to go wrong, as in `adversarial_traces`."""

from __future__ import annotations

import gzip

from adversarial_traces import BOM, COUNT, OUTPUT, SECONDS, joined, own

MOONCAKE = '{"timestamp": 3000, "input_length": 7, "output_length": 2, "hash_ids": [0, 1]}'
BAILIAN = (
    '{"chat_id": 5, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 7, "output_length": 2, "type": "text",'
    ' "turn": 1, "hash_ids": [4]}'
)
WHOLE_MS = (
    "expected a whole number of milliseconds of at least 0 (in seconds? `workload convert --timestamp-unit s`), got"
)
MOONCAKE_NAMES = "expected timestamp, input_length, output_length, hash_ids"


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


def mooncake(pairs: str) -> str:
    return lines(MOONCAKE, "{" + pairs + "}")


def chat(number: int, parent: int, time_s: float) -> str:
    pairs = f'"chat_id": {number}, "parent_chat_id": {parent}, "timestamp": {time_s}'
    return "{" + pairs + f', "input_length": {number}, "output_length": 1' + "}"


REFUSED_JSON = {
    "Bailian with a chat twice": (
        lines(chat(3, -1, 0), chat(4, -1, 0), chat(3, 4, 0)),
        "T:3:1: chat_id: 3 is there twice",
    ),
    "Bailian with a chat that continues itself": (
        lines(chat(3, 3, 0)),
        "T:1:2: parent_chat_id: the chain of parents of chat 3 never ends",
    ),
    "Bailian with a parent below -1": (
        lines(chat(3, -2, 0)),
        "T:1:2: parent_chat_id: expected an integer from -1 to 999999999999999999, got -2",
    ),
    "Bailian with a negative chat": (
        lines(chat(-1, -1, 0)),
        joined(
            "T:1:1: chat_id: expected an integer from 0 to 999999999999999999, got -1",
            f"T:1:4: input_length: {COUNT} -1",
        ),
    ),
    "Bailian with a circle of chats": (
        lines(chat(3, 4, 0), chat(4, 5, 0), chat(5, 3, 0), chat(6, 5, 0)),
        joined(
            "T:1:2: parent_chat_id: the chain of parents of chat 3 never ends",
            "T:2:2: parent_chat_id: the chain of parents of chat 4 never ends",
            "T:3:2: parent_chat_id: the chain of parents of chat 5 never ends",
            "T:4:2: parent_chat_id: the chain of parents of chat 6 never ends",
        ),
    ),
    "Bailian without parents": (
        lines('{"chat_id": 1, "timestamp": 0, "input_length": 1, "output_length": 1}'),
        "T:1:5: parent_chat_id: key missing",
    ),
    "JSON with a blank line": (lines(MOONCAKE, "", MOONCAKE), "T:2:1: blank line"),
    "JSON with a blank line at the end": (lines(MOONCAKE, ""), "T:2:1: blank line"),
    "JSON with a comma between lines": (
        lines(MOONCAKE + ",", MOONCAKE),
        'T:1:79: not JSON from this character on, got ","',
    ),
    "JSON with a list": (lines(MOONCAKE, "[1, 2]"), 'T:2:1: expected a JSON object, got "[1, 2]"'),
    "JSON with null": (lines(MOONCAKE, "null"), 'T:2:1: expected a JSON object, got "null"'),
    "JSON with CSV below": (lines(MOONCAKE, "0,1,1"), 'T:2:2: not JSON from this character on, got ",1,1"'),
    "JSON cut off": (lines(MOONCAKE, MOONCAKE[:40]), 'T:2:40: not JSON from this character on, got "\\""'),
    "JSON with single quotes": (
        lines(MOONCAKE, MOONCAKE.replace('"', "'")),
        "T:2:2: not JSON from this character on, got \"'timestamp': 3000, 'input_length': 7, 'o...\"",
    ),
    "JSON with a comment": (
        lines(MOONCAKE, MOONCAKE + " // end"),
        'T:2:80: not JSON from this character on, got "// end"',
    ),
    "JSON with a key twice": (
        mooncake('"timestamp": 1, "timestamp": 2, "input_length": 1, "output_length": 1'),
        "T:2:1: timestamp: a second key of this name",
    ),
    "JSON with an unknown key": (
        mooncake('"timestamp": 1, "input_length": 1, "output_length": 1, "model": "x"'),
        f'T:2:4: unknown key "model": {MOONCAKE_NAMES}',
    ),
    "JSON without a key": (mooncake('"timestamp": 1, "input_length": 1'), "T:2:3: output_length: key missing"),
    "JSON with NaN": (
        mooncake('"timestamp": NaN, "input_length": 1, "output_length": 1'),
        "T:2:15: not JSON: NaN is no number",
    ),
    "JSON with Infinity": (
        mooncake('"timestamp": 1, "input_length": -Infinity, "output_length": 1'),
        "T:2:34: not JSON: -Infinity is no number",
    ),
    "JSON with true": (
        mooncake('"timestamp": true, "input_length": true, "output_length": 1'),
        joined(f"T:2:1: timestamp: {WHOLE_MS} true", f"T:2:2: input_length: {COUNT} true"),
    ),
    "JSON with texts as numbers": (
        mooncake('"timestamp": "1", "input_length": "1", "output_length": "1"'),
        joined(
            f'T:2:1: timestamp: {WHOLE_MS} "1"',
            f'T:2:2: input_length: {COUNT} "1"',
            f'T:2:3: output_length: {OUTPUT} "1"',
        ),
    ),
    "JSON with null in place of numbers": (
        mooncake('"timestamp": null, "input_length": null, "output_length": 1'),
        joined(f"T:2:1: timestamp: {WHOLE_MS} null", f"T:2:2: input_length: {COUNT} null"),
    ),
    "JSON with a fraction": (
        mooncake('"timestamp": 1, "input_length": 1.0, "output_length": 1.5'),
        joined(f"T:2:2: input_length: {COUNT} 1.0", f"T:2:3: output_length: {OUTPUT} 1.5"),
    ),
    "JSON with a fraction of a millisecond": (
        mooncake('"timestamp": 12.4, "input_length": 1, "output_length": 1'),
        f"T:2:1: timestamp: {WHOLE_MS} 12.4",
    ),
    "JSON with +5 and 007": (
        mooncake('"timestamp": +5, "input_length": 1, "output_length": 1') + '{"timestamp": 007}\n',
        joined(
            'T:2:15: not JSON from this character on, got "+5, \\"input_length\\": 1, \\"output_length\\": ..."',
            'T:3:16: not JSON from this character on, got "07}"',
        ),
    ),
    "JSON with 2^63": (
        mooncake('"timestamp": 1, "input_length": 9223372036854775808, "output_length": 1'),
        f"T:2:2: input_length: {COUNT} 9223372036854775808",
    ),
    "JSON with 5,000 digits": (
        mooncake('"timestamp": 1, "input_length": ' + "7" * 5000 + ', "output_length": 1'),
        f"T:2:2: input_length: {COUNT} 7777777777777777777777777777777777777777...",
    ),
    "JSON with 1e400": (
        lines(BAILIAN, BAILIAN.replace("1.5", "1e400").replace('_id": 5', '_id": 6')),
        f"T:2:3: timestamp: {SECONDS} Infinity",
    ),
    "JSON with a negative time": (
        mooncake('"timestamp": -1, "input_length": 1, "output_length": 0'),
        f"T:2:1: timestamp: {WHOLE_MS} -1",
    ),
    "JSON with ids that are no integers": (
        mooncake('"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1, 2.5, "3"]'),
        'T:2:4: hash_ids: expected a list of integers, got [1, 2.5, "3"]',
    ),
    "JSON with ids that are no list": (
        mooncake('"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": 7'),
        "T:2:4: hash_ids: expected a list of integers, got 7",
    ),
    "JSON nested 100,000 deep": (
        mooncake('"hash_ids": ' + "[" * 100_000 + "]" * 100_000),
        "T:2:1: not a trace: nested too deeply",
    ),
    "JSON nested 100,000 deep in the first line": ('{"a": ' * 100_000, "T:1:1: not a trace: nested too deeply"),
    "JSON with a line feed in a text": (
        lines(BAILIAN.replace('"text"', '"te\nxt"')),
        'T:1:103: not JSON from this character on, got "\\"te"',
    ),
    "JSON of another format below": (
        lines(MOONCAKE, BAILIAN),
        joined(
            f'T:2:1: unknown key "chat_id": {MOONCAKE_NAMES}',
            f'T:2:2: unknown key "parent_chat_id": {MOONCAKE_NAMES}',
            f"T:2:3: timestamp: {WHOLE_MS} 1.5",
            f'T:2:6: unknown key "type": {MOONCAKE_NAMES}',
            f'T:2:7: unknown key "turn": {MOONCAKE_NAMES}',
        ),
    ),
}

# as our own CSV
ACCEPTED_JSON = {
    "Mooncake": (lines(MOONCAKE, '{"output_length":1,"timestamp":0,"input_length":3}'), own("0.0,3,1", "3.0,7,2")),
    "Bailian": (lines(BAILIAN), own("1.5,7,2,0", more=",session")),
    "Bailian's chats": (
        lines(chat(3, 9, 4.0), chat(7, -1, 1.0), chat(8, 7, 2.0), chat(9, 8, 3.0), chat(1, 55, 5.0)),
        own("1.0,7,1,0", "2.0,8,1,0", "3.0,9,1,0", "4.0,3,1,0", "5.0,1,1,1", more=",session"),
    ),
    "JSON with escapes in a key": (
        mooncake('"time\\u0073tamp": 5, "input_length": 1, "output_length": 1'),
        own("0.005,1,1", "3.0,7,2"),
    ),
    "JSON with half a surrogate": (lines(BAILIAN.replace('"text"', '"\\ud800"')), own("1.5,7,2,0", more=",session")),
    "JSON with a BOM and CR LF in gzip": (
        gzip.compress(BOM + lines(MOONCAKE, MOONCAKE).replace("\n", "\r\n").encode()),
        own("3.0,7,2", "3.0,7,2"),
    ),
}
