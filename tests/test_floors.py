"""The layering of the project: a file imports only from strictly lower floors. Sources are read, never imported.

A new file of llm_env gets a line in FLOORS. Policies, agents and workload files have their package's floor.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("llm_env", "baselines", "agents")
SCRIPTS = ("train", "evaluate")
MAX_LINES = 450

FLOORS = {
    # 0: knows nothing of the system
    "llm_env.errors": 0,
    "llm_env.files": 0,
    "llm_env.command": 0,
    "llm_env.processes": 0,
    "llm_env.provenance": 0,
    "llm_env.plotting": 0,
    "llm_env.units": 0,
    "llm_env.jit": 0,
    "llm_env.reference": 0,
    "llm_env.settings": 0,
    "llm_env.system_settings": 0,
    "llm_env.arrival_settings": 0,
    "llm_env.length_settings": 0,
    "llm_env.workload_settings": 0,
    "llm_env.vary_settings": 0,
    "llm_env.changes": 0,
    "llm_env.problems": 0,
    "llm_env.config": 0,
    "llm_env.dtypes": 0,
    "llm_env.records": 0,
    # 1: parts of the system
    "llm_env.addresses": 1,
    "llm_env.service": 1,
    "llm_env.measured": 1,
    "llm_env.prices": 1,
    "llm_env.kv": 1,
    "llm_env.queue": 1,
    "llm_env.least": 1,
    "llm_env.clients": 1,
    "llm_env.prefix": 1,
    "llm_env.router": 1,
    "llm_env.worker_load": 1,
    "llm_env.link": 1,
    "llm_env.roles": 1,
    "llm_env.logs": 1,
    "llm_env.indices": 1,
    "llm_env.slo": 1,
    "llm_env.usage": 1,
    "llm_env.workload.*": 1,
    # 2: the physics, and what a learner sees, does and is paid for
    "llm_env.placing": 2,
    "llm_env.orders": 2,
    "llm_env.batching": 2,
    "llm_env.core": 2,
    "llm_env.closed_loop": 2,
    "llm_env.sums": 2,
    "llm_env.view": 2,
    "llm_env.features": 2,
    "llm_env.boxes": 2,
    "llm_env.adaptive": 2,
    "llm_env.role_rule": 2,
    "llm_env.ranking": 2,
    "llm_env.actions": 2,
    "llm_env.reward": 2,
    "llm_env.routing_features": 2,
    "llm_env.routing_reward": 2,
    # 3: states from settings, and the loops
    "llm_env.build": 3,
    "llm_env.rollout": 3,
    "llm_env.choices": 4,
    "llm_env.part": 3,
    "llm_env.futures": 3,
    "llm_env.trials": 3,
    "llm_env.systems": 3,
    "llm_env.routing_loop": 3,
    "llm_env.routing_lookahead": 3,
    "llm_env.routing_systems": 3,
    # 4: shells around them
    "llm_env.spaces": 4,
    "llm_env.wrappers": 4,
    "llm_env.env": 4,
    "llm_env.vector": 4,
    "llm_env.routing_env": 4,
    "llm_env.routing_vector": 4,
    "llm_env.metrics": 4,
    "llm_env.scenarios": 4,
    "llm_env.render": 4,
    "llm_env.theory": 4,
    "llm_env.bounds": 4,
    "llm_env.optimum": 4,
    "llm_env.validation_rows": 4,
    "llm_env.tuned": 4,
    "llm_env.statistics": 4,
    # 5: who decides, and the package's front
    "llm_env": 5,
    "baselines.*": 5,
    "agents.*": 5,
    # 6: programs
    "llm_env.simulate": 6,
    "llm_env.recorder": 6,
    "llm_env.timeline": 6,
    "llm_env.animation": 6,
    "llm_env.study": 6,
    "llm_env.tuning": 6,
    "llm_env.rivals": 6,
    "llm_env.teachers": 6,
    "llm_env.aggregate": 6,
    "llm_env.tables": 6,
    "llm_env.plots": 6,
    "llm_env.traffic_plots": 6,
    "llm_env.traffic_shape_plots": 6,
    "llm_env.calibrate": 6,
    "llm_env.cell_store": 6,
    "llm_env.study_files": 6,
    "llm_env.groups": 6,
    "llm_env.requirements": 6,
    "llm_env.replications": 6,
    "llm_env.trainings": 6,
    "llm_env.sizing": 6,
    "llm_env.sweeps": 6,
    "llm_env.sweep_plots": 6,
    "llm_env.what_if": 6,
    "llm_env.warmup": 4,
    "llm_env.evaluation": 6,
    "llm_env.validation_policies": 5,
    "llm_env.validation_cases": 6,
    "llm_env.validation_stationary": 6,
    "llm_env.validation_references": 6,
    "llm_env.validate": 6,
    "llm_env.commands.*": 6,
    "llm_env.report.*": 6,
    "llm_env.cli": 6,
    "llm_env.__main__": 6,
    "train": 6,
    "evaluate": 6,
}

# (importer, imported) on one floor, and why that is no knot
ALLOWED = {
    ("llm_env.jit", "llm_env.units"): "the decorator and what it does; units know nothing of the cache folder",
    ("train", "llm_env.rivals"): "agents are shown beside baselines, which they must not import",
    ("train", "llm_env.teachers"): "agents imitate baselines, which they must not import",
    ("llm_env.teachers", "llm_env.study"): "baselines are named as evaluate.py names them",
    ("llm_env.rivals", "llm_env.study"): "baselines are named as evaluate.py names them",
    ("llm_env.records", "llm_env.jit"): "policies and rows of a State are compiled",
    ("llm_env.records", "llm_env.reference"): "which get a State by address",
    ("llm_env.reference", "llm_env.jit"): "in plain Python there are no addresses",
    ("llm_env.dtypes", "llm_env.settings"): "a table in a record has room for as many points as the settings allow",
    (
        "llm_env.dtypes",
        "llm_env.system_settings",
    ): "a routing rule's number is its place in the settings",
    ("llm_env.records", "llm_env.dtypes"): "a State is made of these records",
    ("llm_env.config", "llm_env.settings"): "what all settings are made of",
    ("llm_env.config", "llm_env.system_settings"): "a scenario has a system",
    ("llm_env.config", "llm_env.workload_settings"): "and a workload",
    ("llm_env.config", "llm_env.vary_settings"): "and what of it varies",
    ("llm_env.config", "llm_env.changes"): "settings are changed by their paths",
    ("llm_env.config", "llm_env.problems"): "what is wrong is said in one way",
    ("llm_env.vary_settings", "llm_env.settings"): "what all settings are made of",
    ("llm_env.vary_settings", "llm_env.changes"): "a draw changes settings",
    ("llm_env.vary_settings", "llm_env.errors"): "a path that leads nowhere is a user's error",
    ("llm_env.changes", "llm_env.errors"): "the same",
    ("llm_env.problems", "llm_env.arrival_settings"): "the kinds that there are",
    ("llm_env.problems", "llm_env.length_settings"): "the same",
    ("llm_env.problems", "llm_env.errors"): "many problems are told as one",
    ("llm_env.system_settings", "llm_env.settings"): "what all settings are made of",
    ("llm_env.workload_settings", "llm_env.settings"): "the same",
    ("llm_env.arrival_settings", "llm_env.settings"): "the same",
    ("llm_env.length_settings", "llm_env.settings"): "the same",
    ("llm_env.workload_settings", "llm_env.arrival_settings"): "a workload has arrivals",
    ("llm_env.workload_settings", "llm_env.length_settings"): "and lengths",
    ("llm_env.config", "llm_env.arrival_settings"): "names to be had from config",
    ("llm_env.config", "llm_env.length_settings"): "the same",
    ("llm_env.files", "llm_env.errors"): "what cannot be written is a user's error",
    ("llm_env.config", "llm_env.errors"): "wrong settings are a user's error",
    ("llm_env.kv", "llm_env.queue"): "an evicted request goes back to the front of the queue",
    ("llm_env.kv", "llm_env.clients"): "and its client waits again",
    ("llm_env.least", "llm_env.queue"): "a search in the queue's sets",
    ("llm_env.clients", "llm_env.least"): "who comes back is lifted to the least service of those that wait",
    ("llm_env.kv", "llm_env.prefix"): "cached blocks go before anybody is evicted",
    ("llm_env.link", "llm_env.kv"): "what moves needs blocks where it goes",
    ("llm_env.link", "llm_env.router"): "and somewhere to go",
    ("llm_env.router", "llm_env.worker_load"): "which tells what a router may know of a worker:",
    ("llm_env.worker_load", "llm_env.service"): "how fast it prefills,",
    ("llm_env.worker_load", "llm_env.prefix"): "and what it still has of a session",
    ("llm_env.roles", "llm_env.link"): "who changes role sends its decodes away,",
    ("llm_env.roles", "llm_env.router"): "to whom has room",
    ("llm_env.roles", "llm_env.queue"): "rates of tokens are averages as those of arrivals",
    ("llm_env.workload.*", "llm_env.workload.*"): "one package: arrivals and lengths make a workload",
    ("llm_env.workload.*", "llm_env.service"): "load 1.0 is defined by the service time",
    ("llm_env.rollout", "llm_env.build"): "a loop that runs out of room asks for more",
    ("llm_env.part", "llm_env.build"): "episodes are loaded",
    ("llm_env.futures", "llm_env.build"): "futures are rows of new states",
    ("llm_env.part", "llm_env.rollout"): "and moved by step_all",
    ("llm_env.systems", "llm_env.build"): "one of the systems is looked at",
    ("llm_env.systems", "llm_env.part"): "systems of several scenarios",
    ("llm_env.systems", "llm_env.rollout"): "who hand over actions and results",
    ("llm_env.routing_loop", "llm_env.rollout"): "an exchange is read in one way",
    ("llm_env.routing_lookahead", "llm_env.rollout"): "the same",
    ("llm_env.routing_lookahead", "llm_env.build"): "a run that runs out of room asks for more",
    ("llm_env.routing_systems", "llm_env.systems"): "episodes side by side, of another form,",
    ("llm_env.routing_systems", "llm_env.part"): "which their parts have,",
    ("llm_env.routing_systems", "llm_env.routing_loop"): "moved by route_all,",
    ("llm_env.routing_systems", "llm_env.rollout"): "who hand over actions and results",
    ("llm_env.routing_env", "llm_env.spaces"): "arguments that all environments have",
    ("llm_env.routing_env", "llm_env.env"): "one system, whatever is decided in it",
    ("llm_env.routing_vector", "llm_env.vector"): "N environments, whatever is decided in them",
    ("llm_env.routing_vector", "llm_env.spaces"): "arguments",
    ("llm_env.routing_vector", "llm_env.routing_env"): "the spaces of one",
    ("llm_env.core", "llm_env.batching"): "a step forms a batch; batching knows nothing of the clock",
    ("llm_env.core", "llm_env.closed_loop"): "an answer sets its user to think; users know nothing of the clock",
    ("llm_env.batching", "llm_env.orders"): "prompts are placed in a queue order,",
    ("llm_env.batching", "llm_env.placing"): "one after the other",
    ("llm_env.orders", "llm_env.placing"): "the same",
    ("llm_env.sums", "llm_env.placing"): "what is left of a prompt",
    ("llm_env.core", "llm_env.sums"): "stamping the tokens of a batch sums it up",
    ("llm_env.view", "llm_env.sums"): "which is what a View shows",
    ("llm_env.view", "llm_env.batching"): "prompts that a worker may help with are seen as they are helped",
    ("llm_env.view", "llm_env.placing"): "and what is left of a prompt",
    ("llm_env.features", "llm_env.view"): "most features are made of the View",
    ("llm_env.actions", "llm_env.batching"): "an action matters if there is a prompt to help with",
    ("llm_env.ranking", "llm_env.features"): "who ranks requests sees them beside the features",
    ("llm_env.ranking", "llm_env.orders"): "what is due when, as it is ordered",
    ("llm_env.ranking", "llm_env.placing"): "and what is left of a prompt",
    ("llm_env.actions", "llm_env.ranking"): "one form of action has scores",
    ("llm_env.adaptive", "llm_env.boxes"): "a rule's numbers are a box",
    ("llm_env.role_rule", "llm_env.boxes"): "the same",
    ("llm_env.actions", "llm_env.adaptive"): "one form of action is the adaptive rule's numbers,",
    ("llm_env.actions", "llm_env.role_rule"): "one those of the rule for roles,",
    ("llm_env.actions", "llm_env.view"): "which decides by what a policy sees",
    ("llm_env.vector", "llm_env.env"): "the spaces, names and settings of N environments are those of one",
    ("llm_env.spaces", "llm_env.scenarios"): "gym.make takes a scenario's name",
    ("llm_env.env", "llm_env.spaces"): "spaces and arguments",
    ("llm_env.vector", "llm_env.spaces"): "the same",
    ("llm_env.env", "llm_env.render"): "render() draws the state",
    ("llm_env.statistics", "llm_env.metrics"): "one t-interval",
    ("llm_env.vector", "llm_env.scenarios"): "gym.make_vec takes a scenario's name",
    ("llm_env.vector", "llm_env.render"): "render() draws the state",
    ("baselines.*", "baselines.*"): "the table lists the policies; one may refine another",
    ("agents.*", "agents.*"): "one package",
    ("llm_env.cli", "llm_env.simulate"): "a command",
    ("llm_env.timeline", "llm_env.recorder"): "a recording is shown",
    ("llm_env.animation", "llm_env.recorder"): "the same",
    ("llm_env.animation", "llm_env.report.*"): "by the player of the report",
    ("llm_env.commands.*", "llm_env.recorder"): "a command records a run",
    ("llm_env.commands.*", "llm_env.timeline"): "and writes it as a timeline",
    ("llm_env.cli", "llm_env.commands.*"): "commands",
    ("llm_env.commands.*", "llm_env.commands.*"): "they read arguments in one way",
    ("llm_env.commands.*", "llm_env.plots"): "a command draws",
    ("llm_env.commands.*", "llm_env.traffic_plots"): "the same",
    ("llm_env.commands.*", "llm_env.tables"): "tables with a title look alike",
    ("llm_env.traffic_plots", "llm_env.traffic_shape_plots"): "pictures of one command",
    ("llm_env.commands.*", "llm_env.tuning"): "a command",
    ("llm_env.commands.*", "llm_env.study"): "contenders are named in one way",
    ("llm_env.cli", "llm_env.calibrate"): "a command",
    ("llm_env.calibrate", "llm_env.plots"): "draws the fit",
    ("llm_env.cli", "llm_env.validate"): "a command",
    ("llm_env.validate", "llm_env.validation_cases"): "the program runs the cases",
    ("llm_env.validate", "llm_env.validation_stationary"): "of every kind",
    ("llm_env.validate", "llm_env.validation_references"): "of every kind",
    ("llm_env.validate", "llm_env.plots"): "and draws what came out",
    ("llm_env.validation_cases", "llm_env.simulate"): "cases are runs",
    ("llm_env.validation_references", "llm_env.simulate"): "cases are runs",
    ("llm_env.validation_stationary", "llm_env.validation_cases"): "the same system, on one path and in the long run",
    ("llm_env.command", "llm_env.errors"): "errors have exit codes",
    ("llm_env.processes", "llm_env.errors"): "a process that died is one",
    ("llm_env.aggregate", "llm_env.study"): "rows are made from a study's cells",
    ("llm_env.tables", "llm_env.aggregate"): "tables show rows",
    ("llm_env.plots", "llm_env.aggregate"): "plots show rows",
    ("llm_env.plots", "llm_env.study"): "and cells",
    ("llm_env.cell_store", "llm_env.study"): "cells are a study's",
    ("llm_env.groups", "llm_env.study"): "of requests of cells",
    ("llm_env.study_files", "llm_env.groups"): "who got what is a file too",
    ("llm_env.study_files", "llm_env.study"): "the same",
    ("llm_env.study_files", "llm_env.aggregate"): "rows too",
    ("llm_env.requirements", "llm_env.study"): "of contenders",
    ("llm_env.requirements", "llm_env.aggregate"): "rows are what they hold for or not",
    ("llm_env.what_if", "llm_env.study"): "a study on another system",
    ("llm_env.what_if", "llm_env.aggregate"): "rows of both are compared",
    ("llm_env.what_if", "llm_env.tables"): "tables look alike",
    ("llm_env.evaluation", "llm_env.what_if"): "the program asks what a change makes,",
    ("llm_env.sizing", "llm_env.study"): "points of a curve are studies",
    ("llm_env.sizing", "llm_env.aggregate"): "ranked by one number",
    ("llm_env.commands.*", "llm_env.sizing"): "commands",
    ("llm_env.sweeps", "llm_env.study"): "points are studies",
    ("llm_env.sweeps", "llm_env.aggregate"): "summed up as such,",
    ("llm_env.sweeps", "llm_env.cell_store"): "whose cells are kept",
    ("llm_env.sweep_plots", "llm_env.sweeps"): "a picture of its rows",
    ("llm_env.commands.*", "llm_env.sweeps"): "commands",
    ("llm_env.commands.*", "llm_env.sweep_plots"): "commands draw",
    ("llm_env.replications", "llm_env.study"): "a study finds its warm-up",
    ("llm_env.replications", "llm_env.aggregate"): "rows are precise or not",
    ("llm_env.trainings", "llm_env.study"): "agents of a study",
    ("llm_env.trainings", "llm_env.aggregate"): "against the best baseline of its rows",
    ("llm_env.evaluation", "llm_env.trainings"): "the program says what several trainings tell,",
    ("llm_env.evaluation", "llm_env.replications"): "the program runs as many as are needed,",
    ("llm_env.evaluation", "llm_env.cell_store"): "the program keeps cells,",
    ("llm_env.evaluation", "llm_env.study_files"): "writes what came of them,",
    ("llm_env.evaluation", "llm_env.requirements"): "looks at what was required,",
    ("llm_env.evaluation", "llm_env.study"): "runs a study,",
    ("llm_env.evaluation", "llm_env.aggregate"): "sums it up,",
    ("llm_env.evaluation", "llm_env.tables"): "prints",
    ("llm_env.evaluation", "llm_env.plots"): "and draws it",
    ("llm_env.evaluation", "llm_env.report.*"): "for who reads no tables, too",
    ("llm_env.report.*", "llm_env.report.*"): "one package: markup, figures, a page",
    ("llm_env.report.*", "llm_env.study"): "a report tells of a study's cells",
    ("llm_env.report.*", "llm_env.aggregate"): "and of its rows",
    ("llm_env.report.*", "llm_env.groups"): "the same requests count in a figure",
    ("llm_env.report.*", "llm_env.recorder"): "its player shows what batches hold",
    ("llm_env.__main__", "llm_env.cli"): "python -m llm_env",
    ("evaluate", "llm_env.evaluation"): "python evaluate.py",
}

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
        return [f"{module} has no floor: add it to FLOORS in tests/test_floors.py"]
    problems = []
    for line, name in imports(ast.parse(text), module, is_package, set(SOURCES) if modules is None else modules):
        theirs = entry(name)
        if theirs is None:
            problems.append(f"{module}:{line} imports {name}, which has no floor in tests/test_floors.py")
        elif FLOORS[theirs] >= FLOORS[mine] and (mine, theirs) not in ALLOWED:
            problems.append(
                f"{module}:{line} (floor {FLOORS[mine]}) imports {name} (floor {FLOORS[theirs]}): "
                "move one of them, or give the reason in ALLOWED in tests/test_floors.py"
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
