"""Traces that are made to go wrong: the content of each, and the exact error, or the rows that are read from it.

A message begins with T for the path of the file. Those in JSON lines are in `adversarial_json`.
"""

from __future__ import annotations

import gzip

from llm_env.workload.trace_formats import HEADERS

OWN = "arrival_s,prompt_tokens,output_tokens"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
BURST2 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens"
BOM = b"\xef\xbb\xbf"

COUNT = "expected an integer from 1 to 1048576, got"
OUTPUT = "expected an integer from 0 to 1048576, got"
SECONDS = "expected a finite number of seconds of at least 0, got"
DATE = "expected a time like 2023-11-16 18:15:46.6805900, got"
OWN_NAMES = (
    "expected arrival_s, prompt_tokens, output_tokens, client, session, turn, prefix_hit_tokens, hash_ids, agent,"
    " think_s, api_s"
)
LENGTHS = "lengths without arrivals are no trace"
NUL = "a NUL byte: this is not a text file"
LONG = "a line of more than 1048576 bytes"
CUT = "damaged or cut-off gzip data: Compressed file ended before the end-of-stream marker was reached"
BLANK_LINES = "\n".join(
    [
        *(f"T:{line}:1: blank line" for line in range(2, 22)),
        "and 1048518 more problems",
        "the file was not read further, from line 1048540 on",
    ]
)


def own(*rows: str, more: str = "") -> str:
    return "\n".join([OWN + more, *rows]) + "\n"


def azure(*stamps: str) -> str:
    return "\n".join([AZURE, *(f"{stamp},{5 + k},1" for k, stamp in enumerate(stamps))]) + "\n"


def joined(*problems: str) -> str:
    return "\n".join(problems)


