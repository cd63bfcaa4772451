"""How long a batch takes, for the slow twin (`reference_simulator`): the three forms of the curve, and what follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

BUDGET_CAP = 1 << 20
Line = tuple[float, float, int]  # setup_s, per_token_s, free_tokens: what a View shows of a curve


@dataclass
class Linear:
    """c + a max(0, b - b0)."""

    setup_s: float = 0.01
    per_token_s: float = 0.001
    free_tokens: int = 0

    def seconds(self, tokens: float, setup_noise: float = 1.0, token_noise: float = 1.0) -> float:
        return self.setup_s * setup_noise + self.per_token_s * max(0, tokens - self.free_tokens) * token_noise

    def budget(self, limit_s: float) -> float:
        """b0 + (limit - c) / a: the largest batch within a time, at least 1."""
        spare_s = limit_s - self.setup_s
        if spare_s < 0:
            return 1
        if self.per_token_s == 0:
            return BUDGET_CAP
        return min(max(self.free_tokens + spare_s / self.per_token_s, 1), BUDGET_CAP)

    @property
    def line(self) -> Line:
        return self.setup_s, self.per_token_s, self.free_tokens


@dataclass
class Staircase:
    """c + a ceil(b / b0)."""

    setup_s: float
    step_s: float
    step_tokens: int

    def seconds(self, tokens: float, setup_noise: float = 1.0, token_noise: float = 1.0) -> float:
        return self.setup_s * setup_noise + self.step_s * math.ceil(tokens / self.step_tokens) * token_noise

    def budget(self, limit_s: float) -> float:
        if self.setup_s + self.step_s > limit_s:
            return 1
        if self.step_s == 0:
            return BUDGET_CAP
        steps = 1
        while steps * self.step_tokens < BUDGET_CAP and self.setup_s + self.step_s * (steps + 1) <= limit_s:
            steps += 1
        return min(steps * self.step_tokens, BUDGET_CAP)

    @property
    def line(self) -> Line:
        return self.setup_s, self.step_s / self.step_tokens, 0


@dataclass
class Table:
    """Straight lines from point to point, (tokens, seconds) each."""

    points: list[tuple[int, float]]

    def _curve(self, tokens: float) -> float:
        before, after = self.points[-2:]  # beyond the last point along the last segment
        if tokens <= self.points[0][0]:
            return self.points[0][1]
        for k in range(1, len(self.points)):
            if tokens <= self.points[k][0]:
                before, after = self.points[k - 1], self.points[k]
                break
        return before[1] + (after[1] - before[1]) * (tokens - before[0]) / (after[0] - before[0])

    def seconds(self, tokens: float, setup_noise: float = 1.0, token_noise: float = 1.0) -> float:
        first_s = self.points[0][1]
        return first_s * setup_noise + (self._curve(tokens) - first_s) * token_noise

    def budget(self, limit_s: float) -> float:
        if limit_s < self.points[0][1]:
            return 1
        within = [k for k, (_, seconds) in enumerate(self.points) if seconds <= limit_s][-1]
        start = min(within, len(self.points) - 2)
        (tokens, seconds), (more, more_s) = self.points[start], self.points[start + 1]
        if more_s == seconds:
            return BUDGET_CAP  # only the last segment can be level here
        return min(max(tokens + (limit_s - seconds) * (more - tokens) / (more_s - seconds), 1), BUDGET_CAP)

    @property
    def line(self) -> Line:
        """Reading: the chord begins at the first point, and below it the line is constant as the curve is."""
        (tokens, seconds), (most, most_s) = self.points[0], self.points[-1]
        return seconds, (most_s - seconds) / (most - tokens), tokens
