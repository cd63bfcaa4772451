"""The agents that come with the package, by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

from agents.export import MANIFEST
from llm_env.errors import UserError

CARD = "card.md"


def _home() -> Traversable:
    return files("agents") / "pretrained"


def shipped_names() -> tuple[str, ...]:
    """Names of the agents that come with the package, sorted."""
    home = _home()
    if not home.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in home.iterdir() if (entry / MANIFEST).is_file()))


def is_name(text: str | Path) -> bool:
    """Whether a text is meant as a name: no Path, and nothing in it that a path has."""
    return isinstance(text, str) and text not in ("", ".", "..") and not {os.sep, os.altsep} & set(text)


@contextmanager
def shipped_folder(name: str) -> Iterator[Path]:
    """The folder of an agent of `shipped_names`."""
    with as_file(_home() / name) as folder:
        yield folder


def card_text(name: str) -> str:
    """The card of an agent of `shipped_names`."""
    return (_home() / name / CARD).read_text(encoding="utf-8")


def about(name: str) -> str:
    """What an agent's card says of it first, in a line."""
    lines = card_text(name).split("\n\n")
    return " ".join(lines[1].split()) if len(lines) > 1 else ""


def unknown(name: str) -> UserError:
    """The error for a name that is neither a folder nor an agent of the package."""
    names = shipped_names()
    close = difflib.get_close_matches(name, names, 1)
    hint = f': did you mean "{close[0]}"?' if close else ""
    known = f"those that come with the package are {', '.join(names)}" if names else "none come with this package"
    return UserError(f"{name}: is no folder of a run or of an agent, and no agent's name{hint} ({known})")
