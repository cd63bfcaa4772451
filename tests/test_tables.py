"""Tables of a study: what is measured can be read, whatever the policies are called."""

from __future__ import annotations

import pytest

from llm_env.aggregate import AVERAGED, Row
from llm_env.command import WIDTH, output_console
from llm_env.dtypes import SLO_RULES
from llm_env.metrics import Interval
from llm_env.prices import COSTS
from llm_env.statistics import Comparison
from llm_env.tables import difference_table, slo_table, time_table, usage_table

NAME = "role-switch:" + ",".join(f"parameter_{k}={k}.25" for k in range(9))


def row(name):
    means: dict[str, float] = dict.fromkeys((*AVERAGED, *COSTS), 1.0)
    means |= {"goodput_per_s": 3.141, "tokens_per_s": 4271.0, "mean_batch_requests": 25.1}
    attainment = {rule: Interval(0.634, 0.056) for rule in SLO_RULES}
    versus = Comparison(Interval(0.1, 0.1), 6, 9, 33)
    return Row(None, name, False, 9, 99, attainment, versus, 0.88, means, False, "max", "max")


@pytest.mark.parametrize(
    ("table", "figures"),
    [
        (lambda rows: slo_table(rows, "t", "max"), ("63.4 ±5.6", "3.141", "+10.0 ±10.0", "0.880", "6/9/33")),
        (lambda rows: difference_table(rows, "t"), ("+10.0 ±10.0", "0.880", "6/9/33")),
        (lambda rows: time_table(rows, "t"), ("4271", "100.0", "1.00")),
        (lambda rows: usage_table(rows, "t"), ("25.1", "100.0", "1.000")),
    ],
)
def test_a_long_name_leaves_no_room_for_the_figures(capsys, table, figures):
    output_console().print(table([row("sarathi"), row(NAME)]))
    shown = capsys.readouterr().out
    assert "…" not in shown
    for figure in figures:
        assert shown.count(figure) >= 2
    pieces = [line.split()[0] for line in shown.splitlines() if line.split()]
    assert NAME in "".join(pieces)
    assert max(map(len, shown.splitlines())) <= WIDTH
