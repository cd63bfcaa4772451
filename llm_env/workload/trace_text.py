"""A trace file as blocks of whole lines of clean text, plain or gzip, never the whole of it. Knows no format."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from llm_env.errors import InputOutputError, UserError

MAX_BYTES = 16 << 30  # of the text, unpacked: a week of Azure's conversations has 1 GiB
MAX_LINE = 1 << 20  # bytes: a line of Bailian's with a million tokens has half of that
BLOCK = 1 << 20  # bytes read at a time
GZIP_MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"


class Block(NamedTuple):
    """Whole lines of a file, each ended by LF."""

    first_line: int  # number of the first of them, from 1
    text: bytes  # UTF-8 without NUL, BOM and CR before LF; not empty


def read_blocks(path: str | Path) -> Iterator[Block]:
    """The lines of a file, about 1 MiB at a time; none if it is empty.

    Compression is told by the first bytes. LF and CR LF end a line, the last one needs no end. The file is read up to
    the size it had when it was opened, and must not change meanwhile: a line cut off by a slow writer would look like
    a whole one with a smaller number.

    Raises:
        InputOutputError: it cannot be read or decompressed, is no regular file, or changes.
        UserError: it is no UTF-8 text, or too large, or has a line of more than 1 MiB.
    """
    try:
        with ExitStack() as stack:
            size = _regular_size(path)
            file = stack.enter_context(open(path, "rb"))
            before = os.fstat(file.fileno())
            yield from _blocks(_Source(file, size), str(path))
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
                raise InputOutputError(
                    f"{path}: changed while it was read ({size} bytes at first, {after.st_size} now): read a copy of it"
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputOutputError(f"{path}: damaged or cut-off gzip data: {error}") from None
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _regular_size(path: str | Path) -> int:
    """Asked before the file is opened, because opening a pipe waits for somebody to write into it."""
    try:
        found = Path(path).stat()
    except ValueError as error:  # a NUL in the path
        raise InputOutputError(f"{str(path)!r}: cannot be read: {error}") from None
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(found.st_mode), "device")
    raise InputOutputError(f"{path}: cannot be read: is a {kind}, expected a file")


class _Source:
    """A file that ends where it ended when it was opened."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _blocks(source: _Source, path: str) -> Iterator[Block]:
    line, total, rest = 1, 0, b""
    for chunk in _chunks(source):
        total += len(chunk)
        if total > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB of text")
        end = chunk.rfind(b"\n") + 1
        text, rest = (rest + chunk[:end], chunk[end:]) if end else (b"", rest + chunk)
        if text:
            yield from _clean(Block(line, text), path)
            line += text.count(b"\n")
        if len(rest) > MAX_LINE:
            raise UserError(f"{path}:{line}:1: a line of more than {MAX_LINE} bytes")
    if rest:
        yield from _clean(Block(line, rest.removesuffix(b"\r") + b"\n"), path)


def _chunks(source: _Source) -> Iterator[bytes]:
    """Decompressed, without a BOM, none empty."""
    chunk = source.read(BLOCK)
    if chunk.startswith(GZIP_MAGIC):
        with gzip.GzipFile(fileobj=_Replayed(chunk, source), mode="rb") as packed:  # type: ignore[arg-type]
            yield from _without_bom(iter(lambda: packed.read(BLOCK), b""))
    else:
        yield from _without_bom(_chain(chunk, source))


class _Replayed:
    """A source whose first bytes were read already."""

    def __init__(self, first: bytes, source: _Source) -> None:
        self._first, self._source = first, source

    def read(self, size: int) -> bytes:
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data
        return self._source.read(size)


def _chain(chunk: bytes, source: _Source) -> Iterator[bytes]:
    while chunk:
        yield chunk
        chunk = source.read(BLOCK)


def _without_bom(chunks: Iterator[bytes]) -> Iterator[bytes]:
    first = next(chunks, b"").removeprefix(BOM)
    if first:
        yield first
    yield from chunks


def _clean(block: Block, path: str) -> Iterator[Block]:
    """The block without CR before LF; up to the first line with NUL, bytes that are no UTF-8, or too many of them."""
    text = block.text
    nul = text.find(b"\0")
    wrong = [place for place in (nul, _find_no_text(text), _find_long_line(text)) if place >= 0]
    if not wrong:
        yield Block(block.first_line, text.replace(b"\r\n", b"\n"))
        return
    place = min(wrong)
    if nul >= 0 and b"\n" not in text[place:nul]:  # of one line it says most
        place = nul
    start = text.rfind(b"\n", 0, place) + 1
    if start:  # what is wrong with the lines before is told first
        yield Block(block.first_line, text[:start].replace(b"\r\n", b"\n"))
    line, column = block.first_line + text.count(b"\n", 0, place), text.count(b",", start, place) + 1
    why = f"not UTF-8 text (byte 0x{text[place]:02x})"
    if text[place] == 0:
        why = "a NUL byte: this is not a text file"
    elif place == _find_long_line(text):
        why = f"a line of more than {MAX_LINE} bytes"
    raise UserError(f"{path}:{line}:{column}: {why}")


def _find_no_text(text: bytes) -> int:
    """The first byte that is not UTF-8, -1 if there is none."""
    if text.isascii():
        return -1
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return -1


def _find_long_line(text: bytes) -> int:
    """Where the first line of more than MAX_LINE bytes begins, -1 if there is none."""
    if len(text) <= MAX_LINE:
        return -1
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
    long = np.flatnonzero(np.diff(ends, prepend=-1) > MAX_LINE + 1)
    return -1 if not long.size else int(ends[long[0] - 1]) + 1 if long[0] else 0
