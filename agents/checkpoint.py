"""Checkpoints as folders: arrays as safetensors, numbers as JSON, a sha256 of each file, and a pointer to the newest.

Whole or not at all, whenever the process or the machine stops: docs/checkpoints.md has the order of the writes. Knows
files and arrays; what a run puts into them is in `agents.run_state`. Reading runs nothing that it reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as tensors_to_bytes

from agents.stored import Stored, json_object
from llm_env.errors import InputOutputError, UserError
from llm_env.jit import source_hash
from llm_env.provenance import versions

FORMAT = 1
FOLDER, POINTER, MANIFEST = "checkpoints", "latest.json", "manifest.json"
NUMBERS, ARRAYS = "state.json", "state.safetensors"
BEST = "best"  # the folder of the best agent so far
KEPT = 2  # the newest, and one to fall back to
MAX_JSON_BYTES = 64 * 1024 * 1024
_STEP = re.compile(r"\d{12}")
_FILE = re.compile(r"([a-z]+/)?[a-z]+\.(json|safetensors|csv)")
_FORMATS = re.compile(r"[<|][biuf]\d{1,2}")  # of the fields of a record: numbers alone, never objects


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What one folder holds, read whole and checked against its manifest.

    Attributes:
        folder: where it was read from.
        step: environment steps of the run when it was made.
        identity: what it belongs to: a sha256 by name.
        made_with: versions of the packages and a hash of the sources.
        state: the numbers and arrays.
        files: other files, name -> content.
    """

    folder: Path
    step: int
    identity: dict[str, str]
    made_with: dict[str, str]
    state: Stored
    files: dict[str, bytes]


# ---- writing -------------------------------------------------------------------------------------------------------
def write_checkpoint(
    run: Path, step: int, identity: Mapping[str, str], state: Mapping[str, Any], files: Mapping[str, bytes]
) -> Path:
    """Writes a checkpoint, then points to it, then removes all but it and the one before.

    Args:
        run: the run's folder.
        step: environment steps so far.
        identity: see `Checkpoint`.
        state: arrays of numbers or of records, and JSON values; names are of letters, digits, dots and underscores.
        files: more files, such as the best agent's.

    Returns:
        Its folder.

    Raises:
        InputOutputError: it cannot be written, for example because the disk is full; earlier ones are untouched.
    """
    home = run / FOLDER
    folder = home / f"{step:012d}"
    contents = _contents(step, identity, state, files)
    staged = home / f".writing-{folder.name}"
    try:
        home.mkdir(exist_ok=True)
        _sync_folder(run)
        for left in home.glob(".*"):  # of a process that was killed
            _remove(left)
        staged.mkdir()
        for name, data in contents.items():
            (staged / name).parent.mkdir(exist_ok=True)
            _write(staged / name, data)
        for inner in {(staged / name).parent for name in contents} | {staged}:
            _sync_folder(inner)
        if folder.exists():  # a damaged one, since the run has come to this step once more
            folder.rename(home / f".old-{folder.name}")
        staged.rename(folder)
        _sync_folder(home)
        pointed = json.dumps({"format": FORMAT, "checkpoint": folder.name}) + "\n"
        _write(home / f".{POINTER}", pointed.encode())
        (home / f".{POINTER}").replace(home / POINTER)
        _sync_folder(home)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise InputOutputError(f"{folder}: {_why(error)}, so the checkpoint of step {step} was not written") from None
    _prune(home, folder)
    return folder


