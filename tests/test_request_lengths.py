"""Lengths of requests: correlated by a copula, drawn in measured pairs, and different from client to client."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from llm_env.config import (
    ChoiceLength,
    ClientSettings,
    GeometricLength,
    LognormalLength,
    LognormalMixtureLength,
    PairSettings,
    QuantileLength,
    Scenario,
    UniformLength,
    WorkloadSettings,
    ZipfLength,
    scenario_from_dict,
    with_changes,
)
from llm_env.workload import draw_lengths, draw_workload, mean_length, mean_work, streams
from llm_env.workload.clients import draw_clients, population
from llm_env.workload.lengths import (
    draw_request_lengths,
    largest_length,
    largest_output,
    length_cdf,
    length_probabilities,
    mean_tokens,
    normal_correlation,
    sum_probabilities,
)
from llm_env.workload.statistics import ks_distance, rank_correlation

DEFAULT = WorkloadSettings()
SMOOTH = {  # so fine that equal lengths do not matter
    "log-normal": LognormalLength(mu=7.0, sigma=1.0),
    "mixture": LognormalMixtureLength(w=(0.6, 0.4), mu=(6.0, 9.0), sigma=(0.5, 0.3)),
    "quantiles": QuantileLength(tokens=(1, 700, 9000, 40_000)),
    "uniform": UniformLength(min_tokens=1, max_tokens=20_000),
}


def workload_of(prompt, output, correlation=0.0, **more) -> WorkloadSettings:
    return DEFAULT.model_copy(update={"prompt": prompt, "output": output, "correlation": correlation, **more})


# ---- correlation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rho", [-0.9, -0.4, 0.3, 0.7, 0.95])
@pytest.mark.parametrize(
    ("prompt", "output"), [("log-normal", "mixture"), ("quantiles", "log-normal"), ("uniform",) * 2]
)
def test_the_rank_correlation_is_not_the_stated_one(prompt, output, rho):
    """Its Fisher transform has a variance of (1 + rho^2 / 2) / (n - 3): Bonett and Wright, Psychometrika 65 (2000)."""
    n = 200_000
    x, y = draw_request_lengths(workload_of(SMOOTH[prompt], SMOOTH[output], rho), n, streams(0))
    got = rank_correlation(x, y)
    assert np.arctanh(got) == pytest.approx(np.arctanh(rho), abs=5 * np.sqrt((1 + rho**2 / 2) / (n - 3)))


@pytest.mark.parametrize("rho", [-0.6, 0.8])
@pytest.mark.parametrize(
    "lengths",
    [*SMOOTH.values(), ChoiceLength(), GeometricLength(p=0.3), ZipfLength(max_tokens=50), DEFAULT.output],
    ids=lambda lengths: lengths.kind,
)
def test_a_correlation_changes_the_distribution_of_prompts_or_outputs(lengths, rho):
    n = 50_000
    drawn = draw_request_lengths(workload_of(lengths, lengths, rho), n, streams(1))
    for x in drawn:  # bound: see dkw in test_lengths.py
        assert ks_distance(x, length_cdf(lengths)) < np.sqrt(np.log(2e6) / (2 * n))


def test_a_lognormal_prompt_changes_with_the_correlation():
    """Its normals are the same ones. One token of difference is allowed where both roundings are at an edge."""
    plain, _ = draw_request_lengths(DEFAULT, 20_000, streams(2))
    prompt, output = draw_request_lengths(workload_of(DEFAULT.prompt, DEFAULT.output, 0.5), 20_000, streams(2))
    assert (prompt != plain).sum() <= 1
    assert rank_correlation(output, draw_request_lengths(DEFAULT, 20_000, streams(2))[1]) < 0.95


def test_no_correlation_is_not_two_independent_draws():
    x, y = draw_request_lengths(DEFAULT, 1000, streams(3))
    np.testing.assert_array_equal(x, draw_lengths(DEFAULT.prompt, 1000, streams(3).prompt))
    np.testing.assert_array_equal(y, draw_lengths(DEFAULT.output, 1000, streams(3).output))


def joint(first: np.ndarray, second: np.ndarray, rho: float) -> np.ndarray:
    """Probabilities of all pairs of two discrete variables with these probabilities, under the copula."""
    r = normal_correlation(rho)
    edges = [np.clip(stats.norm.ppf(np.append(0.0, np.cumsum(p))), -9, 9) for p in (first, second)]
    normal = stats.multivariate_normal(cov=np.array([[1, r], [r, 1]]))
    return np.diff(np.diff([[normal.cdf((a, b)) for b in edges[1]] for a in edges[0]], axis=0), axis=1)


def tied(first: np.ndarray, second: np.ndarray, rho: float) -> float:
    """Rank correlation, mean ranks for ties, of two discrete variables (their probabilities) under the copula.

    12 Cov(F(X) - p(X) / 2, G(Y) - q(Y) / 2) / sqrt((1 - sum p^3) (1 - sum q^3)); Neslehova, JMVA 98 (2007) 544-567.
    """
    middle = [np.cumsum(p) - p / 2 for p in (first, second)]
    covariance = middle[0] @ joint(first, second, rho) @ middle[1] - 0.25
    return 12 * covariance / np.sqrt((1 - (first**3).sum()) * (1 - (second**3).sum()))


@pytest.mark.parametrize("rho", [-0.9, 0.5])
@pytest.mark.parametrize(
    ("prompt", "output"), [(ChoiceLength(), ChoiceLength()), (UniformLength(max_tokens=4), ChoiceLength())]
)
def test_equal_lengths_take_more_or_less_of_the_correlation_than_theory_says(prompt, output, rho):
    p, q = ((full := length_probabilities(lengths, 600))[full > 0] for lengths in (prompt, output))
    x, y = draw_request_lengths(workload_of(prompt, output, rho), 100_000, streams(4))
    parts = [rank_correlation(*pair) for pair in zip(np.split(x, 25), np.split(y, 25), strict=True)]
    error = np.std(parts, ddof=1) / 5  # of their mean; the bias of a part of 4,000 is of the order of 1 / 4,000
    assert np.mean(parts) == pytest.approx(tied(p, q, rho), abs=5 * error + 1 / 4000)


def test_equal_lengths_take_more_than_is_documented():
    three = np.array((0.5, 0.35, 0.15))
    assert tied(three, three, 0.5) == pytest.approx(0.5 * (1 - 0.18), abs=0.005)
    n = 100_000
    normals = streams(5).prompt.standard_normal(n), streams(5).output.standard_normal(n)
    r = normal_correlation(0.5)
    without = rank_correlation(normals[0], r * normals[0] + np.sqrt(1 - r**2) * normals[1])
    for output, share, close in ((DEFAULT.output, 0.0, 1e-4), (UniformLength(max_tokens=4), 0.05, 5e-3)):
        got = rank_correlation(*draw_request_lengths(workload_of(DEFAULT.prompt, output, 0.5), n, streams(5)))
        assert got / without == pytest.approx(1 - share, abs=close)  # the same normals: their own error cancels


@pytest.mark.parametrize("rho", [-0.9, 0.5, 0.99])
@pytest.mark.parametrize(
    ("prompt", "output"),
    [
        (ChoiceLength(tokens=(3, 40, 90)), UniformLength(max_tokens=30)),
        (LognormalLength(mu=3.0, sigma=0.7, max_tokens=100), GeometricLength(p=0.1, max_tokens=50)),
    ],
)
def test_sums_of_prompt_and_output_have_other_probabilities(prompt, output, rho):
    n, size = 200_000, largest_length(prompt) + largest_length(output) + 1
    p = sum_probabilities(prompt, output, rho, size)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert p @ np.arange(size) == pytest.approx(mean_length(prompt) + mean_length(output), rel=3e-5)
    drawn = np.bincount(sum(draw_request_lengths(workload_of(prompt, output, rho), n, streams(6))), minlength=size)
    assert (abs(drawn / n - p) <= 6 * np.sqrt(p * (1 - p) / n) + 1e-4).all()
    np.testing.assert_array_equal(sum_probabilities(prompt, output, rho, 40), p[:40])


@pytest.mark.parametrize(
    ("prompt", "output", "error"),
    [
        (ZipfLength(exponent=0.5), LognormalLength(mu=5.0, sigma=2.0, max_tokens=8192), 3e-5),
        (LognormalLength(mu=0.0, sigma=0.0), ChoiceLength(tokens=(1, 8, 3000)), 3e-5),
        (LognormalLength(mu=5.0, sigma=2.0), ZipfLength(exponent=1.5, max_tokens=131_072), 1e-3),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_mean_of_a_sum_is_further_off_than_is_documented(prompt, output, error):
    size = largest_length(prompt) + largest_length(output) + 1
    mean = sum_probabilities(prompt, output, 0.7, size) @ np.arange(size)
    assert mean == pytest.approx(mean_length(prompt) + mean_length(output), rel=error)


@pytest.mark.parametrize("rho", [-0.9, 0.5])
def test_sums_of_a_few_sizes_have_other_probabilities(rho):
    sizes, outputs = np.array([0.5, 0.35, 0.15]), np.full(6, 1 / 6)
    expected = np.zeros(100)
    for tokens, row in zip((3, 7, 90), joint(sizes, outputs, rho), strict=True):
        expected[tokens + 1 : tokens + 7] += row
    got = sum_probabilities(ChoiceLength(tokens=(3, 7, 90)), UniformLength(max_tokens=6), rho, 100)
    np.testing.assert_allclose(got, expected, atol=1e-5)


# ---- measured pairs ------------------------------------------------------------------------------------------------
PAIRS = PairSettings(prompt_tokens=(10, 20, 30, 40), output_tokens=(1, 9, 5, 5))


def test_pairs_are_torn_apart_or_not_equally_likely():
    n = 40_000
    x, y = draw_request_lengths(workload_of(DEFAULT.prompt, DEFAULT.output, pairs=PAIRS), n, streams(7))
    drawn, counts = np.unique(np.stack((x, y)), axis=1, return_counts=True)
    assert drawn.T.tolist() == [[10, 1], [20, 9], [30, 5], [40, 5]]
    assert abs(counts / n - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / n)


def test_work_and_declared_outputs_are_not_those_of_the_pairs():
    data = {"workload": {"pairs": PAIRS.model_dump(), "rate_per_s": 2.0}}
    scenario = scenario_from_dict(data)
    assert mean_work(scenario.workload) == pytest.approx(25 + 5 - 1)
    assert largest_output(scenario.workload) == 9
    requests = draw_workload(scenario, 0)
    assert (requests["declared_tokens"] == 9).all()
    assert set(requests["prompt_tokens"].tolist()) == {10, 20, 30, 40}


# ---- clients that differ -------------------------------------------------------------------------------------------
DIFFER = ClientSettings(count=40, log_rate_sd=1.0, prompt_sigma=0.8, output_sigma=0.5, length_correlation=-0.6)
MIXTURE = LognormalMixtureLength(w=(0.2, 0.8), mu=(3.0, 6.0), sigma=(0.4, 0.9), min_tokens=5, max_tokens=3000)


@pytest.mark.parametrize("prompt", [DEFAULT.prompt, MIXTURE], ids=lambda lengths: lengths.kind)
def test_the_mean_of_all_clients_is_not_that_of_the_requests(prompt):
    n = 200_000
    workload = workload_of(prompt, DEFAULT.output, clients=DIFFER)
    client = draw_clients(DIFFER, n, streams(8).clients)
    x, y = draw_request_lengths(workload, n, streams(8), client)
    error = (x + y).std() / np.sqrt(n)
    assert (x + y).mean() == pytest.approx(mean_tokens(workload), abs=5 * error)
    assert mean_work(workload) == mean_tokens(workload) - 1.0
    alike = workload_of(prompt, DEFAULT.output)
    assert abs(mean_tokens(workload) - mean_tokens(alike)) > 10 * error


@pytest.mark.parametrize("lengths", [DEFAULT.prompt, MIXTURE], ids=lambda lengths: lengths.kind)
def test_a_client_has_other_lengths_than_its_own(lengths):
    """Those of a log-normal with the location moved, clipped to the same bounds."""
    workload = workload_of(lengths, DEFAULT.output, clients=DIFFER)
    people = population(DIFFER)
    for who in (int(people.prompt_shift.argmin()), int(people.prompt_shift.argmax())):
        x, y = draw_request_lengths(workload, 20_000, streams(9), np.full(20_000, who))
        for drawn, settings, shift in ((x, lengths, people.prompt_shift), (y, DEFAULT.output, people.output_shift)):
            mu = np.array(settings.mu) + shift[who]  # type: ignore[union-attr]
            moved = settings.model_copy(update={"mu": tuple(mu.tolist()) if mu.ndim else float(mu)})
            assert ks_distance(drawn, length_cdf(moved)) < np.sqrt(np.log(2e6) / (2 * 20_000))
            assert drawn.max() <= largest_length(settings)


def test_the_mean_of_a_population_is_not_the_sum_over_its_clients():
    workload = workload_of(MIXTURE, DEFAULT.output, clients=DIFFER)
    people = population(DIFFER)
    expected = 0.0
    for share, first, second in zip(people.shares, people.prompt_shift, people.output_shift, strict=True):
        prompt = MIXTURE.model_copy(update={"mu": tuple(mu + float(first) for mu in MIXTURE.mu)})
        output = DEFAULT.output.model_copy(update={"mu": DEFAULT.output.mu + float(second)})  # type: ignore[union-attr]
        expected += share * (mean_length(prompt) + mean_length(output))
    assert mean_tokens(workload) == pytest.approx(expected, rel=1e-10)


def test_lengths_of_clients_move_where_only_the_other_length_differs():
    only = ClientSettings(count=40, output_sigma=0.5)
    client = draw_clients(only, 5000, streams(10).clients)
    x, y = draw_request_lengths(workload_of(ZipfLength(), DEFAULT.output, clients=only), 5000, streams(10), client)
    np.testing.assert_array_equal(x, draw_lengths(ZipfLength(), 5000, streams(10).prompt))
    assert (y != draw_lengths(DEFAULT.output, 5000, streams(10).output)).mean() > 0.5
    expected = mean_length(ZipfLength()) + mean_tokens(workload_of(DEFAULT.prompt, DEFAULT.output, clients=only))
    assert mean_tokens(workload_of(ZipfLength(), DEFAULT.output, clients=only)) == pytest.approx(
        expected - mean_length(DEFAULT.prompt)
    )


def test_outputs_of_clients_exceed_what_all_declare():
    changes = {"workload.clients": {"count": 30, "output_sigma": 3.0}, "workload.rate_per_s": 50.0}
    requests = draw_workload(with_changes(Scenario(), changes), 0)
    assert requests["output_tokens"].max() == 1024
    assert (requests["declared_tokens"] == 1024).all()


def test_the_mean_of_ten_thousand_clients_is_not_that_of_a_sample_of_them():
    crowd = ClientSettings(count=10_000, skew=0.0, prompt_sigma=1.0)
    workload = workload_of(LognormalLength(mu=6.0, sigma=1.0), DEFAULT.output, clients=crowd)
    shifts = population(crowd).prompt_shift
    some = np.linspace(0, 9999, 200).astype(int)
    means = np.array([mean_length(LognormalLength(mu=6.0 + float(s), sigma=1.0)) for s in shifts[some]])
    error = means.std() / np.sqrt(some.size)
    got = mean_tokens(workload) - mean_length(DEFAULT.output)
    assert got == pytest.approx(means.mean(), abs=5 * error)


# ---- all of them ---------------------------------------------------------------------------------------------------
CASES = {
    "correlated": workload_of(ZipfLength(), QuantileLength(tokens=(1, 50, 400)), 0.6),
    "pairs": workload_of(DEFAULT.prompt, DEFAULT.output, pairs=PAIRS),
    "clients": workload_of(DEFAULT.prompt, MIXTURE, clients=DIFFER),
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_requests_depend_on_how_many_follow(name):
    client = draw_clients(DIFFER, 1000, streams(11).clients)
    few = draw_request_lengths(CASES[name], 10, streams(11), client[:10])
    many = draw_request_lengths(CASES[name], 1000, streams(11), client)
    for short, long in zip(few, many, strict=True):
        np.testing.assert_array_equal(short, long[:10])
        assert short.dtype == np.int64


SCRIPT = """
import hashlib, sys
from llm_env.config import read_scenario
from llm_env.workload import draw_workload
for path in sys.argv[1:]:
    print(hashlib.sha256(draw_workload(read_scenario(path), 5).tobytes()).hexdigest())
"""


def test_another_process_draws_other_bytes(tmp_path):
    from llm_env.config import scenario_to_toml

    scenarios = [Scenario(workload=workload) for workload in CASES.values()]
    sessions = {"more_turns": [0.3, 0.8], "first_prompt": {"kind": "uniform"}}
    scenarios.append(with_changes(scenarios[0], {"workload.sessions": sessions}))
    paths = [tmp_path / f"{k}.toml" for k in range(len(scenarios))]
    for path, scenario in zip(paths, scenarios, strict=True):
        path.write_text(scenario_to_toml(scenario))
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, paths)], capture_output=True, text=True, check=True)
    mine = [hashlib.sha256(draw_workload(scenario, 5).tobytes()).hexdigest() for scenario in scenarios]
    assert done.stdout.split() == mine