REFUSED = {
    "nothing": (b"", f"T:1:1: empty file: expected the header {HEADERS}"),
    "only a newline": (b"\n", f'T:1:1: header: expected {HEADERS}, got ""'),
    "only a BOM": (BOM, f"T:1:1: empty file: expected the header {HEADERS}"),
    "only a carriage return": (b"\r", f'T:1:1: header: expected {HEADERS}, got ""'),
    "only the header": (f"{OWN}\n", "T:2:1: no requests after the header"),
    "only the header, without its newline": (OWN, "T:2:1: no requests after the header"),
    "the header twice": (
        own(OWN),
        joined(
            f'T:2:1: arrival_s: {SECONDS} "arrival_s"',
            f'T:2:2: prompt_tokens: {COUNT} "prompt_tokens"',
            f'T:2:3: output_tokens: {OUTPUT} "output_tokens"',
        ),
    ),
    "no header": ("0,1,1\n", f'T:1:1: header: expected {HEADERS}, got "0,1,1"'),
    "a blank line above the header": (f"\n{OWN}\n0,1,1\n", f'T:1:1: header: expected {HEADERS}, got ""'),
    "a column missing": ("arrival_s,prompt_tokens\n0,1\n", "T:1:3: output_tokens: column missing"),
    "lengths without arrivals": ("prompt_tokens,output_tokens\n1,1\n", f"T:1:3: arrival_s: column missing: {LENGTHS}"),
    "a column twice": (f"{OWN},arrival_s\n0,1,1,0\n", "T:1:4: arrival_s: a second column of this name"),
    "an unknown column": (f"{OWN},model\n0,1,1,x\n", f'T:1:4: unknown column "model": {OWN_NAMES}'),
    "a column in capitals": (
        "Arrival_s,prompt_tokens,output_tokens\n0,1,1\n",
        joined(f'T:1:1: unknown column "Arrival_s": {OWN_NAMES}', f"T:1:4: arrival_s: column missing: {LENGTHS}"),
    ),
    "a quoted header": (
        '"arrival_s","prompt_tokens","output_tokens"\n0,1,1\n',
        f'T:1:1: header: expected {HEADERS}, got "\\"arrival_s\\",\\"prompt_tokens\\",\\"output_toke..."',
    ),
    "a trailing comma in the header": (f"{OWN},\n0,1,1,\n", f'T:1:4: unknown column "": {OWN_NAMES}'),
    "semicolons": (
        "arrival_s;prompt_tokens;output_tokens\n0;1;1\n",
        f'T:1:1: header: expected {HEADERS}, got "arrival_s;prompt_tokens;output_tokens"',
    ),
    "tabs": (
        "arrival_s\tprompt_tokens\toutput_tokens\n0\t1\t1\n",
        f'T:1:1: header: expected {HEADERS}, got "arrival_s\\tprompt_tokens\\toutput_tokens"',
    ),
    "formulas in the header": (
        "=1+1,prompt_tokens,output_tokens\n0,1,1\n",
        joined(f'T:1:1: unknown column "=1+1": {OWN_NAMES}', f"T:1:4: arrival_s: column missing: {LENGTHS}"),
    ),
    "columns of two formats": (
        f"{OWN},ContextTokens\n0,1,1,1\n",
        f'T:1:4: unknown column "ContextTokens": {OWN_NAMES}',
    ),
    "an array of JSON": ('[{"timestamp": 0}]', f'T:1:1: header: expected {HEADERS}, got "[{{\\"timestamp\\": 0}}]"'),
    "a benchmark result of vLLM": (
        '{"date": "20260101-000000", "backend": "vllm", "input_lens": [1], "output_lens": [2]}',
        f'T:1:1: header: expected {HEADERS}, got "{{\\"date\\": \\"20260101-000000\\", \\"backend\\": \\"..."',
    ),
    "two BOMs": (
        BOM + BOM + own("0,1,1").encode(),
        joined(
            f'T:1:1: unknown column "\\ufeffarrival_s": {OWN_NAMES}', f"T:1:4: arrival_s: column missing: {LENGTHS}"
        ),
    ),
    "UTF-16 with a BOM": (own("0,1,1").encode("utf-16"), f"T:1:1: {NUL}"),
    "UTF-16 without a BOM": (own("0,1,1").encode("utf-16-le"), f"T:1:1: {NUL}"),
    "CR alone": (
        f"{OWN}\r0,1,1\r",
        joined(
            f'T:1:3: unknown column "output_tokens\\r0": {OWN_NAMES}',
            f'T:1:4: unknown column "1": {OWN_NAMES}',
            "T:1:5: 1: a second column of this name",
            "T:1:6: output_tokens: column missing",
        ),
    ),
    "CR CR LF": (f"{OWN}\n0,1,1\r\r\n", f'T:2:3: output_tokens: {OUTPUT} "1\\r"'),
    "NUL in a field": (own("0,1\0,1"), f"T:2:2: {NUL}"),
    "NUL in place of a newline": (f"{OWN}\0000,1,1\n", f"T:1:3: {NUL}"),
    "not UTF-8": (own("0,1,1").encode() + b"1,\xff,1\n", "T:3:2: not UTF-8 text (byte 0xff)"),
    "Latin-1 in an ignored column": (
        f"{OWN},agent\n0,1,1,caf".encode() + b"\xe9\n",
        "T:2:4: not UTF-8 text (byte 0xe9)",
    ),
    "a vertical tab and a line separator": (
        own("0,1\v,1\u2028"),
        joined(f'T:2:2: prompt_tokens: {COUNT} "1\\u000b"', f'T:2:3: output_tokens: {OUTPUT} "1\\u2028"'),
    ),
    "a field more in every row": (
        own("0,1,1,9", "1,1,1,9"),
        joined("T:2:4: too many fields: expected 3, got 4", "T:3:4: too many fields: expected 3, got 4"),
    ),
    "a field less": (own("0,1,1", "1,1"), "T:3:3: too few fields: expected 3, got 2"),
    "a trailing comma": (own("0,1,1,"), "T:2:4: too many fields: expected 3, got 4"),
    "a blank line": (own("0,1,1", "", "1,1,1"), "T:3:1: blank line"),
    "a line of spaces": (own("0,1,1", " \t"), "T:3:1: blank line"),
    "a blank line at the end": (own("0,1,1", ""), "T:3:1: blank line"),
    "a comment": (own("# made by hand", "0,1,1"), "T:2:2: too few fields: expected 3, got 1"),
    "quoted fields": (
        own('"0","1","1"'),
        joined(
            f'T:2:1: arrival_s: {SECONDS} "\\"0\\""',
            f'T:2:2: prompt_tokens: {COUNT} "\\"1\\""',
            f'T:2:3: output_tokens: {OUTPUT} "\\"1\\""',
        ),
    ),
    "a quoted comma": (f"{OWN},agent\n" + '0,1,1,"a,b"\n', "T:2:5: too many fields: expected 4, got 5"),
    "200 kB in a number": (
        own("0," + "9" * 200_000 + ",1"),
        f'T:2:2: prompt_tokens: {COUNT} "9999999999999999999999999999999999999999..."',
    ),
    "a line of 2 MB": (own("0," + "9" * 2_000_000 + ",1"), f"T:2:1: {LONG}"),
    "a header of 2 MB": ("x" * 2_000_000, f"T:1:1: {LONG}"),
    "2 MB of blank lines": (f"{OWN}\n" + "\n" * 2_000_000, BLANK_LINES),
    "NA": (own("0,NA,1"), f'T:2:2: prompt_tokens: {COUNT} "NA"'),
    "an empty field": (own("0,1,"), f'T:2:3: output_tokens: {OUTPUT} ""'),
    "a negative prompt": (own("0,-5,1"), f'T:2:2: prompt_tokens: {COUNT} "-5"'),
    "a prompt of zero": (own("0,0,1"), f'T:2:2: prompt_tokens: {COUNT} "0"'),
    "a negative output": (own("0,1,-1"), f'T:2:3: output_tokens: {OUTPUT} "-1"'),
    "a prompt of 10.5": (own("0,10.5,1"), f'T:2:2: prompt_tokens: {COUNT} "10.5"'),
    "a prompt of 10.0": (own("0,10.0,1"), f'T:2:2: prompt_tokens: {COUNT} "10.0"'),
    "a prompt of 1e3": (own("0,1e3,1"), f'T:2:2: prompt_tokens: {COUNT} "1e3"'),
    "a prompt of 1_000": (own("0,1_000,1"), f'T:2:2: prompt_tokens: {COUNT} "1_000"'),
    "a prompt of +5": (own("0,+5,1"), f'T:2:2: prompt_tokens: {COUNT} "+5"'),
    "a prompt of 0x10": (own("0,0x10,1"), f'T:2:2: prompt_tokens: {COUNT} "0x10"'),
    "full-width digits": (own("0,\uff11\uff12,1"), f'T:2:2: prompt_tokens: {COUNT} "\\uff11\\uff12"'),
    "arabic digits": (own("0,\u0661,1"), f'T:2:2: prompt_tokens: {COUNT} "\\u0661"'),
    "a prompt of 2^20 + 1": (own("0,1048577,1"), f'T:2:2: prompt_tokens: {COUNT} "1048577"'),
    "a prompt of 2^63": (own("0,9223372036854775808,1"), f'T:2:2: prompt_tokens: {COUNT} "9223372036854775808"'),
    "a prompt of 10^23": (
        own("0,100000000000000000000000,1"),
        f'T:2:2: prompt_tokens: {COUNT} "100000000000000000000000"',
    ),
    "a prompt of 5,000 digits": (
        own("0," + "1" * 5000 + ",1"),
        f'T:2:2: prompt_tokens: {COUNT} "1111111111111111111111111111111111111111..."',
    ),
    "a time of nan": (own("nan,1,1"), f'T:2:1: arrival_s: {SECONDS} "nan"'),
    "a time of inf": (own("inf,1,1"), f'T:2:1: arrival_s: {SECONDS} "inf"'),
    "a time of 1e400": (own("1e400,1,1"), f'T:2:1: arrival_s: {SECONDS} "1e400"'),
    "a negative time": (own("-1,1,1"), f'T:2:1: arrival_s: {SECONDS} "-1"'),
    "a time with a decimal comma": (own("0,5,1,1"), "T:2:4: too many fields: expected 3, got 4"),
    "a time of 1_0": (own("1_0,1,1"), f'T:2:1: arrival_s: {SECONDS} "1_0"'),
    "a time in hexadecimal": (own("0x1p3,1,1"), f'T:2:1: arrival_s: {SECONDS} "0x1p3"'),
    "a time with a space": (own(" 1,1,1"), f'T:2:1: arrival_s: {SECONDS} " 1"'),
    "a time as a date": (own("2023-11-16 18:15:46,1,1"), f'T:2:1: arrival_s: {SECONDS} "2023-11-16 18:15:46"'),
    "one NaN in the last row": (own(*["0,1,1"] * 30, "0,1,NaN"), f'T:32:3: output_tokens: {OUTPUT} "NaN"'),
    "nothing but rows without output": (
        own("0,1,0", "1,1,0"),
        "T: no request is left of 2 (2 dropped: without output)",
    ),
    "markup in a number": (own("0,</script>,1"), f'T:2:2: prompt_tokens: {COUNT} "</script>"'),
    "terminal codes in a number": (own("0,\x1b[31m1,1"), f'T:2:2: prompt_tokens: {COUNT} "\\u001b[31m1"'),
    "gzip in gzip": (gzip.compress(gzip.compress(own("0,1,1").encode())), f"T:1:1: {NUL}"),
    "a bomb of zeros in gzip": (gzip.compress(bytes(16 << 20)), f"T:1:1: {LONG}"),
    "a bomb of newlines in gzip": (gzip.compress(OWN.encode() + b"\n" * (16 << 20)), BLANK_LINES),
    "a bomb of digits in gzip": (
        gzip.compress(own("0").encode() + b"0" * (16 << 20)),
        joined("T:2:2: too few fields: expected 3, got 1", f"T:3:1: {LONG}"),
    ),
    "zip": (b"PK\x03\x04" + bytes(30), f"T:1:1: {NUL}"),
    "zstandard": (b"\x28\xb5\x2f\xfd\x04\x00", f"T:1:1: {NUL}"),
    "parquet": (b"PAR1\x15\x04", f'T:1:1: header: expected {HEADERS}, got "PAR1\\u0015\\u0004"'),
    "Azure with a fraction of 31 digits": (
        azure("2024-05-12 00:00:00." + "1" * 31),
        f'T:2:1: TIMESTAMP: {DATE} "2024-05-12 00:00:00.11111111111111111111..."',
    ),
    "Azure with and without a zone": (
        azure("2024-05-12 00:00:00", "2024-05-12 00:00:01+00:00"),
        'T:3:1: TIMESTAMP: expected a time without a zone, as in the first row, got "2024-05-12 00:00:01+00:00"',
    ),
    "Azure with a zone of 25 hours": (
        azure("2024-05-12 00:00:00+25:00"),
        f'T:2:1: TIMESTAMP: {DATE} "2024-05-12 00:00:00+25:00"',
    ),
    "Azure with a zone of letters": (
        azure("2024-05-12 00:00:00 UTC"),
        f'T:2:1: TIMESTAMP: {DATE} "2024-05-12 00:00:00 UTC"',
    ),
    "Azure on February 30": (azure("2023-02-30 00:00:00"), f'T:2:1: TIMESTAMP: {DATE} "2023-02-30 00:00:00"'),
    "Azure on February 29 of 1900": (azure("1900-02-29 00:00:00"), f'T:2:1: TIMESTAMP: {DATE} "1900-02-29 00:00:00"'),
    "Azure in month 13": (azure("2023-13-01 00:00:00"), f'T:2:1: TIMESTAMP: {DATE} "2023-13-01 00:00:00"'),
    "Azure on day 0": (azure("2023-01-00 00:00:00"), f'T:2:1: TIMESTAMP: {DATE} "2023-01-00 00:00:00"'),
    "Azure at hour 24": (azure("2023-02-03 24:00:00"), f'T:2:1: TIMESTAMP: {DATE} "2023-02-03 24:00:00"'),
    "Azure with a leap second": (azure("2016-12-31 23:59:60"), f'T:2:1: TIMESTAMP: {DATE} "2016-12-31 23:59:60"'),
    "Azure in 1899": (azure("1899-12-31 00:00:00"), f'T:2:1: TIMESTAMP: {DATE} "1899-12-31 00:00:00"'),
    "Azure in seconds": (azure("0.5"), f'T:2:1: TIMESTAMP: {DATE} "0.5"'),
    "Azure with an American date": (azure("11/16/2023 18:15:46"), f'T:2:1: TIMESTAMP: {DATE} "11/16/2023 18:15:46"'),
    "Azure with an empty time": (azure(""), f'T:2:1: TIMESTAMP: {DATE} ""'),
    "Azure with a dot and no fraction": (
        azure("2023-11-16 18:15:46."),
        f'T:2:1: TIMESTAMP: {DATE} "2023-11-16 18:15:46."',
    ),
    "BurstGPT with a quoted model": (
        f'{BURST}\n5,"a,b",472,18,490,API log\n',
        "T:2:7: too many fields: expected 6, got 7",
    ),
    "BurstGPT with an empty length": (f"{BURST}\n5,ChatGPT,472,,490,API log\n", f'T:2:4: Response tokens: {OUTPUT} ""'),
    "BurstGPT with fractions as lengths": (
        f"{BURST}\n5,ChatGPT,472.0,18.0,490.0,API log\n",
        joined(f'T:2:3: Request tokens: {COUNT} "472.0"', f'T:2:4: Response tokens: {OUTPUT} "18.0"'),
    ),
    "BurstGPT with a negative time": (f"{BURST}\n-5,ChatGPT,472,18,490,API log\n", f'T:2:1: Timestamp: {SECONDS} "-5"'),
    "BurstGPT without its lengths": (
        "Timestamp,Model,Total tokens\n5,ChatGPT,490\n",
        joined("T:1:4: Request tokens: column missing", "T:1:4: Response tokens: column missing"),
    ),
    "Vidur's lengths": (
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n374,44,418,8.5\n",
        f"T:1:5: arrived_at: column missing: {LENGTHS}",
    ),
    "Vidur with a prompt of zero": (f"{VIDUR}\n0.0,0,44\n", f'T:2:2: num_prefill_tokens: {COUNT} "0"'),
}

