"""Pictures of how traffic is distributed: lengths, gaps between arrivals, dispersion, prompt against output.

Each function draws one figure whose title states the finding, or says in a text why there is nothing to draw.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from llm_env.config import Length
from llm_env.plotting import COLOURS, DARK_GREY, GREY, figure_text, pyplot, titled
from llm_env.workload.fit_lengths import fit_lognormal
from llm_env.workload.lengths import length_cdf
from llm_env.workload.statistics import dispersion, ks_distance, window_counts
from llm_env.workload.summary import LengthFigures, TrafficSummary
from llm_env.workload.traffic import Traffic

PROMPT, OUTPUT = COLOURS[0], COLOURS[1]  # in every picture of traffic
MAX_POINTS = 200_000  # requests in the picture of prompt against output: every k-th of more
_BINS = 60
_MAX_WINDOWS = 2_000_000  # of the finest width at which dispersion is drawn
_FEWEST = 20  # requests of which dispersion says anything
_NOTABLE = 0.1  # off Poisson's dispersion of 1: less is no burstiness, however sure it is


# ---- lengths -------------------------------------------------------------------------------------------------------
def draw_lengths_picture(
    traffic: Traffic, summary: TrafficSummary, prompt_fit: Length | None = None, output_fit: Length | None = None
) -> Any:
    """Histograms of prompt and output lengths on a log axis with a distribution over each.

    Args:
        traffic: at least one request.
        summary: of it.
        prompt_fit: drawn over the prompts; by default the log-normal with their mean and deviation of the logarithm.
        output_fit: the same of the outputs.
    """
    fig, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    _draw_lengths(left, traffic.prompt_tokens, summary.prompt, PROMPT, prompt_fit, "prompt")
    _draw_lengths(right, traffic.output_tokens, summary.output, OUTPUT, output_fit, "output")
    left.set_ylabel("share of requests per doubling of the length")
    ratio = summary.prompt.mean / summary.output.mean
    finding = (
        f"Prompts are {figure_text(ratio)} times as long as outputs"
        if ratio >= 1
        else f"Outputs are {figure_text(1 / ratio)} times as long as prompts"
    )
    means = f"{figure_text(summary.prompt.mean)} against {figure_text(summary.output.mean)} tokens on average"
    fig.suptitle(f"{finding}: {means if ratio >= 1 else _swapped(means)}", x=0.01, ha="left", fontsize=12)
    return fig


def _swapped(means: str) -> str:
    first, _, rest = means.partition(" against ")
    second, _, unit = rest.partition(" ")
    return f"{second} against {first} {unit}"


def _draw_lengths(
    ax: Any, tokens: np.ndarray, figures: LengthFigures, colour: str, fit: Length | None, what: str
) -> None:
    least, most = int(tokens.min()), figures.max
    edges = np.unique(np.rint(np.geomspace(least, most + 1, _BINS + 1))) - 0.5  # between lengths, never on one
    doublings = np.log2(edges[1:] / edges[:-1])
    shares = np.histogram(tokens, edges)[0] / tokens.size
    ax.stairs(shares / doublings, edges, fill=True, color=colour, alpha=0.55, label=f"{what}s")
    margin = 2.0 if most < 2 * least else 1.1
    ax.set_xscale("log")
    ax.set_xlim(least / margin, most * margin)
    plain_log_axis(ax.xaxis)
    ax.set_xlabel(f"{what} length (tokens)")
    if least == most:
        ax.set_yticks([])
        ax.set_title(f"Every {what} has {most:,} token{'s' if most > 1 else ''}", fontsize=10)
        return
    median, high = (figure_text(value) for value in (figures.p50, figures.p99))
    ax.set_title(f"{what.capitalize()}s: median {median}, 99 % up to {high}, longest {figure_text(most)}", fontsize=10)
    name = "fitted distribution" if fit is not None else "log-normal of the same log-mean and deviation"
    below = length_cdf(fit or fit_lognormal(tokens))
    distance = ks_distance(tokens, below)
    steps = np.diff(below(edges))
    label = f"{name}\n(Kolmogorov-Smirnov distance {distance:.2f})"
    ax.plot(np.sqrt(edges[1:] * edges[:-1]), steps / doublings, color="black", lw=1.4, label=label)
    ax.set_ylim(0, 1.3 * float((shares / doublings).max()))
    ax.legend(loc="upper left", fontsize=8.5)


def plain_log_axis(axis: Any) -> None:
    """Ticks of a log axis as plain numbers, 100 or 10,000, and not as powers. Its limits must be set by now."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 100 * low:  # powers of ten alone would be one or two ticks
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9f}".rstrip("0").rstrip(".")))
    axis.set_minor_formatter(NullFormatter())


