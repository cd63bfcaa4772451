"""The report as one HTML text that loads nothing: headline, tables, figures, the player, and what was run.

The same study gives the same text: no clock, no paths of the machine, no random names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from llm_env.aggregate import Row
from llm_env.report import decisions, figures, player
from llm_env.report.curves import learning_curves
from llm_env.report.document import document
from llm_env.report.markup import escaped, number, plus_minus
from llm_env.report.recorded import recorded
from llm_env.report.runs import over_time
from llm_env.report.settings_text import promise, what_was_run
from llm_env.report.story import (
    Cast,
    Headline,
    at_load,
    cast_of,
    difference,
    headline,
    headline_load,
    told_points,
    workloads,
)
from llm_env.study import CellResult, Study

MAX_UNBROKEN = 20  # characters that fit a line of a telephone


def report(
    study: Study, rows: Sequence[Row], cells: Sequence[CellResult], results: dict[str, Any], command: Sequence[str]
) -> str:
    """The HTML text.

    Args:
        study: what was compared on what.
        rows: of `llm_env.aggregate.aggregate`.
        cells: of the study.
        results: of `llm_env.study_files.results_of`: versions and commit.
        command: the words that give the results again.
    """
    cast = cast_of(study, rows, headline_load(study))
    told = headline(study, rows, cells, cast)
    where = study.scenario.name if study.trace is None else "a trace"
    runs = recorded(study, cast)
    shown = player.excerpt(runs) if len(runs) > 1 else None
    sections = [
        ("table", "All contenders", _tables(study, rows, cells, cast)),
        ("load", "As load grows", _grid(figures.against_load(study, rows, cells, cast), _BANDS)),
        ("waiting", "Who waits how long", _grid(figures.distributions(study, cells, cast), _tails_note(cast))),
        (
            "differences",
            "Difference to the reference",
            _grid(figures.forest(study, rows, cells, cast), _forest_note(cast)),
        ),
        ("prompts", "Short and long prompts", _grid(figures.by_prompt_length(study, cells, cast), _prompts_note(cast))),
        ("decisions", "What is decided when", _decisions(cast, runs)),
        ("time", "One run over time", _runs(study, cells, cast)),
        ("player", "Batch by batch", player.markup(shown, _of_first_run(shown.names, cast)) if shown else ""),
        ("learning", "How the agents learned", _grid(learning_curves(study, cast), _LEARNED)),
        ("run", "What was run", what_was_run(study, results, command)),
    ]
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, title, content in sections
    )
    main = (
        f'<a class="skip" href="#main">Skip to the report</a><main id="main"><header>'
        f'<p class="kicker">Scheduling study · {escaped(where)}</p>'
        f"<h1>{_unbroken(told)}</h1>{_beside(study, rows, cast, told.others)}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>{body}</main>'
        "<footer><p>Made by llm-env from simulated runs. This file is whole: it loads nothing.</p></footer>"
    )
    return document(f"{told.subject} on {where}", main, ["player.js"] if shown else [])


# ---- headline ------------------------------------------------------------------------------------------------------
def _beside(study: Study, rows: Sequence[Row], cast: Cast, others: Sequence[str]) -> str:
    row = next(row for row in rows if row.load == cast.load and row.contender == cast.reference)
    kind = "agent" if cast.agents else "baseline"
    notes = [promise(study.scenario)]
    if others:
        notes.insert(0, " ".join(others))
    if cast.agents and cast.baselines:
        notes.append("The best baseline was chosen on these same workloads, which favours it.")
    elif len(cast.baselines) > 1:
        notes.append("The best baseline was chosen on these same workloads, which flatters it.")
    if any(r.unstable for r in rows if r.load == cast.load):
        notes.append("† marks those whose backlog grew all through the run: their times depend on how long it was.")
    paragraphs = "".join(f"<p>{escaped(note)}</p>" for note in notes)
    shown = plus_minus(100 * row.headline.mean, 100 * row.headline.half_width)
    figure = (
        f'<p class="figure"><strong>{number(100 * row.headline.mean)}<span> %</span></strong>'
        f"<span>of promises kept by the {kind}{escaped(at_load(cast.load))}: {shown} % over {workloads(study, row)},"
        f" {row.num_requests:,} requests</span></p>"
    )
    return f'<div class="lead">{figure}<div class="notes">{paragraphs}</div></div>'


def _unbroken(told: Headline) -> str:
    """The sentence, in which neither names nor numbers with their units are broken."""
    text = escaped(told.sentence).replace(" ±", "\u00a0±").replace(" %", "\u00a0%")
    for name in {told.subject, told.compared} - {None}:
        if len(str(name)) <= MAX_UNBROKEN:
            whole = rf"(?<![\w-]){re.escape(escaped(name))}(?![\w@]|[-:/]\w)"
            text = re.sub(whole, lambda found: f'<span class="whole">{found[0]}</span>', text)
    return text


# ---- tables --------------------------------------------------------------------------------------------------------
def _tables(study: Study, rows: Sequence[Row], cells: Sequence[CellResult], cast: Cast) -> str:
    loads = sorted(study.load_labels(), key=lambda load: (load != cast.load, load or 0))
    tables = [_table(study, [r for r in rows if r.load == load], cells, cast, load) for load in loads]
    if len(tables) == 1:
        return tables[0]
    rest = "".join(
        f"<details><summary>At load {load:g}</summary>{table}</details>"
        for load, table in zip(loads[1:], tables[1:], strict=True)
        if load is not None
    )
    return tables[0] + rest


def _table(study: Study, rows: Sequence[Row], cells: Sequence[CellResult], cast: Cast, load: float | None) -> str:
    there = cast_of(study, rows, load)
    found = {row.contender: row for row in rows}
    order = [*there.agents, *there.baselines, *there.bounds]
    body = []
    for name in order:
        row, m = found[name], found[name].means
        gap = None
        if name != cast.reference:
            gap = difference(study, cells, load, name, cast.reference, row.headline_rule)
        compared = "reference" if gap is None else told_points(gap)
        tags = ' <span class="tag">agent</span>' if row.is_agent else ""
        tags += ' <span class="tag">knows the future</span>' if name in cast.bounds else ""
        mark = ' <abbr title="unstable: the backlog grew all through the run">†</abbr>' if row.unstable else ""
        times = ["†", "†"] if row.unstable else [number(m["ttft_p50_s"], 2), number(m["ttft_p99_s"], 2)]
        kept = plus_minus(100 * row.headline.mean, 100 * row.headline.half_width)
        figures_ = [kept, compared, number(m["goodput_per_s"], 2), *times, number(1e3 * m["tbt_p99_s"], 0)]
        share = (
            '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="100" height="4" class="track"/><rect width="{100 * row.headline.mean:.1f}" height="4"'
            f' class="{cast.tone(name)}"/></svg>'
        )
        cells_ = "".join(f"<td>{escaped(value)}{share if k == 0 else ''}</td>" for k, value in enumerate(figures_))
        kind = cast.tone(name)
        body.append(
            f'<tr class="{kind}"><th scope="row"><span class="key {kind}" aria-hidden="true"></span>'
            f"<span>{escaped(name)}</span>{mark}{tags}</th>{cells_}</tr>"
        )
    weight = ", by weight" if study.weighted else ""
    heads = (
        ("Policy", ""),
        (f"Promises kept{weight}", "%"),
        ("Difference", "points"),
        ("Goodput", "requests/s"),
        ("TTFT p50", "s"),
        ("TTFT p99", "s"),
        ("TBT p99", "ms"),
    )
    head = "".join(f'<th scope="col">{title}<span>{unit}</span></th>' for title, unit in heads)
    caption = (
        f"{'' if load is None else f'Load {load:g}, '}{workloads(study, rows[0])}. ± is half a 95 % interval;"
        f" the difference to {cast.reference} is paired. Percentiles are means of each workload's."
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table{escaped(at_load(load))}"><table>'
        f"<caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


# ---- figures -------------------------------------------------------------------------------------------------------
def _grid(panels: Sequence[str], note: str) -> str:
    panels = [panel for panel in panels if panel]
    if not panels:
        return ""
    return (
        f'<p class="note">{escaped(note)}</p><div class="grid">'
        + "".join(f"<figure>{panel}</figure>" for panel in panels)
        + "</div>"
    )


_BANDS = (
    "Bands are 95 % intervals over the workloads. Grey lines are other baselines: rest the pointer on one for its name."
)


_LEARNED = (
    "On validation workloads, which are not those of this report. The coloured line is the training that the agent is"
    " of, grey ones are trainings with other seeds; level lines are what others reach on the validation workloads."
)


def _tails_note(cast: Cast) -> str:
    return (
        f"Read a curve where it meets the target: that share came too late{at_load(cast.load)}."
        " Lower and further left is better."
        " A curve that stays up belongs to requests that were never served."
    )


def _forest_note(cast: Cast) -> str:
    return (
        f"Each workload's promises kept, less those of {cast.reference} on the same workload."
        " An interval that holds 0 is a tie; left of 0 means fewer promises kept."
        " An arrow points to those far beyond the edge."
    )


def _prompts_note(cast: Cast) -> str:
    return (
        f"The same requests in four groups of equal number{at_load(cast.load)}."
        " A policy that looks good because it leaves long prompts waiting shows it here."
    )


def _decisions(cast: Cast, runs: Sequence[player.Run]) -> str:
    shown = decisions.maps(runs)
    note = (
        f"Decisions of the first run{at_load(cast.load)}, by how many requests waited when they were made."
        " 1× is the largest batch that keeps the TBT target; a budget below it leaves room, one above it breaks the"
        f" target if it is used. Cells with fewer than {decisions.FEWEST} decisions are blank."
    )
    return _columns(note, [(run.name, panels) for run, panels in shown], cast) if shown else ""


def _of_first_run(names: Sequence[str], cast: Cast) -> str:
    who = f"{', '.join(names[:-1])} and {names[-1]}"
    return f"The same requests under {who}{at_load(cast.load)}, first run,"


def _runs(study: Study, cells: Sequence[CellResult], cast: Cast) -> str:
    shown = over_time(study, cells, cast)
    if not shown:
        return ""
    seed = "" if study.trace is not None else f" (seed {study.seeds[0]})"
    names = " and ".join(name for name, _ in shown)
    note = f"The same requests under {names}{at_load(cast.load)}{seed}, on the same axes."
    return _columns(note, shown, cast)


def _columns(note: str, shown: Sequence[tuple[str, Sequence[str]]], cast: Cast) -> str:
    """A column of panels for each contender. Args: shown: names and their panels."""
    columns = "".join(
        f'<div class="column"><h3 class="{cast.tone(name)}">{escaped(name)}</h3>'
        + "".join(f"<figure>{panel}</figure>" for panel in panels)
        + "</div>"
        for name, panels in shown
    )
    return f'<p class="note">{escaped(note)}</p><div class="grid">{columns}</div>'
