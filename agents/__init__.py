"""Learned schedulers: training with Stable-Baselines3, and trained agents as numpy arrays.

`agents.load` needs neither torch nor Stable-Baselines3; they are imported by the files that train.
"""

from __future__ import annotations

from pathlib import Path

from agents.export import MANIFEST, load_agent
from agents.network import NumpyAgent
from llm_env.errors import InputOutputError, UserError

__all__ = ["NumpyAgent", "load"]


def load(path: str | Path) -> NumpyAgent:
    """A trained agent: from a run folder its best weights (those of `agent/`), or from an agent's own folder.

    Raises:
        UserError: there is no such folder, no agent in it, or a damaged one.
        InputOutputError: it cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            raise UserError(f"{path}: expected the folder of a run or of an agent, " + _what(path))
        for folder in (path, path / "agent"):
            if (folder / MANIFEST).exists():
                return load_agent(folder)
        unfinished = (path / "last" / MANIFEST).exists()
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from None
    hint = f"; the run was stopped, {path / 'last'} holds what it had learned" if unfinished else ""
    raise UserError(f"{path}: holds no agent ({MANIFEST} or agent/{MANIFEST}){hint}")


def _what(path: Path) -> str:
    return "got a file" if path.exists() else "which does not exist"
