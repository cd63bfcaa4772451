"""`train.py --resume`: which run it is, whether it may go on, and whether a checkpoint belongs to it."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from agents.arguments import Arguments
from agents.checkpoint import Checkpoint, made_here, newest_checkpoint
from agents.export import MANIFEST
from agents.stored import json_object
from agents.task import Task, make_task
from llm_env.config import Scenario
from llm_env.errors import InputOutputError, UserError
from llm_env.features import FEATURE_NAMES
from llm_env.files import file_sha256

SETTINGS = "settings.json"
_NOT_OF_LEARNING = ("out", "overwrite", "resume", "checkpoint_every", "processes")  # arguments that change no weight


def check_alone(argv: list[str] | None) -> None:
    """Refuses other arguments beside --resume: the settings are those of the run.

    Raises:
        UserError: there are any.
    """
    words = sys.argv[1:] if argv is None else argv
    rest = [word for word in words if word.split("=")[0] != "--resume"]
    if len(rest) > (0 if any(word.startswith("--resume=") for word in words) else 1):
        raise UserError(f"resume: goes alone, since the run has its settings in {SETTINGS}: {shlex.join(words)}")


def arguments_of(run: Path) -> Arguments:
    """The arguments that a run was begun with.

    Raises:
        UserError: there is no run, it is finished, or its settings are not those of this version; names the field.
        InputOutputError: they cannot be read.
    """
    place = run / SETTINGS
    try:
        if not place.is_file():
            raise UserError(f"{run}: holds no run ({SETTINGS})")
        if (run / "agent" / MANIFEST).exists():
            raise UserError(f"{run}: is finished: its best agent is in {run / 'agent'}")
        data = place.read_bytes()
    except OSError as error:
        raise InputOutputError(f"{place}: cannot be read: {error.strerror}") from None
    given = json_object(place, data)
    try:
        arguments = TypeAdapter(Arguments).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(word) for word in first["loc"])
        raise UserError(f"{place}: {field}: {first['msg']}, got {first['input']!r:.80}") from None
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    known = json.loads(json.dumps(dataclasses.asdict(arguments)))
    if odd := _differing(given, known):
        raise UserError(f"{place}: {odd}: is not a setting of this version, or is missing")
    return dataclasses.replace(arguments, out=str(run))


def _differing(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """The first field in which two objects differ."""
    for name in sorted(a.keys() | b.keys()):
        if name in a and name in b and isinstance(a[name], dict) and isinstance(b[name], dict):
            if inner := _differing(a[name], b[name]):
                return f"{name}.{inner}"
        elif name not in a or name not in b or a[name] != b[name]:
            return name
    return None


def open_run(run: Path) -> tuple[Task, Arguments, Checkpoint | None]:
    """What a run learns, its arguments, and where it goes on (None: from the beginning, since it had come to no
    checkpoint). Says on standard error what was damaged, and what is no longer as it was.

    Raises:
        UserError: the run cannot go on; names file and field.
        InputOutputError: a file cannot be read.
    """
    arguments = arguments_of(run)
    checkpoint = newest_checkpoint(run, _remark)
    if checkpoint is None:
        _remark(f"{run}: holds no checkpoint so far: it begins at step 0")
        arguments = dataclasses.replace(arguments, overwrite=True)
        return make_task(arguments), arguments, None
    stored = checkpoint.state.below("run")
    files = [
        name if isinstance(name, str) else stored.fail("scenarios", "names", name) for name in stored.list("scenarios")
    ]
    task = make_task(dataclasses.replace(arguments, scenario=tuple(str(run / name) for name in files), change=()))
    for remark in check_belongs(checkpoint, run_identity(arguments, task.scenarios)):
        _remark(remark)
    return task, arguments, checkpoint


def _remark(line: str) -> None:
    sys.stderr.write(f"{line}\n")


@contextmanager
def locked(run: Path, make: bool = True) -> Iterator[None]:
    """Holds a run's folder, so that no two processes train in it. The lock ends with the process, however that ends.

    Args:
        run: the folder.
        make: if it does not exist; it is removed again if nothing was written to it.

    Raises:
        UserError: another process holds it.
        InputOutputError: it is a file, or cannot be made or opened.
    """
    made = False
    try:
        if make and not run.exists():
            run.mkdir(parents=True)
            made = True
        handle = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise InputOutputError(f"{run}: is a file or below one, expected a folder") from None
    except OSError as error:
        word = "written" if make else "opened"
        raise InputOutputError(f"{run}: cannot be {word}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run}: another process is training there") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)
        if made:
            with suppress(OSError):
                run.rmdir()


def run_identity(arguments: Arguments, scenarios: Sequence[Scenario]) -> dict[str, str]:
    """What a checkpoint belongs to, a sha256 each: the environment, the settings of learning, the trace's content.

    Raises:
        InputOutputError: the trace cannot be read.
    """
    environment = {
        "scenarios": [scenario.model_dump(mode="json") for scenario in scenarios],
        "features": FEATURE_NAMES,
        "action": arguments.form,
    }
    settings = {name: value for name, value in dataclasses.asdict(arguments).items() if name not in _NOT_OF_LEARNING}
    found = {"environment": _hash(environment), "settings": _hash(settings)}
    if arguments.trace is not None:
        found["trace"] = file_sha256(Path(arguments.trace))
    return found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_belongs(checkpoint: Checkpoint, identity: dict[str, str]) -> list[str]:
    """Whether a checkpoint is one of this run.

    Returns:
        A remark on each version or source that is another now: then the run goes on, but to the last bit as it would
        have only if that makes no difference.

    Raises:
        UserError: it belongs to another environment, other settings or another trace; names which.
    """
    place = checkpoint.folder / "manifest.json"
    for name in sorted(identity.keys() | checkpoint.identity.keys()):
        if identity.get(name) != checkpoint.identity.get(name):
            raise UserError(f"{place}: identity.{name}: the checkpoint was made with another {name} than this run has")
    now = made_here()
    return [
        f"{place}: made with {name} {made}, here is {now.get(name, 'none')}: results may differ in the last bits"
        for name, made in checkpoint.made_with.items()
        if now.get(name) != made
    ]
