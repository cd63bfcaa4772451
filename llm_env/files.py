"""Writes results so that nothing is ever half there and equal content gives equal bytes. Knows the errors only."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from llm_env.errors import InputOutputError, UserError

_ROWS = 100_000  # of a CSV file, written at a time


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder whose files move into `out` when the block ends well, and vanish when it does not.

    It is made at once, so that an unwritable place is known before the work begins, and inside `out`, which may be a
    mount of its own, so that every move is one rename. Files and folders of the same name in `out` are replaced as a
    whole, others stay; folders that were made for nothing are removed.

    Raises:
        InputOutputError: `out` is a file, it cannot be made or written, or a folder stands where a file should go.
    """
    if not str(out):
        raise InputOutputError("the name of the output folder is empty")
    out = Path(out)
    missing = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    staged = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
        yield staged
        _move_files(staged, out)
        missing = []
    except (FileExistsError, NotADirectoryError):
        raise InputOutputError(f"{out}: is a file or below one, expected a folder") from None
    except OSError as error:
        raise InputOutputError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        if staged is not None:
            shutil.rmtree(staged, ignore_errors=True)
        for folder in missing:  # the deepest first; not those that somebody else uses by now
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def staged_file(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """The path of a temporary file of the same name that becomes `path` when the block ends well, as one rename.

    Raises:
        UserError: the file exists and `overwrite` is False.
        InputOutputError: see `staged_folder`.
    """
    if not Path(path).name:
        raise InputOutputError(f"{str(path)!r}: is no name of a file")
    path = Path(path)
    _check_absent(path, overwrite)
    with staged_folder(path.parent) as folder:
        yield folder / path.name
        _check_absent(path, overwrite)  # somebody else may have been faster


def _check_absent(path: Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{path}: exists already; --overwrite replaces it")


def _move_files(staged: Path, out: Path) -> None:
    moves = [(path, out / path.name) for path in sorted(staged.iterdir())]
    for path, target in moves:
        if target.exists() and target.is_dir() != path.is_dir():
            kind = "folder" if target.is_dir() else "file"
            raise InputOutputError(f"{target}: is a {kind}; something else of this name is to be written")
    for path in staged.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path, target in moves:
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)


def file_sha256(path: Path) -> str:
    """Of a file's content, as 64 hex digits.

    Raises:
        InputOutputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None


def csv_field(text: str) -> str:
    """A text as a field of a CSV file: quoted if it must be."""
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\r\n') else text


def write_csv(
    path: Path,
    columns: Mapping[str, np.ndarray | Sequence[str]],
    progress: Callable[[int], None] | None = None,
) -> None:
    """A CSV file with LF line ends; gzip, without name and time in its header, if the name ends with ``.gz``.

    Args:
        path: of the file.
        columns: equally long; arrays of numbers, or texts without comma, quote and line end. A float is the shortest
            text that reads back to the same float; NaN is an empty field.
        progress: is called with the number of rows that are written so far.
    """
    with path.open("wb") as file:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as packed:
                _write_rows(packed, columns, progress)
        else:
            _write_rows(file, columns, progress)


def _write_rows(
    file, columns: Mapping[str, np.ndarray | Sequence[str]], progress: Callable[[int], None] | None
) -> None:
    file.write((",".join(columns) + "\n").encode())
    length = len(next(iter(columns.values())))
    for start in range(0, length, _ROWS):
        texts = [_texts(column[start : start + _ROWS]) for column in columns.values()]
        file.write(("\n".join(map(",".join, zip(*texts, strict=True))) + "\n").encode())
        if progress is not None:
            progress(min(start + _ROWS, length))


def _texts(column: np.ndarray | Sequence[str]) -> list[str]:
    if not isinstance(column, np.ndarray):
        return list(column)
    if column.dtype.kind != "f":
        return list(map(str, column.tolist()))
    texts = list(map(repr, column.tolist()))
    for k in np.flatnonzero(np.isnan(column)).tolist():
        texts[k] = ""
    return texts
