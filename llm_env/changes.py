"""Settings in nested tables, named by dotted paths like "slo.classes.0.ttft_ms". Knows the errors only."""

from __future__ import annotations

from typing import Any

from llm_env.errors import UserError

EITHER = (  # of each pair only one setting can be given
    ("workload.load", "workload.rate_per_s"),
    ("workload.sessions.mean_turns", "workload.sessions.more_turns"),
    ("workload.clients.skew", "workload.clients.log_rate_sd"),
)
_OTHER = {path: other for one, another in EITHER for path, other in ((one, another), (another, one))}


def setting(data: dict[str, Any], path: str) -> Any:
    """The value at a path, None where there is none."""
    node: Any = data
    for key in path.split("."):
        if isinstance(node, list | tuple):
            node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return node


def changed(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tables with some settings changed; what is not changed is shared with the original.

    Setting one of EITHER clears the other. Closed-loop arrivals clear the rate. Another `kind` comes without the
    settings of the old one, whatever the order of the changes.

    Raises:
        UserError: a path that leads through something else than tables and lists.
    """
    for path, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):  # kinds first
        if path in _OTHER:
            data = _without(data, _OTHER[path])
        kind = value.get("kind") if path == "workload.arrivals" and isinstance(value, dict) else None
        if "closed-loop" in (kind, value if path == "workload.arrivals.kind" else None):
            data = _without(_without(data, "workload.load"), "workload.rate_per_s")
        data = _put(data, path, path.split("."), value)
    return data


def _put(node: Any, path: str, keys: list[str], value: Any) -> Any:
    """A copy of a table or list with a value at the end of the keys."""
    key, *rest = keys
    if isinstance(node, list | tuple):
        if not (key.isdecimal() and int(key) < len(node)):
            raise UserError(f"scenario: {path}: expected a number from 0 to {len(node) - 1} in place of {key!r}")
        place = int(key)
        below = _put(node[place], path, rest, value) if rest else value
        return [below if k == place else each for k, each in enumerate(node)]
    if rest:
        below = node.get(key, {})
        if not isinstance(below, dict | list | tuple):
            raise UserError(f"scenario: {path}: {key} is not a group of settings")
        return {**node, key: _put(below, path, rest, value)}
    return {key: value} if key == "kind" and node.get("kind") != value else {**node, key: value}


def _without(data: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy without the setting at a path of tables."""
    key, _, rest = path.partition(".")
    if not isinstance(data, dict) or key not in data:
        return data
    if rest:
        return {**data, key: _without(data[key], rest)}
    return {name: value for name, value in data.items() if name != key}
