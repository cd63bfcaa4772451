"""What the numbers of a study say: who leads whom by how much, who is shown, and the headline. Draws nothing.

The words never say more than the interval: a difference whose interval holds 0 is a tie, and without an interval
there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_env.aggregate import Row
from llm_env.metrics import WEIGHTED, Interval, paired_ci
from llm_env.report.markup import number, plus_minus
from llm_env.study import CellResult, Study

FAMILIAR = ("vllm-v1", "vllm-v1:slo", "sarathi", "sarathi:slo", "vllm-v0", "fcfs")  # what many readers run today
MAX_HEROES = 3  # contenders with a colour of their own


@dataclass(frozen=True)
class Cast:
    """Who plays which part at the load of the headline.

    Attributes:
        load: of the headline: the highest up to 1, else the lowest.
        ranked: labels of all contenders that could be used, best first.
        agents: those of them that are agents, best first.
        baselines: the others, best first.
        reference: whom everybody is compared with: the best agent, else the best baseline.
        bounds: labels of those that know the future.
    """

    load: float | None
    ranked: tuple[str, ...]
    agents: tuple[str, ...]
    baselines: tuple[str, ...]
    bounds: tuple[str, ...]

    @property
    def reference(self) -> str:
        """Whom everybody is compared with."""
        return (self.agents or self.baselines or self.ranked or self.bounds)[0]

    @property
    def heroes(self) -> tuple[str, ...]:
        """Who is drawn in colour: the agents, or where there is none the best baseline."""
        return (self.agents or self.baselines[:1] or self.bounds[:1])[:MAX_HEROES]

    @property
    def rival(self) -> str | None:
        """The baseline beside the heroes: the best that is none of them."""
        return next((name for name in self.baselines if name not in self.heroes), None)

    def few(self, most: int = 5) -> tuple[str, ...]:
        """Heroes, rival, and what many run: for pictures in which many lines would hide each other."""
        familiar = [name for name in FAMILIAR if name in self.ranked]
        families: list[str] = []
        for name in familiar:  # one of each engine
            if name.split(":")[0] not in {other.split(":")[0] for other in families}:
                families.append(name)
        rival = [self.rival] if self.rival else []
        return tuple(dict.fromkeys([*self.heroes, *rival, *families[:2], *self.baselines]))[:most]

    def pair(self) -> tuple[str, ...]:
        """Two whose runs are shown beside each other: the reference and the best of the other kind."""
        other = self.rival if self.agents else next((n for n in self.few()[2:] if n in FAMILIAR), self.rival)
        return (self.reference, other) if other is not None and other != self.reference else (self.reference,)

    def line(self, name: str) -> str:
        """CSS classes of a contender's line: its colour, and for the grey ones of `few` a dash of their own."""
        grey = [other for other in self.few() if self.tone(other) == "other"]
        return f"{self.tone(name)} dash{grey.index(name)}" if name in grey else self.tone(name)

    def tone(self, name: str) -> str:
        """CSS class of a contender's colour."""
        if name in self.heroes:
            return f"hero{self.heroes.index(name) + 1}"
        return "rival" if name == self.rival else "other"


def headline_load(study: Study) -> float | None:
    """The load that is spoken of first: the highest up to 1, else the lowest; None where there is but one, unnamed."""
    loads = [load for load in study.load_labels() if load is not None]
    if not loads:
        return None
    return max((load for load in loads if load <= 1.0), default=min(loads))


def cast_of(study: Study, rows: Sequence[Row], load: float | None) -> Cast:
    """The parts at a load."""
    bounds = tuple(contender.label for contender in study.contenders if contender.is_bound)
    mine = sorted((row for row in rows if row.load == load), key=lambda row: -row.headline.mean)
    ranked = tuple(row.contender for row in mine if row.contender not in bounds)
    agents = tuple(row.contender for row in mine if row.is_agent)
    return Cast(load, ranked, agents, tuple(name for name in ranked if name not in agents), bounds)


