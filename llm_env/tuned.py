"""Settings that were found by tuning, one TOML file a scenario: what `python -m llm_env tune` writes, read strictly.

The shipped files lie in `baselines/tuned`. A file has a table for each policy, and below `router` one for each routing
rule. Nothing here knows the policies: whoever makes one from its parameters checks them.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError

from llm_env.config import describe_problems
from llm_env.errors import InputOutputError, UserError
from llm_env.files import staged_file
from llm_env.settings import Positive, Settings, Share

FIRST_TUNING_SEED, LAST_TUNING_SEED = 1_000_000, 1_999_999  # for tuning and validation; reported ones come above
ROUTER = "router"  # the table of routing rules
HEADER = "# Found by `python -m llm_env tune`: see docs/tuning.md.\n\n"


class Tuned(Settings):
    """One policy's table.

    Attributes:
        parameters: of the policy that are not its defaults.
        attainment: mean over loads and tuning seeds, with these and with the defaults.
        loads: of the scenario; none if it was left at its own.
        first_seed, seeds: the tuning seeds.
        trials: settings that were tried, the default one of them. search_seed: of their choice.
        change: settings of the scenario that were changed.
        policy: of a routing rule: the contender that served while it was searched.
        key: hash of all that decides the result but the code. code: version and commit that found it.
    """

    attainment: Share
    default_attainment: Share
    loads: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    first_seed: Annotated[int, Field(ge=FIRST_TUNING_SEED, le=LAST_TUNING_SEED)]
    seeds: Annotated[int, Field(ge=1)]
    trials: Annotated[int, Field(ge=1)]
    search_seed: Annotated[int, Field(ge=0)]
    change: Annotated[tuple[str, ...], Field(strict=False)] = ()
    policy: str = ""
    key: str
    code: str
    parameters: dict[str, bool | int | float | str]


_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
_POLICIES = TypeAdapter(dict[_Name, Tuned])


class TunedFile(Settings):
    """All tables of a file."""

    policies: dict[str, Tuned]
    routers: dict[str, Tuned]


def tuned_folder() -> Path:
    """Where the shipped files lie. The package `baselines` is found, not imported."""
    spec = find_spec("baselines")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package baselines, which has the tuned settings, is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "tuned"


def read_tuned(path: Path) -> TunedFile:
    """The tables of a file, checked.

    Raises:
        UserError: it is no TOML, or a table has a wrong or an unknown key.
        InputOutputError: it cannot be read.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no TOML file: {error}") from None
    try:
        routers = _POLICIES.validate_python(tables.pop(ROUTER, {}))
        return TunedFile(policies=_POLICIES.validate_python(tables), routers=routers)
    except ValidationError as error:
        raise UserError(describe_problems(error, str(path))) from None


def merge_tuned(path: Path, name: str, found: Tuned, router: bool = False) -> None:
    """Puts one table into a file in place of the one of this name; the others stay. The file appears whole.

    Raises:
        UserError: what is there is no file of tuned settings.
        InputOutputError: it cannot be read or written.
    """
    old = read_tuned(path) if path.exists() else TunedFile(policies={}, routers={})
    policies, routers = dict(old.policies), dict(old.routers)
    (routers if router else policies)[name] = found
    text = HEADER + tables_toml(TunedFile(policies=policies, routers=routers))
    with staged_file(path, overwrite=True) as staged:
        staged.write_text(text, encoding="utf-8")


def tables_toml(file: TunedFile) -> str:
    """The tables as TOML, sorted by name."""
    tables: dict[str, Any] = {name: _table(file.policies[name]) for name in sorted(file.policies)}
    if file.routers:
        tables[ROUTER] = {name: _table(file.routers[name]) for name in sorted(file.routers)}
    return tomli_w.dumps(tables)


def _table(found: Tuned) -> dict[str, Any]:
    table = found.model_dump(mode="json")
    return table if found.policy else {name: value for name, value in table.items() if name != "policy"}


@cache
def _shipped(scenario: str) -> TunedFile | None:
    path = tuned_folder() / f"{scenario}.toml"
    return read_tuned(path) if path.is_file() else None


def tuned_policies(scenario: str) -> tuple[str, ...]:
    """Names of the policies that have shipped tuned settings for a scenario of this name, sorted."""
    file = _shipped(scenario)
    return tuple(sorted(file.policies)) if file else ()


def tuned_routers(scenario: str) -> tuple[str, ...]:
    """Names of the routing rules that have shipped tuned settings for a scenario of this name, sorted."""
    file = _shipped(scenario)
    return tuple(sorted(file.routers)) if file else ()


def tuned(scenario: str, policy: str) -> Tuned:
    """What was found for a policy on a scenario.

    Raises:
        UserError: nothing is shipped for it.
    """
    return _one(scenario, policy, "policy", (file := _shipped(scenario)) and file.policies)


def tuned_parameters(scenario: str, policy: str) -> dict[str, Any]:
    """The tuned parameters of a policy on a scenario; those that are missing have their defaults.

    Raises:
        UserError: nothing is shipped for it.
    """
    return dict(tuned(scenario, policy).parameters)


def tuned_router(scenario: str, router: str) -> dict[str, Any]:
    """The tuned parameters of a routing rule on a scenario. Raises: as `tuned_parameters`."""
    return dict(_one(scenario, router, "router", (file := _shipped(scenario)) and file.routers).parameters)


def _one(scenario: str, name: str, kind: str, tables: dict[str, Tuned] | None) -> Tuned:
    if not tables:
        folder = tuned_folder()
        known = ", ".join(sorted(path.stem for path in folder.glob("*.toml"))) if folder.is_dir() else ""
        raise UserError(
            f"scenario {scenario}: no {kind} has tuned settings for it; scenarios with some: {known or 'none'}"
        )
    if name not in tables:
        raise UserError(f"{kind} {name}: no tuned settings for scenario {scenario}; there are: {', '.join(tables)}")
    return tables[name]
