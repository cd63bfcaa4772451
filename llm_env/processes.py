"""How processes for more cores are started, and what it is called when one dies. Knows the errors only."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext
from typing import Any, TypeVar

from llm_env.errors import UserError

T = TypeVar("T")
ALONE_S = 2.0  # about what a process costs before it works: Python, imports, compiled code
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def spawn_context() -> SpawnContext:
    """For processes that are new, since forked ones inherit locks of torch and numba, and that have one thread each.

    They are used for cores, and read the number of threads when they load numpy; one that is set already stays.
    """
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    return multiprocessing.get_context("spawn")


@contextmanager
def death_is_an_error() -> Iterator[None]:
    """Where results of a pool are waited for.

    Raises:
        UserError: one of its processes died.
    """
    try:
        yield
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps out of memory: try fewer --processes") from None


@contextmanager
def worker_pool(
    processes: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes of `spawn_context`. On the way out, after an interruption too, only what runs is waited for.

    Raises:
        UserError: one of them died.
    """
    pool = ProcessPoolExecutor(processes, spawn_context(), initializer, initargs)
    try:
        with death_is_an_error():
            yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def shared_out(
    run: Callable[..., T], jobs: Sequence[tuple[Any, ...]], processes: int, here: Sequence[int] = (0,)
) -> Iterator[tuple[int, T]]:
    """run(*job) of every job in so many processes, and which job it was, in whatever order they end.

    Others than this one are started for what is left after ALONE_S: little is done before a process has begun.

    Args:
        here: jobs that this process runs first, whatever they take: they compile into the cache that children read.

    Raises:
        UserError: a process died.
    """
    order = [*(k for k in here if k < len(jobs)), *(k for k in range(len(jobs)) if k not in here)]
    done, alone_until = 0, math.inf
    for k in order:
        if processes > 1 and done >= len(here) and time.monotonic() >= alone_until:
            break
        yield k, run(*jobs[k])
        done += 1
        if done == len(here):
            alone_until = time.monotonic() + ALONE_S
    rest = order[done:]
    if not rest:
        return
    with worker_pool(min(processes, len(rest))) as pool:
        futures = {pool.submit(run, *jobs[k]): k for k in rest}
        for future in as_completed(futures):
            yield futures[future], future.result()
