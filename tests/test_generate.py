"""The workload of an episode: reproducible, with independent parts, at the rate that its load means."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import stats

from llm_env.build import enlarge, load, new_states
from llm_env.config import (
    FixedLength,
    GeometricLength,
    LognormalLength,
    Scenario,
    ServiceSettings,
    SLOClass,
    SLOSettings,
    with_changes,
)
from llm_env.dtypes import EXPONENTIAL, FUTURE, GAMMA, LOGNORMAL, REQUEST
from llm_env.errors import UserError
from llm_env.scenarios import load_scenario
from llm_env.workload import (
    blank_requests,
    capacity_requests_per_s,
    capacity_tokens_per_s,
    draw_noise,
    draw_workload,
    mean_length,
    request_rate,
    slo_budget,
    streams,
)
from llm_env.workload.seeds import history_streams

TWO_CLASSES = SLOSettings(
    classes=(
        SLOClass(name="chat", ttft_ms=1000.0, tbt_ms=100.0, weight=2.0, share=0.3),
        SLOClass(name="batch", ttft_ms=8000.0, tbt_ms=500.0, share=0.7),
    )
)
FIXED = Scenario().model_copy(
    update={
        "workload": Scenario().workload.model_copy(
            update={"prompt": FixedLength(tokens=300), "output": FixedLength(tokens=101)}
        )
    }
)


def test_same_seed_gives_other_bytes():
    scenario = Scenario(slo=TWO_CLASSES)
    first, second = draw_workload(scenario, 7), draw_workload(scenario, 7)
    assert first.dtype == REQUEST
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != draw_workload(scenario, 8).tobytes()
    assert first.tobytes() == draw_workload(scenario, np.int64(7)).tobytes()


# what the first version drew: seeds 0 to 4, these fields one after the other
FIRST_FIELDS = (
    *("arrival_s", "prompt_tokens", "output_tokens", "slo_class", "ttft_target_s", "tbt_target_s", "weight"),
    *("client", "session", "row"),
)
FIRST_DRAWS = {
    "chat": "6cbb7510e10960439605c4a14a019f69",
    "chat-bursty": "0a515ae792bf1d2c78d3ea37ec29179e",
    "code": "1ee37b47ab290e50523ab27b1e4ef632",
    "long-context": "2c515405866486e5b66d0b82934287f9",
}


@pytest.mark.parametrize("name", FIRST_DRAWS)
def test_a_seed_no_longer_means_what_it_meant(name):
    digest = hashlib.sha256()
    for seed in range(5):
        requests = draw_workload(load_scenario(name), seed)
        for field in FIRST_FIELDS:
            digest.update(np.ascontiguousarray(requests[field]).tobytes())
    assert digest.hexdigest()[:32] == FIRST_DRAWS[name]


@pytest.mark.parametrize("kind", ["poisson", "gamma", "mmpp2"])
def test_drawing_twice_in_one_process_differs_by_kind_of_arrivals(kind):
    scenario = with_changes(Scenario(), {"workload.arrivals": {"kind": kind}})
    requests = draw_workload(scenario, 3)
    assert requests.tobytes() == draw_workload(scenario, 3).tobytes()
    assert (np.diff(requests["arrival_s"]) >= 0).all()
    assert requests["arrival_s"][-1] < scenario.episode.arrivals_s


def test_a_change_of_one_part_changes_another():
    base = Scenario(slo=TWO_CLASSES)
    base = with_changes(base, {"workload.rate_per_s": 3.0})
    requests = draw_workload(base, 5)
    other_output = draw_workload(with_changes(base, {"workload.output": {"kind": "choice"}}), 5)
    for field in ("arrival_s", "prompt_tokens", "slo_class"):
        np.testing.assert_array_equal(requests[field], other_output[field])
    assert (requests["output_tokens"] != other_output["output_tokens"]).any()
    other_prompt = draw_workload(with_changes(base, {"workload.prompt": {"kind": "geometric", "p": 0.01}}), 5)
    for field in ("arrival_s", "output_tokens", "slo_class"):
        np.testing.assert_array_equal(requests[field], other_prompt[field])
    one_class = draw_workload(base.model_copy(update={"slo": SLOSettings()}), 5)
    for field in ("arrival_s", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(requests[field], one_class[field])


def test_a_higher_load_meets_other_requests():
    low = draw_workload(with_changes(Scenario(slo=TWO_CLASSES), {"workload.load": 0.4}), 5)
    high = draw_workload(with_changes(Scenario(slo=TWO_CLASSES), {"workload.load": 0.8}), 5)
    assert high.size > low.size
    for field in ("prompt_tokens", "output_tokens", "slo_class", "weight", "predicted_tokens"):
        np.testing.assert_array_equal(high[field][: low.size], low[field])


def test_streams_of_one_seed_or_of_two_seeds_are_correlated():
    draws = np.array(
        [rng.random(20_000) for seed in (0, 1) for made in (streams, history_streams) for rng in made(seed)]
    )
    correlation = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert abs(correlation).max() < 5 / np.sqrt(20_000)


def test_requests_start_in_the_wrong_state():
    scenario = Scenario(slo=TWO_CLASSES)
    requests = draw_workload(scenario, 1)
    assert (requests["status"] == FUTURE).all()
    for field in ("worker", "client", "session", "first_scheduled_s", "first_token_s", "last_token_s", "finish_s"):
        assert (requests[field] == -1).all(), field
    for field in ("in_batch", "prefill_tokens", "computed_tokens", "emitted_tokens", "blocks", "late_gaps", "credit"):
        assert (requests[field] == 0).all(), field
    for field in ("shared_tokens", "away_tokens", "num_helpers", "hit_tokens", "cached_blocks"):
        assert (requests[field] == 0).all(), field
    for field in ("previous", "home", "next", "before"):
        assert (requests[field] == -1).all(), field
    assert np.isnan(requests["max_tbt_s"]).all()
    assert np.isnan(blank_requests(2)["predicted_tokens"]).all()
    np.testing.assert_array_equal(requests["row"], np.arange(requests.size))
    assert blank_requests(0).shape == (0,)


def test_classes_have_the_wrong_shares_or_targets():
    requests = draw_workload(with_changes(Scenario(slo=TWO_CLASSES), {"workload.rate_per_s": 200.0}), 2)
    chat = requests["slo_class"] == 0
    assert chat.mean() == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / requests.size))
    for rows, ttft, tbt, weight in ((chat, 1.0, 0.1, 2.0), (~chat, 8.0, 0.5, 1.0)):
        assert (requests["ttft_target_s"][rows] == ttft).all()
        assert (requests["tbt_target_s"][rows] == tbt).all()
        assert (requests["weight"][rows] == weight).all()


def test_load_one_is_not_the_rate_that_fills_the_workers():
    """tau = 64 + (150 - 45.5) / 0.3 = 412.33 tokens in 150 ms; 300 + 101 - 1 = 400 tokens of work per request."""
    assert slo_budget(FIXED.system.service, 150.0, 128) == pytest.approx(412 + 1 / 3)
    assert capacity_requests_per_s(FIXED) == pytest.approx((412 + 1 / 3) / 0.150 / 400)
    assert request_rate(FIXED) == pytest.approx(0.8 * capacity_requests_per_s(FIXED))
    three = with_changes(FIXED, {"system.workers": 3})
    assert capacity_requests_per_s(three) == pytest.approx(3 * capacity_requests_per_s(FIXED))


def test_capacity_ignores_the_tightest_class():
    scenario = FIXED.model_copy(update={"slo": TWO_CLASSES})
    tau = 64 + (100 - 45.5) / 0.3
    assert capacity_requests_per_s(scenario) == pytest.approx(tau / 0.1 / 400)


def test_default_scenario_misses_the_capacity_known_from_trials():
    """3.83 requests/s for prompts of median 400 and outputs of mean 128."""
    scenario = with_changes(
        Scenario(), {"workload.output": {"kind": "lognormal", "mu": float(np.log(128) - 0.245), "sigma": 0.7}}
    )
    assert capacity_requests_per_s(scenario) == pytest.approx(3.83, rel=0.01)


def test_a_target_below_the_setup_time_gives_a_batch_of_no_tokens_or_a_load_without_meaning():
    assert slo_budget(ServiceSettings(), 20.0, 128) == 1.0
    impossible = with_changes(FIXED, {"slo.classes": [{"tbt_ms": 20.0}]})
    with pytest.raises(UserError, match="no batch meets a TBT target of 20 ms"):
        capacity_requests_per_s(impossible)


def test_a_service_without_cost_per_token_divides_by_zero():
    service = ServiceSettings(setup_ms=50.0, per_token_ms=0.0)
    assert slo_budget(service, 150.0, 128) == 128.0
    flat = with_changes(FIXED, {"system.service": {"setup_ms": 50.0, "per_token_ms": 0.0}})
    assert capacity_requests_per_s(flat) == pytest.approx(128 / 0.05 / 400)


def test_an_unbounded_capacity_is_no_clear_error():
    service = {"setup_ms": 0.0, "per_token_ms": 1e9, "free_tokens": 8}
    free = with_changes(FIXED, {"system.service": service, "slo.classes": [{"tbt_ms": 1e-9}]})
    with pytest.raises(UserError, match="takes no time"):
        capacity_requests_per_s(free)


def test_a_stated_rate_is_overruled_by_a_load():
    scenario = with_changes(Scenario(), {"workload.rate_per_s": 12.5})
    assert request_rate(scenario) == 12.5
    sizes = [draw_workload(scenario, seed).size for seed in range(40)]
    assert np.mean(sizes) == pytest.approx(1500, abs=5 * np.sqrt(1500 / 40))


def test_long_run_work_is_not_the_load_times_capacity():
    scenario = with_changes(Scenario(), {"episode.arrivals_s": 20_000.0, "episode.horizon_s": 20_000.0})
    requests = draw_workload(scenario, 0)
    tokens = (requests["prompt_tokens"] + requests["output_tokens"] - 1).sum()
    per_token_s = 0.150 / slo_budget(scenario.system.service, 150.0, 128)
    assert tokens * per_token_s / 20_000.0 == pytest.approx(0.8, rel=0.02)


def test_an_episode_without_arrivals_fails():
    quiet = with_changes(Scenario(), {"workload.rate_per_s": 1e-9})
    assert draw_workload(quiet, 0).shape == (0,)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_a_bad_seed_is_no_clear_error(seed):
    with pytest.raises(UserError, match="seed: expected an integer of at least 0"):
        draw_workload(Scenario(), seed)


def test_a_very_large_seed_is_refused():
    assert draw_workload(Scenario(), 2**200).size > 0


def test_a_longer_noise_table_does_not_extend_a_shorter_one():
    whole = draw_noise(seed=3, worker=1, start=0, count=1000)
    assert whole.shape == (1000, 2)
    for cut in (0, 1, 7, 500, 999, 1000):
        parts = draw_noise(3, 1, 0, cut), draw_noise(3, 1, cut, 1000 - cut)
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_noise_is_not_exponential_of_mean_1():
    noise = draw_noise(0, 0, 0, 100_000)
    assert np.isfinite(noise).all()
    assert (noise >= 0).all()
    np.testing.assert_allclose(noise.mean(axis=0), 1.0, atol=5 / np.sqrt(100_000))
    np.testing.assert_allclose(noise.var(axis=0), 1.0, atol=5 * np.sqrt(8 / 100_000))
    assert abs(np.corrcoef(noise.T)[0, 1]) < 5 / np.sqrt(100_000)


FAMILIES = [((GAMMA, 0.35), (LOGNORMAL, 0.5)), ((LOGNORMAL, 1.5), (GAMMA, 1.2)), ((GAMMA, 1.0), (EXPONENTIAL, 0.0))]


@pytest.mark.parametrize("families", FAMILIES)
def test_a_longer_table_of_another_family_does_not_extend_a_shorter_one(families):
    whole = draw_noise(3, 1, 0, 500, *families)
    for cut in (0, 1, 7, 499):
        parts = draw_noise(3, 1, 0, cut, *families), draw_noise(3, 1, cut, 500 - cut, *families)
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("families", FAMILIES)
def test_another_family_has_another_mean_or_cv(families):
    n = 200_000
    noise = draw_noise(0, 0, 0, n, *families)
    for column, (family, cv) in zip(noise.T, families, strict=True):
        cv = cv or 1.0
        assert abs(column.mean() - 1.0) < 4 * cv / np.sqrt(n)
        squares = (column - 1.0) ** 2
        assert abs(squares.mean() - cv**2) < 4 * squares.std() / np.sqrt(n), (family, cv)


def test_another_family_has_the_wrong_distribution():
    uniform = -np.expm1(-draw_noise(0, 0, 0, 1000))  # the same draws, as probabilities
    noise = draw_noise(0, 0, 0, 1000, (GAMMA, 0.5), (LOGNORMAL, 0.5))
    sigma = np.sqrt(np.log(1.25))
    np.testing.assert_allclose(noise[:, 0], stats.gamma.ppf(uniform[:, 0], 4.0, scale=0.25), rtol=1e-9)
    np.testing.assert_allclose(
        noise[:, 1], stats.lognorm.ppf(uniform[:, 1], sigma, scale=np.exp(-(sigma**2) / 2)), rtol=1e-9
    )
    np.testing.assert_allclose(draw_noise(0, 0, 0, 1000, (GAMMA, 1.0))[:, 0], draw_noise(0, 0, 0, 1000)[:, 0])


def test_the_kernel_reads_other_noise_than_the_settings_name():
    service = {
        "setup_noise": "gamma",
        "setup_noise_cv": 0.35,
        "per_token_noise": "lognormal",
        "per_token_noise_cv": 2.0,
    }
    scenario = with_changes(FIXED, {f"system.service.{name}": value for name, value in service.items()})
    states = load(new_states(scenario, 2, 1), 1, blank_requests(1), 7)
    first = states.noise.shape[2]
    states.system["record"] = 0
    states = enlarge(states, np.array([0, 7]))
    expected = draw_noise(7, 0, 0, 2 * first, (GAMMA, 0.35), (LOGNORMAL, 2.0))
    assert states.noise[1, 0].tobytes() == expected.tobytes()


def test_workers_or_seeds_share_their_noise():
    tables = [draw_noise(seed, worker, 0, 5000)[:, 0] for seed in (0, 1) for worker in (0, 1)]
    correlation = np.corrcoef(tables)[np.triu_indices(4, 1)]
    assert abs(correlation).max() < 5 / np.sqrt(5000)


def test_mean_lengths_of_the_workload_are_not_those_of_its_settings():
    settings = GeometricLength(p=0.01)
    scenario = with_changes(
        Scenario(), {"workload.prompt": {"kind": "geometric", "p": 0.01}, "workload.rate_per_s": 500.0}
    )
    drawn = draw_workload(scenario, 0)["prompt_tokens"]
    assert drawn.mean() == pytest.approx(mean_length(settings), abs=5 * drawn.std() / np.sqrt(drawn.size))


# ---- predicted lengths ---------------------------------------------------------------------------------------------
def error_of_prediction(requests: np.ndarray) -> np.ndarray:
    return np.log(requests["predicted_tokens"] / requests["output_tokens"])


def test_a_perfect_predictor_errs():
    requests = draw_workload(with_changes(Scenario(), {"workload.prediction_sigma": 0.0}), 0)
    np.testing.assert_array_equal(requests["predicted_tokens"], requests["output_tokens"])


@pytest.mark.parametrize("sigma", [0.2, 0.5, 2.0])
def test_predictions_err_otherwise_than_said(sigma):
    scenario = with_changes(Scenario(), {"workload.prediction_sigma": sigma, "workload.rate_per_s": 200.0})
    requests = draw_workload(scenario, 3)
    error, n = error_of_prediction(requests), requests.size
    assert error.mean() == pytest.approx(0.0, abs=5 * sigma / np.sqrt(n))
    assert np.median(error) == pytest.approx(0.0, abs=5 * sigma * np.sqrt(np.pi / 2 / n))
    assert error.std() == pytest.approx(sigma, abs=5 * sigma / np.sqrt(2 * n))
    for field in ("prompt_tokens", "output_tokens", "arrival_s"):
        correlation = np.corrcoef(error, np.log1p(requests[field]))[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n), field


def test_predictions_depend_on_other_draws_or_change_them():
    base = with_changes(Scenario(slo=TWO_CLASSES), {"workload.rate_per_s": 5.0})
    requests = draw_workload(base, 4)
    rougher = draw_workload(with_changes(base, {"workload.prediction_sigma": 1.0}), 4)
    np.testing.assert_allclose(error_of_prediction(rougher), 2 * error_of_prediction(requests), atol=1e-12)
    for field in REQUEST.names:
        if field != "predicted_tokens":
            assert requests[field].tobytes() == rougher[field].tobytes(), field
    other = with_changes(base, {"workload.output": {"kind": "choice"}, "workload.clients": {"count": 3}})
    np.testing.assert_allclose(error_of_prediction(draw_workload(other, 4)), error_of_prediction(requests), atol=1e-12)


@pytest.mark.parametrize("sigma", [0.25, 0.5, 1.0])
def test_rank_correlation_of_predictions_is_not_that_of_two_normals(sigma):
    """Kendall's tau of log-normal lengths and errors is 2/pi asin(s / sqrt(s^2 + sigma^2)): Kruskal, JASA 53 (1958)."""
    spread, n = 0.87, 4000
    scenario = with_changes(
        Scenario(),
        {
            "workload.output": LognormalLength(mu=9.0, sigma=spread).model_dump(),  # long, so that few are equal
            "workload.prediction_sigma": sigma,
            "workload.rate_per_s": 40.0,
        },
    )
    requests = draw_workload(scenario, 0)[:n]
    tau = stats.kendalltau(requests["output_tokens"], requests["predicted_tokens"]).statistic
    expected = 2 / np.pi * np.arcsin(spread / np.hypot(spread, sigma))
    assert tau == pytest.approx(expected, abs=5 * np.sqrt(2 * (1 - expected**2) / n))  # Kendall's bound of the variance


