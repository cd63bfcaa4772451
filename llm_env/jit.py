"""`njit` with a disk cache that cannot return stale code. Knows nothing of the rest of the package.

numba's own cache does not notice edits in imported modules. So the cache folder's name holds a hash of every source
file of the package and of the policies (but those around them that compiled code cannot reach), numba's version and
the flags that change the generated code. It lies in the user's cache folder, or, where that cannot be written, in a
private temporary one.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config

try:
    from llm_env.units import compile_unit
except (ImportError, AttributeError):  # a numba that is built otherwise: it compiles slowly, and keeps nothing
    compile_unit = None

config: Any = numba_config  # filled from the environment when it is imported, which type checkers cannot see
IN_PLAIN_PYTHON = bool(config.DISABLE_JIT)  # NUMBA_DISABLE_JIT=1: no compiler, for debugging and for tests
PACKAGE = Path(__file__).resolve().parent
CACHED_FOLDERS = (PACKAGE, PACKAGE.parent / "baselines")
# modules that hold no compiled code and that no compiled module imports (a test sees to it): editing them costs nothing
_PROGRAMS = (
    "__main__",
    "aggregate",
    "animation",
    "calibrate",
    "cli",
    "cell_store",
    "command",
    "evaluation",
    "groups",
    "plots",
    "plotting",
    "processes",
    "provenance",
    "replications",
    "recorder",
    "requirements",
    "warmup",
    "what_if",
    "search",
    "simulate",
    "sizing",
    "teachers",
    "study",
    "study_files",
    "statistics",
    "tables",
    "timeline",
    "traffic_plots",
    "traffic_shape_plots",
    "tuned",
    "tuning",
    "validate",
    "validation_cases",
    "validation_references",
    "validation_rows",
    "validation_stationary",
)
_TRAFFIC = ("arrival_settings", "length_settings", "workload_settings")
_ENVIRONMENTS = (
    "env",
    "files",
    "indices",
    "measured",
    "metrics",
    "optimum",
    "part",
    "render",
    "routing_env",
    "routing_systems",
    "routing_vector",
    "scenarios",
    "spaces",
    "systems",
    "theory",
    "vector",
    "wrappers",
)
SHELLS = frozenset(_PROGRAMS + _TRAFFIC + _ENVIRONMENTS)
SHELL_FOLDERS = frozenset({"commands", "report", "workload"})  # the same of whole packages


def source_hash() -> str:
    """SHA-256 (16 hex digits) over the sources of compiled code, the versions and the code-changing flags."""
    flags = (config.BOUNDSCHECK, config.OPT, config.DEBUGINFO_DEFAULT)
    digest = hashlib.sha256(f"{numba.__version__} {sys.version} {flags}".encode())
    for folder in CACHED_FOLDERS:
        for path in sorted(path for path in folder.rglob("*.py") if not _is_shell(path.relative_to(folder))):
            source = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:16]


def _is_shell(path: Path) -> bool:
    """Whether a source file, relative to its package, holds nothing that compiled code reaches."""
    return path.stem in SHELLS if len(path.parts) == 1 else path.parts[0] in SHELL_FOLDERS


def _owned_folder(path: Path) -> bool:
    """Makes the folder, private to the user; False where that fails or somebody else owns it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


@cache
def cache_folder() -> str:
    """Where compiled code is kept: $LLM_ENV_CACHE_DIR, else the user's cache folder, else a temporary one."""
    name = f"numba-{source_hash()}"
    candidates = []
    if os.environ.get("LLM_ENV_CACHE_DIR"):
        candidates.append(Path(os.environ["LLM_ENV_CACHE_DIR"]))
    if os.environ.get("XDG_CACHE_HOME"):
        candidates.append(Path(os.environ["XDG_CACHE_HOME"]) / "llm_env")
    try:
        candidates.append(Path.home() / ".cache" / "llm_env")
    except RuntimeError:
        pass  # neither HOME nor an entry in the user database
    for folder in candidates:
        if _owned_folder(folder / name):
            return str(folder / name)
    # The temporary folder is everybody's: whoever owned the outer folder could put code of his own into the inner one.
    shared = Path(tempfile.gettempdir()) / f"llm_env-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    if _owned_folder(shared) and _owned_folder(shared / name):
        return str(shared / name)
    private = tempfile.mkdtemp(prefix="llm_env-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return private


def njit(*args: Any, **kwargs: Any) -> Callable[..., Any]:
    """`numba.njit(cache=True, error_model="numpy", _nrt=False)` in units (`llm_env.units`), kept in `cache_folder()`.

    Without numba's runtime (`_nrt`) nothing counts references. A State is 18 arrays, all of which the caller keeps
    alive, and counting them at each call took more time than the simulation (docs/performance.md). Compiled code then
    cannot allocate memory, which the kernel never does; `_nrt=True` allows it.
    """
    kwargs.setdefault("cache", True)
    kwargs.setdefault("error_model", "numpy")
    kwargs.setdefault("_nrt", False)
    if IN_PLAIN_PYTHON:
        return numba.njit(*args, **kwargs)
    if len(args) == 1 and callable(args[0]) and not isinstance(args[0], str):
        return _compile(args[0], (), kwargs)
    return lambda function: _compile(function, args, kwargs)


_short_lived = False


@contextmanager
def short_lived() -> Iterator[None]:
    """What is decorated by `njit` meanwhile is for compiled callers alone and stays out of the disk cache.

    It compiles in half the time: for policies that are tried by the thousand.
    """
    global _short_lived
    before, _short_lived = _short_lived, True
    try:
        yield
    finally:
        _short_lived = before


def _compile(function: Callable[..., Any], signatures: tuple[Any, ...], options: dict[str, Any]) -> Callable[..., Any]:
    folder = cache_folder()  # now: the sources that were imported are the ones to hash
    kept = options.pop("cache")
    if _short_lived:
        kept, options["no_cpython_wrapper"] = False, True
    if compile_unit is not None:
        return compile_unit(function, signatures, options, folder if kept else "")
    return numba.njit(*signatures, **options)(function)
