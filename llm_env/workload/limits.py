"""How much one episode may draw. Beyond it memory runs out before anything is simulated."""

from __future__ import annotations

from llm_env.errors import UserError

MAX_EXPECTED = 20_000_000  # arrivals, or changes of the rate, per episode


def check_amount(what: str, expected: float, advice: str = "lower the rate or shorten episode.arrivals_s") -> None:
    """Refuses what cannot be drawn.

    Args:
        what: in the plural.
        expected: how many; NaN is refused too.
        advice: what to change.

    Raises:
        UserError: it is more than 20,000,000.
    """
    if not expected <= MAX_EXPECTED:
        raise UserError(
            f"workload: about {expected:.3g} {what} are expected in one episode, at most {MAX_EXPECTED} are possible:"
            f" {advice}"
        )
