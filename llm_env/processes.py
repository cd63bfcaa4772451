"""How processes for more cores are started. Knows nothing of the rest."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import SpawnContext

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def spawn_context() -> SpawnContext:
    """For processes that are new, since forked ones inherit locks of torch and numba, and that have one thread each.

    They are used for cores, and read the number of threads when they load numpy; one that is set already stays.
    """
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    return multiprocessing.get_context("spawn")