def samples(study: Study, cells: Sequence[CellResult], load: float | None, name: str, rule: str) -> np.ndarray:
    """Attainment of each seed with a measured request (on a trace, of each block): (replications,) float64."""
    mine = [c for c in cells if c.load == load and c.contender == name and c.summary["num_requests"] > 0]
    if study.trace is not None:
        return mine[0].blocks[rule]
    key = "weighted_attainment" if rule == WEIGHTED else f"slo_attainment_{rule}"
    return np.array([c.summary[key] for c in mine])


def difference(
    study: Study, cells: Sequence[CellResult], load: float | None, name: str, reference: str, rule: str
) -> Interval:
    """Of `name` to `reference`, paired workload by workload."""
    first, second = (samples(study, cells, load, each, rule) for each in (name, reference))
    return paired_ci(first, second)


def told_points(difference: Interval) -> str:
    """A difference in points with its half-width: as many digits as show on which side of the interval 0 lies."""
    mean, half = 100 * difference.mean, 100 * difference.half_width
    digits = next((n for n in (1, 2, 3) if round(abs(mean), n) != round(half, n)), 1)
    return plus_minus(mean, half, digits, sign=True)


def verdict(difference: Interval) -> str:
    """One of "leads", "trails", "ties", or nothing where there is no interval."""
    mean, half = difference
    if not math.isfinite(half):
        return ""
    return "leads" if mean - half > 0 else "trails" if mean + half < 0 else "ties"


def workloads(study: Study, row: Row) -> str:
    """On what a row rests: "16 workloads"."""
    kind = "block of one run" if study.trace is not None else "workload"
    more = "blocks of one run" if study.trace is not None else "workloads"
    return f"{row.replications} {kind if row.replications == 1 else more}"


def at_load(load: float | None) -> str:
    """As in " at load 0.8", or nothing."""
    return "" if load is None else f" at load {load:g}"


@dataclass(frozen=True)
class Headline:
    """The finding: a sentence, what the reader should know beside it, and the figures of the first line."""

    sentence: str
    verdict: str
    others: tuple[str, ...]
    attainment: Interval
    difference: Interval | None
    subject: str
    compared: str | None


def headline(study: Study, rows: Sequence[Row], cells: Sequence[CellResult], cast: Cast) -> Headline:
    """The sentence, from the numbers."""
    subject = cast.reference
    found = {(row.load, row.contender): row for row in rows}
    row = found[cast.load, subject]
    by = ", counted by weight," if row.headline_rule == WEIGHTED else ""
    aside = "" if cast.agents else ", the best baseline here,"
    keeps = f"{subject}{aside} keeps {number(100 * row.headline.mean)} % of its promises{by}{at_load(cast.load)}"
    compared = cast.rival if not cast.agents else (cast.baselines[0] if cast.baselines else None)
    if compared is None:
        return Headline(f"{keeps}.", "", (), row.headline, None, subject, None)
    gap = difference(study, cells, cast.load, subject, compared, row.headline_rule)
    what = "the best baseline" if cast.agents else "the second-best baseline"
    told = verdict(gap)
    points = f"{told_points(Interval(abs(gap.mean), gap.half_width)).removeprefix('+')} points"
    over = f"(paired over {workloads(study, row)})"
    if told == "":
        sentence = (
            f"{keeps}; {what}, {compared}, keeps {number(100 * found[cast.load, compared].headline.mean)} %: "
            f"on {workloads(study, row)} there is no interval, so no verdict."
        )
    elif told == "ties":
        shown = told_points(gap)
        sentence = f"{keeps} and ties with {what}, {compared}: the difference is {shown} points {over}."
    else:
        more = "more" if told == "leads" else "fewer"
        sentence = f"{keeps}, {points} {more} than {what}, {compared} {over}."
    others = []
    for load in study.load_labels():
        if load == cast.load:
            continue
        there = cast_of(study, rows, load)
        against = there.baselines[0] if cast.agents else next(n for n in there.baselines if n != subject)
        gap_there = difference(study, cells, load, subject, against, row.headline_rule)
        word = verdict(gap_there) or "is"
        shown = told_points(gap_there)
        link = {"ties": "ties with", "is": "differs from", "leads": "leads", "trails": "trails"}[word]
        others.append(f"{at_load(load).strip().capitalize()} it {link} {against} ({shown} points).")
    return Headline(sentence, told, tuple(others), row.headline, gap, subject, compared)
