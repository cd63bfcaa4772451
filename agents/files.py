"""Agents of every kind as files: which reader and which writer a kind has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.export import MANIFEST, POLICY, agent_files, kind_of, load_agent, write_folder
from agents.forms import Trained
from agents.network import NumpyAgent
from agents.routing_export import KIND, load_router, router_files
from llm_env.errors import InputOutputError, UserError

_READERS: dict[str, Callable[[Path], Trained]] = {POLICY: load_agent, KIND: load_router}


def read(folder: Path) -> Trained:
    """The agent in a folder, checked.

    Raises:
        UserError: it is damaged, or of an unknown kind.
        InputOutputError: it cannot be read.
    """
    kind = kind_of(folder)
    if kind not in _READERS:
        raise UserError(f"{folder / MANIFEST}: kind: expected one of {', '.join(_READERS)}, got {kind!r:.80}")
    return _READERS[kind](folder)


def files_of(agent: Trained) -> dict[str, bytes]:
    """An agent's files by name."""
    return agent_files(agent) if isinstance(agent, NumpyAgent) else router_files(agent)


def save(agent: Trained, folder: str | Path) -> None:
    """Writes an agent to a new folder, or in place of an old one: whole or not at all.

    Raises:
        InputOutputError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        write_folder(folder, files_of(agent))
    except OSError as error:
        raise InputOutputError(f"{folder}: cannot be written: {error.strerror}") from None


def shape_of(agent: Trained) -> tuple[str, list[int]]:
    """What an agent decides, in words, and the widths of its network."""
    layers: Any = agent.policy if isinstance(agent, NumpyAgent) else agent.layers
    what, first = "workers for requests, scored one by one", []
    if isinstance(agent, NumpyAgent):
        what = f"{agent.action} actions{', with masks' if agent.masked else ''}"
        if agent.lstm is not None:
            what, first = f"{what}, with a memory (LSTM of {agent.lstm.hidden})", [agent.lstm.weight_ih.shape[1]]
    return what, [*first, layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers)]
