"""Requests as columns: what a trace holds and a generator draws, without what a run makes of it.

24 bytes a request where a REQUEST record has hundreds, so that long traces fit into memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Traffic(NamedTuple):
    """Requests in order of arrival. Arrays of equal length; None where a source does not say."""

    arrival_s: np.ndarray  # (n,) float64, ascending, from an arbitrary zero
    prompt_tokens: np.ndarray  # (n,) int32
    output_tokens: np.ndarray  # (n,) int32
    client: np.ndarray | None = None  # (n,) int32, -1 where unknown
    session: np.ndarray | None = None  # (n,) int32, -1 where none

    @property
    def size(self) -> int:
        """Number of requests (len() is that of the tuple)."""
        return int(self.arrival_s.size)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if self.size else 0.0

    def take(self, which: np.ndarray | slice) -> Traffic:
        """The requests at these places, or of a mask."""
        client = None if self.client is None else self.client[which]
        session = None if self.session is None else self.session[which]
        return Traffic(self.arrival_s[which], self.prompt_tokens[which], self.output_tokens[which], client, session)