# ---- gaps ----------------------------------------------------------------------------------------------------------
def draw_interarrivals(traffic: Traffic, summary: TrafficSummary) -> Any:
    """Share of the gaps between arrivals that are longer than x, against Poisson arrivals of the same rate."""
    if summary.span_s <= 0:
        return "fewer than two moments of arrival, so there are no gaps"
    gaps_s = np.sort(np.diff(traffic.arrival_s))
    mean_s, n = 1.0 / summary.requests_per_s, gaps_s.size
    low = min(max(float(gaps_s[gaps_s > 0][0]), mean_s / 1e3), mean_s / 30)
    x = np.geomspace(low / 1.2, 1.05 * max(gaps_s[-1], mean_s * math.log(n + 1)), 600)
    above = 1.0 - np.searchsorted(gaps_s, x, side="right") / n
    fig, ax = pyplot().subplots(figsize=(8.6, 4.6), layout="constrained")
    ax.plot(x, np.exp(-x / mean_s), color=GREY, lw=2.2, label="Poisson of the same rate")
    ax.step(x, np.where(above > 0, above, np.nan), where="post", color=COLOURS[0], lw=1.8, label="this traffic")
    ax.axvline(mean_s, color=DARK_GREY, ls="--", lw=1, label=f"mean gap, {_seconds(mean_s)}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(min(0.1, 0.5 / n), 1.6)
    ax.set_xlim(x[0], x[-1])
    plain_log_axis(ax.xaxis)
    ax.set_xlabel("gap x between an arrival and the next (s)")
    ax.set_ylabel("share of gaps longer than x")
    ax.legend(loc="lower left")
    cv = summary.interarrival_cv
    if math.isnan(cv):
        finding = f"One gap only, of {_seconds(mean_s)}"
    else:
        finding = f"{_compared(cv)} (coefficient of variation {cv:.2f}); longest silence {_seconds(gaps_s[-1])}"
    ax.set_title(titled(finding + _about_ticks(summary)))
    return fig


def _compared(cv: float) -> str:
    if 0.9 <= cv <= 1.1:
        return "Gaps vary about as much as Poisson's"
    return "Gaps vary more than Poisson's" if cv > 1.1 else "Gaps are more even than Poisson's"


def _seconds(value: float) -> str:
    if value < 0.01:
        return f"{figure_text(1e3 * value)} ms"
    return f"{figure_text(value)} s" if value < 600 else f"{figure_text(value / 60)} min"


def _about_ticks(summary: TrafficSummary) -> str:
    if summary.tick_s is None:
        return ""
    share, tick = round(100 * summary.same_instant_share), _seconds(summary.tick_s)
    return (
        f". Beware: {share} % of the requests share their instant with another, as with a clock that ticks every {tick}"
    )


# ---- dispersion ----------------------------------------------------------------------------------------------------
def draw_dispersion(traffic: Traffic, summary: TrafficSummary) -> Any:
    """Index of dispersion of the arrivals in windows against their width, Poisson's being 1.

    The band holds 95 % of what Poisson arrivals would give by chance: with N windows the index times N - 1 is about
    chi-squared with N - 1 degrees of freedom.

    Source: Cox and Lewis, The Statistical Analysis of Series of Events (1966), section 6.3 (dispersion test).
    """
    from scipy.special import gammaincinv  # here, because scipy takes long to import

    low_s, high_s = max(0.1, summary.span_s / _MAX_WINDOWS), summary.span_s / 10
    if traffic.size < _FEWEST:
        return f"fewer than {_FEWEST} requests, of which dispersion says nothing"
    if not high_s >= 2 * low_s:
        return f"the traffic spans {figure_text(summary.span_s)} s, too short for windows of several widths"
    width_s = np.geomspace(low_s, high_s, max(5, 1 + int(8 * math.log10(high_s / low_s))))
    first_s, last_s = float(traffic.arrival_s[0]), float(traffic.arrival_s[-1])
    counts = [window_counts(traffic.arrival_s, width, first_s, last_s) for width in width_s]
    index = np.array([dispersion(c) for c in counts])
    half_freedom = (np.array([c.size for c in counts]) - 1) / 2.0
    lower, upper = (gammaincinv(half_freedom, p) / half_freedom for p in (0.025, 0.975))

    fig, ax = pyplot().subplots(figsize=(8.6, 4.6), layout="constrained")
    ax.fill_between(width_s, lower, upper, color="#DDDDDD", label="95 % of Poisson arrivals")
    ax.axhline(1, color=DARK_GREY, ls="--", lw=1, label="Poisson, 1")
    ax.plot(width_s, np.maximum(index, 1e-3), color=COLOURS[0], marker="o", ms=4, lw=1.6, label="this traffic")
    ax.set_xscale("log")
    ax.set_yscale("log")
    bottom, top = min(0.5, float(lower.min()), float(index.min())), max(3.0, float(upper.max()), float(index.max()))
    ax.set_ylim(max(bottom, 1e-3) / 1.3, top * 1.5)
    for axis in (ax.xaxis, ax.yaxis):
        plain_log_axis(axis)
    ax.set_xlabel("width of the windows (s)")
    ax.set_ylabel("variance / mean of arrivals per window")
    ax.legend(loc="best")
    known = [(f"{s:g} s", getattr(summary, f"dispersion_{s:g}s")) for s in (1.0, 60.0)]
    known = [(scale, value) for scale, value in known if not math.isnan(value)] or [(_seconds(width_s[-1]), index[-1])]
    (scale, value), *more = known
    numbers = f"{figure_text(value)}x Poisson's variance at {scale}"
    numbers += "".join(f", {figure_text(other)}x at {at}" for at, other in more)
    ax.set_title(titled(f"{verdict(width_s, index, lower, upper)}: {numbers}{_about_ticks(summary)}"))
    return fig


def verdict(width_s: np.ndarray, index: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> str:
    """What a curve of dispersion says against its band, in a few words; one point in ten may lie elsewhere.

    What is within a tenth of 1 counts as Poisson, also where the band is narrower.

    Args:
        width_s: (k,) ascending.
        index: (k,) the curve.
        lower: (k,) of the band.
        upper: (k,)
    """
    above, below = index > np.maximum(upper, 1 + _NOTABLE), index < np.minimum(lower, 1 - _NOTABLE)
    if above.mean() >= 0.9:
        return "Bursty at every scale"
    if below.mean() >= 0.9:
        return "More even than Poisson at every scale"
    if (above | below).mean() <= 0.1:
        return "Like Poisson at every scale"
    rest = np.array([above[k:].mean() for k in range(above.size)])
    from_here = np.flatnonzero(above & (rest >= 0.9))
    if from_here.size and from_here[0] < 0.8 * above.size:
        return f"Bursty at scales from about {_seconds(float(f'{width_s[from_here[0]]:.1g}'))} on"
    return "Bursty at some scales only" if above.any() else "More even than Poisson at some scales"


# ---- prompt against output -----------------------------------------------------------------------------------------
def draw_prompt_output(traffic: Traffic, summary: TrafficSummary) -> Any:
    """How many requests have which prompt and output, and the median output of each tenth of the prompts."""
    from matplotlib.colors import ListedColormap, LogNorm

    which = slice(None, None, -(-traffic.size // MAX_POINTS))
    prompt, output = traffic.prompt_tokens[which], traffic.output_tokens[which]
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(7.6, 5), layout="constrained")
    extent = (*_log_bounds(prompt), *_log_bounds(output))
    colours = ListedColormap(plt.get_cmap("Blues")(np.linspace(0.25, 1, 256)))  # one request must be seen on white
    style = {"gridsize": (50, 32), "mincnt": 1, "linewidths": 0.1, "edgecolors": "face"}
    scales = {"xscale": "log", "yscale": "log", "extent": extent}
    cells = ax.hexbin(prompt, output, norm=LogNorm(vmin=1), cmap=colours, **style, **scales)
    ax.set_xlim(10 ** extent[0], 10 ** extent[1])
    ax.set_ylim(10 ** extent[2], 10 ** extent[3])
    medians = _medians(prompt, output)
    if len(medians):
        style = {"color": OUTPUT, "marker": "o", "ms": 5, "lw": 1.6, "label": "median of each tenth of the prompts"}
        ax.plot(*medians.T, **style)
        ax.legend(loc="lower left", frameon=True, framealpha=0.8, edgecolor="none")
    ax.set_xlabel("prompt length (tokens)")
    ax.set_ylabel("output length (tokens)")
    shown = "" if prompt.size == traffic.size else f" (of {prompt.size:,} of {traffic.size:,})"
    bar = fig.colorbar(cells, ax=ax, label=f"requests per cell{shown}")
    for axis in (ax.xaxis, ax.yaxis, bar.ax.yaxis):
        plain_log_axis(axis)
    ax.set_title(titled(_dependence(summary, medians), 84))
    return fig


def _medians(prompt: np.ndarray, output: np.ndarray) -> np.ndarray:
    """(k, 2): median prompt and output of each tenth of the prompts, fewer where prompts are equal; k may be 0."""
    cuts = np.unique(np.quantile(prompt, np.linspace(0, 1, 11)))
    if cuts.size < 3 or prompt.size < 100:
        return np.empty((0, 2))
    group = np.minimum(np.searchsorted(cuts, prompt, side="right") - 1, cuts.size - 2)
    return np.array([(np.median(prompt[group == k]), np.median(output[group == k])) for k in np.unique(group)])


def _log_bounds(tokens: np.ndarray) -> tuple[float, float]:
    """Ends of an axis as powers of ten: a little wider than the lengths, and never a single point."""
    low, high = math.log10(tokens.min()), math.log10(tokens.max())
    margin = max(0.03 * (high - low), 0.3 * (high - low < 0.1))
    return low - margin, high + margin


def _dependence(summary: TrafficSummary, medians: np.ndarray) -> str:
    rank = summary.rank_correlation
    if math.isnan(rank):
        return "Prompt or output is always the same: there is nothing to correlate"
    words = f"rank correlation {round(rank, 2) + 0.0:+.2f}"  # + 0.0: no -0.00
    if abs(rank) >= 0.1:
        return f"Longer prompts have {'longer' if rank > 0 else 'shorter'} outputs: {words}"
    low, high = (medians[:, 1].min(), medians[:, 1].max()) if len(medians) else (1.0, 1.0)
    if high >= 2 * low:  # a rank correlation of 0 is not independence
        spread = f"medians of {figure_text(low)} to {figure_text(high)} tokens"
        return f"Outputs depend on the prompt, but neither rise nor fall with it: {words}, {spread}"
    return f"Outputs hardly depend on the length of the prompt: {words}"
