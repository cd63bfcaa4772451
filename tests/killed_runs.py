"""Trains in children of one process, which end or are killed: `python -m tests.killed_runs FOLDER SEED KILLS ARGUMENTS`

A child is a fork, so that a run that is killed ten times imports everything once. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from agents.training import main


def child(words: list[str], log: Path) -> int:
    """Begins `train.py` with these arguments in a fork; its process id."""
    process = os.fork()
    if process == 0:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = main(words)
        sys.stdout.flush()
        os._exit(code)
    return process


def ended(process: int) -> int:
    """The exit code once a child has ended, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def digests(run: Path) -> dict[str, str]:
    """sha256 of the weights that a run left."""
    names = ("agent/agent.safetensors", "last/agent.safetensors")
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}


def until_learning(run: Path, process: int) -> None:
    """Waits until a child has begun to write what it learns, or has ended."""
    while not [*run.glob(f"tb/*.{process}.*")] and os.waitid(os.P_PID, process, LOOK) is None:
        time.sleep(0.01)


LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def train_killed(folder: Path, seed: int, kills: int, words: list[str]) -> dict[str, object]:
    """One run without a stop, and one that is killed at random moments and resumed until it is done."""
    log, rng = folder / "log.txt", random.Random(seed)
    whole, stopped = folder / "whole", folder / "stopped"
    process = child([*words, "--out", str(whole)], log)
    until_learning(whole, process)
    began = time.monotonic()
    codes, came_from = [ended(process)], []
    seconds = time.monotonic() - began
    process = child([*words, "--out", str(stopped)], log)
    for _ in range(kills):
        until_learning(stopped, process)
        time.sleep(rng.uniform(0.0, 0.6) * seconds)
        number = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        os.kill(process, number)
        codes.append(ended(process))
        pointer = stopped / "checkpoints" / "latest.json"
        came_from.append(json.loads(pointer.read_text())["checkpoint"] if pointer.exists() else None)
        if codes[-1] == 0:
            break
        process = child(["--resume", str(stopped)], log)
    if codes[-1] != 0:
        codes.append(ended(process))
    return {
        "codes": codes,
        "came_from": came_from,
        "seconds": seconds,
        "whole": digests(whole),
        "stopped": digests(stopped),
        "said": log.read_text(),
    }


if __name__ == "__main__":
    found = train_killed(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    sys.stdout.write(json.dumps(found) + "\n")
