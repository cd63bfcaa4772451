"""How much an episode may draw."""

from __future__ import annotations

import pytest

from llm_env.errors import UserError
from llm_env.workload.limits import MAX_EXPECTED, check_amount


@pytest.mark.parametrize("amount", [MAX_EXPECTED + 1.0, float("inf"), float("nan")])
def test_too_much_is_let_through(amount):
    with pytest.raises(UserError, match="turns are expected in one episode, at most 20000000 are possible: wait less"):
        check_amount("turns", amount, "wait less")


def test_what_fits_is_refused():
    check_amount("arrivals", MAX_EXPECTED)
