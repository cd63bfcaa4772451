"""Wrong lengths are refused by name, with what is allowed; and what is right means what it says."""

from __future__ import annotations

import math

import pytest

from llm_env.config import LognormalLength, Scenario, scenario_from_dict, scenario_to_toml
from llm_env.errors import UserError
from llm_env.length_settings import MAX_KNOTS, MAX_PAIRS

WHERE = "workload.prompt"
MEAN_AND_MEDIAN = f"{WHERE}: give mu and sigma, or mean and median with mean >= median > 0, got "
KINDS = "'fixed', 'uniform', 'lognormal', 'lognormal-mixture', 'geometric', 'choice', 'quantiles', 'zipf'"
WRONG = [
    # length, what the one line says after "my.toml: "
    (3, f"{WHERE}: expected a table of settings, got 3"),
    ({"kind": "pareto"}, f"{WHERE}.kind: expected one of {KINDS}, got 'pareto'"),
    ({"tokens": 3}, f"{WHERE}.kind: expected one of {KINDS}, got none"),
    ({"kind": "fixed", "tokens": 0}, f"{WHERE}.tokens: expected at least 1, got 0"),
    ({"kind": "fixed", "tokens": 1_048_577}, f"{WHERE}.tokens: expected at most 1048576, got 1048577"),
    ({"kind": "fixed", "tokens": 2.0}, f"{WHERE}.tokens: expected a valid integer, got 2.0"),
    ({"kind": "uniform", "min_tokens": 0}, f"{WHERE}.min_tokens: expected at least 1, got 0"),
    ({"kind": "uniform", "min_tokens": 9, "max_tokens": 8}, f"{WHERE}: min_tokens 9 is above max_tokens 8"),
    ({"kind": "uniform", "min_tokens": 2000}, f"{WHERE}: min_tokens 2000 is above max_tokens 1024"),
    ({"kind": "uniform", "mean": 5}, f"{WHERE}.mean: unknown setting"),
    ({"kind": "lognormal", "mu": -16.0, "sigma": 1.0}, f"{WHERE}.mu: expected at least -15, got -16.0"),
    ({"kind": "lognormal", "mu": 1.0, "sigma": -0.5}, f"{WHERE}.sigma: expected at least 0, got -0.5"),
    ({"kind": "lognormal", "mu": 1.0, "sigma": 5.5}, f"{WHERE}.sigma: expected at most 5, got 5.5"),
    ({"kind": "lognormal", "mu": math.nan, "sigma": 1.0}, f"{WHERE}.mu: expected a finite number, got nan"),
    ({"kind": "lognormal", "mean": 5.0}, f"{MEAN_AND_MEDIAN}mean = 5.0"),
    ({"kind": "lognormal", "median": 5.0}, f"{MEAN_AND_MEDIAN}median = 5.0"),
    ({"kind": "lognormal", "mean": 5.0, "median": 6.0}, f"{MEAN_AND_MEDIAN}mean = 5.0, median = 6.0"),
    ({"kind": "lognormal", "mean": 5.0, "median": 0.0}, f"{MEAN_AND_MEDIAN}mean = 5.0, median = 0.0"),
    ({"kind": "lognormal", "mean": "5", "median": 3}, f"{MEAN_AND_MEDIAN}mean = '5', median = 3"),
    ({"kind": "lognormal", "mean": math.inf, "median": 3.0}, f"{MEAN_AND_MEDIAN}mean = inf, median = 3.0"),
    ({"kind": "lognormal", "mean": 5, "median": True}, f"{MEAN_AND_MEDIAN}mean = 5, median = True"),
    ({"kind": "lognormal", "mean": 5, "median": 3, "mu": 1.0}, f"{MEAN_AND_MEDIAN}mean = 5, median = 3, mu = 1.0"),
    ({"kind": "lognormal", "mean": 1e9, "median": 1e9}, f"{WHERE}.mu: expected at most 15, got 20.72326583694641"),
    (
        {"kind": "lognormal-mixture", "w": [0.5, 0.4], "mu": [1.0, 2.0], "sigma": [1.0, 1.0]},
        f"{WHERE}: the weights w must sum to 1, got 0.9",
    ),
    (
        {"kind": "lognormal-mixture", "w": [0.5, 0.5], "mu": [1.0, 2.0], "sigma": [1.0]},
        f"{WHERE}: w, mu and sigma differ in length: 2, 2, 1",
    ),
    (
        {"kind": "lognormal-mixture", "w": [1.5, -0.5], "mu": [1.0, 2.0], "sigma": [1.0, 1.0]},
        (f"{WHERE}.w.0: expected at most 1, got 1.5", f"{WHERE}.w.1: expected at least 0, got -0.5"),
    ),
    (
        {"kind": "lognormal-mixture", "w": [], "mu": [], "sigma": []},
        tuple(f"{WHERE}.{name}: expected at least 1 items, got 0" for name in ("w", "mu", "sigma")),
    ),
    ({"kind": "geometric", "p": 0.0}, f"{WHERE}.p: expected above 0, got 0.0"),
    ({"kind": "geometric", "p": 1.5}, f"{WHERE}.p: expected at most 1, got 1.5"),
    ({"kind": "geometric"}, f"{WHERE}.p: missing, it has no default"),
    ({"kind": "choice", "tokens": [4]}, f"{WHERE}: 1 tokens but 3 probabilities"),
    (
        {"kind": "choice", "tokens": [4, 5], "probabilities": [0.2, 0.7]},
        f"{WHERE}: the probabilities must sum to 1, got 0.9",
    ),
    ({"kind": "quantiles"}, f"{WHERE}.tokens: missing, it has no default"),
    ({"kind": "quantiles", "tokens": [5]}, f"{WHERE}.tokens: expected at least 2 items, got 1"),
    (
        {"kind": "quantiles", "tokens": [5] * (MAX_KNOTS + 1)},
        f"{WHERE}.tokens: expected at most 1024 items, got 1025",
    ),
    ({"kind": "quantiles", "tokens": [5, 4]}, f"{WHERE}: tokens must not fall from one knot to the next"),
    ({"kind": "quantiles", "tokens": [0, 4]}, f"{WHERE}.tokens.0: expected at least 1, got 0"),
    ({"kind": "quantiles", "tokens": [1.5, 4]}, f"{WHERE}.tokens.0: expected a valid integer, got 1.5"),
    ({"kind": "quantiles", "tokens": [1, 4], "p": [0.0, 0.5, 1.0]}, f"{WHERE}: 2 tokens but 3 probabilities p"),
    ({"kind": "quantiles", "tokens": [1, 4], "p": [0.1, 1.0]}, f"{WHERE}: p must rise from 0 to 1"),
    ({"kind": "quantiles", "tokens": [1, 4], "p": [0.0, 0.9]}, f"{WHERE}: p must rise from 0 to 1"),
    ({"kind": "quantiles", "tokens": [1, 4, 5], "p": [0.0, 0.0, 1.0]}, f"{WHERE}: p must rise from 0 to 1"),
    ({"kind": "quantiles", "tokens": [1, 4], "p": [0.0, 1.5]}, f"{WHERE}.p.1: expected at most 1, got 1.5"),
    ({"kind": "zipf", "exponent": -1.0}, f"{WHERE}.exponent: expected at least 0, got -1.0"),
    ({"kind": "zipf", "exponent": 11.0}, f"{WHERE}.exponent: expected at most 10, got 11.0"),
    ({"kind": "zipf", "min_tokens": 8193}, f"{WHERE}: min_tokens 8193 is above max_tokens 8192"),
]
TWO = {"prompt_tokens": [1, 2], "output_tokens": [3, 4]}
FIXED = {"kind": "fixed", "tokens": 5}
TOGETHER = [
    # workload, what the one line says
    ({"pairs": 3}, "workload.pairs: expected a table of settings, got 3"),
    ({"pairs": {"prompt_tokens": [1]}}, "workload.pairs.output_tokens: missing, it has no default"),
    ({"pairs": {**TWO, "prompt_tokens": [1]}}, "workload.pairs: 1 prompt_tokens but 2 output_tokens"),
    ({"pairs": {**TWO, "prompt_tokens": [1, 0]}}, "workload.pairs.prompt_tokens.1: expected at least 1, got 0"),
    (
        {"pairs": {**TWO, "prompt_tokens": []}},
        "workload.pairs.prompt_tokens: expected at least 1 items, got 0",
    ),
    (
        {"pairs": {name: [1] * (MAX_PAIRS + 1) for name in TWO}},
        tuple(f"workload.pairs.{name}: expected at most 65536 items, got 65537" for name in TWO),
    ),
    (
        {"pairs": TWO, "correlation": 0.5},
        "workload: pairs have their own correlation and no sessions: leave correlation and sessions out",
    ),
    (
        {"pairs": TWO, "sessions": {}},
        "workload: pairs have their own correlation and no sessions: leave correlation and sessions out",
    ),
    ({"correlation": 1.0}, "workload.correlation: expected at most 0.99, got 1.0"),
    ({"correlation": -1.0}, "workload.correlation: expected at least -0.99, got -1.0"),
    (
        {"clients": {"count": 3, "prompt_sigma": 1.0}, "correlation": 0.5},
        "workload: lengths that differ between clients: leave pairs, correlation and sessions out",
    ),
    (
        {"clients": {"count": 3, "output_sigma": 1.0}, "sessions": {}},
        "workload: lengths that differ between clients: leave pairs, correlation and sessions out",
    ),
    (
        {"clients": {"count": 3, "output_sigma": 1.0}, "pairs": TWO},
        "workload: lengths that differ between clients: leave pairs, correlation and sessions out",
    ),
    (
        {"clients": {"count": 3, "prompt_sigma": 1.0}, "prompt": FIXED},
        "workload: clients.prompt_sigma needs prompt of kind lognormal or lognormal-mixture",
    ),
    (
        {"clients": {"count": 3, "output_sigma": 1.0}, "output": FIXED},
        "workload: clients.output_sigma needs output of kind lognormal or lognormal-mixture",
    ),
    ({"clients": {"count": 3, "prompt_sigma": 5.5}}, "workload.clients.prompt_sigma: expected at most 5, got 5.5"),
    (
        {"clients": {"count": 3, "length_correlation": 1.5}},
        "workload.clients.length_correlation: expected at most 1, got 1.5",
    ),
    ({"sessions": {"first_prompt": 3}}, "workload.sessions.first_prompt: expected a table of settings, got 3"),
    (
        {"sessions": {"first_prompt": {"kind": "fixed", "tokens": 0}}},
        "workload.sessions.first_prompt.tokens: expected at least 1, got 0",
    ),
    (
        {"sessions": {"mean_turns": 3.0, "more_turns": [0.5]}},
        "workload.sessions: give mean_turns or more_turns, not both",
    ),
    ({"sessions": {"more_turns": []}}, "workload.sessions.more_turns: expected at least 1 items, got 0"),
    ({"sessions": {"more_turns": [0.5, 1.0]}}, "workload.sessions.more_turns.1: expected below 1, got 1.0"),
    ({"sessions": {"more_turns": 0.5}}, "workload.sessions.more_turns: expected a list, got 0.5"),
]


