"""Learned schedulers: training with Stable-Baselines3, and trained agents as numpy arrays.

`agents.load` needs neither torch nor Stable-Baselines3; they are imported by the files that train.
"""

from __future__ import annotations

from pathlib import Path

from agents.export import MANIFEST
from agents.files import read
from agents.network import NumpyAgent
from agents.routing_network import NumpyRouter
from agents.shipped import is_name, shipped_folder, shipped_names, unknown
from llm_env.errors import InputOutputError, UserError

__all__ = ["NumpyAgent", "NumpyRouter", "load", "shipped_names"]

ZIP = ".zip"


def load(path: str | Path, trust_pickle: bool = False) -> NumpyAgent | NumpyRouter:
    """A trained agent or router: one that comes with the package by its name, that of a folder, or that of a model.zip.

    A name of `shipped_names` means that agent, also where the working directory has a folder of that name:
    "./NAME" is the folder. From a run's folder the best weights are taken, those of `agent/`.

    Args:
        path: name, folder, or file that Stable-Baselines3 saved.
        trust_pickle: read such a file. It holds pickles, and reading a pickle runs whatever code its maker put there.

    Raises:
        UserError: there is no such agent, or a damaged one, or a zip without `trust_pickle`.
        InputOutputError: it cannot be read.
    """
    if is_name(path) and path in shipped_names():
        with shipped_folder(str(path)) as folder:
            return read(folder)
    given, path = path, Path(path)
    try:
        if path.suffix == ZIP and not path.is_dir():
            return _from_zip(path, trust_pickle)
        if not path.is_dir():
            if is_name(given) and not path.exists():
                raise unknown(str(given))
            raise UserError(f"{path}: expected the folder of a run or of an agent, " + _what(path))
        for folder in (path, path / "agent"):
            if (folder / MANIFEST).exists():
                return read(folder)
        unfinished = (path / "last" / MANIFEST).exists()
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None
    hint = f"; the run was stopped, {path / 'last'} holds what it had learned" if unfinished else ""
    raise UserError(f"{path}: holds no agent ({MANIFEST} or agent/{MANIFEST}){hint}")


def _from_zip(path: Path, trust_pickle: bool) -> NumpyAgent:
    if not path.exists():
        raise UserError(f"{path}: does not exist")
    if not trust_pickle:
        raise UserError(
            f"{path}: a zip of Stable-Baselines3 holds pickles, and reading one runs whatever code its maker put there:"
            " only if you trust them, give --trust-pickle (in Python trust_pickle=True)"
        )
    from agents.sb3_zip import load_zip  # here, because Stable-Baselines3 takes long to import

    return load_zip(path)


def _what(path: Path) -> str:
    return "got a file" if path.exists() else "which does not exist"
