"""How the agents learned: validation attainment against decisions, with what others reach on those workloads."""

from __future__ import annotations

import math

from agents.curves import Learning, learning_of
from llm_env.report.markup import NAMES, Axis, Panel, number, shortened, steps
from llm_env.report.story import Cast
from llm_env.study import Study

_LEAST_SPAN = 0.01  # of attainment that the axis shows
_BELOW = 2.0  # spans of the curves: references further below them are told in words


def learning_curves(study: Study, cast: Cast) -> list[str]:
    """A panel for each agent that keeps its curve."""
    panels = []
    for contender in study.contenders:
        if contender.agent and contender.label in cast.agents:
            learning = learning_of(contender.agent, contender.trusted)
            if learning is not None:
                panels.append(_panel(contender.label, cast.tone(contender.label), learning))
    return panels


def _panel(label: str, tone: str, learning: Learning) -> str:
    reached = [value for _, points in learning.runs for _, value in points]
    span = max(max(reached) - min(reached), _LEAST_SPAN)
    shown = [(name, value) for name, value in learning.references if value >= min(reached) - _BELOW * span]
    below = [(name, value) for name, value in learning.references if value < min(reached) - _BELOW * span]
    values = [*reached, *(value for _, value in shown)]
    step = steps(100 * max(max(values) - min(values), _LEAST_SPAN), 4)[1]
    first, last = math.floor(100 * min(values) / step + 1e-9), math.ceil(100 * max(values) / step - 1e-9)
    ticks = [k * step for k in range(first, max(last, first + 1) + 1)]
    told = [
        f"{name}: {number(100 * points[0][1], 2)} % at first, {number(100 * points[-1][1], 2)} % at last"
        for name, points in learning.runs
    ]
    told += [f"{name} reaches {number(100 * value, 2)} %" for name, value in learning.references]
    words = [f"{shortened(name, 22)} {number(100 * value)}" for name, value in below]
    lines = [", ".join(words[k : k + 2]) for k in range(0, len(words), 2)]
    more = 18 * (len(lines) + bool(lines))
    panel = Panel(f"How {label} learned", "; ".join(told), 300 + more, right=NAMES, top=48, bottom=46 + more)
    panel.text(0, 12, label, f"name {tone}")
    y = Axis(ticks[0], ticks[-1], panel.y0, panel.y1)
    most = max(x for _, points in learning.runs for x, _ in points)
    unit, word = (1e6, "million decisions") if most >= 2e6 else (1e3, "thousand decisions")
    x = Axis(0.0, max(most, 1.0) / unit, panel.x0, panel.x1)
    panel.y_axis(y, ticks, lambda v: f"{v:.4g}", "Promises kept on validation workloads, %")
    panel.x_axis(x, [t for t in steps(most / unit) if t <= most / unit], lambda v: f"{v:g}", word)
    names = []
    for name, value in shown:
        level = y(100 * value)
        panel.line(panel.x0, level, panel.x1, level, "reference")
        names.append((level, name, "other"))
    for name, points in sorted(learning.runs, key=lambda run: run[0] == learning.chosen):
        said = f"{name}: " + ", ".join(f"{number(100 * b, 2)} % after {a:,.0f}" for a, b in points)
        kind = tone if name == learning.chosen or len(learning.runs) == 1 else "other"
        panel.path(x.all([a / unit for a, _ in points]), y.all([100 * b for _, b in points]), kind, said)
    chosen = dict(learning.runs).get(learning.chosen, learning.runs[0][1])
    names.append((y(100 * chosen[-1][1]), learning.chosen, tone))
    panel.end_labels(names, panel.x1 + 6)
    for k, line in enumerate(["Further below:", *lines] if lines else ()):
        panel.text(0, panel.y0 + 62 + 18 * k, line, "tick")
    return panel.svg()