def complaint(workload: dict) -> list[str]:
    with pytest.raises(UserError) as caught:
        scenario_from_dict({"workload": workload}, "my.toml")
    return str(caught.value).splitlines()


def lines(expected: str | tuple[str, ...]) -> list[str]:
    return [f"my.toml: {line}" for line in ([expected] if isinstance(expected, str) else expected)]


@pytest.mark.parametrize(("length", "expected"), WRONG, ids=lambda case: str(case)[:60])
def test_a_wrong_length_is_accepted_or_named_badly(length, expected):
    assert complaint({"prompt": length}) == lines(expected)


@pytest.mark.parametrize(("workload", "expected"), TOGETHER, ids=lambda case: str(case)[:60])
def test_lengths_that_do_not_fit_together_are_accepted_or_named_badly(workload, expected):
    assert complaint(workload) == lines(expected)


@pytest.mark.parametrize(
    "length",
    [
        {"kind": "uniform", "min_tokens": 4, "max_tokens": 4},
        {"kind": "lognormal", "mean": 700, "median": 300.5, "max_tokens": 9000},
        {"kind": "quantiles", "tokens": [4, 4, 9], "p": [0, 0.25, 1]},
        {"kind": "quantiles", "tokens": [4, 9]},
        {"kind": "zipf", "exponent": 2, "min_tokens": 3, "max_tokens": 30},
    ],
    ids=lambda length: length["kind"],
)
def test_a_length_does_not_survive_toml(length, tmp_path):
    from llm_env.config import read_scenario

    scenario = scenario_from_dict(
        {"workload": {"prompt": length, "output": length, "sessions": {"first_prompt": length}}}
    )
    (tmp_path / "s.toml").write_text(scenario_to_toml(scenario))
    assert read_scenario(tmp_path / "s.toml") == scenario


def test_a_median_and_a_mean_that_are_equal_have_a_spread():
    lengths = scenario_from_dict(
        {"workload": {"prompt": {"kind": "lognormal", "mean": 40, "median": 40}}}
    ).workload.prompt
    assert lengths == LognormalLength(mu=math.log(40), sigma=0.0)
    assert Scenario().workload.prompt != lengths
