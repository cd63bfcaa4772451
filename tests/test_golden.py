"""Golden hashes: runs and episodes are what they were, to the last bit. Whoever makes the code faster breaks nothing.

`golden.json` has a hash for every system and policy, and for every environment. The hashes are the same on every
machine (see `golden_runs`). One that differs says that results have changed: if that was not meant, the change is
wrong. If the model was changed on purpose, look at which hashes moved, explain each, and renew them:

    python tests/test_golden.py > tests/golden.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from golden_episodes import episode_hashes
from golden_runs import EVERY_BASELINE, EVERY_ORDER, SYSTEMS, Golden, hash_of, hashes

FILE, EPISODES = Path(__file__).with_name("golden.json"), "episodes"
KNOWN: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8")) if __name__ != "__main__" else {}
SMALL = ("small and exact",)


def differences(found: dict[str, str], known: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    """What was found and what is known, where they differ."""
    names = [*found, *(name for name in known if name not in found)]
    return {name: (found.get(name), known.get(name)) for name in names if found.get(name) != known.get(name)}


@pytest.mark.kernel
@pytest.mark.parametrize(
    "system", [pytest.param(name, marks=pytest.mark.nojit if name in SMALL else ()) for name in SYSTEMS]
)
def test_a_run_is_not_what_it_was(system):
    assert differences(hashes(SYSTEMS[system]), KNOWN[system]) == {}


@pytest.mark.kernel
def test_an_episode_is_not_what_it_was(tmp_path):
    assert differences(episode_hashes(tmp_path / "trace.csv"), KNOWN[EPISODES]) == {}


def test_the_file_has_other_systems_than_the_test():
    assert set(KNOWN) == {*SYSTEMS, EPISODES}
    assert {*EVERY_BASELINE, *EVERY_ORDER} <= set(KNOWN["one worker"])


def test_a_hash_forgets_what_differs():
    assert hash_of([1.0, 2.0]) != hash_of([1.0, 2.0000000000000004])
    assert hash_of([1, 2]) != hash_of([2, 1])
    assert hash_of([1], [2]) != hash_of([1, 2])
    assert hash_of([0.0, float("nan")]) == hash_of([-0.0, -float("nan")])
    few = Golden(("order shortest-prefill",), {}, {"n": 40, "gap": 20})
    assert differences(hashes(few), hashes(few._replace(policies=("order fcfs",)))).keys() == {
        *few.policies,
        "order fcfs",
    }


def table() -> dict[str, dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        episodes = episode_hashes(Path(folder) / "trace.csv")
    return {**{name: hashes(golden) for name, golden in SYSTEMS.items()}, EPISODES: episodes}


if __name__ == "__main__":
    print(json.dumps(table(), indent=1))