def _contents(
    step: int, identity: Mapping[str, str], state: Mapping[str, Any], files: Mapping[str, bytes]
) -> dict[str, bytes]:
    """All files by name, the manifest last."""
    arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    numbers = {name: value for name, value in state.items() if name not in arrays}
    records = {name: _layout(array) for name, array in arrays.items() if array.dtype.names}
    plain = {
        name: np.frombuffer(array.tobytes(), np.uint8) if name in records else np.asarray(array, order="C")
        for name, array in arrays.items()
    }
    contents = {NUMBERS: _to_json(numbers), ARRAYS: tensors_to_bytes(plain), **files}
    assert all(_FILE.fullmatch(name) for name in contents), "a name that reading would refuse"
    manifest = {
        "format": FORMAT,
        "step": step,
        "identity": dict(identity),
        "made_with": made_here(),
        "records": records,
        "files": {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in contents.items()},
    }
    return contents | {MANIFEST: _to_json(manifest | {"sha256": _sha256(_to_json(manifest))})}


@cache
def made_here() -> dict[str, str]:
    """What bits depend on: versions, and hashes of the sources that simulate and that train."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    training = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return {**versions(), "simulator": source_hash(), "training": training}


def _layout(array: np.ndarray) -> dict[str, Any]:
    """Shape and fields of an array of records: name, format, offset in bytes, shape."""
    fields: Any = array.dtype.fields
    names = [[name, fields[name][0].base.str, fields[name][1], list(fields[name][0].shape)] for name in fields]
    return {"shape": list(array.shape), "bytes": array.dtype.itemsize, "fields": names}


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder as durable as what they name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _why(error: OSError) -> str:
    return "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{error.strerror or error}"


def _prune(home: Path, newest: Path) -> None:
    """Keeps the newest and the one before it; a folder loses its name before its files, so that none is half there."""
    folders = _folders(home)
    before = [folder for folder in folders if folder.name < newest.name]
    with suppress(OSError):  # what stays is no harm
        for folder in set(folders) - {newest, *before[: KEPT - 1]}:
            folder.rename(home / f".old-{folder.name}")
        for old in home.glob(".old-*"):
            _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_checkpoints(run: Path) -> None:
    """Removes all of a run that is finished. What cannot be removed stays."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


# ---- reading -------------------------------------------------------------------------------------------------------
def _folders(home: Path) -> list[Path]:
    """Those that carry a checkpoint's name, the newest first."""
    if not home.is_dir():
        return []
    return sorted((path for path in home.iterdir() if _STEP.fullmatch(path.name)), reverse=True)


def has_checkpoints(run: Path) -> bool:
    """Whether a run has left any, sound or not."""
    return (run / FOLDER / POINTER).exists() or bool(_folders(run / FOLDER))


def newest_checkpoint(run: Path, remark: Callable[[str], object]) -> Checkpoint | None:
    """The checkpoint that the pointer names; where that is damaged the newest sound one.

    Falling back loses time and nothing else: a run goes the same way from an earlier checkpoint.

    Args:
        run: the run's folder.
        remark: is told, in a line, of what was damaged.

    Returns:
        None if the run has made none so far.

    Raises:
        UserError: it has, and none is sound; names file and field of each.
        InputOutputError: they cannot be read.
    """
    home = run / FOLDER
    try:
        if not has_checkpoints(run):
            return None
        folders, problems = _folders(home), []
        try:
            pointed = _pointed(home)
            folders = [pointed, *(folder for folder in folders if folder != pointed)]
        except UserError as error:
            problems.append(str(error))
        for folder in folders:
            try:
                found = read_checkpoint(folder)
            except UserError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                remark(f"{problem}; going on from the sound checkpoint of step {found.step}")
            return found
    except OSError as error:
        raise InputOutputError(f"{error.filename or home}: cannot be read: {error.strerror}") from None
    raise UserError("\n".join(problems))