def test_rank_correlation_of_the_shipped_scenarios_is_not_as_documented():
    for name, documented in (("chat", 0.67), ("code", 0.61), ("long-context", 0.65)):
        scenario = with_changes(load_scenario(name), {"workload.rate_per_s": 200.0})
        requests = draw_workload(scenario, 1)[:20_000]
        tau = stats.kendalltau(requests["output_tokens"], requests["predicted_tokens"]).statistic
        error = np.sqrt(2 * (1 - documented**2) / requests.size)
        assert tau == pytest.approx(documented, abs=0.005 + 5 * error), name


# ---- declared lengths ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("output", "declared"),
    [
        ({"kind": "fixed", "tokens": 77}, 77),
        ({"kind": "choice", "tokens": [64, 512, 256], "probabilities": [0.5, 0.25, 0.25]}, 512),
        ({"kind": "geometric", "p": 0.01, "max_tokens": 900}, 900),
        ({"kind": "lognormal", "mu": 4.0, "sigma": 0.5, "max_tokens": 300}, 300),
        ({"kind": "lognormal-mixture", "w": [1.0], "mu": [4.0], "sigma": [0.5], "max_tokens": 301}, 301),
        ({"kind": "uniform", "max_tokens": 40}, 40),
        ({"kind": "quantiles", "tokens": [5, 5, 90]}, 90),
        ({"kind": "zipf", "max_tokens": 200}, 200),
    ],
)
def test_clients_do_not_allow_the_longest_output_by_default(output, declared):
    requests = draw_workload(with_changes(Scenario(), {"workload.output": output}), 0)
    assert (requests["declared_tokens"] == declared).all()
    assert (requests["output_tokens"] <= declared).all()


