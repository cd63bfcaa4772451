"""docs/benchmark.md from saved results: tables of each family, a summary, and sentences made from the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.family_results import NUM_LENGTHS, Kind, Result
from llm_env.metrics import Interval, mean_ci
from llm_env.statistics import Comparison, Estimate, compare, improvement_interval, iqm_interval, sign_flip_test

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmark.md"
CLEAR_LOSS = 0.003  # of attainment: more than this below the strongest reference is told even if it may be chance
DASH = "-"

INTRODUCTION = """# Benchmark

Made from saved results (`benchmarks/results/families`) by `python -m benchmarks.families --page-only`; without
`--page-only` it first runs what is missing. Families are described in [families.md](families.md), how the baselines
were tuned in [tuning.md](tuning.md).

Every contender meets the same requests and the same noise on seeds from 2,000,000 on, which nobody trained or tuned on.
A workload's score is the mean over the family's loads of the attainment by SLO weight, in percent here. Policies named
`NAME@tuned` have the parameters that tuning found for the family, the others their defaults. **References** are
strong rules made by hand; **literature** is what engines ship and papers propose.

- **±** is half a 95 % t-interval over workloads; differences are paired by workload, in points. An agent that was
  trained several times is averaged over its trainings there.
- **IQM** is the interquartile mean over trainings and workloads, with a 95 % bootstrap interval that resamples both
  (Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", NeurIPS 2021).
- **P(better)** is the probability that a training of the agent beats the strongest reference on a workload, with such
  an interval too.
- **By length** is the share of requests that met their SLO in each quarter of the prompts, shortest first: starvation
  of long prompts shows there. **p99 TTFT** is the mean over workloads and loads, in seconds.
- **Of bound** is the share of what no policy can pass (`llm_env/bounds.py`); there is none where service times are
  noisy. **Gap closed** is the share of the way from the strongest reference to a planner that sees the future, on the
  workloads that the planner met: the first of the others', for it takes seconds for each.
- The strongest reference and the strongest literature scheduler of a family are chosen on these same workloads, which
  favours them a little.
"""


def page(results: Sequence[Result]) -> str:
    """The whole page. Args: results: families together, in the order in which they are to appear."""
    families = list(dict.fromkeys(result.family for result in results))
    tables = [FamilyTable([result for result in results if result.family == family]) for family in families]
    tables = [table for table in tables if table.rivals]
    parts = [INTRODUCTION, "## Summary\n", _summary(tables), _sentences(tables)]
    for table in tables:
        parts += [f"## {table.family}\n", table.text()]
    return "\n".join(parts).rstrip() + "\n"


class FamilyTable:
    """The results of one family, compared.

    Args:
        results: of one family.

    Attributes:
        reference, literature: the strongest of their kind; None if there is none.
        agents: best first.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self.family = results[0].family
        tuned = {r.label.removesuffix("@tuned") for r in results if r.label.endswith("@tuned")}
        results = [r for r in results if r.label not in tuned]  # saved before they were tuned
        self.rivals = sorted(
            (r for r in results if r.kind in ("agent", "reference", "literature")), key=lambda r: (-r.mean, r.label)
        )
        self.agents = self._of("agent")
        self.reference = next(iter(self._of("reference")), None)
        self.literature = next(iter(self._of("literature")), None)
        self.bound = next((r for r in results if r.kind == "bound"), None)
        self.clairvoyant = next((r for r in results if r.kind == "clairvoyant"), None)

    def _of(self, kind: Kind) -> list[Result]:
        return [r for r in self.rivals if r.kind == kind]

    def versus(self, result: Result, other: Result | None) -> Comparison | None:
        """The paired comparison of two results on the workloads that both met; None with itself or nobody."""
        if other is None or other is result:
            return None
        return compare(*_paired(result, other))

    def gap_closed(self, result: Result) -> float:
        """Share of the way from the strongest reference to the clairvoyant planner; NaN if that is no better."""
        headroom = self.headroom()
        if headroom is None or headroom.verdict != "wins" or self.reference is None:
            return math.nan
        if self.clairvoyant is None or result is self.reference:
            return math.nan
        gain = compare(*_paired(_of_workloads(result, self.clairvoyant), self.reference))
        return gain.difference.mean / headroom.difference.mean

    def headroom(self) -> Comparison | None:
        """The clairvoyant planner against the strongest reference."""
        return self.versus(self.clairvoyant, self.reference) if self.clairvoyant else None

    def text(self) -> str:
        """Facts, the table, and what it lacks."""
        some = self.rivals[0]
        loads = ", ".join(f"{load:g}" for load in some.loads if load is not None)
        where = f"loads {loads}" if loads else "loads drawn with the episodes"
        lines = [f"{some.seeds} workloads from seed {some.first_seed:,}, {where}.\n"]
        header = ["contender", "attainment, %", "to reference", "to literature", "p99 TTFT, s", "by length, %"]
        header += ["of bound, %", "gap closed, %"]
        lines += ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        for result in (self.bound, self.clairvoyant):
            if result is not None:
                name = (
                    "no policy can pass"
                    if result.kind == "bound"
                    else f"{result.label} (sees the future; on {result.seeds} workloads)"
                )
                lines.append(self._row(result, f"*{name}*"))
        lines += [self._row(r, f"**{r.label}**" if r.kind == "agent" else f"{r.label} ({r.kind})") for r in self.rivals]
        lines.append("")
        if self.agents:
            lines += [self._agents_table(), ""]
        if self.bound is None:
            lines += ["There is no bound: service times are noisy.\n"]
        return "\n".join(lines)

    def _row(self, result: Result, name: str) -> str:
        cells = [name, _percent(mean_ci(_finite(result.scores().mean(axis=0))))]
        for other in (self.reference, self.literature):
            found = self.versus(result, other) if result.kind != "bound" else None
            cells.append(_points(found.difference) if found else "best" if result is other else DASH)
        ttft = [value for value in result.ttft_p99_s if value is not None]
        cells.append(f"{np.mean(ttft):.1f}" if ttft else DASH)
        shares = [DASH if value is None else f"{100 * value:.0f}" for value in result.by_length]
        cells.append(DASH if shares == [DASH] * NUM_LENGTHS else " ".join(shares))
        ceiling = self.bound.mean if self.bound and result.kind != "bound" else math.nan
        cells.append(_figure(100 * result.mean / ceiling if ceiling > 0 else math.nan))
        cells.append(_figure(100 * self.gap_closed(result)) if result.kind == "agent" else DASH)
        return "| " + " | ".join(cells) + " |"

    def _agents_table(self) -> str:
        header = ["agent", "trainings", "worst and best training, %", "IQM, %", "P(better than the reference)"]
        header += ["workloads won, tied, lost", "p (sign flips)", "training"]
        lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        for agent in self.agents:
            scores = agent.scores()
            means = 100 * scores.mean(axis=1)
            found = self.versus(agent, self.reference)
            cells = [agent.label, str(len(scores)), f"{means.min():.1f}, {means.max():.1f}"]
            cells.append(_estimate(iqm_interval(scores), 100, 1))
            if found and self.reference:
                first, second = _paired(agent, self.reference)
                cells.append(_estimate(improvement_interval(first, second), 1, 2))
                p_value = sign_flip_test(first.mean(axis=0) - second)
                cells += [f"{found.wins}, {found.ties}, {found.losses}", f"{p_value:.4f}"]
            else:
                cells += [DASH] * 3
            seconds = [s for s in agent.training_s if s is not None]
            cells.append(f"{np.mean(seconds) / 60:.1f} min" if seconds else DASH)
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


# ---- the summary ---------------------------------------------------------------------------------------------------
def _summary(tables: Sequence[FamilyTable]) -> str:
    header = ["family", "best literature", "best reference", "best agent", "agent to reference", "agent to literature"]
    header += ["clairvoyant to reference"]
    lines = ["| " + " | ".join(header) + " |", "|---|---|---|---|" + "---:|" * 3]
    for table in tables:
        agent = table.agents[0] if table.agents else None
        cells = [f"[{table.family}](#{table.family})"]
        cells += [f"{r.label} {100 * r.mean:.1f}" if r else DASH for r in (table.literature, table.reference, agent)]
        for other in (table.reference, table.literature):
            found = table.versus(agent, other) if agent else None
            cells.append(f"{_points(found.difference)} {found.verdict}" if found else DASH)
        headroom = table.headroom()
        cells.append(_points(headroom.difference) if headroom else DASH)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _sentences(tables: Sequence[FamilyTable]) -> str:
    """What the numbers say, in words: where each agent wins, ties and loses."""
    found: dict[str, list[str]] = {"wins": [], "ties": [], "loses": []}
    below, headless, lines = [], [], []
    for table in tables:
        for agent in table.agents:
            against = table.versus(agent, table.reference)
            if against is None or table.reference is None:
                continue
            text = f"`{agent.label}` in {table.family} ({_points(against.difference)} to `{table.reference.label}`)"
            found[against.verdict].append(text)
            if against.verdict == "ties" and against.difference.mean < -CLEAR_LOSS:
                below.append(text)
            literature = table.versus(agent, table.literature)
            if literature and table.literature and literature.verdict != "wins":
                points = _points(literature.difference)
                below.append(f"`{agent.label}` in {table.family} ({points} to `{table.literature.label}`, literature)")
        headroom = table.headroom()
        if headroom and headroom.verdict != "wins":
            headless.append(f"{table.family} ({_points(headroom.difference)})")
    if not any(table.agents for table in tables):
        lines.append("No agent's results are saved yet: this page compares rules made by hand.")
    for verdict, start in (
        ("wins", "**Learning wins** against the strongest tuned reference"),
        ("ties", "**It ties** (the interval holds zero)"),
        ("loses", "**It loses**"),
    ):
        if found[verdict]:
            lines.append(f"{start}: {'; '.join(found[verdict])}.")
    if below:
        lines.append(f"Not clearly above, and worth a look: {'; '.join(below)}.")
    if headless:
        lines.append(
            f"A planner that sees the future, with its base and its changes, finds no headroom: {'; '.join(headless)}."
        )
    for table in tables:
        if table.literature and table.reference:
            gap = table.versus(table.reference, table.literature)
            if gap:
                mean, half = gap.difference
                lines.append(
                    f"{table.family}: the strongest reference, `{table.reference.label}`, is {100 * abs(mean):.2f}"
                    f" ±{100 * half:.2f} points {'above' if mean >= 0 else 'below'} the strongest literature scheduler,"
                    f" `{table.literature.label}`."
                )
    return "\n\n".join(lines) + "\n"


# ---- figures -------------------------------------------------------------------------------------------------------
def _paired(first: Result, second: Result) -> tuple[np.ndarray, np.ndarray]:
    """(trainings, workloads) and (workloads,) of the workloads that both met and that have a measured request."""
    start = max(first.first_seed, second.first_seed)
    end = min(first.first_seed + first.seeds, second.first_seed + second.seeds)
    a = first.scores()[:, start - first.first_seed : end - first.first_seed]
    b = second.scores()[:, start - second.first_seed : end - second.first_seed].mean(axis=0)
    there = np.isfinite(b) & np.isfinite(a).all(axis=0)
    return a[:, there], b[there]


def _of_workloads(result: Result, other: Result) -> Result:
    """A result on the workloads alone that another one met too."""
    skip = max(0, other.first_seed - result.first_seed)
    seeds = min(result.seeds - skip, other.first_seed + other.seeds - result.first_seed - skip)
    attainment = [[load[skip : skip + seeds] for load in training] for training in result.attainment]
    return replace(result, first_seed=result.first_seed + skip, seeds=seeds, attainment=attainment)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} ±{100 * interval.half_width:.1f}"


def _points(interval: Interval) -> str:
    return f"{100 * interval.mean:+.2f} ±{100 * interval.half_width:.2f}"


def _estimate(estimate: Estimate, factor: float, digits: int) -> str:
    low, high = f"{factor * estimate.low:.{digits}f}", f"{factor * estimate.high:.{digits}f}"
    return f"{factor * estimate.value:.{digits}f} [{low}, {high}]"


def _figure(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.1f}"
