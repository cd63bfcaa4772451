"""The layering of the project: a file imports only from strictly lower floors. Sources are read, never imported.

A new file of llm_env gets a line in FLOORS of tests/floors.py. Policies, agents and workload files have their
package's floor.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from floors import ALLOWED, FLOORS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("llm_env", "baselines", "agents")
SCRIPTS = ("train", "evaluate")
MAX_LINES = 450

RUNS_CODE_FROM_FILES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def sources() -> dict[str, Path]:
    """Module name -> file, of everything that exists."""
    found = {name: ROOT / f"{name}.py" for name in SCRIPTS if (ROOT / f"{name}.py").exists()}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def entry(module: str) -> str | None:
    """The line of FLOORS that holds for a module."""
    if module in FLOORS:
        return module
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if (pattern := ".".join(parts[:end]) + ".*") in FLOORS:
            return pattern
    return None


def imports(tree: ast.AST, module: str, is_package: bool, modules: set[str]) -> Iterator[tuple[int, str]]:
    """(line, imported module of ours) anywhere in a file: nested and `importlib.import_module("...")` too."""
    ours = (*PACKAGES, *SCRIPTS)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*parents, node.module] if node.module else parents)
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules or name in FLOORS else base for name in full]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                names = [str(node.args[0].value)]
        for name in names:
            if name.split(".")[0] in ours:
                yield node.lineno, name


def violations(text: str, module: str, is_package: bool = False, modules: set[str] | None = None) -> list[str]:
    """What a file imports and may not."""
    mine = entry(module)
    if mine is None:
        return [f"{module} has no floor: add it to FLOORS in tests/floors.py"]
    problems = []
    for line, name in imports(ast.parse(text), module, is_package, set(SOURCES) if modules is None else modules):
        theirs = entry(name)
        if theirs is None:
            problems.append(f"{module}:{line} imports {name}, which has no floor in tests/floors.py")
        elif FLOORS[theirs] >= FLOORS[mine] and (mine, theirs) not in ALLOWED:
            problems.append(
                f"{module}:{line} (floor {FLOORS[mine]}) imports {name} (floor {FLOORS[theirs]}): "
                "move one of them, or give the reason in ALLOWED in tests/floors.py"
            )
    return problems


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_file_imports_only_from_lower_floors(module):
    path = SOURCES[module]
    assert violations(path.read_text(encoding="utf-8"), module, path.name == "__init__.py") == []


def test_allowed_exceptions_stay_on_one_floor():
    for mine, theirs in ALLOWED:
        assert FLOORS[mine] == FLOORS[theirs], (mine, theirs)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("llm_env.core", "from llm_env.env import Env"),
        ("llm_env.core", "from llm_env import rollout"),
        ("llm_env.core", "import llm_env"),
        ("llm_env.core", "def f():\n    import llm_env.metrics as m\n    return m"),
        ("llm_env.core", "import importlib\nimportlib.import_module('llm_env.env')"),
        ("llm_env.core", "from .view import look"),
        ("llm_env.kv", "from llm_env.service import mean_seconds"),
        ("llm_env.workload.traces", "from llm_env.core import step"),
        ("llm_env.workload.traces", "from ..core import step"),
        ("baselines.orca", "import agents"),
        ("agents.ppo", "from baselines import orca"),
        ("baselines.orca", "import train"),
        ("llm_env.metrics", "from baselines.orca import make"),
        ("llm_env.something_new", ""),
        ("llm_env.rollout", "import llm_env.something_new"),
    ],
)
def test_a_wrong_import_is_seen(module, text):
    assert len(violations(text, module, modules={"llm_env.core", "llm_env.rollout"})) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("llm_env.core", "from llm_env import kv, queue\nfrom llm_env.batching import form_batch\nimport numpy"),
        ("llm_env.workload.traces", "from llm_env.workload import lengths\nfrom . import arrivals"),
        ("baselines.sarathi_spf", "from baselines.sarathi import make\nfrom llm_env.records import policy"),
        ("evaluate", "import agents\nimport baselines\nfrom llm_env import __version__, evaluation"),
    ],
)
def test_a_right_import_is_let_through(module, text):
    assert violations(text, module) == []


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_file_is_too_long_to_read(module):
    assert len(SOURCES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_file_runs_code_that_it_reads(module):
    found = []
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in ("eval", "exec"):
                found.append(f"line {node.lineno}: {called.id}()")
            if isinstance(called, ast.Attribute) and called.attr in ("read_pickle", "to_pickle"):
                found.append(f"line {node.lineno}: {called.attr}()")
            if any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords):
                found.append(f"line {node.lineno}: allow_pickle")
        found += [f"line {node.lineno}: {n}" for n in names if n.split(".")[0] in RUNS_CODE_FROM_FILES]  # type: ignore[attr-defined]
    assert found == []


def test_importing_llm_env_loads_nothing_heavy():
    code = (
        "import sys, llm_env; print(*sorted({'torch', 'matplotlib', 'pandas', 'stable_baselines3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