def test_a_declared_length_cuts_an_output_or_is_not_used():
    requests = draw_workload(with_changes(Scenario(), {"workload.declared_tokens": 100}), 0)
    np.testing.assert_array_equal(requests["declared_tokens"], np.maximum(100, requests["output_tokens"]))
    np.testing.assert_array_equal(requests["output_tokens"], draw_workload(Scenario(), 0)["output_tokens"])
    assert set((requests["declared_tokens"] == 100).tolist()) == {False, True}


# ---- clients -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("skew", [0.0, 1.0, 2.5])
def test_clients_have_the_wrong_shares(skew):
    changes = {"workload.clients": {"count": 6, "skew": skew}, "workload.rate_per_s": 300.0}
    requests = draw_workload(with_changes(Scenario(), changes), 0)
    weights = np.arange(1, 7) ** -skew
    counts = np.bincount(requests["client"], minlength=6)
    assert counts.size == 6
    np.testing.assert_allclose(
        counts / requests.size, weights / weights.sum(), atol=5 * np.sqrt(0.25 / requests.size), rtol=0
    )
    plain = draw_workload(with_changes(Scenario(), {"workload.rate_per_s": 300.0}), 0)
    assert (plain["client"] == -1).all()
    plain["client"] = requests["client"]
    assert plain.tobytes() == requests.tobytes()


