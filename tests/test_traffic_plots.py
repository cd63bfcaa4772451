"""Pictures of traffic: every one is written, the same each time, says what was computed, and survives odd traffic."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llm_env.config import FixedLength
from llm_env.plotting import figure_text
from llm_env.traffic_plots import PICTURES, SUFFIXES, duration_text, plot_traffic, time_unit
from llm_env.traffic_shape_plots import draw_dispersion, draw_interarrivals, draw_lengths_picture, verdict
from llm_env.workload.statistics import dispersion, window_counts
from llm_env.workload.summary import summarise_traffic
from llm_env.workload.traffic import Traffic


def make(arrival_s, prompt, output) -> Traffic:
    n = len(arrival_s)
    prompt, output = (np.broadcast_to(np.asarray(tokens, np.int32), n) for tokens in (prompt, output))
    return Traffic(np.asarray(arrival_s, float), prompt, output)


def bursty(n: int = 3000) -> Traffic:
    rng = np.random.default_rng(5)
    centres = np.repeat(rng.uniform(0, 1800, n // 20), 20)
    lengths = rng.lognormal(5, 1, (2, n)).astype(np.int32) + 1
    return make(np.sort(centres + rng.uniform(0, 2, n)), *lengths)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    assert plot_traffic(bursty(), folder) == {}
    return folder


def text_of(folder, name: str) -> str:
    """All text in a picture."""
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    return " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg)).replace("\u00a0", " ")


def test_a_picture_is_missing_or_empty(drawn):
    names = sorted(f"{name}{suffix}" for name in PICTURES for suffix in SUFFIXES)
    assert sorted(path.name for path in drawn.iterdir()) == names
    assert all(path.stat().st_size > 5000 for path in drawn.iterdir())
    assert all((drawn / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in PICTURES)


def test_the_same_traffic_gives_other_bytes(drawn, tmp_path):
    plot_traffic(bursty(), tmp_path)
    for path in drawn.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_title_says_another_number_than_was_computed(drawn):
    traffic = bursty()
    summary = summarise_traffic(traffic)
    first, last = traffic.arrival_s[[0, -1]]
    at_1, at_60 = (figure_text(dispersion(window_counts(traffic.arrival_s, s, first, last))) for s in (1.0, 60.0))
    assert f"Bursty at every scale: {at_1}x Poisson's variance at 1 s, {at_60}x at 60 s" in text_of(drawn, "dispersion")
    assert f"(coefficient of variation {summary.interarrival_cv:.2f})" in text_of(drawn, "interarrivals")
    assert f"rank correlation {summary.rank_correlation:+.2f}" in text_of(drawn, "prompt_output")
    assert f"{100 * summary.prefill_share:.0f} % of the tokens are prompt" in text_of(drawn, "tokens_per_minute")
    minutes = np.histogram(traffic.arrival_s - first, np.arange(0, 60 * (int((last - first) / 60) + 1), 60))[0]
    finding = f"{figure_text(minutes.mean())} a minute on average, {minutes.max()} in the busiest"
    assert finding in text_of(drawn, "requests_per_minute")
    windows = [int(((traffic.arrival_s >= t) & (traffic.arrival_s < t + 60)).sum()) for t in traffic.arrival_s]
    assert f"The busiest 60 s bring {max(windows)} requests" in text_of(drawn, "burst")
    fives = np.histogram(traffic.arrival_s - first, np.arange(0, int((last - first) / 5) + 1) * 5)[0]
    assert f"bring {fives.max()} requests" in text_of(drawn, "hours")
    median = figure_text(float(np.median(traffic.output_tokens)))
    assert f"Outputs: median {median}," in text_of(drawn, "lengths")


@pytest.mark.parametrize(
    ("traffic", "absent"),
    [
        (make([5.0], 10, 3), {"interarrivals", "dispersion", "hours"}),
        (make([5.0, 7.0], [10, 20], [3, 1]), {"dispersion", "hours"}),
        (make(np.full(50, 3.0), 7, np.arange(1, 51)), {"interarrivals", "dispersion", "hours"}),
        (make(np.r_[np.arange(100) * 0.5, 3700 + np.arange(100) * 0.5], 128, 1), set()),
        (make(np.arange(60) * 3e3, np.arange(1, 61), 1_048_576), set()),
    ],
    ids=["one request", "two requests", "one instant", "an hour of silence and constant lengths", "two days"],
)
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_odd_traffic_breaks_a_picture(tmp_path, traffic, absent):
    left_out = plot_traffic(traffic, tmp_path)
    assert set(left_out) == absent
    assert {path.stem for path in tmp_path.iterdir()} == set(PICTURES) - absent


def test_a_fitted_distribution_is_not_the_one_drawn():
    traffic = make(np.arange(100.0), [5] * 50 + [9] * 50, [4] * 99 + [8])
    figure = draw_lengths_picture(traffic, summarise_traffic(traffic), prompt_fit=FixedLength(tokens=9))
    left, right = ([text.get_text() for text in ax.get_legend().get_texts()][1] for ax in figure.axes)
    assert left == "fitted distribution\n(Kolmogorov-Smirnov distance 0.50)"  # half of the prompts are below 9
    assert right.startswith("log-normal")


def test_a_clock_that_ticks_goes_unsaid():
    traffic = make(np.repeat(np.arange(60) * 3.0, 5), 100, 10)
    for draw in (draw_interarrivals, draw_dispersion):
        title = draw(traffic, summarise_traffic(traffic)).axes[0].get_title(loc="left")
        assert "Beware: 100 % of the requests share their instant" in " ".join(title.split())


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([1, 1, 1, 1, 1], "Like Poisson at every scale"),
        ([1.05, 1.05, 1.05, 1.05, 1.05], "Like Poisson at every scale"),
        ([1, 1, 3, 3, 3], "Bursty at scales from about 10 s on"),
        ([2, 3, 4, 5, 6], "Bursty at every scale"),
        ([0.1] * 5, "More even than Poisson at every scale"),
        ([3, 3, 1, 1, 1], "Bursty at some scales only"),
        ([0.5, 0.5, 1, 1, 1], "More even than Poisson at some scales"),
    ],
)
def test_a_curve_of_dispersion_is_misjudged(index, words):
    width_s = np.array([0.1, 1, 10, 100, 1000])
    assert verdict(width_s, np.array(index, float), np.full(5, 0.97), np.full(5, 1.03)) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (13.46, "13.5"),
        (173.2, "173"),
        (999.7, "1,000"),
        (1155.4, "1,155"),
        (18_650, "18.6k"),
        (401_234, "401k"),
        (999_700, "1M"),
        (2_345_678, "2.35M"),
    ],
)
def test_a_number_of_a_title_is_long_or_wrong(value, text):
    assert figure_text(value) == text


def test_a_time_axis_has_an_unreadable_unit():
    assert time_unit(100) == (1, "s")
    assert time_unit(3600) == (60, "minutes")
    assert duration_text(86_400) == "24 hours"
    assert duration_text(864_000) == "10 days"