# input that is damaged: exit code 3
DAMAGED = {
    "gzip cut off": (gzip.compress(own("0,1,1").encode())[:-9], f"T: {CUT}"),
    "gzip without its last bytes": (gzip.compress(own("0,1,1").encode())[:-4], f"T: {CUT}"),
    "only the magic of gzip": (b"\x1f\x8b", f"T: {CUT}"),
    "gzip with a wrong checksum": (
        gzip.compress(own("0,1,1").encode())[:-8] + bytes(8),
        "T: damaged or cut-off gzip data: CRC check failed 0x0 != 0xc68120d6",
    ),
    "gzip with garbage behind it": (
        gzip.compress(own("0,1,1").encode()) + b"rest",
        "T: damaged or cut-off gzip data: Not a gzipped file (b're')",
    ),
}

# as our own CSV
ACCEPTED = {
    "a BOM": (BOM + own("0,1,1").encode(), own("0.0,1,1")),
    "CR LF": (own("0,1,1", "1,2,2").replace("\n", "\r\n"), own("0.0,1,1", "1.0,2,2")),
    "LF and CR LF mixed": (f"{OWN}\r\n0,1,1\n1,2,2\r\n", own("0.0,1,1", "1.0,2,2")),
    "no newline at the end": (f"{OWN}\n0,1,1", own("0.0,1,1")),
    "CR at the end": (f"{OWN}\n0,1,1\r", own("0.0,1,1")),
    "UTF-8 in an ignored column": (f"{OWN},agent\n0,1,1,caf\u00e9\n", own("0.0,1,1")),
    "a quote that does not end": (f"{OWN},agent\n" + '0,1,1,"a\n1,1,1,b\n', own("0.0,1,1", "1.0,1,1")),
    "200 kB in an ignored field": (f"{OWN},hash_ids\n0,1,1," + "7 " * 100_000 + "\n", own("0.0,1,1")),
    "leading zeros": (own("007,0012,01"), own("7.0,12,1")),
    "a time of 1e-400": (own("1e-400,1,1"), own("0.0,1,1")),
    "a time of minus zero": (own("-0.0,1,1"), own("0.0,1,1")),
    "a time of 1e3, +5, .5 and 5.": (
        own("1e3,1,1", "+5,1,1", ".5,1,1", "5.,1,1"),
        own("0.5,1,1", "5.0,1,1", "5.0,1,1", "1000.0,1,1"),
    ),
    "a time of 5,000 digits": (own("0." + "3" * 5000 + ",1,1"), own("0.3333333333333333,1,1")),
    "unsorted": (own("5,1,1", "2,2,1", "0,3,1"), own("0.0,3,1", "2.0,2,1", "5.0,1,1")),
    "ties keep their order": (own("5,1,1", "2,2,1", "5,3,1", "2,4,1"), own("2.0,2,1", "2.0,4,1", "5.0,1,1", "5.0,3,1")),
    "all at one moment": (own("3,1,1", "3,2,2"), own("3.0,1,1", "3.0,2,2")),
    "rows without output": (own("0,1,1", "1,2,0", "2,0,0"), own("0.0,1,1")),
    "formulas as clients": (f"{OWN},client\n0,1,1,=1+1\n1,1,1,=cmd|' /C calc'!A0\n", own("0.0,1,1", "1.0,1,1")),
    "markup as sessions": (f"{OWN},session\n0,1,1,</script><script>alert(1)</script>\n", own("0.0,1,1")),
    "clients and sessions": (
        f"{OWN},session,client\n0,1,1,7,3\n1,1,1,,-1\n",
        own("0.0,1,1,3,7", "1.0,1,1,-1,-1", more=",client,session"),
    ),
    "a negative client": (f"{OWN},client\n0,1,1,-2\n", own("0.0,1,1")),
    "clients above 2^31": (f"{OWN},client\n0,1,1,3000000000\n1,1,1,0\n", own("0.0,1,1,1", "1.0,1,1,0", more=",client")),
    "a client of 5,000 digits": (f"{OWN},client\n0,1,1," + "1" * 5000 + "\n", own("0.0,1,1")),
    "gzip": (gzip.compress(own("0,1,1").encode()), own("0.0,1,1")),
    "gzip with zeros behind it": (gzip.compress(own("0,1,1").encode()) + bytes(512), own("0.0,1,1")),
    "two members of gzip": (gzip.compress(own("0,1,1").encode()[:-2]) + gzip.compress(b"2\n"), own("0.0,1,2")),
    "Azure": (azure("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9951690"), own("0.0,5,1", "4.314579,6,1")),
    "Azure across midnight and the end of a leap February": (
        azure("2024-02-29 23:59:59.5", "2024-03-01 00:00:00"),
        own("0.0,5,1", "0.5,6,1"),
    ),
    "Azure with zones and fractions mixed": (
        azure("2024-05-12 00:00:00+00:00", "2024-05-12 00:00:00.25Z", "2024-05-12T02:00:01.5+02:00"),
        own("0.0,5,1", "0.25,6,1", "1.5,7,1"),
    ),
    "Azure out of order across a change of the clocks": (
        azure("2024-10-27 02:59:59+02:00", "2024-10-27 02:00:01+01:00", "2024-10-27 02:30:00+02:00"),
        own("0.0,7,1", "1799.0,5,1", "1801.0,6,1"),
    ),
    "Azure with a fraction of 30 digits": (
        azure("2024-05-12 00:00:00", "2024-05-12 00:00:00.123456789999999999999999999999"),
        own("0.0,5,1", "0.123456789,6,1"),
    ),
    "Azure from 1900 to 2099": (
        azure("1900-01-01 00:00:00", "2099-12-31 23:59:59.999999999"),
        own("0.0,5,1", "6311433600.0,6,1"),
    ),
    "Azure without output": (f"{AZURE}\n2023-11-16 18:15:46,5,0\n2023-11-16 18:15:47,5,1\n", own("1.0,5,1")),
    "BurstGPT": (f"{BURST}\n5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,0,1087,API log\n", own("5.0,472,18")),
    "BurstGPT with sessions": (
        f"{BURST2}\n19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n"
        "19440161.0,,2,ChatGPT,36,29,65,API log\n19440162.0,1722ac82,,GPT-4,9,4,13,Conversation log\n",
        own("19440110.0,906,446,0", "19440161.0,36,29,-1", "19440162.0,9,4,0", more=",session"),
    ),
    "Vidur": (f"{VIDUR}\n0.0,374,44\n4.314579,396,109\n", own("0.0,374,44", "4.314579,396,109")),
    "Vidur with its other columns": (f"{VIDUR},num_total_tokens,pd_ratio\n0.0,374,44,418,8.5\n", own("0.0,374,44")),
}
