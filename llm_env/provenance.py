"""Where a result comes from: versions, git commit, command. Knows nothing of the rest."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("llm-env", "gymnasium", "numpy", "numba", "scipy", "torch", "stable-baselines3", "sb3-contrib")
SOURCES = ("llm_env", "baselines", "agents")  # packages that lie side by side


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout that this package lies in, "-dirty" added if files differ; None outside of git."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def code_hash() -> str:
    """SHA-256 over all that results depend on beside their settings: this project's sources, and numpy and numba."""
    root = Path(__file__).resolve().parent.parent
    found = versions()
    digest = hashlib.sha256(" ".join(found.get(name, "") for name in ("python", "numpy", "numba", "scipy")).encode())
    for package in SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            source = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(source)}\n".encode() + source)
    return digest.hexdigest()


def provenance() -> dict[str, Any]:
    """versions, git_commit and command, for a results file."""
    return {"versions": versions(), "git_commit": git_commit(), "command": shlex.join(sys.argv)}