# ---- unequal workers -----------------------------------------------------------------------------------------------
def test_load_one_is_not_the_sum_over_unequal_workers():
    """S(b) = 45.5 + 0.3 (b - 64). Speed 2: 300 ms of work in 150, tau = 64 + 254.5 / 0.3; speed 0.5: 75 ms."""
    unequal = with_changes(FIXED, {"system.workers": 3, "system.speeds": [1.0, 2.0, 0.5]})
    taus = [64 + (target - 45.5) / 0.3 for target in (150.0, 300.0, 75.0)]
    assert [slo_budget(FIXED.system.service, 150.0, 128, s) for s in (1.0, 2.0, 0.5)] == pytest.approx(taus)
    assert capacity_tokens_per_s(unequal) == pytest.approx(sum(taus) / 0.150)
    assert capacity_requests_per_s(unequal) == pytest.approx(sum(taus) / 0.150 / 400)


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_equal_speeds_of_one_change_the_capacity(workers):
    plain = with_changes(FIXED, {"system.workers": workers})
    assert capacity_tokens_per_s(with_changes(plain, {"system.speeds": [1.0] * workers})) == capacity_tokens_per_s(
        plain
    )


def test_the_layout_changes_the_capacity():
    plain = with_changes(FIXED, {"system.workers": 4})
    for layout in (
        {"system.layout": "disaggregated", "system.prefill_workers": 1},
        {"system.layout": "parallel-prefill"},
    ):
        assert capacity_tokens_per_s(with_changes(plain, layout)) == capacity_tokens_per_s(plain)


def test_a_worker_that_never_meets_the_target_counts():
    """Below speed 45.5 / 150 even the smallest batch takes longer than the target."""
    one_fast = with_changes(FIXED, {"system.workers": 3, "system.speeds": [0.3, 1.0, 0.1]})
    assert capacity_tokens_per_s(one_fast) == capacity_tokens_per_s(FIXED)
    all_slow = with_changes(FIXED, {"system.workers": 2, "system.speeds": [0.1, 0.25]})
    with pytest.raises(UserError, match="no batch meets a TBT target of 150 ms, the smallest takes 182 ms"):
        capacity_tokens_per_s(all_slow)