def _pointed(home: Path) -> Path:
    """The folder that the pointer names."""
    pointer = home / POINTER
    stored = Stored(json_object(pointer, _read(pointer, 4096)), pointer)
    _check_format(stored)
    name = stored.text("checkpoint")
    if not _STEP.fullmatch(name):
        raise UserError(f"{pointer}: checkpoint: expected twelve digits, got {name!r}")
    if not (home / name).is_dir():
        raise UserError(f"{pointer}: checkpoint: there is no folder {name}")
    return home / name


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads one checkpoint and checks each file against the manifest.

    Raises:
        UserError: it is truncated, was changed or is no checkpoint; names file and field.
        InputOutputError: a file cannot be read.
    """
    place = folder / MANIFEST
    manifest = json_object(place, _read(place, MAX_JSON_BYTES))
    stored = Stored(manifest, place)
    _check_format(stored)
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    if stored.text("sha256") != _sha256(_to_json(rest)):
        raise UserError(f"{place}: sha256 is not that of its other fields: the file was changed")
    step = stored.integer("step", 0, 10**12)
    if folder.name != f"{step:012d}":
        raise UserError(f"{place}: step: expected that of the folder's name, got {step}")
    files = {}
    for name, about in stored.object("files").items():
        if not _FILE.fullmatch(name):
            raise UserError(f"{place}: files: {name!r} is no name of a file")
        files[name] = _checked(folder / name, Stored(about if isinstance(about, dict) else {}, place, f"files.{name}."))
    for name in (NUMBERS, ARRAYS):
        if name not in files:
            raise UserError(f"{place}: files: {name} is missing")
    numbers = json_object(folder / NUMBERS, files.pop(NUMBERS))
    arrays = _arrays(folder / ARRAYS, files.pop(ARRAYS), stored)
    identity, made_with = stored.object("identity"), stored.object("made_with")
    return Checkpoint(
        folder=folder,
        step=step,
        identity={name: str(value) for name, value in identity.items()},
        made_with={name: str(value) for name, value in made_with.items()},
        state=Stored(numbers | arrays, folder),
        files=files,
    )


def _check_format(stored: Stored) -> None:
    if (number := stored.integer("format", 0, 10**6)) != FORMAT:
        raise UserError(f"{stored.place}: format: expected {FORMAT}, got {number}: written by another version")


def _read(path: Path, most: int) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"{path}: is missing")
        if (size := path.stat().st_size) > most:
            raise UserError(f"{path}: expected at most {most} bytes, got {size}")
        return path.read_bytes()
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None


def _checked(path: Path, about: Stored) -> bytes:
    """The content of a file that is as the manifest says."""
    expected = about.integer("bytes", 0, 1 << 44)
    data = _read(path, max(expected, path.stat().st_size if path.is_file() else 0))
    if len(data) != expected:
        raise UserError(f"{path}: bytes: expected {expected}, got {len(data)}: the file is truncated or was changed")
    if _sha256(data) != about.text("sha256"):
        raise UserError(f"{path}: sha256 differs from that in {MANIFEST}: the file is damaged or was changed")
    return data


def _arrays(place: Path, data: bytes, manifest: Stored) -> dict[str, np.ndarray]:
    """Arrays by name, those of records in their own dtype."""
    try:
        arrays: dict[str, np.ndarray] = dict(read_tensors(data))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place}: not a safetensors file: {error}") from None
    for name, layout in manifest.object("records").items():
        about = Stored(layout if isinstance(layout, dict) else {}, manifest.place, f"records.{name}.")
        if name not in arrays:
            raise UserError(f"{place}: {name} is missing")
        try:
            fields = about.list("fields")
            if not all(_FORMATS.fullmatch(kind) for _, kind, _, _ in fields):
                raise ValueError("a field that is no number")
            dtype = np.dtype(
                {
                    "names": [str(field) for field, _, _, _ in fields],
                    "formats": [(kind, tuple(shape)) for _, kind, _, shape in fields],
                    "offsets": [offset for _, _, offset, _ in fields],
                    "itemsize": about.integer("bytes", 1, 1 << 24),
                }
            )
            arrays[name] = np.frombuffer(arrays[name].tobytes(), dtype).reshape(about.list("shape"))
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{manifest.place}: records.{name}: is no layout of {name}: {error}") from None
    return arrays
