"""The closed forms of burstiness, against each other and against what is drawn."""

from __future__ import annotations

import math

import pytest
from arrival_cases import WITHOUT_CLIENTS, counts

from llm_env.config import (
    ArrivalPart,
    ClientArrivals,
    CoxArrivals,
    FlashCrowdArrivals,
    GammaArrivals,
    MMPP2Arrivals,
    MMPPArrivals,
    OnOffArrivals,
    PoissonArrivals,
    ProfileArrivals,
    SuperposedArrivals,
    WeibullArrivals,
)
from llm_env.workload.arrival_theory import expected_dispersion

SCALES_S = (0.3, 3.0, 30.0)
SMALL_BURSTS = OnOffArrivals(burst_requests=2.0, burst_sigma=0.5, gap_cv=2.0, off_share=0.2, off_sigma=0.3)
FINITE = {
    **{name: WITHOUT_CLIENTS[name] for name in ("poisson", "gamma", "mmpp2", "mmpp", "mmpp, any order", "cox")},
    "regular": GammaArrivals(cv=0.3),
    "fast cox": CoxArrivals(sigma=1.0, tau_s=1.0),
    "both": SuperposedArrivals(
        parts=(
            ArrivalPart(share=0.4, arrivals=GammaArrivals(cv=3.0)),
            ArrivalPart(share=0.6, arrivals=MMPP2Arrivals(cycle_s=5.0)),
        )
    ),
}
LIMITS = {
    "weibull": WeibullArrivals(cv=2.0),
    "on-off": SMALL_BURSTS,
    "on-off, sizes differ most": OnOffArrivals(burst_requests=5.0, burst_sigma=0.8, gap_cv=0.2, off_sigma=0.1),
    "crowds": FlashCrowdArrivals(every_s=6.0, duration_s=(1.0, 4.0), multipliers=(2.0, 6.0)),
    "crowds of bursts": FlashCrowdArrivals(every_s=6.0, duration_s=(1.0, 4.0), base=SMALL_BURSTS),
    "cox of gamma": CoxArrivals(sigma=0.5, tau_s=4.0, cv=2.0),
}


def assert_dispersion(n, mean, expected, bias=0.0):
    """The mean of n squared deviations has their standard deviation / sqrt(n)."""
    spread = (n - mean) ** 2
    error = 5 * spread.std() / math.sqrt(n.size) / mean
    assert spread.mean() / mean == pytest.approx(expected, abs=error + bias * expected)


@pytest.mark.parametrize("name", FINITE)
def test_counts_are_not_as_dispersed_as_theory_says(name):
    windows = [(0.0, width) for width in SCALES_S]
    drawn = counts(FINITE[name], 4.0, SCALES_S[-1], 1500, windows)
    for width, n in zip(SCALES_S, drawn, strict=True):
        assert_dispersion(n, 4.0 * width, expected_dispersion(FINITE[name], 4.0, width))


@pytest.mark.parametrize("name", LIMITS)
def test_counts_over_long_times_are_not_as_dispersed_as_the_limit(name):
    """The limit is approached as 1 / width; 2,000 s is at least 200 times what these processes remember."""
    assert expected_dispersion(LIMITS[name], 4.0, 2000.0) is None
    (n,) = counts(LIMITS[name], 4.0, 2000.0, 600, [(0.0, 2000.0)])
    assert_dispersion(n, 8000.0, expected_dispersion(LIMITS[name], 4.0, math.inf), bias=0.01)


@pytest.mark.parametrize("name", FINITE)
def test_long_and_short_windows_are_not_those_of_the_limits(name):
    """A very short window holds one arrival or none, so 1; a very long one has the limit, which is found another way.

    Only with gamma times of cv 3 arrivals still come together in any short time: their density at 0 is infinite.
    """
    process = FINITE[name]
    limit = expected_dispersion(process, 4.0, math.inf)
    if name not in ("gamma", "both"):
        assert expected_dispersion(process, 4.0, 1e-7) == pytest.approx(1.0, abs=1e-4)
    assert expected_dispersion(process, 4.0, 1e7) == pytest.approx(limit, rel=1e-4)


def test_two_states_are_not_two_of_n():
    two = MMPP2Arrivals(rate_ratio=5.0, busy_share=0.3, cycle_s=20.0)
    n = MMPPArrivals(rates=(2.0, 10.0), dwell_s=(14.0, 6.0))
    for width in (0.01, 1.0, 50.0, 1e4, math.inf):
        expected = expected_dispersion(two, 3.0, width)
        assert expected_dispersion(n, 3.0, width) == pytest.approx(expected, rel=1e-9)
    # Fischer and Meier-Hellstern (1993), section 2: 1 + 2 (r1 - r2)^2 p (1 - p) / ((a + b) * mean) at the limit
    quiet, busy = 3.0 / 2.2, 15.0 / 2.2
    limit = 1 + 2 * (busy - quiet) ** 2 * 0.3 * 0.7 / ((1 / 14 + 1 / 6) * 3.0)
    assert expected_dispersion(two, 3.0, math.inf) == pytest.approx(limit)


def test_a_gamma_process_is_not_its_hand_computed_self():
    """cv 1 is Poisson. With cv^2 = 1/2 every second arrival of a Poisson process of twice the rate counts: the variance
    is m / 2 + 1/8 - exp(-4 m) / 8 for a mean of m (Cox 1962, section 4.5: sum out the parity of a Poisson count)."""
    for m in (0.1, 1.0, 7.0, 300.0):
        assert expected_dispersion(GammaArrivals(cv=1.0), 1.0, m) == pytest.approx(1.0, abs=1e-9)
        found = expected_dispersion(GammaArrivals(cv=math.sqrt(0.5)), 1.0, m)
        assert found == pytest.approx(0.5 + (1 - math.exp(-4 * m)) / (8 * m), abs=1e-9)


def test_the_expansion_of_a_gamma_process_does_not_join_the_sum():
    for cv in (0.4, 2.0, 6.0):
        below, above = (expected_dispersion(GammaArrivals(cv=cv), 1.0, width) for width in (9_999.0, 10_001.0))
        assert above == pytest.approx(below, rel=1e-6)


def test_a_cox_process_is_not_the_integral_of_its_covariance():
    from scipy.integrate import quad

    for sigma, tau, width in ((0.5, 60.0, 1e-3), (0.5, 60.0, 10.0), (2.0, 3.0, 100.0), (3.0, 1.0, 5.0)):
        found = expected_dispersion(CoxArrivals(sigma=sigma, tau_s=tau), 4.0, width)

        def covariance(u, s=sigma, t=tau, w=width):
            return (w - u) * math.expm1(s**2 * math.exp(-u / t))

        integral = quad(covariance, 0.0, width, points=[min(width, tau) / 10], limit=200)[0]
        assert found == pytest.approx(1 + 8.0 / width * integral, rel=1e-8)


@pytest.mark.parametrize(
    "process",
    [
        ProfileArrivals(multipliers=(1.0, 2.0)),
        ClientArrivals(),
        FlashCrowdArrivals(base=CoxArrivals()),
        SuperposedArrivals(parts=(ArrivalPart(share=1.0, arrivals=ProfileArrivals(multipliers=(1.0,))),)),
    ],
)
def test_what_has_no_closed_form_is_given_one(process):
    assert expected_dispersion(process, 1.0, math.inf) is None


def test_poisson_is_not_1():
    assert expected_dispersion(PoissonArrivals(), 2.0, 3.0) == 1.0
